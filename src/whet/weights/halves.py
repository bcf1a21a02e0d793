"""Half of the matrices of a decoder, drawn at random (HFT, 2404.18466)."""

from __future__ import annotations

import random
from typing import Any

from torch import Tensor, nn

from whet.errors import WhetError
from whet.models.hooks import blocks_of
from whet.seeds import rng_for
from whet.weights.selectors import NOTHING, Facts, Selector, is_norm
from whet.weights.weights import Cost

Unit = list[str]  # names of a layer's tensors: a bias goes with its matrix

ATTENTION, FEED_FORWARD = ("attn", "attention"), ("mlp", "ffn", "feed_forward", "feedforward")
GRAINS = ("category", "layer", "model")


class Half(Selector):
    """A random share of each block's matrices, whole.

    By category: in every block a share of its attention matrices, of its feed-forward matrices and of its norms. Where that
    is no whole number (one and a half of three), the blocks that take one more are drawn, so that the model's share is exact.
    A fused matrix (q, k and v in one) counts as one.

    Args:
        share: how much moves.
        grain: `category`; `layer` draws whole blocks, `model` any matrices of all blocks.
        ends: whether what is outside the blocks (embeddings, head, last norm) moves.
    """

    def __init__(self, share: float = 0.5, grain: str = "category", ends: bool = True) -> None:
        if not 0 <= share <= 1:
            raise WhetError(f"a share is from 0 to 1, not {share:g}")
        if grain not in GRAINS:
            raise WhetError(f"grain is one of {', '.join(GRAINS)}, not '{grain}'")
        self.share, self.grain, self.ends = share, grain, ends

    def __call__(self, model: nn.Module, facts: Facts = NOTHING) -> dict[str, Tensor | bool]:
        found = units(model)
        rng = rng_for(facts.seed, "half")
        chosen: set[str] = set()
        if self.grain == "category":
            for category in sorted({c for block in found for c in block}):
                chosen |= _draw([block.get(category, []) for block in found], self.share, rng)
        elif self.grain == "layer":
            whole = [[name for own in block.values() for unit in own for name in unit] for block in found]
            chosen |= _draw([whole], self.share, rng)
        else:
            chosen |= _draw([[unit for block in found for own in block.values() for unit in own]], self.share, rng)
        inside = {name for block in found for own in block.values() for unit in own for name in unit}
        names = [n for n, _ in model.named_parameters()]
        return {n: True for n in names if n in chosen or (self.ends and n not in inside)}

    def cost(self, model: nn.Module, seed: int = 0) -> Cost:
        chosen = self(model, Facts(seed))
        size = sum(p.numel() for n, p in model.named_parameters() if n in chosen)
        return Cost(size, size)


def units(model: nn.Module) -> list[dict[str, list[Unit]]]:
    """For each block: category -> its layers' tensors. Categories: attention, feed-forward, norm, other."""
    names = {id(p): n for n, p in model.named_parameters()}
    found = []
    for block in blocks_of(model):
        own: dict[str, list[Unit]] = {}
        for path, module in block.named_modules():
            unit = [names[id(p)] for p in module.parameters(recurse=False)]
            if unit:
                own.setdefault(_category(path, module), []).append(unit)
        found.append(own)
    return found


def _category(path: str, module: Any) -> str:
    if is_norm(module):
        return "norm"
    parts = path.lower().split(".")
    for name, words in (("attention", ATTENTION), ("feed-forward", FEED_FORWARD)):
        if any(word in part for part in parts for word in words):
            return name
    return "other"


def _draw(groups: list[list[Unit]], share: float, rng: random.Random) -> set[str]:
    """Of each group its share, rounded down or up so that the sum is the share of all."""
    floors = [int(share * len(group) + 1e-9) for group in groups]
    more = round(share * sum(map(len, groups)) + 1e-9) - sum(floors)
    open_ones = [i for i, group in enumerate(groups) if floors[i] < len(group)]
    for i in rng.sample(open_ones, min(more, len(open_ones))):
        floors[i] += 1
    return {name for group, n in zip(groups, floors, strict=True) for unit in rng.sample(group, n) for name in unit}
