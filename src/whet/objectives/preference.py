"""Preference losses on pairs: DPO (2305.18290) and the variants the field uses.

With sequence scores s = sum (or mean) of the learnt tokens' log-probs of the chosen (w) and rejected (l) response, and
D = (s_w - ref_w) - (s_l - ref_l), the loss of a pair is

    sigmoid       -log sig(beta D)                                            DPO
    cdpo          -(1 - e) log sig(beta D) - e log sig(-beta D)               e = smoothing, 2403.00409
    robust        [-(1 - e) log sig(beta D) + e log sig(-beta D)] / (1 - 2e)  e = flip, below 1/2; can be negative
    hinge         max(0, 1 - beta D)                                          SLiC
    ipo           (D - 1 / (2 tau))^2                          of means, 2310.12036
    sigmoid_norm  sigmoid of means
    simpo         -log sig(beta (s_w - s_l) - gamma)           of means, no reference, 2405.14734
    orpo          -s_w - lam log sig(log-odds)                 of means, no reference, 2403.07691
    dpop          -log sig(beta (D - lam max(0, ref_w - s_w))) keeps the chosen log-prob from falling

`+ sft` is `+ alpha * nll(role="chosen")`. Sum or mean is the commonest silent error, and beta must change with it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from whet.errors import WhetError, unknown
from whet.objectives.forward import Context
from whet.objectives.objective import Term


@dataclass(frozen=True)
class Scores:
    """(B,) sequence scores of the two sides; the references are zero where there is none."""

    chosen: Tensor
    rejected: Tensor
    reference_chosen: Tensor
    reference_rejected: Tensor

    @property
    def delta(self) -> Tensor:
        """(B,) how much more than the reference the policy prefers the chosen side."""
        return (self.chosen - self.reference_chosen) - (self.rejected - self.reference_rejected)


def sigmoid(s: Scores, beta: float = 0.1) -> Tensor:
    return -logsigmoid(beta * s.delta)


def cdpo(s: Scores, beta: float = 0.1, smoothing: float = 0.1) -> Tensor:
    return -(1 - smoothing) * logsigmoid(beta * s.delta) - smoothing * logsigmoid(-beta * s.delta)


def robust(s: Scores, beta: float = 0.1, flip: float = 0.1) -> Tensor:
    if not 0 <= flip < 0.5:
        raise WhetError(f"dpo: robust needs 0 <= flip < 0.5, not {flip:g}")
    return (-(1 - flip) * logsigmoid(beta * s.delta) + flip * logsigmoid(-beta * s.delta)) / (1 - 2 * flip)


def hinge(s: Scores, beta: float = 0.1) -> Tensor:
    return (1 - beta * s.delta).clamp(min=0)


def ipo(s: Scores, tau: float = 0.1) -> Tensor:
    return (s.delta - 1 / (2 * tau)).square()


def simpo(s: Scores, beta: float = 2.0, gamma: float = 1.0) -> Tensor:
    return -logsigmoid(beta * (s.chosen - s.rejected) - gamma)


def orpo(s: Scores, lam: float = 0.1) -> Tensor:
    return -s.chosen - lam * logsigmoid(log_odds(s.chosen, s.rejected))


def dpop(s: Scores, beta: float = 0.1, lam: float = 50.0) -> Tensor:
    return -logsigmoid(beta * (s.delta - lam * (s.reference_chosen - s.chosen).clamp(min=0)))


@dataclass(frozen=True)
class Variant:
    """A pairwise loss, on `sum` or `mean` scores, with a reference or without."""

    loss: Callable[..., Tensor]
    scores: str = "sum"
    reference: bool = True


VARIANTS = {
    "sigmoid": Variant(sigmoid),
    "cdpo": Variant(cdpo),
    "robust": Variant(robust),
    "hinge": Variant(hinge),
    "ipo": Variant(ipo, "mean"),
    "sigmoid_norm": Variant(sigmoid, "mean"),
    "simpo": Variant(simpo, "mean", reference=False),
    "orpo": Variant(orpo, "mean", reference=False),
    "dpop": Variant(dpop),
}


class Preference(Term):
    """A pairwise loss over rows with roles `chosen` and `rejected`, times a row's number `weight` (1 if absent).

    Args:
        loss: one of `VARIANTS`.
        scores: `sum` or `mean` over learnt tokens; by default the variant's own.
        reference_free: leave the reference out of D (`simpo` and `orpo` have none).
        settings: the variant's own numbers (`beta`, `smoothing`, `flip`, `tau`, `gamma`, `lam`); another's are refused.
    """

    roles = ("chosen", "rejected")
    normalise = "row"
    couples = "row"

    def __init__(
        self,
        loss: str = "sigmoid",
        *,
        scores: str | None = None,
        reference_free: bool = False,
        name: str = "dpo",
        **settings: float,
    ) -> None:
        if loss not in VARIANTS:
            raise unknown("preference loss", loss, VARIANTS)
        variant = VARIANTS[loss]
        known = {p.name: p.default for p in inspect.signature(variant.loss).parameters.values()}
        known.pop("s")
        for setting in settings:
            if setting not in known:
                raise unknown(f"setting of the preference loss '{loss}'", setting, known)
        if scores not in (None, "sum", "mean"):
            raise WhetError(f"dpo: scores are a sum or a mean, not '{scores}'")
        if reference_free and loss == "dpop":
            raise WhetError("dpo: dpop holds the chosen log-prob at the reference's; it cannot be reference_free")
        self.name = name
        self.loss = loss
        self.variant = variant
        self.settings: dict[str, Any] = {**known, **settings}
        variant.loss(Scores(*torch.zeros(4, 1)), **self.settings)  # refuses settings out of range now, not in step 1
        self.scores = scores or variant.scores
        self.reference = variant.reference and not reference_free
        self.needs = frozenset({"reference_logprob"}) if self.reference else frozenset()

    def total(self, ctx: Context) -> Tensor:
        scores = self._scores(ctx)
        self._log(ctx, scores)
        return (ctx.numbers("weight", default=1.0) * self.variant.loss(scores, **self.settings)).sum()

    def _scores(self, ctx: Context) -> Scores:
        if any(len(row.get(role)) != 1 for row in ctx.rows for role in self.roles):
            raise WhetError("dpo: each row needs one chosen and one rejected sample")
        policy, reference = [], []
        for role in self.roles:
            forward = ctx.forward(role)
            weights = forward.batch.weights.to(forward.dtype)
            mean = self.scores == "mean"
            policy.append(forward.by_sequence(weights * forward.logprobs, mean=mean))
            held = ctx.reference_logprobs(role) if self.reference else torch.zeros_like(weights)
            reference.append(forward.by_sequence(weights * held, mean=mean))
        return Scores(*policy, *reference)

    def _log(self, ctx: Context, s: Scores) -> None:
        beta = self.settings.get("beta", 1.0)
        ctx.log("chosen_reward", beta * (s.chosen - s.reference_chosen))
        ctx.log("rejected_reward", beta * (s.rejected - s.reference_rejected))
        ctx.log("margin", beta * s.delta)
        ctx.log("pair_accuracy", (s.delta > 0).float())
        ctx.log("chosen_logprob", s.chosen)  # falls where likelihood is displaced, while the margin grows


def log_odds(chosen: Tensor, rejected: Tensor) -> Tensor:
    """(B,) log odds(chosen) - log odds(rejected), of mean log-probs."""
    return (chosen - rejected) - (log1mexp(chosen) - log1mexp(rejected))


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x) for x <= 0 without cancellation (Maechler, 2012). At 0, where it is infinite, x is held below."""
    x = x.clamp(max=-torch.finfo(x.dtype).eps)
    near = x > -math.log(2)
    # both branches are differentiated, so each gets arguments at which it is finite
    small = torch.where(near, x, -1.0)
    large = torch.where(near, -1.0, x)
    return torch.where(near, torch.log(-torch.expm1(small)), torch.log1p(-torch.exp(large)))


dpo = Preference
