"""What an answer is worth, of its correctness, its length and the budget: one curve, of which length rewards are settings.

    value(L) = end + (start - end) / 2 (1 + cos(pi p))        p = (L / M - begin) / (finish - begin), within [0, 1]

L is the length and M the budget, in the same unit. `begin` and `finish` are shares of the budget, so that a curve holds at
any scale. Right and wrong answers have a bend each, answers that exceed the budget one value.

| paper | right | wrong | exceeded |
|---|---|---|---|
| long-cot 2502.03373 | `Bend(2, 1)` | `Bend(-10, 0)` | -10, from 16 tokens before the end on |
| phi-4-reasoning 2504.21318 | `Bend(1, .5, begin=25600 / 31744)` | `Bend(-1, -.5, finish=3702 / 31744)` | -.5 |
| two-stage 2507.08267 | `Bend(1, .1)` | `Bend(-1, -.1)` | as any other |
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from whet.errors import WhetError, unknown
from whet.rewards.reward import NAN, Attempt, Reward, each

UNITS = ("token", "char")
Shape = Callable[[float], float]  # length as a share of the budget -> value


@dataclass(frozen=True)
class Bend:
    """Half a cosine from `start` to `end`, flat before `begin` and behind `finish`, which are shares of the budget."""

    start: float
    end: float
    begin: float = 0.0
    finish: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.begin < self.finish:
            raise WhetError(f"a bend needs 0 <= begin < finish, not {self.begin:g} and {self.finish:g}")

    def __call__(self, share: float) -> float:
        p = min(1.0, max(0.0, (share - self.begin) / (self.finish - self.begin)))
        return self.end + (self.start - self.end) / 2 * (1 + math.cos(math.pi * p))


@dataclass(frozen=True)
class LengthCurve:
    """The value of an answer.

    Attributes:
        right, wrong: of the length as a share of the budget.
        exceeded: of an answer that was cut off, or came within `margin` of the budget, be it right or wrong; None judges
            it by its length like any other.
        margin: in the unit of the length; 0 asks only whether the answer was cut off.
    """

    right: Shape
    wrong: Shape
    exceeded: float | None = None
    margin: int = 0

    def __call__(self, right: bool, length: float, budget: float, ended: bool = True) -> float:
        if self.exceeded is not None and (not ended or (self.margin and length + self.margin >= budget)):
            return self.exceeded
        return (self.right if right else self.wrong)(length / budget)

    def of(self, attempt: Attempt, budget: int = 0, unit: str = "token") -> float:
        """Of an attempt: right where its verdict is 1, NaN where it could not be judged.

        Args:
            budget: M; 0 is the attempt's own generation budget, which is in tokens.
            unit: `token` (end token included, padding not) or `char` (of the response's text).
        """
        if math.isnan(attempt.verdict.value):
            return NAN
        limit = budget or (attempt.budget if unit == "token" else 0)
        if not limit:
            raise WhetError("length: the attempts have no generation budget in this unit; name a budget")
        if self.exceeded is not None and self.margin >= limit:
            raise WhetError(f"length: a margin of {self.margin} leaves nothing of a budget of {limit}; lower it")
        found = attempt.tokens if unit == "token" else len(attempt.response.text)
        return self(attempt.verdict.value == 1.0, found, limit, not attempt.truncated)


def length(curve: LengthCurve, *, budget: int = 0, unit: str = "token", name: str = "length") -> Reward:
    """One part, the curve's value; it stands for correctness and length together. For the arguments see `LengthCurve.of`."""
    if unit not in UNITS:
        raise unknown("unit of length", unit, UNITS)
    if unit == "char" and not budget:
        raise WhetError("length: generation budgets are in tokens; with unit='char' name a budget")
    return each(name, lambda attempt: curve.of(attempt, budget, unit))
