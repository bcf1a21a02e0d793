"""Linear mode connectivity: the loss on the straight line between two models (1912.05671; 2509.01363 for the vectors between them).

barrier = max over l in [0, 1] of L((1 - l) A + l B) - max(L(A), L(B))        0 where no point between is worse than both ends
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from whet.errors import WhetError
from whet.models.meter import Meter
from whet.models.packing import token_budget
from whet.models.policy import Policy
from whet.objectives.forward import Context
from whet.records import Row
from whet.training.snapshots import copy_weights, write_weights


def along(
    policy: Policy, start: Mapping[str, Tensor], end: Mapping[str, Tensor], loss: Callable[[Policy], float], points: int = 11
) -> list[float]:  # fmt: skip
    """Losses at evenly spaced points from `start` to `end`, both included; the policy is then as it was.

    Raises:
        WhetError: fewer than three points, of which none is between.
    """
    if points < 3:
        raise WhetError(f"a line between two models is looked at in 3 points or more, not {points}")
    kept, found = copy_weights(policy, moving=False), []
    try:
        for i in range(points):
            part = i / (points - 1)
            write_weights(policy, {n: torch.lerp(a.float(), end[n].float(), part) for n, a in start.items()})
            found.append(loss(policy))
    finally:
        write_weights(policy, kept)
    return found


def barrier(losses: Sequence[float]) -> float:
    """The largest of the losses on a line less the larger one of its ends."""
    return max(losses) - max(losses[0], losses[-1])


@torch.no_grad()
def mean_nll(policy: Policy, rows: Sequence[Row]) -> float:
    """Mean over the learnt tokens of -log p, in nats. It spends no budget."""
    training = policy.model.training
    policy.model.eval()
    with policy.metered(Meter()):
        found = [
            Context(micro, {"policy": policy}).forward("response", grad=False).logprobs
            for micro in policy.micro_batches(rows, token_budget(0, policy.device.type))
        ]
    policy.model.train(training)
    return -float(torch.cat(found).double().mean())
