"""The forgetting suite: what a model could do before, and how much of it a method has cost, measured alike everywhere.

A suite is fixed under a name with a number: other tasks, how many problems of each, and their seed. A change of any of them
is a suite of a new number, so that two results with the same name can be compared. The start is measured on it, every end,
and a small part of it at every look that training takes at validation; so that arms can be compared where they have taken
equally many steps, and where they are equally accurate: a method that has learnt little has had little occasion to forget.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from whet.errors import unknown
from whet.evaluation.scores import Scores, interval_dict
from whet.evaluation.statistics import over_seeds
from whet.tasks import Task, get_task

PREFIX = "forgetting/"
LEAST_RISE = 0.05  # of validation accuracy: less is the noise of looks at some hundred problems


@dataclass(frozen=True)
class Suite:
    """A fixed set of other-task evaluations.

    Attributes:
        tasks: their specs; those of the run's own family are left out of its evaluation.
        n: test problems of each, before and after.
        look_n: test problems of each at a look during training.
        seed: which problems, and which sampled answers.
    """

    name: str
    tasks: tuple[str, ...]
    n: int
    look_n: int
    seed: int


SUITES = {
    s.name: s
    for s in (
        # what the shipped bases have mastered, in short answers: arithmetic, stories, sorting, skills on lists
        Suite("forgetting/1", ("chain-sum:level=1", "word-problem:level=1", "sort:level=1", "lists:level=1"), 256, 64, 0),
    )
}  # fmt: skip
CURRENT = SUITES["forgetting/1"]


def tasks_of(asked: Sequence[str] | None, task: Task) -> tuple[str, ...]:
    """The other tasks of a run on `task`.

    Args:
        asked: specs, and names of suites that stand for their tasks of another family; None is the current suite. Who
            names a task may ask for another form of the run's own.
    """
    found: list[str] = []
    for name in [CURRENT.name] if asked is None else asked:
        if name.startswith(PREFIX):
            if name not in SUITES:
                raise unknown("forgetting suite", name, SUITES)
            found += [spec for spec in SUITES[name].tasks if spec.partition(":")[0] != task.name]
        elif get_task(name).spec() != task.spec():
            found.append(name)
    return tuple(dict.fromkeys(found))


def suite_of(asked: Sequence[str] | None, n: int, look_n: int | None = None) -> str | None:
    """The name of the suite that was measured; None where the tasks or the number of problems were others."""
    name = CURRENT.name if asked is None else asked[0] if len(asked) == 1 else ""
    suite = SUITES.get(name)
    return name if suite and suite.n == n and look_n in (None, suite.look_n) else None


# -- where arms are compared -------------------------------------------------------------------------------------------
def forgetting(scores: Scores) -> dict[str, Any]:
    """Forgetting of every arm at equal steps and at equal validation accuracy, by its looks during training.

    At equal accuracy: at the highest one that every seed of every arm comes to, where each first comes to it, linearly
    between two looks. An arm of which a seed never rises `LEAST_RISE` above the start sets no target and has no number.

    Returns:
        suite, tasks, n, look_n; `at_steps`: {steps, arms}; `at_accuracy`: {accuracy, arms, missed: {arm: why}}. An arm has
        an interval over its seeds, `by_seed`, and at equal accuracy the `steps` and `flops` that it took. Accuracy lost,
        so lower is better. `why` says what is missing where nothing could be compared.
    """
    first = next(iter(scores.cells.values()))[0]
    asked, n, look_n = (first.config.get(k) for k in ("others", "others_n", "others_look_n"))
    found: dict[str, Any] = {
        "suite": suite_of(asked, n, look_n) if asked and n is not None else None, "tasks": list(first.others),
        "n": n, "look_n": look_n, "at_steps": None, "at_accuracy": None, "why": "",
    }  # fmt: skip
    curves = {arm: [[p for p in c.curve if "others" in p] for c in cells] for arm, cells in scores.cells.items()}
    if any(len(curve) < 2 for own in curves.values() for curve in own):
        return {**found, "why": "other tasks were not looked at during training"}
    return {**found, "at_steps": _at_steps(curves), **_at_accuracy(curves)}


Curve = Sequence[Mapping[str, float]]


def _at_steps(curves: Mapping[str, Sequence[Curve]]) -> dict[str, Any]:
    steps = min(curve[-1]["step"] for own in curves.values() for curve in own)
    arms = {arm: _lost([(curve, _crossing(curve, "step", steps)) for curve in own]) for arm, own in curves.items()}
    return {"steps": steps, "arms": arms}


def _at_accuracy(curves: Mapping[str, Sequence[Curve]]) -> dict[str, Any]:
    best = {arm: [max(p["accuracy"] for p in curve) for curve in own] for arm, own in curves.items()}
    rise = {
        arm: [b - curve[0]["accuracy"] for b, curve in zip(best[arm], own, strict=True)] for arm, own in curves.items()
    }
    missed = {}
    for arm, own in rise.items():
        if low := sum(r < LEAST_RISE for r in own):
            missed[arm] = f"{low} of {len(own)} seeds never come {100 * LEAST_RISE:g} points above the start"
    if len(missed) == len(curves):
        return {"why": "no arm rises above the start with every seed: there is no accuracy to compare at"}
    target = min(b for arm, own in best.items() if arm not in missed for b in own)
    arms = {}
    for arm, own in curves.items():
        if arm not in missed:
            places = [(curve, _crossing(curve, "accuracy", target)) for curve in own]
            arms[arm] = _lost(places) | {
                name: sum(_value(curve, name, place) for curve, place in places) / len(own)
                for name in ("step", "flops")
            }
    return {"at_accuracy": {"accuracy": target, "arms": arms, "missed": missed}}


def _lost(places: Sequence[tuple[Curve, float]]) -> dict[str, Any]:
    lost = [curve[0]["others"] - _value(curve, "others", place) for curve, place in places]
    return {**interval_dict(over_seeds(lost)), "by_seed": lost}


def _crossing(curve: Curve, name: str, target: float) -> float:
    """Where along a curve, in looks and parts of them, a value first comes to a target that it does come to."""
    for i, point in enumerate(curve):
        if point[name] >= target:
            before = curve[i - 1][name] if i else 0.0
            return i - 1 + (target - before) / (point[name] - before) if i else 0.0
    raise ValueError(f"{name} never comes to {target}")


def _value(curve: Curve, name: str, place: float) -> float:
    """A value at a place along a curve, linear between two looks."""
    i = min(int(place), len(curve) - 2)
    part = place - i
    return (1.0 - part) * curve[i][name] + part * curve[i + 1][name]
