"""The value head and its clipped loss (PPO, 1707.06347).

`Forward.hidden` holds the states *before* each learnt token, so `values(forward)[t]` is V_t of the state in which
action t was chosen; nothing needs to be shifted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from whet.errors import WhetError
from whet.models.policy import Policy
from whet.objectives.forward import Context, Forward
from whet.objectives.objective import Term


def value_head(policy: Policy, width: int = 0) -> nn.Linear | nn.Sequential:
    """A head h -> 1 for `Stage(modules={"value": value_head})`; with a `width` two layers h -> width -> 1, a relu between.

    It starts near V = 0, but not at 0: through a zero head no gradient of the value loss would reach the backbone.
    """
    last = nn.Linear(width or policy.model.get_output_embeddings().weight.shape[1], 1)
    layers = [nn.Linear(policy.model.get_output_embeddings().weight.shape[1], width), last] if width else [last]
    generator = torch.Generator().manual_seed(0)
    for layer in layers:
        scale = 0.1 if layer is last else 1.0
        nn.init.normal_(layer.weight, std=scale / layer.in_features**0.5, generator=generator)
        nn.init.zeros_(layer.bias)
    head = nn.Sequential(layers[0], nn.ReLU(), last) if width else last
    return head.to(policy.device, torch.float64 if policy.dtype == torch.float64 else torch.float32)


def values(forward: Forward) -> Tensor:
    """(N,) V of the state before each learnt token. On a shared backbone its gradient reaches the policy's weights."""
    if "value" not in forward.policy.modules:
        raise WhetError('this stage learns or reads values and has no value head: modules={"value": value_head}')
    head = forward.policy.modules["value"]
    dtype = next(head.parameters()).dtype
    return head(forward.hidden.to(dtype))[:, 0].to(forward.dtype)


def squared_error(value: Tensor, returns: Tensor, old: Tensor | None, clip: float | None) -> Tensor:
    """(N,) half the squared error; with `clip`, the larger of it and that of `old` moved by at most `clip`."""
    error = (value - returns).square()
    if clip is not None and old is not None:
        error = torch.maximum(error, (old + (value - old).clamp(-clip, clip) - returns).square())
    return 0.5 * error


@dataclass
class ValueLoss(Term):
    """1/2 max((V - R)^2, (V_old + clip(V - V_old, +-clip) - R)^2), with R the `return` of `generalized_advantage`.

    Attributes:
        clip: how far V may move from V_old; None does not clip.
    """

    clip: float | None = 0.2
    normalise: str = "token"
    role: str = "response"
    name: str = "value"

    def __post_init__(self) -> None:
        self.roles = (self.role,)
        self.needs = frozenset() if self.clip is None else frozenset({"old_value"})

    def total(self, ctx: Context) -> Tensor:
        forward = ctx.forward(self.role)
        old = None if self.clip is None else forward.values("old_value")
        loss = squared_error(values(forward), forward.values("return"), old, self.clip)
        return forward.reduce(loss, self.normalise)


value_loss = ValueLoss
