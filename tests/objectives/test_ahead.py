"""The policy one step ahead, what is mixed into the input, schedules, and relation propagation (IFT)."""

from __future__ import annotations

import pytest
import torch
from objective_tools import distance, exact, gradient, loss_of, rollouts

from tiny import KINDS, tiny_policy
from whet.errors import WhetError
from whet.models.packing import Batch
from whet.objectives import Clean, Context, Ramp, nll
from whet.objectives.ahead import Ahead, Mixed, check_embeddings, predicted
from whet.objectives.intuitive import Propagated, propagate, relation_weights
from whet.records import Row, Sample, Segment


@pytest.fixture(scope="module")
def policy():
    """Without packing, so that every forward is one of `hidden`."""
    found = exact()
    found.__dict__["packs"] = False
    return found


def one_of(n: int) -> Batch:
    """A batch of one sequence that learns n tokens."""
    return Batch.of([Sample([Segment("question", [2]), Segment("answer", [3] * n, learn=True)])])


# -- schedule ----------------------------------------------------------------------------------------------------------
def test_a_ramp_counts_optimizer_steps():
    p = Ramp(0.4, over=2 / 3)
    assert p.at(0, 300) == 0
    assert p.at(100, 300) == pytest.approx(0.4 * 100 / 201)
    assert p.at(201, 300) == p.at(299, 300) == pytest.approx(0.4)
    assert Ramp(0.4).at(0, 300) == 0.4
    assert Ramp(0.1, start=0.5, over=0.5).at(25.5, 100) == pytest.approx(0.3)


# -- predictions -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("temperature", [0.0, 1e-4])
def test_predictions_are_of_the_place_and_not_of_the_next(policy, temperature):
    rows = rollouts()
    ctx = Context(rows, {"policy": policy})
    found = predicted(ctx, "response", temperature)
    with torch.no_grad():
        due = [policy.logits(torch.tensor([s.ids]))[0].argmax(-1)[:-1][s.learn_mask[1:]]
               for s in (row["response"] for row in rows)]  # fmt: skip
    assert found.tolist() == torch.cat(due).tolist()
    assert ctx.forward("response", grad=False).logprobs.grad_fn is None


def test_drawn_predictions_follow_the_distribution_and_the_visit(policy):
    row = rollouts()[1]  # one learnt token
    with torch.no_grad():
        p = policy.logits(torch.tensor([row["response"].ids]))[0, -2].softmax(-1)
    draws = [int(predicted(Context([row], {"policy": policy}, seed=seed), "response", 1.0)) for seed in range(200)]
    top = int(p.argmax())
    share, error = draws.count(top) / 200, (float(p[top] * (1 - p[top])) / 200) ** 0.5
    assert abs(share - float(p[top])) < 4 * error
    again = Context(rollouts(), {"policy": policy}, seed=3)
    alone = Context(rollouts()[1:2], {"policy": policy}, seed=3)
    where = again.batch("response").sequence == 1
    assert torch.equal(predicted(again, "response", 1.0)[where], predicted(alone, "response", 1.0))


# -- mixing ------------------------------------------------------------------------------------------------------------
def seen(policy, view, rows=None):
    ctx = Context(rows or rollouts(), {"policy": policy})
    resolved = view.at(ctx, "response")
    return ctx.batch("response"), resolved.see(policy, ctx.batch("response"), 0).embeds, predicted(ctx, "response")


def test_the_prompt_is_read_as_it_is_and_the_response_at_one_is_the_prediction(policy):
    batch, embeds, guess = seen(policy, Ahead(Ramp(1.0)))
    plain = policy.embed(batch.ids)
    learnt = torch.zeros_like(batch.mask)
    learnt[batch.sequence, batch.position] = True
    assert torch.equal(embeds[~learnt], plain[~learnt])
    assert torch.equal(embeds[batch.sequence, batch.position], policy.embed(guess))
    _, mixed, _ = seen(policy, Ahead(Ramp(0.25)))
    due = 0.75 * plain[learnt] + 0.25 * policy.embed(guess)
    torch.testing.assert_close(mixed[learnt], due.detach())
    assert not embeds.requires_grad


def test_a_policy_that_predicts_the_text_reads_the_text(policy):
    rows = rollouts()
    batch = Batch.of([row["response"] for row in rows])
    ctx = Context(rows, {"policy": policy})
    mixed = ctx.forward("response", Mixed(0.7, batch.targets)).logprobs
    torch.testing.assert_close(mixed, ctx.forward("response").logprobs, rtol=1e-12, atol=0)


def test_a_guess_changes_only_what_comes_after_it(policy):
    rows = rollouts()[2:3]  # six learnt tokens
    ctx = Context(rows, {"policy": policy})
    targets = ctx.batch("response").targets
    clean = ctx.forward("response", Mixed(0.5, targets)).logprobs
    for t in range(6):
        other = targets.clone()
        other[t] = (other[t] + 1) % 300
        changed = ctx.forward("response", Mixed(0.5, other)).logprobs
        assert torch.equal(changed[: t + 1], clean[: t + 1])
        assert t == 5 or not torch.equal(changed[t + 1 :], clean[t + 1 :])


