"""Exact divergences: direction, zero at equality, and their relation to the sampled ones."""

from __future__ import annotations

import math

import pytest
import torch
from objective_tools import exact, gradient, loss_of, rollouts

from whet.errors import WhetError
from whet.objectives import Context, entropy_bonus, forward_kl, kl_to_reference, reverse_kl


@pytest.fixture(scope="module")
def policies():
    return {"policy": exact(), "reference": exact(9)}


def distributions(policies):
    """(N, V) log-probs of both at the learnt tokens, the plain way."""
    out = []
    for who in ("policy", "reference"):
        forward = Context(rollouts(), {"policy": policies[who]}).forward("response")
        out.append(policies[who].head(forward.hidden).log_softmax(-1))
    return out


def test_directions(policies):
    p, q = (d.detach() for d in distributions(policies))
    to_policy = (q.exp() * (q - p)).sum(-1).mean()  # KL(reference || policy)
    to_reference = (p.exp() * (p - q)).sum(-1).mean()
    torch.testing.assert_close(loss_of(forward_kl(), rollouts(), policies), to_policy)
    torch.testing.assert_close(loss_of(reverse_kl(), rollouts(), policies), to_reference)
    assert abs(float(to_policy - to_reference)) > 1e-3


@pytest.mark.parametrize("term", [forward_kl(), reverse_kl(), kl_to_reference()], ids=lambda t: t.name)
def test_zero_and_flat_at_equality(policies, term):
    same = {"policy": policies["policy"], "reference": exact()}
    assert loss_of(term, rollouts(), same).detach().abs() < 1e-12
    assert gradient(term, rollouts(), same).abs().max() < 1e-10
    assert loss_of(term, rollouts(), policies).detach() > 0.1


def test_no_gradient_reaches_the_reference(policies):
    loss_of(forward_kl() + kl_to_reference(), rollouts(), policies).backward()
    assert all(p.grad is None for _, p in policies["reference"].named_parameters())
    policies["policy"].model.zero_grad()


def test_entropy_bonus_is_minus_the_entropy(policies):
    p, _ = distributions(policies)
    torch.testing.assert_close(loss_of(entropy_bonus(), rollouts(), policies), (p.exp() * p).sum(-1).mean())
    assert -math.log(320) <= loss_of(entropy_bonus(), rollouts(), policies).item() < 0


def test_unknown_estimator():
    with pytest.raises(WhetError, match="k3"):
        kl_to_reference("k4")
