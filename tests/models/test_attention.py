"""A model over a layout gives the states of each sequence alone, in every architecture that can."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import nn

from tiny import KINDS, tiny_model, tiny_policy
from whet.models import attention
from whet.models.layout import Layout


def sequences() -> list[list[int]]:
    """Three groups of four, of 12 to 14 tokens in common, longer than the tiny models' windows; one alone; one empty."""
    draw = random.Random(0)

    def some(n: int) -> list[int]:
        return [draw.randrange(2, 300) for _ in range(n)]

    groups = [(some(12 + n), [some(draw.randint(0, 9)) for _ in range(4)]) for n in range(3)]
    return [prompt + answer for prompt, answers in groups for answer in answers] + [some(7), []]


def decoder(model: Any) -> nn.Module:
    return model.base_model


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("how", attention.INNER)
@pytest.mark.parametrize("kind", KINDS)
def test_the_states_are_those_of_each_sequence_alone(kind: str, how: str, share: bool) -> None:
    model = tiny_model(kind)
    if kind == "gemma2" and how == "sdpa":
        assert model.config._attn_implementation == "eager"  # its scores are capped, which sdpa cannot
        return
    model.set_attn_implementation(how)
    with torch.no_grad():
        alone = [decoder(model)(input_ids=torch.tensor([s])).last_hidden_state[0] for s in sequences() if s]
        layout = Layout.of(sequences(), share=share)
        states = attention.forward(model, decoder(model), layout)
        for index, own in enumerate(alone):
            places = torch.arange(len(own))
            found = states[layout.find(torch.full_like(places, index), places)]
            torch.testing.assert_close(found, own, rtol=1e-4, atol=1e-5)
        # and without a layout the model is what it was
        assert torch.equal(alone[1], decoder(model)(input_ids=torch.tensor([sequences()[1]])).last_hidden_state[0])
    assert attention.disagreement(model, decoder(model), 1e-4) is None


@pytest.mark.parametrize("kind", ["qwen3", "mistral"])
def test_one_block_sparse_call_is_the_masked_ones(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU runs on long rows, by FlexAttention's reference on the CPU; mistral sees through a window."""
    model = tiny_model(kind)
    layout, called = Layout.of(sequences()), []
    with torch.no_grad():
        cut = attention.forward(model, decoder(model), layout)
        monkeypatch.setattr(attention, "block_sparse", lambda *_: called.append(1) or True)
        whole = attention.forward(model, decoder(model), layout)
    assert called
    torch.testing.assert_close(whole, cut, rtol=1e-4, atol=1e-5)


def test_block_sparse_is_for_long_rows_on_a_gpu() -> None:
    layout = Layout.of(sequences())
    assert not attention.block_sparse(layout, torch.zeros(1, 2, 16))
    with torch.device("meta"):
        assert not attention.block_sparse(layout, torch.zeros(1, 2, 16))


def test_a_saved_model_knows_nothing_of_it(tmp_path) -> None:
    policy = tiny_policy("llama")
    before = policy.model.config.to_dict()
    assert policy.packs
    assert policy.model.config.to_dict() == before
    policy.save(tmp_path)
    assert "whet_" not in (tmp_path / "config.json").read_text()


def test_a_copy_of_the_policy_packs_too() -> None:
    policy = tiny_policy("qwen3")
    assert policy.packs and policy.frozen().packs
    layout = Layout.of(sequences())
    with torch.no_grad():
        assert torch.equal(policy.frozen().laid_out(layout), policy.laid_out(layout))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: setattr(m.config, "layer_types", ["full_attention", "linear_attention"]), "linear_attention"),
        (lambda m: setattr(m.config, "is_encoder_decoder", True), "not a causal decoder"),
        (lambda m: setattr(m, "_supports_attention_backend", False), "cannot be replaced"),
        (lambda m: setattr(m.config, "_attn_implementation_internal", "flex_attention"), "flex_attention"),
    ],
)
def test_what_cannot_pack_says_why(change, reason: str, caplog) -> None:
    policy = tiny_policy("llama")
    change(policy.model)
    with caplog.at_level("INFO", "whet"):
        assert not policy.packs and not policy.packs
    assert reason in caplog.text and caplog.text.count("plain padding") == 1
    assert policy.layout(sequences()) is None


def test_a_model_that_does_otherwise_with_a_layout_is_found_out(monkeypatch, caplog) -> None:
    """Positions are the commonest thing that an architecture makes of its own accord."""
    policy = tiny_policy("llama")
    rotary: Any = decoder(policy.model).rotary_emb
    monkeypatch.setattr(rotary, "forward", lambda x, position_ids, f=rotary.forward: f(x, torch.arange(position_ids.shape[1])[None]))  # fmt: skip
    with caplog.at_level("INFO", "whet"):
        assert not policy.packs
    assert "its hidden states differ by" in caplog.text
    assert policy.model.config._attn_implementation == "sdpa"

    policy = tiny_policy("gpt2")
    monkeypatch.setattr(policy.decoder.wpe, "forward", lambda ids: 1 / 0)
    assert not policy.packs
