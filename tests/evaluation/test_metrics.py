"""Metrics are pure functions of a matrix: known values, brute force, ties, and what could not be judged."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from statistics import mean

import pytest

from whet.evaluation import metrics
from whet.evaluation.matrix import Cell, Matrix
from whet.evaluation.metrics import accuracy, majority, mean_interval, pass_at_k, summary, wilson
from whet.tasks import Problem

NAN = math.nan


def cell(value: float, label: str | None = "x", tokens: int = 4, ended: bool = True) -> Cell:
    status = "error" if math.isnan(value) else "ok" if value == 1 else "unparseable" if label is None else "wrong"
    return Cell(value, status, tokens, ended, label)  # type: ignore[arg-type]


def matrix(*rows: Sequence[float]) -> Matrix:
    return Matrix([Problem(str(i), "q") for i in range(len(rows))], [[cell(v) for v in row] for row in rows])


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_at_k_is_the_mean_over_all_subsets(n: int) -> None:
    for c in range(n + 1):
        answers = [1] * c + [0] * (n - c)
        for k in range(1, n + 1):
            brute = mean(float(any(s)) for s in itertools.combinations(answers, k))
            assert pass_at_k(n, c, k) == pytest.approx(brute, abs=1e-12)
    assert pass_at_k(n, 0, 1) == 0.0 and pass_at_k(n, n, n) == 1.0


def test_pass_at_1_is_the_mean_and_large_numbers_are_no_trouble() -> None:
    assert pass_at_k(1000, 250, 1) == pytest.approx(0.25)
    assert pass_at_k(10_000, 1, 5000) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962), (1, 1, 0.2065, 1.0)],
)  # fmt: skip
def test_wilson_intervals_of_the_tables(successes: int, n: int, low: float, high: float) -> None:
    assert wilson(successes, n) == pytest.approx((low, high), abs=1e-4)


def test_nothing_is_known_of_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    empty = mean_interval([])
    assert math.isnan(empty["value"]) and (empty["low"], empty["high"], empty["n"]) == (0.0, 1.0, 0)
    assert mean_interval([0.5]) == {"value": 0.5, "low": 0.0, "high": 1.0, "n": 1}


def test_the_interval_of_a_mean_of_shares_stays_a_share() -> None:
    values = [0.0, 0.5, 1.0, 0.5]
    found = mean_interval(values)
    half = 1.959964 * math.sqrt(sum((v - 0.5) ** 2 for v in values) / 3 / 4)
    assert (found["value"], found["low"], found["high"]) == pytest.approx((0.5, 0.5 - half, 0.5 + half))
    near = mean_interval([0.0] * 9 + [0.1])
    assert near["low"] == 0.0 < near["value"] < near["high"] < 1.0


def test_a_normal_interval_covers_about_as_often_as_it_says() -> None:
    draw = random.Random(0)
    hits = 0
    for _ in range(500):
        values = [sum(draw.random() < p for _ in range(4)) / 4 for p in [draw.random() for _ in range(100)]]
        found = mean_interval(values)
        hits += found["low"] <= 0.5 <= found["high"]
    assert 0.92 < hits / 500 < 0.98


VOTES = [
    # (value, label) of each answer; share of the tied labels that is right
    ([(1, "4"), (1, "4"), (0, "5")], 1.0),
    ([(1, "4"), (0, "5"), (0, "5")], 0.0),
    ([(1, "4"), (0, "5")], 0.5),
    ([(1, "4"), (0, "5"), (0, "6")], 1 / 3),
    ([(1, "4"), (1, "4.0"), (0, "5")], 2 / 3),
    ([(0, None), (0, None), (1, "4")], 1.0),
    ([(0, None)], 0.0),
]


@pytest.mark.parametrize(("votes", "expected"), VOTES)
def test_majority_votes_and_ties(votes: list[tuple[float, str | None]], expected: float) -> None:
    row = [cell(value, label) for value, label in votes]
    assert majority(row) == pytest.approx(expected)
    for shuffled in itertools.permutations(row):
        assert majority(list(shuffled)) == pytest.approx(expected), "the order of the answers does not matter"


def test_majority_is_the_mean_over_all_orders_in_which_the_first_of_the_most_frequent_labels_wins() -> None:
    labels = {"4": 1.0, "04": 1.0, "5": 0.0, "6": 0.0, None: 0.0}
    for n in (1, 2, 3, 4):
        for votes in itertools.combinations_with_replacement(labels, n):
            wins = []
            for order in itertools.permutations(votes):
                counted = [v for v in order if v is not None]
                first = max(dict.fromkeys(counted), key=counted.count, default=None)  # the first of equally many
                wins.append(labels[first])
            assert majority([cell(labels[v], v) for v in votes]) == pytest.approx(mean(wins)), votes


def test_accuracy_is_of_the_first_answers_that_could_be_judged() -> None:
    found = accuracy(matrix([1, 0], [0, 1], [NAN, 1], [1, 1]))
    assert found == {"value": pytest.approx(2 / 3), "low": pytest.approx(wilson(2, 3)[0]),
                     "high": pytest.approx(wilson(2, 3)[1]), "n": 3}  # fmt: skip
    assert math.isnan(accuracy(matrix([NAN]))["value"])
    assert accuracy(matrix([0.5], [1.0]))["value"] == 0.5, "a half-right answer is not right"


def test_the_summary_is_the_contract() -> None:
    greedy = Matrix([Problem(str(i), "q") for i in range(4)],
                    [[cell(1, tokens=3)], [cell(0, None, 5)], [cell(0, "y", 8, ended=False)], [cell(NAN)]])  # fmt: skip
    draws = [[1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1], [NAN] * 6, [NAN, 1, 0, 1, NAN, 0]]
    found = summary(greedy, matrix(*draws))
    assert set(found) == {"accuracy", "tokens_per_answer", "ended", "unparseable", "failed", "sampled_accuracy", "pass@6",
                          "majority@6"}  # fmt: skip
    assert found["tokens_per_answer"] == 5.0 and found["ended"] == 0.75
    assert found["unparseable"] == found["failed"] == 0.25
    # over the first four answers that could be judged; a problem without any is left out
    assert found["sampled_accuracy"]["value"] == pytest.approx(mean([0.5, 0.0, 0.5]))  # type: ignore[index]
    assert found["sampled_accuracy"]["n"] == found["pass@6"]["n"] == found["majority@6"]["n"] == 3  # type: ignore[index]
    assert found["pass@6"]["value"] == pytest.approx(1.0)  # type: ignore[index]
    assert "pass@6" not in summary(greedy, None) and "failed" not in summary(matrix([1.0]), None)


def test_a_summary_is_json() -> None:
    found = summary(matrix([NAN], [NAN]), matrix([NAN, NAN], [NAN, NAN]))
    assert found["accuracy"]["value"] is None and found["failed"] == 1.0  # type: ignore[index]
    assert metrics.share([], "ended") != metrics.share([], "ended"), "NaN: of nothing there is no share"
