"""Ratios of paired measurements, and the cost of one more of something."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median


def paired(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Median and interval of ours / theirs, block by block: what disturbs the machine for a while disturbs both.

    Raises:
        ValueError: nothing to compare, or blocks without a partner.
    """
    if not ours or len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} blocks cannot be paired with {len(theirs)}")
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    low, high, coverage = interval(ratios)
    return {"median": median(ratios), "low": low, "high": high, "coverage": coverage, "pairs": len(ratios)}


def interval(values: Sequence[float], level: float = 0.9) -> tuple[float, float, float]:
    """An interval of the median from order statistics, which assumes no distribution, and its exact coverage.

    The narrowest symmetric one that covers at least `level`; where there are too few values for that, the widest.
    """
    ordered, n = sorted(values), len(values)

    def coverage(k: int) -> float:  # of [k-th smallest, k-th largest], k from 0
        return 1.0 - 2.0 * sum(math.comb(n, i) for i in range(k + 1)) / 2.0**n

    k = max((k for k in range((n + 1) // 2) if coverage(k) >= level), default=0)
    return ordered[k], ordered[n - 1 - k], max(0.0, coverage(k))


def slope(costs: Mapping[int, float]) -> float:
    """The cost of one more, from costs by number: the least-squares line."""
    x, y = list(costs), list(costs.values())
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((a - mean_x) ** 2 for a in x)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread
