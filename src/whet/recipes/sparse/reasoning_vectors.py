"""Reasoning vectors (2509.01363): what reinforcement added to a fine-tuned model, added to another one of its family.

    base -> SFT on other data or less of it                  theta_T      recipient
    base -> SFT -> GRPO on the same task                     theta_SFT, theta_GRPO      donors
    v = theta_GRPO - theta_SFT                               all tensors
    theta = theta_T + alpha v                                in fp32, cast once; alpha < 0 takes reasoning away

All three begin with the run's base: v means nothing to a model of another initialisation, vocabulary or layout. What a run
reports beside its own accuracy is sampled accuracy (one answer at temperature 1 to each test problem) under these names:

    vector/1 ...            the recipient with so much of v, for each of `sweep`
    vector/whole            with theta_GRPO - base, which holds what SFT learnt too
    vector/random           with a random vector, of v's norm in each tensor
    vector/shuffled         with v, its rows and columns in another order
    vector/before, /after   the donors
    vector/barrier, /cosine the loss barrier between the donors; the cosine of v and theta_SFT - base

`donor=sft` continues SFT where GRPO stood, for as many steps: is it reinforcement, or more training? `scale=0` is the recipient alone. Not
built: the instruction "think step by step", which is part of an evaluation's prompt and not of v. Between models that are there
already, `whet merge` does the same, checks tokens too, and subtracts adapters as products:

    whet run reasoning-vectors --task my.jsonl --verifier number
    whet merge subtract GRPO SFT --out v && whet merge add TARGET v --scale 0.5 --out better
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from whet.errors import WhetError, unknown
from whet.models.policy import Policy
from whet.recipes.recipe import Recipe, recipe
from whet.recipes.reinforced.grpo import grpo
from whet.recipes.sparse.transfer import VECTORS, Transferred, between, transfer
from whet.recipes.supervised.sft import sft
from whet.sources import Demonstrations
from whet.training.optimizer import Rate
from whet.weights.snapshot import Kept, Snapshots

GRPO: dict[str, Any] = {"steps": 50, "lr": Rate(small=1e-4, paper=5e-7)}
SWEEP = (-1, 0, 0.25, 0.5, 0.75, 1, 1.5)


@recipe(paper="reasoning-vectors", parent="grpo", defaults=GRPO, task="chain-sum:level=3")
def reasoning_vectors(
    scale: float = 1.0, vector: str = "donor", donor: str = "grpo", recipient: str = "", recipient_rows: int = 128,
    recipient_steps: int = 40, sft_steps: int = 20, sft_batch: int = 32, sft_lr: float | Rate = Rate(small=5e-4, paper=5e-6),
    rationales: float = 1.0, sweep: list | None = None, **training: Any,
) -> Recipe:  # fmt: skip
    """Reasoning vectors (2509.01363): GRPO's change of a fine-tuned model, added to another fine-tuned model.

    Args:
        scale: alpha; -1 subtracts, 0 leaves the donors out.
        vector: donor (after - before), whole (after - base), random or shuffled (controls of the donor's norm).
        donor: what stands between before and after: grpo, or sft for as many steps.
        recipient: tasks that it learns, as `task#rows`, separated by `;`; by default the run's own.
        recipient_rows: of the run's own task.
        recipient_steps: steps of the recipient's SFT.
        sft_steps: steps of the donor's SFT.
        sft_batch: demonstrations a step.
        sft_lr: peak rate of SFT; by default 5e-4 below 50 M parameters and 5e-6 above.
        rationales: share of all demonstrations that shows its rationale.
        sweep: scales that are measured at the end; [] measures nothing of the vector.
    """
    if vector not in VECTORS:
        raise unknown("vector", vector, VECTORS)
    if donor not in ("grpo", "sft"):
        raise unknown("donor", donor, ("grpo", "sft"))
    if donor == "sft" and training.keys() - {"steps"}:
        raise WhetError(f"reasoning-vectors: donor=sft has no use for {', '.join(sorted(training.keys() - {'steps'}))}")
    own: dict[str, Any] = {"mixture": recipient} if recipient else {"limit": recipient_rows}
    training = {**GRPO, **training}
    shared: dict[str, Any] = {"batch": sft_batch, "lr": sft_lr}
    (target,) = sft(steps=recipient_steps, **own, **shared).stages
    (before,) = sft(steps=sft_steps, **shared).stages
    (after,) = (grpo(**training) if donor == "grpo" else sft(steps=training["steps"], **shared)).stages
    for stage in (target, before, *([after] if donor == "sft" else [])):
        stage.collect = Demonstrations(rationales)
    target.name, before.name, after.name, before.start = "recipient", "donor", f"donor, {donor}", "base"
    if scale == 0:
        return Recipe([target])
    models = Snapshots()
    target.weights, before.weights = Kept(models, "recipient"), Donor(models, "before")
    after.weights = Transfer(models, vector, scale)
    scales = SWEEP if sweep is None else sweep
    return Recipe([target, before, after], probes=[Transferred(models, scales)] if scales else [])


class Donor(Kept):
    """Full fine-tuning from the run's base, which is set aside too."""

    def before_rewind(self, policy: Policy, base: Mapping[str, Tensor]) -> None:
        self.models.held["base"] = dict(base)


class Transfer(Kept):
    """The last donor's; at its end the policy becomes the recipient plus the vector."""

    def __init__(self, models: Snapshots, vector: str, scale: float) -> None:
        super().__init__(models, "after")
        self.vector, self.scale = vector, scale

    def attach(self, policy: Policy, seed: int) -> None:
        super().attach(policy, seed)
        self.seed = seed

    def at_stage_end(self, policy: Policy) -> None:
        if self.last not in self.models:  # a run that ends a second time has the sum already
            super().at_stage_end(policy)
        transfer(policy, self.models, self.scale * between(self.models, self.vector, self.seed))
