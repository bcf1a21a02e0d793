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
    whet run half-reset tasks="sort:level=2;lists:level=3"
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from whet.errors import WhetError
from whet.models.policy import Policy
from whet.recipes.recipe import Recipe, recipe
from whet.recipes.supervised.sft import sft
from whet.training.sequence import read_tasks, sequence
from whet.weights import choices
from whet.weights.around import Around
from whet.weights.halves import Half
from whet.weights.selectors import Facts
from whet.weights.snapshot import Snapshots, write_weights


@recipe(paper="hft", parent="sft")
def hft(
    share: float = 0.5, grain: str = "category", ends: bool = True, draw: int | None = None, once: bool = False,
    tasks: str = "", until: float = 0.0, **training: Any,
) -> Recipe:  # fmt: skip
    """HFT (2404.18466): SFT of a random half of each block's matrices, drawn anew in each stage.

    Args:
        share: of the matrices that move; 1 is sft.
        grain: category (a share of each block's attention, feed-forward and norms), layer (whole blocks) or model (any).
        ends: whether embeddings, head and the last norm move too.
        draw: seed of the draws; by default the run's.
        once: one draw for all stages, as a control.
        tasks: train on these, separated by `;`, one after another instead of the run's own.
        until: each of these ends once validation accuracy on it comes to this; 0 takes all of its steps.
    """
    return _over(tasks, training, until).moving(choices.hft(share, grain, ends, draw, once))


@recipe(paper="hft", parent="sft")
def half_reset(share: float = 0.5, grain: str = "category", tasks: str = "", **training: Any) -> Recipe:
    """Half-Reset (2404.18466): SFT, after which a random half of the matrices goes back to where the run began.

    Args:
        share: of the matrices that goes back; 0 is sft.
        grain: category, layer or model.
        tasks: train on these first, separated by `;`, one after another instead of the run's own.
    """
    made = _over(tasks, training)
    return made.moving(HalfReset(Half(share, grain, ends=False), after=len(made.stages)))


class HalfReset(Around):
    """Full fine-tuning, of which a part goes back at the end of the last stage to the run's first weights."""

    def __init__(self, back: Half, after: int = 1) -> None:
        super().__init__()
        self.name, self.back, self.after, self.ended = "half-reset", back, after, 0

    def attach(self, policy: Policy, seed: int) -> None:
        super().attach(policy, seed)
        self.seed, self.start = seed, Snapshots()
        self.start.take("start", policy)

    def at_stage_end(self, policy: Policy) -> None:
        super().at_stage_end(policy)
        self.ended += 1
        if self.ended >= self.after:
            kept = self.start["start"]
            write_weights(policy, {name: kept[name] for name in self.back(policy.model, Facts(self.seed))})

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "ended": self.ended}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.ended = state["ended"]


def _over(tasks: str, training: Mapping[str, Any], until: float = 0.0) -> Recipe:
    """sft on the run's task, or on some after another, each measured after each."""
    if not tasks:
        if until:
            raise WhetError("hft: until ends a task of several: name them by tasks")
        return sft(**training)
    stream = read_tasks(tasks)
    stages = sequence(stream, lambda: sft(**training).stages[0], until)
    return Recipe(stages, stream=tuple(task.spec() for task in stream))
