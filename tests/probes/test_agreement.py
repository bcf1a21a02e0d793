"""Whether runs changed the same weights, on masks whose overlap is known; and sketches of large masks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from whet.errors import WhetError
from whet.probes.agreement import (
    alike,
    by_chance,
    consensus,
    jaccard,
    jaccard_of,
    profiles,
    sketch,
    sketched_jaccard,
)


def model(weight: Tensor) -> dict[str, Tensor]:
    return {"layers.0.q_proj.weight": weight}


def rows(first: int, last: int) -> Tensor:
    """Ones of which some rows have been changed."""
    weight = torch.ones(10, 10)
    weight[first:last] += 1
    return weight


def test_jaccard_and_chance() -> None:
    assert by_chance(0.5, 0.5) == pytest.approx(1 / 3) and by_chance(0, 0) == 0
    assert by_chance(0.2, 0.2) == pytest.approx(1 / 9)
    before = torch.ones(10, 10)
    assert jaccard(model(before), [model(rows(0, 5)), model(rows(0, 5))]) == (1.0, pytest.approx(1 / 3))
    assert jaccard(model(before), [model(rows(0, 5)), model(rows(3, 8))])[0] == pytest.approx(2 / 8)
    three = jaccard(model(before), [model(rows(0, 5)), model(rows(3, 8)), model(rows(0, 5))])
    assert three[0] == pytest.approx((2 / 8 + 1 + 2 / 8) / 3), "the mean over pairs"
    with pytest.raises(WhetError, match="needs two"):
        jaccard(model(before), [model(before)])
    with pytest.raises(WhetError, match="no run has changed anything"):
        jaccard(model(before), [model(before), model(before)])


def test_jaccard_of_each_matrix_and_of_runs_with_starts_of_their_own() -> None:
    before = {"layers.0.q_proj.weight": torch.ones(4, 4), "layers.1.o_proj.weight": torch.ones(4, 4)}
    other = {n: 3 * w for n, w in before.items()}
    half = torch.tensor([[1.0], [1.0], [0.0], [0.0]])
    run = {n: w + half for n, w in before.items()}
    off = {"layers.0.q_proj.weight": other["layers.0.q_proj.weight"] + half,
           "layers.1.o_proj.weight": other["layers.1.o_proj.weight"] + half.flip(0)}  # fmt: skip
    found = alike([(before, run), (other, off)])
    assert [(p.kind, p.layer, p.jaccard) for p in found] == [("q_proj", 0, 1.0), ("o_proj", 1, 0.0)]
    assert all(p.by_chance == pytest.approx(1 / 3) for p in found)


def test_consensus_and_profiles() -> None:
    ((name, found),) = consensus(model(torch.ones(10, 10)), [model(rows(0, 4)), model(rows(2, 6))])
    assert name == "layers.0.q_proj.weight" and found[:, 0].tolist() == [0.5, 0.5, 1, 1, 0.5, 0.5, 0, 0, 0, 0]
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0]]).bool()
    plain = profiles(mask, window=1)
    assert plain[0].tolist() == [1.0, 0.0, 0.25] and plain[1].tolist() == pytest.approx([2 / 3, 1 / 3, 1 / 3, 1 / 3])
    smooth = profiles(mask)
    assert smooth[0].tolist() == pytest.approx([0.5, 1.25 / 3, 0.125]) and smooth[1].shape == (4,)


def test_sketches_estimate_the_jaccard_index_matrix_by_matrix() -> None:
    draw = torch.Generator().manual_seed(0)
    shape = (100, 200)
    a = {f"m{i}": torch.rand(shape, generator=draw) < 0.3 for i in range(20)}
    b = {name: mask ^ (torch.rand(shape, generator=draw) < 0.1) for name, mask in a.items()}
    exact = [jaccard_of(a[name], b[name]) for name in a]
    found = sketched_jaccard(sketch(a), sketch(b))
    for i in (0, 1):
        assert found[i] == pytest.approx(sum(e[i] for e in exact if e) / len(exact), abs=0.02)
    assert sketched_jaccard(sketch(a), sketch(a))[0] == 1.0
    assert len(sketch({"m": a["m0"]}, 256)) == 64 and sketch(a) == sketch(dict(reversed(a.items())))
    independent = {name: torch.rand(shape, generator=draw) < 0.3 for name in a}
    now, chance = sketched_jaccard(sketch(a), sketch(independent))
    assert now == pytest.approx(chance, abs=0.02)
    with pytest.raises(WhetError, match="two kinds of models"):
        sketched_jaccard(sketch(a), sketch({"m": a["m0"]}))
    none = sketch({"m": torch.zeros(shape).bool()})
    with pytest.raises(WhetError, match="no run has changed anything"):
        sketched_jaccard(none, none)
