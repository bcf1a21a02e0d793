"""Rewards shaped by length."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from whet.errors import WhetError, unknown
from whet.rewards.length import UNITS
from whet.rewards.reward import Attempt, Parts, Reward, each


def soft_overlong(length: int, max_length: int = 20480, buffer: int = 4096) -> float:
    """DAPO's soft punishment of length (arXiv 2503.14476), for `length` L in tokens:

    0 for L <= max_length - buffer; ((max_length - buffer) - L) / buffer up to max_length; -1 beyond.
    """
    start = max_length - buffer
    return max(-1.0, min(0.0, (start - length) / buffer))


def overlong(buffer: int = 4096, max_length: int | None = None) -> Reward:
    """Part `overlong`: `soft_overlong` of the attempt's tokens; `max_length` is by default its generation budget."""
    if buffer <= 0 or (max_length is not None and buffer > max_length):
        raise WhetError(f"overlong needs 0 < buffer <= max_length, not {buffer} and {max_length}")

    def score(attempt: Attempt) -> float:
        limit = max_length or attempt.budget
        if not limit:
            raise WhetError("overlong: the attempts had no generation budget; name a max_length")
        return soft_overlong(attempt.tokens, limit, buffer)

    return each("overlong", score)


class RelativeLength(Reward):
    """Part `relative_length` of an answer beside the others to the same problem (Kimi k1.5, 2501.12599, section 2.3.3):

        lambda_i = 1/2 - (L_i - L_min) / (L_max - L_min);   right: lambda_i;   wrong: min(0, lambda_i);   all alike: 0

    From 1/2 for the shortest to -1/2 for the longest; a wrong answer earns nothing by being short. An answer that could not
    be judged has no part in it and gets NaN.

    Args:
        unit: what lengths are counted in, `token` or `char`.
    """

    def __init__(self, unit: str = "token") -> None:
        if unit not in UNITS:
            raise unknown("unit of length", unit, UNITS)
        self.unit = unit

    def __call__(self, group: Sequence[Attempt]) -> list[Parts]:
        lengths = [float(a.tokens if self.unit == "token" else len(a.response.text)) for a in group]
        judged = [n for n, a in zip(lengths, group, strict=True) if not math.isnan(a.verdict.value)]
        low, high = min(judged, default=0.0), max(judged, default=0.0)

        def share(attempt: Attempt, length: float) -> float:
            if math.isnan(attempt.verdict.value):
                return math.nan
            found = 0.5 - (length - low) / (high - low) if high > low else 0.0
            return found if attempt.verdict.value == 1.0 else min(0.0, found)

        return [{"relative_length": share(a, n)} for a, n in zip(group, lengths, strict=True)]


relative_length = RelativeLength


def boxed_in_thought(close: str = "</think>") -> Reward:
    r"""Part `format`: 1 where a `\boxed{...}` stands before the first `close`, else 0. Such an answer is complete when the
    thought ends, so that decoding can stop there."""
    return each("format", lambda attempt: float(_boxed_before(attempt.response.text, close)))


def _boxed_before(text: str, close: str) -> bool:
    thought, closed, _ = text.partition(close)
    return bool(closed) and re.search(r"\\boxed\{.+?\}", thought, re.DOTALL) is not None
