"""Adaptive noise on blocks, its draws, and agreement between two views."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from objective_tools import distance, exact, gradient, loss_of, rollouts, sample

from tiny import tiny_policy
from whet.models.hooks import blocks
from whet.models.packing import Batch
from whet.objectives import Clean, Context, forward_kl, nll, reverse_kl
from whet.objectives.noise import Agreement, BlockNoise, adaptive_scale, deviation
from whet.objectives.views import Dropout, Neftune
from whet.records import Row, Sample, Segment

NOISE = BlockNoise(((0, 0.3), (1, 0.1)), draw=1)
OTHER = replace(NOISE, draw=2)


@pytest.fixture(scope="module")
def policy():
    """Without packing, so that every forward is one of `hidden`."""
    found = exact()
    found.__dict__["packs"] = False
    return found


def hooks(policy) -> int:
    return sum(len(m._forward_hooks) for m in policy.model.modules())


# -- the formula -------------------------------------------------------------------------------------------------------
def test_numbers():
    hidden = torch.arange(5.0, dtype=torch.float64)[None, None]
    found = 0.01 * adaptive_scale(hidden, torch.ones(1, 1, dtype=torch.bool))
    assert found[0, 0].tolist() == pytest.approx([0.02226, 0.02460, 0.02718, 0.02460, 0.02226], abs=5e-6)


def test_a_constant_state_has_the_floor_and_an_empty_one_nothing():
    hidden = torch.stack([torch.full((8,), 3.0), torch.zeros(8)])[None]
    found = adaptive_scale(hidden, torch.ones(1, 2, dtype=torch.bool))
    floor = 1e-6 * 3 * math.sqrt(8)
    assert found[0, 0].tolist() == pytest.approx([floor] * 8)  # f = e^0: both have no variance
    assert found[0, 1].tolist() == [0.0] * 8


def test_the_token_factor_is_at_most_five():
    hidden = torch.randn(1, 400, 16, generator=torch.Generator().manual_seed(0)) * 1e-3
    hidden[0, 7] *= 1e6
    mask = torch.ones(1, 400, dtype=torch.bool)
    scale = adaptive_scale(hidden, mask, beta=0.0)
    away = (hidden - hidden.median(-1, keepdim=True).values).abs().median(-1).values
    factor = scale[..., 0] / away
    assert float(factor.max()) == pytest.approx(5) and float(factor.max()) < 5 + 1e-4
    assert factor.isfinite().all()


def test_padding_is_in_no_statistic():
    hidden = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[0, 3:] = False
    alone = hidden[:1, :3]
    torch.testing.assert_close(adaptive_scale(hidden, mask)[:1, :3], adaptive_scale(alone, mask[:1, :3]))
    torch.testing.assert_close(deviation(hidden, mask)[:1], deviation(alone, mask[:1, :3]))


def test_its_deviation_and_its_mean_over_many_draws(policy):
    state = torch.arange(5.0, dtype=torch.float64).expand(1, 4000, 5)
    row = Sample([Segment("question", [2] * 3999), Segment("answer", [2], learn=True)], problem_id="p")
    noisy = BlockNoise(((0, 0.01),))._noisy(Batch.of([row]), 3, 0, 0.01, state)
    added = (noisy - state)[0]
    due = torch.tensor([0.02226, 0.02460, 0.02718, 0.02460, 0.02226], dtype=torch.float64)
    assert (added.mean(0).abs() < 4 * due / 4000**0.5).all()
    torch.testing.assert_close(added.std(0), due, rtol=0.05, atol=0)


# -- the passes --------------------------------------------------------------------------------------------------------
def test_passes_of_a_visit_differ_and_are_repeated(policy):
    def at(view, seed=0):
        return Context(rollouts(), {"policy": policy}, seed=seed).forward("response", view).logprobs

    assert torch.equal(at(NOISE), at(NOISE))
    assert not torch.equal(at(NOISE), at(OTHER))
    assert not torch.equal(at(NOISE), at(NOISE, 1))
    torch.testing.assert_close(at(BlockNoise(((0, 0.0),))), at(Clean()), rtol=1e-12, atol=0)
    assert not torch.equal(at(replace(NOISE, relative=True)), at(NOISE))


def test_noise_is_in_its_pass_only(policy):
    ctx = Context(rollouts(), {"policy": policy})
    before = Context(rollouts(), {"policy": policy}).forward("response").logprobs
    loss_of(nll(view=NOISE), rollouts(), policy).backward()
    ctx.forward("response", NOISE)
    assert torch.equal(ctx.forward("response").logprobs, before)
    assert hooks(policy) == 0


def test_its_scale_carries_a_gradient_only_where_asked(policy):
    """Finite differences of one channel, the random numbers held."""
    batch = Batch.of([sample(3, 4)])
    state = torch.randn(1, 7, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    for through in (False, True):
        view = BlockNoise(((0, 0.3),), through=through)
        added = (view._noisy(batch, 0, 0, 0.3, state) - state).sum()
        if not through:
            assert not any(g.any() for g in torch.autograd.grad(added, [state], retain_graph=True))
            continue
        (found,) = torch.autograd.grad(added, [state])
        moved, step = state.detach().clone(), 1e-6
        moved[0, 2, 5] += step
        far = (view._noisy(batch, 0, 0, 0.3, moved) - moved).sum()
        assert float((far - added.detach()) / step) == pytest.approx(float(found[0, 2, 5]), rel=1e-3)


# -- agreement ---------------------------------------------------------------------------------------------------------
def test_it_is_the_divergence_of_two_models_that_are_the_views(policy):
    """KL(teacher || student) with the teacher fixed is the forward KL to a model that sees what the teacher sees."""
    ctx = Context(rollouts(), {"policy": policy})
    clean, noisy = ctx.forward("response"), ctx.forward("response", NOISE)
    p, q = (policy.head(f.hidden).log_softmax(-1).detach() for f in (clean, noisy))
    torch.testing.assert_close(
        loss_of(Agreement(None, NOISE), rollouts(), policy).detach(), (p.exp() * (p - q)).sum(-1).mean()
    )
    torch.testing.assert_close(
        loss_of(Agreement(NOISE, None), rollouts(), policy).detach(), (q.exp() * (q - p)).sum(-1).mean()
    )
    half = (policy.head(f.hidden).div(2).log_softmax(-1).detach() for f in (clean, noisy))
    p, q = half
    warm = loss_of(Agreement(None, NOISE, temperature=2.0), rollouts(), policy).detach()
    torch.testing.assert_close(warm, 4 * (p.exp() * (p - q)).sum(-1).mean())


def test_the_teacher_learns_only_where_asked(policy):
    """Against a frozen copy: as the student's forward KL, and as the teacher's reverse KL besides."""
    both = {"policy": policy, "reference": exact()}

    class Seen(Context):  # the reference sees noise, the policy does not
        def forward(self, name, view=None, who="policy", grad=True):
            return super().forward(name, NOISE if who == "reference" else view, who, grad)

    def against(term):
        objective = 1.0 * term
        ctx = Seen(rollouts(), both, objective.counts(rollouts()))
        ((total, count),) = objective.total(ctx).values()
        return torch.cat([g.flatten() for g in torch.autograd.grad(total / count, list(policy.model.parameters()))])

    student = gradient(Agreement(NOISE, None), rollouts(), policy)
    assert distance(student, against(forward_kl())) < 1e-10
    live = gradient(Agreement(None, NOISE, teacher_grad=True), rollouts(), policy)
    held = gradient(Agreement(None, NOISE), rollouts(), policy)
    assert distance(live - held, against(reverse_kl())) < 1e-10


def test_equal_views_agree_and_share_a_forward(policy, monkeypatch):
    calls = []
    hidden = policy.hidden
    monkeypatch.setattr(policy, "hidden", lambda *a: calls.append(1) or hidden(*a))
    assert float(loss_of(Agreement(NOISE, replace(NOISE)), rollouts(), policy).detach()) == 0
    assert len(calls) == 1
    loss_of(nll() + Agreement(None, NOISE, name="a") + Agreement(None, OTHER, name="b"), rollouts(), policy)
    assert len(calls) == 4


# -- controls ----------------------------------------------------------------------------------------------------------
def test_dropout_drops_its_share_and_keeps_the_mean():
    policy = tiny_policy("gpt2")
    row = Sample([Segment("question", [2] * 99), Segment("answer", [2], learn=True)], problem_id="p")
    batch = Batch.of([row])
    seen = {}
    view = Dropout(0.25, 1)
    last = blocks(policy)[-1]
    with view.around(policy, batch, 0):
        handle = last.register_forward_hook(lambda m, i, o: seen.update(out=o[0] if isinstance(o, tuple) else o))
        policy.hidden(batch.ids)
        handle.remove()
    dropped = (seen["out"] == 0).float()
    assert abs(float(dropped.mean()) - 0.25) < 4 * (0.25 * 0.75 / dropped.numel()) ** 0.5
    assert hooks(policy) == 0


def test_neftune_stays_within_its_bound(policy):
    rows = [Row({"response": sample(4, 60)}), Row({"response": sample(2, 3, 1)})]
    batch = Batch.of([row["response"] for row in rows])
    moved = Neftune(5.0).see(policy, batch, 0).embeds - policy.embed(batch.ids)
    for row, length in enumerate((64, 5)):
        limit = 5 / (length * policy.model.config.hidden_size) ** 0.5
        assert 0.9 * limit < float(moved[row, :length].detach().abs().max()) <= limit
    assert not moved[1, 5:].any()
