"""Views: how a forward sees its sequences. The labels stay; only what the model reads changes.

A perturbation is drawn for each visit from (step seed, problem, rollout), not in preprocessing, so that an example is
perturbed differently in each epoch and identically after a resume.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from whet.models.hooks import Splice, blocks, spliced
from whet.models.packing import Batch
from whet.models.policy import Policy
from whet.seeds import seed_for

if TYPE_CHECKING:
    from whet.objectives.forward import Context


@dataclass
class Seen:
    """What the model reads: ids (B, T), mask (B, T) or None for plain causal attention, embeddings or None, and each
    token's position (B, T) or None for its place in the row."""

    ids: Tensor
    mask: Tensor | None = None
    embeds: Tensor | None = None
    positions: Tensor | None = None


class View:
    """A change of the input. Equal views of one batch share a forward, so a view is a frozen dataclass."""

    def check(self, policy: Policy) -> None:
        """Refuse a model that cannot be seen this way. Called before anything runs."""

    def at(self, ctx: Context, name: str) -> View:
        """The view of this step: where schedules get their value and a first forward is run."""
        return self

    def see(self, policy: Policy, batch: Batch, seed: int) -> Seen:
        raise NotImplementedError

    def around(self, policy: Policy, batch: Batch, seed: int) -> contextlib.AbstractContextManager[Any]:
        """A context for the layers' forward: hooks on blocks."""
        return contextlib.nullcontext()


@dataclass(frozen=True)
class Clean(View):
    """The sequences as they are."""

    def see(self, policy: Policy, batch: Batch, seed: int) -> Seen:
        return Seen(batch.ids)


@dataclass(frozen=True)
class Corrupt(View):
    """Replace each token of the given segment kinds by `token` with probability `p`."""

    p: float
    token: int
    kinds: tuple[str, ...] = ("rationale",)

    def see(self, policy: Policy, batch: Batch, seed: int) -> Seen:
        ids = batch.ids.clone()
        for row, hit in enumerate(_draws(batch, seed, self.kinds, self.p)):
            ids[row, : len(hit)][hit.to(ids.device)] = self.token
        return Seen(ids)


@dataclass(frozen=True)
class Hide(View):
    """Nothing attends to tokens of the given segment kinds."""

    kinds: tuple[str, ...]

    def see(self, policy: Policy, batch: Batch, seed: int) -> Seen:
        mask = batch.mask.clone()
        for row, sample in enumerate(batch.samples):
            mask[row, : len(sample)] &= ~sample.span_mask(*self.kinds).to(mask.device)
        return Seen(batch.ids, mask)


@dataclass(frozen=True)
class Noise(View):
    """Add Gaussian noise of standard deviation `scale` to the input embeddings of real tokens."""

    scale: float

    def see(self, policy: Policy, batch: Batch, seed: int) -> Seen:
        embeds = policy.embed(batch.ids)
        noise = torch.zeros_like(embeds)
        for row, sample in enumerate(batch.samples):
            drawn = torch.randn(len(sample), embeds.shape[-1], generator=generator(seed, batch, row))
            noise[row, : len(sample)] = drawn.to(embeds)
        return Seen(batch.ids, embeds=embeds + self.scale * noise)


@dataclass(frozen=True)
class Neftune(View):
    """Add uniform noise in +-alpha / sqrt(length x H) to the input embeddings (NEFTune, 2310.05914).

    The length is the sequence's own, as in the paper, or the `padded` one of the micro-batch, as in the Hugging Face
    trainer: the noise is then weaker, and depends on what else is in the batch.
    """

    alpha: float
    padded: bool = False

    def see(self, policy: Policy, batch: Batch, seed: int) -> Seen:
        embeds = policy.embed(batch.ids)
        return Seen(batch.ids, embeds=embeds + uniform(batch, seed, embeds, self.alpha, self.padded))


