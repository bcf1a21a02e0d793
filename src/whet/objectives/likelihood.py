"""Likelihood: the sum of w log p over learnt tokens, with weights that may be negative.

    total = - sum_i w_i sum_t w_t log p(token t of i)

The weights never enter the count: halving all of them halves the loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from whet.errors import WhetError
from whet.objectives.forward import Context
from whet.objectives.objective import Term
from whet.objectives.views import View


@dataclass
class Likelihood(Term):
    """Negative log-likelihood, in nats.

    Attributes:
        normalise: see `objectives.objective`.
        role: whose learnt tokens.
        weight: the name of a row number that multiplies the loss of its sequences, of either sign; None for 1. A
            token's segment weight multiplies it too.
        view: how the model sees the sequences; the labels stay.
        name: as it appears in the metrics.
    """

    normalise: str = "token"
    role: str = "response"
    weight: str | None = None
    view: View | None = None
    name: str = "nll"
    behaviour: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self.roles = (self.role,)

    def total(self, ctx: Context) -> Tensor:
        forward = ctx.forward(self.role, self.view)
        loss = -forward.logprobs
        if self.weight is not None:
            loss = loss * ctx.numbers(self.weight, self.role)[forward.batch.sequence]
        return forward.reduce(loss, self.normalise)


@dataclass
class ProbabilityWeighted(Term):
    """Likelihood in which each token weighs as much as the policy now thinks it probable (DFT, 2508.05629):

        total = - sum_t w_t sg[p_t]^power log p_t                    sg: no gradient

    Its gradient at the logits is p_t (P_t - e_t), where that of the likelihood is P_t - e_t: what the model finds
    improbable, which may be noise, it does not learn. It is small at both ends (p = 0 and p = 1), so the plain
    negative log-likelihood is logged beside it.

    Attributes:
        power: 1 is DFT, 0 the likelihood.
        normalise, role, view, name: as `Likelihood`'s.
    """

    normalise: str = "token"
    power: float = 1.0
    role: str = "response"
    view: View | None = None
    name: str = "dft"

    def __post_init__(self) -> None:
        self.roles = (self.role,)
        if self.power < 0:
            raise WhetError(f"dft: a power of {self.power:g} would make improbable tokens weigh more; give 0 or more")

    def total(self, ctx: Context) -> Tensor:
        forward = ctx.forward(self.role, self.view)
        loss = -forward.logprobs
        ctx.log("nll", loss)
        return forward.reduce((-self.power * loss.detach()).exp() * loss, self.normalise)


nll = Likelihood
dft = ProbabilityWeighted
