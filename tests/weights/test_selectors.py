"""What is chosen: scores against numbers, sizes, halves, and combinations."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from tiny import KINDS, MORE_KINDS, tiny_model
from whet.errors import WhetError
from whet.weights.halves import Half, units
from whet.weights.selectors import (
    Facts,
    Named,
    Rule,
    Top,
    both,
    chance,
    complement,
    counts,
    either,
    everything,
    known,
    low_rank_magnitude,
    magnitude,
    matrices,
    movement,
    top_mask,
    without_norms,
)

PINNED = torch.tensor([[3.0, 3, 0], [3, 3, 0], [0, 0, 4]])


class Layers(nn.Module):
    """Linear layers with the given weights, `0.weight`, `1.weight` ..."""

    def __init__(self, *weights: Tensor) -> None:
        super().__init__()
        for i, weight in enumerate(weights):
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            layer.weight.data = weight.clone()
            self.add_module(str(i), layer)


def entries(mask: Tensor | bool) -> set[tuple[int, ...]]:
    assert isinstance(mask, Tensor)
    return {tuple(place) for place in mask.nonzero().tolist()}


# -- scores --------------------------------------------------------------------------------------------------------------
def test_principal_entries_are_those_of_the_largest_directions() -> None:
    assert torch.linalg.svdvals(PINNED).tolist() == pytest.approx([6, 4, 0], abs=1e-5)
    model = Layers(PINNED)
    principal = Top(partial(low_rank_magnitude, rank=1), 4 / 9)(model)["0.weight"]
    assert entries(principal) == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert (2, 2) in entries(Top(magnitude, 4 / 9)(model)["0.weight"]), "magnitude takes the 4 first"


def test_full_rank_is_magnitude() -> None:
    weight = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    for rank in (6, 7, 100):
        assert torch.equal(low_rank_magnitude(weight, rank=rank), magnitude(weight))
    assert not torch.allclose(low_rank_magnitude(weight, rank=5), magnitude(weight), atol=1e-3)


def test_principal_entries_do_not_depend_on_scale_or_sign() -> None:
    weight = torch.randn(12, 20, generator=torch.Generator().manual_seed(1))
    select = Top(partial(low_rank_magnitude, rank=3), 0.2)
    first = entries(select(Layers(weight))["0.weight"])
    assert all(entries(select(Layers(c * weight))["0.weight"]) == first for c in (2.0, 0.5, -1.0))


def test_movement_is_chosen_across_the_model() -> None:
    """A per-tensor choice would take one of each."""
    start = {"0.weight": torch.zeros(1, 2), "1.weight": torch.zeros(1, 2)}
    model = Layers(torch.tensor([[5.0, 4.0]]), torch.tensor([[1.0, 0.5]]))
    chosen = Top(movement, count=2)(model, Facts(values=start))
    assert entries(chosen["0.weight"]) == {(0, 0), (0, 1)} and not entries(chosen["1.weight"])
    one = Top(movement, count=2)(
        Layers(torch.tensor([[0.5, -0.1, 0.3, -0.6]])), Facts(values={"0.weight": torch.zeros(1, 4)})
    )
    assert entries(one["0.weight"]) == {(0, 0), (0, 3)}


def test_ties_give_no_entry_more() -> None:
    model = Layers(torch.ones(4, 5), torch.ones(3, 5))
    for select in (Top(magnitude, 0.4), Top(magnitude, count=14), Top(magnitude, 0.4, across="model")):
        assert sum(counts(select(model), model).values()) == 14
    assert int(top_mask(torch.zeros(7), 3).sum()) == 3


def test_across_the_model_holds_the_highest_of_all() -> None:
    weights = [torch.randn(7, 5, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    chosen = Top(magnitude, count=31)(Layers(*weights))
    kept = torch.cat([w.abs()[chosen[f"{i}.weight"]] for i, w in enumerate(weights)])
    best = torch.cat([w.abs().flatten() for w in weights]).topk(31).values
    assert torch.equal(kept.sort().values, best.sort().values)


def test_the_lowest_and_what_calibration_says() -> None:
    model = Layers(PINNED)
    assert (2, 2) not in entries(Top(magnitude, 8 / 9, smallest=True)(model)["0.weight"])
    said = {"0.weight": torch.eye(3)}
    assert entries(Top(known, 3 / 9)(model, Facts(values=said))["0.weight"]) == {(0, 0), (1, 1), (2, 2)}


def test_chance_is_drawn_from_the_seed_and_the_name() -> None:
    model = Layers(torch.zeros(20, 20), torch.zeros(20, 20))
    select = Top(chance, 0.1)
    first, again, other = (select(model, Facts(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(first[n], again[n]) for n in first) and not torch.equal(first["0.weight"], other["0.weight"])
    assert not torch.equal(first["0.weight"], first["1.weight"])


# -- sizes ---------------------------------------------------------------------------------------------------------------
def test_sizes() -> None:
    model = Layers(torch.randn(30, 20), torch.randn(3, 4))
    assert counts(Top(magnitude, budget_rank=2)(model), model) == {"0.weight": 100, "1.weight": 12}, "(m + n) R, or all"
    assert counts(Top(magnitude, 0.1)(model), model) == {"0.weight": 60, "1.weight": 1}
    assert counts({"0.weight": True, "1.weight": False}, model) == {"0.weight": 600, "1.weight": 0}


@pytest.mark.parametrize("kind", [*KINDS, *MORE_KINDS])
def test_matrices_are_the_linear_layers_but_the_head(kind: str) -> None:
    model = tiny_model(kind)
    found = matrices(model)
    names = {
        n
        for n, p in model.named_parameters()
        if p.dim() == 2 and "embed" not in n and "wte" not in n and "wpe" not in n
    }
    assert set(found) == {n for n in names if "lm_head" not in n}
    assert all("norm" not in n and "ln_" not in n for n in without_norms(model)) and len(everything(model)) > len(found)


SELECTORS = {
    "top": Top(magnitude, 0.05),
    "rank": Top(magnitude, budget_rank=2),
    "across": Top(magnitude, 0.05, across="model"),
    "named": Named("down_proj"),
    "rule": Rule(matrices),
    "half": Half(),
    "half layer": Half(grain="layer"),
    "half model": Half(grain="model", ends=False),
    "complement": complement(Top(magnitude, 0.3)),
}


@pytest.mark.parametrize("name", SELECTORS)
def test_sizes_are_known_from_the_shapes(name: str) -> None:
    with torch.device("meta"):
        shapes = tiny_model("llama")
    select, model = SELECTORS[name], tiny_model("llama")
    chosen, parameters = select(model, Facts(3)), dict(model.named_parameters())
    cost = select.cost(shapes, 3)
    assert cost.moving == sum(counts(chosen, model).values())
    assert cost.gradients == sum(parameters[n].numel() for n in chosen)


def test_sizes_that_depend_on_values_are_bounded() -> None:
    model = tiny_model("llama")
    high, low = Top(magnitude, 0.3), Top(magnitude, 0.4, smallest=True)
    for select in (either(low, complement(high)), both(low, complement(high))):
        assert sum(counts(select(model), model).values()) <= select.cost(model).moving


# -- combinations --------------------------------------------------------------------------------------------------------
def test_a_complement_is_the_rest() -> None:
    model = tiny_model("qwen3")
    high, low = Top(partial(low_rank_magnitude, rank=4), 0.5), Top(magnitude, 0.4, smallest=True)
    principal, rest, small = high(model), complement(high)(model), low(model)
    for name, mask in principal.items():
        assert not bool((mask & rest[name]).any()) and bool((mask | rest[name]).all())
    safe = either(low, complement(high))(model)
    assert all(bool((safe[n] >= small[n]).all()) for n in small)
    assert both(high, complement(high))(model) == {}


# -- halves --------------------------------------------------------------------------------------------------------------
def many_layers(n: int) -> nn.Module:
    with torch.device("meta"):
        return tiny_model("llama", num_hidden_layers=n)


def of_kind(names: dict[str, Tensor | bool], *words: str) -> list[str]:
    return [n for n in names if "layers" in n and any(w in n for w in words)]


def test_half_of_thirty_two_layers() -> None:
    chosen = Half()(many_layers(32))
    assert len(of_kind(chosen, "self_attn")) == 64
    assert len(of_kind(chosen, "norm")) == 32
    assert len(of_kind(chosen, "mlp")) == 48
    per_layer = [len([n for n in of_kind(chosen, "mlp") if f"layers.{i}." in n]) for i in range(32)]
    assert sorted(per_layer) == [1] * 16 + [2] * 16
    for i in range(32):
        own = [n for n in chosen if f"layers.{i}." in n]
        assert sum("self_attn" in n for n in own) == 2 and sum("norm" in n for n in own) == 1
    assert "model.embed_tokens.weight" in chosen and "model.norm.weight" in chosen


def test_an_odd_number_of_layers_is_half_too() -> None:
    for seed in range(3):
        chosen = Half()(many_layers(3), Facts(seed))
        assert len(of_kind(chosen, "mlp")) in (4, 5) and len(of_kind(chosen, "self_attn")) == 6


def test_shares_of_one_and_none() -> None:
    model = tiny_model("qwen2")
    assert set(Half(1.0)(model)) == {n for n, _ in model.named_parameters()}
    assert Half(0.0, ends=False)(model) == {}


def test_halves_are_drawn_from_the_seed() -> None:
    model = many_layers(4)
    assert Half()(model, Facts(1)) == Half()(model, Facts(1)) != Half()(model, Facts(2))


def test_whole_layers_and_any_matrices() -> None:
    model = many_layers(6)
    chosen = Half(grain="layer", ends=False)(model)
    layers = {n.split(".")[2] for n in chosen}
    assert len(layers) == 3 and len(chosen) == 3 * len([n for n, _ in model.named_parameters() if "layers.0." in n])
    assert len(Half(grain="model", ends=False)(model)) == 6 * 9 // 2


@pytest.mark.parametrize("kind", [*KINDS, *MORE_KINDS])
def test_every_architecture_has_the_categories(kind: str) -> None:
    for block in units(tiny_model(kind)):
        assert set(block) == {"attention", "feed-forward", "norm"}, kind
    chosen, model = Half()(tiny_model(kind)), tiny_model(kind)
    for name in chosen:
        if name.endswith(".bias"):
            assert name.removesuffix("bias") + "weight" in chosen, "a bias goes with its matrix"
    assert len(chosen) < len(list(model.parameters()))


# -- refusals ------------------------------------------------------------------------------------------------------------
def test_what_cannot_be_chosen_is_refused() -> None:
    model = tiny_model()
    for arguments in ({}, {"density": 1.5}, {"density": 0.1, "count": 3}, {"budget_rank": -1}):
        with pytest.raises(WhetError, match="say once how many entries"):
            Top(magnitude, **arguments)
    with pytest.raises(WhetError, match="across 'matrix' or 'model'"):
        Top(magnitude, 0.1, across="tensor")
    with pytest.raises(WhetError, match="no parameter's name is found by 'donw_proj'; they read like model"):
        Named("donw_proj")(model)
    with pytest.raises(WhetError, match="no regular expression"):
        Named("(")
    with pytest.raises(WhetError, match="has no tensor to choose"):
        Top(magnitude, 0.1)(nn.LayerNorm(3))
    with pytest.raises(WhetError, match="a share is from 0 to 1"):
        Half(1.1)
    with pytest.raises(WhetError, match="grain is one of category, layer, model"):
        Half(grain="head")
    names = Named(r"layers[.]1[.]")(many_layers(12))
    assert all(".layers.1." in n for n in names), "a layer's name is not the beginning of another's"
