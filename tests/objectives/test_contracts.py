"""The normaliser table, and what a gradient must not depend on: micro-batches, padding, order, chunks."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from objective_tools import distance, exact, gradient, loss_of, pairs, rollouts, sample, with_old

import whet.objectives.forward as forward_module
from tiny import tiny_policy
from whet.errors import WhetError
from whet.models.packing import Batch
from whet.objectives import (
    Context,
    Ramp,
    as_objective,
    count,
    dft,
    dpo,
    entropy_bonus,
    forward_kl,
    kl_to_reference,
    nll,
    policy_gradient,
    reverse_kl,
)
from whet.objectives.ahead import Ahead
from whet.objectives.intuitive import Propagated
from whet.objectives.masking import NOISES, Masking
from whet.objectives.noise import Agreement, BlockNoise
from whet.objectives.views import Dropout, Neftune
from whet.records import Row


@pytest.fixture(scope="module")
def policy():
    return exact()


@pytest.fixture(scope="module")
def policies(policy):
    return {"policy": policy, "reference": exact(9)}


@pytest.mark.parametrize(
    ("normalise", "expected"),
    [("token", 0.25), ("sequence", 0.5), ("sequence-sum", 0.5), ("constant", 1 / 8), ("row", 0.5), ("none", 1.0)],
)
def test_normalisers_worked_example(policy, normalise, expected):
    rows = [Row({"response": sample(2, 1)}), Row({"response": sample(2, 3, 1)})]
    forward = Context(rows, {"policy": policy}).forward("response")
    losses = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)
    assert float(forward.reduce(losses, normalise)) / count(normalise, rows, ["response"], 4) == expected


def test_constant_needs_a_budget_and_unknown_names_are_refused():
    rows = rollouts()
    with pytest.raises(WhetError, match="budget"):
        count("constant", rows, ["response"])
    with pytest.raises(WhetError, match="tokens"):
        count("tokens", rows, ["response"])


NOISE = BlockNoise(((0, 0.3), (1, 0.1)), draw=1)
TERMS = {
    "nll": lambda: nll(),
    "weighted nll": lambda: nll("sequence", weight="weight"),
    "grpo": lambda: policy_gradient() + 0.04 * kl_to_reference(),
    "dapo": lambda: policy_gradient(clip=(0.2, 0.28), normalise="token"),
    "dr-grpo": lambda: policy_gradient(normalise="constant"),
    "gspo": lambda: policy_gradient("sequence"),
    "cispo": lambda: policy_gradient("cispo", cap=1.1, floor=0.9, normalise="token"),
    "kl": lambda: forward_kl() + reverse_kl("sequence") + 0.1 * entropy_bonus(),
    "dft": lambda: dft(),
    "ift": lambda: Propagated(0.9, view=Ahead(Ramp(0.3), noisy=True)),
    "ift sum": lambda: Propagated(0.9, "sum", Ahead(Ramp(1.0), train_embeddings=True)),
    **{f"masked by {noise}": lambda noise=noise: nll(view=Masking(Ramp(0.5), noise)) for noise in NOISES},
    "noise": lambda: nll() + Agreement(None, NOISE) + Agreement(NOISE, replace(NOISE, draw=2), name="consistency"),
    "noise, first version": lambda: Agreement(None, replace(NOISE, relative=True, through=True), 2.0, True),
    "dropout": lambda: nll(view=Dropout(0.2)) + Agreement(Dropout(0.2, 1), Dropout(0.2, 2), teacher_grad=True),
    "neftune": lambda: nll(view=Neftune(5.0)),
}


@pytest.mark.parametrize("name", TERMS)
def test_gradient_does_not_depend_on_micro_batches_or_order(policies, name):
    rows = rollouts()
    with_old(rows, policies["policy"])
    whole = gradient(TERMS[name](), rows, policies)
    assert whole.norm() > 0
    for tokens in (1, 16, 20):  # one row each; two uneven parts
        assert distance(whole, gradient(TERMS[name](), rows, policies, tokens=tokens)) < 1e-10
    assert distance(whole, gradient(TERMS[name](), rows[::-1], policies)) < 1e-10


def test_pairs_do_not_depend_on_micro_batches_or_order(policies):
    objective = dpo() + nll(role="chosen")
    whole = gradient(objective, pairs(), policies)
    for tokens in (1, 40):
        assert distance(whole, gradient(objective, pairs(), policies, tokens=tokens)) < 1e-10
    assert distance(whole, gradient(objective, pairs()[::-1], policies)) < 1e-10


@pytest.mark.parametrize("kind", ["qwen3", "gpt2"])
def test_fp32_gradient_does_not_depend_on_padding(kind):
    policy, rows = tiny_policy(kind), rollouts()
    objective = policy_gradient() + nll()
    assert distance(gradient(objective, rows, policy), gradient(objective, rows, policy, tokens=1)) < 1e-5


def test_padding_changes_no_logprob(policy):
    """A longer neighbour pads the first row."""
    alone = Context(rollouts()[1:2], {"policy": policy}).forward("response").logprobs
    padded = Context([rollouts()[1], Row({"response": sample(3, 30, 7)})], {"policy": policy}).forward("response")
    torch.testing.assert_close(padded.logprobs[:1], alone, rtol=1e-12, atol=1e-12)


def test_logprobs_are_those_of_the_next_token(policy):
    """Against the plain definition: log-softmax of the logits one place before, on one unpadded sequence."""
    one = rollouts()[2]["response"]
    with torch.no_grad():
        logits = policy.model(torch.tensor([one.ids])).logits[0]
        expected = logits.log_softmax(-1)[torch.arange(len(one) - 1), torch.tensor(one.ids[1:])]
        got = Context([Row({"response": one})], {"policy": policy}).forward("response").logprobs
        torch.testing.assert_close(got, expected[one.learn_mask[1:]])
        cold = Context([Row({"response": one})], {"policy": policy}, temperature=0.5).forward("response").logprobs
        expected = (logits / 0.5).log_softmax(-1)[torch.arange(len(one) - 1), torch.tensor(one.ids[1:])]
        torch.testing.assert_close(cold, expected[one.learn_mask[1:]])


@pytest.mark.parametrize("name", ["grpo", "kl"])
def test_chunks_change_nothing(policies, name, monkeypatch):
    rows = rollouts()
    with_old(rows, policies["policy"])
    objective = TERMS[name]()
    loss, whole = loss_of(objective, rows, policies), gradient(objective, rows, policies)
    for chunk in (1, 3):
        monkeypatch.setattr(forward_module, "chunk_tokens", lambda vocabulary, chunk=chunk: chunk)
        torch.testing.assert_close(loss_of(objective, rows, policies), loss, rtol=1e-12, atol=0)
        assert distance(whole, gradient(objective, rows, policies)) < 1e-12


def test_chunks_bound_the_logits_that_exist(policy, monkeypatch):
    seen = []
    monkeypatch.setattr(forward_module, "chunk_tokens", lambda vocabulary: 3)
    forward = Context(rollouts(), {"policy": policy}).forward("response")
    forward.per_token(lambda logits, targets: seen.append(len(logits)) or logits[:, 0])
    assert sum(seen) == len(forward.batch.targets)
    assert max(seen) == 3


def test_terms_share_a_forward(policy, monkeypatch):
    calls = []
    hidden = policy.hidden
    monkeypatch.setattr(policy, "hidden", lambda *a: calls.append(1) or hidden(*a))
    loss_of(policy_gradient() + nll() + 0.1 * entropy_bonus(), rollouts(), policy)
    assert len(calls) == 1


def test_a_reference_that_is_the_policy_leaves_the_head_alone(policy, monkeypatch):
    """The head of a forward without a gradient is applied late, and still without one; chunked too."""
    for chunk in (10**6, 2):
        monkeypatch.setattr(forward_module, "chunk_tokens", lambda vocabulary, chunk=chunk: chunk)
        ctx = Context(rollouts(), {"policy": policy})
        assert not ctx.forward("response", grad=False).logprobs.requires_grad
        assert ctx.forward("response").logprobs.requires_grad


@pytest.fixture
def adapted():
    """A policy with adapters that differ from zero (its head has one too), and a deep copy of its base."""
    from peft import LoraConfig, get_peft_model

    policy = tiny_policy(dtype=torch.float64)
    base = copy.deepcopy(policy)
    targets = ["q_proj", "down_proj", "lm_head"]
    policy.peft = get_peft_model(policy.model, LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    policy.model.double()
    return policy, base


@pytest.mark.parametrize("objective", [forward_kl(), kl_to_reference(), dpo()], ids=lambda o: o.name)
def test_adapter_off_reference_equals_a_copied_base(adapted, objective):
    policy, base = adapted
    rows = pairs() if objective.name == "dpo" else rollouts()
    off, copied = {"policy": policy, "reference": policy}, {"policy": policy, "reference": base}
    torch.testing.assert_close(loss_of(objective, rows, off), loss_of(objective, rows, copied), rtol=1e-12, atol=0)
    whole = gradient(objective, rows, copied)
    assert whole.norm() > 0
    assert distance(whole, gradient(objective, rows, off)) < 1e-10


@pytest.mark.parametrize("objective", [kl_to_reference(), dpo()], ids=lambda o: o.name)
def test_cached_reference_equals_live(policies, objective):
    rows = pairs() if objective.name == "dpo" else rollouts()
    live = loss_of(objective, rows, policies)
    with torch.no_grad():
        for role in objective.roles:
            scored = Context(rows, {"policy": policies["reference"]})
            scored.batch(role).scatter("reference_logprob", scored.forward(role).logprobs)
    torch.testing.assert_close(loss_of(objective, rows, policies["policy"]), live, rtol=1e-12, atol=0)


def test_what_is_missing_is_named(policy):
    rows = [Row({"response": sample(2, 3)})]
    with pytest.raises(WhetError, match="advantage"):
        loss_of(policy_gradient(), rows, policy)
    with pytest.raises(WhetError, match="'reference' model"):
        loss_of(kl_to_reference(), rows, policy)
    with pytest.raises(WhetError, match="number 'weight'"):
        loss_of(nll(weight="weight"), rows, policy)
    with pytest.raises(WhetError, match="named alike"):
        nll() + nll()


def test_objective_algebra():
    objective = 2 * (nll() + 0.5 * dpo()) + 0.0 * forward_kl()
    assert [(w, t.name) for w, t in objective.terms] == [(2.0, "nll"), (1.0, "dpo")]
    assert objective.needs == {"reference_logprob"}
    assert objective.couples == "row"
    assert objective.roles == {"response", "chosen", "rejected"}
    assert as_objective(nll()).needs == frozenset()


def test_scatter_and_values_are_inverse():
    rows = rollouts()
    batch = Batch.of([r["response"] for r in rows])
    flat = torch.arange(len(batch.targets), dtype=torch.float64) + 1
    batch.scatter("x", flat)
    assert torch.equal(batch.values("x", torch.float64), flat)
    assert rows[0]["response"].per_token["x"].tolist() == [0, 0, 0, 1, 2, 3, 4]
