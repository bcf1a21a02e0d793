"""Which tokens are run, once each, and who attends to whom."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from whet.models.layout import Index, Layout, common

PROMPTS = [list(range(start, start + n)) for start, n in ((100, 12), (200, 12), (300, 15), (400, 200))]


def grouped(*sizes: int, seed: int = 0) -> list[list[int]]:
    """Sequences of a few prompts with answers of 0 to 9 tokens, shuffled."""
    draw = random.Random(seed)
    made = [
        prompt + [draw.randrange(1000, 2000) for _ in range(draw.randint(0, 9))]
        for prompt, size in zip(PROMPTS, sizes, strict=False)
        for _ in range(size)
    ]
    draw.shuffle(made)
    return made


def trunks(sequences: list[list[int]]) -> list[tuple[list[int], int]]:
    return common([np.array(s, dtype=np.int64) for s in sequences])


# -- groups ----------------------------------------------------------------------------------------------------------
def test_sequences_are_grouped_by_their_prompt() -> None:
    sequences = grouped(3, 5, 1)
    for members, trunk in trunks(sequences):
        heads = {tuple(sequences[i][:12]) for i in members}
        assert len(heads) == 1
        assert trunk == (0 if len(members) == 1 else 12)
    assert sorted(i for members, _ in trunks(sequences) for i in members) == list(range(9))


def test_the_longest_common_beginning_is_shared_wherever_it_ends() -> None:
    """A step-wise method's prefixes: the question, and the question with a step; the cut that saves most wins."""
    question, step = list(range(10)), list(range(50, 70))
    a, b, c = [*question, 1], [*question, *step, 2], [*question, *step, 3]
    assert trunks([a, b, c]) == [([0], 0), ([1, 2], 30)]
    assert trunks([a, b]) == [([0, 1], 10)]
    assert trunks([b, b, b]) == [([0, 1, 2], 31)]


def test_a_stray_neighbour_does_not_spoil_a_group() -> None:
    """A like beginning of a few tokens must not keep the next group from its whole prompt."""
    stray, group = [1, 2, 3, 4, 9, 9], [[1, 2, 3, 4, *range(50, 66), i] for i in range(4)]
    assert trunks([stray, *group]) == [([0], 0), ([1, 2, 3, 4], 20)]
    assert trunks([*group, stray]) == [([4], 0), ([0, 1, 2, 3], 20)]


def test_a_beginning_that_is_not_worth_it_is_not_shared() -> None:
    assert trunks([[1, 2, 3, 8], [1, 2, 3, 9]]) == [([0], 0), ([1], 0)]  # fewer than 4 tokens
    tail = list(range(100, 196))
    assert [t for _, t in trunks([[1, 2, 3, 4, i, *tail] for i in range(3)])] == [0, 0, 0]  # below an eighth


def test_what_is_empty_is_not_run() -> None:
    assert trunks([[], [5], []]) == [([1], 0)]
    assert trunks([]) == []
    layout = Layout.of([[], [5], []])
    assert layout.ids.tolist() == [5] and len(layout.parts) == 1


# -- layouts ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("sizes", [(1,), (4,), (3, 5, 1), (2, 2, 2, 6)])
def test_every_wanted_token_is_found_at_its_place(sizes: tuple[int, ...], share: bool) -> None:
    sequences = [*grouped(*sizes), [], [7]]
    layout = Layout.of(sequences, share=share)
    for index, ids in enumerate(sequences):
        positions = torch.arange(len(ids))
        found = layout.find(torch.full_like(positions, index), positions)
        assert layout.ids[found].tolist() == ids and layout.positions[found].tolist() == positions.tolist()
    whole = sum(map(len, sequences))
    assert len(layout) == whole if not share else len(layout) <= whole
    if share and sizes == (4,):
        assert len(layout) == whole - 3 * 12


