"""Invertible transforms of generated problems: a field of `data` moves to its next option and the text is made anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from whet.tasks.problem import Problem

Transform = Callable[[Problem], Problem]


def cycle(
    word: Callable[[Mapping[str, Any], int], Problem], field: str, options: Sequence[Any]
) -> tuple[Transform, Transform]:
    """(forward, inverse) that step `data[field]` through `options`, round and round, so each undoes the other exactly.

    `word(data, level)` makes the whole problem from its data. The id stays: it is the same problem in another dress.
    """

    def moved(problem: Problem, by: int) -> Problem:
        option = options[(options.index(problem.data[field]) + by) % len(options)]
        return replace(word({**problem.data, field: option}, problem.level), id=problem.id, task=problem.task)

    return (lambda problem: moved(problem, 1)), (lambda problem: moved(problem, -1))
