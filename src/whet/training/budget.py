"""Budgets: how much a run may spend, and how far it has come.

Under a budget a recipe's own steps are proportions, not counts: a stage of 100 of the recipe's 200 steps ends when half
of the budget is spent, and a schedule's position is the spent share of its stage. So a cosine ends at its end, a warm-up
of 5 of 150 steps takes a thirtieth of the budget, and a recipe whose step is cheap takes more of them.

A run stops at the first step boundary at which its budget is spent: it overshoots by less than one step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from whet.errors import WhetError, unknown
from whet.models.meter import Meter

MEASURES: dict[str, Callable[[Meter], float]] = {
    "flops": lambda m: m.flops,
    # every token that the model worked on: sampled, scored without a gradient, learnt (prompts are in none of them)
    "tokens": lambda m: m.sampled_tokens + m.scored_tokens + m.learnt_tokens,
    # an idle batch counts, or a run without anything left to learn would never end
    "steps": lambda m: m.optimizer_steps + m.idle_steps,
    # the one measure that a machine's speed changes: such a run is not the same run twice
    "minutes": lambda m: m.seconds / 60.0,
}


@dataclass(frozen=True)
class Budget:
    """So much of one measure of the meter.

    Attributes:
        kind: `flops`, `tokens` (sampled + scored + learnt), `steps` (of the optimizer) or `minutes` (of training).
        amount: how much of it.
    """

    kind: str
    amount: float

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read `flops:2e13`, `tokens:1e6`, `steps:100` or `minutes:5`."""
        kind, colon, number = text.partition(":")
        if kind not in MEASURES:
            raise unknown("budget", kind, MEASURES)
        try:
            amount = float(number) if colon else float("nan")
        except ValueError:
            amount = float("nan")
        if not 0 < amount < float("inf"):
            raise WhetError(f"budget '{text}': say a positive number, as in {kind}:100")
        return cls(kind, amount)

    def __str__(self) -> str:
        return f"{self.kind}:{self.amount:g}"

    def spent(self, meter: Meter) -> float:
        """How much of the measure a run has spent."""
        return float(MEASURES[self.kind](meter))

    def share(self, meter: Meter) -> float:
        """The spent share; 1 or more when the run must stop."""
        return self.spent(meter) / self.amount


class Place(Protocol):
    """Where a run is: its stage, its step within it and in all, and the spent share when the stage's steps began."""

    stage: int
    step: int
    total: int
    began: float


class Pace:
    """How far a run has come, by its stages' own steps or by the spent share of a budget.

    Args:
        steps: the steps of each stage; under a budget, their proportions.
        budget: None lets every stage take its own steps.
    """

    def __init__(self, steps: Sequence[int], budget: Budget | None = None) -> None:
        self.steps = list(steps)
        self.budget = budget
        self.ends = [sum(self.steps[: i + 1]) / sum(self.steps) for i in range(len(self.steps))]

    def share(self, place: Place, meter: Meter) -> float:
        """Of the whole run, from 0; at least 1 when it is over."""
        return self.budget.share(meter) if self.budget else place.total / sum(self.steps)

    def enter(self, place: Place, meter: Meter, name: str) -> None:
        """Note where the steps of a stage begin. What was spent before its first step must have left some."""
        place.began = self.share(place, meter)
        if self.budget and place.began >= self.ends[place.stage]:
            raise WhetError(
                f"stage '{name}' has nothing left to learn with: {place.began:.0%} of the budget {self.budget} is spent "
                f"before its first step and it ends at {self.ends[place.stage]:.0%}; give a larger budget, or prepare less"
            )

    def over(self, place: Place, meter: Meter) -> bool:
        """Whether the current stage is."""
        if self.budget is None:
            return place.step >= self.steps[place.stage]
        return self.share(place, meter) >= self.ends[place.stage]

    def within(self, place: Place, meter: Meter) -> float | None:
        """The share of the current stage that is done, for its schedules; None where steps are counted."""
        if self.budget is None:
            return None
        return (self.share(place, meter) - place.began) / (self.ends[place.stage] - place.began)
