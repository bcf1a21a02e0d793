"""CARFT: contrastive learning with annotated chains in reinforced fine-tuning (2508.15868).

ReFT with a two-layer value head, whose 64 hidden activations u_t stand for the tokens, and one more term:

    L = L_reft + eta L_cl          z = sum_t softmax_t(V_t) u_t over a chain's tokens
    L_cl = mean over right i of  -log  exp(min(cos(z1_i, z2_i), .9) / tau) / sum_j exp(cos(z1_i, z2_j) / tau)

z1 is the annotated chain under the policy that sampled, constant for all passes over a batch; z2 is the sampled chain, with
its gradient; j runs over all answers of the optimizer batch. The negative signal draws, in a wrong answer, what it shares with
the annotation to how that goes on, and away from its own rest; `both` is the mean of the two.

eta 0 is reft with that head. Departures: the head's dropout is off, as all dropout is, or z1 and z2 would see different noise;
the denominator is differentiable and l_i a mean over right answers (`detach_negatives` and `mask_broadcast` bring back the released
code, whose gathered embeddings carry no gradient and whose mask broadcasts); the paper's eta is of a grid from 0.001 to 1.

    whet run carft --task chain-sum:level=4
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from whet.errors import WhetError, unknown
from whet.models.policy import Policy
from whet.objectives.contrastive import CHAIN, OWN, REST, WHOLE, contrast, embeddings, mark_shared
from whet.objectives.objective import Objective
from whet.recipes.recipe import Recipe, recipe
from whet.recipes.reinforced.reft import reft
from whet.records import Row
from whet.rewards import Attempt, Reward, each, gate, partial_credit
from whet.sources import Problems, Rollouts, Scope
from whet.sources.collector import trim

SIGNALS = {"positive": ("positive",), "negative": ("negative",), "both": ("positive", "negative")}
OWN_DEFAULTS: dict[str, Any] = {"value_width": 64, "steps": 60}  # a step costs twice one of reft


class Annotated(Rollouts):
    """Roll-outs, each with the embedding that the policy of now has of the annotated chain.

    Args:
        rest: also of what the chain does not share with the answer.
        near: also how near answer and chain are (a cosine), as the row's number `near`.
        how: as `embeddings` takes it.
    """

    def __init__(self, *rollouts: Any, rest: bool = False, near: bool = False, **how: Any) -> None:
        super().__init__(*rollouts)
        self.needs |= {"rationales"}
        self.rest, self.near, self.how = rest, near, how

    def rows(self, problems: Problems, n: int, policy: Policy, scope: Scope) -> list[Row]:
        rows = super().rows(problems, n, policy, scope)
        how = {**self.how, "seed": scope.seed}
        chains = [trim(policy.format.demonstration(scope.known[row.problem_id]), policy.max_length) for row in rows]
        parts = {CHAIN: WHOLE, **({REST: OWN} if self.rest else {})}
        for row, chain in zip(rows if self.rest else (), chains if self.rest else (), strict=True):
            mark_shared(row["response"], chain, policy)
        for row, found in zip(rows, embeddings(policy, chains, parts, **how), strict=True):
            row.vectors |= found
        if self.near:
            answers = embeddings(policy, [row["response"] for row in rows], {CHAIN: WHOLE}, **how)
            for row, own in zip(rows, answers, strict=True):
                row.numbers["near"] = float(torch.cosine_similarity(row.vectors[CHAIN], own[CHAIN], dim=0))
        return rows


def near_credit() -> Reward:
    """1 for a right answer; 0.2 + 0.1 cos(z1, z2) for a wrong one that was read, from 0.1 to 0.3."""

    def near(attempt: Attempt) -> float:
        assert attempt.row is not None, "a roll-out's attempt has its row"
        return 0.1 * attempt.row.numbers["near"]

    return partial_credit(0.2) + gate(lambda a: a.verdict.status == "wrong", each("near", near))


@recipe(paper="carft", parent="reft", task="chain-sum:level=4", defaults=OWN_DEFAULTS)
def carft(
    weight: float = 0.1,
    signal: str = "positive",
    contrast_temperature: float = 0.2,
    cap: float = 0.9,
    pooling: str = "value",
    drop: float = 0.0,
    detach_negatives: bool = False,
    mask_broadcast: bool = False,
    near_partial: bool = False,
    **training: Any,
) -> Recipe:
    """Contrastive reinforced fine-tuning: sampled chains are drawn to the annotated ones while PPO learns.

    Args:
        weight: eta of the contrast; 0 is reft with a two-layer value head.
        signal: positive (right answers), negative (what wrong ones share with the annotation), or both.
        contrast_temperature: tau of the cosines.
        cap: cosine above which a pair is near enough.
        pooling: value, softmax of the token values as in the paper, or mean.
        drop: probability of leaving a token out of a chain's embedding (0.1 is the paper's augmentation).
        detach_negatives: no gradient through the denominator, as in the released code.
        mask_broadcast: sum over all answers wherever one is right, as in the released code.
        near_partial: pay wrong answers that were read 0.2 + 0.1 cos instead of `partial`.
    """
    if signal not in SIGNALS:
        raise unknown("signal", signal, SIGNALS)
    if near_partial:
        if training.get("partial") or training.get("reward"):
            raise WhetError("carft: near_partial says what wrong answers are worth; leave partial and reward away")
        training |= {"partial": 0.0, "reward": near_credit()}
    warm_up, stage = reft(**{**OWN_DEFAULTS, **training}).stages
    (update,) = stage.updates
    if weight and stage.batch * stage.collect.group < 2 * update.minibatches:
        raise WhetError("carft: an answer is told apart from the others of its minibatch; sample two or more for each")
    if weight or near_partial:
        stage.collect = Annotated(stage.collect.group, training.get("max_new_tokens", 0), stage.collect.temperature,
                                  rest=bool(weight) and signal != "positive", near=near_partial, by=pooling, drop=drop)  # fmt: skip
    names = SIGNALS[signal]
    terms = [contrast(one, contrast_temperature, cap, pooling, drop, detach_negatives, mask_broadcast) for one in names]
    added = Objective([(weight / len(names), term) for term in terms])
    stage.updates = [replace(update, objective=update.loss + added)]
    stage.name = "carft"
    return Recipe([warm_up, stage])
