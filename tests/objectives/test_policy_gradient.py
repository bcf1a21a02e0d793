"""The numbers of the PPO and GRPO cards, and the identities between the variants."""

from __future__ import annotations

import math

import pytest
import torch
from objective_tools import distance, exact, gradient, loss_of, rollouts, sample, with_old

from whet.errors import WhetError
from whet.objectives import Context, kl_to_reference, policy_gradient
from whet.objectives.divergence import k1, k2, k3
from whet.objectives.policy_gradient import clipped, sequence_log_ratio
from whet.records import Row


@pytest.fixture(scope="module")
def policy():
    return exact()


@pytest.mark.parametrize(
    ("advantage", "ratio", "dual", "loss", "slope"),
    [
        (1.0, 1.5, None, -1.2, 0.0),
        (-1.0, 1.5, None, 1.5, 1.0),
        (-1.0, 0.5, None, 0.8, 0.0),
        (1.0, 0.5, None, -0.5, -1.0),
        (-1.0, 5.0, None, 5.0, 1.0),
        (-1.0, 5.0, 3.0, 3.0, 0.0),
        (1.0, 5.0, 3.0, -1.2, 0.0),
        (-1.0, 1.0, 3.0, 1.0, 1.0),
    ],
)
def test_clip_signs(advantage, ratio, dual, loss, slope):
    rho = torch.tensor([ratio], dtype=torch.float64, requires_grad=True)
    value = clipped(rho, torch.tensor([advantage], dtype=torch.float64), (0.2, 0.2), dual)
    (grad,) = torch.autograd.grad(value.sum(), rho)
    assert value.item() == pytest.approx(loss)
    assert grad.item() == pytest.approx(slope)


def test_clip_higher_is_one_sided():
    rho = torch.tensor([1.25, 0.75])
    assert clipped(rho, torch.ones(2), (0.2, 0.28)).tolist() == pytest.approx([-1.25, -0.75])
    assert clipped(rho, -torch.ones(2), (0.2, 0.28)).tolist() == pytest.approx([1.25, 0.8])


def test_kl_estimators():
    policy, reference = torch.zeros(()), torch.tensor(math.log(2))  # ref / pi = 2
    assert float(k1(policy, reference)) == pytest.approx(-0.6931, abs=5e-5)
    assert float(k2(policy, reference)) == pytest.approx(0.2402, abs=5e-5)
    assert float(k3(policy, reference)) == pytest.approx(0.3069, abs=5e-5)


def one_answer(policy, deltas, advantage=1.0):
    """A row whose log-ratios to the old policy are `deltas`."""
    row = Row({"response": sample(3, len(deltas))})
    one = row["response"]
    one.per_token["advantage"] = advantage * one.learn_mask
    with torch.no_grad():
        ctx = Context([row], {"policy": policy})
        old = ctx.forward("response").logprobs - torch.tensor(deltas, dtype=torch.float64)
        ctx.batch("response").scatter("old_logprob", old)
    return [row]


def test_gspo_ratio_and_its_gradient(policy):
    rows = one_answer(policy, [0.1, -0.1, 0.3])
    forward = Context(rows, {"policy": policy}).forward("response")
    delta = torch.tensor([0.1, -0.1, 0.3], dtype=torch.float64, requires_grad=True)
    logs = sequence_log_ratio(forward, delta)
    assert logs.exp().tolist() == pytest.approx([1.10517] * 3, abs=5e-6)
    assert torch.autograd.grad(logs.sum(), delta)[0].tolist() == [1.0, 1.0, 1.0]
    # through the term: -s A for each token, clipped from 1 + 4e-4 on where A > 0
    assert loss_of(policy_gradient("sequence"), rows, policy).item() == pytest.approx(-1.0004)
    rows = one_answer(policy, [0.1, -0.1, 0.3], advantage=-1.0)
    assert loss_of(policy_gradient("sequence"), rows, policy).item() == pytest.approx(math.exp(0.1))


def test_on_policy_gspo_equals_token_grpo(policy):
    for normalise in ("sequence", "token", "constant"):
        token = gradient(policy_gradient(normalise=normalise), rollouts(), policy)
        assert token.norm() > 0
        for same in (policy_gradient("sequence", normalise=normalise), policy_gradient("none", normalise=normalise)):
            assert distance(token, gradient(same, rollouts(), policy)) < 1e-12


