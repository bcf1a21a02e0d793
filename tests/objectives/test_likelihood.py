"""Signed, weighted likelihood."""

from __future__ import annotations

import pytest
import torch
from objective_tools import distance, exact, gradient, loss_of, rollouts, sample

from whet.objectives import Context, nll
from whet.records import Row


@pytest.fixture(scope="module")
def policy():
    return exact()


def test_token_nll_is_the_mean_cross_entropy(policy):
    rows = rollouts()
    logprobs = Context(rows, {"policy": policy}).forward("response").logprobs
    torch.testing.assert_close(loss_of(nll(), rows, policy), -logprobs.mean())


def test_segment_weights_multiply_and_never_divide(policy):
    rows = rollouts()
    whole = gradient(nll(), rows, policy)
    for row in rows:
        for segment in row["response"].segments:
            segment.weight = 0.25
    torch.testing.assert_close(gradient(nll(), rows, policy), 0.25 * whole)


def test_row_weights_are_signed(policy):
    """Two rows of weights +1 and -1 with equal tokens cancel; weights that sum to zero divide by nothing."""
    rows = [Row({"response": sample(3, 4, 1)}, {"weight": w}) for w in (1.0, -1.0)]
    assert gradient(nll("sequence-sum", weight="weight"), rows, policy).abs().max() < 1e-14
    rows[0].numbers["weight"] = -2.0
    plain = gradient(nll("row"), rows[:1], policy)
    assert distance(gradient(nll("row", weight="weight"), rows[:1], policy), -2 * plain) < 1e-12


def test_a_row_with_several_samples_shares_its_weight(policy):
    rows = [
        Row({"response": [sample(3, 4, 1), sample(2, 2, 2)]}, {"weight": 2.0}),
        Row({"response": sample(2, 3, 3)}, {"weight": -0.5}),
    ]
    logprobs = Context(rows, {"policy": policy}).forward("response").logprobs
    expected = -(2.0 * logprobs[:6].sum() - 0.5 * logprobs[6:].sum())
    torch.testing.assert_close(loss_of(nll("none", weight="weight"), rows, policy), expected)


def test_masked_tokens_leave_loss_and_count(policy):
    rows = rollouts()[:1]
    logprobs = Context(rows, {"policy": policy}).forward("response").logprobs
    mask = torch.ones(7, dtype=torch.bool)
    mask[4] = False
    rows[0]["response"].per_token["mask"] = mask
    torch.testing.assert_close(loss_of(nll(), rows, policy), -logprobs[[0, 2, 3]].mean())
