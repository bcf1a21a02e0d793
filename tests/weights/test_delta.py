"""Arithmetic on finished weights: numbers, identities, name maps, PEFT folders, and memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from tiny import tiny_model, tiny_policy
from whet.errors import WhetError
from whet.models import base
from whet.models.policy import Policy
from whet.weights import get_weights
from whet.weights.adapters import write_adapter
from whet.weights.delta import Absolute, Dense, LowRank, Sparse, WeightDelta, apply
from whet.weights.files import Shards, Stored, match, same_tokens
from whet.weights.selectors import Top, chance
from whet.weights.snapshot import Snapshots

PROBE = torch.arange(2, 40)[None]


def logits(policy: Policy) -> Tensor:
    with torch.no_grad():
        return policy.logits(PROBE)


def vector(**tensors: list[float]) -> dict[str, Tensor]:
    return {n: torch.tensor(v) for n, v in tensors.items()}


def noise(model: Any, seed: int, scale: float = 0.01) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {n: p.detach() + scale * torch.randn(p.shape, generator=draw) for n, p in model.named_parameters()}


def weights(model: Any) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


# -- numbers -------------------------------------------------------------------------------------------------------------
def test_a_masked_reasoning_vector() -> None:
    """target [1,2], after RL [3,5], before it [2,1], half of it, of the first entry."""
    delta = WeightDelta.between(vector(w=[3, 5.0]), vector(w=[2, 1.0]))
    chosen = delta.masked({"w": torch.tensor([True, False])})
    assert dict(apply(vector(w=[1, 2.0]), 0.5 * chosen))["w"].tolist() == [1.5, 2.0]
    assert delta.masked({}).shapes == {} and delta.masked({"w": True}).dense("w").tolist() == [1, 4]


def test_products_of_factors_are_subtracted_not_factors() -> None:
    """B1 = A1 = 1 and B2 = A2 = 2 differ by 3; their factors' difference would give 1."""
    one, two = (
        WeightDelta.of({"w": LowRank(torch.full((1, 1), x), torch.full((1, 1), x))}, {"w": (1, 1)}) for x in (1.0, 2.0)
    )
    assert (two - one).dense("w").item() == 3.0
    assert isinstance((two - one)["w"], LowRank)


def test_a_factor_of_zero_is_the_target_to_the_bit() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny_model(dtype=dtype)
        delta = WeightDelta.between(noise(tiny_model(), 1), weights(tiny_model()))
        assert all(torch.equal(t, dict(model.named_parameters())[n]) for n, t in apply(weights(model), 0.0 * delta))


def test_a_difference_added_to_its_start_is_its_end() -> None:
    model = tiny_model()
    after = noise(model, 1)
    for name, tensor in apply(weights(model), WeightDelta.between(after, weights(model))):
        torch.testing.assert_close(tensor, after[name], rtol=1e-6, atol=1e-7)


def test_added_and_subtracted_returns_the_weights() -> None:
    model = tiny_model()
    start = weights(model)
    delta = WeightDelta.between(noise(model, 1), start)
    there = dict(apply(start, delta))
    back = dict(apply(there, -delta))
    for name, tensor in back.items():
        assert not torch.equal(there[name], start[name])
        torch.testing.assert_close(tensor, start[name], rtol=2e-7, atol=2e-7)
    nothing = delta - delta
    assert all(torch.equal(t, start[n]) for n, t in apply(start, nothing))


def test_two_sparse_differences_commute() -> None:
    model = tiny_model()
    start = weights(model)
    found = []
    for seed in (1, 2):
        mask = Top(chance, 0.2, where=lambda m: dict(m.named_parameters()))
        from whet.weights.selectors import Facts

        found.append(WeightDelta.between(noise(model, seed), start).masked(mask(model, Facts(seed))))
    one, other = dict(apply(start, found[0] + found[1])), dict(apply(start, found[1] + found[0]))
    assert all(torch.equal(one[n], other[n]) for n in start)
    both = found[0] + found[1]
    for name in both:
        part = both[name]
        assert isinstance(part, Sparse) and bool((part.places[1:] > part.places[:-1]).all())
        torch.testing.assert_close(both.dense(name), found[0].dense(name) + found[1].dense(name))


def test_arithmetic_is_in_fp32_and_cast_once() -> None:
    """Two steps of a third of an ulp are lost one by one in bf16, and are not as one."""
    target = {"w": torch.ones(1, dtype=torch.bfloat16)}
    step = WeightDelta.of({"w": Dense(torch.tensor([0.003]))}, {"w": (1,)})
    assert dict(apply(target, step))["w"].item() == 1.0
    assert dict(apply(target, step + step))["w"].item() > 1.0


