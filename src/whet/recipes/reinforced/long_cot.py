"""Long chains of thought by reinforcement (2502.03373): a cosine reward of length and a dense penalty on repetition.

    r = b + (a - b) / 2 (1 + cos(pi L / M));   right: a = 2, b = 1;   wrong: a = -10, b = 0;   -10 where L + margin >= M
    R_t = sum over channels k and u >= t of gamma_k^(u - t) r_{u,k},   A = R - V,   lambda = 1

Channel 0 is r on the last token, channel 1 is -0.05 on each token of an n-gram that the answer has had before; of the KL each
has an equal part. A right answer is worth more when it is short, a wrong one when it is long. PPO follows, on a policy that has
learnt long rationales first.

Departures: the value head shares the policy's backbone and rate, where the paper's critic is a model of its own. `scale`
multiplies rewards, penalty and KL alike: whitened advantages do not see it, and it keeps the value loss from drowning the
policy's. Answers are verified by rule; a judge is a verifier of a file task. The default `ngram` and `margin` are for answers of
tens of tokens; the paper has 40 and 16, for thousands.

    whet run long-cot
    whet run long-cot --task "noisy:rate=0.3|chain-sum"      some gold answers are wrong
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from whet.errors import WhetError, unknown
from whet.evaluation.lengths import Lengths
from whet.recipes.recipe import Recipe, recipe
from whet.recipes.reinforced.ppo import ppo
from whet.recipes.supervised.sft import sft
from whet.rewards import Reward
from whet.rewards.length import Bend, LengthCurve, length
from whet.rewards.repetition import dense_repetition, sparse_repetition
from whet.training.optimizer import Rate

WRONG = Bend(-10, 0)
CURVES = {
    "cosine": LengthCurve(Bend(2, 1), WRONG, exceeded=-10, margin=16),
    "A": LengthCurve(Bend(0, 10), Bend(0, 0), exceeded=-10, margin=16),
    "B": LengthCurve(Bend(6, 5), WRONG, exceeded=-10, margin=16),
    "C": LengthCurve(Bend(10, 9), WRONG, exceeded=-10, margin=16),
    "classic": LengthCurve(Bend(1, 1), Bend(0, 0), exceeded=0, margin=16),
}
COT = {"long": True, "short": False}
REPETITION = ("dense", "sparse", "none")


@recipe(paper="long-cot", parent="ppo", task="countdown:level=1-2", defaults={"lam": 1.0, "normalise": "sequence"})
def long_cot(
    sft_steps: int = 20,
    cot: str = "long",
    steps: int = 40,
    lr: float | Rate = Rate(small=1e-4, paper=5e-7),
    curve: str = "cosine",
    margin: int = 4,
    repetition: str = "dense",
    ngram: int = 6,
    penalty: float = -0.05,
    only_start: bool = False,
    gamma: float = 1.0,
    gamma_repetition: float = 0.99,
    kl: float = 0.01,
    scale: float = 0.1,
    **training: Any,
) -> Recipe:
    """Grow chains of thought stably: supervised first, then PPO with a cosine length reward and a penalty on repetition.

    Args:
        sft_steps: steps of fine-tuning on demonstrations before; 0 starts from the model as it is.
        cot: what they show: the long rationale, or short, the answer alone.
        steps: roll-out batches of PPO.
        lr: PPO's learning rate; by default 1e-4 below 50 M parameters and 5e-7 above.
        curve: cosine, its ablations A (longer right answers are better), B and C, or classic (1, 0).
        margin: an answer within so many tokens of the budget has exceeded it.
        repetition: dense (on the tokens), sparse (words, wrong answers, one number) or none.
        ngram: tokens (or words) of a repeated n-gram.
        penalty: on each of its tokens, or on an answer that repeats itself throughout.
        only_start: of a stretch of repeats penalise the first n-gram alone.
        gamma: discount of the outcome's reward; below 1 favours short answers.
        gamma_repetition: discount of the penalty; a short horizon keeps the blame local.
        kl: beta of the KL to the model before PPO inside the reward; 0 keeps no reference model.
        scale: multiplies rewards, penalty and KL.
    """
    for what, value, known in (("curve", curve, CURVES), ("cot", cot, COT), ("repetition", repetition, REPETITION)):
        if value not in known:
            raise unknown(what, value, known)
    if training.pop("lam", 1.0) != 1.0:
        raise WhetError("long-cot: discounts of several rewards are defined for lam=1 alone; leave lam out")
    if "reward" in training:
        raise WhetError("long-cot: its reward is `curve` and `repetition`; use ppo for another")
    reward: Reward = scale * length(replace(CURVES[curve], margin=margin))
    if repetition == "dense":
        reward = reward + dense_repetition(ngram, scale * penalty, only_start)
    elif repetition == "sparse":
        reward = reward + sparse_repetition(ngram, scale * penalty)
    discounts = (gamma, gamma_repetition) if repetition == "dense" else gamma
    made = ppo.build(reward=reward, gamma=discounts, lam=1.0, kl=scale * kl, steps=steps, lr=lr,
               **{"normalise": "sequence", **training})  # fmt: skip
    made.stages[0].name = "long-cot"
    if sft_steps:
        made.stages[:0] = sft(steps=sft_steps, rationale=COT[cot]).stages
    made.answering = Lengths(ngram, max_new_tokens=training.get("max_new_tokens", 0))
    return made
