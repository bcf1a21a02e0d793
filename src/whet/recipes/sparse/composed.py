"""Composition of sparse fine-tunings (LT-SFT, 2110.07560, section 3): vectors of several tasks from one start, added up.

    phi_i = theta_i - theta_0                each task trained alone from theta_0, by lt-sft
    theta = theta_0 + sum_i phi_i            where masks overlap, changes add up

Skills that were never trained together are had together, as far as their changes do not get into each other's way: that sparse ones
do so less is the claim. `dense=true` adds whole changes (task arithmetic, the control), `random=true` draws the masks by chance. What
is measured on each task is the sum; name them in `--others`.

    whet run composed-sft --task word-problem:level=3 --others word-problem:level=3 --others chain-sum:level=3
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from whet.errors import WhetError
from whet.models.policy import Policy
from whet.recipes.recipe import Recipe, recipe
from whet.recipes.sparse.lt_sft import Ticket, lt_sft, moved_most
from whet.training.sequence import read_tasks
from whet.weights import Masked
from whet.weights.delta import WeightDelta
from whet.weights.selectors import Rule, Selector, without_norms
from whet.weights.snapshot import Snapshots, copy_weights, write_weights

START = "the start"


@recipe(paper="lt-sft", parent="sft", task="word-problem:level=3")
def composed_sft(
    tasks: str = "word-problem:level=3;chain-sum:level=3", density: float = 0.05, dense: bool = False, random: bool = False,
    **training: Any,
) -> Recipe:  # fmt: skip
    """Sparse changes for several tasks, each trained alone from the start, added up (LT-SFT, 2110.07560).

    Args:
        tasks: separated by `;`.
        density: share of all parameters but the norms that moves for a task.
        dense: add whole changes, without a second phase.
        random: draw the entries by chance.
    """
    skills, models, stages = read_tasks(tasks), Snapshots(), []
    if len(skills) < 2:
        raise WhetError("composed-sft: a sum needs two tasks or more, as in tasks='lists:level=3;chain-sum:level=3'")
    for number, task in enumerate(skills, 1):
        last = number == len(skills)
        first, second = lt_sft(density=density, random=random, **training).stages
        if dense:
            first.weights = DenseSkill(models, task.spec(), last)
        else:
            second.weights = SparseSkill(models, task.spec(), last, moved_most(density, random))
        for stage in [first] if dense else [first, second]:
            stage.task, stage.name = task, f"{stage.name} {number}: {task.spec()}"
            stage.start = "base"
            stages.append(stage)
    return Recipe(stages)


class DenseSkill(Masked):
    """Everything but the norms. What its stage ends with is set aside; the last one's end is the start plus all changes.

    Args:
        models: shared by the stages of a run, and saved in its checkpoints.
        skill: the name of what the stage ends with.
        last: whether the sum is due.
        how: what `Masked` takes.
    """

    def __init__(self, models: Snapshots, skill: str, last: bool, select: Selector | None = None, **how: Any) -> None:
        super().__init__(select or Rule(without_norms), name="skill", **how)
        self.held, self.skill, self.last = models.held, skill, last

    def before_rewind(self, policy: Policy, base: Mapping[str, Tensor]) -> None:
        super().before_rewind(policy, base)
        self.held.setdefault(START, dict(base))

    def at_stage_end(self, policy: Policy) -> None:
        if self.skill not in self.held:  # a run that ends a second time has the sum already
            self.held[self.skill] = copy_weights(policy, moving=False)
        if self.last:
            write_weights(policy, self.held[START])
            for skill in self.held.keys() - {START}:
                WeightDelta.between(self.held[skill], self.held[START]).add_to(policy)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "held": dict(self.held)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.held.update(state["held"])


class SparseSkill(DenseSkill, Ticket):
    """The same of the entries that moved most in the stage before."""
