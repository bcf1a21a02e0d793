"""Sparse autoencoder of a decoder block's output: few latents of many, each a direction (top-k: Gao et al., 2406.04093).

    z = the k largest of relu(W_enc (x - b_dec) + b_enc), else 0        x~ = W_dec z + b_dec
    FVU = sum |x - x~|^2 / sum |x - mean x|^2                            the fraction of variance unexplained

A row of W_dec is a latent's direction; it is divided by its length wherever it is used, so that it is a unit vector and its gradient
has no part along it. W_enc begins as W_dec's transpose, b_enc as 0. It lies in `policy.modules["sae"]`: it is trained, checkpointed
and resumed with the policy, and no part of what `Policy.save` writes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whet.errors import WhetError
from whet.models.hooks import Splice, blocks, spliced, without_gradient
from whet.models.packing import Batch
from whet.models.policy import Policy
from whet.records import Row

NAME = "sae"


class SparseAutoencoder(nn.Module):
    """Codes vectors of `width` entries by at most `active` of `latents` directions.

    Args:
        block: whose output it codes.

    Raises:
        WhetError: fewer latents than are to be active.
    """

    def __init__(
        self, width: int, latents: int, active: int, block: int = 0, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        if not 1 <= active <= latents:
            raise WhetError(f"a sparse code has 1 to all of its latents active, not {active} of {latents}")
        self.active, self.block = active, block
        self.decoder = nn.Parameter(F.normalize(torch.randn(latents, width, dtype=dtype), dim=-1))
        self.encoder = nn.Parameter(self.decoder.detach().clone())
        self.encoder_bias = nn.Parameter(torch.zeros(latents, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(width, dtype=dtype))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(..., width) -> values and places (..., active) of the largest latents; a value may be 0."""
        values, places = F.linear(x - self.bias, self.encoder, self.encoder_bias).relu().topk(self.active, sorted=False)
        return values, places

    def decode(self, values: Tensor, places: Tensor) -> Tensor:
        """Back to (..., width)."""
        directions = F.normalize(self.decoder, dim=-1)
        flat, weights = places.flatten(0, -2), values.flatten(0, -2)
        made = F.embedding_bag(flat, directions, per_sample_weights=weights, mode="sum")
        return made.unflatten(0, places.shape[:-1]) + self.bias

    def codes(self, x: Tensor) -> Tensor:
        """(..., latents) of x, zeros among them."""
        values, places = self.encode(x)
        return values.new_zeros(*x.shape[:-1], len(self.decoder)).scatter(-1, places, values)

    def forward(self, x: Tensor) -> Tensor:
        """x~ (..., width), in x's own precision; inside it computes in that of its weights."""
        with torch.autocast(x.device.type, enabled=False):
            return self.decode(*self.encode(x.to(self.bias.dtype))).to(x.dtype)

    def flops(self, vectors: int) -> float:
        """Of coding so many, once; a backward that trains it costs twice as much."""
        return 2.0 * vectors * (self.encoder.numel() + self.active * len(self.bias))


def fvu(x: Tensor, coded: Tensor) -> Tensor:
    """Fraction of the variance of x (N, width) that `coded` leaves unexplained: 0 is perfect, 1 is as good as the mean of x."""
    return (x - coded).square().sum() / (x - x.mean(0)).square().sum()


def exclusive(codes: Tensor, marked: Tensor) -> Tensor:
    """(latents,) bool: active at every marked token of codes (T, latents), and at no other; `marked` is (T,) bool.

    With <think> and </think> of a prompt marked these are SAE-tuning's reasoning features (2506.09967, section 5).
    """
    active = codes > 0
    return active[marked].all(0) & ~active[~marked].any(0) & bool(marked.any())


# -- of a policy ---------------------------------------------------------------------------------------------------------
def place_of(policy: Policy, block: int | None, *, before_last: bool = False) -> int:
    """A block's place from 0; None is the middle one, and of an even number the earlier of both.

    Args:
        before_last: whether another one must come after it.

    Raises:
        WhetError: there is no such block.
    """
    count = len(blocks(policy))
    place = (count - 1) // 2 if block is None else block
    last = count - 1 - before_last
    if not 0 <= place <= last:
        after = " with another one after it, and adapters there to be trained" if before_last else ""
        raise WhetError(f"block {place} of {type(policy.model).__name__}: its {count} blocks are counted from 0, so that {last} is the "
                        f"last one{after}")  # fmt: skip
    return place


def new_autoencoder(policy: Policy, latents: int, active: int, block: int | None = None) -> SparseAutoencoder:
    """One for `Stage(modules={"sae": ...})`, in fp32 (fp64 where the policy is)."""
    dtype = torch.float64 if policy.dtype == torch.float64 else torch.float32
    return SparseAutoencoder(policy.model.config.hidden_size, latents, active, place_of(policy, block), dtype)


def autoencoder(policy: Policy) -> SparseAutoencoder:
    """The one that the policy has.

    Raises:
        WhetError: it has none.
    """
    if NAME not in policy.modules:
        raise WhetError(
            'the policy has no sparse autoencoder: modules={"sae": ...} of this stage or an earlier one makes it'
        )
    return policy.modules[NAME]  # type: ignore[return-value]


@torch.no_grad()
def outputs(policy: Policy, batch: Batch, block: int) -> Tensor:
    """(N, width) what a block gives on at all real tokens of a batch, sequences in order, without a gradient."""
    seen: list[Tensor] = []
    with spliced(policy, {block: seen.append}):
        policy.hidden(batch.ids)
    return seen[0][batch.mask]


@torch.no_grad()
def centre(policy: Policy, rows: Sequence[Row]) -> None:
    """Begin from the mean of what the block gives on: b_dec of the policy's autoencoder."""
    sae = autoencoder(policy)
    batch = Batch.of([s for row in rows for s in row.all()], policy.device)
    sae.bias.copy_(outputs(policy, batch, sae.block).to(sae.bias.dtype).mean(0))


def coded(policy: Policy, *, through: bool = False) -> dict[int, Splice]:
    """What splices the policy's autoencoder in, for `hooks.spliced`: the block gives on x~ at every token.

    Args:
        through: whether a gradient passes to the blocks before; it never reaches the autoencoder's own weights.
    """
    sae = autoencoder(policy)
    frozen = {name: p.detach() for name, p in sae.named_parameters()}

    def splice(hidden: Tensor) -> Tensor:
        backward = through and torch.is_grad_enabled()
        policy.meter.flops += (1 + backward) * sae.flops(hidden.shape[:-1].numel())
        return torch.func.functional_call(sae, frozen, (hidden,))

    return {sae.block: splice if through else without_gradient(splice)}
