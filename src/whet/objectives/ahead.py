"""What the policy itself would have written in the place of each learnt token, one step ahead of the given text."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from whet.errors import WhetError
from whet.models.meter import Meter
from whet.models.packing import Batch
from whet.models.policy import Policy
from whet.objectives.forward import Context
from whet.objectives.schedule import Ramp
from whet.objectives.views import Clean, Seen, View, generator
from whet.seeds import rng_for


def predicted(ctx: Context, name: str, temperature: float = 0.0) -> Tensor:
    """(N,) the token that the policy predicts for each learnt place, from the given tokens before it.

    A forward without a gradient, shared by all who ask.

    Args:
        temperature: 0 takes the most probable token; else it is drawn, each from its sequence's own random numbers.
    """
    forward = ctx.forward(name, grad=False)
    if temperature == 0:
        return forward.per_token(lambda logits, targets: logits.argmax(-1))
    batch = forward.batch
    found = [torch.rand(int(n), generator=generator(ctx.seed, batch, row, "ahead"), dtype=torch.float64)
             for row, n in enumerate(batch.lengths)]  # fmt: skip
    uniform = iter(torch.cat(found).tolist())  # chunks come in order, and once where there is no gradient

    def draw(logits: Tensor, targets: Tensor) -> Tensor:
        below = (logits.double() / temperature).softmax(-1).cumsum(-1)
        level = below.new_tensor([next(uniform) for _ in range(len(targets))])
        return torch.searchsorted(below, level[:, None] * below[:, -1:])[:, 0].clamp(max=logits.shape[-1] - 1)

    return forward.per_token(draw)


def check_embeddings(policy: Policy) -> None:
    """Refuse a model that does not take its own input embeddings for its tokens.

    Raises:
        WhetError: it adds something to them that only its ids tell it.
    """
    ids = torch.arange(2, 8, device=policy.device)[None] % policy.model.config.vocab_size
    with torch.no_grad(), policy.metered(Meter()):
        try:
            same = torch.allclose(
                policy.logits(ids), policy.logits(ids, embeds=policy.embed(ids)), rtol=1e-3, atol=1e-3
            )
        except (TypeError, ValueError):
            same = False
    if not same:
        raise WhetError(f"{type(policy.model).__name__} cannot be given input embeddings instead of tokens, which this "
                        "method needs; choose another model")  # fmt: skip


@dataclass(frozen=True)
class Ahead(View):
    """Temporal residual connection (IFT, 2405.11870, eq. 17): each learnt token is read as a mixture of itself and of
    what the policy predicted in its place, (1 - mix) E(token) + mix E(prediction).

    Attributes:
        mix: the share of the prediction.
        noisy: multiply the share by 1 + xi / 2, xi standard normal, one an optimizer step, and clamp it to [0, 1].
        train_embeddings: whether a gradient reaches the input embeddings.
    """

    mix: Ramp
    noisy: bool = False
    train_embeddings: bool = False

    def check(self, policy: Policy) -> None:
        check_embeddings(policy)

    def at(self, ctx: Context, name: str) -> View:
        mix = self.mix.at(ctx.step, ctx.steps)
        if self.noisy:
            mix = min(1.0, max(0.0, mix * (1 + 0.5 * rng_for(ctx.seed, "ahead").gauss(0, 1))))
        if mix == 0 and self.train_embeddings:
            return Clean()
        return Mixed(mix, predicted(ctx, name) if mix else ctx.batch(name).targets, self.train_embeddings)


@dataclass(frozen=True, eq=False)
class Mixed(View):
    """Learnt tokens are read as a mixture with `other` (N,) tokens, in the space of input embeddings."""

    mix: float
    other: Tensor
    train_embeddings: bool = False

    def see(self, policy: Policy, batch: Batch, seed: int) -> Seen:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.train_embeddings):
            embeds = policy.embed(batch.ids)
            own, other = embeds[batch.sequence, batch.position], policy.embed(self.other)
            # lerp gives exactly `own` where both are equal, and exactly `other` at 1
            mixed = torch.lerp(own, other, self.mix)
            return Seen(batch.ids, embeds=embeds.index_put((batch.sequence, batch.position), mixed))
