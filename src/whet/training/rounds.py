"""Rounds: collect -> score -> select -> build rows -> train (from `base` or `last`), again and again.

A round is a stage whose collector makes its rows when the stage is entered, with the policy that the round before left,
and whose `start` then says which weights are trained on them. So rounds are a list of stages and need no loop of their
own; evaluation, checkpoints and resume are THE loop's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from whet.errors import WhetError
from whet.training.stage import Stage


def rounds(lengths: Sequence[int], make: Callable[[int, int], Stage]) -> list[Stage]:
    """`make(index, steps)` for each round."""
    return [make(index, steps) for index, steps in enumerate(lengths)]


def growing(number: int, first: int, growth: float = 1.0) -> list[int]:
    """Steps of each round: int(first * growth^(n - 1)), e.g. 40, 48, 57, 69 (STaR)."""
    if number < 1 or first < 1 or growth <= 0:
        raise WhetError("rounds: the number and the first length must be at least 1 and the growth above 0")
    return [int(first * growth**n + 1e-9) for n in range(number)]
