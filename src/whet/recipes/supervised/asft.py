"""Anchored supervised fine-tuning (2509.23753), and dynamic fine-tuning (DFT, 2508.05629) that it anchors.

    DFT    L = - 1/M sum_t sg[p_t] log p_t                                 p_t = p(y_t | x, y_<t), sg: no gradient
    ASFT   L = DFT + kl_weight 1/M sum_t KL(Q_t || P_t)                    Q_t, P_t: the start's and the policy's next token

M counts the learnt tokens of the whole optimizer batch (the authors': of each micro-batch). DFT does not learn what the model
finds improbable: noise, but also new facts. As it concentrates, it drifts from its start; the exact KL over the whole
vocabulary, with the start first, holds it. With adapters the start is the model without them.

`asft kl_weight=0` is `dft`; `asft reweight=false` is likelihood with the anchor alone; `dft power=0` is `sft`. Not built: the
KL's other direction, which the paper finds to collapse.

    whet run asft --task my.jsonl --verifier number
"""

from __future__ import annotations

from typing import Any

from whet.errors import WhetError
from whet.objectives import Objective, as_objective, forward_kl, nll
from whet.objectives import dft as probability_weighted
from whet.recipes.recipe import Recipe, recipe
from whet.recipes.supervised.sft import sft


@recipe(paper="asft", parent="sft")
def dft(power: float = 1.0, normalise: str = "token", **training: Any) -> Recipe:
    """DFT (2508.05629): each token's likelihood weighs as much as the model now thinks it probable.

    Args:
        power: of the probability in the weight; 1 is the paper's, 0 is sft.
        normalise: token, sequence, sequence-sum, constant, row or none.
    """
    return sft(objective=probability_weighted(normalise, power), **training)


@recipe(paper="asft", parent="sft")
def asft(kl_weight: float = 0.05, reweight: bool = True, normalise: str = "token", **training: Any) -> Recipe:
    """Anchored SFT (2509.23753): DFT with a forward KL to the model that it starts from.

    Args:
        kl_weight: of the KL to the start; 0.05 in the paper, 0.1 in its code; 0 is dft.
        reweight: whether a token weighs as much as it is probable; false is likelihood with the anchor.
        normalise: token, sequence, sequence-sum, constant, row or none.
    """
    if kl_weight < 0:
        raise WhetError(f"asft: kl_weight is 0 or more, not {kl_weight:g}: it would push away from the start")
    fit: Objective = as_objective(probability_weighted(normalise) if reweight else nll(normalise))
    return sft(objective=fit + kl_weight * forward_kl(normalise), **training)