def test_noisy_shares_stay_shares_and_are_one_a_step(policy):
    view = Ahead(Ramp(0.8), noisy=True)
    shares = [view.at(Context(rollouts(), {"policy": policy}, seed=seed), "response").mix for seed in range(60)]
    assert min(shares) >= 0 and max(shares) == 1 and len(set(shares)) > 30
    first, second = (view.at(Context([row], {"policy": policy}, seed=1), "response").mix for row in rollouts()[:2])
    assert first == second


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_takes_its_embeddings(kind):
    policy = tiny_policy(kind)
    before = policy.meter.as_dict()
    check_embeddings(policy)
    assert policy.meter.as_dict() == before


def test_a_model_that_does_not_is_refused(policy):
    broken = tiny_policy("gpt2")
    logits = broken.logits
    broken.logits = lambda ids, mask=None, embeds=None: logits(ids) + (embeds is not None)  # type: ignore[method-assign]
    with pytest.raises(WhetError, match="input embeddings"):
        Propagated(view=Ahead(Ramp(0.2))).check(broken)


# -- propagation -------------------------------------------------------------------------------------------------------
def test_numbers():
    losses = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64, requires_grad=True)
    assert propagate(losses[None], 0.5)[0].tolist() == [2.75, 3.5, 3.0]
    weights = relation_weights(losses, one_of(3), 0.5)
    assert weights.tolist() == pytest.approx([0.8919, 1.1351, 0.9730], abs=5e-5)
    loss = (weights * losses).mean()
    assert float(loss) == pytest.approx(2.027027, abs=1e-6)
    (live,) = torch.autograd.grad(loss, losses, retain_graph=True)
    assert live.tolist() == pytest.approx([0.18627, 0.31994, 0.40029], abs=1e-5)
    (detached,) = torch.autograd.grad((weights.detach() * losses).mean(), losses)
    assert detached.tolist() == pytest.approx([0.29730, 0.37838, 0.32432], abs=1e-5)


@pytest.mark.parametrize(("gamma", "total", "each"), [(0.5, 9.25, [1, 1.5, 1.75]), (1.0, 14.0, [1, 2, 3])])
def test_the_sum_form(gamma, total, each):
    losses = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    assert float(propagate(losses[None], gamma).sum()) == total
    weights = relation_weights(losses, one_of(3), gamma, "sum")
    assert weights.tolist() == pytest.approx([3 * c / sum(each) for c in each])
    assert float((weights * losses).mean()) == pytest.approx(total / sum(each))


def test_sequences_do_not_see_each_other_and_scale_does_not_matter():
    samples = [Sample([Segment("question", [2]), Segment("answer", [3] * n, learn=True)]) for n in (2, 4)]
    losses = torch.tensor([1.0, 2.0, 4.0, 3.0, 2.0, 1.0], dtype=torch.float64)
    weights = relation_weights(losses, Batch.of(samples), 0.9)
    torch.testing.assert_close(weights[:2], relation_weights(losses[:2], one_of(2), 0.9))
    torch.testing.assert_close(weights[2:], relation_weights(losses[2:], one_of(4), 0.9))
    torch.testing.assert_close(relation_weights(7 * losses, Batch.of(samples), 0.9), weights)
    assert weights[:2].mean() == pytest.approx(1) and weights[2:].mean() == pytest.approx(1)
    assert relation_weights(0 * losses, Batch.of(samples), 0.9).tolist() == [0.0] * 6  # and no NaN


def test_without_both_it_is_likelihood_by_sequence(policy):
    ours, plain = Propagated(0.0, view=Ahead(Ramp(0.0), train_embeddings=True)), nll("sequence")
    assert torch.equal(loss_of(ours, rollouts(), policy), loss_of(plain, rollouts(), policy))
    assert torch.equal(gradient(ours, rollouts(), policy), gradient(plain, rollouts(), policy))
    assert isinstance(
        Ahead(Ramp(0.0), train_embeddings=True).at(Context(rollouts(), {"policy": policy}), "response"), Clean
    )


def test_input_embeddings_get_no_gradient_unless_asked():
    untied = tiny_policy("gpt2", dtype=torch.float64, tie_word_embeddings=False)
    table = untied.model.get_input_embeddings().weight
    rest = [p for p in untied.model.parameters() if p is not table]
    detached, plain = Propagated(0.0, view=Ahead(Ramp(0.0))), nll("sequence")
    ours = torch.autograd.grad(loss_of(detached, rollouts(), untied), rest)
    theirs = torch.autograd.grad(loss_of(plain, rollouts(), untied), rest)
    assert all(distance(a, b) < 1e-12 for a, b in zip(ours, theirs, strict=True))
    for trained in (False, True):
        loss = loss_of(Propagated(0.9, view=Ahead(Ramp(0.5), train_embeddings=trained)), rollouts(), untied)
        (found,) = torch.autograd.grad(loss, [table], allow_unused=True)
        assert (found is not None) == trained


def test_a_first_forward_without_a_graph_and_a_second_with_one(policy, monkeypatch):
    grads = []
    hidden = policy.hidden
    monkeypatch.setattr(policy, "hidden", lambda *a: grads.append(torch.is_grad_enabled()) or hidden(*a))
    loss_of(Propagated(0.9, view=Ahead(Ramp(0.2))), rollouts(), policy)
    assert grads == [False, True]


def test_arguments():
    with pytest.raises(WhetError, match="between 0 and 1"):
        Propagated(1.5)
    with pytest.raises(WhetError, match="did you mean 'product'"):
        Propagated(0.5, "produkt")
    assert [Row({"response": s}) for s in one_of(1).samples]  # a target of one token has weight 1
    assert relation_weights(torch.tensor([2.0]), one_of(1), 0.9).tolist() == [1.0]
