"""Relation propagation (IFT, 2405.11870, algorithm 1): a token's loss weighs as much as the losses that follow from it.

    W_t = sum_{k >= t} gamma^(k-t) l_k        product:  L = sum_t W_t l_t / sum_t W_t       (algorithm 1, the authors' code)
                                              sum:      L = sum_t W_t / sum_t c_t           (equation 21)

with c_t the weight that l_t has in sum_t W_t, (1 - gamma^(t+1)) / (1 - gamma), t from 0. In `product` the weights follow
the losses and carry a gradient; in `sum` they are fixed and grow with t. Each sequence is on its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from whet.errors import WhetError, unknown
from whet.models.packing import Batch
from whet.objectives.forward import Context
from whet.objectives.objective import Term
from whet.objectives.views import View

FORMS = ("product", "sum")
NOTHING = 1e-8  # nats: a sequence that is fitted as well as that has no losses to weigh by


def decay(length: int, gamma: float, like: Tensor) -> Tensor:
    """(length, length): gamma^(k-t) at row k and column t <= k, else 0."""
    steps = torch.arange(length, device=like.device)
    return torch.where(
        steps[:, None] >= steps, gamma ** (steps[:, None] - steps).clamp(min=0).to(like), like.new_zeros(())
    )


def propagate(losses: Tensor, gamma: float) -> Tensor:
    """(B, T) W of losses (B, T) that are 0 where a sequence has ended."""
    return losses @ decay(losses.shape[1], gamma, losses)


def relation_weights(losses: Tensor, batch: Batch, gamma: float, form: str = "product") -> Tensor:
    """(N,) weights of the learnt tokens' losses (N,), of mean 1 in each sequence."""
    if gamma == 0:  # the formula would give W_t = l_t; the authors' code takes plain likelihood
        return torch.ones_like(losses)
    starts = batch.lengths.cumsum(0) - batch.lengths
    place = torch.arange(len(losses), device=losses.device) - starts[batch.sequence]
    where = (batch.sequence, place)
    grid = losses.new_zeros(len(batch.samples), int(batch.lengths.max()))
    if form == "product":
        relation = propagate(grid.index_put(where, losses), gamma)[where]
    else:
        relation = decay(grid.shape[1], gamma, grid).sum(1)[place]
    total = grid.new_zeros(len(batch.samples)).index_add(0, batch.sequence, relation)
    return relation * (batch.lengths / (total + NOTHING))[batch.sequence]


@dataclass
class Propagated(Term):
    """Likelihood whose tokens weigh as much as the discounted losses from them on.

    Attributes:
        gamma: the discount; 0 is plain likelihood.
        form: `product` or `sum`, see above.
        view: how the model sees the sequences.
        normalise: `sequence` is the paper's.
    """

    gamma: float = 0.95
    form: str = "product"
    view: View | None = None
    normalise: str = "sequence"
    role: str = "response"
    name: str = "ift"

    def __post_init__(self) -> None:
        self.roles = (self.role,)
        if not 0 <= self.gamma <= 1:
            raise WhetError(f"ift: gamma is between 0 and 1, not {self.gamma:g}")
        if self.form not in FORMS:
            raise unknown("form of ift", self.form, FORMS)

    def total(self, ctx: Context) -> Tensor:
        forward = ctx.forward(self.role, self.view)
        losses = -forward.logprobs
        ctx.log("nll", losses)
        return forward.reduce(relation_weights(losses, forward.batch, self.gamma, self.form) * losses, self.normalise)
