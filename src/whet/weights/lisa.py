"""LISA (2403.17919): of the decoder's blocks a few move at a time, drawn anew every so many optimizer steps.

    window w = floor(optimizer steps so far / period)          blocks moving in w ~ `blocks` of all, uniformly

What stands outside the blocks (embeddings, last norm, head, added modules) always moves. A block that rests has no gradient
and no moments: its parameters stay as they are to the bit, and its moments begin at zero when it is drawn again. That is
where the method saves: gradients, moments and the weights' half of the backward, of all blocks but a few.

    whet run sgft --weights lisa
    whet run sft --weights lisa:blocks=4,period=50
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from whet.errors import WhetError
from whet.models.hooks import blocks_of
from whet.models.policy import Policy
from whet.seeds import rng_for
from whet.weights.menu import choice
from whet.weights.weights import Cost, Weights


class Lisa(Weights):
    """Layer-wise importance sampled training.

    Args:
        blocks: how many blocks move at a time; all of them is full fine-tuning.
        period: optimizer steps until others are drawn, those of all of a stage's updates counted together.

    Raises:
        WhetError: fewer than one; in `attach`, where the model has fewer blocks.
    """

    name = "lisa"
    every = 1
    shards = True

    def __init__(self, blocks: int = 2, period: int = 20) -> None:
        if min(blocks, period) < 1:
            raise WhetError(f"lisa: blocks and period are at least 1, not {blocks} and {period}")
        self.blocks, self.period = blocks, period
        self.taken = 0  # optimizer steps

    def attach(self, policy: Policy, seed: int) -> None:
        super().attach(policy, seed)
        found = blocks_of(policy.model, policy.decoder)
        if self.blocks > len(found):
            raise WhetError(f"lisa: the model has {len(found)} blocks, and blocks={self.blocks} are to move at a time")
        names = {id(p): name for name, p in policy.named_parameters()}
        self._names = [[names[id(p)] for p in block.parameters()] for block in found]
        self._seed, self._policy = seed, policy

    def moving(self) -> list[int]:
        """The blocks that move in the window that the next optimizer step is in, in order."""
        draw = rng_for(self._seed, "lisa", self.taken // self.period)
        return sorted(draw.sample(range(len(self._names)), self.blocks))

    def at_stage_start(self, policy: Policy) -> None:
        self._choose()

    def every_n_steps(self, policy: Policy, step: int) -> None:
        self.taken += 1
        if self.taken % self.period == 0:
            self._choose()

    def at_stage_end(self, policy: Policy) -> None:
        policy.rest(())

    def _choose(self) -> None:
        moving = self.moving()
        self._policy.rest([name for b, names in enumerate(self._names) if b not in moving for name in names])

    def cost(self, model: nn.Module) -> Cost:
        sizes = sorted(sum(p.numel() for p in block.parameters()) for block in blocks_of(model))
        size = sum(p.numel() for p in model.parameters()) - sum(sizes[: -self.blocks])
        return Cost(size, size)

    def state_dict(self) -> dict[str, Any]:
        return {"taken": self.taken}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.taken = int(state["taken"])
        self._choose()


@choice("lisa", family="selective, by rule")
def lisa(blocks: int = 2, period: int = 20) -> Weights:
    """Embeddings, head and a few blocks, others every so often (2403.17919)."""
    return Lisa(blocks, period)
