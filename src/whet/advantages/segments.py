"""Weights of the parts of an answer that plans first: which tokens are the plan, which carry it out (E2C, 2509.23946).

    A_{i,t} = w A_i  for t < k,  A_i  for t >= k        k: the place of the token that ends the plan

Answers are cut by the Format, so a place is one of token ids, and no text is searched here.
"""

from __future__ import annotations

from collections.abc import Sequence

from whet.advantages.transforms import Transform
from whet.errors import unknown
from whet.records import Row, Sample

MISSING = ("plain", "whole")


def split(sample: Sample) -> int | None:
    """The place in `sample.ids` of the token that ends the plan: the last of the plan's segment, else the first of the
    execution's; None where the answer has neither."""
    start, executing = 0, None
    for segment in sample.segments:
        if segment.kind == "plan":
            return start + len(segment.ids) - 1
        if segment.kind == "execution" and executing is None:
            executing = start
        start += len(segment.ids)
    return executing


def plan_weight(weight: float, missing: str = "plain") -> Transform:
    """Multiply the advantage of the tokens before the end of the plan; the token that ends it has weight 1.

    It follows the estimator, so that a group's mean and deviation know nothing of it, and no count does.

    Args:
        weight: w; 1 changes nothing.
        missing: an answer without a plan is left as it is (`plain`), or weighted throughout (`whole`), as in the released code,
            which learns more from leaving the plan out than from writing it.
    """
    if missing not in MISSING:
        raise unknown("weight of an answer without a plan", missing, MISSING)

    def transform(rows: Sequence[Row]) -> None:
        for sample in (s for row in rows for s in row.get("response")):
            advantage = sample.per_token["advantage"].clone()
            at = split(sample)
            advantage[: at if at is not None else len(advantage) if missing == "whole" else 0] *= weight
            sample.per_token["advantage"] = advantage

    return transform
