"""Which parameters move: full, LoRA and its relatives, specs, and what becomes of loaded adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer

from tiny import KINDS, logits, stir, tiny_policy
from trained import trained_policy
from whet.errors import WhetError
from whet.models import base
from whet.models.policy import Policy
from whet.weights import Lora, Weights, get_weights

LINEAR = {"llama": 7, "qwen2": 7, "qwen3": 7, "mistral": 7, "gemma2": 7, "gpt2": 4}  # layers in a block


@pytest.mark.parametrize("kind", KINDS)
def test_full_weights_move_everything(kind: str) -> None:
    policy = tiny_policy(kind)
    get_weights("full").attach(policy, 0)
    assert set(policy.trainable_parameters()) == {n for n, _ in policy.model.named_parameters()}


@pytest.mark.parametrize("variant", ["lora", "rslora", "dora"])
@pytest.mark.parametrize("kind", KINDS)
def test_adapters_are_on_every_linear_layer_but_the_head(kind: str, variant: str) -> None:
    policy, plain = tiny_policy(kind), tiny_policy(kind)
    get_weights(f"{variant}:rank=3").attach(policy, 0)
    moving = policy.trainable_parameters()
    assert all("lora_" in name for name in moving) and not any("lm_head" in name for name in moving)
    assert sum("lora_A" in name for name in moving) == 2 * LINEAR[kind]
    assert {p.shape[0] for name, p in moving.items() if "lora_A" in name} == {3}
    assert torch.allclose(logits(policy), logits(plain), atol=1e-5), "new adapters change nothing yet"
    stir(policy)
    assert not torch.allclose(logits(policy), logits(plain), atol=1e-3)
    with policy.adapters_off():
        assert torch.equal(logits(policy), logits(plain)), "the base is still there"


def test_the_scale_of_an_update() -> None:
    """alpha / r, alpha / sqrt(r) for rslora; alpha is 2 r unless it is given."""
    for spec, scale in (("lora:rank=4", 2.0), ("lora:rank=4,alpha=4", 1.0), ("rslora:rank=4", 4.0)):
        policy = tiny_policy()
        get_weights(spec).attach(policy, 0)
        found = {m.scaling["default"] for m in policy.model.modules() if isinstance(m, LoraLayer)}
        assert found == {scale}


def test_adapters_are_drawn_from_the_runs_seed() -> None:
    def drawn(seed: int) -> list[torch.Tensor]:
        policy = tiny_policy()
        torch.manual_seed(seed + 100)  # whatever was drawn before
        Lora(4).attach(policy, seed)
        return list(policy.trainable_parameters().values())

    assert all(torch.equal(a, b) for a, b in zip(drawn(1), drawn(1), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(drawn(1), drawn(2), strict=True))


def loaded(tmp_path: Path) -> tuple[Policy, torch.Tensor]:
    """A policy from an adapter folder, and its logits."""
    trained_policy().save(tmp_path / "base")
    policy = base.load(tmp_path / "base")
    get_weights("lora:rank=4").attach(policy, 0)
    stir(policy)
    policy.save(tmp_path / "adapter")
    return base.load(tmp_path / "adapter"), logits(policy)


def test_full_weights_merge_loaded_adapters(tmp_path: Path) -> None:
    """A PEFT folder would lose what moves beneath them."""
    policy, before = loaded(tmp_path)
    Weights().attach(policy, 0)
    assert policy.peft is None and torch.allclose(logits(policy), before, atol=1e-4)
    assert set(policy.trainable_parameters()) == set(dict(trained_policy().model.named_parameters()))
    assert policy.shapes.trainable == policy.shapes.body, "all of it is trained, and counted"
    policy.save(tmp_path / "merged")
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    assert torch.allclose(logits(base.load(tmp_path / "merged")), before, atol=1e-4)


def test_loaded_adapters_go_on_and_their_reference_is_not_the_base(tmp_path: Path) -> None:
    policy, before = loaded(tmp_path)
    Lora(4).attach(policy, 0)
    assert torch.equal(logits(policy), before) and not policy.fresh_adapters
    assert all("lora_" in name for name in policy.trainable_parameters())


@pytest.mark.parametrize(
    ("spec", "message"),
    [("lroa", "unknown weights 'lroa': did you mean 'lora'"), ("lora:rank=0", "rank must be at least 1"),
     ("lora:rnak=4", "rnak"), ("lora:rank=four", "four"), ("full:rank=4", "full:rank=4")],
)  # fmt: skip
def test_a_spec_that_makes_no_sense_is_refused(spec: str, message: str) -> None:
    with pytest.raises(WhetError, match=message):
        get_weights(spec)


def test_a_spec_may_be_the_thing_itself() -> None:
    own = Lora(2)
    assert get_weights(own) is own
    made: Any = get_weights("dora:rank=8,alpha=3")
    assert (made.name, made.rank, made.alpha) == ("dora", 8, 3.0)


@pytest.mark.parametrize("spec", ["lora:rank=8", "lora:rank=4,alpha=3", "dora", "rslora:rank=4"])
def test_loaded_adapters_go_on_as_they_are_or_not_at_all(spec: str, tmp_path: Path) -> None:
    policy = tiny_policy("qwen3")
    policy.save(tmp_path / "base")
    policy = base.load(tmp_path / "base")
    get_weights("lora:rank=4").attach(policy, 0)
    policy.save(tmp_path / "adapters")
    get_weights("lora").attach(base.load(tmp_path / "adapters"), 0)  # nothing is asked that they have not
    get_weights("lora:rank=4,alpha=8").attach(base.load(tmp_path / "adapters"), 0)
    with pytest.raises(WhetError, match="lora adapters of rank 4 and alpha 8; use --weights lora"):
        get_weights(spec).attach(base.load(tmp_path / "adapters"), 0)