@pytest.mark.parametrize("pair", ["dense low-rank", "sparse low-rank", "dense sparse"])
def test_parts_of_all_kinds_add_up(pair: str) -> None:
    draw = torch.Generator().manual_seed(0)
    parts = {
        "dense": Dense(torch.randn(4, 6, generator=draw)),
        "sparse": Sparse(torch.tensor([1, 5, 20]), torch.tensor([1.0, 2.0, -3.0])),
        "low-rank": LowRank(torch.randn(4, 2, generator=draw), torch.randn(2, 6, generator=draw)),
    }
    a, b = (WeightDelta.of({"w": parts[name]}, {"w": (4, 6)}) for name in pair.split())
    torch.testing.assert_close((a - 2 * b).dense("w"), a.dense("w") - 2 * b.dense("w"))
    assert a.norm() == pytest.approx(float(a.dense("w").norm()), rel=1e-6)


def test_small_entries_and_low_ranks() -> None:
    delta = WeightDelta.of({"w": Dense(torch.tensor([[1e-8, 2.0], [0.0, -1.0]]))}, {"w": (2, 2)})
    part = delta.sparse(1e-7)["w"]
    assert isinstance(part, Sparse) and part.places.tolist() == [1, 3] and part.values.tolist() == [2.0, -1.0]
    exact = WeightDelta.of({"w": Dense(torch.outer(torch.tensor([1.0, 2]), torch.tensor([3.0, 4, 5])))}, {"w": (2, 3)})
    torch.testing.assert_close(exact.low_rank(1).dense("w"), exact.dense("w"))


def test_heads_are_absolute() -> None:
    before, after = vector(w=[1.0]), vector(w=[2.0], head=[5.0, 6.0])
    delta = WeightDelta.between(after, before, heads=True)
    assert isinstance(delta["head"], Absolute)
    assert {n: t.tolist() for n, t in apply(vector(w=[10.0]), delta)} == {"w": [11.0], "head": [5.0, 6.0]}
    assert {n: t.tolist() for n, t in apply(vector(w=[10.0], head=[0.0, 0.0]), delta)} == {
        "w": [11.0],
        "head": [5.0, 6.0],
    }
    assert list(delta.relative()) == ["w"] and dict(apply(vector(w=[10.0]), 2 * delta.relative()))["w"].item() == 12
    for wrong in (lambda: (2 * delta)["head"], lambda: (delta + delta)["head"], lambda: delta.dense("head")):
        with pytest.raises(WhetError, match="absolute value"):
            wrong()


def test_integers_are_copied() -> None:
    before = {"w": torch.ones(2), "steps": torch.tensor([3])}
    after = {"w": torch.ones(2) * 2, "steps": torch.tensor([7])}
    delta = WeightDelta.between(after, before)
    assert list(delta) == ["w"] and dict(apply(before, delta))["steps"].item() == 3


# -- names ---------------------------------------------------------------------------------------------------------------
def test_one_name_map() -> None:
    plain = {"model.layers.0.q.weight": (2, 2), "model.norm.weight": (2,)}
    assert match(plain, plain).whole
    for theirs in (
        "base_model.model.model.{}",
        "module.model.{}",
        "_orig_mod.model.{}",
        "model.language_model.{}",
        "{}",
    ):
        other = {theirs.format(n.removeprefix("model.")): s for n, s in plain.items()}
        assert match(plain, other).pairs == dict(zip(plain, other, strict=True)) and match(other, plain).whole, theirs
    wrapped = {"model.layers.0.q.base_layer.weight": (2, 2), "model.norm.weight": (2,)}
    assert match(plain, wrapped).whole
    vision = {f"model.language_model.{n.removeprefix('model.')}": s for n, s in plain.items()} | {
        "model.visual.q.weight": (3, 3)
    }
    found = match(plain, vision)
    assert len(found.pairs) == 2 and found.theirs == ["model.visual.q.weight"]
    one, other = ({n: tuple(p.shape) for n, p in tiny_model(kind).named_parameters()} for kind in ("llama", "gpt2"))
    assert not match(one, other).pairs, "no head stands for an embedding by accident"


@pytest.mark.parametrize(
    ("other", "message"),
    [({"x": [1.0]}, r"nothing in 'the model' matches 'the model': only the first has w"),
     ({"w": [1.0, 2.0], "v": [1.0]}, r"w is \[1\] in one and \[2\] in the other"),
     ({"w": [1.0]}, "only the first has v"),
     ({"w": [1.0], "v": [1.0], "qkv_proj": [2.0]}, "only the second has qkv_proj; one of them has fused projections")],
)  # fmt: skip
def test_models_of_another_kind_are_refused(other: dict[str, list[float]], message: str) -> None:
    with pytest.raises(WhetError, match=message):
        WeightDelta.between(vector(**other), vector(w=[1.0], v=[1.0]))


