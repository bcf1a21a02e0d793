"""The Sampler contract: prompts as segments in, samples with token ids and log-probs out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Protocol

from whet.errors import WhetError
from whet.records import Sample, Segment

if TYPE_CHECKING:
    from whet.models.policy import Policy


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """How to sample.

    Attributes:
        max_new_tokens: generation budget, in tokens, the end token included.
        temperature: 0 is greedy.
        top_p, top_k: truncation of the distribution; 1.0 and 0 are off. Recorded with every sample.
        stop: strings that end a response; they stay in it.
    """

    max_new_tokens: int = 128
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise WhetError(f"max_new_tokens must be at least 1, not {self.max_new_tokens}")
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise WhetError("temperature and top_k must be >= 0 and 0 < top_p <= 1")

    def as_dict(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)} | {"stop": list(self.stop)}


@dataclass(slots=True)
class Request:
    """One prompt to answer `n` times. Answer i is a function of (segments, seeds[i], settings) alone.

    Attributes:
        segments: everything before the first sampled token; may end in a prefilled `prefix` or `plan`.
        seeds: one seed for each of the n answers.
    """

    segments: list[Segment]
    seeds: Sequence[int]
    settings: SamplingSettings = field(default_factory=SamplingSettings)
    problem_id: str = ""
    group_id: str = ""


class Sampler(Protocol):
    """Draws answers. Returned samples carry `per_token["sampler_logprob"]` and, where the sampler knows it, `per_token["entropy"]`
    (both of the distribution actually sampled from, zero on given tokens) and the settings.

    A sampler that runs elsewhere has a method `prepare(policy)`, which is called by all ranks before each `sample`: it brings
    the weights there up to date.
    """

    name: str

    def sample(
        self, policy: Policy, requests: Sequence[Request], on_token: Callable[[int, int], None] | None = None
    ) -> list[list[Sample]]:
        """One list of samples for each request, in order. `on_token(answer index, token id)` streams."""
        ...
