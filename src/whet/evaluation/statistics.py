"""Intervals and differences that hold at three seeds.

Two things vary: the seed of a run and the problem that is asked. With S seeds and P problems in a table y_sp, the variance
of the grand mean is estimated by

    v = v_seed + max(v_problem - v_rest, 0)       v_seed = var_s(mean_p y) / S,  v_problem = var_p(mean_s y) / P

(v_rest, the residual's, is in both and is counted once), and the interval is mean -+ q sqrt(v), where q is Student's
quantile with the degrees of freedom of the parts, S - 1 and P - 1, averaged harmonically by their shares of v:

    1 / df = sum_i (v_i / v) / df_i

Satterthwaite's formula has the squares of the shares. They are right for the true shares, but a share that is estimated
from three seeds is too small just when the interval is too short: it covers 92 %. A weighted mean of the two quantiles
(Cochran 1964) errs on the other side, 97.7 %; a percentile bootstrap over the seeds covers about 73 %. The interval of a
share is taken on the scale of log-odds: it stays within 0 and 1, and covers where shares near them are skewed. On answers
that are right or wrong it then covers 93-97 % at three seeds, whichever part is the larger.

Two arms that answered the same problems are compared problem by problem; their seeds are independent, with Welch's
degrees of freedom (Satterthwaite's formula, which serves for parts that are known equally well).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

LEVEL = 0.95


# -- Student's t -------------------------------------------------------------------------------------------------------
def t_cdf(t: float, df: float) -> float:
    """P(T <= t) of Student's t with `df` > 0 degrees of freedom, not necessarily whole."""
    tail = 0.5 * incomplete_beta(df / 2.0, 0.5, df / (df + t * t))
    return 1.0 - tail if t > 0 else tail


