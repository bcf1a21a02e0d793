"""Policy gradient with importance ratios: PPO, GRPO, DAPO, Dr.GRPO, GSPO, CISPO and their relatives are its settings.

With rho = pi / pi_old and the advantage A of each token (written by `whet.advantages`), the loss of a token is

    token      max(-rho A, -clip(rho, 1 - low, 1 + high) A)                       PPO 1707.06347, GRPO 2402.03300
    sequence   the same of s = exp(mean_t log rho), in the per-token gradient form  GSPO 2507.18071
    cispo      -sg[clamp(rho, floor, cap)] A log pi: no token loses its gradient   CISPO 2506.13585
    none       -rho A

pi_old is `per_token["old_logprob"]` where the trainer recomputed it (several updates on one batch); otherwise the
policy itself: rho = exp(lp - sg[lp]), which is 1 with the right gradient. On such a batch no clip acts and `sequence`
equals `token`. The sampler's own log-probs enter only the mismatch log and its correction weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from whet.errors import WhetError, unknown
from whet.objectives.divergence import LOG_LIMIT, log_ratio
from whet.objectives.forward import Context, Forward
from whet.objectives.given import Given
from whet.objectives.objective import Term
from whet.records import Row

CLIPS = {"token": (0.2, 0.2), "sequence": (3e-4, 4e-4)}
RATIOS = ("token", "sequence", "cispo", "none")
CORRECTIONS = ("none", "tis", "mask")
BOUNDS = {"token": (0.5, 2.0), "sequence": (0.5, 2.0), "geometric": (0.999, 1.001)}


def clipped(ratio: Tensor, advantage: Tensor, clip: tuple[float, float], dual_clip: float | None = None) -> Tensor:
    """PPO's pessimistic loss; with `dual_clip` c, at most -c A where A < 0 (TRL's `delta`)."""
    low, high = clip
    loss = torch.maximum(-ratio * advantage, -ratio.clamp(1 - low, 1 + high) * advantage)
    if dual_clip is None:
        return loss
    return torch.where(advantage < 0, torch.minimum(loss, -dual_clip * advantage), loss)


def sequence_log_ratio(forward: Forward, delta: Tensor) -> Tensor:
    """(N,) sg[log s] + lp - sg[lp]: the value of each token's sequence, the gradient of its own log-prob."""
    mean = forward.by_sequence(delta.detach(), mean=True)[forward.batch.sequence]
    return (mean + delta - delta.detach()).clamp(max=10.0)