def test_on_policy_gradient_is_reinforce(policy):
    """Mean over sequences of the mean over tokens of -A grad log pi."""
    rows = rollouts()
    parameters = list(policy.trainable_parameters().values())
    forward = Context(rows, {"policy": policy}).forward("response")
    loss = forward.by_sequence(-forward.values("advantage") * forward.logprobs, mean=True).mean()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
    assert distance(gradient(policy_gradient(), rows, policy), expected) < 1e-12


def test_off_policy_sequence_and_token_ratios_differ(policy):
    rows = rollouts()
    with_old(rows, policy)
    token = gradient(policy_gradient("none"), rows, policy)
    assert distance(token, gradient(policy_gradient("sequence", clip=(0.9, 9.0)), rows, policy)) > 1e-2


def test_cispo_on_policy_equals_unclipped(policy):
    plain = gradient(policy_gradient("none"), rollouts(), policy)
    assert distance(plain, gradient(policy_gradient("cispo"), rollouts(), policy)) < 1e-12


def test_cispo_keeps_the_gradient_of_every_token(policy):
    """With rho = e^3 > 5 and A > 0, clipping kills the gradient; CISPO weighs it by 5, or by the verl bounds."""
    rows = one_answer(policy, [3.0, 3.0])
    plain = gradient(policy_gradient("none"), one_answer(policy, [0.0, 0.0]), policy)
    assert gradient(policy_gradient(), rows, policy).norm() == 0
    assert distance(gradient(policy_gradient("cispo"), rows, policy), 5 * plain) < 1e-10
    assert distance(gradient(policy_gradient("cispo", cap=1.2, floor=0.8), rows, policy), 1.2 * plain) < 1e-10
    low = one_answer(policy, [-3.0, -3.0])
    assert distance(gradient(policy_gradient("cispo", cap=1.2, floor=0.8), low, policy), 0.8 * plain) < 1e-10
    assert distance(gradient(policy_gradient("cispo"), low, policy), math.exp(-3) * plain) < 1e-10


def logs_of(term, rows, policy):
    ctx = Context(rows, {"policy": policy}, {term.name: 1.0})
    term.total(ctx)
    return {k: torch.cat(v) for k, v in ctx.logs.items()}


def test_first_minibatch_logs(policy):
    """Recomputed old log-probs: every ratio is 1, nothing is clipped, KL 0."""
    rows = rollouts()
    with_old(rows, policy, scale=0.0)
    logs = logs_of(policy_gradient(), rows, policy)
    assert logs["ratio_max"].tolist() == [1.0]
    assert logs["clip_fraction"].sum() == 0
    assert logs["approx_kl"].abs().max() == 0
    assert "mismatch" not in logs


def test_clip_fraction_counts_tokens_whose_loss_was_changed(policy):
    rows = one_answer(policy, [math.log(1.5), 0.0, math.log(0.5), math.log(1.1)])
    logs = logs_of(policy_gradient(), rows, policy)
    assert logs["clip_fraction"].tolist() == [1.0, 0.0, 0.0, 0.0]  # 0.5 is outside, but the pessimistic side is kept
    assert logs["ratio_max"].tolist() == pytest.approx([1.5])
    assert logs["approx_kl"].tolist() == pytest.approx([r - 1 - math.log(r) for r in (1.5, 1.0, 0.5, 1.1)], abs=1e-6)


def test_huge_log_ratios_stay_finite(policy):
    rows = one_answer(policy, [500.0, -500.0], advantage=-1.0)
    assert loss_of(policy_gradient(), rows, policy).isfinite()
    assert loss_of(policy_gradient("sequence"), rows, policy).isfinite()


