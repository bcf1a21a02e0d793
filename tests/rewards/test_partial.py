"""Credit for answers that were read."""

from __future__ import annotations

import math

import pytest

from whet.errors import WhetError
from whet.rewards import Attempt, partial_credit, total
from whet.rewards.reward import NAN
from whet.tasks import Problem, Response, Verdict
from whet.tasks.verify import choice, number

PROBLEM = Problem("p", "?", "red", choices=("red", "blue"))


def attempt(value: float, status: str, label: str | None = None, answer: str | None = "12") -> Attempt:
    return Attempt(PROBLEM, Response("…", answer), Verdict(value, status, label=label), 3, False)  # type: ignore[arg-type]


GROUP = [attempt(1.0, "ok"), attempt(0.0, "wrong"), attempt(0.0, "unparseable", answer=None), attempt(NAN, "error")]


def test_right_read_and_neither() -> None:
    found = [total(parts) for parts in partial_credit()(GROUP)]
    assert found[:3] == pytest.approx([1.0, 0.1, 0.0]) and math.isnan(found[3])
    assert [set(parts) for parts in partial_credit()(GROUP)] == [{"accuracy", "partial"}] * 4
    assert [total(parts) for parts in partial_credit(0.0)(GROUP)][:3] == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(("value", "worth"), [(0.0, 0.1), (0.04, 0.1), (0.1, 0.1), (0.6, 0.6)])
def test_a_graded_answer_has_at_least_the_credit(value: float, worth: float) -> None:
    """What it has of its own is not added to: two thirds of a grid must not be worth more than a whole one."""
    assert total(partial_credit()([attempt(value, "wrong")])[0]) == pytest.approx(worth)


def test_numbers_only() -> None:
    only = partial_credit(numeric_only=True)
    assert total(only([attempt(0.0, "wrong", "13")])[0]) == 0.1
    assert total(only([attempt(0.0, "wrong", "blue", "blue")])[0]) == 0.0
    assert total(only([attempt(0.0, "wrong", None, "12")])[0]) == 0.1, "without a label the answer itself"
    real = number(Problem("p", "?", "7"), Response("1/2", "1/2"))
    assert total(only([Attempt(PROBLEM, Response("1/2", "1/2"), real, 3, False)])[0]) == 0.1
    letter = choice(PROBLEM, Response("B", "B"))
    assert letter.status == "wrong"
    assert total(only([Attempt(PROBLEM, Response("B", "B"), letter, 3, False)])[0]) == 0.0
    assert total(partial_credit()([Attempt(PROBLEM, Response("B", "B"), letter, 3, False)])[0]) == 0.1


@pytest.mark.parametrize("credit", [-0.1, 1.0, 2.0])
def test_a_credit_that_a_right_answer_would_not_beat_is_refused(credit: float) -> None:
    with pytest.raises(WhetError, match="partial credit is from 0 to below 1"):
        partial_credit(credit)
