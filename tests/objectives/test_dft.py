"""Probability-weighted likelihood and its anchor, on one token of a vocabulary of three."""

from __future__ import annotations

import pytest
import torch
from objective_tools import distance, exact, gradient, loss_of, rollouts, sample

from tiny import tiny_policy
from whet.errors import WhetError
from whet.models.packing import Batch
from whet.objectives import Context, Objective, Term, as_objective, dft, forward_kl, nll, reverse_kl
from whet.objectives.forward import Forward
from whet.records import Row, Sample, Segment

BASE = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64).log()


class Given(Context):
    """A context whose forwards have given logits (N, 3), for learnt tokens that are all 0."""

    def __init__(self, policy: torch.Tensor, reference: torch.Tensor) -> None:
        rows = [Row({"response": Sample([Segment("question", [1]), Segment("answer", [0] * len(policy), learn=True)])})]
        super().__init__(rows, {"policy": exact()})
        self.given = {"policy": policy, "reference": reference}

    def forward(self, name, view=None, who="policy", grad=True) -> Forward:
        return Forward(self.policies["policy"], self.batch(name), None, self.given[who])


def worked(objective: Objective | Term, policy: list[float] | None = None) -> tuple[float, list[float]]:
    """The loss and its gradient at the logits, by default 0, 0, 0."""
    logits = torch.tensor([policy or [0.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    (loss,) = [sum(total for total, _ in _totals(as_objective(objective), logits))]
    (found,) = torch.autograd.grad(loss, logits)
    return float(loss.detach()), found[0].tolist()


def _totals(objective: Objective, logits: torch.Tensor) -> list:
    ctx = Given(logits, BASE)
    ctx.counts = objective.counts(ctx.rows)
    return list(objective.total(ctx).values())


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (nll(), 1.098612),
        (dft(), 0.366204),
        (forward_kl(), 0.058892),
        (reverse_kl(), 0.056633),
        (dft() + 0.05 * forward_kl(), 0.369149),
        (nll() + 0.05 * forward_kl(), 1.101557),
    ],
    ids=["sft", "dft", "forward", "reverse", "asft", "sft+kl"],
)
def test_numbers(objective, expected):
    assert worked(objective)[0] == pytest.approx(expected, abs=1e-6)


def test_the_weight_has_no_gradient_and_the_anchor_pulls_towards_the_base():
    assert worked(dft())[1] == pytest.approx([-2 / 9, 1 / 9, 1 / 9])
    assert worked(forward_kl())[1] == pytest.approx([1 / 3 - 0.5, 1 / 12, 1 / 12])
    assert worked(nll())[1] == pytest.approx([-2 / 3, 1 / 3, 1 / 3])


def test_a_certain_token_weighs_nothing():
    loss, gradient_ = worked(dft(), [60.0, 0.0, 0.0])
    assert loss == pytest.approx(0, abs=1e-20) and gradient_ == pytest.approx([0, 0, 0], abs=1e-20)


def test_power_zero_is_likelihood_bit_for_bit():
    policy = exact()
    ours, plain = dft(power=0.0), nll()
    assert torch.equal(loss_of(ours, rollouts(), policy), loss_of(plain, rollouts(), policy))
    assert torch.equal(gradient(ours, rollouts(), policy), gradient(plain, rollouts(), policy))
    assert distance(gradient(dft(), rollouts(), policy), gradient(plain, rollouts(), policy)) > 1e-2
    with pytest.raises(WhetError, match="improbable"):
        dft(power=-1.0)


def test_without_weight_the_anchor_is_gone_and_at_its_base_it_is_nothing():
    policy, other = exact(), exact(9)
    anchored = {"policy": policy, "reference": other}
    assert torch.equal(gradient(dft() + 0.0 * forward_kl(), rollouts(), policy), gradient(dft(), rollouts(), policy))
    same = {"policy": policy, "reference": exact()}
    assert float(loss_of(forward_kl(), rollouts(), same).detach()) == pytest.approx(0, abs=1e-12)
    at_base, alone = gradient(dft() + 5.0 * forward_kl(), rollouts(), same), gradient(dft(), rollouts(), policy)
    assert distance(at_base, alone) < 1e-10
    assert distance(gradient(dft() + 5.0 * forward_kl(), rollouts(), anchored), alone) > 1e-2


def test_the_reference_gets_no_gradient():
    policies = {"policy": exact(), "reference": exact(9)}
    loss_of(dft() + forward_kl(), rollouts(), policies).backward()
    assert all(p.grad is None for p in policies["reference"].model.parameters())
    assert all(p.grad is not None for p in policies["policy"].model.parameters())


def test_only_learnt_places_count():
    """What the model predicts inside the prompt and behind the end changes nothing."""
    rows = [Row({"response": sample(4, 3)}), Row({"response": sample(2, 6, 1)})]
    batch = Batch.of([row["response"] for row in rows])
    logits = torch.randn(*batch.ids.shape, 320, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    changed = logits + 5
    changed[batch.sequence, batch.position - 1] = logits[batch.sequence, batch.position - 1]
    values = []
    for given in (logits, changed):
        policy = tiny_policy("gpt2", dtype=torch.float64)
        policy.chunked = False
        policy.logits = lambda *_, given=given: given  # type: ignore[method-assign]
        values.append(loss_of(dft(), rows, policy))
    assert torch.equal(*values)


def test_the_plain_likelihood_is_logged_beside_it():
    ctx = Context(rollouts(), {"policy": exact()})
    ctx.counts = dft().count(ctx.rows) and {"dft": dft().count(ctx.rows)}
    dft().total(ctx)
    logged = torch.cat(ctx.logs["nll"])
    torch.testing.assert_close(logged, -ctx.forward("response").logprobs.detach().float())
