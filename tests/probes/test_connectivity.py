"""The line between two models: losses by hand, and a policy that is left as it was."""

from __future__ import annotations

import pytest
import torch

from tiny import tiny_policy
from whet.errors import WhetError
from whet.models.policy import Policy
from whet.objectives import Context
from whet.probes.connectivity import along, barrier, mean_nll
from whet.records import Row, Sample, Segment
from whet.weights.snapshot import copy_weights

NAME = "model.norm.weight"


def test_a_line_of_eleven_points() -> None:
    """One entry goes from 0 to 1 and the loss is x (1 - x) + x: at most 1 of both ends, and no more between."""
    policy = tiny_policy()
    before = copy_weights(policy, moving=False)
    start, end = (before | {NAME: torch.full_like(before[NAME], x)} for x in (0.0, 1.0))
    entry = dict(policy.model.named_parameters())[NAME].detach()  # its storage

    def bump(at: Policy) -> float:
        return float(entry[0] * (1 - entry[0]))

    found = along(policy, start, end, bump)
    assert found == pytest.approx([i / 10 * (1 - i / 10) for i in range(11)], abs=1e-6)
    assert barrier(found) == pytest.approx(0.25)
    assert barrier([1.0, 0.5, 2.0]) == 0.0 and barrier([1.0, 2.5, 2.0]) == 0.5
    assert all(torch.equal(p, before[n]) for n, p in policy.model.named_parameters())
    with pytest.raises(WhetError, match="3 points or more"):
        along(policy, start, end, bump, points=2)


def test_the_policy_is_put_back_where_a_loss_fails() -> None:
    policy = tiny_policy()
    before = copy_weights(policy, moving=False)
    with pytest.raises(ZeroDivisionError):
        along(policy, {n: t + 1 for n, t in before.items()}, before, lambda _: 1 / 0)
    assert all(torch.equal(p, before[n]) for n, p in policy.model.named_parameters())


def test_the_loss_is_of_the_learnt_tokens() -> None:
    policy = tiny_policy()
    rows = [Row({"response": Sample([Segment("question", [5, 6, 7]), Segment("answer", a, learn=True)])})
            for a in ([8, 9], [10, 11, 12])]  # fmt: skip
    logprobs = Context(rows, {"policy": policy}).forward("response").logprobs
    assert len(logprobs) == 5
    flops = policy.meter.flops
    assert mean_nll(policy, rows) == pytest.approx(-logprobs.mean().item(), rel=1e-5)
    assert policy.meter.flops == flops, "a probe spends nothing"
