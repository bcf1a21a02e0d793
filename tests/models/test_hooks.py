"""Hooks on blocks: found on every kind of model, inside their context and never outside."""

from __future__ import annotations

import pytest
import torch

from tiny import KINDS, tiny_policy
from whet.errors import WhetError
from whet.models.hooks import blocks, spliced
from whet.models.policy import Policy
from whet.weights import get_weights

IDS = torch.arange(2, 12)[None]


def hooks(policy: Policy) -> int:
    return sum(len(m._forward_hooks) for m in policy.model.modules())


@pytest.mark.parametrize("weights", ["full", "lora"])
@pytest.mark.parametrize("kind", KINDS)
def test_reads_and_replaces_every_block(kind: str, weights: str) -> None:
    policy = tiny_policy(kind)
    get_weights(weights).attach(policy, 0)
    seen: dict[int, torch.Tensor] = {}
    plain = policy.logits(IDS)
    with spliced(policy, {i: lambda h, i=i: seen.__setitem__(i, h) for i in range(2)}):
        assert torch.equal(policy.logits(IDS), plain)
        assert hooks(policy) == 2
    assert set(seen) == {0, 1} and all(h.shape == (1, 10, 32) for h in seen.values())
    assert not torch.equal(seen[0], seen[1])
    for i in range(2):
        with spliced(policy, {i: lambda h: h + torch.linspace(0, 1, 32)}):
            assert not torch.equal(policy.logits(IDS), plain)
        with spliced(policy, {i: lambda h: 1.0 * h}):
            assert torch.equal(policy.logits(IDS), plain)
    assert hooks(policy) == 0
    assert torch.equal(policy.logits(IDS), plain)


def test_hooks_go_when_the_forward_fails() -> None:
    policy = tiny_policy()

    def fail(hidden: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("here")

    with pytest.raises(RuntimeError, match="here"), spliced(policy, {0: lambda h: h, 1: fail}):
        policy.logits(IDS)
    assert hooks(policy) == 0


def test_gradients_pass_through() -> None:
    policy = tiny_policy("gpt2", dtype=torch.float64)
    shift = torch.zeros(32, dtype=torch.float64, requires_grad=True)
    with spliced(policy, {0: lambda h: h + shift}):
        policy.logits(IDS).square().sum().backward()
    assert float(shift.grad.norm()) > 0
    assert all(p.grad is not None for n, p in policy.model.named_parameters() if ".h.0." in n)


@pytest.mark.parametrize("kind", ["qwen3", "gpt2"])
def test_activation_checkpointing_changes_no_gradient(kind: str) -> None:
    """The backward runs a checkpointed block again, when its hook is gone."""
    found = []
    for checkpointing in (False, True):
        policy = tiny_policy(kind)
        if checkpointing:
            policy.model.gradient_checkpointing_enable({"use_reentrant": False})
            policy.model.train()
        with spliced(policy, {0: lambda h: h * (1 + h)}):
            loss = policy.logits(IDS).square().sum()
        loss.backward()
        found.append([p.grad for p in policy.model.parameters()])
        assert all(b.gradient_checkpointing is checkpointing for b in blocks(policy))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_a_model_without_a_list_of_blocks_is_refused() -> None:
    policy = tiny_policy()
    policy.model.config.num_hidden_layers = 7
    with pytest.raises(WhetError, match="blocks of Qwen3ForCausalLM were not found"):
        blocks(policy)
