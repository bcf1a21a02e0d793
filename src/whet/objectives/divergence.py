"""Divergence from a reference, and entropy.

Sampled estimators of KL(policy || reference) at the learnt tokens, with d = log ref - log pi (Schulman, "Approximating
KL divergence", 2020):

    k1 = -d      k2 = d^2 / 2      k3 = e^d - d - 1

As losses, the gradient of k1 has expectation zero (it does not regularise), that of k2 is right, that of k3 nearly. The
exact divergences sum over the whole vocabulary instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from whet.errors import unknown
from whet.objectives.forward import Context, Forward, kl
from whet.objectives.objective import Term
from whet.objectives.views import View

LOG_LIMIT = 20.0  # log-ratios are clamped to +-20, as in verl: beyond it e^x only serves to overflow


def k1(logprob: Tensor, reference: Tensor) -> Tensor:
    """log pi - log ref: unbiased, of either sign."""
    return logprob - reference


def k2(logprob: Tensor, reference: Tensor) -> Tensor:
    """Half the squared log-ratio: biased, never negative."""
    return 0.5 * (logprob - reference).square()


def k3(logprob: Tensor, reference: Tensor) -> Tensor:
    """ref/pi - log(ref/pi) - 1: unbiased and never negative."""
    delta = (reference - logprob).clamp(-LOG_LIMIT, LOG_LIMIT)
    return delta.exp() - delta - 1


ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}


def log_ratio(forward: Forward) -> Tensor:
    """(N,) log pi / pi_old. Where no old log-probs were kept the policy itself is the old one: 0, with a gradient."""
    logprob = forward.logprobs
    has_old = all("old_logprob" in s.per_token for s in forward.batch.samples)
    return logprob - (forward.values("old_logprob") if has_old else logprob.detach())


@dataclass
class KLToReference(Term):
    """A sampled estimate of KL(policy || reference) as a loss (GRPO's with k3).

    Attributes:
        estimator: `k1`, `k2` or `k3`.
        bias_correction: multiply by pi / pi_old, differentiated too, which makes the gradient that of the divergence
            (DeepSeek-V3.2; `use_bias_correction_kl` in TRL).
    """

    estimator: str = "k3"
    bias_correction: bool = False
    normalise: str = "sequence"
    role: str = "response"
    name: str = "kl"
    needs = frozenset({"reference_logprob"})

    def __post_init__(self) -> None:
        self.roles = (self.role,)
        if self.estimator not in ESTIMATORS:
            raise unknown("KL estimator", self.estimator, ESTIMATORS)

    def total(self, ctx: Context) -> Tensor:
        forward = ctx.forward(self.role)
        value = ESTIMATORS[self.estimator](forward.logprobs, ctx.reference_logprobs(self.role))
        ctx.log(self.name, value)
        if self.bias_correction:
            value = value * log_ratio(forward).clamp(-LOG_LIMIT, LOG_LIMIT).exp()
        return forward.reduce(value, self.normalise)


@dataclass
class ForwardKL(Term):
    """Exact KL(reference || policy) at each learnt token: sum over v of ref(v) (log ref(v) - log pi(v)).

    The reference comes first: mode-covering, the direction of ASFT and of distillation from the reference.

    Attributes:
        view: what the policy reads; the reference reads the samples as they are.
    """

    normalise: str = "token"
    role: str = "response"
    name: str = "forward_kl"
    view: View | None = None
    needs = frozenset({"reference"})

    def __post_init__(self) -> None:
        self.roles = (self.role,)

    def total(self, ctx: Context) -> Tensor:
        return _exact(ctx, self, lambda policy, targets, reference: kl(reference, targets, policy))


@dataclass
class ReverseKL(Term):
    """Exact KL(policy || reference) at each learnt token: sum over v of pi(v) (log pi(v) - log ref(v)).

    The policy comes first: mode-seeking; what k1, k2 and k3 estimate on the policy's own samples.

    Attributes:
        view: as `ForwardKL`'s.
    """

    normalise: str = "token"
    role: str = "response"
    name: str = "reverse_kl"
    view: View | None = None
    needs = frozenset({"reference"})

    def __post_init__(self) -> None:
        self.roles = (self.role,)

    def total(self, ctx: Context) -> Tensor:
        return _exact(ctx, self, kl)


@dataclass
class Entropy(Term):
    """Minus the entropy of each learnt token's distribution, so that a positive weight keeps the policy random."""

    normalise: str = "token"
    role: str = "response"
    name: str = "entropy_bonus"

    def __post_init__(self) -> None:
        self.roles = (self.role,)

    def total(self, ctx: Context) -> Tensor:
        forward = ctx.forward(self.role)
        ctx.log("entropy", forward.entropy)
        return forward.reduce(-forward.entropy, self.normalise)


def _exact(ctx: Context, term: ForwardKL | ReverseKL, fn: Callable[..., Tensor]) -> Tensor:
    forward = ctx.forward(term.role, term.view)
    value = forward.per_token(fn, ctx.forward(term.role, who="reference", grad=False))
    ctx.log(term.name, value)
    return forward.reduce(value, term.normalise)


kl_to_reference = KLToReference
forward_kl = ForwardKL
reverse_kl = ReverseKL
entropy_bonus = Entropy
