"""Answering: how an answer to a problem comes about, in every evaluation of a run.

By default the policy is asked and answers by itself. A recipe whose method is also a way to answer (score the choices, let
another model answer with this one's guidance, ask again) brings its own, and the matrix, the metrics and the comparison of
arms stay what they are. What it measures besides goes into the summary and the cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from whet.models.policy import Policy
from whet.records import Sample, Segment
from whet.sampling.sampler import SamplingSettings
from whet.sources.rollouts import ask
from whet.tasks import Problem, Response, Task


class Answering:
    """The policy answers by itself."""

    def bind(self, policy: Policy) -> None:
        """Once, when the run's policy has its first weights and no adapters yet: who stays as it is, is copied here."""

    def ask(
        self, policy: Policy, problems: Sequence[Problem], settings: SamplingSettings, n: int, seed: int
    ) -> list[list[Sample]]:
        """`n` answers to each problem; greedy ones at temperature 0. Tokens that were spent are marked as sampled."""
        return ask(policy, problems, settings, n, seed)

    def read(self, policy: Policy, sample: Sample) -> Response:
        """The text of an answer that `ask` gave."""
        return policy.format.read(alone(sample))

    def measure(self, policy: Policy, task: Task, problems: Sequence[Problem]) -> Mapping[str, float]:
        """Further numbers of the test problems, by name: of how the answers come about, not of how good they are."""
        return {}


def behind(sample: Sample, spent: Sequence[int]) -> Sample:
    """The answer with the tokens that were drawn on the way to it: they count as sampled, and are no part of what it says."""
    prompt = [s for s in sample.segments if not s.sampled]
    own = [s for s in sample.segments if s.sampled]
    between = [Segment("spent", list(spent), sampled=True)] if spent else []
    return replace(sample, segments=[*prompt, *between, *own], per_token={})


def alone(sample: Sample) -> Sample:
    """The answer without what was drawn on the way to it."""
    return replace(sample, segments=[s for s in sample.segments if s.kind != "spent"])
