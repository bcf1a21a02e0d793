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
from whet.recipes.sparse.lt_sft import lt_sft
from whet.training.sequence import read_tasks
from whet.weights import Weights
from whet.weights.around import Around
from whet.weights.delta import WeightDelta
from whet.weights.snapshot import Snapshots, copy_weights, write_weights

START = "the start"
STEPS = {"steps": 80}  # of each phase of each task


@recipe(paper="lt-sft", parent="sft", defaults=STEPS, task="word-problem:level=3")
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
        parts = lt_sft(density=density, random=random, **{**STEPS, **training}).stages[: 1 if dense else 2]
        parts[-1].weights = Skill(models, task.spec(), last, parts[-1].weights)
        for stage in parts:
            stage.task, stage.name, stage.start = task, f"{stage.name} {number}: {task.spec()}", "base"
        stages += parts
    return Recipe(stages)


class Skill(Around):
    """Sets aside what its stage ends with; the last one's end is the start plus all changes.

    Args:
        models: shared by the stages of a run, and saved in its checkpoints.
        skill: the name of what the stage ends with.
        last: whether the sum is due.
        inside: what moves; by default everything.
    """

    def __init__(self, models: Snapshots, skill: str, last: bool, inside: Weights | None = None) -> None:
        super().__init__(inside)
        self.held, self.skill, self.last = models.held, skill, last

    def before_rewind(self, policy: Policy, base: Mapping[str, Tensor]) -> None:
        super().before_rewind(policy, base)
        self.held.setdefault(START, dict(base))

    def at_stage_end(self, policy: Policy) -> None:
        super().at_stage_end(policy)
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
