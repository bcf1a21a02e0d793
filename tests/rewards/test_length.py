"""The length curve: the numbers of long-cot, phi-4-reasoning and two-stage, and what it refuses."""

from __future__ import annotations

import math

import pytest

from whet.errors import WhetError
from whet.recipes.reinforced.long_cot import CURVES
from whet.recipes.reinforced.phi4_reasoning import CURVE as PHI
from whet.rewards import Attempt, total
from whet.rewards.length import Bend, LengthCurve, length
from whet.tasks import Problem, Response, Verdict

LONG = CURVES["cosine"]
M = 31_744


def attempt(
    value: float = 1.0, tokens: int = 5, budget: int = 100, truncated: bool = False, text: str = "12"
) -> Attempt:
    verdict = Verdict(value, "error" if math.isnan(value) else "ok" if value == 1.0 else "wrong")
    return Attempt(Problem("p", "5+7?", "12"), Response(text, text), verdict, tokens, truncated, budget)


# -- long-cot, card test 1 -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("right", "values"), [(True, [2, 1.85355, 1.5, 1.14645]), (False, [-10, -8.53553, -5, -1.46447])]
)
def test_long_cot_1_the_cosine(right: bool, values: list[float]) -> None:
    assert [LONG(right, n, 100) for n in (0, 25, 50, 75)] == pytest.approx(values, abs=1e-5)


def test_long_cot_1_answers_near_the_end_exceed_right_or_wrong() -> None:
    assert LONG(True, 83, 100) == pytest.approx(1.06963, abs=1e-5)
    assert LONG(True, 84, 100) == LONG(False, 84, 100) == LONG(True, 100, 100, ended=False) == -10


def test_long_cot_5_monotone_and_right_above_wrong() -> None:
    lengths = range(84)
    right, wrong = ([LONG(r, n, 100) for n in lengths] for r in (True, False))
    assert right == sorted(right, reverse=True) and wrong == sorted(wrong)
    assert min(right) > max(wrong)
    longer = [CURVES["A"](True, n, 100) for n in lengths]
    assert longer == sorted(longer) and longer[0] == 0 and CURVES["A"](False, 40, 100) == 0


def test_long_cot_6_flat_bends_are_classic() -> None:
    flat = LengthCurve(Bend(1, 1), Bend(0, 0), exceeded=0, margin=16)
    assert flat == CURVES["classic"]
    for value, tokens, truncated, paid in ((1.0, 3, False, 1), (1.0, 60, False, 1), (0.0, 60, False, 0), (1.0, 84, False, 0),
                                           (0.0, 100, True, 0)):  # fmt: skip
        assert flat.of(attempt(value, tokens, truncated=truncated)) == paid


@pytest.mark.parametrize(("curve", "right"), [("B", (6, 5)), ("C", (10, 9))])
def test_long_cot_ablations(curve: str, right: tuple[float, float]) -> None:
    found = CURVES[curve].right
    assert (found(0), found(1)) == right and CURVES[curve].wrong == LONG.wrong


# -- phi-4-reasoning, card tests 1 and 3 -----------------------------------------------------------------------------------
def test_phi4_1_right_and_wrong() -> None:
    assert [PHI(True, n, M) for n in (0, 25_600, 28_672, M)] == pytest.approx([1, 1, 0.75, 0.5])
    assert [PHI(False, n, M) for n in (0, 1851, 3702, 20_000, M)] == pytest.approx([-1, -0.75, -0.5, -0.5, -0.5])


def test_phi4_3_continuous_and_right_above_wrong() -> None:
    for right, at in ((True, 25_600), (False, 3_702)):
        assert abs(PHI(right, at - 1, M) - PHI(right, at + 1, M)) < 1e-6
    lengths = range(0, M + 1, 128)
    assert min(PHI(True, n, M) for n in lengths) >= 0.5 > -0.5 >= max(PHI(False, n, M) for n in lengths)


def test_phi4_scales_with_the_budget() -> None:
    assert PHI(True, 96 * 28_672 / M, 96) == pytest.approx(0.75)
    assert PHI(True, 96, 96) == pytest.approx(0.5), "an answer that ends with the budget is whole"
    assert PHI(True, 96, 96, ended=False) == -0.5


# -- two-stage -------------------------------------------------------------------------------------------------------------
def test_two_stage_is_a_setting() -> None:
    curve = LengthCurve(Bend(1, 0.1), Bend(-1, -0.1))
    assert [curve(True, n, 100) for n in (0, 50, 100, 500)] == pytest.approx([1, 0.55, 0.1, 0.1])
    assert [curve(False, n, 100, ended=False) for n in (0, 50, 100, 500)] == pytest.approx([-1, -0.55, -0.1, -0.1])


# -- as a reward -------------------------------------------------------------------------------------------------------------
def test_a_reward_reads_verdict_tokens_and_budget() -> None:
    group = [attempt(1.0, 50), attempt(0.5, 50), attempt(math.nan, 50), attempt(1.0, 100, truncated=True)]
    found = length(LONG)(group)
    assert [set(parts) for parts in found] == [{"length"}] * 4
    assert total(found[0]) == pytest.approx(1.5) and total(found[1]) == pytest.approx(-5)
    assert math.isnan(total(found[2])) and total(found[3]) == -10
    (wider,) = length(LONG, budget=200)([attempt(1.0, 100, budget=100)])
    assert total(wider) == pytest.approx(1.5)


def test_characters() -> None:
    curve = LengthCurve(Bend(1, 0.1), Bend(-1, -0.1))
    (found,) = length(curve, budget=8, unit="char")([attempt(1.0, 99, text="four")])
    assert total(found) == pytest.approx(0.55)


def test_what_it_refuses() -> None:
    with pytest.raises(WhetError, match="begin < finish"):
        Bend(1, 0, begin=0.5, finish=0.5)
    with pytest.raises(WhetError, match="no generation budget"):
        length(LONG)([attempt(budget=0)])
    with pytest.raises(WhetError, match="margin of 16 leaves nothing of a budget of 16"):
        length(LONG)([attempt(budget=16)])
    with pytest.raises(WhetError, match="name a budget"):
        length(LONG, unit="char")
    with pytest.raises(WhetError, match="did you mean 'token'"):
        length(LONG, unit="tokens")
