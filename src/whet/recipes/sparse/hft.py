"""Half fine-tuning (HFT, 2404.18466): in each stage a random half of each block's matrices moves, the other half rests.

    theta_t = theta_{t-1} + M_t * delta        M_t whole matrices, drawn anew for each stage

In every block 2 of 4 attention matrices move, 1 of 2 norms, and 2 of 3 feed-forward matrices in half of the blocks and 1 of 3 in the
others. Embeddings and head move (`ends`). What rests is frozen at the value it has when the stage begins, costs no gradient and has
no moments. A fused projection counts as one matrix. The split of the odd three is the paper's of Half-Reset; that HFT
uses it too is inferred.

`tasks` trains on one task after another, a stage each. **Half-Reset** puts a random half of the matrices of a model that was
fine-tuned whole back to their first values, without training.

    whet run hft --task my.jsonl --verifier number
    whet run hft tasks="sort:level=2;lists:level=3"
    whet run half-reset
"""

from __future__ import annotations

from typing import Any

from whet.models.policy import Policy
from whet.recipes.recipe import Recipe, recipe
from whet.recipes.supervised.sft import sft
from whet.training.sequence import read_tasks, sequence
from whet.weights import Weights, choices
from whet.weights.halves import Half
from whet.weights.selectors import Facts
from whet.weights.snapshot import Snapshots, write_weights


@recipe(paper="hft", parent="sft")
def hft(
    share: float = 0.5, grain: str = "category", ends: bool = True, draw: int | None = None, once: bool = False,
    tasks: str = "", **training: Any,
) -> Recipe:  # fmt: skip
    """HFT (2404.18466): SFT of a random half of each block's matrices, drawn anew in each stage.

    Args:
        share: of the matrices that move; 1 is sft.
        grain: category (a share of each block's attention, feed-forward and norms), layer (whole blocks) or model (any).
        ends: whether embeddings, head and the last norm move too.
        draw: seed of the draws; by default the run's.
        once: one draw for all stages, as a control.
        tasks: train on these, separated by `;`, one after another instead of the run's own.
    """
    weights = choices.hft(share, grain, ends, draw, once)
    if not tasks:
        return sft(**training).moving(weights)
    stream = read_tasks(tasks)
    stages = sequence(stream, lambda: sft(**training).stages[0])
    return Recipe(stages, stream=tuple(task.spec() for task in stream)).moving(weights)


@recipe(paper="hft", parent="sft")
def half_reset(share: float = 0.5, grain: str = "category", **training: Any) -> Recipe:
    """Half-Reset (2404.18466): SFT, after which a random half of the matrices goes back to where it began.

    Args:
        share: of the matrices that goes back; 0 is sft.
        grain: category, layer or model.
    """
    return sft(**training).moving(HalfReset(Half(share, grain, ends=False)))


class HalfReset(Weights):
    """Full fine-tuning, of which a part goes back at the end to the run's first weights."""

    name = "half-reset"

    def __init__(self, back: Half) -> None:
        self.back = back

    def attach(self, policy: Policy, seed: int) -> None:
        super().attach(policy, seed)
        self.seed, self.start = seed, Snapshots()
        self.start.take("start", policy)

    def at_stage_end(self, policy: Policy) -> None:
        kept = self.start["start"]
        write_weights(policy, {name: kept[name] for name in self.back(policy.model, Facts(self.seed))})
