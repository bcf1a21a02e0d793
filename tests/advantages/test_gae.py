"""The numbers of the PPO card."""

from __future__ import annotations

import math

import pytest
import torch
from advantage_tools import answer, learnt, set_tokens

from whet.advantages import AdaptiveKL, explained_variance, gae, generalized_advantage
from whet.advantages.estimators import token_rewards, whiten
from whet.errors import WhetError
from whet.records import Row, Sample, Segment

REWARDS, VALUES = [0.0, 0.0, 1.0], [0.5, 0.6, 0.7]


def one(values):
    return torch.tensor([values], dtype=torch.float64)


@pytest.mark.parametrize(
    ("lam", "expected"), [(0.95, [0.46575, 0.385, 0.3]), (0.0, [0.1, 0.1, 0.3]), (1.0, [0.5, 0.4, 0.3])]
)
def test_gae(lam, expected):
    mask = torch.ones(1, 3, dtype=torch.bool)
    advantage, returns = gae(one(REWARDS), one(VALUES), mask, 1.0, lam)
    assert advantage[0].tolist() == pytest.approx(expected)
    assert returns[0].tolist() == pytest.approx([a + v for a, v in zip(expected, VALUES, strict=True)])
    if lam == 0.95:
        assert returns[0].tolist() == pytest.approx([0.96575, 0.985, 1.0])


def test_whitening():
    assert whiten(one([0.46575, 0.385, 0.3])[0]).tolist() == pytest.approx([0.99134, 0.01709, -1.00844], abs=1e-5)


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_observations_are_skipped_bit_for_bit(gamma):
    """Masked tokens between and behind the actions, whatever stands there."""
    plain = gae(one(REWARDS), one(VALUES), torch.ones(1, 3, dtype=torch.bool), gamma, 0.95)
    mask = torch.tensor([[True, False, False, True, False, True, False]])
    rewards = torch.full((1, 7), 9.0, dtype=torch.float64)
    values = torch.full((1, 7), -7.0, dtype=torch.float64)
    rewards[mask], values[mask] = one(REWARDS)[0], one(VALUES)[0]
    for found, expected in zip(gae(rewards, values, mask, gamma, 0.95), plain, strict=True):
        assert torch.equal(found[mask], expected[0])
        assert not found[~mask].any()


def channels(*each):
    return torch.tensor(each, dtype=torch.float64).T[None]


def test_channels_with_their_own_discounts():
    rewards = channels([0, 0, 0, 1], [0, -0.1, -0.1, 0])
    values, mask = one([0.1, 0.2, 0.3, 0.4]), torch.ones(1, 4, dtype=torch.bool)
    advantage, returns = gae(rewards, values, mask, (1.0, 0.5), 1.0)
    assert returns[0].tolist() == pytest.approx([0.925, 0.85, 0.9, 1.0])
    assert advantage[0].tolist() == pytest.approx([0.825, 0.65, 0.6, 0.6])
    for gamma in (1.0, 0.9):
        merged = gae(rewards.sum(2), values, mask, gamma, 1.0)
        for found, expected in zip(gae(rewards, values, mask, (gamma, gamma), 1.0), merged, strict=True):
            torch.testing.assert_close(found, expected)
    single = gae(rewards[:, :, :1], values, mask, (0.9,), 1.0)
    for found, expected in zip(single, gae(rewards[:, :, 0], values, mask, 0.9, 1.0), strict=True):
        torch.testing.assert_close(found, expected)


def test_channels_skip_observations():
    rewards = channels([0, 7, 0, 0, 1], [0, 7, -0.1, -0.1, 0])
    mask = torch.tensor([[True, False, True, True, True]])
    _, returns = gae(rewards, torch.zeros(1, 5, dtype=torch.float64), mask, (1.0, 0.5), 1.0)
    assert returns[0].tolist() == pytest.approx([0.925, 0, 0.85, 0.9, 1.0])


def test_channels_refuse_what_they_cannot():
    rewards, mask = channels([0, 1], [0, 0]), torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(WhetError, match="lam=1"):
        gae(rewards, one([0.0, 0.0]), mask, (1.0, 0.5), 0.95)
    with pytest.raises(WhetError, match="3 discounts for 2"):
        gae(rewards, one([0.0, 0.0]), mask, (1.0, 0.5, 0.5), 1.0)
    with pytest.raises(WhetError, match="channels"):
        gae(rewards[:, :, 0], one([0.0, 0.0]), mask, (1.0, 0.5), 1.0)
    with pytest.raises(WhetError, match="lam=1"):
        generalized_advantage(gamma=(1.0, 0.5))


def scored(reward=1.0, values=VALUES, old=(-1.0, -2.0, -3.0), reference=(-1.0, -2.0, -3.0), group="g", ended=True):
    row = answer(reward, len(values), group, ended=ended)
    return set_tokens(row, old_value=values, old_logprob=old, reference_logprob=reference)


@pytest.mark.parametrize("ended", [True, False])
def test_the_score_stands_on_the_last_action(ended):
    """The end token, or the last token of a truncated answer, which is terminal too."""
    row = scored(ended=ended)
    generalized_advantage(whiten=False)([row])
    assert learnt(row) == pytest.approx([0.46575, 0.385, 0.3])
    assert learnt(row, "return") == pytest.approx([0.96575, 0.985, 1.0])
    assert row["response"].per_token["advantage"][:2].tolist() == [0, 0]
    assert row.numbers["advantage"] == pytest.approx((0.46575 + 0.385 + 0.3) / 3)