@dataclass
class PolicyGradient(Term):
    """-J over the tokens of sampled responses; maximises J.

    Attributes:
        ratio: `token`, `sequence`, `cispo` or `none`; see above.
        clip: (low, high) of `token` and `sequence`; by default (0.2, 0.2) and (3e-4, 4e-4). DAPO: (0.2, 0.28).
        dual_clip: c > 1 + high bounds the loss where A < 0, for `token` and `sequence`.
        cap, floor: bounds of rho in `cispo`; by default 5 and none (TRL); 1 + high and 1 - low in verl.
        normalise: see `objectives.objective`; `sequence` in GRPO, `token` in DAPO, `constant` in Dr.GRPO.
        correction: for a sampler mu that disagrees with the trainer, w = pi_old / mu: `tis` multiplies the loss by
            min(w, correction_cap), `mask` drops what has w outside `bounds`.
        level: w of each `token`, of the `sequence` (a product), or its `geometric` mean over the sequence.
        bounds: by default (0.5, 2), for `geometric` (0.999, 1.001).
        given: how tokens that no policy drew are learnt (the prefix of a demonstration); None is like all others.
    """

    ratio: str = "token"
    clip: tuple[float, float] | None = None
    dual_clip: float | None = None
    cap: float | None = None
    floor: float | None = None
    normalise: str = "sequence"
    correction: str = "none"
    level: str = "token"
    correction_cap: float = 2.0
    bounds: tuple[float, float] | None = None
    given: Given | None = None
    role: str = "response"
    name: str = "policy_gradient"

    def __post_init__(self) -> None:
        self.roles = (self.role,)
        for what, value, known in (("ratio", self.ratio, RATIOS), ("level", self.level, BOUNDS),
                                   ("correction", self.correction, CORRECTIONS)):  # fmt: skip
            if value not in known:
                raise unknown(what, value, known)
        if self.ratio not in CLIPS and (self.clip or self.dual_clip):
            raise WhetError(f"policy_gradient: clip and dual_clip do nothing with ratio={self.ratio}")
        if self.ratio != "cispo" and (self.cap is not None or self.floor is not None):
            raise WhetError(f"policy_gradient: cap and floor do nothing with ratio={self.ratio}")
        if self.correction != "mask" and self.bounds is not None:
            raise WhetError("policy_gradient: bounds belong to correction=mask")
        if self.dual_clip is not None and self.dual_clip <= 1 + (self.clip or CLIPS[self.ratio])[1]:
            raise WhetError(f"policy_gradient: dual_clip={self.dual_clip:g} must be above 1 + the upper clip")

    def active(self, rows: Sequence[Row]) -> bool:
        """Not where every advantage is zero: all groups were dead."""
        samples = [s for row in rows for s in row.get(self.role)]
        return any(bool((s.per_token["advantage"] * s.learn_mask).any()) for s in samples)

    def total(self, ctx: Context) -> Tensor:
        forward = ctx.forward(self.role)
        advantage = forward.values("advantage")
        given = forward.batch.given
        if self.given is not None and bool(given.any()):
            advantage = self.given.keep(ctx, forward, advantage, given)
        delta = log_ratio(forward)
        logs = sequence_log_ratio(forward, delta) if self.ratio == "sequence" else delta.clamp(-LOG_LIMIT, LOG_LIMIT)
        ratio = logs.exp()
        loss, changed = self._loss(forward, ratio, advantage)
        if self.given is not None and self.given.shape:
            loss = torch.where(given, self.given.shaped(forward.logprobs, advantage), loss)
        _log(ctx, logs.detach(), changed)
        loss = loss * self._correct(ctx, forward, delta, given)
        return forward.reduce(loss, self.normalise)

    def _loss(self, forward: Forward, ratio: Tensor, advantage: Tensor) -> tuple[Tensor, Tensor]:
        """(N,) losses, and where a bound changed them."""
        plain = -ratio * advantage
        if self.ratio == "cispo":
            held = ratio.detach().clamp(self.floor, 5.0 if self.cap is None else self.cap)
            return -held * advantage * forward.logprobs, held != ratio
        if self.ratio == "none":
            return plain, torch.zeros_like(plain, dtype=torch.bool)
        loss = clipped(ratio, advantage, self.clip or CLIPS[self.ratio], self.dual_clip)
        return loss, loss != plain

    def _correct(self, ctx: Context, forward: Forward, delta: Tensor, given: Tensor) -> Tensor:
        """(N,) detached weights for the sampler's mismatch; logs it wherever the sampler's log-probs are known, which those
        of given tokens are not."""
        known = all("sampler_logprob" in s.per_token for s in forward.batch.samples)
        one = torch.ones_like(delta).detach()
        if not known and self.correction == "none":
            return one
        old = (forward.logprobs - delta).detach()
        mismatch = (old - forward.values("sampler_logprob")).masked_fill(given, 0.0)
        for name in ("mismatch", "mismatch_max"):  # the mean and the largest
            ctx.log(name, mismatch[~given].abs())
        if self.correction == "none":
            return one
        if self.level != "token":
            mean = self.level == "geometric"
            mismatch = forward.by_sequence(mismatch, mean=mean)[forward.batch.sequence]
        weight = mismatch.clamp(-LOG_LIMIT, LOG_LIMIT).exp()
        if self.correction == "tis":
            return weight.clamp(max=self.correction_cap)
        low, high = self.bounds or BOUNDS[self.level]
        kept = (weight >= low) & (weight <= high)
        ctx.log("mismatch_masked", 1.0 - kept.float())
        return kept.to(delta.dtype)


def _log(ctx: Context, log_ratio: Tensor, changed: Tensor) -> None:
    if not len(log_ratio):
        return
    ratio = log_ratio.exp()
    ctx.log("clip_fraction", changed.float())
    ctx.log("ratio_max", ratio.max())
    ctx.log("approx_kl", ratio - 1 - log_ratio)


policy_gradient = PolicyGradient
