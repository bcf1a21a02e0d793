"""Phi-4-reasoning (2504.21318): traces of problems at the edge of ability, then a little GRPO with a reward that knows length.

    R = 8/13 R_acc + 1/13 R_rep,    p = (L / M - begin) / (finish - begin), within [0, 1]
    right:   R_acc =  1/2 + (1 + cos pi p) / 4     from  1 down to  1/2, where the last fifth of the budget begins
    wrong:   R_acc = -1/2 - (1 + cos pi p) / 4     from -1 up to -1/2, within the first eighth of it
    cut off: R_acc = -1/2           reasoning not marked as it should be, in an answer right or wrong: R_acc = -1
    R_rep = - max(share of 5-grams that stand more than 5 times, the most frequent one's count / (n / 5)), at least -1

Teachable prompts: the model that is to learn solves them in a share of `low` to `high` of its answers, so that there is
something to learn. `strong` names a stronger model whose plurality stands for the truth where there is none, and whose traces
are learnt; without it both are the task's.

Departures: prompts are not rewritten, nor graded by a rubric; domains are not mixed. Token 5-grams, different ones, are
counted. An open thought that the budget cut off is cut off, not malformed. The model's own tags are used, and nothing is added
to its vocabulary or its positions. Budgets are shares of the generation budget.

    whet run phi-4-reasoning
"""

from __future__ import annotations

from typing import Any

from whet.errors import WhetError
from whet.evaluation.lengths import Lengths
from whet.recipes.recipe import Recipe, recipe
from whet.recipes.reinforced.grpo import grpo
from whet.recipes.supervised.sft import sft
from whet.rewards import Attempt, Reward, accuracy, each
from whet.rewards.length import Bend, LengthCurve
from whet.rewards.repetition import repetition
from whet.sources import Curated, Subset
from whet.sources.curation import Agreed, Difficulty, Distinct, Filter, Length
from whet.tasks import Response
from whet.training.optimizer import Rate
from whet.training.stage import Stage

CURVE = LengthCurve(
    right=Bend(1, 0.5, begin=25_600 / 31_744), wrong=Bend(-1, -0.5, finish=3_702 / 31_744), exceeded=-0.5
)
MALFORMED = -1.0
SHARES = (8 / 13, 1 / 13)
OWN: dict[str, Any] = {"kl": 0.001, "entropy": 0.001, "lr": Rate(small=1e-4, paper=5e-8), "warmup": 10}


def thinks(response: Response) -> bool:
    """Whether a response marks its reasoning as it should: one thought, in tags, at its beginning.

    What the budget cut off may leave it open. A format without tags must have reasoning before its answer.
    """
    opened, closed = response.text.count("<think>"), response.text.count("</think>")
    if not opened and not closed:
        return not response.ended or bool(response.rationale)
    ahead = response.text.lstrip().startswith("<think>")
    return ahead and opened == 1 and (closed == 1 or (closed == 0 and not response.ended))


def length_accuracy() -> Reward:
    """Part `length`, R_acc: form first, then completeness, then correctness and length. A verdict with a part `format` (a task
    that judges its own form) decides about the form."""

    def score(attempt: Attempt) -> float:
        own = attempt.verdict.parts.get("format")
        formed = thinks(attempt.response) if own is None else own == 1.0
        return CURVE.of(attempt) if formed else MALFORMED

    return each("length", score)


@recipe(paper="phi-4-reasoning", name="phi-4-reasoning", parent="grpo", task="countdown:level=1-2", defaults=OWN)
def phi4_reasoning(
    rows: int = 256,
    low: float = 0.1,
    high: float = 0.6,
    samples: int = 8,
    over: int = 4,
    strong: str = "",
    agreement: float = 0.5,
    sft_steps: int = 60,
    sft_lr: float | Rate = Rate(small=5e-4, paper=1e-5),
    sft_batch: int = 32,
    weight_decay: float = 1e-4,
    steps: int = 60,
    shaped: bool = True,
    repetition_share: float = SHARES[1],
    **training: Any,
) -> Recipe:
    """Learn worked problems of the right difficulty, then reinforce for a few steps: short where right, longer where wrong.

    Args:
        rows: teachable problems that the first stage learns.
        low: smallest share of right answers of the model at the start.
        high: largest share; low=0 with high=1 takes problems as they come.
        samples: answers by which the share is told.
        over: problems that are looked at for each row that is wanted.
        strong: a stronger model by name, whose agreement with itself is asked and whose traces are learnt; else the task's.
        agreement: share of its answers that must be alike.
        sft_steps: steps of the first stage; 0 leaves it out.
        sft_lr: its learning rate; by default 5e-4 below 50 M parameters and 1e-5 above.
        sft_batch: its demonstrations a step.
        weight_decay: its AdamW's, on matrices.
        steps: steps of the second stage, GRPO (90 in the paper); 0 leaves it out.
        shaped: whether accuracy is paid by form and length; else it is 1 or 0.
        repetition_share: weight of the reward against repetition, beside 8/13 of accuracy; 0 is off.
    """
    if not 0 <= low <= high <= 1:
        raise WhetError(f"phi-4-reasoning: low and high are shares with low <= high, not {low:g} and {high:g}")
    if not sft_steps and not steps:
        raise WhetError("phi-4-reasoning: sft_steps and steps are both 0, so that nothing is learnt")
    if training.get("reward"):
        raise WhetError("phi-4-reasoning: its reward is its own (shaped, repetition_share); use grpo for another")
    stages: list[Stage] = []
    if sft_steps:
        (taught,) = sft(steps=sft_steps, lr=sft_lr, batch=sft_batch, weight_decay=weight_decay).stages
        filters: list[Filter] = [Length(), Distinct()]
        filters += [Agreed(strong, share=agreement)] if strong else []
        filters += [Difficulty(low, high, samples)] if (low, high) != (0, 1) else []
        taught.collect, taught.name = Curated([Subset("teachable", rows, filters, over=over)]), "teachable"
        stages.append(taught)
    if steps:
        reward = SHARES[0] * (length_accuracy() if shaped else accuracy())
        if repetition_share:
            reward = reward + repetition_share * repetition()
        stages += grpo(reward=reward, steps=steps, **{**OWN, **training}).stages
    return Recipe(stages, Lengths(max_new_tokens=training.get("max_new_tokens", 0)))
