"""Rewards shaped by length."""

from __future__ import annotations

from whet.errors import WhetError
from whet.rewards.reward import Attempt, Reward, each


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
