"""Guards of reinforcement: what has spoilt many runs, told once each, in one line, while there is still something to save.

A guard is a pure function of what the steps report anyway (`training/metrics.py`); it looks at windows of steps, since single
steps are noisy, and gives the line or "". What was told stands in the step's line of metrics.jsonl, under `warnings`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import Any

from whet.models.policy import Policy
from whet.training.optimizer import SMALL_MODEL
from whet.training.stage import Stage

WINDOW = 10  # steps that are looked at together
SURE = 3.0  # standard errors by which the reward must have risen
SEEN = ("reward", "accuracy", "entropy", "dead_groups", "ended", "unparseable", "mismatch")
LORA = 10.0  # adapters take a rate so many times higher

Window = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class Past:
    """Windows of a stage: its `first`, that of the highest accuracy so far (`best`), and the last one, `now`."""

    first: Window
    best: Window
    now: Window


@dataclass(frozen=True)
class Survived:
    """Rates from `low` to `high` with which models below `size` parameters have come through reinforcement, and how that
    is known."""

    size: float
    low: float
    high: float
    source: str


# of full weights; Whet's own runs of the shipped bases, and rates that papers report
RATES = (
    Survived(SMALL_MODEL, 1e-5, 3e-4, "with Whet's bases"),
    Survived(2e9, 1e-7, 2e-5, "in published runs"),
    Survived(math.inf, 1e-8, 5e-6, "in published runs"),
)


def values(window: Window, name: str) -> list[float]:
    """Of the steps that have it."""
    return [row[name] for row in window if not math.isnan(row.get(name, math.nan))]


def mean(window: Window, name: str) -> float:
    """NaN where no step has it."""
    found = values(window, name)
    return fmean(found) if found else math.nan


def rise(then: Window, now: Window, name: str) -> tuple[float, float]:
    """By how much the mean rose, and the standard error of that over steps; NaN where a window has fewer than two."""
    old, new = values(then, name), values(now, name)
    if min(len(old), len(new)) < 2:
        return math.nan, math.nan
    return fmean(new) - fmean(old), math.sqrt(variance(old) / len(old) + variance(new) / len(new))


# -- guards: a line, or "" ---------------------------------------------------------------------------------------------
def dead_groups(past: Past) -> str:
    return said(mean(past.now, "dead_groups") > 0.8,
                "more than 80 % of the groups are all right or all wrong and teach nothing: use an easier or harder level, a "
                "larger group, or dynamic=true")  # fmt: skip


def truncated(past: Past) -> str:
    return said(mean(past.now, "ended") < 0.5,
                "more than half of the answers are cut off at the budget: raise max_new_tokens")  # fmt: skip


def unparseable(past: Past) -> str:
    return said(mean(past.now, "unparseable") > 0.5,
                "no answer can be read from more than half of the responses: look at some (whet inspect), and warm up by sft or "
                "reward the format")  # fmt: skip


def mismatch(past: Past) -> str:
    return said(mean(past.now, "mismatch") > 0.05,
                "sampler and trainer give the same tokens log-probs that differ by more than 0.05: sample in the trainer's "
                "precision, or correct for it (correction of policy_gradient)")  # fmt: skip


def entropy(past: Past) -> str:
    now = mean(past.now, "entropy")
    return said(now < 0.02 or now < 0.1 * mean(past.first, "entropy"),
                "the entropy has collapsed, below 0.02 or a tenth of the stage's start, so that answers hardly vary any more: "
                "lower lr, or add a kl")  # fmt: skip


def reward_alone(past: Past) -> str:
    """The reward has risen since the steps of the highest accuracy, and the accuracy has not."""
    reward, error = rise(past.best, past.now, "reward")
    accuracy, _ = rise(past.best, past.now, "accuracy")
    return said(reward > SURE * error + 1e-6 and accuracy <= 0,
                "the reward rises and the accuracy does not: what pays is not what is wanted; look at the parts of the reward "
                "and at some answers")  # fmt: skip


def rate(lr: float, size: int, adapters: bool = False) -> str:
    """A peak rate against those that models of this size have survived."""
    known = next(r for r in RATES if size < r.size)
    factor = LORA if adapters else 1.0
    low, high = known.low, factor * known.high
    if low <= lr <= high:
        return ""
    end, advice = ("above", "it may collapse") if lr > high else ("below", "it may not move")
    what = "adapters on a model" if adapters else "a model"
    return (f"lr {lr:.2g} is {end} what {what} of {size / 1e6:.3g} M parameters has survived {known.source} ({low:.2g} to "
            f"{high:.2g}): {advice}")  # fmt: skip


def said(bad: bool, text: str) -> str:
    return text if bad else ""


GUARDS: Mapping[str, Callable[[Past], str]] = {
    "dead_groups": dead_groups, "truncated": truncated, "unparseable": unparseable, "mismatch": mismatch, "entropy": entropy,
}  # fmt: skip


class Guards:
    """Watches the steps of a run and tells each thing once. A resumed run knows what it told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.first: list[dict[str, float]] = []
        self.best: list[dict[str, float]] = []
        self.now: list[dict[str, float]] = []
        self.steps = 0
        self.at_once = ""

    def enter(self, stage: Stage, policy: Policy) -> None:
        """A stage begins: the windows begin anew, and a rate that is known to be wrong is told with its first step."""
        self.first, self.best, self.now, self.steps, self.at_once = [], [], [], 0, ""
        if stage.reward is not None and stage.updates:
            size = policy.size()
            self.at_once = rate(stage.updates[0].optimizer.rate(size), size, policy.peft is not None)

    def see(self, row: Mapping[str, Any]) -> list[str]:
        """What is to be told after a step, of which `row` is the report."""
        if "reward" not in row:
            return []
        found = {"rate": self.at_once}
        self.now = [*self.now, {k: float(row.get(k, math.nan)) for k in SEEN}][-WINDOW:]
        self.steps += 1
        if len(self.now) == WINDOW:
            self.first, self.best = self.first or self.now, self.best or self.now
            past = Past(self.first, self.best, self.now)
            found |= {name: guard(past) for name, guard in GUARDS.items()}
            if self.steps % WINDOW == 0:  # windows that share no step
                found["reward_alone"] = reward_alone(past)
                if mean(self.now, "accuracy") > mean(self.best, "accuracy"):
                    self.best = self.now
        new = {name: text for name, text in found.items() if text and name not in self.told}
        self.told += new
        return list(new.values())

    def state_dict(self) -> dict[str, Any]:
        return {k: getattr(self, k) for k in ("told", "first", "best", "now", "steps")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, list(value) if isinstance(value, list) else value)
