"""STaR: bootstrapping reasoning with reasoning (2203.14465), and rejection-sampling fine-tuning as its switches.

Each round: the current model answers the training questions; wrong ones are asked again with the answer as a hint; what
checks out is learnt, under the un-hinted question, *from the base weights*. Round n takes int(steps * growth^(n-1))
steps. With temperature above 0, several samples and rationalize=false it is RFT (2308.01825).

    whet run star --task chain-sum
"""

from __future__ import annotations

from whet.errors import WhetError
from whet.objectives import nll
from whet.recipes.recipe import Recipe, recipe
from whet.sources import Bootstrapped, Uniform
from whet.training.optimizer import AdamW, Rate
from whet.training.rounds import growing, rounds
from whet.training.stage import Stage, Update


@recipe(paper="star")
def star(
    number: int = 3,
    steps: int = 40,
    growth: float = 1.2,
    batch: int = 32,
    questions: int = 512,
    samples: int = 1,
    temperature: float = 0.0,
    rationalize: bool = True,
    cap: int = 4,
    restart: str = "base",
    lr: float | Rate = Rate(small=3e-4, paper=1e-6),
    warmup: float = 0.1,
) -> Recipe:
    """Self-taught reasoner: keep own rationales whose answer checks out, learn them from the base, repeat.

    Args:
        number: rounds.
        steps: optimizer steps of the first round.
        growth: by which the steps grow each round.
        batch: kept answers a step.
        questions: questions asked each round, the same in all rounds.
        samples: answers a question; more than 1 needs a temperature.
        temperature: 0 is greedy, as in the paper.
        rationalize: ask failures again with the answer as a hint.
        cap: kept answers a question at most, duplicates dropped first.
        restart: base, or last to go on from the round before (a documented deviation that overfits).
        lr: learning rate; by default 3e-4 below 50 M parameters and 1e-6 above.
        warmup: share of a round's steps with linear warm-up.
    """
    if samples > 1 and temperature == 0:
        raise WhetError("star: several samples a question need a temperature above 0, or they are all alike")
    optimizer = AdamW(lr=lr, warmup=warmup, schedule="linear")

    def one_round(index: int, length: int) -> Stage:
        return Stage(
            problems=Uniform(limit=questions),
            collect=Bootstrapped(questions, samples, temperature, rationalize, cap),
            updates=[Update(nll(), optimizer=optimizer)],
            steps=length, batch=batch, start=restart, name=f"round {index + 1}",
        )  # fmt: skip

    return Recipe(rounds(growing(number, steps, growth), one_round))
