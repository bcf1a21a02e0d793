"""Transforms: small functions on the admitted rows of a step, in order, after the estimator.

Each changes the responses' per-token tables; `row.numbers["advantage"]` stays what the estimator wrote.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch

from whet.advantages.estimators import scatter, whiten_tokens
from whet.errors import WhetError
from whet.records import Row, Sample

Transform = Callable[[Sequence[Row]], None]


def weighted(weight: float, where: Callable[[Sample], torch.Tensor]) -> Transform:
    """Multiply the advantage of some tokens; counts are untouched.

    Args:
        where: (length,) bool of a response, e.g. `lambda sample: sample.span_mask("plan")`.
    """

    def transform(rows: Sequence[Row]) -> None:
        for sample in _responses(rows):
            advantage = _advantage(sample).clone()
            advantage[where(sample)] *= weight
            sample.per_token["advantage"] = advantage

    return transform


def top_entropy(share: float, kinds: Sequence[str] = (), scope: Literal["batch", "sequence"] = "batch") -> Transform:
    """Keep the advantage of the `share` of learnt tokens with the highest `per_token["entropy"]`; the others get 0.

    They stay in every count and in the other terms (KL, entropy), as in TRL and in "Beyond the 80/20 rule"
    (2506.01939). Of n tokens, floor((1 - share) n) are dropped; of equal entropies the earlier token is kept.

    Args:
        kinds: choose only among tokens of these segment kinds, and leave all others alone; () for all learnt tokens.
        scope: rank over the whole step, or in each sequence.
    """
    if not 0 < share <= 1:
        raise WhetError(f"top_entropy: share must be in (0, 1], not {share:g}")

    def drop(samples: Sequence[Sample]) -> None:
        for sample in samples:
            if "entropy" not in sample.per_token:
                raise WhetError(f"top_entropy: the response to '{sample.problem_id}' has no per_token['entropy']")
        chosen = [s.learn_mask & s.span_mask(*kinds) if kinds else s.learn_mask for s in samples]
        entropy = torch.cat([s.per_token["entropy"][c] for s, c in zip(samples, chosen, strict=True)])
        dropped = math.floor(round((1 - share) * len(entropy), 6))  # 0.8 of 5 is 4, whatever the floats say
        keep = torch.ones(len(entropy), dtype=torch.bool)
        keep[entropy.argsort(descending=True, stable=True)[len(entropy) - dropped :]] = False
        for s, c, k in zip(samples, chosen, keep.split([int(c.sum()) for c in chosen]), strict=True):
            advantage = _advantage(s).clone()
            advantage[c] *= k
            s.per_token["advantage"] = advantage

    def transform(rows: Sequence[Row]) -> None:
        samples = _responses(rows)
        for part in [samples] if scope == "batch" else [[s] for s in samples]:
            drop(part)

    return transform


def filter_overlong() -> Transform:
    """Withdraw answers that were cut off (no end token) from learning, through `per_token["mask"]` (DAPO).

    They were in the group's statistics before. In the normalisers, `sequence`, `sequence-sum`, `constant` and `row`
    still count the answer; `token` does not count its tokens.
    """

    def transform(rows: Sequence[Row]) -> None:
        for sample in _responses(rows):
            if not sample.ended:
                sample.per_token["mask"] = torch.zeros(len(sample), dtype=torch.bool)

    return transform


def right_only() -> Transform:
    """Withdraw responses that are not right (or could not be judged) from learning, through `per_token["mask"]`; what else
    their rows hold is still learnt."""

    def transform(rows: Sequence[Row]) -> None:
        for row in rows:
            if row.numbers["accuracy"] != 1.0:
                sample = row["response"]
                sample.per_token["mask"] = torch.zeros(len(sample), dtype=torch.bool)

    return transform


def whiten() -> Transform:
    """Whiten the advantages over all learnt tokens of the step; answers that could not be scored stay at 0."""

    def transform(rows: Sequence[Row]) -> None:
        values = [_advantage(row["response"])[row["response"].learn_mask].double() for row in rows]
        for row, value in zip(rows, whiten_tokens(rows, values), strict=True):
            scatter(row["response"], "advantage", value)

    return transform


def clip(low: float, high: float) -> Transform:
    """Clamp the advantage of every token to [low, high]."""
    if low > high:
        raise WhetError(f"clip: low ({low:g}) must not be above high ({high:g})")

    def transform(rows: Sequence[Row]) -> None:
        for sample in _responses(rows):
            sample.per_token["advantage"] = _advantage(sample).clamp(low, high) * sample.learn_mask

    return transform


def _responses(rows: Sequence[Row]) -> list[Sample]:
    return [sample for row in rows for sample in row.get("response")]


def _advantage(sample: Sample) -> torch.Tensor:
    if "advantage" not in sample.per_token:
        raise WhetError(f"the response to '{sample.problem_id}' has no advantage: transforms follow an estimator")
    return sample.per_token["advantage"]
