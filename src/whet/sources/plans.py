"""Group plans: how each answer of a group begins.

A plan names the members of every problem's group. A member is free, or it starts from a prefix: a piece of a demonstration,
a plan that was drawn before, a whole given answer. The prefix is part of the *response* for the loss (its segments are
learnt, unless they say otherwise) and part of the *prompt* for generation: it costs no sampled token and has no log-prob of
the sampler. `Segment.sampled` tells the two origins apart, token by token; so does its kind.

    free, hybrid = Member(), Member((Segment("prefix", ids, learn=True),))
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from whet.errors import WhetError
from whet.models.policy import Policy
from whet.objectives.schedule import Cosine
from whet.records import Sample, Segment
from whet.sampling.sampler import Request, SamplingSettings
from whet.seeds import rng_for, seed_for
from whet.tasks import Problem

if TYPE_CHECKING:
    from whet.sources.collector import Scope


@dataclass(frozen=True)
class Member:
    """One answer of a group.

    Attributes:
        prefix: the segments that it begins with. Where they close with an `eos` the answer is whole and nothing is drawn.
    """

    prefix: tuple[Segment, ...] = ()

    @property
    def length(self) -> int:
        """Tokens of the prefix."""
        return sum(len(s.ids) for s in self.prefix)

    @property
    def whole(self) -> bool:
        return bool(self.prefix) and self.prefix[-1].kind == "eos"

    @property
    def drawn(self) -> bool:
        """Whether the prefix is the policy's own, so that it is cut into segments as one with what follows."""
        return bool(self.prefix) and all(s.sampled for s in self.prefix)


class Plan:
    """Who is in a group: `size` free members; subclasses give some of them a prefix.

    Attributes:
        size: members of a group.
        needs: what the task must provide for the prefixes.
    """

    needs: frozenset[str] = frozenset()

    def __init__(self, size: int) -> None:
        if size < 1:
            raise WhetError(f"group must be at least 1, not {size}")
        self.size = size

    def members(
        self, problems: Sequence[Problem], policy: Policy, settings: SamplingSettings, scope: Scope
    ) -> list[list[Member]]:
        """The members of each problem's group, in order. A plan may ask the policy (with `scope.seed`), and its length may
        depend on `scope.share`, how much of the stage is done."""
        return [[Member()] * self.size for _ in problems]


@dataclass(frozen=True)
class PrefixLength:
    """How much of a demonstration is given (Prefix-RFT 2507.01679): a share l ~ Uniform(low_s, high) of its n tokens.

        low_s = end + (high - end) / 2 (1 + cos(pi s / S))        L = floor(l n), within least <= L <= n - 1

    At first nearly all of it, later anything; the end token is never given.

    Attributes:
        high: the largest share, and the smallest at the start.
        end: the smallest share at the stage's end; `high` keeps it there.
        least: tokens that are given at least.
    """

    high: float = 0.95
    end: float = 0.05
    least: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.end <= self.high <= 1 or self.least < 0:
            raise WhetError(f"the share of a demonstration that is given must be 0 <= end <= high <= 1, not end={self.end:g} "
                            f"and high={self.high:g}, and its least length 0 or more")  # fmt: skip

    def low(self, share: float) -> float:
        """The smallest share when `share` of the stage is done."""
        return Cosine(self.end, self.high).at(share, 1)

    def draw(self, rng: random.Random, share: float) -> float:
        low = self.low(share)
        return low + (self.high - low) * rng.random()

    def tokens(self, share: float, n: int) -> int:
        """Of a demonstration of `n` tokens, its end token among them."""
        return min(max(math.floor(round(share * n, 9)), self.least), n - 1)  # .95 of 40 is 38, whatever the floats say