@pytest.mark.parametrize("window", [None, 5, 40])
@pytest.mark.parametrize("share", [True, False])
def test_a_token_attends_to_what_comes_before_it_in_its_sequence(share: bool, window: int | None) -> None:
    """The calls of attention together, as one matrix, are that of each sequence alone."""
    sequences = grouped(3, 1, 2, 5)
    layout = Layout.of(sequences, share=share)
    seen = torch.zeros(len(layout), len(layout), dtype=torch.int)
    first = 0
    for index, part in enumerate(layout.parts):
        mask = layout.mask(index, window)
        rows, width = part.queries.shape
        if mask is None:
            mask = torch.ones(width, width, dtype=torch.bool).tril().expand(rows, 1, -1, -1)
        assert mask.any(-1).all(), "a query without a key gives NaN"
        assert torch.equal(layout.bias(index, window, torch.float32) == 0, mask)
        real = (layout.place.tokens >= first) & (layout.place.tokens < first + part.queries.numel())
        for token in real.nonzero()[:, 0].tolist():
            row, column = divmod(int(layout.place.tokens[token]) - first, width)
            assert part.queries[row, column] == token
            seen[token].index_add_(0, part.keys[row], mask[row, 0, column].int())
        first += part.queries.numel()
    for index, ids in enumerate(sequences):
        positions = torch.arange(len(ids))
        found = layout.find(torch.full_like(positions, index), positions)
        back = positions[:, None] - positions
        expected = (back >= 0) & (back < (window or 1000))
        assert torch.equal(seen[found][:, found], expected.int())
        assert torch.equal(seen[found].sum(1), expected.sum(1)), "no token of another sequence is seen"


def test_rows_are_padded_to_their_likes_only() -> None:
    layout = Layout.of([list(range(1, n)) for n in (100, 98, 20, 19)], share=False)
    assert [tuple(p.queries.shape) for p in layout.parts] == [(2, 99), (2, 19)]
    assert layout.pairs == 2 * 99 * 99 + 2 * 19 * 19


def test_answers_of_a_long_prompt_lie_side_by_side() -> None:
    """Its keys are copied once for a row of them, not for each."""
    long, short = Layout.of(grouped(0, 0, 0, 16)), Layout.of(grouped(16))
    assert all(p.causal or p.queries.shape[0] == 1 for p in long.parts)
    assert sum(p.queries.shape[0] for p in short.parts if not p.causal) > 12


# -- gathering ---------------------------------------------------------------------------------------------------------
def test_the_gradient_of_what_stands_in_many_places_is_their_sum() -> None:
    tokens = torch.tensor([[3, 0, 0], [1, 3, 3]])
    index = Index.of(tokens)
    assert [sorted(t.tolist()) for t, _ in index.turns] == [[0, 1, 3], [0, 3], [3]]
    values = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    assert torch.equal(index.gather(values), values[tokens.flatten()])
    assert torch.autograd.gradcheck(index.gather, [values])
    assert torch.autograd.gradgradcheck(index.gather, [values])
    padded = Index.of(tokens, tokens.new_tensor([[1, 1, 0], [1, 1, 0]]).bool())
    (grad,) = torch.autograd.grad(padded.gather(values).sum(), values)
    assert grad[:, 0].tolist() == [1, 1, 0, 2, 0]
    assert Index.of(torch.zeros(0, dtype=torch.long)).turns == []


def test_the_sum_is_the_same_each_time() -> None:
    """Whatever the threads do: many small values and few large ones, whose sums depend on the order."""
    draw = torch.Generator().manual_seed(0)
    index = Index.of(torch.randint(0, 50, (4000,), generator=draw))
    grad = torch.randn(4000, 256, generator=draw) * 10 ** (3 * torch.randn(4000, 1, generator=draw))
    values, threads = torch.zeros(50, 256, requires_grad=True), torch.get_num_threads()
    found = []
    for n in (1, 2, 2, 2):
        torch.set_num_threads(n)
        found.append(torch.autograd.grad(index.gather(values), values, grad)[0])
    torch.set_num_threads(threads)
    assert all(torch.equal(found[0], f) for f in found)
