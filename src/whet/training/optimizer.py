"""Optimizers by name, with a rate that may depend on the model's size, and the schedules that scale it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from whet.errors import WhetError
from whet.models.quantized import bitsandbytes

SMALL_MODEL = 50_000_000  # parameters; below it the `small` rate is used


@dataclass(frozen=True)
class Rate:
    """A learning rate for small models (those that run on a CPU in minutes) and the paper's, for billions."""

    small: float
    paper: float

    def of(self, parameters: int) -> float:
        return self.small if parameters < SMALL_MODEL else self.paper


@dataclass(frozen=True)
class AdamW:
    """AdamW with warm-up and decay.

    Attributes:
        lr: the peak rate.
        warmup: steps of linear warm-up; below 1, a share of the schedule's steps.
        schedule: `constant`, `linear` or `cosine` (to a tenth) after the warm-up.
        span: the schedule's length over the stage's. A stage of 20 steps and a span of 10 is the beginning of a run of 200
            steps that was left there, perhaps while the rate still rose.
    """

    lr: float | Rate = 1e-4
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    eps: float = 1e-8
    warmup: float = 0.0
    schedule: str = "constant"
    span: float = 1.0

    def __post_init__(self) -> None:
        if self.span < 1:
            raise WhetError(f"a schedule's span of {self.span:g} would end before its stage does; give 1 or more")
        rates = (self.lr.small, self.lr.paper) if isinstance(self.lr, Rate) else (self.lr,)
        for name, number in (
            *(("lr", rate) for rate in rates),
            ("warmup", self.warmup),
            ("weight_decay", self.weight_decay),
        ):
            if not 0 <= number < math.inf:
                raise WhetError(f"the optimizer's {name} is a number from 0, not {number:g}")
        if self.schedule not in SHAPES:
            raise WhetError(f"schedule '{self.schedule}': one of {', '.join(SHAPES)}")

    def rate(self, parameters: int) -> float:
        return self.lr.of(parameters) if isinstance(self.lr, Rate) else self.lr

    def build(
        self, parameters: Mapping[str, nn.Parameter], size: int, like: Mapping[str, nn.Parameter] | None = None, *,
        eight_bit: bool = False,
    ) -> torch.optim.Optimizer:  # fmt: skip
        """The torch optimizer over named parameters; matrices decay, vectors (norms, biases) do not.

        Args:
            like: the parameters that these are entries of, where chosen entries were gathered into vectors.
            eight_bit: bitsandbytes' moments of 8 bits (2110.02861); see `whet.models.quantized`.
        """
        like = like or parameters
        matrices = [p for n, p in parameters.items() if like[n].dim() >= 2]
        vectors = [p for n, p in parameters.items() if like[n].dim() < 2]
        groups = [{"params": matrices, "weight_decay": self.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        chosen = [g for g in groups if g["params"]]
        how: dict[str, Any] = {"lr": self.rate(size), "betas": self.betas, "eps": self.eps}
        if eight_bit:
            return bitsandbytes().optim.AdamW8bit(chosen, **how)
        return torch.optim.AdamW(chosen, **how, fused=True)

    def scale(self, step: float, steps: int) -> float:
        """What the rate is multiplied by at optimizer step `step` (from 0; between two where a budget is spent) of `steps`."""
        whole = self.span * steps
        warmup = self.warmup * whole if 0 < self.warmup < 1 else self.warmup
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return SHAPES[self.schedule]((step - warmup) / max(1.0, whole - warmup))


SHAPES: dict[str, Callable[[float], float]] = {
    "constant": lambda x: 1.0,
    "linear": lambda x: max(0.0, 1.0 - x),
    "cosine": lambda x: 0.1 + 0.45 * (1.0 + math.cos(math.pi * min(1.0, x))),
}