class WithDemonstration(Plan):
    """All free but the last one, which begins with a piece of the problem's demonstration, or is the whole of it.

    Args:
        length: how large the piece is; None gives the whole demonstration and draws nothing.
        shown: share of the problems whose demonstration is at hand, told by their ids alone; the others' members are all free.
    """

    needs = frozenset({"demonstrations"})

    def __init__(self, size: int, length: PrefixLength | None, shown: float = 1.0) -> None:
        super().__init__(size)
        if not 0 <= shown <= 1:
            raise WhetError(f"the share of problems with a demonstration must be within 0 and 1, not {shown:g}")
        self.length, self.shown = length, shown

    def members(
        self, problems: Sequence[Problem], policy: Policy, settings: SamplingSettings, scope: Scope
    ) -> list[list[Member]]:
        groups = super().members(problems, policy, settings, scope)
        for place, (problem, group) in enumerate(zip(problems, groups, strict=True)):
            if rng_for(0, "demonstration shown", problem.id).random() < self.shown:
                rng = rng_for(scope.seed, "prefix", problem.id, place)
                group[-1] = self._member(problem, policy, settings, rng, scope.share)
        return groups

    def _member(
        self, problem: Problem, policy: Policy, settings: SamplingSettings, rng: random.Random, share: float
    ) -> Member:
        sample = policy.format.demonstration(problem)
        response = tuple(s for s in sample.segments if s.learn)
        n, room = sum(len(s.ids) for s in response), policy.max_length - sample.prompt_length
        budget = min(settings.max_new_tokens, room)
        if self.length is None:  # one that does not fit would be cut off, and teach not to end
            return Member(response) if n <= budget else Member()
        given = min(self.length.tokens(self.length.draw(rng, share), n), budget - 1)
        # cut in token space: decoded and tokenised again, its last tokens could be others
        ids = [i for s in response for i in s.ids][:given]
        return Member((Segment("prefix", ids, learn=True),)) if ids else Member()


def ask_members(
    policy: Policy, problems: Sequence[Problem], groups: Sequence[Sequence[Member]], settings: SamplingSettings, seed: int,
) -> list[list[Sample]]:  # fmt: skip
    """An answer of each member of each problem's group; `rollout_id` is its place in the group.

    The generation budget holds for the whole response, prefix included. An answer's seed depends on the call's seed, the
    problem and the member's place, as in `ask`: free members answer as if no other had a prefix. Members with the same
    prefix share its prefill.
    """
    requests: list[Request] = []
    places: list[list[tuple[int, int]]] = []  # of each request, where its answers belong
    asked: Counter[str] = Counter()
    found: list[dict[int, Sample]] = []
    for group, (problem, members) in enumerate(zip(problems, groups, strict=True)):
        question = policy.format.prompt(problem)
        begun: dict[object, int] = {}
        for place, member in enumerate(members):
            left = _left(settings, member, problem)
            if member.whole:
                continue
            key = tuple((s.kind, s.learn, s.sampled, s.weight, *s.ids) for s in member.prefix)
            at = begun.setdefault(key, len(requests))
            if at == len(requests):
                requests.append(Request([*question, *member.prefix], [], left, problem.id, problem.id))
                places.append([])
            requests[at].seeds = [*requests[at].seeds, seed_for(seed, problem.id, asked[problem.id] + place)]
            places[at].append((group, place))
        asked[problem.id] += len(members)
        found.append({i: _given(problem, question, m, settings) for i, m in enumerate(members) if m.whole})
    for where, samples in zip(places, policy.sample(requests), strict=True):
        for (group, place), sample in zip(where, samples, strict=True):
            member = groups[group][place]
            if member.drawn:
                sample.segments = [s for s in sample.segments if not s.sampled] + policy.format.cut(sample.sampled)
            found[group][place] = sample
    return [[replace(samples[i], rollout_id=i) for i in range(len(samples))] for samples in found]


def _left(settings: SamplingSettings, member: Member, problem: Problem) -> SamplingSettings:
    """The settings for what follows the prefix."""
    left = settings.max_new_tokens - member.length
    if left < (0 if member.whole else 1):
        raise WhetError(f"problem '{problem.id}': a prefix of {member.length} tokens does not fit the generation budget of "
                        f"{settings.max_new_tokens}; raise max_new_tokens")  # fmt: skip
    return settings if member.whole or not member.length else replace(settings, max_new_tokens=left)


def _given(problem: Problem, question: Sequence[Segment], member: Member, settings: SamplingSettings) -> Sample:
    """A whole answer as a sample; given tokens have no log-prob of a sampler: 0."""
    segments = [*question, *(replace(s, ids=list(s.ids)) for s in member.prefix)]
    sample = Sample(segments, problem.id, problem.id, settings=settings.as_dict())
    sample.per_token = {name: torch.zeros(len(sample)) for name in ("sampler_logprob", "entropy")}
    return sample
