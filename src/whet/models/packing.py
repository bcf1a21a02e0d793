"""From samples to padded tensors, and from rows to micro-batches.

Everything an objective sees is flat over *learnt tokens*: (N,) values, in the order of the sequences. The labels are
shifted here and nowhere else.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from whet.errors import WhetError
from whet.models.layout import SHARE, SHORTEST
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

    def wanted(self) -> list[list[int]]:
        """The token ids of each sequence up to the one before its last learnt token: what has to be run."""
        positions = iter(self.position.tolist())
        ends = [max(itertools.islice(positions, n), default=0) for n in self.lengths.tolist()]
        return [s.ids[:end] for s, end in zip(self.samples, ends, strict=True)]

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

    @property
    def given(self) -> Tensor:
        """(N,) bool: learnt tokens that no policy drew, such as the prefix of a demonstration."""
        found = [torch.tensor([not g.sampled for g in s.segments for _ in g.ids])[s.learn_mask] for s in self.samples]
        return torch.cat(found).to(self.ids.device)

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


OVERHEAD = 64  # tokens: see `micro_batches`


def token_budget(asked: int, device: str) -> int:
    """Tokens run at once: as many as `asked`, or where it is 0 what the device works well with. A CPU is at full speed with
    1024, which take half the memory of 2048; a GPU needs more to do than launching kernels."""
    return asked or (1024 if device == "cpu" else 8192)


@dataclass
class _Unit:
    """Rows that stay together."""

    rows: list[Row]
    samples: list[Sample]
    width: int  # the longest sample
    prompt: tuple[int, ...]  # of the first sample; empty where sharing it is not worth it
    tokens: int  # run where prompts are shared

    @classmethod
    def of(cls, rows: list[Row]) -> _Unit:
        samples = [s for row in rows for s in row.all()]
        prompts = [_prompt(s) for s in samples]
        tokens = sum(len(s) - len(p) for s, p in zip(samples, prompts, strict=True)) + sum(map(len, set(prompts)))
        return cls(rows, samples, max(map(len, samples)), prompts[0], tokens)


def _prompt(sample: Sample) -> tuple[int, ...]:
    length = sample.prompt_length
    return tuple(sample.ids[:length]) if length >= max(SHORTEST, SHARE * len(sample)) else ()


def micro_batches(
    rows: Sequence[Row], token_budget: int, *, key: Callable[[Row], object] | None = None, packed: bool = False,
    overhead: int = OVERHEAD,
) -> list[list[Row]]:  # fmt: skip
    """Split rows into micro-batches of at most `token_budget` tokens at the least cost.

    Rows that share `key(row)` stay together (terms that couple a group or a batch); a single unit larger than the
    budget is a micro-batch of its own. The loss is a sum over a count that is known beforehand, so that the gradient
    does not depend on how this splits.

    Args:
        token_budget: caps memory: tokens run through the layers, padded ones too.
        packed: rows are run as a `Layout`: nothing is padded, and a prompt that follows itself is run once.
        overhead: what a further micro-batch costs, in tokens. On a CPU, with 2.6 M parameters, it takes 3 ms and a token
            0.18 ms, and matrix products are at full speed from some 200 tokens on; larger models pay less.
    """
    groups: dict[object, list[Row]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(index if key is None else key(row), []).append(row)
    units = [_Unit.of(group) for group in groups.values()]
    if packed:  # prompts side by side, those with the longest sequences first
        longest: dict[tuple[int, ...], int] = {}
        for unit in units:
            longest[unit.prompt] = max(unit.width, longest.get(unit.prompt, 0))
        units.sort(key=lambda u: (-longest[u.prompt], u.prompt, -u.width))
    else:
        units.sort(key=lambda u: -u.width)  # stable: equal lengths keep their order
    cuts = _cuts(units, token_budget, packed, overhead)
    return [[row for unit in units[a:b] for row in unit.rows] for a, b in itertools.pairwise(cuts)]


def _cuts(units: Sequence[_Unit], token_budget: int, packed: bool, overhead: int) -> list[int]:
    """Where to cut the ordered units, so that tokens plus overheads are fewest; of equals the fewest parts, and of these
    the most even ones: the largest is what takes memory."""
    costs: list[tuple[float, int, int]] = [(0.0, 0, 0)] + [(math.inf, 0, 0)] * len(units)
    came = [0] * (len(units) + 1)
    for stop in range(1, len(units) + 1):
        count = tokens = 0
        for start in range(stop - 1, -1, -1):
            unit = units[start]
            count += len(unit.samples)
            if packed:
                shared = start < stop - 1 and unit.prompt == units[start + 1].prompt
                tokens += unit.tokens - (len(unit.prompt) if shared else 0)
            else:
                tokens = count * unit.width
            if tokens > token_budget and start < stop - 1:
                break
            before, parts, largest = costs[start]
            cost = before + tokens + overhead, parts + 1, max(largest, tokens)
            if cost <= costs[stop]:
                costs[stop], came[stop] = cost, start
    cuts = [len(units)]
    while cuts[-1]:
        cuts.append(came[cuts[-1]])
    return cuts[::-1]
