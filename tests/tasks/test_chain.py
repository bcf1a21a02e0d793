"""Chains of arithmetic: the labels of corruptions mean what they say."""

from __future__ import annotations

import random

import pytest

from whet.tasks import get_task


@pytest.mark.parametrize("name", ["chain-sum:level=4", "word-problem:level=4"])
def test_labels_say_what_is_wrong(name: str) -> None:
    task = get_task(name)
    for i, problem in enumerate(task.problems("train", 300)):
        wrong = task.corrupt(problem, random.Random(i))
        slips = []  # how far each step's result is off by its own arithmetic
        for step in wrong.steps:
            left, result = step.text.split("=")
            slips.append(int(result) - eval(left))
        slip = slips[wrong.step]
        assert not any(slips[: wrong.step] + slips[wrong.step + 1 :])
        if wrong.label == "arithmetic":
            assert 1 <= abs(slip) <= 9
        elif wrong.label == "carry":
            assert slip == (-10 if problem.steps[wrong.step].skill == "carry" else 10)
        else:
            assert slip == 0
        assert len(wrong.steps) == len(problem.steps) - (wrong.label == "skip")
