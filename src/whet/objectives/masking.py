"""Masking of thoughts (2403.02178): the model reads a response with holes and learns the whole of it.

Each learnt token's *input* is spoilt with probability p; its label stays, also at the hole. The prompt is never touched.
A hole stays visible to attention. What spoils it must destroy its meaning (the paper's table 3).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from whet.errors import WhetError, unknown
from whet.models.packing import Batch
from whet.models.policy import Policy
from whet.objectives.ahead import check_embeddings, predicted
from whet.objectives.forward import Context
from whet.objectives.schedule import Ramp
from whet.objectives.views import Clean, Seen, View, drawn, uniform

NOISES = {
    "mask": "the tokenizer's mask token, or its pad",
    "random": "a token drawn from the whole vocabulary",
    "zero": "a zero embedding",
    "uniform": "its own embedding with much uniform noise",
    "sample": "a token that the policy itself predicts there (scheduled sampling)",
}
UNIFORM = 1000.0  # alpha of NEFTune's formula in the paper's table 3


@dataclass(frozen=True)
class Masking(View):
    """Learnt tokens are spoilt in the input, each visit anew.

    Attributes:
        p: the probability.
        noise: one of `NOISES`.
        temperature: of `sample`.
    """

    p: Ramp
    noise: str = "mask"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.noise not in NOISES:
            raise unknown("noise", self.noise, NOISES)

    def check(self, policy: Policy) -> None:
        if self.noise == "mask":
            mask_id(policy)
        elif self.noise in ("zero", "uniform"):
            check_embeddings(policy)

    def at(self, ctx: Context, name: str) -> View:
        p = self.p.at(ctx.step, ctx.steps)
        if p == 0:
            return Clean()
        return Masked(p, self.noise, predicted(ctx, name, self.temperature) if self.noise == "sample" else None)


@dataclass(frozen=True, eq=False)
class Masked(View):
    """The same at one step; `guess` (N,) are the policy's own predictions."""

    p: float
    noise: str
    guess: Tensor | None = None

    def see(self, policy: Policy, batch: Batch, seed: int) -> Seen:
        learnt = pad_sequence([s.learn_mask for s in batch.samples], batch_first=True).to(batch.ids.device)
        hit = learnt & (drawn(batch, seed, lambda draw, n: torch.rand(n, generator=draw), "mask") < self.p)
        if self.noise == "zero":
            return Seen(batch.ids, embeds=policy.embed(batch.ids).masked_fill(hit[..., None], 0.0))
        if self.noise == "uniform":
            embeds = policy.embed(batch.ids)
            return Seen(batch.ids, embeds=embeds + hit[..., None] * uniform(batch, seed, embeds, UNIFORM))
        if self.guess is not None:
            other = batch.ids.index_put((batch.sequence, batch.position), self.guess)
        elif self.noise == "random":
            size = len(policy.tokenizer)
            other = drawn(batch, seed, lambda draw, n: torch.randint(size, (n,), generator=draw), "token")
        else:
            other = torch.full_like(batch.ids, mask_id(policy))
        return Seen(torch.where(hit, other, batch.ids))


def mask_id(policy: Policy) -> int:
    """The token that stands for a hole.

    Raises:
        WhetError: the tokenizer has neither a mask token nor a pad that is not an end token.
    """
    tokenizer = policy.tokenizer
    for found in (tokenizer.mask_token_id, tokenizer.pad_token_id):
        if found is not None and found not in policy.format.end_ids:
            return int(found)
    raise WhetError(f"noise=mask needs a token for the holes, and the tokenizer of '{policy.name}' has neither a mask token "
                    "nor a pad token of its own; use noise=random")  # fmt: skip
