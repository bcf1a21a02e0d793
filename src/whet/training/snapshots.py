"""Weights copied aside, put back, and frozen into a reference."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from whet.models.policy import Policy
from whet.weights.snapshot import copy_weights, own_name, write_weights


@torch.no_grad()
def distance(policy: Policy, weights: Mapping[str, Tensor]) -> float:
    """How far the policy's parameters are from copies of them: the L2 norm of all differences."""
    own = {own_name(n): p for n, p in policy.named_parameters()}
    squares = [(own[name].detach().cpu().double() - value.double()).square().sum() for name, value in weights.items()]
    return float(torch.stack(squares).sum().sqrt())


def frozen_copy(policy: Policy, weights: Mapping[str, Tensor]) -> Policy:
    """A copy of the policy with the given weights, that is not trained."""
    copied = policy.frozen()
    own = {own_name(n): p for n, p in copied.model.named_parameters()}
    with torch.no_grad():
        for name, value in weights.items():
            if name in own:
                own[name].copy_(value)
    return copied


__all__ = ["copy_weights", "distance", "frozen_copy", "write_weights"]
