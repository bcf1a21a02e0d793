"""Student's t, intervals over seeds and problems, differences, Holm, and the effect that can be detected."""

from __future__ import annotations

import math

import numpy as np
import pytest

from whet.evaluation import statistics as st

TABLE = {1: 12.7062, 2: 4.30265, 3: 3.18245, 4: 2.77645, 10: 2.22814, 30: 2.04227, 1000: 1.96234}  # 97.5 %


@pytest.mark.parametrize(("df", "value"), TABLE.items())
def test_t_quantiles_are_those_of_the_table(df: int, value: float) -> None:
    assert st.t_quantile(0.975, df) == pytest.approx(value, rel=3e-6)
    assert st.t_quantile(0.025, df) == pytest.approx(-value, rel=3e-6)


@pytest.mark.parametrize("p", [0.01, 0.5, 0.8, 0.995, 1 - 1e-9])
@pytest.mark.parametrize("df", [1.0, 2.7, 255.0])
def test_the_quantile_inverts_the_distribution(p: float, df: float) -> None:
    assert st.t_cdf(st.t_quantile(p, df), df) == pytest.approx(p, abs=1e-11)


def test_closed_forms_of_the_incomplete_beta() -> None:
    for x in (0.03, 0.4, 0.97):
        assert st.incomplete_beta(1, 3.5, x) == pytest.approx(1 - (1 - x) ** 3.5, rel=1e-13)
        assert st.incomplete_beta(2.5, 1, x) == pytest.approx(x**2.5, rel=1e-13)
        assert st.incomplete_beta(0.5, 7, x) + st.incomplete_beta(7, 0.5, 1 - x) == pytest.approx(1, abs=1e-14)
    assert (st.incomplete_beta(2, 2, 0.0), st.incomplete_beta(2, 2, 1.0)) == (0.0, 1.0)


def test_three_seeds() -> None:
    found = st.over_seeds([0.1, 0.2, 0.3])
    half = 4.302653 * 0.1 / math.sqrt(3)
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.2 - half, 0.2 + half), rel=1e-6)
    assert found.p == pytest.approx(0.0741799, rel=1e-5)  # of the one-sample t-test


def test_one_seed_has_no_interval() -> None:
    found = st.over_seeds([0.4])
    assert found.value == 0.4
    assert all(math.isnan(v) for v in (found.low, found.high, found.error, found.p, found.detectable()))


def test_welch() -> None:
    found = st.difference([0.1, 0.2, 0.3], [0.5, 0.55, 0.52])
    assert found.value == pytest.approx(-0.323333, abs=1e-6)
    assert found.p == pytest.approx(0.02472217, rel=1e-6)  # of scipy's ttest_ind(equal_var=False)


def test_p_is_the_level_at_which_the_interval_touches_zero() -> None:
    rng = np.random.default_rng(5)
    found = st.paired_difference(rng.random((3, 40)) < 0.6, rng.random((3, 40)) < 0.5)
    shifted = st.make_interval(found.value - found.low, found.parts, 3, 40)  # its low end is 0
    assert shifted.low == pytest.approx(0, abs=1e-12)
    assert shifted.p == pytest.approx(0.05, rel=1e-6)


def test_pairing_removes_what_problems_share_and_a_fixed_model_has_no_seeds() -> None:
    rng = np.random.default_rng(1)
    hard = rng.random(200)
    a = (hard + 0.05 * rng.standard_normal((3, 200)) < 0.6).astype(float)
    b = (hard + 0.05 * rng.standard_normal((3, 200)) < 0.5).astype(float)
    paired = st.paired_difference(a, b)
    alone = [st.over_seeds_and_problems(y).error ** 2 for y in (a, b)]
    assert paired.error < 0.6 * math.sqrt(sum(alone))
    fixed = st.paired_difference(a, b[0])
    assert fixed.parts[0].variance == pytest.approx(float(a.mean(1).var(ddof=1)) / 3)
    assert fixed.parts[0].df == pytest.approx(2)


