"""Cells and what is computed from them: one arm's run with one seed is a cell, and every table is a function of cells.

A cell keeps which problems its model answered, so that arms are compared problem by problem.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from whet.errors import WhetError, unknown
from whet.evaluation.statistics import (
    Interval,
    difference,
    holm,
    over_seeds,
    over_seeds_and_problems,
    paired_difference,
)
from whet.runs import plain

START = "start"
ON = "on:"  # before another task's spec: the accuracy on it, as a metric
SHARES = ("accuracy", "ended", "unparseable", "failed", "confident_wrong", "confident_wrong_rate", "spliced_accuracy",
          "reliability", "reliability_early", "reliability_late", "locality")  # fmt: skip
LOWER_IS_BETTER = (
    "forgetting",
    "tokens_per_answer",
    "unparseable",
    "failed",
    "confident_wrong",
    "confident_wrong_rate",
    "drift_kl",
    "sampled_kl",
    "spliced_kl",
    "spliced_fvu",
    "seconds",
    "optimizer_mib",
    "gradient_mib",
)


@dataclass(frozen=True)
class Cell:
    """One arm with one seed, as it stands in its JSON file.

    Attributes:
        arm: its label; `start` is the model that every arm started from.
        seed: None for the start, which no seed has trained.
        key: hash of everything that decides the numbers: config, data, the start's weights.
        config: what was asked of the run, defaults among it.
        data: hash of the task's file, or its name and version.
        model: name, hash and parameters of the start.
        metrics: accuracy, mean@k and pass@k over the test problems, majority@k, forgetting (accuracy lost on the other
            tasks, their mean), tokens_per_answer, ended, unparseable; what training took: steps, seconds, trained_thousands
            (entries that moved), optimizer_mib and gradient_mib (the most that was held, measured).
        answers: right (1) or wrong (0) or not to be judged (?), a character an answer: `greedy` one a problem, `sampled`
            k a problem.
        others: accuracy on each other task, before and after.
        curve: step, share of the run, flops and validation accuracy at each evaluation, and the mean accuracy on the
            other tasks and the probes' numbers where they were looked at.
        compute: the meter at the end.
        minutes: wall-clock time, evaluations included.
        sketches: what probes keep to compare cells with each other, in short texts.
    """

    arm: str
    seed: int | None
    key: str
    config: Mapping[str, Any]
    data: str
    task: str
    model: Mapping[str, Any]
    metrics: Mapping[str, float | None]
    answers: Mapping[str, Any]
    others: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    curve: Sequence[Mapping[str, float]] = ()
    compute: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    minutes: float = 0.0
    sketches: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Cell:
        """Raises WhetError for a file that is no cell."""
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as problem:
            raise WhetError(f"'{path}' is not a cell ({problem}); remove it and its run is done again") from None

    def text(self) -> str:
        return json.dumps(plain(asdict(self)), indent=1) + "\n"

    def number(self, metric: str) -> float | None:
        """A metric, or after `on:` the accuracy on another task (`on:sort:level=1`); None where it was not measured."""
        if metric.startswith(ON):
            return self.others.get(metric.removeprefix(ON), {}).get("after")
        return self.metrics.get(metric)

    def by_problem(self, metric: str) -> np.ndarray | None:
        """(P,) what the model scored on each test problem; None where the metric is not one of problems."""
        return by_problem(self.answers, metric)


@dataclass(frozen=True)
class Difference:
    """One arm's metric minus another's.

    Attributes:
        p: of there being none; `corrected` is Holm's over all pairs of arms.
    """

    metric: str
    a: str
    b: str
    interval: Interval
    p: float
    corrected: float

    @property
    def name(self) -> str:
        return f"{self.a} - {self.b}"

    def as_dict(self) -> dict[str, Any]:
        return {"a": self.a, "b": self.b, **interval_dict(self.interval), "p": self.p, "p_corrected": self.corrected}


class Scores:
    """What arms scored. Arms keep the order of the cells.

    Args:
        cells: of every arm and seed; the arm `start` holds the one model that all began with, and may be absent.
    """

    def __init__(self, cells: Sequence[Cell]) -> None:
        self.start = next((c for c in cells if c.arm == START), None)
        self.cells: dict[str, list[Cell]] = {}
        for cell in sorted((c for c in cells if c.arm != START), key=lambda c: c.seed or 0):
            self.cells.setdefault(cell.arm, []).append(cell)
        order = list(dict.fromkeys(c.arm for c in cells if c.arm != START))
        self.cells = {arm: self.cells[arm] for arm in order}
        self._compared: dict[str, list[Difference]] = {}

    @property
    def arms(self) -> list[str]:
        return list(self.cells)

    @cached_property
    def metrics(self) -> list[str]:
        """Those that every cell has."""
        cells = [c for group in self.cells.values() for c in group]
        return [m for m in cells[0].metrics if all(c.metrics.get(m) is not None for c in cells)]

    def values(self, metric: str, arm: str) -> list[float]:
        """One number a seed."""
        if arm not in self.cells:
            raise unknown("arm", arm, self.cells)
        found = [c.number(metric) for c in self.cells[arm]]
        if any(value is None for value in found):
            others = [ON + spec for spec in self.cells[arm][0].others]
            raise unknown("metric", metric, [*self.cells[arm][0].metrics, *others])
        return [float(value) for value in found if value is not None]

    def having(self, metric: str) -> list[str]:
        """The arms that the metric was measured of: a method may have numbers of its own."""
        return [arm for arm, cells in self.cells.items() if all(c.number(metric) is not None for c in cells)]

    def interval(self, metric: str, arm: str) -> Interval:
        """Over seeds, and over problems where the metric is a mean over them."""
        if arm == START:
            return self._of_start(metric)
        values, table = self.values(metric, arm), self._table(metric, arm)
        if table is None:
            return _share(metric, over_seeds(values))
        return over_seeds_and_problems(table[:, ~np.isnan(table).any(0)])

    def difference(self, metric: str, a: str, b: str) -> Interval:
        """a - b; paired by problem where the metric allows it. `b` may be `start`."""
        y, z = self._table(metric, a), self._table(metric, b)
        if y is not None and z is not None:
            judged = ~(np.isnan(y).any(0) | np.isnan(z).any(0))
            return paired_difference(y[:, judged], z[0, judged] if b == START else z[:, judged])
        if b == START:
            before = self._of_start(metric).value
            return over_seeds([v - before for v in self.values(metric, a)])
        return difference(self.values(metric, a), self.values(metric, b))

    def differences(self, metric: str) -> list[Difference]:
        """Every pair of arms, with p-values corrected for their number."""
        if metric not in self._compared:
            arms = self.having(metric)
            pairs = [(a, b) for i, a in enumerate(arms) for b in arms[i + 1 :]]
            found = [self.difference(metric, a, b) for a, b in pairs]
            p = [d.p for d in found]
            rows = zip(pairs, found, p, holm(p), strict=True)
            self._compared[metric] = [Difference(metric, a, b, d, one, all_) for (a, b), d, one, all_ in rows]
        return self._compared[metric]

    def detectable(self, metric: str) -> float:
        """The smallest true difference that every pair of arms would have shown (80 % power at 5 %)."""
        return max((d.interval.detectable() for d in self.differences(metric)), default=math.nan)

    def ranked(self, metric: str) -> list[str]:
        """Arms from the best on."""
        sign = 1 if metric in LOWER_IS_BETTER else -1
        return sorted(self.arms, key=lambda arm: sign * self.interval(metric, arm).value)

    def _table(self, metric: str, arm: str) -> np.ndarray | None:
        """(S, P) by seed and problem."""
        group = [self.start] if arm == START and self.start else self.cells.get(arm)
        if not group:
            raise unknown("arm", arm, self.cells)
        rows = [cell.by_problem(metric) for cell in group]
        return None if any(row is None for row in rows) else np.stack(rows)  # type: ignore[arg-type]

    def _of_start(self, metric: str) -> Interval:
        if self.start is None:
            raise WhetError("the start of these runs was not measured")
        table = self._table(metric, START)
        if table is None:
            value = self.start.number(metric)
            if value is None:
                raise unknown("metric of the start", metric, self.start.metrics)
            return over_seeds([float(value)])
        return over_seeds_and_problems(table[:, ~np.isnan(table[0])])


def by_problem(answers: Mapping[str, Any], metric: str) -> np.ndarray | None:
    """(P,) accuracy, mean@k or pass@k of a cell's answers, NaN where none could be judged; None for another metric."""
    name, _, number = metric.partition("@")
    k = int(answers["k"])
    if metric == "accuracy":
        return _digits(answers["greedy"])
    if number != str(k) or name not in ("mean", "pass"):
        return None
    table = _digits(answers["sampled"]).reshape(-1, k)
    some = ~np.isnan(table).all(1)
    found = np.full(len(table), math.nan)
    found[some] = np.nanmean(table[some], 1) if name == "mean" else np.nanmax(table[some], 1)
    return found


def interval_dict(found: Interval) -> dict[str, Any]:
    """Its plain values, for JSON."""
    return {k: getattr(found, k) for k in ("value", "low", "high", "error", "seeds", "problems")}


def _share(metric: str, found: Interval) -> Interval:
    """A share stays within 0 and 1: accuracies, everything at k, and the named parts of verdicts."""
    return found.as_share() if metric in SHARES or "@" in metric or metric.startswith("parts/") else found


def _digits(text: str) -> np.ndarray:
    return np.array([{"0": 0.0, "1": 1.0}.get(c, math.nan) for c in text])
