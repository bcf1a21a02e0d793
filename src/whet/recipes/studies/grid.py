"""Grids: every combination of some settings on every task, and the effect of one setting over the tasks.

A grid is run by the machinery of studies: what changes a model is an arm, what changes a question is a task (its spec may
put examples before it, see `tasks.shots`), named in the study's `others`. So a grid resumes, shares its start and is
committed as any study is; here is only its plan and its arithmetic, which are pure functions.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from whet.errors import WhetError
from whet.evaluation.scores import ON, START, Scores


@dataclass(frozen=True)
class Point:
    """One evaluation of a grid: where on the axes, which task, which of the repeats."""

    cell: tuple[str, ...]
    task: str
    repeat: int


def points(axes: Mapping[str, Sequence[str]], tasks: Sequence[str], repeats: int = 1) -> list[Point]:
    """Every evaluation: the product of the axes, on every task, so many times."""
    for name, values in axes.items():
        if not values or len(set(values)) < len(values):
            raise WhetError(
                f"grid: axis '{name}' needs one or more different values, not {', '.join(values) or 'none'}"
            )
    cells = itertools.product(*axes.values())
    return [Point(cell, task, r) for cell in cells for task in tasks for r in range(repeats)]


PROMPTS = ("zeroshot", "fewshot", "fewshot-e")


def prompted(task: str, prompt: str, n: int = 2, draw: int = 0) -> str:
    """The spec of a task under a prompt: alone, behind `n` answered examples, or behind the same ones explained."""
    if prompt not in PROMPTS:
        raise WhetError(f"grid: a prompt is one of {', '.join(PROMPTS)}, not '{prompt}'")
    return task if prompt == "zeroshot" else f"shots:n={n}:explain={int(prompt == 'fewshot-e')}:draw={draw}|{task}"


def specs(tasks: Sequence[str], n: int = 2, repeats: int = 1) -> list[str]:
    """The task specs of all prompts; a prompt without examples has no draws to repeat."""
    found = [prompted(t, p, n, r) for t in tasks for p in PROMPTS for r in range(repeats if p != "zeroshot" else 1)]
    return list(dict.fromkeys(found))


def accuracy(scores: Scores, arm: str, task: str, prompt: str, n: int = 2, repeats: int = 1) -> float:
    """An arm's mean accuracy on a task under a prompt, over seeds and repeats."""
    found: list[float] = []
    for r in range(repeats if prompt != "zeroshot" else 1):
        metric = ON + prompted(task, prompt, n, r)
        found += [scores.interval(metric, START).value] if arm == START else scores.values(metric, arm)
    return sum(found) / len(found)


def by_tag(scores: Mapping[str, float], tags: Mapping[str, Iterable[str]]) -> dict[str, float]:
    """The mean score of each tag (a skill, say) over the tasks that carry it; a task counts once for each of its tags."""
    found: dict[str, list[float]] = {}
    for task, score in scores.items():
        for tag in dict.fromkeys(tags[task]):
            found.setdefault(tag, []).append(score)
    return {tag: sum(own) / len(own) for tag, own in found.items()}


@dataclass(frozen=True)
class Effect:
    """A mean difference over tasks with its 95 % interval; `tasks` is how many there were."""

    value: float
    low: float
    high: float
    tasks: int

    def __str__(self) -> str:
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}] over {self.tasks} tasks"


def effect(a: Mapping[str, float], b: Mapping[str, float], resamples: int = 4000, seed: int = 0) -> Effect:
    """mean(a - b) over the tasks that both were measured on, by a paired bootstrap over the tasks.

    The tasks are few and not a random sample of all tasks: the interval is about these families of tasks.
    """
    shared = [task for task in a if task in b]
    if not shared:
        raise WhetError("grid: the two cells share no task")
    differences = np.array([a[task] - b[task] for task in shared])
    drawn = np.random.default_rng(seed).integers(len(shared), size=(resamples, len(shared)))
    low, high = np.quantile(differences[drawn].mean(1), (0.025, 0.975))
    return Effect(float(differences.mean()), float(low), float(high), len(shared))
