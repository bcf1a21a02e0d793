"""Where weights moved: every measure against a case whose value is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tiny import tiny_model
from whet.errors import WhetError
from whet.probes.geometry import (
    MEASURES,
    OVERLAPS,
    Cache,
    Factors,
    directions,
    mean,
    measure,
    overlap,
    split,
    sweep,
    unchanged,
)
from whet.weights.selectors import low_rank_magnitude, top_mask


def model(weight: Tensor) -> dict[str, Tensor]:
    return {"layers.0.q_proj.weight": weight}


def numbers(before: Tensor, after: Tensor, **options: float) -> dict[str, float | None]:
    (place,) = measure(model(before), model(after), **options)  # type: ignore[arg-type]
    assert (place.kind, place.layer, place.entries) == ("q_proj", 0, before.numel())
    return place.numbers


def test_unchanged_is_equality_in_bf16() -> None:
    draw = torch.Generator().manual_seed(0)
    before = torch.randn(100_000, generator=draw).to(torch.bfloat16)
    bits = before.view(torch.int16) + torch.randint(-1, 2, before.shape, generator=draw).to(torch.int16)
    after = bits.view(torch.bfloat16)
    assert torch.equal(unchanged(before, after), before == after)
    one = torch.ones(2)
    assert unchanged(one, one + torch.tensor([0.0039, 0.00391])).tolist() == [True, False], "half a step is not stored"
    assert not bool(unchanged(torch.tensor([1e-6]), torch.tensor([2e-6]))), "an absolute tolerance would not see it"
    assert bool(unchanged(torch.zeros(1), torch.zeros(1)))


def test_nothing_moved() -> None:
    weight = torch.randn(12, 20, generator=torch.Generator().manual_seed(0))
    found = numbers(weight, weight.clone())
    assert found["sparsity"] == 1.0 and found["change"] == found["drift"] == 0.0
    assert found["angle_left"] == pytest.approx(0, abs=1e-4) and found["angle_right"] == pytest.approx(0, abs=1e-4)
    for name in ("principal", "low", "spared", "top_principal", "top_low", "drift_by_change", "angle_by_change"):
        assert found[name] is None, "undefined, not 0"
    (place,) = measure(model(weight), model(weight), rank=5)
    assert all(place.cosines[side] == pytest.approx([1.0] * 5, abs=1e-5) for side in ("left", "right"))
    assert mean(measure(model(weight), model(weight)))["principal"] is None


def test_a_rotation_turns_the_left_space_and_keeps_the_spectrum() -> None:
    before = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
    c, s = math.cos(0.3), math.sin(0.3)
    rotation = torch.tensor([[c, 0, -s], [0, 1, 0], [s, 0, c]])
    found = numbers(before, rotation @ before, rank=1)
    assert found["drift"] == pytest.approx(0, abs=1e-6)
    assert math.cos(math.radians(found["angle_left"])) == pytest.approx(0.95534, abs=1e-5)
    assert found["angle_right"] == pytest.approx(0, abs=1e-3)
    assert found["gap"] == pytest.approx(1 / 3) and found["energy"] == pytest.approx(9 / 14)
    change = (rotation @ before - before).norm() / before.norm()
    assert found["angle_by_change"] == pytest.approx(math.degrees(0.3) / 2 / float(change), rel=1e-4)
    (place,) = measure(model(before), model(rotation @ before), rank=2)
    assert place.cosines["left"] == pytest.approx([1.0, math.cos(0.3)], abs=1e-6), "the largest first"


def test_drift() -> None:
    found = numbers(torch.diag(torch.tensor([3.0, 4.0])), torch.diag(torch.tensor([3.0, 5.0])))
    assert found["drift"] == pytest.approx(1 / 5) and found["change"] == pytest.approx(1 / 5)
    assert found["drift_by_change"] == pytest.approx(1.0)


def test_overlap_is_a_share_of_the_changed_entries() -> None:
    """Swapped, it would be 2/4 and not 2/3."""
    mask, changed = torch.tensor([1, 1, 1, 1, 0, 0]).bool(), torch.tensor([1, 1, 0, 0, 1, 0]).bool()
    assert overlap(mask, changed) == pytest.approx(2 / 3)
    assert overlap(mask, mask) == 1.0 and overlap(mask, torch.zeros(6).bool()) is None


def test_random_updates_overlap_as_often_as_chance_has_it() -> None:
    draw = torch.Generator().manual_seed(1)
    before = torch.randn(200, 300, generator=draw)
    mask = torch.rand(before.shape, generator=draw) < 0.1
    found = numbers(before, before + mask * before.abs(), density=0.3)
    assert found["principal"] == pytest.approx(0.3, abs=0.02) and found["low"] == pytest.approx(0.3, abs=0.02)
    principal = top_mask(low_rank_magnitude(before), 18_000)
    assert numbers(before, before + principal * before.abs(), density=0.3)["principal"] == 1.0
    low = top_mask(-before.abs(), 18_000)
    found = numbers(before, before + low * 0.5, density=0.3)
    assert (
        found["low"] == 1.0 == found["top_low"] and found["spared"] == 0.0 and found["sparsity"] == pytest.approx(0.7)
    )


def test_zeros_and_subnormals_are_unchanged_where_they_are_equal() -> None:
    tiny = torch.tensor([0.0, -0.0, 1e-40, 1e-40, 1e-40])
    assert unchanged(tiny, torch.tensor([-0.0, 0.0, 1e-40, 2e-40, 0.0])).tolist() == [True, True, True, False, False]


def test_kept_factors_give_the_same_numbers_and_the_selectors_score() -> None:
    draw = torch.Generator().manual_seed(2)
    before, after = torch.randn(24, 40, generator=draw), torch.randn(24, 40, generator=draw)
    cache: Cache = {}
    first = measure(model(before), model(after), cache=cache)
    assert list(cache) == ["layers.0.q_proj.weight"]
    assert measure(model(before), model(after), cache=cache) == first == measure(model(before), model(after))
    torch.testing.assert_close(Factors.of(before).principal(3), low_rank_magnitude(before, rank=3))
    assert [directions(r, (24, 40)) for r in (0, 5, 1 / 4, 1 / 100, 99)] == [3, 5, 6, 1, 24]


def test_the_sweep_has_what_is_measured_at_each_rank_and_density() -> None:
    draw = torch.Generator().manual_seed(3)
    before = torch.randn(32, 48, generator=draw)
    after = before + 0.01 * torch.randn(32, 48, generator=draw)
    found = sweep(model(before), model(after), ranks=(1 / 8, 10), densities=(0.1, 0.5))
    assert [(row["rank"], row["density"]) for row in found] == [(1 / 8, 0.1), (1 / 8, 0.5), (10, 0.1), (10, 0.5)]
    one = numbers(before, after, rank=10, density=0.5)
    assert all(found[3][name] == pytest.approx(one[name]) for name in OVERLAPS)
    nothing = sweep(model(before), model(before), ranks=(4,), densities=(0.2,))
    assert nothing == [{"rank": 4, "density": 0.2, **dict.fromkeys(OVERLAPS)}]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "phi3", "gpt_neox"])
def test_linear_layers_are_found_and_fused_ones_are_split(kind: str) -> None:
    made = tiny_model(kind)
    weights = {n: p.detach() for n, p in made.named_parameters()}
    moved = {n: p + 0.01 for n, p in weights.items()}
    places = measure(weights, moved, config=made.config.to_dict())
    kinds = {p.kind for p in places}
    assert {"q_proj", "k_proj", "v_proj"} <= kinds and {p.layer for p in places} == {0, 1}
    assert not kinds & {"qkv_proj", "c_attn", "query_key_value", "gate_up_proj", "lm_head", "wte", "embed_out"}
    assert all(set(p.numbers) == set(MEASURES) for p in places)


def test_split_parts_are_those_of_each_head() -> None:
    """GPT-NeoX keeps q, k and v of a head together."""
    weight = torch.arange(2 * 3 * 4)[:, None].expand(-1, 5).float()  # 2 heads of width 4
    parts = split("h.0.query_key_value.weight", weight, {"num_attention_heads": 2})
    assert parts["h.0.q_proj.weight"][:, 0].tolist() == [0, 1, 2, 3, 12, 13, 14, 15]
    assert parts["h.0.v_proj.weight"][:, 0].tolist() == [8, 9, 10, 11, 20, 21, 22, 23]
    grouped = split(
        "h.0.qkv_proj.weight",
        torch.zeros(16, 8),
        {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 8},
    )
    assert [len(w) for w in grouped.values()] == [8, 4, 4]


def test_other_models_are_refused() -> None:
    with pytest.raises(WhetError, match="matches"):
        measure(model(torch.ones(2, 2)), {"x": torch.ones(2, 2)})
    with pytest.raises(WhetError, match="no matrix of a linear layer"):
        measure({"norm.weight": torch.ones(2)}, {"norm.weight": torch.ones(2)})