def test_returns_are_not_whitened():
    row = scored()
    generalized_advantage()([row])
    assert learnt(row) == pytest.approx([0.99134, 0.01709, -1.00844], abs=1e-5)
    assert learnt(row, "return") == pytest.approx([0.96575, 0.985, 1.0])


def test_neighbours_change_only_the_whitening():
    """Padding: a longer answer beside it."""
    rows = [scored(), scored(0.0, [0.1] * 6, [0.0] * 6, [0.0] * 6, "b")]
    generalized_advantage(whiten=False)(rows)
    assert learnt(rows[0]) == pytest.approx([0.46575, 0.385, 0.3])
    raw = learnt(rows[0]) + learnt(rows[1])
    generalized_advantage()(rows)
    assert learnt(rows[0]) + learnt(rows[1]) == pytest.approx(whiten(torch.tensor(raw)).tolist(), abs=1e-5)


def test_kl_in_the_reward():
    row = scored(reference=(-2.0, -2.0, -2.5))
    assert token_rewards(row, 0.1)[:, 0].tolist() == pytest.approx([-0.1, 0.0, 1.05])
    estimator = generalized_advantage(lam=1.0, kl_coefficient=0.1, whiten=False)
    estimator([row])
    assert learnt(row, "return") == pytest.approx([0.95, 1.05, 1.05])
    assert row.numbers["kl"] == pytest.approx((1.0 + 0.0 - 0.5) / 3)
    assert estimator.needs == {"old_logprob", "old_value", "reference_logprob"}
    assert generalized_advantage().needs == {"old_logprob", "old_value"}


@pytest.mark.parametrize("count", [1, 2, 3])
def test_kl_is_shared_equally_by_the_channels(count):
    row = scored(reference=(-2.0, -2.0, -2.5))
    rewards = token_rewards(row, 0.1, count)
    rewards[-1, 0] -= 1.0
    assert rewards.sum(1).tolist() == pytest.approx([-0.1, 0.0, 0.05])
    torch.testing.assert_close(rewards, rewards[:, :1].expand(-1, count))


def test_dense_rewards_and_their_channel():
    row = set_tokens(answer(1.0, 4), old_value=[0.0] * 4, old_logprob=[0.0] * 4, reward=[0, -0.1, -0.1, 0])
    generalized_advantage((1.0, 0.5), lam=1.0, whiten=False)([row])
    assert learnt(row, "return") == pytest.approx([0.925, 0.85, 0.9, 1.0])
    generalized_advantage(1.0, lam=1.0, whiten=False)([row])
    assert learnt(row, "return") == pytest.approx([0.8, 0.8, 0.9, 1.0])


def test_observations_inside_a_response():
    """A tool's text between two actions changes nothing on the actions."""
    plain = scored()
    tool = Sample([
        Segment("question", [2, 3]), Segment("rationale", [5], learn=True), Segment("observation", [8, 9, 8]),
        Segment("rationale", [6], learn=True), Segment("eos", [1], learn=True),
    ])  # fmt: skip
    row = set_tokens(Row({"response": tool}, {"reward": 1.0}), old_value=VALUES, old_logprob=[0.0] * 3)
    for each in (plain, row):
        generalized_advantage(0.9, whiten=False)([each])
    assert learnt(row) == learnt(plain)


def test_an_unscorable_answer_teaches_nothing():
    rows = [scored(), scored(math.nan, group="b")]
    generalized_advantage()(rows)
    assert learnt(rows[0]) == pytest.approx([0.99134, 0.01709, -1.00844], abs=1e-5)
    assert learnt(rows[1]) == [0.0] * 3
    assert learnt(rows[1], "return") == pytest.approx(VALUES)  # no error for the value head


def test_missing_values_are_named():
    with pytest.raises(WhetError, match="value head"):
        generalized_advantage()([answer()])


def test_adaptive_kl():
    held = AdaptiveKL(0.1, target=0.5, horizon=100)
    held.update(1.0, 10)  # error +1 is clipped to .2
    assert held.value == pytest.approx(0.1 * (1 + 0.2 * 0.1))
    held.update(0.45, 10)
    assert held.value == pytest.approx(0.102 * (1 - 0.1 * 0.1))
    other = AdaptiveKL(1.0, 0.5)
    other.load_state_dict(held.state_dict())
    assert other.value == held.value


def test_the_estimator_moves_its_coefficient_after_the_step():
    estimator = generalized_advantage(lam=1.0, kl_coefficient=AdaptiveKL(0.1, 0.01, horizon=10), whiten=False)
    row = scored(reference=(-2.0, -2.0, -2.5))
    estimator([row])
    assert learnt(row, "return") == pytest.approx([0.95, 1.05, 1.05])  # with the coefficient of before
    assert estimator.beta == pytest.approx(0.1 * (1 + 0.2 / 10))
    other = generalized_advantage(kl_coefficient=AdaptiveKL(9.0, 0.01))
    other.load_state_dict(estimator.state_dict())
    assert other.beta == estimator.beta


def test_explained_variance():
    exact, poor = scored(values=[1.0, 1.0, 1.0]), scored(0.0, [0.0, 0.0, 0.0], group="b")
    generalized_advantage(lam=1.0)([exact, poor])
    assert explained_variance([exact, poor]) == pytest.approx(1.0)
    flat = [scored(1.0, [0.5] * 3), scored(0.0, [0.5] * 3, group="b")]
    generalized_advantage(lam=1.0)(flat)
    assert explained_variance(flat) == pytest.approx(0.0)
