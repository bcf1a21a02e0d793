"""Vectors that know nothing, and the angle between two that do."""

from __future__ import annotations

import math

import pytest
import torch

from whet.weights.controls import cosine, random_like, shuffled
from whet.weights.delta import Dense, LowRank, WeightDelta


def delta(**parts: torch.Tensor) -> WeightDelta:
    return WeightDelta.of({n: Dense(t) for n, t in parts.items()}, {n: tuple(t.shape) for n, t in parts.items()})


DRAW = torch.Generator().manual_seed(3)
OWN = delta(matrix=torch.randn(6, 4, generator=DRAW), norm=torch.randn(5, generator=DRAW), still=torch.zeros(2, 2))


def test_a_random_one_has_the_norm_of_each_tensor() -> None:
    other = random_like(OWN, 1)
    assert other.shapes == OWN.shapes
    for name in OWN:
        assert float(other.dense(name).norm()) == pytest.approx(float(OWN.dense(name).norm()), rel=1e-6)
    assert abs(cosine(OWN, other)) < 0.5 and other.norm() == pytest.approx(OWN.norm(), rel=1e-6)
    assert torch.equal(other.dense("matrix"), other.dense("matrix")), "it is lazy, and the same each time"
    assert not torch.equal(other.dense("matrix"), random_like(OWN, 2).dense("matrix"))


def test_a_shuffled_one_has_the_same_numbers_and_spectrum() -> None:
    other = shuffled(OWN, 1)
    for name in OWN:
        assert torch.equal(other.dense(name).flatten().sort().values, OWN.dense(name).flatten().sort().values)
    assert not torch.equal(other.dense("matrix"), OWN.dense("matrix"))
    torch.testing.assert_close(torch.linalg.svdvals(other.dense("matrix")), torch.linalg.svdvals(OWN.dense("matrix")))


def test_a_low_rank_difference_has_controls_too() -> None:
    own = WeightDelta.of({"w": LowRank(torch.ones(3, 1), torch.ones(1, 2))}, {"w": (3, 2)})
    assert float(random_like(own, 0).dense("w").norm()) == pytest.approx(math.sqrt(6), rel=1e-6)


def test_the_cosine_by_hand() -> None:
    """[3, 4] and [4, 3] with another tensor that only one of them changes: 24 / (5 * 13)."""
    a, b = delta(w=torch.tensor([3.0, 4.0])), delta(w=torch.tensor([4.0, 3.0]), more=torch.tensor([12.0]))
    assert cosine(a, b) == pytest.approx(24 / 65)
    assert cosine(a, -1 * a) == pytest.approx(-1.0) and math.isnan(cosine(a, 0.0 * a))
