"""The same function by other weights: exact for logits, and for what is learnt from them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tiny import tiny_model, tiny_policy
from whet.errors import WhetError
from whet.probes.equivalent import EQUIVALENT, heads_of, permute, rotate
from whet.weights import Lora

IDS = torch.arange(2, 50)[None]
KINDS = (
    "llama",
    "qwen2",
    "qwen3",
    "mistral",
    "gemma2",
    "gemma3",
    "phi3",
    "gpt2",
    "gpt_neox",
)  # grouped but the last two


def logits(model: Any) -> torch.Tensor:
    return model(input_ids=IDS).logits


def made(kind: str, **config: Any) -> Any:
    """With biases that are not 0, where there are any."""
    model = tiny_model(kind, **config)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias"):
                p.copy_(0.2 * torch.randn(p.shape, generator=draw))
    return model


def changed(kind: str, how: str, layers: list[int] | None = None, **config: Any) -> tuple[Any, Any]:
    before, after = made(kind, **config), made(kind, **config)
    EQUIVALENT[how](after, layers, 0)
    return before, after


@pytest.mark.parametrize("how", EQUIVALENT)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_logits_stay_and_weights_do_not(kind: str, how: str) -> None:
    before, after = changed(kind, how)
    assert float((logits(before) - logits(after)).abs().max()) < 1e-5 * max(1.0, float(logits(before).abs().max()))
    moved = {n for n, p in after.named_parameters() if not torch.equal(p, before.get_parameter(n))}
    assert moved and all("attn" in n or "attention" in n for n in moved)


@pytest.mark.parametrize("how", EQUIVALENT)
@pytest.mark.parametrize("config", [{"num_key_value_heads": 4}, {"attention_bias": True}, {"head_dim": 16}])
@torch.no_grad()
def test_with_a_head_of_keys_for_each_query_with_biases_and_with_wide_heads(config: dict[str, Any], how: str) -> None:
    before, after = changed("llama", how, **config)
    assert ("model.layers.0.self_attn.v_proj.bias" in dict(before.named_parameters())) == ("attention_bias" in config)
    assert float((logits(before) - logits(after)).abs().max()) < 1e-5 * float(logits(before).abs().max())


@torch.no_grad()
def test_only_the_chosen_layers_and_only_their_projections() -> None:
    before, after = changed("llama", "rotate", [1])
    moved = {n for n, p in after.named_parameters() if not torch.equal(p, before.get_parameter(n))}
    assert moved == {f"model.layers.1.self_attn.{n}_proj.weight" for n in ("v", "o")}, "rotary queries and keys stay"
    before, after = changed("llama", "permute", [0])
    moved = {n for n, p in after.named_parameters() if not torch.equal(p, before.get_parameter(n))}
    assert moved == {f"model.layers.0.self_attn.{n}_proj.weight" for n in "qkvo"}


def test_what_is_learnt_is_the_same_elsewhere_and_turned_along_where_it_was_edited() -> None:
    """A gradient step on the changed model is the changed gradient step: plain descent cannot tell them apart."""
    for how, act in EQUIVALENT.items():
        before, after = changed("llama", how, [1])
        for model in (before, after):
            logits(model).log_softmax(-1)[..., 7].mean().backward()
        stepped = made("llama")
        with torch.no_grad():
            for name, p in stepped.named_parameters():
                other = after.get_parameter(name).grad
                if "layers.1.self_attn" not in name:
                    torch.testing.assert_close(other, before.get_parameter(name).grad, rtol=1e-3, atol=1e-6)
                p.copy_(before.get_parameter(name).grad)
            act(stepped, [1], 0)
            for name, p in stepped.named_parameters():
                torch.testing.assert_close(p, after.get_parameter(name).grad, rtol=1e-3, atol=1e-6)


def test_rotation_is_one_orthogonal_matrix_and_the_seed_decides() -> None:
    model, same, other = (tiny_model("llama") for _ in range(3))
    was = heads_of(tiny_model("llama"), [0])[0][1].values[0]
    for m, seed in ((model, 3), (same, 3), (other, 4)):
        rotate(m, [0], seed)
    now = heads_of(model, [0])[0][1].values[0]
    torch.testing.assert_close(was.norm(dim=1), now.norm(dim=1)), "lengths stay"
    turn = [torch.linalg.lstsq(a.T, b.T).solution for a, b in zip(was, now, strict=True)]
    torch.testing.assert_close(turn[0], turn[1], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(turn[0] @ turn[0].T, torch.eye(8), rtol=1e-3, atol=1e-4)
    assert torch.equal(now, heads_of(same, [0])[0][1].values[0])
    assert not torch.equal(now, heads_of(other, [0])[0][1].values[0])


def test_what_cannot_be_changed_is_refused() -> None:
    with pytest.raises(WhetError, match="one head of keys"):
        permute(tiny_model("llama", num_key_value_heads=1))
    with pytest.raises(WhetError, match="has 0 to 1"):
        rotate(tiny_model("llama"), [2])
    policy = tiny_policy("llama")
    Lora(2).attach(policy, 0)
    with pytest.raises(WhetError, match="adapters are merged first"):
        rotate(policy.model)
