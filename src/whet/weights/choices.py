"""The selective choices of the menu: existing weights of which a rule or a score says what moves.

The defaults suit a small model; a paper's own numbers stand beside them.
"""

from __future__ import annotations

import re
from functools import partial

from torch import nn

from whet.errors import WhetError, unknown
from whet.models.hooks import blocks_of
from whet.weights.halves import Half
from whet.weights.masked import Masked
from whet.weights.menu import choice
from whet.weights.selectors import (
    Named,
    Rule,
    Top,
    chance,
    complement,
    either,
    is_norm,
    low_rank_magnitude,
    magnitude,
)
from whet.weights.weights import Weights

RULE, SCORE = "selective, by rule", "selective, by score"
# of a block, by the names that architectures give them
MODULES = {
    "q": r"(^|\.)q_proj\.",
    "k": r"(^|\.)k_proj\.",
    "v": r"(^|\.)v_proj\.",
    "o": r"(^|\.)(o_proj|out_proj|attn\.c_proj|attention\.dense)\.",
    "gate": r"(^|\.)gate_proj\.",
    "up": r"(^|\.)(up_proj|fc_in|fc1|mlp\.c_fc|dense_h_to_4h)\.",
    "down": r"(^|\.)(down_proj|fc_out|fc2|mlp\.c_proj|dense_4h_to_h)\.",
    "mlp": r"(^|\.)mlp\.",
    "layer": "",
}


# -- by rule -------------------------------------------------------------------------------------------------------------
@choice("biases", family=RULE)
def biases_only() -> Weights:
    """Biases only (BitFit, 2106.10199)."""
    return Masked(Rule(biases), name="biases")


@choice("norms", family=RULE)
def norms_only() -> Weights:
    """Norm layers only (2312.11420)."""
    return Masked(Rule(norms), name="norms")


@choice("named", family=RULE)
def named(pattern: str = "down_proj|c_proj") -> Weights:
    """Whole tensors whose name a regular expression finds."""
    return Masked(Named(pattern), name="named")


@choice("layers", family=RULE)
def layers(first: int = -1, last: int = -1) -> Weights:
    """The blocks from first to last, whole; negative ones count from the end."""
    return Masked(Rule(partial(of_blocks, first=first, last=last)), name="layers")


@choice("hft", family=RULE, paper="hft")
def hft(
    share: float = 0.5, grain: str = "category", ends: bool = True, seed: int | None = None, once: bool = False
) -> Weights:  # fmt: skip
    """A random half of each block's matrices, drawn anew in each stage (2404.18466)."""
    return Masked(Half(share, grain, ends), seed=seed, once=once, name="hft")


@choice("location", family=RULE, paper="locft-bf")
def location(layer: int | None = None, module: str = "down") -> Weights:
    """One matrix of one block (q, k, v, o, gate, up, down), its mlp or the whole layer (2509.22072); by default two thirds up."""
    if module not in MODULES:
        raise unknown("module of a block", module, MODULES)
    return Masked(Rule(partial(located, layer=layer, module=module)), name="location")


# -- by score ------------------------------------------------------------------------------------------------------------
@choice("lift", family=SCORE, paper="lift")
def lift(
    rank: int = 0, density: float = 0.05, refresh: int = 50, budget_rank: int = 0, smallest: bool = False
) -> Weights:  # fmt: skip
    """The largest entries after rank reduction, chosen anew every so often (2506.00772)."""
    select = Top(principal(rank), 0.0 if budget_rank else density, budget_rank=budget_rank, smallest=smallest)
    return Masked(select, refresh=refresh, name="lift")


@choice("magnitude", family=SCORE)
def largest(density: float = 0.05, refresh: int = 0) -> Weights:
    """The largest entries of each matrix."""
    return Masked(Top(magnitude, density), refresh=refresh, name="magnitude")


@choice("low-magnitude", family=SCORE)
def smallest(density: float = 0.05, refresh: int = 0) -> Weights:
    """The smallest entries of each matrix."""
    return Masked(Top(magnitude, density, smallest=True), refresh=refresh, name="low-magnitude")


@choice("random", family=SCORE)
def at_random(density: float = 0.05, refresh: int = 0, seed: int | None = None) -> Weights:
    """Random entries of each matrix: the control of every score."""
    return Masked(Top(chance, density), refresh=refresh, seed=seed, name="random")


@choice("principal", family=SCORE, paper="off-principals")
def principal_only(rank: int = 0, density: float = 0.5) -> Weights:
    """The principal entries of each matrix, chosen once: the control of `non-principal` and `safe` (2511.08567)."""
    return Masked(Top(principal(rank), density), name="principal")


@choice("non-principal", family=SCORE, paper="off-principals")
def non_principal(rank: int = 0, density: float = 0.5) -> Weights:
    """All entries of each matrix but its principal ones (2511.08567)."""
    return Masked(complement(Top(principal(rank), density)), name="non-principal")


@choice("safe", family=SCORE, paper="off-principals")
def safe(rank: int = 0, density: float = 0.5, low: float = 0.586) -> Weights:
    """Small entries and those that are not principal (2511.08567)."""
    small, large = Top(magnitude, low, smallest=True), Top(principal(rank), density)
    return Masked(either(small, complement(large)), name="safe")


# -- parts ---------------------------------------------------------------------------------------------------------------
def principal(rank: int) -> partial:
    """The score of LIFT: magnitude after reduction to so many singular directions (0: an eighth of the smaller side)."""
    if rank < 0:
        raise WhetError(f"a rank is 1 or more, or 0 for an eighth of each matrix's smaller side, not {rank}")
    return partial(low_rank_magnitude, rank=rank)


def biases(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters called bias, but those of norms."""
    spared = norms(model)
    return {n: p for n, p in model.named_parameters() if n.endswith("bias") and n not in spared}


def norms(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters of norm layers."""
    own = {id(p) for m in model.modules() if is_norm(m) for p in m.parameters(recurse=False)}
    return {n: p for n, p in model.named_parameters() if id(p) in own}


def located(model: nn.Module, layer: int | None, module: str) -> dict[str, nn.Parameter]:
    """Parameters of a module of a block, found in the block itself: layer 2 is none of 20 to 29."""
    blocks = blocks_of(model)
    at = len(blocks) * 11 // 16 if layer is None else layer  # of 32 the 22nd, as in the paper
    if not -len(blocks) <= at < len(blocks):
        raise WhetError(f"layer {at} is not among the {len(blocks)} of {type(model).__name__}")
    named = re.compile(MODULES[module])
    own = {id(p) for name, p in blocks[at].named_parameters() if named.search(name)}
    if not own:
        held = ", ".join(dict.fromkeys(name.rpartition(".")[0] for name, _ in blocks[at].named_parameters()))
        raise WhetError(f"a block of {type(model).__name__} has no module '{module}'; it has {held}")
    return {n: p for n, p in model.named_parameters() if id(p) in own}


def of_blocks(model: nn.Module, first: int, last: int) -> dict[str, nn.Parameter]:
    """Parameters of the blocks from first to last."""
    found = blocks_of(model)
    low, high = (i + len(found) if i < 0 else i for i in (first, last))
    if not 0 <= low <= high < len(found):
        raise WhetError(f"layers {first} to {last} are not among the {len(found)} of {type(model).__name__}")
    own = {id(p) for block in found[low : high + 1] for p in block.parameters()}
    return {n: p for n, p in model.named_parameters() if id(p) in own}
