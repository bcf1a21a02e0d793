"""Whether runs change the same weights (2511.08567 sections 3 and 4).

    jaccard      |A and B| / |A or B| of the changed entries of two runs, matrix by matrix       by chance p q / (p + q - p q)
    consensus    C_ij, the share of runs that changed an entry
    profiles     share of each row, and of each column, that changed

Changed is what bf16 can hold. Runs may have different starts of one shape, such as a base and the same function by other weights
(`equivalent.py`). A `sketch` is a mask at drawn places, as text: small enough to be kept with a run's numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from whet.errors import WhetError
from whet.probes.geometry import Weights, pairs, place_of, unchanged
from whet.seeds import seed_for

PLACES = 256


@dataclass(frozen=True)
class Alike:
    """How alike runs are in one matrix: means over pairs of runs."""

    name: str
    kind: str
    layer: int | None
    jaccard: float
    by_chance: float


def alike(runs: Sequence[tuple[Weights, Weights]], config: Mapping[str, Any] | None = None) -> list[Alike]:
    """Each matrix in which runs, (before, after) each, have changed anything.

    Raises:
        WhetError: there are fewer than two, or none has changed anything.
    """
    if len(runs) < 2:
        raise WhetError("the overlap of runs needs two of them")
    found = []
    for name, masks in _masks(runs, config):
        both = [known for a, b in combinations(masks, 2) if (known := jaccard_of(a, b)) is not None]
        if both:
            found.append(Alike(name, *place_of(name), *(sum(column) / len(both) for column in zip(*both, strict=True))))
    if not found:
        raise WhetError("no run has changed anything that bf16 can hold")
    return found


def jaccard(before: Weights, runs: Sequence[Weights], config: Mapping[str, Any] | None = None) -> tuple[float, float]:
    """How alike the changed entries of several runs of one start are, beside what chance would give: means over matrices."""
    found = alike([(before, run) for run in runs], config)
    return sum(p.jaccard for p in found) / len(found), sum(p.by_chance for p in found) / len(found)


def jaccard_of(a: Tensor, b: Tensor) -> tuple[float, float] | None:
    """The Jaccard index of two masks and what chance would give; None where both are empty."""
    either = int((a | b).sum())
    return (int((a & b).sum()) / either, by_chance(*(float(m.float().mean()) for m in (a, b)))) if either else None


def by_chance(p: float, q: float) -> float:
    """The expected Jaccard index of independent masks of densities p and q."""
    return p * q / (p + q - p * q) if p + q else 0.0


def consensus(
    before: Weights, runs: Sequence[Weights], config: Mapping[str, Any] | None = None
) -> Iterator[tuple[str, Tensor]]:
    """(name, share of the runs that changed each entry) of each matrix."""
    for name, masks in _masks([(before, run) for run in runs], config):
        yield name, torch.stack(masks).float().mean(0)


def profiles(changed: Tensor, window: int = 3) -> tuple[Tensor, Tensor]:
    """(m,) share of each row of an (m, n) mask or consensus that changed and (n,) of each column, each a mean over `window`
    neighbours. In a Linear's weight, rows are outputs: a head's block of rows in q, k and v is one of columns in o."""
    return _smooth(changed.float().mean(1), window), _smooth(changed.float().mean(0), window)


# -- sketches ------------------------------------------------------------------------------------------------------------
def sketch(masks: Mapping[str, Tensor], places: int = PLACES) -> str:
    """Each mask at `places` places drawn for its name (the same in every run): a hexadecimal word a matrix."""
    words = []
    for name, mask in sorted(masks.items()):
        draw = torch.Generator().manual_seed(seed_for(0, "sketch", name))
        at = torch.randint(mask.numel(), (places,), generator=draw)
        bits = "".join("1" if bit else "0" for bit in mask.flatten().cpu()[at].tolist())
        words.append(f"{int(bits, 2):0{(places + 3) // 4}x}")
    return " ".join(words)


def sketched_jaccard(a: str, b: str) -> tuple[float, float]:
    """`jaccard` of two runs from their sketches; with 256 places a matrix and 28 of them to about 0.01.

    Raises:
        WhetError: they are of other models, or hold no change.
    """
    if [len(w) for w in a.split()] != [len(w) for w in b.split()]:
        raise WhetError("the sketches are of two kinds of models")
    found = [known for one, other in zip(a.split(), b.split(), strict=True)
             if (known := jaccard_of(_bits(one), _bits(other))) is not None]  # fmt: skip
    if not found:
        raise WhetError("no run has changed anything at the places of its sketch")
    return sum(j for j, _ in found) / len(found), sum(c for _, c in found) / len(found)


# -- parts ---------------------------------------------------------------------------------------------------------------
def _masks(
    runs: Sequence[tuple[Weights, Weights]], config: Mapping[str, Any] | None
) -> Iterator[tuple[str, list[Tensor]]]:
    for group in zip(*(pairs(before, after, config or {}) for before, after in runs), strict=True):
        yield group[0][0], [~unchanged(a, b) for _, a, b in group]


def _smooth(values: Tensor, window: int) -> Tensor:
    kernel = torch.ones(1, 1, window)
    summed, counted = (
        F.conv1d(x[None, None], kernel, padding=window // 2)[0, 0] for x in (values, torch.ones_like(values))
    )
    return (summed / counted)[: len(values)]


def _bits(word: str) -> Tensor:
    return torch.tensor([bit == "1" for bit in f"{int(word, 16):0{4 * len(word)}b}"])