def test_a_difference_of_another_model_is_not_applied() -> None:
    delta = WeightDelta.between(noise(tiny_model("llama"), 1), weights(tiny_model("llama")))
    with pytest.raises(WhetError, match="nothing in 'the delta' matches"):
        list(apply(weights(tiny_model("gpt2")), delta))
    with pytest.raises(WhetError, match=r"only the first has model\.layers\.1"):
        delta.add_to(tiny_policy("llama", num_hidden_layers=1))
    with pytest.raises(WhetError, match=r"is \[32, 64\] in one and"):
        delta.add_to(tiny_policy("llama", intermediate_size=48))
    with pytest.raises(WhetError, match="in one delta and"):
        WeightDelta.of({"w": Dense(torch.ones(2))}, {"w": (2,)}) + WeightDelta.of(
            {"w": Dense(torch.ones(3))}, {"w": (3,)}
        )


def test_tied_weights_change_once(tmp_path: Path) -> None:
    policy = tiny_policy("qwen3", tie_word_embeddings=True)
    policy.save(tmp_path)
    stored = Stored(tmp_path)
    assert "lm_head.weight" not in stored
    delta = WeightDelta.between(noise(policy.model, 1), stored)
    before = logits(policy)
    delta.add_to(policy)
    (-delta).add_to(policy)
    torch.testing.assert_close(logits(policy), before, rtol=1e-4, atol=1e-4)
    assert policy.model.lm_head.weight is policy.model.model.embed_tokens.weight


# -- disk ----------------------------------------------------------------------------------------------------------------
def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    parts = {"a": Dense(torch.randn(3, 4)), "b": Sparse(torch.tensor([0, 7]), torch.tensor([1.0, 2.0])),
             "c": LowRank(torch.randn(3, 1), torch.randn(1, 4)), "d": Absolute(torch.randn(5))}  # fmt: skip
    delta = WeightDelta.of(parts, {"a": (3, 4), "b": (2, 4), "c": (3, 4), "d": (5,)})
    delta.save(tmp_path)
    loaded = WeightDelta.load(tmp_path)
    assert loaded.shapes == delta.shapes
    for name, part in parts.items():
        assert type(loaded[name]) is type(part)
        assert all(torch.equal(a, b) for a, b in zip(vars(loaded[name]).values(), vars(part).values(), strict=True))


def test_models_are_written_in_shards_that_plain_transformers_loads(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.config.save_pretrained(tmp_path)
    after = noise(model, 1)
    shards = Shards(tmp_path, limit=20_000)
    for name, tensor in apply(weights(model), WeightDelta.between(after, weights(model))):
        shards.add(name, tensor)
    shards.close()
    assert shards.files > 3 and (tmp_path / "model.safetensors.index.json").exists()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    for name, parameter in loaded.named_parameters():
        torch.testing.assert_close(parameter.detach(), after[name], rtol=1e-6, atol=1e-7)
    assert set(Stored(tmp_path)) == set(after)


def test_memory_stays_near_a_shard(tmp_path: Path) -> None:
    """Of 32 tensors of 256 KiB each, never more than a shard of two and what one tensor's sum takes are held."""
    size, number = 1 << 16, 32
    for name in ("before", "after", "target"):
        save_file({f"t{i:02d}": torch.randn(size) for i in range(number)}, tmp_path / f"{name}.safetensors")
    before, after, target = (Stored(tmp_path / f"{n}.safetensors") for n in ("before", "after", "target"))
    alive: list[int] = []
    out = tmp_path / "out"
    out.mkdir()
    shards = Shards(out, limit=2 * 4 * size)
    for name, tensor in apply(target, 0.5 * WeightDelta.between(after, before) + WeightDelta.between(target, before)):
        shards.add(name, tensor)
        alive.append(len(shards.held))
    shards.close()
    assert max(alive) <= 2 and shards.files == number // 2
    expected = target["t05"] + 0.5 * (after["t05"] - before["t05"]) + (target["t05"] - before["t05"])
    torch.testing.assert_close(Stored(out)["t05"], expected)


@pytest.mark.parametrize("kind", ["qwen3", "gpt2"])
@pytest.mark.parametrize("spec", ["lora:rank=3,alpha=5", "rslora:rank=4"])
def test_adapters_that_peft_wrote_are_low_rank_differences(spec: str, kind: str, tmp_path: Path) -> None:
    tiny_policy(kind).save(tmp_path / "base")
    policy = base.load(tmp_path / "base")
    get_weights(spec).attach(policy, 0)
    with torch.no_grad():
        for p in policy.trainable_parameters().values():
            p += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(3))
    policy.save(tmp_path / "adapter")
    delta = WeightDelta.load(tmp_path / "adapter")
    assert len(delta) == len(policy.trainable_parameters()) // 2 and all(isinstance(delta[n], LowRank) for n in delta)
    plain = tiny_policy(kind)
    delta.add_to(plain)
    assert not torch.allclose(logits(plain), logits(tiny_policy(kind)), atol=1e-2)
    torch.testing.assert_close(logits(plain), logits(policy), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["qwen3", "gpt2"])
