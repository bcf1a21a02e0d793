"""Continual training: a model is trained on tasks 1 ... T in turn, and all of them are measured after each.

P[t, j] is the accuracy on task j after training on task t, a (T, T) matrix; P[0, j], before any training, stands apart.

| number | what it is |
|---|---|
| `average_accuracy` | mean over j of P[T, j] |
| `forgetting_measure`, "max" | mean over all j of P[T, j] - max over t = 1 ... T of P[t, j]; the base row is in no maximum |
| `forgetting_measure`, "diag" | mean over j < T of P[T, j] - P[j, j] |
| `new_accuracy` | mean over j of P[j, j]: how well each task was learnt when it was its turn |

Papers differ in sign and in what they average over, so the matrix is kept and both measures are functions of it. Both are
differences of accuracies: below 0 where something was forgotten, 0 for one task alone; "diag" is above 0 where later
tasks help.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from whet.errors import WhetError
from whet.evaluation.evaluate import Evaluator
from whet.evaluation.scores import ON
from whet.models.policy import Policy
from whet.training.snapshots import copy_weights, distance

MOVED = "moved"


class Stream:
    """Measures a policy on every task of a stream, for `Fit`'s `measure`.

    Args:
        evaluator: whose `others` are the tasks.
        policy: the policy at the start, whose weights `moved` is the distance from.
    """

    def __init__(self, evaluator: Evaluator, policy: Policy) -> None:
        self.evaluator = evaluator
        self.start: dict[str, Tensor] = copy_weights(policy, moving=False)

    def __call__(self, policy: Policy) -> dict[str, float]:
        """Greedy test accuracy on each task (`on:SPEC`), and how far the weights have moved; with adapters, whose change
        of the weights is a product, there is no such distance."""
        found = {ON + spec: float(found["value"]) for spec, found in self.evaluator.forgetting(policy).items()}
        return found if policy.peft is not None else {**found, MOVED: distance(policy, self.start)}


def matrix(measured: Sequence[Mapping[str, float]], tasks: Sequence[str]) -> np.ndarray:
    """(T + 1, T) accuracies, the first row before any training, from what a `Stream` measured."""
    if len(measured) != len(tasks) + 1:
        wanted = len(tasks) + 1
        raise WhetError(f"a stream of {len(tasks)} tasks is measured {wanted} times, and was {len(measured)} times")
    return np.array([[row[ON + task] for task in tasks] for row in measured])


def average_accuracy(p: np.ndarray) -> float:
    """Of P (T, T), without the base row."""
    return float(_square(p)[-1].mean())


def new_accuracy(p: np.ndarray) -> float:
    """Of P (T, T), without the base row."""
    return float(np.diagonal(_square(p)).mean())


def forgetting_measure(p: np.ndarray, how: str = "max") -> float:
    """Of P (T, T), without the base row; `how` is max or diag."""
    p = _square(p)
    if how == "max":
        return float((p[-1] - p.max(0)).mean())
    if how != "diag":
        raise WhetError(f"a forgetting measure is max or diag, not '{how}'")
    return float((p[-1] - np.diagonal(p))[:-1].mean()) if len(p) > 1 else 0.0


def _square(p: np.ndarray) -> np.ndarray:
    p = np.asarray(p, dtype=float)
    if p.ndim != 2 or p.shape[0] != p.shape[1] or not len(p):
        raise WhetError(f"P has a row and a column for each task, without the base row; it is {p.shape}")
    return p


def summary(measured: Sequence[Mapping[str, float]], tasks: Sequence[str]) -> dict[str, Any]:
    """Numbers for a run's summary: the four above, how far the weights moved, and each entry as `P[t,j]`, from t = 0."""
    table = matrix(measured, tasks)
    p = table[1:]
    found: dict[str, Any] = {
        "average_accuracy": average_accuracy(p),
        "new_accuracy": new_accuracy(p),
        "fm_max": forgetting_measure(p, "max"),
        "fm_diag": forgetting_measure(p, "diag"),
        **{f"P[{t},{j}]": float(value) for t, row in enumerate(table) for j, value in enumerate(row, 1)},
    }
    return {**found, MOVED: measured[-1][MOVED]} if MOVED in measured[-1] else found
