"""Attention over a layout: the model's own attention, called on the rows that the layout cuts.

It is registered with transformers as an implementation of its own, around the one that the model had: forwards without
a layout go straight through.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from whet.models import products
from whet.models.layout import Index, Layout

PREFIX = "whet_"
INNER = ("sdpa", "eager")  # what it can be around
LONG = 2048  # tokens in a row


def unsupported(model: Any, decoder: nn.Module) -> str | None:
    """Why this architecture takes no layout, or None: it must hand its attention to transformers' interface."""
    config: Any = decoder.config
    known = inspect.signature(decoder.forward).parameters
    if getattr(config, "is_encoder_decoder", False) or not getattr(config, "is_causal", True):
        return "it is not a causal decoder"
    if not getattr(model, "_supports_attention_backend", False):
        return "its attention cannot be replaced"
    if "position_ids" not in known or not any(p.kind is p.VAR_KEYWORD for p in known.values()):
        return "its forward takes no positions"
    other = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if other:
        return f"it has layers of type {', '.join(sorted(other))}"
    own = _inner(config)
    return None if own in INNER else f"its attention is {own}"


def forward(model: Any, decoder: Any, layout: Layout) -> Tensor:
    """(N, H) last hidden states of the layout's tokens, the final norm applied."""
    config: Any = decoder.config
    inner = _inner(config)
    if config._attn_implementation == inner:
        # for good, not for this call: checkpointed layers are run once more in the backward
        model.set_attn_implementation(PREFIX + inner)
    out = decoder(
        input_ids=layout.ids[None], position_ids=layout.positions[None], use_cache=False, layout=layout,
        # a mask of four dimensions keeps transformers from making one of N x N; nobody reads it
        attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=layout.ids.device),
    )  # fmt: skip
    return out.last_hidden_state[0]


def disagreement(model: Any, decoder: nn.Module, tolerance: float) -> str | None:
    """Why the model cannot be run over a layout, or None: its states must be those of each sequence alone."""
    reason = unsupported(model, decoder)
    if reason is not None:
        return reason
    device = next(model.parameters()).device
    vocabulary = model.config.get_text_config().vocab_size
    first, second = ([(7 * i + k) % vocabulary for i in range(12)] for k in (3, 4))
    sequences = [first[:9], first[:6] + second[:5], first, second[:3]]
    inner = _inner(decoder.config)
    try:
        with torch.no_grad():
            layout = Layout.of(sequences, device)
            ours = forward(model, decoder, layout)
            for index, ids in enumerate(sequences):
                read = torch.tensor([ids], device=device)
                own = decoder(input_ids=read, use_cache=False).last_hidden_state[0].float()
                places = torch.arange(len(ids), device=device)
                found = ours[layout.find(torch.full_like(places, index), places)].float()
                gap = float((found - own).abs().max() / own.abs().max().clamp(min=1e-6))
                if not gap <= tolerance:
                    reason = f"packed, its hidden states differ by {gap:.2g}"
    except Exception as error:  # whatever a foreign architecture does not stand; the log names it
        reason = f"{type(error).__name__}: {error}"
    if reason is not None:
        model.set_attn_implementation(inner)
    return reason


def _inner(config: Any) -> str:
    return config._attn_implementation.removeprefix(PREFIX)


def _around(inner: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
        layout: Layout | None = None, **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """As transformers calls it: (1, heads, N, D) to (1, N, heads, D)."""
        eager = inner == "eager" and sys.modules[type(module).__module__].eager_attention_forward
        if layout is None:
            return (eager or _SDPA)(module, query, key, value, attention_mask, **kwargs)
        dtype = products.computed_in(query)  # what autocast would cast to later, after the copies
        query, key, value = (x[0].transpose(0, 1).to(dtype) for x in (query, key, value))
        window = kwargs.get("sliding_window")
        if eager is False and block_sparse(layout, query):
            return _block_sparse(layout, query, key, value, window, kwargs.get("scaling")), None
        asked = _rows(query, layout.queries, [p.queries.shape for p in layout.parts])
        held = (_rows(x, layout.keys, [p.keys.shape for p in layout.parts]) for x in (key, value))
        found = []
        for index, (queries, keys, values) in enumerate(zip(asked, *held, strict=True)):
            mask = layout.bias(index, window, query.dtype) if inner == "eager" else layout.mask(index, window)
            found.append((eager or _grouped)(module, queries, keys, values, mask, **kwargs)[0].flatten(0, 1))
        return layout.place.gather(torch.cat(found))[None], None

    return attend


def block_sparse(layout: Layout, query: Tensor) -> bool:
    """Whether a row is one call of FlexAttention instead of some masked ones: long rows on a GPU. Not measured on one yet."""
    width = query.shape[-1]
    return query.device.type == "cuda" and len(layout) >= LONG and width >= 16 and width & (width - 1) == 0


def _block_sparse(
    layout: Layout, query: Tensor, key: Tensor, value: Tensor, window: int | None, scaling: float | None
) -> Tensor:
    """(1, N, heads, D) of (N, heads, D): blocks of the N x N products that nobody may see are skipped."""
    query, key, value = (x.transpose(0, 1)[None] for x in (query, key, value))
    shared = query.shape[1] != key.shape[1]
    attend = _compiled() if query.device.type == "cuda" else flex_attention
    out = attend(query, key, value, block_mask=layout.blocks(window), scale=scaling, enable_gqa=shared)
    assert isinstance(out, Tensor)
    return out.transpose(1, 2)


@cache
def _compiled() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=True)  # rows differ in length


def _rows(tokens: Tensor, index: Index, shapes: list[torch.Size]) -> list[Tensor]:
    """(R, heads, W, D) for each part, of tokens (N, heads, D)."""
    parts = index.gather(tokens.flatten(1)).split([shape.numel() for shape in shapes])
    return [x.view(*shape, *tokens.shape[1:]).transpose(1, 2) for x, shape in zip(parts, shapes, strict=True)]


_SDPA = ALL_ATTENTION_FUNCTIONS["sdpa"]


def _grouped(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """transformers' sdpa; on a CPU without its copies of keys that several heads share: a fifth faster under a mask."""
    if query.device.type != "cpu" or kwargs.get("position_bias") is not None:
        return _SDPA(module, query, key, value, mask, scaling=scaling, **kwargs)
    dropout = kwargs.get("dropout", 0.0)
    if products.suits(query, key, value, dropout):
        return products.attend(query, key, value, mask, scaling).transpose(1, 2), None
    shared = query.shape[1] != key.shape[1]
    out = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scaling, enable_gqa=shared
    )
    return out.transpose(1, 2), None


for _name in INNER:
    AttentionInterface.register(PREFIX + _name, _around(_name))
    AttentionMaskInterface.register(PREFIX + _name, ALL_MASK_ATTENTION_FUNCTIONS[_name])