def test_one_seed_of_many_problems_is_an_interval_over_problems() -> None:
    y = np.array([[1, 0, 0, 1, 1, 0, 1, 1]])
    found = st.over_seeds_and_problems(y)
    assert found.error == pytest.approx(math.sqrt(y.var(ddof=1) / 8))
    assert (found.seeds, found.problems) == (1, 8)


def test_nothing_right_is_not_certainly_nothing() -> None:
    found = st.over_seeds_and_problems(np.zeros((3, 100)))
    assert (found.low, found.high) == (0.0, pytest.approx(1 - 0.025**0.01))
    assert st.over_seeds_and_problems(np.ones((3, 100))).low == pytest.approx(0.025**0.01)


def test_the_interval_of_a_share_stays_within_0_and_1_and_holds_the_estimate() -> None:
    found = st.over_seeds([0.9, 0.99, 1.0])
    share = found.as_share()
    assert found.high > 1.0 > share.high > share.value == found.value > share.low > 0.0
    odds = [v / (1 - v) for v in (share.low, share.value, share.high)]
    assert odds[2] / odds[1] == pytest.approx(odds[1] / odds[0])  # it is symmetric in the log-odds
    certain = st.over_seeds([1.0, 1.0]).as_share()
    assert (certain.low, certain.high) == (1.0, 1.0)
    assert math.isnan(st.over_seeds([0.4]).as_share().low)
    one_right = st.over_seeds_and_problems(np.eye(3, 400)[:, ::-1] * [[1], [0], [0]])
    assert 0.0 < one_right.low < one_right.value < one_right.high < 0.1


@pytest.mark.parametrize(("share", "df"), [(0.0, 100), (0.25, 7.5472), (0.5, 3.9216), (1.0, 2)])
def test_degrees_of_freedom_are_averaged_harmonically_by_variance(share: float, df: float) -> None:
    assert st.degrees([st.Part(share, 2), st.Part(1 - share, 100)]) == pytest.approx(df, rel=1e-4)
    assert st.degrees([st.Part(0.0, 2), st.Part(0.0, 100)]) == 2


def test_holm() -> None:
    assert st.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert st.holm([0.6, 0.7]) == pytest.approx([1.0, 1.0])
    corrected = st.holm([0.01, math.nan, 0.02])
    assert corrected[0] == pytest.approx(0.02) and math.isnan(corrected[1]) and corrected[2] == pytest.approx(0.02)


# -- coverage: 2,000 simulated experiments of 3 seeds and 256 problems ---------------------------------------------------
DRAWS, SEEDS, PROBLEMS = 2000, 3, 256


def answers(rng: np.random.Generator, seed_sd: float, problems: np.ndarray, shift: float = 0.0) -> np.ndarray:
    """(draws, seeds, problems) right or wrong: the logit has a seed's part and a problem's."""
    logit = shift + rng.normal(0, seed_sd, (DRAWS, SEEDS, 1)) + problems
    return (rng.random((DRAWS, SEEDS, PROBLEMS)) < 1 / (1 + np.exp(-logit))).astype(float)


def true_accuracy(sd: float, shift: float = 0.0) -> float:
    x, w = np.polynomial.hermite_e.hermegauss(80)
    return float((w / (1 + np.exp(-(shift + sd * x)))).sum() / w.sum())


