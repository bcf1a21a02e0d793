"""From samples to tensors and from rows to micro-batches."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from whet.errors import WhetError
from whet.models.packing import Batch, micro_batches, sample_batches
from whet.records import Row, Sample, Segment


def sample(prompt: int, response: int, start: int = 10, group: str = "g", weight: float = 1.0) -> Sample:
    ids = list(range(start, start + prompt + response))
    segments = [Segment("question", ids[:prompt]), Segment("answer", ids[prompt:], learn=True, weight=weight)]
    return Sample(segments, f"p{start}", group)


def row(length: int, group: str = "g", samples: int = 1) -> Row:
    made = [sample(1, length - 1, group=group) for _ in range(samples)]
    return Row({"response": made[0]} if samples == 1 else {"choices": list(made)})


def cost(rows: list[Row]) -> int:
    """Padded tokens."""
    samples = [s for r in rows for s in r.all()]
    return len(samples) * max(len(s) for s in samples)


# -- micro-batches ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("budget", [1, 10, 37, 64, 10_000])
@pytest.mark.parametrize("samples", [1, 3])
def test_no_micro_batch_is_above_the_budget_unless_it_is_one_row(budget: int, samples: int) -> None:
    draw = random.Random(budget)
    rows = [row(draw.randint(2, 20), samples=samples) for _ in range(50)]
    batches = micro_batches(rows, budget)
    assert sorted(map(id, (r for b in batches for r in b))) == sorted(map(id, rows)), "each row once"
    for batch in batches:
        assert batch and (cost(batch) <= budget or len(batch) == 1)
    # greedy from the longest: no row could have joined the batch before it
    for before, batch in itertools.pairwise(batches):
        assert cost([*before, batch[0]]) > budget


def test_likes_are_together_so_that_little_is_padded() -> None:
    rows = [row(n) for n in (3, 20, 4, 19, 5, 18)]
    assert [[len(r["response"]) for r in b] for b in micro_batches(rows, 60)] == [[20, 19, 18], [5, 4, 3]]


def test_equal_lengths_keep_their_order() -> None:
    rows = [row(5) for _ in range(7)]
    assert [r for b in micro_batches(rows, 15) for r in b] == rows


def test_coupled_rows_stay_together_whatever_the_budget() -> None:
    rows = [row(4 + i % 5, group=f"g{i % 4}") for i in range(20)]
    batches = micro_batches(rows, 30, key=lambda r: r.group_id)
    for name in {r.group_id for r in rows}:
        assert len([b for b in batches if any(r.group_id == name for r in b)]) == 1
    assert len(batches) == 4
    assert len(micro_batches(rows, 1, key=lambda r: "all")) == 1
    wide = micro_batches(rows, 90, key=lambda r: r.group_id)
    assert len(wide) == 2 and all(cost(b) <= 90 for b in wide)


def test_nothing_makes_no_micro_batch() -> None:
    assert micro_batches([], 100) == []
    assert sample_batches([], 100) == []
    assert [len(b) for b in sample_batches([sample(1, 4)] * 5, 10)] == [2, 2, 1]


# -- tensors ---------------------------------------------------------------------------------------------------------
def test_a_batch_is_flat_over_learnt_tokens_in_the_order_of_the_samples() -> None:
    samples = [sample(2, 3, 10), sample(1, 1, 30), sample(3, 2, 50, weight=0.5)]
    batch = Batch.of(samples)
    assert batch.ids.tolist() == [[10, 11, 12, 13, 14], [30, 31, 0, 0, 0], [50, 51, 52, 53, 54]]
    assert batch.mask.sum(1).tolist() == [5, 2, 5]
    assert batch.sequence.tolist() == [0, 0, 0, 1, 2, 2] and batch.position.tolist() == [2, 3, 4, 1, 3, 4]
    assert batch.targets.tolist() == [12, 13, 14, 31, 53, 54]
    assert batch.weights.tolist() == [1, 1, 1, 1, 0.5, 0.5] and batch.lengths.tolist() == [3, 1, 2]
    assert batch.to("cpu") is batch


def test_withdrawn_tokens_are_not_in_a_batch() -> None:
    one = sample(2, 3)
    one.per_token["mask"] = torch.tensor([True, True, True, False, True])
    batch = Batch.of([one])
    assert batch.position.tolist() == [2, 4] and batch.lengths.tolist() == [2]


def test_values_are_read_and_written_at_learnt_tokens() -> None:
    samples = [sample(2, 3), sample(1, 1)]
    batch = Batch.of(samples)
    flat = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64, requires_grad=True)
    batch.scatter("value", flat)
    assert samples[0].per_token["value"].tolist() == [0, 0, 1, 2, 3] and samples[1].per_token["value"].tolist() == [
        0,
        4,
    ]
    assert samples[0].per_token["value"].dtype == torch.float64 and not samples[0].per_token["value"].requires_grad
    assert torch.equal(batch.values("value", torch.float64), flat.detach())
    assert batch.values("value").dtype == torch.float32
    with pytest.raises(WhetError, match=r"'p10' has no per_token\['advantage'\]"):
        batch.values("advantage")
