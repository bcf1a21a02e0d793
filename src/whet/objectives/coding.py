"""Sparse autoencoders in objectives: the loss that trains one, and the view of a policy with one spliced in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from whet.models.autoencoder import autoencoder, coded, fvu, outputs, place_of
from whet.models.hooks import Splice
from whet.models.packing import Batch
from whet.models.policy import Policy
from whet.objectives.forward import Context
from whet.objectives.objective import Term
from whet.objectives.views import Spliced


@dataclass(frozen=True)
class Coded(Spliced):
    """A block gives on, at every token, what the policy's sparse autoencoder makes of its output.

    Attributes:
        block: which one, from 0, as the autoencoder was made for; None is the middle one.
        through: whether a gradient passes to what lies before; else only what comes after can learn.
    """

    block: int | None = None
    through: bool = False

    def check(self, policy: Policy) -> None:
        place_of(policy, self.block, before_last=not self.through)

    def splices(self, policy: Policy, batch: Batch, seed: int) -> Mapping[int, Splice]:
        return coded(policy, through=self.through)


@dataclass
class Reconstruction(Term):
    """Fraction of variance unexplained of a block's output at all tokens, prompts among them, as the loss of the policy's sparse
    autoencoder. Only that gets a gradient.

    It is a ratio over the whole optimizer batch, which is therefore run as one, on one rank: without a gradient through the model.

    Attributes:
        block: as `Coded`'s.
    """

    block: int | None = None
    normalise: str = "none"
    role: str = "response"
    name: str = "fvu"
    couples: ClassVar[str] = "batch"
    behaviour: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self.roles = (self.role,)

    def check(self, policy: Policy) -> None:
        place_of(policy, self.block)

    def total(self, ctx: Context) -> Tensor:
        policy, sae = ctx.policy, autoencoder(ctx.policy)
        x = outputs(policy, ctx.batch(self.role), sae.block).to(sae.bias.dtype)
        policy.meter.flops += 3 * sae.flops(len(x))
        values, places = sae.encode(x)
        ctx.log("latents_used", values.new_tensor(places[values > 0].unique().numel() / len(sae.decoder)))
        return fvu(x, sae.decode(values, places))
