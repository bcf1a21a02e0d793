"""Segment, Sample, Row: what every method learns from.

A Sample is a token sequence made of typed segments; loss, perturbation and attention masks are derived from the
segments, never from a search in the text. A Row is a set of named samples that are learnt from together, each with its
own prompt. Rows hold ids of problems, not problems.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from whet.errors import WhetError


@dataclass(slots=True)
class Segment:
    """A span of tokens of one kind.

    Attributes:
        kind: question, demonstration, prefix, plan, execution, rationale, candidate, critique, thought, response,
            observation, answer, eos, image ...
        ids: token ids.
        learn: whether the objective may learn these tokens.
        sampled: whether a policy produced them.
        weight: multiplies the loss of each token; it never enters a count.
    """

    kind: str
    ids: list[int]
    learn: bool = False
    sampled: bool = False
    weight: float = 1.0


@dataclass(slots=True)
class Sample:
    """One token sequence.

    Attributes:
        segments: in order; an `eos` segment is absent where the sequence did not end.
        per_token: named tensors of shape (length,), aligned with `ids`: entry t belongs to token t (a log-probability
            is that of token t given the tokens before it). `mask` (bool) withdraws learnt tokens from the objective.
        settings: the sampling settings that made it, or None for a given text.
    """

    segments: list[Segment]
    problem_id: str = ""
    group_id: str = ""
    rollout_id: int = 0
    per_token: dict[str, Tensor] = field(default_factory=dict)
    settings: dict[str, Any] | None = None

    @property
    def ids(self) -> list[int]:
        return [i for s in self.segments for i in s.ids]

    def __len__(self) -> int:
        return sum(len(s.ids) for s in self.segments)

    @property
    def ended(self) -> bool:
        """Whether the sequence carries an end token."""
        return bool(self.segments) and self.segments[-1].kind == "eos"

    @property
    def learn_mask(self) -> Tensor:
        """(length,) bool: tokens the objective learns."""
        mask = torch.tensor([s.learn for s in self.segments for _ in s.ids], dtype=torch.bool)
        return mask & self.per_token["mask"] if "mask" in self.per_token else mask

    @property
    def weights(self) -> Tensor:
        """(length,) float: segment weights."""
        return torch.tensor([s.weight for s in self.segments for _ in s.ids], dtype=torch.float32)

    def span_mask(self, *kinds: str) -> Tensor:
        """(length,) bool: tokens whose segment is of one of `kinds`."""
        return torch.tensor([s.kind in kinds for s in self.segments for _ in s.ids], dtype=torch.bool)

    @property
    def response(self) -> list[int]:
        """The ids of all segments that are learnt or sampled, without the end token."""
        return [i for s in self.segments if (s.learn or s.sampled) and s.kind != "eos" for i in s.ids]

    @property
    def sampled(self) -> list[int]:
        """The ids that a policy drew, the end token among them."""
        return [i for s in self.segments if s.sampled for i in s.ids]

    @property
    def prompt_length(self) -> int:
        """Number of leading tokens that are neither learnt nor sampled."""
        n = 0
        for s in self.segments:
            if s.learn or s.sampled:
                break
            n += len(s.ids)
        return n

    def count_learnt(self) -> int:
        return int(self.learn_mask.sum())

    def check(self) -> None:
        """Raise unless there is a token to learn and each learnt token has a token before it."""
        mask = self.learn_mask
        if not bool(mask.any()):
            raise WhetError(
                f"sample of problem '{self.problem_id}' has no learnt token: its response is empty or was cut off "
                "by the length limit; give it a response or raise max_length"
            )
        if bool(mask[0]):
            raise WhetError(f"sample of problem '{self.problem_id}' learns its first token: put a prompt before it")
        for name, values in self.per_token.items():
            if len(values) != len(self):
                raise WhetError(f"sample of problem '{self.problem_id}': per_token['{name}'] has {len(values)} "
                                f"values for {len(self)} tokens")  # fmt: skip

    def state(self) -> dict[str, Any]:
        """Plain data (for a checkpoint)."""
        return {
            "segments": [[s.kind, list(s.ids), s.learn, s.sampled, s.weight] for s in self.segments],
            "problem_id": self.problem_id,
            "group_id": self.group_id,
            "rollout_id": self.rollout_id,
            "per_token": dict(self.per_token),
            "settings": self.settings,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Sample:
        return cls(**{**state, "segments": [Segment(*s) for s in state["segments"]]})

    def copy(self) -> Sample:
        """A copy whose segments and per-token table may be changed."""
        return replace(self, segments=[replace(s) for s in self.segments], per_token=dict(self.per_token))


@dataclass(slots=True)
class Row:
    """Named samples learnt from together, and numbers about them.

    `samples` maps a role (`response`; `chosen`, `rejected`; `choices`: a list) to one or more samples. `numbers` holds
    scalars such as `reward`, `accuracy`, `reward/format`, `advantage`; `vectors` what takes more than a number, on the CPU
    (the embedding of a chain).
    """

    samples: dict[str, Sample | list[Sample]]
    numbers: dict[str, float] = field(default_factory=dict)
    vectors: dict[str, Tensor] = field(default_factory=dict)

    def get(self, name: str) -> list[Sample]:
        """The samples of a role as a list; empty where the row lacks it."""
        found = self.samples.get(name, [])
        return found if isinstance(found, list) else [found]

    def __getitem__(self, name: str) -> Sample:
        found = self.samples[name]
        if isinstance(found, list):
            raise WhetError(f"row role '{name}' holds a list of samples; use row.get('{name}')")
        return found

    def all(self) -> Iterator[Sample]:
        for name in self.samples:
            yield from self.get(name)

    @property
    def group_id(self) -> str:
        return next(self.all()).group_id

    @property
    def problem_id(self) -> str:
        return next(self.all()).problem_id

    def state(self) -> dict[str, Any]:
        return {
            "samples": {
                k: [s.state() for s in v] if isinstance(v, list) else v.state() for k, v in self.samples.items()
            },
            "numbers": dict(self.numbers),
            "vectors": dict(self.vectors),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Row:
        samples = {
            k: [Sample.from_state(s) for s in v] if isinstance(v, list) else Sample.from_state(v)
            for k, v in state["samples"].items()
        }
        return cls(samples, dict(state["numbers"]), dict(state.get("vectors", {})))
