"""From samples to tensors and from rows to micro-batches."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from whet.errors import WhetError
from whet.models.packing import Batch, micro_batches, token_budget
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
@pytest.mark.parametrize("packed", [False, True])
def test_no_micro_batch_is_above_the_budget_unless_it_is_one_row(budget: int, samples: int, packed: bool) -> None:
    draw = random.Random(budget)
    rows = [row(draw.randint(2, 20), samples=samples) for _ in range(50)]
    batches = micro_batches(rows, budget, packed=packed)
    assert sorted(map(id, (r for b in batches for r in b))) == sorted(map(id, rows)), "each row once"
    for batch in batches:
        tokens = sum(len(s) for r in batch for s in r.all()) if packed else cost(batch)
        assert batch and (tokens <= budget or len(batch) == 1)


@pytest.mark.parametrize("overhead", [0, 5, 40])
@pytest.mark.parametrize("budget", [40, 1000])
def test_the_split_is_the_cheapest_one_of_the_sorted_rows(overhead: int, budget: int) -> None:
    draw = random.Random(overhead)
    rows = sorted((row(draw.randint(2, 20)) for _ in range(9)), key=lambda r: -len(r["response"]))

    def price(batches: list[list[Row]]) -> int:
        return sum(cost(b) + overhead for b in batches)

    possible = []
    for cuts in itertools.product([False, True], repeat=len(rows) - 1):
        edges = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), len(rows)]
        batches = [rows[a:b] for a, b in itertools.pairwise(edges)]
        if all(cost(b) <= budget for b in batches):
            possible.append(price(batches))
    assert price(micro_batches(rows, budget, overhead=overhead)) == min(possible)


def test_likes_are_together_so_that_little_is_padded() -> None:
    rows = [row(n) for n in (3, 20, 4, 19, 5, 18)]
    split = [[20, 19, 18], [5, 4, 3]]
    assert [[len(r["response"]) for r in b] for b in micro_batches(rows, 60)] == split
    assert [[len(r["response"]) for r in b] for b in micro_batches(rows, 1000, overhead=20)] == split
    assert len(micro_batches(rows, 1000, overhead=50)) == 1, "another micro-batch would cost more than it saves"


def test_equal_lengths_keep_their_order() -> None:
    rows = [row(5) for _ in range(7)]
    assert [r for b in micro_batches(rows, 15) for r in b] == rows


def test_a_shared_prompt_is_counted_once_and_kept_together() -> None:
    """Four prompts of ten tokens, four answers of five each, in turns: a group is 10 + 4 * 5 tokens."""
    rows = [Row({"response": grouped(place % 4, place)}) for place in range(16)]
    batches = micro_batches(rows, 60, packed=True, overhead=0)
    assert [[r.group_id for r in b] for b in batches] == [["g0"] * 4 + ["g1"] * 4, ["g2"] * 4 + ["g3"] * 4]
    # 45 tokens would hold a group and a third, whose prompt would be run once more: the cut is between groups
    assert [len(b) for b in micro_batches(rows, 45, packed=True)] == [4] * 4
    assert [len(b) for b in micro_batches(rows, 45)] == [2, 2, 3, 3, 3, 3]


def test_of_equal_costs_the_parts_are_even() -> None:
    """Six groups of 30 tokens, five of which would fit at once: two micro-batches of three take the least memory."""
    rows = [Row({"response": grouped(place % 6, place)}) for place in range(24)]
    assert [len(b) for b in micro_batches(rows, 150, packed=True)] == [12, 12]
    assert len(micro_batches(rows, 180, packed=True)) == 1


def test_a_prompt_that_is_not_worth_it_is_counted_for_each_sample() -> None:
    short = [sample(3, 5) for _ in range(2)]
    assert len(micro_batches([Row({"response": s}) for s in short], 13, packed=True)) == 2  # 3 + 2 * 5 if it were


def grouped(group: int, place: int) -> Sample:
    ids = [100 * group + i for i in range(10)]
    answer = [1000 + 10 * place + i for i in range(5)]
    return Sample([Segment("question", ids), Segment("answer", answer, learn=True)], f"p{group}", f"g{group}")


def test_coupled_rows_stay_together_whatever_the_budget() -> None:
    rows = [row(4 + i % 5, group=f"g{i % 4}") for i in range(20)]
    batches = micro_batches(rows, 30, key=lambda r: r.group_id)
    for name in {r.group_id for r in rows}:
        assert len([b for b in batches if any(r.group_id == name for r in b)]) == 1
    assert len(batches) == 4
    assert len(micro_batches(rows, 1, key=lambda r: "all")) == 1
    wide = micro_batches(rows, 90, key=lambda r: r.group_id)
    assert len(wide) == 2 and all(cost(b) <= 90 for b in wide)


def test_the_token_budget_is_the_device_s_where_none_is_asked() -> None:
    assert token_budget(300, "cpu") == token_budget(300, "cuda") == 300
    assert token_budget(0, "cpu") == 1024 and token_budget(0, "cuda") > 1024


def test_nothing_makes_no_micro_batch() -> None:
    assert micro_batches([], 100) == []
    assert micro_batches([], 100, packed=True) == []


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


def test_what_has_to_be_run_ends_before_the_last_learnt_token() -> None:
    withdrawn, nothing = sample(2, 3, 10), sample(2, 3, 20)
    withdrawn.per_token["mask"] = torch.tensor([True, True, True, True, False])
    nothing.per_token["mask"] = torch.zeros(5, dtype=torch.bool)
    assert Batch.of([sample(2, 3, 10), withdrawn, nothing]).wanted() == [[10, 11, 12, 13], [10, 11, 12], []]


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