def mismatched(policy, weights):
    """A row whose pi_old / mu are `weights`."""
    rows = one_answer(policy, [0.0] * len(weights))
    ctx = Context(rows, {"policy": policy})
    old = ctx.batch("response").values("old_logprob", torch.float64)
    ctx.batch("response").scatter("sampler_logprob", old - torch.tensor(weights, dtype=torch.float64).log())
    return rows


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({"correction": "none"}, (1, 1, 1)),
        ({"correction": "tis"}, (2, 0.6, 1)),
        ({"correction": "tis", "correction_cap": 3.0}, (3, 0.6, 1)),
        ({"correction": "tis", "level": "sequence", "correction_cap": 9.0}, (2.4, 2.4, 2.4)),
        ({"correction": "tis", "level": "geometric"}, (2.4 ** (1 / 3),) * 3),
        ({"correction": "mask"}, (0, 1, 1)),
        ({"correction": "mask", "bounds": (0.7, 5.0)}, (1, 0, 1)),
        ({"correction": "mask", "level": "sequence"}, (0, 0, 0)),
        ({"correction": "mask", "level": "sequence", "bounds": (0.5, 3.0)}, (1, 1, 1)),
        ({"correction": "mask", "level": "geometric"}, (0, 0, 0)),
    ],
)
def test_sampler_mismatch(policy, how, expected):
    """w = (4, .6, 1): their product is 2.4. The corrected loss of a token is -w_used A, with A = 1."""
    rows = mismatched(policy, (4.0, 0.6, 1.0))
    loss = loss_of(policy_gradient(normalise="none", **how), rows, policy)
    assert loss.item() == pytest.approx(-sum(expected), rel=1e-6)
    logs = logs_of(policy_gradient(**how), rows, policy)
    assert logs["mismatch"].tolist() == pytest.approx([math.log(4), -math.log(0.6), 0.0], abs=1e-6)
    assert float(logs["mismatch_max"].max()) == pytest.approx(math.log(4), abs=1e-6)
    # detached: the gradient is that of the uncorrected loss, token by token
    one = gradient(policy_gradient(normalise="none", **how), rows, policy)
    rows[0]["response"].per_token["advantage"][rows[0]["response"].learn_mask] = torch.tensor(expected).float()
    assert distance(one, gradient(policy_gradient(normalise="none"), rows, policy)) < 1e-6 or one.norm() == 0


def test_mismatch_without_old_logprobs_is_against_the_policy(policy):
    rows = mismatched(policy, (4.0, 0.5, 1.0))
    with_old_logs = logs_of(policy_gradient(), rows, policy)["mismatch"]
    del rows[0]["response"].per_token["old_logprob"]
    torch.testing.assert_close(logs_of(policy_gradient(), rows, policy)["mismatch"], with_old_logs)


def test_bias_correction_gives_the_gradient_of_the_divergence(policy):
    """In expectation over the policy's own token, corrected k3 has the gradient of the exact KL; plain k3 has not.

    One action, all of whose V outcomes are weighed by their probability.
    """
    logits = torch.randn(7, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    reference = torch.randn(7, generator=torch.Generator().manual_seed(1), dtype=torch.float64).log_softmax(0)
    lp = logits.log_softmax(0)
    p = lp.exp().detach()

    def grad(loss):
        return torch.autograd.grad(loss, logits, retain_graph=True)[0]

    exact = grad((lp.exp() * (lp - reference)).sum())
    corrected = grad((p * k3(lp, reference) * (lp - lp.detach()).exp()).sum())
    assert distance(exact, corrected) < 1e-12
    assert distance(exact, grad((p * k3(lp, reference)).sum())) > 1e-2
    assert grad((p * k1(lp, reference)).sum()).abs().max() < 1e-12  # k1 as a loss does not regularise
    assert distance(exact, grad((p * k2(lp, reference)).sum())) < 1e-12


def test_bias_corrected_term_differs_only_in_gradient_on_policy(policy):
    policies = {"policy": policy, "reference": exact(9)}
    plain, corrected = kl_to_reference(), kl_to_reference(bias_correction=True)
    torch.testing.assert_close(loss_of(plain, rollouts(), policies), loss_of(corrected, rollouts(), policies))
    assert distance(*(gradient(t, rollouts(), policies) for t in (plain, corrected))) > 1e-2


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"ratio": "tokens"}, "did you mean 'token'"),
        ({"ratio": "cispo", "clip": (0.2, 0.2)}, "do nothing"),
        ({"cap": 5.0}, "do nothing"),
        ({"dual_clip": 1.1}, "dual_clip"),
        ({"bounds": (0.5, 2.0)}, "correction=mask"),
        ({"correction": "tsi"}, "unknown correction"),
    ],
)
def test_dead_or_unknown_settings_are_refused(settings, match):
    with pytest.raises(WhetError, match=match):
        policy_gradient(**settings)


def test_a_batch_whose_tokens_are_all_masked_gives_zero(policy):
    rows = rollouts()[:2]
    for row in rows:
        row["response"].per_token["mask"] = torch.zeros(len(row["response"]), dtype=torch.bool)
    assert gradient(policy_gradient(), rows, policy).abs().max() == 0
