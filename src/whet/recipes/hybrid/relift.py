"""ReLIFT (2506.07527): reinforcement as usual, and supervised steps on the questions that it cannot learn from.

    D <- demonstrations of the step's questions that none of the G answers solved, one a question
    L_RL  = - sum_it rho_it A_i / (answers x budget) - c H          A_i = r_i - mean_j r_j;  rho is not clipped
    L_SFT = - mean_t log p(y*_t | x, y*_<t) - alpha mean_t H_t      once D holds M demonstrations: on the newest M

A dead group gives reinforcement no gradient; its demonstration gives one. The two losses have an AdamW each, or the larger
gradients of the second would fill the moments of the first. At most one supervised step follows a step of reinforcement.

Not as in the release: its sums are divided by (answers x budget) of the whole batch and by tokens of the whole batch, not by
micro-batch; a demonstration that is longer than the budget is left out, where the release writes an end token over its cut.

    whet run relift --task finance:level=2
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from whet.models.policy import Policy
from whet.objectives import entropy_bonus, nll
from whet.objectives.objective import as_objective
from whet.recipes.recipe import Recipe, recipe
from whet.recipes.reinforced.grpo import grpo
from whet.recipes.supervised.sft import sft
from whet.sources import Answering, Demonstrated
from whet.tasks import Problem, Task
from whet.training.optimizer import AdamW, Rate
from whet.training.stage import Update

OF_THE_PAPER = {"advantage": "group-mean", "normalise": "constant", "ratio": "none", "entropy": 1e-3, "minibatches": 2}
SFT_GRPO = {"advantage": "group-mean", "normalise": "constant", "entropy": 1e-3}
SFT_RATE = Rate(small=5e-4, paper=1e-5)


class Used(Answering):
    """The policy answers by itself; also measured is `demonstrations_used`, the share of the questions so far whose
    demonstration was learnt."""

    def __init__(self, buffer: Demonstrated) -> None:
        self.buffer = buffer

    def measure(self, policy: Policy, task: Task, problems: Sequence[Problem]) -> Mapping[str, float]:
        return {"demonstrations_used": self.buffer.used / max(1, self.buffer.met)}


@recipe(paper="relift", parent="grpo", defaults=OF_THE_PAPER)
def relift(
    threshold: float = 0,
    select: str = "hardest",
    sft_lr: float | Rate = Rate(small=1e-4, paper=1e-6),
    sft_entropy: float = 1e-4,
    grad_clip: float = 0.7,
    **training: Any,
) -> Recipe:
    """ReLIFT: reinforcement, interleaved with supervised steps on the demonstrations of questions that all answers failed.

    Args:
        threshold: demonstrations in a supervised step (M), which waits until so many are there; 0 is the batch, Infinity never.
        select: hardest (no answer right), random (as many, drawn from the step) or all: whose demonstrations are learnt.
        sft_lr: learning rate of the supervised steps; by default 1e-4 below 50 M parameters and 1e-6 above.
        sft_entropy: weight of the entropy bonus in them (alpha).
        grad_clip: maximal gradient norm of reinforcement; that of the supervised steps is 1.
    """
    (stage,) = grpo.build(**{**OF_THE_PAPER, **training}).stages
    loss = as_objective(nll()) + sft_entropy * entropy_bonus()
    supervised = Update(loss, rows="hardest", optimizer=AdamW(lr=sft_lr), temperature=1.0)
    stage.updates[0].clip = grad_clip
    stage.updates.append(supervised)
    buffer = Demonstrated(threshold or stage.batch, select)
    stage.buffers = {"hardest": buffer}
    stage.collect.needs |= {"demonstrations"}
    stage.name = "relift"
    return Recipe([stage], Used(buffer))


@recipe(paper="relift", parent="grpo", name="sft-grpo", defaults=SFT_GRPO)
def sft_grpo(warm: int = 60, warm_batch: int = 32, warm_lr: float | Rate = SFT_RATE, **training: Any) -> Recipe:
    """First supervised fine-tuning, then reinforcement: the plain way to use both, a baseline of the hybrids.

    Args:
        warm: supervised steps.
        warm_batch: demonstrations in each.
        warm_lr: peak rate of their cosine; by default 5e-4 below 50 M parameters and 1e-5 above.
    """
    first = sft.build(steps=warm, batch=warm_batch, lr=warm_lr).stages
    return Recipe([*first, *grpo.build(**{**SFT_GRPO, **training}).stages])
