"""Where in weight space training moved (2511.08567 sections 2 to 5, appendices C to E).

For each weight matrix W0 before and W1 after, both as they would be stored in bf16 where that is said:

    unchanged    |w1 - w0| <= 1e-3 max(|w0|, |w1|) in bf16: for normal numbers the same as equal to the bit
    sparsity     share of unchanged entries
    drift        ||sigma(W1) - sigma(W0)|| / ||sigma(W0)||                      sigma: singular values
    rotation     the angles between the spaces of the k first singular vectors, left and right: their cosines, and the largest
    energy       share of the k first singular values in the sum of squares of W0: little more than for random numbers, and there
                 are no principal directions to keep off
    overlap      |P and M| / |M|: the share of the changed entries M that lie in a mask P of W0; by chance the density of P
    top overlap  the same of the |M|-free mask "largest |W1 - W0|", where no precision decides

Overlaps are undefined (None) where nothing changed. A small weight has a small step of precision, so that small weights change
visibly whatever the method: read `overlap` beside `top overlap`, and an RL arm beside an SFT arm of equal `change`, or drift and
rotation over `change`. k and the density of masks are nowhere said for the paper's figures: `sweep` has them all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from whet.errors import WhetError
from whet.weights.files import match
from whet.weights.selectors import magnitude, top_mask

SAME = 1e-3
NOT_LINEAR = re.compile(r"embed|wte|wpe|lm_head|norm|\bln_|rotary|score")
OVERLAPS = ("principal", "low", "spared", "top_principal", "top_low")
MEASURES = ("change", "sparsity", "drift", "drift_by_change", "angle_left", "angle_right", "angle_by_change", "gap", "energy",
            *OVERLAPS)  # fmt: skip
RANKS, DENSITIES = (1 / 16, 1 / 8, 1 / 4), (0.1, 0.2, 0.3, 0.4, 0.5)

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Place:
    """What happened to one matrix.

    Attributes:
        kind: its projection (`q_proj`), without the layer.
        layer: None outside the blocks.
        entries: its size, which it weighs in a mean.
        numbers: by the names in `MEASURES`.
        cosines: `left` and `right`, of the principal angles, the largest first.
    """

    name: str
    kind: str
    layer: int | None
    entries: int
    numbers: dict[str, float | None]
    cosines: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Factors:
    """W = U diag(s) V^T, kept where one start is measured against many ends."""

    u: Tensor
    s: Tensor
    v: Tensor

    @classmethod
    def of(cls, weight: Tensor) -> Factors:
        u, s, v = torch.linalg.svd(weight.float(), full_matrices=False)
        return cls(u, s, v)

    def principal(self, k: int) -> Tensor:
        """|W| of rank k: the score of `low_rank_magnitude`."""
        return ((self.u[:, :k] * self.s[:k]) @ self.v[:k]).abs()


Cache = dict[str, Factors]


def unchanged(before: Tensor, after: Tensor) -> Tensor:
    """Which entries are the same once stored in bf16; zeros and subnormals where they are equal."""
    a, b = (t.to(torch.bfloat16).float() for t in (before, after))
    return (b - a).abs() <= SAME * torch.maximum(a.abs(), b.abs())


def measure(before: Weights, after: Weights, *, rank: float = 0, density: float = 0.2,
            config: Mapping[str, Any] | None = None, cache: Cache | None = None) -> list[Place]:  # fmt: skip
    """Measure all matrices of the linear layers.

    Args:
        rank: k of rotation and of the principal mask; below 1 a share of each matrix's smaller side, and 0 an eighth of it.
        density: of the principal and of the low mask.
        config: the model's; fused projections are split by it.
        cache: filled with the factors of `before`, by name, and used where it has them.

    Raises:
        WhetError: the models are not of one kind.
    """
    found, cache = [], {} if cache is None else cache
    for name, a, b in pairs(before, after, config or {}):
        kind, layer = place_of(name)
        first = cache[name] if name in cache else cache.setdefault(name, Factors.of(a))
        k = directions(rank, a.shape)
        found.append(Place(name, kind, layer, a.numel(), *_numbers(a.float(), b.float(), first, k, density)))
    if not found:
        raise WhetError("the models have no matrix of a linear layer to look at")
    return found


def mean(places: Sequence[Place]) -> dict[str, float | None]:
    """Each measure over matrices, weighted by their entries; None where no matrix has it."""
    return {name: _mean((p.entries, p.numbers[name]) for p in places) for name in MEASURES}


def sweep(before: Weights, after: Weights, *, ranks: Sequence[float] = RANKS, densities: Sequence[float] = DENSITIES,
          config: Mapping[str, Any] | None = None, cache: Cache | None = None) -> list[dict[str, float | None]]:  # fmt: skip
    """The overlaps at each k and density: means over matrices as `mean`'s, with `rank` and `density`."""
    cache = {} if cache is None else cache
    found: dict[tuple[float, float], list[tuple[int, dict[str, float | None]]]] = {}
    for name, a, b in pairs(before, after, config or {}):
        a, b = a.float(), b.float()
        first = cache[name] if name in cache else cache.setdefault(name, Factors.of(a))
        for rank in ranks:
            for density in densities:
                own = _overlaps(a, b, first, directions(rank, a.shape), density)
                found.setdefault((rank, density), []).append((a.numel(), own))
    return [
        {"rank": rank, "density": density, **{m: _mean((n, values[m]) for n, values in own) for m in OVERLAPS}}
        for (rank, density), own in found.items()
    ]


