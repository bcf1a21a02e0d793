"""The numbers of the GRPO card, and what each estimator does with degenerate groups."""

from __future__ import annotations

import math

import pytest
import torch
from advantage_tools import advantages, answer, group, learnt, set_tokens

from whet.advantages import (
    batch_std,
    batch_whiten,
    group_mean,
    group_std,
    normalise_then_sum,
    process_supervised,
    raw,
    reinforce_plus_plus,
    rloo,
)
from whet.errors import WhetError

GROUPED = {"group_std": group_std, "group_mean": group_mean, "batch_std": batch_std, "batch_whiten": batch_whiten,
           "rloo": rloo}  # fmt: skip


def run(estimator, rows):
    estimator(rows)
    return advantages(rows)


def test_group_std():
    assert run(group_std(), group([1, 0, 0, 0])) == pytest.approx([1.5, -0.5, -0.5, -0.5], abs=1e-5)
    assert run(group_std(epsilon=0.5), group([1, 0, 0, 0])) == pytest.approx([0.75, -0.25, -0.25, -0.25])


def test_rloo_is_group_mean_times_g_over_g_minus_one():
    assert run(rloo(), group([1, 0, 0, 0])) == pytest.approx([1, -1 / 3, -1 / 3, -1 / 3])
    means = run(group_mean(), group([0.3, 0.1, 0.7]))
    assert run(rloo(), group([0.3, 0.1, 0.7])) == pytest.approx([1.5 * m for m in means])


@pytest.mark.parametrize("name", GROUPED)
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, 1e9])
def test_equal_rewards_give_exactly_zero(name, reward):
    rows = group([reward] * 3)
    assert run(GROUPED[name](), rows) == [0.0] * 3
    assert all(set(learnt(row)) == {0.0} for row in rows)


def test_written_on_learnt_tokens_only():
    rows = group([1, 0])
    group_mean()(rows)
    assert rows[1]["response"].per_token["advantage"].tolist() == [0, 0, -0.5, -0.5, -0.5]
    assert rows[1]["response"].per_token["advantage"].dtype == torch.float32


def test_groups_have_their_own_baseline_wherever_their_rows_stand():
    a, b = group([1, 0], "a"), group([5, 5.5], "b")
    assert run(group_mean(), [a[0], b[0], a[1], b[1]]) == [0.5, -0.25, -0.5, 0.25]


def test_batch_std_divides_by_the_deviation_of_raw_rewards():
    rows = group([1, 0], "a") + group([3, 2], "b")
    std = torch.tensor([1.0, 0, 3, 2]).std().item()
    assert run(batch_std(), rows) == pytest.approx([0.5 / std, -0.5 / std] * 2, rel=1e-5)


def test_batch_whiten_weighs_answers_by_their_tokens():
    rows = [answer(1, 1, "a"), answer(0, 3, "a")]  # centred .5, -.5, -.5, -.5
    flat = torch.tensor([0.5, -0.5, -0.5, -0.5])
    expected = ((flat - flat.mean()) / flat.std()).tolist()
    assert run(batch_whiten(), rows) == pytest.approx(expected[:2], rel=1e-5)
    assert sum(v for row in rows for v in learnt(row)) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("name", GROUPED)
def test_unscorable_answers_are_left_out(name):
    """The others get what they get without it."""
    whole, rest = group([1, math.nan, 0, 0.5]), group([1, 7, 0, 0.5])
    del rest[1]
    found = run(GROUPED[name](), whole)
    assert found[1] == 0.0
    assert learnt(whole[1]) == [0.0] * 3
    assert [found[0], *found[2:]] == pytest.approx(run(GROUPED[name](), rest))


@pytest.mark.parametrize("name", GROUPED)
def test_a_group_with_one_scorable_answer_teaches_nothing(name):
    assert run(GROUPED[name](), group([1, math.nan])) == [0.0, 0.0]


@pytest.mark.parametrize("name", GROUPED)
def test_a_group_of_one_is_refused_or_reinforce(name):
    assert GROUPED[name]().needs_group
    with pytest.raises(WhetError, match="no baseline"):
        GROUPED[name]()(group([1.0]))
    loose = GROUPED[name](lone="reinforce")
    assert not loose.needs_group
    if name != "batch_whiten":  # which still whitens over the batch
        assert run(loose, group([0.7])) == [0.7]
    with pytest.raises(WhetError, match="lone"):
        GROUPED[name](lone="yes")


