"""Holes in the response: where they are, what they are, and that labels stay."""

from __future__ import annotations

import pytest
import torch
from objective_tools import distance, exact, gradient, loss_of, rollouts, sample

from tiny import tiny_policy
from whet.errors import WhetError
from whet.objectives import Clean, Context, Ramp, nll
from whet.objectives.ahead import predicted
from whet.objectives.masking import NOISES, Masking, mask_id
from whet.records import Row


@pytest.fixture(scope="module")
def policy():
    return exact()


def read(policy, p, noise="mask", seed=0, rows=None):
    """(batch, what the model reads, which tokens are learnt)"""
    ctx = Context(rows or rollouts(), {"policy": policy}, seed=seed)
    batch = ctx.batch("response")
    learnt = torch.zeros_like(batch.mask)
    learnt[batch.sequence, batch.position] = True
    return batch, Masking(Ramp(p), noise).at(ctx, "response").see(policy, batch, seed), learnt


@pytest.mark.parametrize("noise", NOISES)
def test_no_holes_is_likelihood_bit_for_bit(policy, noise):
    holes = nll(view=Masking(Ramp(0.0), noise))
    assert torch.equal(loss_of(holes, rollouts(), policy), loss_of(nll(), rollouts(), policy))
    assert torch.equal(gradient(holes, rollouts(), policy), gradient(nll(), rollouts(), policy))
    assert distance(gradient(nll(view=Masking(Ramp(0.5), noise)), rollouts(), policy),
                    gradient(nll(), rollouts(), policy)) > 1e-3  # fmt: skip


def test_all_holes_are_all_learnt_tokens_and_no_other(policy):
    batch, seen, learnt = read(policy, 1.0)
    assert (seen.ids[learnt] == mask_id(policy)).all()
    assert torch.equal(seen.ids[~learnt], batch.ids[~learnt])
    assert seen.mask is None  # a hole stays visible


@pytest.mark.parametrize("noise", NOISES)
def test_labels_stay(policy, noise):
    rows = rollouts()
    ctx = Context(rows, {"policy": policy})
    clean = ctx.batch("response").targets.clone()
    assert torch.equal(ctx.forward("response", Masking(Ramp(1.0), noise)).batch.targets, clean)
    assert mask_id(policy) not in clean.tolist()


def test_the_rate_and_the_question_over_a_thousand_draws(policy):
    rows = [Row({"response": sample(4, 10)})]
    batch, _, learnt = read(policy, 0.3, rows=rows)
    hits = [read(policy, 0.3, seed=seed, rows=rows)[1].ids != batch.ids for seed in range(1000)]
    counted = torch.stack(hits).float()
    assert not counted[:, ~learnt].any()
    n = counted[:, learnt].numel()
    assert abs(float(counted[:, learnt].mean()) - 0.3) < 3 * (0.3 * 0.7 / n) ** 0.5


@pytest.mark.parametrize("noise", ["mask", "random", "zero", "uniform"])
def test_a_visit_has_its_holes_and_another_has_others(policy, noise):
    def content(seed):
        _, seen, _ = read(policy, 0.5, noise, seed)
        return seen.ids if seen.embeds is None else seen.embeds

    assert torch.equal(content(1), content(1))
    assert not torch.equal(content(1), content(2))


def test_what_a_hole_is(policy):
    batch, seen, learnt = read(policy, 1.0, "zero")
    assert not seen.embeds[learnt].any()
    assert torch.equal(seen.embeds[~learnt], policy.embed(batch.ids)[~learnt])
    batch, seen, learnt = read(policy, 1.0, "sample")
    ctx = Context(rollouts(), {"policy": policy})
    assert torch.equal(seen.ids[batch.sequence, batch.position], predicted(ctx, "response", 1.0))
    batch, seen, learnt = read(policy, 1.0, "random", rows=[Row({"response": sample(4, 60)})])
    assert len(set(seen.ids[learnt].tolist())) > 40 and int(seen.ids.max()) < len(policy.tokenizer)
    batch, seen, learnt = read(policy, 1.0, "uniform", rows=[Row({"response": sample(4, 60)})])
    moved = (seen.embeds - policy.embed(batch.ids))[learnt]
    limit = 1000 / (64 * policy.model.config.hidden_size) ** 0.5
    assert float(moved.abs().max()) <= limit + 1e-6 and float(moved.std()) == pytest.approx(limit / 3**0.5, rel=0.05)


def test_the_ratio_rises_with_the_steps(policy):
    def at(step):
        return Masking(Ramp(0.4, over=0.5)).at(
            Context(rollouts(), {"policy": policy}, step=step, steps=100), "response"
        )

    assert isinstance(at(0), Clean)
    assert (at(25.5).p, at(51).p, at(90).p) == (pytest.approx(0.2), 0.4, 0.4)


def test_which_token_a_hole_is_made_of():
    policy = tiny_policy()
    assert mask_id(policy) == policy.tokenizer.pad_token_id
    policy.format.end_ids.add(policy.tokenizer.pad_token_id)  # a pad that ends texts
    with pytest.raises(WhetError, match="use noise=random"):
        nll(view=Masking(Ramp(0.2))).check(policy)
    nll(view=Masking(Ramp(0.2), "random")).check(policy)
    policy.tokenizer = type("Masked", (), {"mask_token_id": 7, "pad_token_id": 0})()
    assert mask_id(policy) == 7
    with pytest.raises(WhetError, match="did you mean 'mask'"):
        Masking(Ramp(0.2), "maks")
