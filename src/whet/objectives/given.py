"""Given tokens: how a policy gradient learns the tokens of a response that no policy drew.

A response may begin with a piece of a demonstration, or be one (`sources.plans`). It has one advantage. Of its given tokens

    top      only the share with the highest entropy H_t of the policy, as it is in this forward, keeps it: the forks, where
             the policy would not have known how to go on                                        Prefix-RFT 2507.01679
    shape    -A p / (p + shape) takes the place of the ratio and its clip: there is no behaviour policy whose ratio could be
             taken, and improbable tokens weigh more                                             LUFFY 2504.14945

Drawn tokens are learnt as everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from whet.errors import WhetError
from whet.objectives.forward import Context, Forward


@dataclass(frozen=True)
class Given:
    """See above.

    Attributes:
        top: share of each sequence's given tokens; of n, floor((1 - top) n) lose the advantage. 1 keeps all.
        shape: 0 keeps the ratio.
    """

    top: float = 1.0
    shape: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.top <= 1:
            raise WhetError(f"the share of given tokens that is learnt must be in (0, 1], not {self.top:g}")
        if self.shape < 0:
            raise WhetError(f"shape is 0 or more, not {self.shape:g}")

    def keep(self, ctx: Context, forward: Forward, advantage: Tensor, given: Tensor) -> Tensor:
        """(N,) advantages, 0 at the given tokens that are left out. The ranking has no gradient."""
        if self.top == 1:
            return advantage
        entropy = forward.entropy.detach()
        kept = ~given
        for sequence in forward.batch.sequence[given].unique():
            places = (given & (forward.batch.sequence == sequence)).nonzero()[:, 0]
            dropped = math.floor(round((1 - self.top) * len(places), 6))  # 0.8 of 5 is 4, whatever the floats say
            order = entropy[places].argsort(descending=True, stable=True)  # of equal ones the earlier is kept
            kept[places[order[: len(places) - dropped]]] = True
        ctx.log("given_entropy", entropy[given])
        ctx.log("given_entropy_kept", entropy[given & kept])
        return torch.where(kept, advantage, 0.0)

    def shaped(self, logprobs: Tensor, advantage: Tensor) -> Tensor:
        """(N,) losses -A p / (p + shape)."""
        return -advantage * torch.sigmoid(logprobs - math.log(self.shape))
