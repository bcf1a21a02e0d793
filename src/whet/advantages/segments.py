"""Weights of the parts of an answer that plans first: which tokens are the plan, which carry it out (E2C, 2509.23946).

    A_{i,t} = w A_i  for t < k,  A_i  for t >= k        k: the place of the token that ends the plan

Answers are cut by the Format, so a place is one of token ids, and no text is searched here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from whet.advantages.transforms import Transform, weighted
from whet.errors import unknown
from whet.records import Sample

MISSING = ("plain", "whole")


def split(sample: Sample) -> int | None:
    """The place in `sample.ids` of the token that ends the plan: the last of the first plan's segment, else the first of the
    execution's; None where the answer has neither."""
    start, found = 0, dict[str, int]()
    for segment in sample.segments:
        found.setdefault(segment.kind, start + (len(segment.ids) - 1 if segment.kind == "plan" else 0))
        start += len(segment.ids)
    return found.get("plan", found.get("execution"))


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

    def before_its_end(sample: Sample) -> Tensor:
        end = split(sample)
        return torch.arange(len(sample)) < (end if end is not None else len(sample) if missing == "whole" else 0)

    return weighted(weight, before_its_end)
