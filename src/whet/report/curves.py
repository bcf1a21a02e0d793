"""Curves over training: the mean over a group's seeds with its 95 % interval, thinned to what a screen can show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from whet.evaluation.statistics import over_seeds
from whet.report.numbers import known, short
from whet.report.read import Group

MOST = 120  # points of a curve


@dataclass(frozen=True)
class Point:
    """A curve at x; `low` and `high` are None with one seed."""

    x: float
    value: float
    low: float | None
    high: float | None
    seeds: int


def over_steps(group: Group, key: str, evaluations: bool = False) -> list[Point]:
    """A metric of metrics.jsonl. Long runs are cut into equal spans of steps, and a point is the mean of one."""
    curves = [[(float(row["step"]), row.get(key)) for row in (run.evaluations if evaluations else run.steps)]
              for run in group.runs]  # fmt: skip
    return mean_curve(curves)


def mean_curve(curves: Sequence[Sequence[tuple[float, Any]]], most: int = MOST) -> list[Point]:
    """The mean of several (x, y) curves.

    Args:
        curves: one a seed; points without a number are left out.
        most: points of the mean at most. With fewer different x than that there is a point at each of them.
    """
    curves = [[(x, y) for x, y in curve if known(y)] for curve in curves]
    places = sorted({x for curve in curves for x, _ in curve})
    if not places:
        return []
    width = 1.0 if len(places) <= most else (places[-1] - places[0]) / most
    index = {x: i if len(places) <= most else min(most - 1, int((x - places[0]) / width)) for i, x in enumerate(places)}
    spans: dict[int, list[list[tuple[float, float]]]] = {}
    for curve in curves:
        own: dict[int, list[tuple[float, float]]] = {}
        for x, y in curve:
            own.setdefault(index[x], []).append((x, y))
        for i, points in own.items():
            spans.setdefault(i, []).append(points)
    return [_point(spans[i]) for i in sorted(spans)]


def aligned(curves: Sequence[Sequence[Mapping[str, float]]], x: str, y: str) -> list[Point]:
    """The mean of curves whose points belong together by their number, not their x: evaluations at equal shares of a
    budget are never at quite the same FLOPs. Curves of different lengths are cut to the shortest one."""
    return [_point([[(point[x], point[y])] for point in points]) for points in zip(*curves, strict=False)]


def _point(by_seed: Sequence[Sequence[tuple[float, float]]]) -> Point:
    """One point from the points of each seed."""
    xs = [sum(x for x, _ in points) / len(points) for points in by_seed]
    found = over_seeds([sum(y for _, y in points) / len(points) for points in by_seed])
    x = sum(xs) / len(xs)
    return Point(short(x), short(found.value), short(found.low), short(found.high), len(by_seed))
