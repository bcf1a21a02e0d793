"""Weights copied aside, put back, and frozen into a reference."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from whet.models.policy import Policy


def copy_weights(policy: Policy, *, moving: bool = True) -> dict[str, Tensor]:
    """Copies on the CPU, by name (tied weights once): of what is trained, or of everything."""
    chosen = policy.trainable_parameters() if moving else dict(policy.named_parameters())
    return {own_name(n): p.detach().cpu().clone() for n, p in chosen.items()}


@torch.no_grad()
def write_weights(policy: Policy, weights: Mapping[str, Tensor]) -> None:
    """Put copies back."""
    own = {own_name(n): p for n, p in policy.named_parameters()}
    for name, value in weights.items():
        own[name].copy_(value)


@torch.no_grad()
def distance(policy: Policy, weights: Mapping[str, Tensor]) -> float:
    """How far the policy's parameters are from copies of them: the L2 norm of all differences."""
    own = {own_name(n): p for n, p in policy.named_parameters()}
    squares = [(own[name].detach().cpu().double() - value.double()).square().sum() for name, value in weights.items()]
    return float(torch.stack(squares).sum().sqrt())


def own_name(name: str) -> str:
    """A parameter's name whether or not adapters have been put around its layer since."""
    return name.replace(".base_layer.", ".")


def frozen_copy(policy: Policy, weights: Mapping[str, Tensor]) -> Policy:
    """A copy of the policy with the given weights, that is not trained."""
    copied = policy.frozen()
    own = {own_name(n): p for n, p in copied.model.named_parameters()}
    with torch.no_grad():
        for name, value in weights.items():
            if name in own:
                own[name].copy_(value)
    return copied
