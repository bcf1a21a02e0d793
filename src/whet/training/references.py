"""Reference scores of given texts, kept while the reference is: each is computed in the first epoch that meets it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from whet.records import Row, Sample

NAME = "reference_logprob"


class References:
    """`per_token["reference_logprob"]` by what a sample says and learns. Sampled answers hardly come again, so that only
    given texts are kept. A stage has its own; it is saved with a checkpoint, as scores computed in another batch are
    rounded otherwise."""

    def __init__(self) -> None:
        self._scores: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self._scores)

    def read(self, rows: Sequence[Row]) -> None:
        """Write what is known into the samples."""
        for sample in _given(rows):
            known = self._scores.get(_key(sample)) if NAME not in sample.per_token else None
            if known is not None:
                values = torch.zeros(len(sample), dtype=known.dtype)
                values[sample.learn_mask] = known
                sample.per_token[NAME] = values

    def keep(self, rows: Sequence[Row]) -> None:
        """Keep the samples' scores."""
        for sample in _given(rows):
            if NAME in sample.per_token:
                self._scores.setdefault(_key(sample), sample.per_token[NAME][sample.learn_mask].clone())

    def state_dict(self) -> dict[str, Any]:
        values = list(self._scores.values())
        return {"keys": list(self._scores), "sizes": [len(v) for v in values],
                "scores": torch.cat(values) if values else torch.zeros(0)}  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._scores = dict(zip(state["keys"], state["scores"].split(state["sizes"]), strict=True))


def _given(rows: Sequence[Row]) -> list[Sample]:
    return [s for row in rows for s in row.all() if s.settings is None]


def _key(sample: Sample) -> str:
    said = torch.tensor([sample.ids, sample.learn_mask.long().tolist()]).numpy().tobytes()
    return hashlib.blake2b(said, digest_size=16).hexdigest()
