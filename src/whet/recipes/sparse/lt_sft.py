"""Lottery-ticket sparse fine-tuning (LT-SFT, 2110.07560): train all, keep the entries that moved most, rewind, train those.

    1  theta_1 = all of S trained from theta_0                     S: everything but the norms, which stay
    2  M = the k largest |theta_1 - theta_0| of all tensors of S together
    3  theta = theta_0, exactly; a fresh optimizer and schedule
    4  theta_2 = the entries M trained

    both phases may add   l1 / N sum_j |theta_j - theta_0j|        N: all parameters of the model

The difference theta_2 - theta_0 is sparse: `whet merge subtract RUN START` writes it so, and differences from one start add up
(`whet merge compose`). A task's is to be trained on the start plus the source language's: give that model by `--model`.

Any recipe of one stage can be trained so: `method=grpo`, `method=sec:group=4`. `random=true` draws M by chance (Rand-SFT, the
control). Not built: several rounds of 1 to 4, and batches of several source languages. An untied head belongs to S here.

    whet run lt-sft --task my.jsonl --verifier number
    whet run lt-sft method=sec density=0.05
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from whet.errors import WhetError
from whet.models.policy import Policy
from whet.objectives import Context, Term
from whet.recipes.recipe import Recipe, get_recipe, recipe
from whet.training.stage import Stage
from whet.weights import Masked
from whet.weights.selectors import Facts, Rule, Top, chance, movement, without_norms


@recipe(paper="lt-sft", parent="sft")
def lt_sft(
    density: float = 0.05, dense_steps: int = 0, l1: float = 0.0, l1_sparse: float = 0.0, random: bool = False,
    method: str = "sft", **training: Any,
) -> Recipe:  # fmt: skip
    """LT-SFT (2110.07560): full training, rewinding, and training of the entries that moved most.

    Args:
        density: share of all parameters but the norms that moves in the second phase.
        dense_steps: steps of the first phase; 0 takes as many as the second.
        l1: weight of the distance to the start in the first phase; the paper's language vectors have 0.1.
        l1_sparse: the same in the second.
        random: draw the entries by chance, as a control.
        method: what is trained so: a recipe of one stage with its own arguments, as sec:group=4.
    """
    score = chance if random else movement
    ticket = Ticket(Top(score, density, where=without_norms, across="model"), name="lt-sft")
    dense, sparse = (_stage(method, training) for _ in range(2))
    dense.weights, dense.name, dense.steps = (
        Masked(Rule(without_norms), name="lt-sft dense"),
        "dense",
        dense_steps or dense.steps,
    )
    sparse.weights, sparse.name, sparse.start, sparse.reference = ticket, "sparse", "base", "base"
    for stage, weight in ((dense, l1), (sparse, l1_sparse)):
        if weight < 0:
            raise WhetError(f"lt-sft: the distance to the start weighs 0 or more, not {weight:g}")
        for update in stage.updates if weight else ():
            update.objective = update.loss + weight * DistanceToStart()
    return Recipe([dense, sparse])


class Ticket(Masked):
    """Chooses by how far the stage before has moved from the start, before that is rewound."""

    def before_rewind(self, policy: Policy, base: Mapping[str, Tensor]) -> None:
        self.base = base
        self._set(*self._choose(policy))

    def facts(self, policy: Policy) -> Facts:
        return Facts(super().facts(policy).seed, self.base)

    def at_stage_start(self, policy: Policy) -> None:
        self.optimizers = []


class DistanceToStart(Term):
    """1/N sum_j |theta_j - theta_0j| over what is trained, N all parameters of the model; once an optimizer step."""

    name = "l1"
    roles = ()
    normalise = "none"
    needs = frozenset({"reference"})
    scope: ClassVar[str] = "parameters"
    behaviour: ClassVar[bool] = False

    def total(self, ctx: Context) -> Tensor:
        start = dict(ctx.policies["reference"].model.named_parameters())
        moved = [(p - start[n].detach()).abs().sum() for n, p in ctx.policy.model.named_parameters() if p.requires_grad]
        return torch.stack(moved).sum() / ctx.policy.size()


def _stage(method: str, training: Mapping[str, Any]) -> Stage:
    name, _, rest = method.partition(":")
    own = dict(part.split("=", 1) for part in rest.split(",")) if "=" in rest else {}
    made = get_recipe(name)(**{**own, **training})
    if len(made.stages) != 1 or made.stages[0].weights:
        raise WhetError(f"lt-sft method={method}: a recipe of one stage, that does not say itself which weights move")
    return made.stages[0]
