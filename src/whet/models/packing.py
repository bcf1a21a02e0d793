"""From samples to padded tensors, and from rows to micro-batches.

Everything an objective sees is flat over *learnt tokens*: (N,) values, in the order of the sequences. The labels are
shifted here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from whet.errors import WhetError
from whet.records import Row, Sample


@dataclass
class Batch:
    """Right-padded sequences and the positions that predict their learnt tokens.

    Attributes:
        samples: the B sequences.
        ids: (B, T) token ids, 0 where padded.
        mask: (B, T) bool, True on real tokens.
        sequence, position: (N,) for each learnt token, its sequence and its own position (predicted at position - 1).
        targets: (N,) the learnt tokens.
        weights: (N,) their segment weights.
        lengths: (B,) learnt tokens in each sequence.
    """

    samples: list[Sample]
    ids: Tensor
    mask: Tensor
    sequence: Tensor
    position: Tensor
    targets: Tensor
    weights: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, samples: Sequence[Sample], device: torch.device | str = "cpu") -> Batch:
        width = max(len(s) for s in samples)
        ids = torch.zeros(len(samples), width, dtype=torch.long)
        mask = torch.zeros(len(samples), width, dtype=torch.bool)
        learn = torch.zeros(len(samples), width, dtype=torch.bool)
        weight = torch.zeros(len(samples), width)
        for row, sample in enumerate(samples):
            n = len(sample)
            ids[row, :n] = torch.tensor(sample.ids, dtype=torch.long)
            mask[row, :n] = True
            learn[row, :n] = sample.learn_mask
            weight[row, :n] = sample.weights
        sequence, position = learn.nonzero(as_tuple=True)
        batch = cls(
            list(samples), ids, mask, sequence, position, ids[sequence, position], weight[sequence, position],
            learn.sum(1),
        )  # fmt: skip
        return batch.to(device)

    def to(self, device: torch.device | str) -> Batch:
        if torch.device(device) == self.ids.device:
            return self
        tensors = (self.ids, self.mask, self.sequence, self.position, self.targets, self.weights, self.lengths)
        return Batch(self.samples, *(t.to(device) for t in tensors))

    def values(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """(N,) the samples' `per_token[name]` at the learnt tokens."""
        for sample in self.samples:
            if name not in sample.per_token:
                raise WhetError(
                    f"a sample of problem '{sample.problem_id}' has no per_token['{name}']: nothing in this stage "
                    "writes it (an advantage estimator, the trainer or the sampler would)"
                )
        picked = [s.per_token[name][s.learn_mask] for s in self.samples]
        return torch.cat(picked).to(self.ids.device, dtype)

    def scatter(self, name: str, flat: Tensor) -> None:
        """Write (N,) values back into each sample's `per_token[name]`, zero on tokens that are not learnt."""
        flat = flat.detach().to("cpu")
        start = 0
        for sample in self.samples:
            mask = sample.learn_mask
            n = int(mask.sum())
            full = torch.zeros(len(sample), dtype=flat.dtype)
            full[mask] = flat[start : start + n]
            sample.per_token[name] = full
            start += n


def micro_batches(
    rows: Sequence[Row], token_budget: int, *, key: Callable[[Row], object] | None = None
) -> list[list[Row]]:
    """Split rows into micro-batches of at most `token_budget` padded tokens, longest first.

    Rows that share `key(row)` stay together (terms that couple a group or a batch); a single unit larger than the
    budget is a micro-batch of its own. The loss is a sum over a count that is known beforehand, so that the gradient
    does not depend on how this splits.
    """
    units: dict[object, list[Row]] = {}
    for index, row in enumerate(rows):
        units.setdefault(index if key is None else key(row), []).append(row)
    width = {k: max(len(s) for row in unit for s in row.all()) for k, unit in units.items()}
    size = {k: sum(1 for row in unit for _ in row.all()) for k, unit in units.items()}
    batches: list[list[Row]] = []
    current: list[Row] = []
    sequences = longest = 0
    for k in sorted(units, key=lambda k: -width[k]):  # stable: equal lengths keep their order
        if current and (sequences + size[k]) * longest > token_budget:
            batches.append(current)
            current, sequences = [], 0
        if not current:
            longest = width[k]
        current = current + units[k]
        sequences += size[k]
    return [*batches, current] if current else batches


def sample_batches(samples: Iterable[Sample], token_budget: int) -> list[list[Sample]]:
    """The same for bare samples (scoring passes)."""
    return [
        [s for row in rows for s in row.all()]
        for rows in micro_batches([Row({"response": s}) for s in samples], token_budget)
    ]