def test_raw_is_the_reward():
    assert run(raw(), group([0.7, math.nan])) == [0.7, 0.0]
    assert not raw().needs_group


def test_an_unscored_row_is_an_error():
    row = answer(1.0)
    del row.numbers["reward"]
    with pytest.raises(WhetError, match="scored"):
        raw()([row])


def test_normalise_then_sum():
    """Each part to mean 0, deviation 1 in its group; the weighted sum standardised over the batch."""
    rows = [answer(0, group="a", right=r, short=s) for r, s in ((1, 0), (0, 30), (0, 0))]
    rows += [answer(0, group="b", right=r, short=s) for r, s in ((1, 10), (1, 20))]
    found = run(normalise_then_sum({"right": 1.0, "short": 0.5}), rows)
    right = [2 / 3**0.5, -1 / 3**0.5, -1 / 3**0.5, 0, 0]
    short = [-1 / 3**0.5, 2 / 3**0.5, -1 / 3**0.5, -(0.5**0.5), 0.5**0.5]
    total = torch.tensor([r + 0.5 * s for r, s in zip(right, short, strict=True)])
    assert found == pytest.approx(((total - total.mean()) / total.std()).tolist(), abs=1e-5)
    with pytest.raises(WhetError, match="reward/shrt"):
        normalise_then_sum({"shrt": 1.0})(rows)


def test_process_supervision():
    """Step rewards (1, 0) and (0, 1, 1): mean .6, deviation sqrt(.3); a token sums the steps that end from it on."""
    nan = math.nan
    rows = [
        set_tokens(answer(length=4), step_reward=[nan, 1, nan, 0]),
        set_tokens(answer(length=3), step_reward=[0, 1, 1]),
    ]
    process_supervised()(rows)
    up, down = 0.4 / 0.3**0.5, -0.6 / 0.3**0.5
    assert learnt(rows[0]) == pytest.approx([up + down, up + down, down, down], rel=1e-5)
    assert learnt(rows[1]) == pytest.approx([down + 2 * up, 2 * up, up], rel=1e-5)
    with pytest.raises(WhetError, match="step_reward"):
        process_supervised()([answer()])


def whitened(values):
    flat = torch.tensor(values, dtype=torch.float64)
    return ((flat - flat.mean()) / (flat.var() + 1e-8).sqrt()).tolist()


def test_reinforce_plus_plus_returns():
    rows = [answer(1.0, 2, "a"), answer(0.0, 3, "b")]
    reinforce_plus_plus()(rows)
    assert learnt(rows[0]) + learnt(rows[1]) == pytest.approx(whitened([1, 1, 0, 0, 0]), rel=1e-5)
    reinforce_plus_plus(gamma=0.5)(rows)
    assert learnt(rows[0]) + learnt(rows[1]) == pytest.approx(whitened([0.5, 1, 0, 0, 0]), rel=1e-5)


def test_reinforce_plus_plus_takes_dense_rewards_and_kl():
    row = set_tokens(answer(1.0, 3), reward=[0.25, 0, -0.5], old_logprob=[-1, -2, -3], reference_logprob=[-2, -2, -2])
    other = set_tokens(answer(0.0, 2, "b"), reward=[0, 0], old_logprob=[0, 0], reference_logprob=[0, 0])
    estimator = reinforce_plus_plus(kl_coefficient=0.1)
    assert estimator.needs == {"old_logprob", "reference_logprob"}
    assert reinforce_plus_plus().needs == frozenset()
    estimator([row, other])  # token rewards .25 - .1, 0, -.5 + .1 + 1
    assert learnt(row) + learnt(other) == pytest.approx(whitened([0.75, 0.6, 0.6, 0, 0]), rel=1e-5)


def test_reinforce_plus_plus_leaves_unscorable_answers_out():
    rows = [answer(1.0, 2, "a"), answer(0.0, 3, "b"), answer(math.nan, 9, "c")]
    reinforce_plus_plus()(rows)
    assert learnt(rows[0]) + learnt(rows[1]) == pytest.approx(whitened([1, 1, 0, 0, 0]), rel=1e-5)
    assert learnt(rows[2]) == [0.0] * 9