class Spliced(View):
    """The sequences as they are, padded; what blocks give on is read or replaced."""

    def check(self, policy: Policy) -> None:
        blocks(policy)

    def see(self, policy: Policy, batch: Batch, seed: int) -> Seen:
        return Seen(batch.ids)

    def splices(self, policy: Policy, batch: Batch, seed: int) -> Mapping[int, Splice]:
        """{block: what is done with its output (B, T, H)}, see `models.hooks`."""
        raise NotImplementedError

    def around(self, policy: Policy, batch: Batch, seed: int) -> contextlib.AbstractContextManager[Any]:
        return spliced(policy, self.splices(policy, batch, seed))


@dataclass(frozen=True, eq=False)
class Read(Spliced):
    """`fn(block, output (B, T, H))` is shown what every block gives on."""

    fn: Callable[[int, Tensor], None]

    def splices(self, policy: Policy, batch: Batch, seed: int) -> Mapping[int, Splice]:
        return {block: partial(self.fn, block) for block in range(len(blocks(policy)))}


@dataclass(frozen=True)
class Dropout(Spliced):
    """Dropout on the output of every block, of the same entries whenever the visit is seen again.

    Attributes:
        p: the share that is dropped; the rest is scaled up by 1 / (1 - p).
        draw: tells two passes of one visit apart.
    """

    p: float
    draw: int = 0

    def splices(self, policy: Policy, batch: Batch, seed: int) -> Mapping[int, Splice]:
        def drop(block: int, hidden: Tensor) -> Tensor:
            size = hidden.shape[-1]
            kept = drawn(batch, seed, lambda draw, n: torch.rand(n, size, generator=draw) >= self.p, block, self.draw)
            return hidden * kept / (1 - self.p)

        return {block: partial(drop, block) for block in range(len(blocks(policy)))}


@dataclass(frozen=True)
class Embeds(View):
    """Replace the input embeddings: fn(embeddings (B, T, H), batch) -> (B, T, H)."""

    fn: Callable[[Tensor, Batch], Tensor]
    name: str = field(default="embeds")

    def see(self, policy: Policy, batch: Batch, seed: int) -> Seen:
        return Seen(batch.ids, embeds=self.fn(policy.embed(batch.ids), batch))


def generator(seed: int, batch: Batch, row: int, *what: object) -> torch.Generator:
    """The random numbers of one visit to a sequence; `what` tells several draws of a visit apart."""
    sample = batch.samples[row]
    return torch.Generator().manual_seed(seed_for(seed, sample.problem_id, sample.rollout_id, *what))


def drawn(batch: Batch, seed: int, fn: Callable[[torch.Generator, int], Tensor], *what: object) -> Tensor:
    """(B, T, ...) random numbers, each sequence's from its own generator, 0 where padded: fn(generator, length)."""
    rows = [fn(generator(seed, batch, row, *what), len(s)) for row, s in enumerate(batch.samples)]
    return pad_sequence(rows, batch_first=True).to(batch.ids.device)


def uniform(batch: Batch, seed: int, embeds: Tensor, alpha: float, padded: bool = False) -> Tensor:
    """(B, T, H) NEFTune's noise (2310.05914): uniform in +-alpha / sqrt(length x H)."""
    size = embeds.shape[-1]

    def draw(generator: torch.Generator, length: int) -> Tensor:
        return (
            (2 * torch.rand(length, size, generator=generator) - 1)
            * alpha
            / ((embeds.shape[1] if padded else length) * size) ** 0.5
        )

    return drawn(batch, seed, draw, "neftune").to(embeds)


def _draws(batch: Batch, seed: int, kinds: tuple[str, ...], p: float) -> list[Tensor]:
    """For each sequence, (length,) bool: a token of `kinds` that is hit with probability p."""
    return [
        (torch.rand(len(s), generator=generator(seed, batch, row)) < p) & s.span_mask(*kinds)
        for row, s in enumerate(batch.samples)
    ]
