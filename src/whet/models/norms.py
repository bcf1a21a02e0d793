"""RMS norms of a decoder's blocks, for a CPU in mixed precision: the same numbers in a third of the passes over memory.

transformers writes the norm as seven operations, its backward takes twice as many, and each layer that reads its result
casts it to bf16 for itself. Here forward and backward are written out, and the result is cast once. Outside autocast, on a
GPU, and for norms of another form (Gemma's), the module's own forward runs.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn


def lighten(model: nn.Module) -> None:
    """Give the norms of all blocks the forward below; those that compute something else keep their own.

    The last norm, which belongs to no block, keeps its own too: its result is read in full precision.
    """
    for path, norm in model.named_modules():
        inside = any(part.isdigit() for part in path.split("."))
        if inside and type(norm).__name__.endswith("RMSNorm") and "forward" not in vars(norm) and _is_plain(norm):
            norm.forward = MethodType(_forward, norm)


def _forward(self: Any, hidden_states: Tensor) -> Tensor:
    if hidden_states.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        return _RMSNorm.apply(hidden_states, self.weight, self.variance_epsilon, torch.get_autocast_dtype("cpu"))
    return type(self).forward(self, hidden_states)


def _is_plain(norm: Any) -> bool:
    """Whether it is x / rms(x) * weight."""
    weight = getattr(norm, "weight", None)
    if not isinstance(weight, Tensor) or not isinstance(getattr(norm, "variance_epsilon", None), float):
        return False
    x = torch.linspace(-2, 3, 2 * len(weight), dtype=weight.dtype, device=weight.device).view(2, -1)
    with torch.no_grad():
        own = type(norm).forward(norm, x).float()
        ours = x.float() * (x.float().square().mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt() * weight.float()
    return torch.allclose(own, ours, rtol=1e-2 if weight.dtype == torch.bfloat16 else 1e-5, atol=1e-5)


class _RMSNorm(torch.autograd.Function):
    """y = w * n, n = x / rms(x), in fp32; y is rounded to `dtype`.

    dw = sum(dy * n) over rows;  dx = (dy * w - n * mean(dy * n * w)) / rms(x)
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        wide = x.float()
        inverse = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        normed = wide * inverse
        ctx.save_for_backward(normed, inverse, weight.float())
        ctx.dtype = x.dtype
        return (normed * weight).to(dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        normed, inverse, weight = ctx.saved_tensors
        grad = grad.float()
        product = grad * normed
        ones = product.new_ones(product.numel() // len(weight))
        by_weight = ones @ product.flatten(0, -2) if ctx.needs_input_grad[1] else None
        mean = torch.matmul(product, weight).div_(-len(weight))[..., None]
        by_x = (grad * weight).addcmul_(normed, mean).mul_(inverse).to(ctx.dtype)
        return by_x, by_weight, None, None