def test_low_rank_differences_are_written_for_plain_peft(kind: str, tmp_path: Path) -> None:
    model = tiny_model(kind)
    shapes = {
        n: tuple(p.shape)
        for n, p in model.named_parameters()
        if n.endswith(("proj.weight", "c_attn.weight", "c_fc.weight"))
    }
    draw = torch.Generator().manual_seed(0)
    ranks = dict.fromkeys(shapes, 3) | {next(iter(shapes)): 2}
    parts = {n: LowRank(0.1 * torch.randn(s[0], ranks[n], generator=draw), torch.randn(ranks[n], s[1], generator=draw))
             for n, s in shapes.items()}  # fmt: skip
    delta = WeightDelta.of(parts, shapes)
    write_adapter(delta, tmp_path, "nowhere", fan_in_fan_out=kind == "gpt2")
    live = PeftModel.from_pretrained(tiny_model(kind), str(tmp_path))
    plain = tiny_policy(kind)
    delta.add_to(plain)
    with torch.no_grad():
        torch.testing.assert_close(live(PROBE).logits, logits(plain), rtol=1e-4, atol=1e-4)
    again = WeightDelta.load(tmp_path)
    assert again.shapes == delta.shapes
    torch.testing.assert_close(again.dense(next(iter(shapes))), delta.dense(next(iter(shapes))))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"use_dora": True}, "DoRA"), ({"init_lora_weights": "pissa_niter_4"}, "began as pissa_niter_4"), ({"peft_type": "IA3"}, "IA3"),
     ({"bias": "all"}, "train biases too")],
)  # fmt: skip
def test_adapters_that_are_not_additive_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    delta = WeightDelta.of({"w.weight": LowRank(torch.ones(2, 1), torch.ones(1, 2))}, {"w.weight": (2, 2)})
    write_adapter(delta, tmp_path, "nowhere")
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(WhetError, match=message):
        WeightDelta.load(tmp_path)


def test_what_is_no_difference_is_refused(tmp_path: Path) -> None:
    tiny_policy().save(tmp_path / "model")
    with pytest.raises(WhetError, match="is a model and no delta; `whet merge subtract"):
        WeightDelta.load(tmp_path / "model")
    with pytest.raises(WhetError, match="no such folder or file"):
        Stored(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(WhetError, match="holds no weights in safetensors"):
        Stored(tmp_path / "empty")
    (tmp_path / "broken.safetensors").write_bytes(b"12345678not json")
    with pytest.raises(WhetError, match="cannot be read"):
        Stored(tmp_path / "broken.safetensors")
    with pytest.raises(WhetError, match="no low-rank difference"):
        write_adapter(WeightDelta.of({"w": Dense(torch.ones(2, 2))}, {"w": (2, 2)}), tmp_path / "x", "nowhere")


def test_tokenizers_are_compared(tmp_path: Path) -> None:
    for name, style in (("a", "plain"), ("b", "plain"), ("c", "tags")):
        tiny_policy(style=style).save(tmp_path / name)
    assert same_tokens(tmp_path / "a", tmp_path / "b") is True and same_tokens(tmp_path / "a", tmp_path / "c") is False
    assert same_tokens(tmp_path / "a", tmp_path) is None


# -- snapshots -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("disk", [False, True])
def test_snapshots_rewind_exactly(disk: bool, tmp_path: Path) -> None:
    policy = tiny_policy()
    kept = Snapshots(tmp_path / "kept" if disk else None)
    kept.take("start", policy)
    before = weights(policy.model)
    changed = WeightDelta.between(noise(policy.model, 1), before)
    changed.add_to(policy)
    moved = kept.since("start", policy)
    assert moved.norm() == pytest.approx(changed.norm(), rel=1e-5)
    assert list(kept) == ["start"] and len(kept) == 1 and "start" in kept and "end" not in kept
    kept.rewind("start", policy)
    assert all(torch.equal(p, before[n]) for n, p in policy.model.named_parameters())
    kept.take("start", policy, moving=True)
    kept.drop("start")
    assert not list(kept)
    with pytest.raises(WhetError, match="unknown snapshot 'start'"):
        kept["start"]
    with pytest.raises(WhetError, match="name is letters"):
        kept.take("../x", policy)
