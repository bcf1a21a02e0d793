"""Lengths within a group, and where the box stands."""

from __future__ import annotations

import math

import pytest

from whet.errors import WhetError
from whet.rewards import Attempt, boxed_in_thought, relative_length
from whet.rewards.reward import NAN
from whet.tasks import Problem, Response, Verdict


def attempt(length: int, value: float, text: str = "") -> Attempt:
    status = "error" if math.isnan(value) else "ok" if value == 1.0 else "wrong"
    return Attempt(Problem("p", "?", "1"), Response(text, "1"), Verdict(value, status), length, False)  # type: ignore[arg-type]


def found(*group: Attempt, unit: str = "token") -> list[float]:
    return [parts["relative_length"] for parts in relative_length(unit)(group)]


@pytest.mark.parametrize(
    ("right", "expected"), [((1, 1, 0), (0.5, 0.0, -0.5)), ((0, 1, 1), (0.0, 0.0, -0.5)), ((0, 0, 0), (0.0, 0.0, -0.5))]
)
def test_within_the_group(right: tuple[int, ...], expected: tuple[float, ...]) -> None:
    group = [attempt(n, float(r)) for n, r in zip((100, 200, 300), right, strict=True)]
    assert found(*group) == pytest.approx(expected)


def test_alike_or_alone_is_nothing() -> None:
    assert found(attempt(100, 1.0), attempt(100, 0.0), attempt(100, 1.0)) == [0.0, 0.0, 0.0]
    assert found(attempt(100, 1.0)) == [0.0]


def test_what_could_not_be_judged_has_no_part() -> None:
    values = found(attempt(100, 1.0), attempt(900, NAN), attempt(200, 1.0))
    assert values[0] == 0.5 and math.isnan(values[1]) and values[2] == -0.5
    assert all(math.isnan(v) for v in found(attempt(1, NAN), attempt(2, NAN)))


def test_units() -> None:
    short, long = attempt(300, 1.0, "a"), attempt(100, 1.0, "a" * 9)
    assert found(short, long) == [-0.5, 0.5] and found(short, long, unit="char") == [0.5, -0.5]
    with pytest.raises(WhetError, match="did you mean 'token'"):
        relative_length("tokens")


@pytest.mark.parametrize(
    ("text", "worth"),
    [
        ("<think>so \\boxed{12}</think>", 1.0), ("<think>so \\boxed{12}</think> \\boxed{12}", 1.0),
        ("<think>so 12</think> \\boxed{12}", 0.0), ("<think>so \\boxed{12}", 0.0), ("\\boxed{12}", 0.0),
        ("<think>\\boxed{}</think>", 0.0), ("<think>so \\boxed{\\frac{1}{2}}\nindeed</think>", 1.0), ("", 0.0),
        ("<think>so 12</think> \\boxed{12}</think>", 0.0),
    ],
)  # fmt: skip
def test_the_box_must_stand_before_the_thought_ends(text: str, worth: float) -> None:
    assert boxed_in_thought()([attempt(3, 1.0, text)]) == [{"format": worth}]
