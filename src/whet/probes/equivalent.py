"""The same function by other weights: what tells whether updates follow the weights' geometry (2511.08567 section 5).

    rotate     one orthogonal R (D, D) for all heads:  v' = R^T v,  W_o on each head's part times R      R R^T = 1
    permute    heads of keys and values change places, and with each its group of queries

Attention mixes the values of a head linearly, so that R passes through it; queries and keys of a rotary model have pairs of
entries that belong together, so that within a head they are left alone. A run from the changed start learns the same, and if its
updates keep to entries that the weights' geometry marks, they coincide with those of a plain run by chance alone in the layers that
were edited, and as before in the others (`agreement.alike`).

    whet probe equivalent base --how rotate --layers 1 --out turned
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from whet.errors import WhetError
from whet.models.hooks import blocks_of
from whet.seeds import seed_for
from whet.weights.weights import linear

SEPARATE, FUSED = ("q_proj", "k_proj", "v_proj"), ("qkv_proj", "c_attn", "query_key_value")
OUT = ("o_proj", "c_proj", "dense")
NORMS = ("q_norm", "k_norm")  # of a head's width, the same for all heads


@dataclass(frozen=True)
class Heads:
    """Views of a block's attention; what is written to them is written to the weights.

    Attributes:
        queries, keys, values: weight (heads, D, in) and, where there is one, bias (heads, D).
        out: (heads, D, hidden), by the head that it reads.
    """

    queries: list[Tensor]
    keys: list[Tensor]
    values: list[Tensor]
    out: Tensor

    @classmethod
    def of(cls, block: nn.Module, config: Any) -> Heads:
        """Raises WhetError where the attention is of another kind."""
        attention = next((m for m in block.modules() if _children(m, OUT) and _children(m, (*SEPARATE, *FUSED))), None)
        if attention is None:
            raise WhetError("a block has no attention whose projections are known apart")
        heads = config.num_attention_heads
        kv = getattr(config, "num_key_value_heads", None) or heads
        (out,) = _children(attention, OUT).values()
        into = _children(attention, (*SEPARATE, *FUSED))
        width = _matrix(out).shape[1] // heads
        known = {id(p) for m in (out, *into.values()) if linear(m) for p in m.parameters()}
        known |= {id(p) for m in _children(attention, NORMS).values() for p in m.parameters() if p.numel() == width}
        odd = next((n for n, p in attention.named_parameters() if id(p) not in known), None)
        if odd is not None:
            raise WhetError(
                f"an attention with '{odd}' is not known to keep its function by other weights (adapters are merged first)"
            )
        parts: list[list[Tensor]] = [[], [], []]
        for read in (_matrix, _bias):
            for mine, found in zip(parts, _apart({n: read(m) for n, m in into.items()}, heads, kv, width), strict=True):
                mine += [] if found is None else [found]
        return cls(*parts, out=_matrix(out).T.unflatten(0, (heads, width)))


def rotate(model: Any, layers: Sequence[int] | None = None, seed: int = 0) -> None:
    """Rotate the values of each head, in place; weights should be in fp32, or rounding is no rotation.

    Args:
        layers: the blocks; None is all.
    """
    for layer, heads in heads_of(model, layers):
        width = heads.out.shape[1]
        draw = torch.Generator().manual_seed(seed_for(seed, "rotate", layer))
        q, r = torch.linalg.qr(torch.randn(width, width, generator=draw, dtype=torch.float64))
        turn = (q * r.diagonal().sign()).to(heads.out.device)  # uniform over rotations and reflections
        for part in (*heads.values, heads.out):
            part.copy_(torch.einsum("de,hd...->he...", turn, part.double()))


def permute(model: Any, layers: Sequence[int] | None = None, seed: int = 0) -> None:
    """Give the heads of keys and values other places, in place; queries keep to theirs.

    Raises:
        WhetError: there is one such head.
    """
    for layer, heads in heads_of(model, layers):
        groups = len(heads.keys[0])
        if groups < 2:
            raise WhetError(f"layer {layer} has one head of keys, which has no other place")
        draw = torch.Generator().manual_seed(seed_for(seed, "permute", layer))
        order = torch.randperm(groups, generator=draw)
        if torch.equal(order, torch.arange(groups)):
            order = order.roll(1)
        for part in (*heads.queries, *heads.keys, *heads.values, heads.out):
            grouped = part.unflatten(0, (groups, -1))
            grouped.copy_(grouped[order.to(part.device)])


EQUIVALENT: dict[str, Callable[[Any, Sequence[int] | None, int], None]] = {"rotate": rotate, "permute": permute}


# -- parts ---------------------------------------------------------------------------------------------------------------
def heads_of(model: Any, layers: Sequence[int] | None) -> list[tuple[int, Heads]]:
    """The attention of the chosen blocks."""
    found = blocks_of(model)
    chosen = range(len(found)) if layers is None else layers
    if not all(0 <= layer < len(found) for layer in chosen):
        raise WhetError(f"layers {', '.join(map(str, chosen))}: {type(model).__name__} has 0 to {len(found) - 1}")
    return [(layer, Heads.of(found[layer], model.config)) for layer in chosen]


def _children(module: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    return {name: child for name in names if (child := getattr(module, name, None)) is not None}


def _matrix(module: Any) -> Tensor:
    """(out, in), a view."""
    weight = module.weight.detach()
    return weight if isinstance(module, nn.Linear) else weight.T


def _bias(module: Any) -> Tensor | None:
    return None if module.bias is None else module.bias.detach()


def _apart(parts: Mapping[str, Tensor | None], heads: int, kv: int, width: int) -> Sequence[Tensor | None]:
    """Queries, keys and values, (heads, D, ...) each."""
    if len(parts) == 3:
        return [None if p is None else p.unflatten(0, (-1, width)) for p in parts.values()]
    ((name, fused),) = parts.items()
    if fused is None:
        return [None] * 3
    if len(fused) != (heads + 2 * kv) * width:
        raise WhetError(f"'{name}' has {len(fused)} outputs, not those of {heads} heads and {kv} of keys and of values")
    if name == "query_key_value":  # GPT-NeoX keeps those of a head together
        return fused.unflatten(0, (heads, 3, width)).unbind(1)
    return [p.unflatten(0, (-1, width)) for p in fused.split([heads * width, kv * width, kv * width])]
