"""Views: how a forward sees its sequences. The labels stay; only what the model reads changes.

A perturbation is drawn for each visit from (step seed, problem, rollout), not in preprocessing, so that an example is
perturbed differently in each epoch and identically after a resume.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from whet.models.packing import Batch
from whet.models.policy import Policy
from whet.seeds import seed_for


@dataclass
class Seen:
    """What the model reads: ids (B, T), mask (B, T) or None for plain causal attention, embeddings or None."""

    ids: Tensor
    mask: Tensor | None = None
    embeds: Tensor | None = None


class View:
    """A change of the input. Equal views of one batch share a forward, so a view is a frozen dataclass."""

    def see(self, policy: Policy, batch: Batch, seed: int) -> Seen:
        raise NotImplementedError


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
            drawn = torch.randn(len(sample), embeds.shape[-1], generator=_generator(seed, batch, row))
            noise[row, : len(sample)] = drawn.to(embeds)
        return Seen(batch.ids, embeds=embeds + self.scale * noise)


@dataclass(frozen=True)
class Embeds(View):
    """Replace the input embeddings: fn(embeddings (B, T, H), batch) -> (B, T, H)."""

    fn: Callable[[Tensor, Batch], Tensor]
    name: str = field(default="embeds")

    def see(self, policy: Policy, batch: Batch, seed: int) -> Seen:
        return Seen(batch.ids, embeds=self.fn(policy.embed(batch.ids), batch))


def _generator(seed: int, batch: Batch, row: int) -> torch.Generator:
    sample = batch.samples[row]
    return torch.Generator().manual_seed(seed_for(seed, sample.problem_id, sample.rollout_id))


def _draws(batch: Batch, seed: int, kinds: tuple[str, ...], p: float) -> list[Tensor]:
    """For each sequence, (length,) bool: a token of `kinds` that is hit with probability p."""
    return [
        (torch.rand(len(s), generator=_generator(seed, batch, row)) < p) & s.span_mask(*kinds)
        for row, s in enumerate(batch.samples)
    ]
