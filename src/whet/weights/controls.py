"""What a difference of weights is compared with: others of the same size that know nothing.

Both are differences of their own, drawn from the seed and the tensor's name, and lazy as every one is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from whet.seeds import seed_for
from whet.weights.delta import Dense, Part, WeightDelta


def random_like(delta: WeightDelta, seed: int) -> WeightDelta:
    """Gaussian numbers, of the same L2 norm tensor by tensor."""

    def read(name: str) -> Part:
        values = delta.dense(name)
        drawn = torch.randn(values.shape, generator=_draw(seed, name)).to(values)
        return Dense(drawn * (values.norm() / drawn.norm()))

    return WeightDelta(delta.shapes, read)


def shuffled(delta: WeightDelta, seed: int) -> WeightDelta:
    """The same numbers with rows and columns of each tensor in another order: equal norm and singular values, in a basis that
    is not the model's."""

    def read(name: str) -> Part:
        values, draw = delta.dense(name), _draw(seed, name)
        for axis, size in enumerate(values.shape):
            values = values.index_select(axis, torch.randperm(size, generator=draw).to(values.device))
        return Dense(values)

    return WeightDelta(delta.shapes, read)


def cosine(a: WeightDelta, b: WeightDelta) -> float:
    """Of two differences as vectors of all entries; what only one of them changes is 0 in the other. NaN where one is 0."""
    both = sum(_dot(a.dense(name), b.dense(name)) for name in a if name in b.shapes)
    size = a.norm() * b.norm()
    return both / size if size else float("nan")


def _dot(a: Tensor, b: Tensor) -> float:
    return float((a.double() * b.double()).sum())


def _draw(seed: int, name: str) -> torch.Generator:
    return torch.Generator().manual_seed(seed_for(seed, "control", name))
