"""Rewards: what an answer is worth, in named parts, with the verifier's verdict beside them."""

from whet.rewards.audit import AuditRow, audit, exploits
from whet.rewards.partial import partial_credit
from whet.rewards.reward import (
    Attempt,
    Reward,
    accuracy,
    clip,
    each,
    format_bonus,
    from_function,
    gate,
    load_reward,
    route,
    total,
)
from whet.rewards.shaping import boxed_in_thought, overlong, relative_length, soft_overlong

__all__ = [
    "Attempt", "AuditRow", "Reward", "accuracy", "audit", "boxed_in_thought", "clip", "each", "exploits", "format_bonus",
    "from_function", "gate", "load_reward", "overlong", "partial_credit", "relative_length", "route", "soft_overlong", "total",
]  # fmt: skip