@lru_cache(maxsize=4096)
def t_quantile(p: float, df: float) -> float:
    """The t with P(T <= t) = p, for 0 < p < 1."""
    if p < 0.5:
        return -t_quantile(1.0 - p, df)
    t, step = 0.0, 1.0
    front = math.exp(math.lgamma(0.5 * (df + 1)) - math.lgamma(0.5 * df)) / math.sqrt(df * math.pi)
    while step > 1e-13 * max(1.0, t):  # Newton's: right of 0 the distribution is concave, so no step goes too far
        density = front * (1.0 + t * t / df) ** (-0.5 * (df + 1))
        step = (t_cdf(-t, df) - (1.0 - p)) / density
        t += step
    return t


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b), by its continued fraction (DLMF 8.17.22), Lentz's way."""
    if x <= 0.0 or x >= 1.0:
        return float(x >= 1.0)
    if x > (a + 1.0) / (a + b + 2.0):
        return 1.0 - incomplete_beta(b, a, 1.0 - x)
    front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    c, d = 1.0, 1.0 / (1.0 - (a + b) * x / (a + 1.0))
    fraction = d
    for m in range(1, 1000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        before = fraction
        for step in (even, odd):
            d, c = 1.0 / (1.0 + step * d), 1.0 + step / c
            fraction *= c * d
        if abs(fraction - before) < 1e-15 * fraction:
            break
    return math.exp(front) * fraction / a


# -- intervals ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Part:
    """A part of a variance, with the degrees of freedom that it was estimated with."""

    variance: float
    df: float


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval.

    Attributes:
        value: the estimate; `low` and `high` are NaN where nothing says how it varies (one seed, no problems).
        error: its standard error.
        seeds, problems: what it was estimated from; problems is 0 where only the seeds' own numbers are known.
        parts: the parts of `error` squared.
    """

    value: float
    low: float
    high: float
    error: float
    seeds: int
    problems: int = 0
    parts: tuple[Part, ...] = ()

    @property
    def p(self) -> float:
        """The two-sided p-value of the estimate being 0."""
        if math.isnan(self.error):
            return math.nan
        if self.error == 0.0:
            return float(self.value == 0.0)
        df = degrees(self.parts)
        return incomplete_beta(df / 2.0, 0.5, df / (df + (self.value / self.error) ** 2))  # both tails of t

    def detectable(self, power: float = 0.8) -> float:
        """The smallest true effect that such an estimate differs from 0 with, at 5 %, with probability `power`."""
        if math.isnan(self.error):
            return math.nan
        df = degrees(self.parts)
        return self.error * (t_quantile(0.5 + LEVEL / 2, df) + t_quantile(power, df))

    def as_share(self) -> Interval:
        """The interval of a share: on the scale of log-odds, by the delta method, it stays within 0 and 1."""
        if math.isnan(self.error) or not 0.0 < self.value < 1.0:
            return self
        centre = math.log(self.value / (1.0 - self.value))
        half = (self.high - self.value) / (self.value * (1.0 - self.value))
        low, high = (0.5 * (1.0 + math.tanh(0.5 * x)) for x in (centre - half, centre + half))
        return replace(self, low=min(low, self.value), high=max(high, self.value))


def degrees(parts: Sequence[Part]) -> float:
    """The degrees of freedom of an estimate whose variance is a sum of parts: their harmonic mean, by variance."""
    total = sum(part.variance for part in parts)
    if total == 0.0:
        return min(part.df for part in parts)
    return total / sum(part.variance / part.df for part in parts)


def make_interval(value: float, parts: Sequence[Part], seeds: int, problems: int = 0) -> Interval:
    """value -+ quantile x error."""
    if not parts:
        return Interval(value, math.nan, math.nan, math.nan, seeds, problems)
    error = math.sqrt(sum(part.variance for part in parts))
    half = error * t_quantile(0.5 + LEVEL / 2, degrees(parts))
    return Interval(value, value - half, value + half, error, seeds, problems, tuple(parts))


def over_seeds(values: ArrayLike) -> Interval:
    """The t interval of a mean over seeds. One seed has no interval."""
    y = np.asarray(values, dtype=float)
    parts = [Part(float(y.var(ddof=1)) / len(y), len(y) - 1)] if len(y) > 1 else []
    return make_interval(float(y.mean()), parts, len(y))


def over_seeds_and_problems(table: ArrayLike) -> Interval:
    """The interval of a mean share over seeds and problems.

    Args:
        table: (S, P) what each seed's model scored on each problem, from 0 to 1. With one seed it is an interval over the
            problems for that one model, which says nothing about another seed.
    """
    y = np.asarray(table, dtype=float)
    found = make_interval(float(y.mean()), _parts([y], y.mean(0)), *y.shape)
    if found.value in (0.0, 1.0):  # all alike: the exact interval of a share, of the problems alone
        reach = 1.0 - ((1.0 - LEVEL) / 2) ** (1.0 / y.shape[1])
        return replace(found, low=max(0.0, found.value - reach), high=min(1.0, found.value + reach))
    return found.as_share()


def difference(a: ArrayLike, b: ArrayLike) -> Interval:
    """mean(a) - mean(b) of two arms' numbers, one a seed, by Welch."""
    y, z = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    n = min(len(y), len(z))
    parts = [_welch([float(v.var(ddof=1)) / len(v) for v in (y, z)], [len(y) - 1, len(z) - 1])] if n > 1 else []
    return make_interval(float(y.mean() - z.mean()), parts, n)


def paired_difference(a: ArrayLike, b: ArrayLike) -> Interval:
    """mean(a) - mean(b) of two arms that answered the same problems.

    Args:
        a: (S, P) what each seed's model scored on each problem.
        b: the same of the other arm, with the same problems in the same order and perhaps another number of seeds; or
            (P,) of one fixed model, that no seed has trained.
    """
    y, z = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    tables, other = ([y], z) if z.ndim == 1 else ([y, z], z.mean(0))
    return make_interval(
        float(y.mean() - z.mean()), _parts(tables, y.mean(0) - other), min(map(len, tables)), y.shape[1]
    )


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction of the p-values of one family; NaN stays NaN and is not counted."""
    order = sorted((i for i, value in enumerate(p) if not math.isnan(value)), key=lambda i: p[i])
    found = [math.nan] * len(p)
    worst = 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(order) - rank) * p[i]))
        found[i] = worst
    return found


def detectable_effect(spread: float, seeds: int, power: float = 0.8) -> float:
    """The smallest difference of two arms that `seeds` runs of each can show, for planning.

    Args:
        spread: standard deviation of the metric over seeds.
        power: probability of seeing it at 5 %.
    """
    return make_interval(0.0, [Part(2.0 * spread**2 / seeds, 2 * (seeds - 1))], seeds).detectable(power)


def _parts(tables: Sequence[np.ndarray], by_problem: np.ndarray) -> list[Part]:
    """The variance of a mean (or a difference of means) by seeds and by problems.

    Args:
        tables: one (S, P) table an arm.
        by_problem: (P,) what is averaged over the problems in the end.
    """
    problems = by_problem.shape[0]
    of_problems = Part(float(by_problem.var(ddof=1)) / problems if problems > 1 else 0.0, max(1, problems - 1))
    if any(len(y) == 1 for y in tables):
        return [of_problems] if problems > 1 else []
    seeds = [float(y.mean(1).var(ddof=1)) / len(y) for y in tables]
    rest = sum(_rest(y) for y in tables)
    of_seeds = _welch(seeds, [len(y) - 1 for y in tables])
    return [of_seeds, Part(max(of_problems.variance - rest, 0.0), of_problems.df)]


def _welch(variances: Sequence[float], df: Sequence[int]) -> Part:
    """The sum of independent variances with Welch-Satterthwaite's degrees of freedom."""
    total = sum(variances)
    if total == 0.0:
        return Part(0.0, max(1, min(df)))
    return Part(total, total**2 / sum(v**2 / f for v, f in zip(variances, df, strict=True) if v))


def _rest(y: np.ndarray) -> float:
    """The residual's share in the variance of the mean of an (S, P) table."""
    seeds, problems = y.shape
    if problems == 1:
        return 0.0
    left = y - y.mean(1, keepdims=True) - y.mean(0, keepdims=True) + y.mean()
    return float((left**2).sum()) / ((seeds - 1) * (problems - 1)) / y.size
