"""Transforms, and that they leave what they should."""

from __future__ import annotations

import math

import pytest
import torch
from advantage_tools import answer, group, learnt, set_tokens

from whet.advantages import filter_overlong, group_mean, top_entropy, transforms, weighted
from whet.errors import WhetError
from whet.objectives import count
from whet.records import Row, Sample, Segment


def planned(kinds=("plan", "plan", "rationale", "execution", "eos")):
    segments = [Segment("question", [2]), *(Segment(k, [5], learn=True) for k in kinds)]
    return Row({"response": Sample(segments)}, {"reward": 1.0})


def of(kind):
    return lambda sample: sample.span_mask(kind)


def test_some_tokens_may_weigh_more():
    """Advantage .5, plan weight 2."""
    row = set_tokens(planned(), advantage=[0.5] * 5)
    weighted(2.0, of("plan"))([row])
    assert learnt(row) == [1.0, 1.0, 0.5, 0.5, 0.5]
    weighted(0.0, of("critique"))([row])
    assert learnt(row) == [1.0, 1.0, 0.5, 0.5, 0.5]


@pytest.mark.parametrize(("share", "n", "kept"), [(0.2, 4, 1), (0.2, 5, 1), (0.2, 6, 2), (0.2, 10, 2), (0.9, 10, 9)])
def test_top_entropy_drops_the_floor(share, n, kept):
    row = set_tokens(answer(1.0, n), advantage=[1.0] * n, entropy=[0.1 * i for i in range(n)])
    top_entropy(share)([row])
    assert learnt(row) == [0.0] * (n - kept) + [1.0] * kept


def test_top_entropy_of_some_kinds():
    row = set_tokens(
        planned(("prefix",) * 5 + ("rationale",)), advantage=[1.0] * 6, entropy=[0.1, 0.9, 0.5, 0.3, 0.7, 0]
    )
    top_entropy(0.2, kinds=("prefix",), scope="sequence")([row])
    assert learnt(row) == [0, 1, 0, 0, 0, 1]


def test_top_entropy_over_the_batch_or_each_sequence():
    def rows():
        return [set_tokens(answer(1.0, 2), advantage=[1.0] * 2, entropy=e) for e in ([0.1, 0.2], [0.3, 0.4])]

    batch, each = rows(), rows()
    top_entropy(0.5)(batch)
    top_entropy(0.5, scope="sequence")(each)
    assert [learnt(r) for r in batch] == [[0, 0], [1, 1]]
    assert [learnt(r) for r in each] == [[0, 1], [0, 1]]
    everything = rows()
    top_entropy(1.0)(everything)
    assert [learnt(r) for r in everything] == [[1, 1], [1, 1]]
    for bad in (0.0, 1.5):
        with pytest.raises(WhetError, match="share"):
            top_entropy(bad)


def test_overlong_answers_are_withdrawn_but_were_in_the_statistics():
    rows = [answer(1.0, 2), answer(0.0, 6, ended=False)]
    group_mean()(rows)
    filter_overlong()(rows)
    assert learnt(rows[0]) == [0.5, 0.5]
    assert learnt(rows[1]) == []
    assert rows[1].numbers["advantage"] == -0.5
    assert count("token", rows, ["response"]) == 2
    assert count("sequence", rows, ["response"]) == 2
    assert count("constant", rows, ["response"], 6) == 12


def test_whiten_and_clip():
    rows = group([3.0, 1.0, math.nan])
    group_mean()(rows)
    transforms.whiten()(rows)
    flat = torch.tensor(learnt(rows[0]) + learnt(rows[1]))
    assert float(flat.mean()) == pytest.approx(0, abs=1e-6)
    assert float(flat.std()) == pytest.approx(1, abs=1e-6)
    assert learnt(rows[2]) == [0.0] * 4
    transforms.clip(-0.1, 0.2)(rows)
    assert learnt(rows[0]) == pytest.approx([0.2] * 2)
    assert learnt(rows[1]) == pytest.approx([-0.1] * 3)
    transforms.clip(0.1, 0.2)(rows)
    assert rows[0]["response"].per_token["advantage"][:2].tolist() == [0, 0]  # never on tokens that are not learnt
    with pytest.raises(WhetError, match="low"):
        transforms.clip(1.0, 0.0)


@pytest.mark.parametrize("transform", [weighted(2.0, of("plan")), transforms.clip(-1, 1), transforms.whiten()])
def test_transforms_follow_an_estimator(transform):
    with pytest.raises(WhetError, match="follow an estimator"):
        transform([answer()])


def test_transforms_change_no_copy_of_the_table():
    """Two rows may share a table (a sample learnt from twice); a transform writes a new one."""
    row = set_tokens(planned(), advantage=[0.5] * 5)
    before = row["response"].per_token["advantage"]
    weighted(2.0, of("plan"))([row])
    assert before[1:].tolist() == [0.5] * 5
