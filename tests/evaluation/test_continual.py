"""The matrix of a stream of tasks, and what is computed from it."""

from __future__ import annotations

import numpy as np
import pytest

from whet.errors import WhetError
from whet.evaluation.continual import average_accuracy, forgetting_measure, matrix, new_accuracy, summary

P = np.array([[0.9, 0, 0], [0.8, 0.7, 0], [0.6, 0.75, 0.5]])


def test_the_numbers_of_the_card() -> None:
    assert forgetting_measure(P, "max") == pytest.approx(-0.1)
    assert forgetting_measure(P, "diag") == pytest.approx(-0.125)
    assert average_accuracy(P) == pytest.approx(0.61667, abs=1e-5)
    assert new_accuracy(P) == pytest.approx(0.7)


def test_one_task_forgets_nothing() -> None:
    assert forgetting_measure(np.array([[0.3]]), "max") == forgetting_measure(np.array([[0.3]]), "diag") == 0.0


def test_a_summary_keeps_the_matrix_and_leaves_the_base_row_out_of_the_maximum() -> None:
    tasks = ["a", "b"]
    measured = [
        {"on:a": 0.9, "on:b": 0.1, "moved": 0.0},
        {"on:a": 0.5, "on:b": 0.1, "moved": 1.0},
        {"on:a": 0.4, "on:b": 0.6, "moved": 2.5},
    ]
    found = summary(measured, tasks)
    assert found["fm_max"] == pytest.approx((0.4 - 0.5) / 2), "0.9 was before any training"
    assert found["fm_diag"] == pytest.approx(-0.1) and found["average_accuracy"] == pytest.approx(0.5)
    assert found["new_accuracy"] == pytest.approx(0.55) and found["moved"] == 2.5
    assert [found[f"P[{t},{j}]"] for t in range(3) for j in (1, 2)] == [0.9, 0.1, 0.5, 0.1, 0.4, 0.6]
    assert "moved" not in summary([{k: v for k, v in row.items() if k != "moved"} for row in measured], tasks)
    assert matrix(measured, ["a", "b"]).shape == (3, 2)


def test_a_task_may_come_twice() -> None:
    measured = [{"on:a": 0.1}, {"on:a": 0.5}, {"on:a": 0.7}]
    assert summary(measured, ["a", "a"])["fm_diag"] == pytest.approx(0.2), "what was learnt first is now better"


def test_what_is_no_matrix_is_refused() -> None:
    with pytest.raises(WhetError, match="measured 3 times, and was 1 times"):
        matrix([{"on:a": 0.1}], ["a", "b"])
    with pytest.raises(WhetError, match="max or diag, not 'mean'"):
        forgetting_measure(P, "mean")
    with pytest.raises(WhetError, match="without the base row"):
        average_accuracy(np.zeros((3, 2)))
