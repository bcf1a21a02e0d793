"""Attention by plain matrix products, for a CPU in bf16.

PyTorch's fused kernel wins in fp32. In bf16 its backward is slow on the short rows of reasoning tasks: 32 rows of 48
tokens take 14.6 ms forward and backward, and 1.8 ms by products (4 heads of 64, one core with AVX512-BF16); rows of 400
tokens 12.6 and 5.9, of 1000 about the same. What it costs is memory: probabilities are kept for the backward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LONGEST = 1024  # keys of a row


def suits(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> bool:
    """Whether to attend by products; (R, heads, Q, D), and (R, groups, K, D) twice."""
    low = query.device.type == "cpu" and computed_in(query) == torch.bfloat16
    return low and key.shape[2] <= LONGEST and value.shape[-1] == query.shape[-1] and not dropout


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """(R, heads, Q, D) of queries of that shape, and keys and values (R, groups, K, D); heads of a group share them.

    Args:
        mask: (R, 1, Q, K) bool, True where a query may attend; every query to one key at least. None is causal, Q = K.
        scale: of the products; 1 / sqrt(D) by default.
    """
    dtype = computed_in(query)
    if mask is None:
        width = query.shape[2]
        mask = torch.ones(width, width, dtype=torch.bool, device=query.device).tril()[None, None]
    bias = torch.zeros(mask.shape, dtype=dtype, device=query.device).masked_fill_(~mask, float("-inf"))
    scale = scale if scale is not None else query.shape[-1] ** -0.5
    return _Products.apply(query.to(dtype), key.to(dtype), value.to(dtype), bias, scale)


def computed_in(x: Tensor) -> torch.dtype:
    """What a product of `x` is computed in."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class _Products(torch.autograd.Function):
    """softmax(scale * Q K^T + bias) V; the heads of a group are rows of one product."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float) -> Tensor:
        rows, heads, width, size = query.shape
        groups, keys = key.shape[1], key.shape[2]
        q = (query * scale).reshape(rows * groups, -1, size)
        k, v = key.reshape(-1, keys, size), value.reshape(-1, keys, size)
        scores = torch.bmm(q, k.transpose(1, 2)).view(rows, groups, heads // groups, width, keys)
        # the kernel adds up in fp32; zeros and infinities are exact in bf16
        chances = torch.softmax(scores.add_(bias[:, :, None]), -1).view(rows * groups, -1, keys)
        out = torch.bmm(chances, v)
        ctx.save_for_backward(q, k, v, chances)
        ctx.scale, ctx.shapes = scale, (query.shape, key.shape)
        return out.view(query.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, chances = ctx.saved_tensors
        grad = grad.reshape(q.shape)
        by_chance = torch.bmm(grad, v.transpose(1, 2))
        by_score = torch.ops.aten._softmax_backward_data(by_chance, chances, -1, chances.dtype)
        shape, shared = ctx.shapes
        by_query = torch.bmm(by_score, k).mul_(ctx.scale).view(shape)
        by_key = torch.bmm(by_score.transpose(1, 2), q).view(shared)
        return by_query, by_key, torch.bmm(chances.transpose(1, 2), grad).view(shared), None, None