def directions(rank: float, shape: Sequence[int]) -> int:
    """k of a matrix."""
    side = min(shape)
    return min(side, max(1, int(rank if rank >= 1 else (rank or 1 / 8) * side)))


def overlap(mask: Tensor, changed: Tensor) -> float | None:
    """|mask and changed| / |changed|; None where nothing changed."""
    total = int(changed.sum())
    return int((mask & changed).sum()) / total if total else None


def split(name: str, weight: Tensor, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """A fused projection's parts by the names that they would have; any other weight as it is."""
    heads, width = config.get("num_attention_heads") or config.get("n_head"), config.get("head_dim")
    if "gate_up_proj" in name:
        return {
            name.replace("gate_up_proj", n): w for n, w in zip(("gate_proj", "up_proj"), weight.chunk(2), strict=True)
        }
    if name.endswith("c_attn.weight"):  # (in, out)
        parts: Sequence[Tensor] = weight.chunk(3, 1)
    elif "query_key_value" in name and heads:  # q, k and v of a head lie together
        parts = weight.view(heads, 3, -1, weight.shape[1]).transpose(0, 1).flatten(1, 2).unbind(0)
    elif "qkv_proj" in name and heads:
        width = width or config["hidden_size"] // heads
        kv = (config.get("num_key_value_heads") or heads) * width
        parts = weight.split([heads * width, kv, kv])
    else:
        return {name: weight}
    return {
        re.sub(r"c_attn|query_key_value|qkv_proj", n, name): w
        for n, w in zip(("q_proj", "k_proj", "v_proj"), parts, strict=True)
    }


# -- parts ---------------------------------------------------------------------------------------------------------------
def pairs(before: Weights, after: Weights, config: Mapping[str, Any]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(name, before, after) of each matrix of a linear layer, fused projections apart."""
    shapes = [getattr(m, "shapes", None) or {n: tuple(t.shape) for n, t in m.items()} for m in (before, after)]
    for name, other in match(*shapes).check("before", "after").items():
        if len(shapes[0][name]) == 2 and not NOT_LINEAR.search(name):
            olds, news = split(name, before[name], config), split(name, after[other], config)
            yield from ((part, olds[part], news[part]) for part in olds)


def place_of(name: str) -> tuple[str, int | None]:
    """The kind of projection and the layer that a name says."""
    parts = name.removesuffix(".weight").split(".")
    layers = [int(p) for p in parts if p.isdigit()]
    return parts[-1], layers[0] if layers else None


def _numbers(
    a: Tensor, b: Tensor, first: Factors, k: int, density: float
) -> tuple[dict[str, float | None], dict[str, list[float]]]:
    last = Factors.of(b)
    s0, s1 = first.s, last.s
    sides = {"left": (first.u[:, :k], last.u[:, :k]), "right": (first.v[:k].T, last.v[:k].T)}
    angles = {side: angle(*spaces) for side, spaces in sides.items()}
    change, drift = float((b - a).norm() / a.norm()), float((s1 - s0).norm() / s0.norm())
    numbers = {
        "change": change,
        "sparsity": float(unchanged(a, b).float().mean()),
        "drift": drift,
        "drift_by_change": drift / change if change else None,
        "angle_left": angles["left"],
        "angle_right": angles["right"],
        "angle_by_change": (angles["left"] + angles["right"]) / 2 / change if change else None,
        "gap": float((s0[k - 1] - s0[k]) / s0[k - 1]) if k < len(s0) else None,
        "energy": float(s0[:k].square().sum() / s0.square().sum()),
        **_overlaps(a, b, first, k, density),
    }
    return numbers, {side: cosines(*spaces).tolist() for side, spaces in sides.items()}


def _overlaps(a: Tensor, b: Tensor, first: Factors, k: int, density: float) -> dict[str, float | None]:
    entries = max(1, round(density * a.numel()))
    principal, low = top_mask(first.principal(k), entries), top_mask(-magnitude(a), entries)
    changed, top = ~unchanged(a, b), most_moved(a, b, entries)
    return {
        "principal": overlap(principal, changed),
        "low": overlap(low, changed),
        "spared": overlap(principal & ~low, changed),
        "top_principal": overlap(principal, top),
        "top_low": overlap(low, top),
    }


def most_moved(a: Tensor, b: Tensor, entries: int) -> Tensor:
    """The mask of so many entries that moved most; of none where nothing moved."""
    moved = (b - a).abs()
    return top_mask(moved, entries) if bool(moved.any()) else torch.zeros_like(moved, dtype=torch.bool)


def _mean(values: Iterable[tuple[int, float | None]]) -> float | None:
    known = [(n, v) for n, v in values if v is not None]
    return sum(n * v for n, v in known) / sum(n for n, _ in known) if known else None


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """(k,) cosines of the principal angles between the column spaces of orthonormal (n, k) a and b, the largest first."""
    return torch.linalg.svdvals(a.T.double() @ b.double()).clamp(-1, 1)


def angle(a: Tensor, b: Tensor) -> float:
    """The largest principal angle, in degrees. Near 0 by sines, where cosines have lost it."""
    inside = a.double() @ (a.T.double() @ b.double())
    sine = float(torch.linalg.matrix_norm(b.double() - inside, 2).clamp(max=1.0))
    return float(torch.rad2deg(torch.asin(torch.tensor(sine)) if sine < 0.7 else torch.acos(cosines(a, b)[-1])))
