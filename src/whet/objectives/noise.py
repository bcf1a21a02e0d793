"""Noise on the outputs of decoder blocks, and agreement between what a policy predicts under two views.

Adaptive noise (NoiseFiT, 2504.03302) on a hidden state h of H channels, for each token:

    m = median h    MAD = median |h - m|    a = exp(-beta |h - m| / MAD)    f = min(5, exp(var h / mean over tokens of var h))
    h' = h + xi (sigma MAD a f)             xi standard normal, drawn for each visit

Outlying channels get less (a), tokens of large variance more (f). The mean in f is over the sequence's own tokens (the authors':
over the batch), so that the gradient does not depend on micro-batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from whet.models.hooks import Splice
from whet.models.packing import Batch
from whet.models.policy import Policy
from whet.objectives.forward import Context, kl
from whet.objectives.objective import Term
from whet.objectives.views import Spliced, View, drawn

LARGEST = 5.0  # of f


def adaptive_scale(hidden: Tensor, mask: Tensor, beta: float = 0.1) -> Tensor:
    """MAD a f of hidden states (B, T, H), in the same shape; `mask` (B, T) is True on real tokens.

    The median of an even number is the lower of the two in the middle, as in the authors' code. MAD is at least 1e-6 of the
    token's norm.
    """
    away = (hidden - hidden.median(-1, keepdim=True).values).abs()
    floor = 1e-6 * hidden.norm(dim=-1, keepdim=True)
    mad = torch.maximum(away.median(-1, keepdim=True).values, floor)
    variance = hidden.var(-1) * mask
    ratio = variance / (variance.sum(1, keepdim=True) / mask.sum(1, keepdim=True) + 1e-6)
    factor = ratio.clamp(max=math.log(LARGEST)).exp().clamp(max=LARGEST)  # clamped first: e^ratio may overflow
    return mad * (-beta * away / (mad + 1e-6)).exp() * factor[..., None]


def deviation(hidden: Tensor, mask: Tensor) -> Tensor:
    """(B, 1, 1) standard deviation over all channels of each sequence's real tokens."""
    return torch.stack([h[m].std() for h, m in zip(hidden, mask, strict=True)])[:, None, None]


@dataclass(frozen=True)
class BlockNoise(Spliced):
    """Adaptive noise on the outputs of some blocks.

    Attributes:
        scales: (block, sigma) of each.
        draw: tells two passes of one visit apart.
        relative: sigma is a multiple of the output's standard deviation.
        through: whether a gradient flows through the noise's own scale.
    """

    scales: tuple[tuple[int, float], ...]
    draw: int = 0
    beta: float = 0.1
    relative: bool = False
    through: bool = False

    def splices(self, policy: Policy, batch: Batch, seed: int) -> Mapping[int, Splice]:
        return {block: partial(self._noisy, batch, seed, block, sigma) for block, sigma in self.scales}

    def _noisy(self, batch: Batch, seed: int, block: int, sigma: float, hidden: Tensor) -> Tensor:
        scale = sigma * adaptive_scale(hidden, batch.mask, self.beta)
        if self.relative:
            scale = scale * deviation(hidden, batch.mask)
        xi = drawn(batch, seed, lambda draw, n: torch.randn(n, hidden.shape[-1], generator=draw), block, self.draw)
        return hidden + xi.to(hidden) * (scale if self.through else scale.detach())


@dataclass
class Agreement(Term):
    """Exact KL(teacher || student) at each learnt token, between what the policy predicts under two views.

    Attributes:
        teacher, student: the views; None is the clean one.
        temperature: divides both logits, and the loss is multiplied by its square.
        teacher_grad: whether the teacher learns too. The student's logits are then not divided (the form of NoiseFiT's first
            version), which makes a difference at temperatures other than 1 only.
    """

    teacher: View | None = None
    student: View | None = None
    temperature: float = 1.0
    teacher_grad: bool = False
    normalise: str = "token"
    role: str = "response"
    name: str = "agreement"

    def __post_init__(self) -> None:
        self.roles = (self.role,)
        self.view = self.student or self.teacher

    def check(self, policy: Policy) -> None:
        for view in (self.teacher, self.student):
            if view is not None:
                view.check(policy)

    def total(self, ctx: Context) -> Tensor:
        teacher, student = ctx.forward(self.role, self.teacher), ctx.forward(self.role, self.student)
        value = student.per_token(self._kl(), teacher)
        ctx.log(self.name, value)
        return student.reduce(value, self.normalise)

    def _kl(self) -> Callable[..., Tensor]:
        t = self.temperature
        if self.teacher_grad:
            return lambda student, targets, teacher: kl(teacher / t, targets, student)
        return lambda student, targets, teacher: t**2 * kl(teacher.detach() / t, targets, student / t)
