"""Where in weight space training moved (2511.08567 sections 2 to 5, appendices C to E).

For each weight matrix W0 before and W1 after, both as they would be stored in bf16 where that is said:

    unchanged    |w1 - w0| <= 1e-3 max(|w0|, |w1|) in bf16: for normal numbers the same as equal to the bit
    sparsity     share of unchanged entries
    drift        ||sigma(W1) - sigma(W0)|| / ||sigma(W0)||                      sigma: singular values
    rotation     the largest angle between the spaces of the k first singular vectors, left and right
    overlap      |P and M| / |M|: the share of the changed entries M that lie in a mask P of W0; by chance the density of P
    top overlap  the same of the |M|-free mask "largest |W1 - W0|", where no precision decides

Overlaps are undefined (None) where nothing changed. A small weight has a small step of precision, so that small weights change
visibly whatever the method: read `overlap` beside `top overlap`, and an RL arm beside an SFT arm of equal `change`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from whet.errors import WhetError
from whet.weights.files import match
from whet.weights.selectors import low_rank_magnitude, magnitude, top_mask

SAME = 1e-3
NOT_LINEAR = re.compile(r"embed|wte|wpe|lm_head|norm|\bln_|rotary|score")
MEASURES = ("change", "sparsity", "drift", "angle_left", "angle_right", "gap", "principal", "low", "spared",
            "top_principal", "top_low")  # fmt: skip


@dataclass(frozen=True)
class Place:
    """What happened to one matrix.

    Attributes:
        kind: its projection (`q_proj`), without the layer.
        layer: None outside the blocks.
        entries: its size, which it weighs in a mean.
        numbers: by the names in `MEASURES`.
    """

    name: str
    kind: str
    layer: int | None
    entries: int
    numbers: dict[str, float | None]


def unchanged(before: Tensor, after: Tensor) -> Tensor:
    """Which entries are the same once stored in bf16; zeros and subnormals where they are equal."""
    a, b = (t.to(torch.bfloat16).float() for t in (before, after))
    return (b - a).abs() <= SAME * torch.maximum(a.abs(), b.abs())


def measure(before: Mapping[str, Tensor], after: Mapping[str, Tensor], *, rank: int = 0, density: float = 0.2,
            config: Mapping[str, Any] | None = None) -> list[Place]:  # fmt: skip
    """Measure all matrices of the linear layers.

    Args:
        rank: k of rotation and of the principal mask; 0 takes an eighth of each matrix's smaller side.
        density: of the principal and of the low mask.
        config: the model's; fused projections are split by it.

    Raises:
        WhetError: the models are not of one kind.
    """
    found = []
    for name, a, b in _pairs(before, after, config or {}):
        kind, layer = _place(name)
        k = min(rank or max(1, min(a.shape) // 8), min(a.shape))
        found.append(Place(name, kind, layer, a.numel(), _numbers(a.float(), b.float(), k, density)))
    if not found:
        raise WhetError("the models have no matrix of a linear layer to look at")
    return found


def mean(places: Sequence[Place]) -> dict[str, float | None]:
    """Each measure over matrices, weighted by their entries; None where no matrix has it."""
    found: dict[str, float | None] = {}
    for name in MEASURES:
        known = [(p.entries, v) for p in places if (v := p.numbers[name]) is not None]
        found[name] = sum(n * v for n, v in known) / sum(n for n, _ in known) if known else None
    return found


def jaccard(
    before: Mapping[str, Tensor], runs: Sequence[Mapping[str, Tensor]], config: Mapping[str, Any] | None = None
) -> tuple[float, float]:
    """How alike the changed entries of several runs of one start are, beside what chance would give: means over matrices and pairs.

    |A and B| / |A or B|        by chance p q / (p + q - p q)
    """
    if len(runs) < 2:
        raise WhetError("the overlap of runs needs two of them")
    found: list[tuple[float, float]] = []
    streams = [_pairs(before, run, config or {}) for run in runs]
    for group in zip(*streams, strict=True):
        masks = [~unchanged(a, b) for _, a, b in group]
        for i, one in enumerate(masks):
            for other in masks[i + 1 :]:
                if either := int((one | other).sum()):
                    p, q = float(one.float().mean()), float(other.float().mean())
                    found.append((int((one & other).sum()) / either, by_chance(p, q)))
    if not found:
        raise WhetError("no run has changed anything that bf16 can hold")
    return tuple(sum(column) / len(found) for column in zip(*found, strict=True))  # type: ignore[return-value]


def by_chance(p: float, q: float) -> float:
    """The expected Jaccard index of independent masks of densities p and q."""
    return p * q / (p + q - p * q) if p + q else 0.0


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
def _pairs(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], config: Mapping[str, Any]
) -> Iterator[tuple[str, Tensor, Tensor]]:
    shapes = [getattr(m, "shapes", None) or {n: tuple(t.shape) for n, t in m.items()} for m in (before, after)]
    for name, other in match(*shapes).check("before", "after").items():
        if len(shapes[0][name]) == 2 and not NOT_LINEAR.search(name):
            olds, news = split(name, before[name], config), split(name, after[other], config)
            yield from ((part, olds[part], news[part]) for part in olds)


def _place(name: str) -> tuple[str, int | None]:
    parts = name.removesuffix(".weight").split(".")
    layers = [int(p) for p in parts if p.isdigit()]
    return parts[-1], layers[0] if layers else None


def _numbers(a: Tensor, b: Tensor, k: int, density: float) -> dict[str, float | None]:
    u0, s0, v0 = torch.linalg.svd(a, full_matrices=False)
    u1, s1, v1 = torch.linalg.svd(b, full_matrices=False)
    entries = max(1, round(density * a.numel()))
    principal = top_mask(low_rank_magnitude(a, rank=k), entries)
    low = top_mask(-magnitude(a), entries)
    same = unchanged(a, b)
    moved = b - a
    top = top_mask(moved.abs(), entries) if bool(moved.any()) else torch.zeros_like(same)
    return {
        "change": float(moved.norm() / a.norm()),
        "sparsity": float(same.float().mean()),
        "drift": float((s1 - s0).norm() / s0.norm()),
        "angle_left": angle(u0[:, :k], u1[:, :k]),
        "angle_right": angle(v0[:k].T, v1[:k].T),
        "gap": float((s0[k - 1] - s0[k]) / s0[k - 1]) if k < len(s0) else None,
        "principal": overlap(principal, ~same),
        "low": overlap(low, ~same),
        "spared": overlap(principal & ~low, ~same),
        "top_principal": overlap(principal, top),
        "top_low": overlap(low, top),
    }


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """(k,) cosines of the principal angles between the column spaces of orthonormal (n, k) a and b, the largest first."""
    return torch.linalg.svdvals(a.T.double() @ b.double()).clamp(-1, 1)


def angle(a: Tensor, b: Tensor) -> float:
    """The largest principal angle, in degrees. Near 0 by sines, where cosines have lost it."""
    inside = a.double() @ (a.T.double() @ b.double())
    sine = float(torch.linalg.matrix_norm(b.double() - inside, 2).clamp(max=1.0))
    return float(torch.rad2deg(torch.asin(torch.tensor(sine)) if sine < 0.7 else torch.acos(cosines(a, b)[-1])))
