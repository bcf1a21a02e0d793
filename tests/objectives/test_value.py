"""The value head and its loss."""

from __future__ import annotations

import pytest
import torch
from objective_tools import distance, exact, gradient, loss_of, rollouts

from tiny import tiny_policy
from whet.errors import WhetError
from whet.models.packing import Batch
from whet.objectives import Context, policy_gradient, value_head, value_loss, values
from whet.objectives.value import squared_error


@pytest.fixture
def policy():
    policy = exact()
    policy.modules["value"] = value_head(policy)
    return policy


def prepared(policy):
    rows = rollouts()
    batch = Batch.of([r["response"] for r in rows])
    n = len(batch.targets)
    batch.scatter("return", torch.linspace(-1, 1, n, dtype=torch.float64))
    with torch.no_grad():
        batch.scatter("old_value", values(Context(rows, {"policy": policy}).forward("response")))
    return rows


@pytest.mark.parametrize(
    ("value", "old", "returns", "loss", "slope"),
    [
        (0.5, 0.0, 1.0, 0.32, 0.0),  # clipped at 0.2, whose error 0.8 is larger
        (0.5, 0.0, 0.0, 0.125, 0.5),  # clipped error is 0.2, the plain one larger
        (0.1, 0.0, 1.0, 0.405, -0.9),  # inside
    ],
)
def test_clipped_error(value, old, returns, loss, slope):
    v = torch.tensor([value], dtype=torch.float64, requires_grad=True)
    out = squared_error(v, torch.tensor([returns]).double(), torch.tensor([old]).double(), 0.2)
    assert out.item() == pytest.approx(loss)
    assert torch.autograd.grad(out.sum(), v)[0].item() == pytest.approx(slope)


def test_value_is_of_the_state_before_the_action(policy):
    """V of the first learnt token is read at the last prompt token."""
    row = rollouts()[0]
    one = row["response"]
    with torch.no_grad():
        hidden = policy.decoder(torch.tensor([one.ids])).last_hidden_state[0]
        expected = policy.modules["value"](hidden[2:-1])[:, 0]
        torch.testing.assert_close(values(Context([row], {"policy": policy}).forward("response")), expected)


def test_a_hidden_layer_is_a_choice(policy):
    """The same at each start, and near 0; 0 is the linear head."""
    head, again = value_head(policy, 5), value_head(policy, 5)
    assert [tuple(p.shape) for p in head.parameters()] == [(5, 32), (5,), (1, 5), (1,)]
    assert all(torch.equal(a, b) for a, b in zip(head.parameters(), again.parameters(), strict=True))
    assert isinstance(value_head(policy), torch.nn.Linear)
    policy.modules["value"] = head
    found = values(Context(rollouts(), {"policy": policy}).forward("response"))
    assert 0 < float(found.detach().abs().max()) < 0.5


def test_value_gradient_reaches_head_and_backbone(policy):
    rows = prepared(policy)
    loss_of(5.0 * value_loss(), rows, policy).backward()
    assert policy.modules["value"].weight.grad.norm() > 0
    assert policy.decoder.wte.weight.grad.norm() > 0
    assert any(n == "modules.value.weight" for n, _ in policy.named_parameters())


def test_first_update_is_policy_gradient_plus_half_squared_error(policy):
    """ReFT's sum: at V = V_old the clip does nothing."""
    rows = prepared(policy)
    together = gradient(policy_gradient() + 5.0 * value_loss(normalise="sequence"), rows, policy)
    apart = gradient(policy_gradient(), rows, policy) + 5.0 * gradient(
        value_loss(clip=None, normalise="sequence"), rows, policy
    )
    assert distance(together, apart) < 1e-10
    forward = Context(rows, {"policy": policy}).forward("response")
    error = (values(forward) - forward.values("return")).square()
    expected = 0.5 * forward.by_sequence(error, mean=True).mean()
    torch.testing.assert_close(loss_of(value_loss(normalise="sequence"), rows, policy), expected)


def test_micro_batches(policy):
    rows = prepared(policy)
    whole = gradient(value_loss(), rows, policy)
    assert distance(whole, gradient(value_loss(), rows, policy, tokens=1)) < 1e-10


def test_needs_and_missing_head():
    assert value_loss().needs == {"old_value"}
    assert value_loss(clip=None).needs == frozenset()
    with pytest.raises(WhetError, match="value head"):
        loss_of(value_loss(clip=None), rollouts(), tiny_policy())
