"""Likelihood: the sum of w log p over learnt tokens, with weights that may be negative.

    total = - sum_i w_i sum_t w_t log p(token t of i)

The weights never enter the count: halving all of them halves the loss.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from whet.objectives.forward import Context
from whet.objectives.objective import Term


@dataclass
class Likelihood(Term):
    """Negative log-likelihood, in nats.

    Attributes:
        normalise: see `objectives.objective`.
        role: whose learnt tokens.
        weight: the name of a row number that multiplies the loss of its sequences, of either sign; None for 1. A
            token's segment weight multiplies it too.
        name: as it appears in the metrics.
    """

    normalise: str = "token"
    role: str = "response"
    weight: str | None = None
    name: str = "nll"

    def __post_init__(self) -> None:
        self.roles = (self.role,)

    def total(self, ctx: Context) -> Tensor:
        forward = ctx.forward(self.role)
        loss = -forward.logprobs
        if self.weight is not None:
            loss = loss * ctx.numbers(self.weight, self.role)[forward.batch.sequence]
        return forward.reduce(loss, self.normalise)


nll = Likelihood