# seeds differ by the standard deviation of their logits, problems likewise: seeds rule, both count, problems rule; then
# shares near 1 and near 0
@pytest.mark.parametrize(
    ("seed_sd", "problem_sd", "shift"),
    [(0.6, 0.5, 0.0), (0.3, 0.5, 0.0), (0.6, 2.0, 0.0), (0.3, 2.0, 0.0), (0.0, 4.0, 0.0), (0.3, 4.0, 0.0), (0.1, 4.0, 0.0),
     (0.0, 0.5, 0.0), (0.6, 0.5, 1.5), (1.0, 0.5, 1.5), (0.3, 0.5, 3.0), (0.3, 1.0, -3.0)],
)  # fmt: skip
def test_the_interval_covers_95_percent_at_three_seeds(seed_sd: float, problem_sd: float, shift: float) -> None:
    rng = np.random.default_rng(11)
    y = answers(rng, seed_sd, rng.normal(0, problem_sd, (DRAWS, 1, PROBLEMS)), shift)
    truth = true_accuracy(math.hypot(seed_sd, problem_sd), shift)
    found = [st.over_seeds_and_problems(one) for one in y]
    assert np.mean([i.low <= truth <= i.high for i in found]) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize(("mean", "sd"), [(0.9, 0.03), (0.9, 0.08), (0.97, 0.02), (0.5, 0.2), (0.05, 0.03)])
def test_it_covers_where_the_seeds_accuracies_are_not_normal(mean: float, sd: float) -> None:
    """Beta distributed: a t interval of the share itself covers 90 to 93 % of the skewed ones."""
    rng = np.random.default_rng(15)
    size = mean * (1 - mean) / sd**2 - 1
    seeds = rng.beta(mean * size, (1 - mean) * size, (DRAWS, SEEDS, 1))
    y = (rng.random((DRAWS, SEEDS, PROBLEMS)) < seeds).astype(float)
    found = [st.over_seeds_and_problems(one) for one in y]
    assert np.mean([i.low <= mean <= i.high for i in found]) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize(
    ("a_sd", "b_sd", "problem_sd"),
    [(0.3, 0.3, 0.5), (0.6, 0.6, 2.0), (0.1, 0.1, 2.0), (0.0, 0.5, 3.0), (0.0, 0.0, 0.5), (0.3, 0.0, 1.0)],
)
def test_the_difference_covers_95_percent_at_three_seeds(a_sd: float, b_sd: float, problem_sd: float) -> None:
    """Welch's intervals cover 96.4 % where the spreads are alike: more draws, so that chance does not decide the test."""
    rng = np.random.default_rng(12)
    truth = true_accuracy(math.hypot(a_sd, problem_sd, 0.3), 0.4) - true_accuracy(math.hypot(b_sd, problem_sd, 0.3))
    hits = []
    for _ in range(4):
        shared = rng.normal(0, problem_sd, (DRAWS, 1, PROBLEMS))
        own = [rng.normal(0, 0.3, shared.shape) for _ in range(2)]
        a, b = answers(rng, a_sd, shared + own[0], 0.4), answers(rng, b_sd, shared + own[1])
        found = [st.paired_difference(*pair) for pair in zip(a, b, strict=True)]
        hits += [i.low <= truth <= i.high for i in found]
    assert np.mean(hits) == pytest.approx(0.95, abs=0.02)


def test_over_seeds_covers_95_percent_where_the_range_of_the_seeds_covers_75() -> None:
    y = np.random.default_rng(13).normal(0.4, 0.05, (DRAWS, SEEDS))
    found = [st.over_seeds(one) for one in y]
    assert np.mean([i.low <= 0.4 <= i.high for i in found]) == pytest.approx(0.95, abs=0.02)
    # a 95 % percentile bootstrap of three numbers is no wider than their range
    assert np.mean((y.min(1) <= 0.4) & (y.max(1) >= 0.4)) == pytest.approx(0.75, abs=0.02)


def test_an_effect_of_the_detectable_size_is_detected_four_times_in_five() -> None:
    effect = st.detectable_effect(0.02, seeds=5)
    rng = np.random.default_rng(14)
    pairs = zip(rng.normal(effect, 0.02, (1000, 5)), rng.normal(0, 0.02, (1000, 5)), strict=True)
    assert np.mean([st.difference(*pair).low > 0 for pair in pairs]) == pytest.approx(0.8, abs=0.04)
    assert st.detectable_effect(0.02, seeds=3) > effect > st.detectable_effect(0.02, seeds=10)
