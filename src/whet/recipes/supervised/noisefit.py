"""Noise-augmented fine-tuning (NoiseFiT, 2504.03302): a clean pass and two with noise in a few blocks must agree.

    L = alpha CE + (1 - alpha) 1/2 [KL(P || P1) + KL(P || P2)] + consistency KL(P2 || P1)

P is the clean pass's next-token distribution, P1 and P2 those of two passes with independent noise (see `objectives.noise`) on
the outputs of blocks that are chosen once, before training (see `noise_blocks`). P and P2 as teachers get no gradient, as in the
second version of the authors' code; `teacher_grad=true` is the first. It costs three forwards and backwards: compare at equal
compute. The paper says "soft cross-entropy"; the code has a KL.

Where it departs: only the response is learnt, and the KL is taken at the places that predict it (the authors: all of the text,
and a mask that is one off). `noise=0` leaves alpha CE; `alpha=1 consistency=0` is `sft`.

`neftune` and `r-drop` are the paper's controls.

    whet run noisefit --task facts:level=2
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from whet.errors import WhetError, unknown
from whet.models.policy import Policy
from whet.objectives import nll
from whet.objectives.noise import Agreement
from whet.objectives.views import Dropout, Neftune
from whet.recipes.recipe import Recipe, recipe
from whet.recipes.supervised.noise_blocks import RULES, Plan, Planned
from whet.recipes.supervised.sft import sft
from whet.sources import Demonstrations, Problems, Scope

CALIBRATION = 16  # demonstrations that the blocks are chosen on


class Calibrated(Demonstrations):
    """Demonstrations, of which the first also choose the blocks that get noise. They are drawn again to be learnt from."""

    def __init__(self, rationale: bool, plan: Plan) -> None:
        super().__init__(rationale)
        self.plan = plan

    def prepare(self, problems: Problems, policy: Policy, scope: Scope) -> None:
        before = problems.state_dict()
        self.plan.choose(policy, self.rows(problems, CALIBRATION, policy, scope), scope.seed)
        problems.load_state_dict(before)
        self.counts = {f"noise in block {block}": 1 for block, _ in self.plan.scales}

    def state_dict(self) -> dict[str, Any]:
        return {"scales": [list(pair) for pair in self.plan.scales]}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        self.plan.scales = tuple((int(block), float(sigma)) for block, sigma in saved["scales"])


@recipe(paper="noisefit", parent="sft")
def noisefit(
    alpha: float = 0.5,
    consistency: float = 0.05,
    noise: float = 1.0,
    blocks: str = "auto",
    number: int | None = None,
    beta: float = 0.1,
    temperature: float = 1.0,
    teacher_grad: bool = False,
    rationale: bool = True,
    normalise: str = "token",
    steps: int = 120,
    **training: Any,
) -> Recipe:
    """NoiseFiT (2504.03302): fit the clean pass, and agree with it under noise in a few blocks.

    Args:
        alpha: weight of the clean likelihood; the rest is that of the noisy passes' KL to the clean one.
        consistency: weight of the KL between the noisy passes.
        noise: multiplies all noise; 0 is none.
        blocks: auto (measured response to noise), largest or lowest (signal-to-noise ratio), or random (a control).
        number: how many blocks, 3 by default; auto finds its own number.
        beta: how much less noise outlying channels get.
        temperature: of the KLs.
        teacher_grad: whether the passes that are agreed with, and the size of the noise, learn too (the first version).
        rationale: whether the gold rationale stands before the answer.
        normalise: token, sequence, sequence-sum, constant, row or none.
        steps: optimizer steps, each of three forwards.
    """
    if blocks not in RULES:
        raise unknown("choice of blocks", blocks, RULES)
    if number is not None and (blocks == "auto" or number < 1):
        raise WhetError("noisefit: number is that of the blocks, at least 1, of blocks=largest, lowest or random")
    if not 0 <= alpha <= 1 or min(consistency, noise, beta) < 0 or temperature <= 0:
        raise WhetError(
            "noisefit: alpha is between 0 and 1; consistency, noise and beta are 0 or more; temperature above 0"
        )
    if alpha == 0 and noise == 0:
        raise WhetError("noisefit: alpha=0 and noise=0 leave nothing to learn from")
    plan = Plan(blocks, number or 3, noise, beta, teacher_grad)
    one, two = Planned(plan, 1), Planned(plan, 2)

    def agree(name: str, teacher: Planned | None, student: Planned) -> Agreement:
        return Agreement(teacher, student, temperature, teacher_grad, normalise, name=name)

    soft = agree("soft_1", None, one) + agree("soft_2", None, two)
    loss = alpha * nll(normalise) + (1 - alpha) / 2 * soft + consistency * agree("consistency", two, one)
    made = sft(objective=loss, rationale=rationale, steps=steps, **training)
    if len(loss.terms) > 1 and noise:
        made.stages[0].collect = Calibrated(rationale, plan)
    return made


@recipe(paper="noisefit", parent="sft")
def neftune(alpha: float = 5.0, normalise: str = "token", **training: Any) -> Recipe:
    """NEFTune (2310.05914): likelihood with uniform noise on the input embeddings; a control of noisefit.

    Args:
        alpha: the noise is uniform in +-alpha / sqrt(length x hidden size); 0 is sft.
        normalise: token, sequence, sequence-sum, constant, row or none.
    """
    if alpha < 0:
        raise WhetError(f"neftune: alpha is 0 or more, not {alpha:g}")
    return sft(objective=nll(normalise, view=Neftune(alpha) if alpha else None), **training)


@recipe(paper="noisefit", parent="sft", name="r-drop")
def r_drop(dropout: float = 0.05, weight: float = 1.0, normalise: str = "token", **training: Any) -> Recipe:
    """R-Drop (2106.14448): two passes with dropout are fitted and must agree; a control of noisefit.

    L = 1/2 [CE_1 + CE_2] + weight 1/2 [KL(P1 || P2) + KL(P2 || P1)], with dropout on the blocks' outputs.

    Args:
        dropout: the share of a block's output that is dropped.
        weight: of the agreement.
        normalise: token, sequence, sequence-sum, constant, row or none.
    """
    if not 0 < dropout < 1 or weight < 0:
        raise WhetError(f"r-drop: dropout is between 0 and 1 and weight 0 or more, not {dropout:g} and {weight:g}")
    one, two = Dropout(dropout, 1), Dropout(dropout, 2)
    fit = nll(normalise, view=one, name="nll_1") + nll(normalise, view=two, name="nll_2")
    pairs = (("kl_12", one, two), ("kl_21", two, one))
    there, back = (Agreement(a, b, teacher_grad=True, normalise=normalise, name=name) for name, a, b in pairs)
    return sft(objective=0.5 * fit + 0.5 * weight * (there + back), **training)
