"""sort: the selection, and verdicts on lists."""

from __future__ import annotations

import re

import pytest
from task_tools import answered

from whet.tasks.sort import Sort


def test_sort_pinned() -> None:
    problem = Sort().build((False, (12, 3, 40, 7)), 2)
    assert problem.prompt == "Sort ascending: 12 3 40 7."
    assert problem.rationale == (
        "smallest of 12 3 40 7 is 3\nsmallest of 12 40 7 is 7\nsmallest of 12 40 is 12\nlast is 40"
    )
    assert problem.answer == "3 7 12 40"
    assert Sort().build((True, (12, 3, 40, 7)), 2).answer == "40 12 7 3"


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_sort_is_sorted(level: int) -> None:
    problems = Sort(level).problems("train", 300)
    assert {"ascending" in p.prompt for p in problems} == {True, False}
    for p in problems:
        numbers = [int(n) for n in re.findall("[0-9]+", p.prompt)]
        assert len(set(numbers)) == len(numbers)
        assert p.answer == " ".join(map(str, sorted(numbers, reverse="descending" in p.prompt)))


def test_sort_verdicts() -> None:
    task = Sort()
    problem = task.build((False, (12, 3, 40, 7)), 2)
    for text in ("3, 7, 12, 40", "3,7,12,40", " 3  7\t12\n40 ", "3\u00a07\u00a012\u00a040", "\uff13 7 12 40"):
        assert task.verify(problem, answered(text)).value == 1.0, text
    for text, share in (("3 12 7 40", 0.5), ("3 7 12", 0.75), ("3 7 12 40 41", 0.8), ("40 12 7 3", 0.0)):
        verdict = task.verify(problem, answered(text))
        assert (verdict.value, verdict.status, verdict.parts["positions"]) == (0.0, "wrong", share)
    assert task.verify(problem, answered("371240")).value == 0.0
    assert task.verify(problem, answered("3 7 12 forty")).status == "unparseable"
