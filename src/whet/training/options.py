"""What the loop is told, what it knows of where it is, and who may watch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from whet.models.policy import Policy
from whet.training.budget import Budget
from whet.training.stage import Stage

# (policy) -> its numbers on validation of the run's task; (policy, task) -> of a stage's own
Evaluation = Callable[..., dict[str, float]]
Measurement = Callable[[Policy], dict[str, float]]


class Observer(Protocol):
    """Who watches: the command's progress display, or nobody."""

    def stage(self, index: int, stage: Stage, lines: Sequence[str]) -> None: ...
    def step(self, row: Mapping[str, Any]) -> None: ...
    def evaluated(self, row: Mapping[str, Any]) -> None: ...


@dataclass
class Options:
    """How the loop runs, apart from what it learns.

    Attributes:
        seed: root of the seed tree.
        token_budget: tokens run at once in a micro-batch, those that pad too; 0 is what the device works well with.
        eval_every: steps between evaluations on validation; 0 is never.
        evaluations: that many at equal shares of the run instead, so that arms of equal budget are looked at equally often.
        patience: evaluations without a new best before stopping; 0 is never.
        save_every: steps between checkpoints; 0 saves only at the end, or when told to stop.
        keep: which weights the run ends with: the `best` on validation or the `last`.
        milestones: keep the weights at steps 1, 2, 4, 8 ... in `milestones/`, for studies of what is learnt when.
        on_nonfinite: `stop`, or `skip` a batch whose loss or gradient is nan or infinite, a few times at most.
        shard: cut parameters, gradients and moments among the ranks, where there are several.
        eight_bit: moments of 8 bits, by bitsandbytes.
        budget: ends the run instead of its stages' steps, which are then proportions.
        stop: asked after each step; True saves and ends the run early (a signal).
    """

    seed: int = 0
    token_budget: int = 0
    eval_every: int = 0
    evaluations: int = 0
    patience: int = 0
    save_every: int = 0
    keep: str = "best"
    milestones: bool = False
    on_nonfinite: str = "stop"
    shard: bool = False
    eight_bit: bool = False
    budget: Budget | None = None
    stop: Callable[[], bool] | None = None


@dataclass
class Progress:
    """Where the run is. It is saved with every checkpoint."""

    stage: int = 0
    step: int = 0  # within the stage
    total: int = 0  # over all stages
    began: float = 0.0  # share of the run that was done when the stage's steps began
    looks: int = 0  # evaluations at equal shares so far
    best: float = float("-inf")
    best_step: int = -1
    stale: int = 0  # evaluations since the best one
    reached: bool = False  # the accuracy at which the current stage ends
    measured: list[dict[str, float]] = field(default_factory=list)  # at the start and after each stage
    finished: bool = False
    stopped_early: bool = False

    @property
    def over(self) -> bool:
        return self.finished or self.stopped_early
