"""Group relative policy optimization (2402.03300) and the field's variants as presets of five independent switches.

    A_i = (r_i - mean_j r_j) / (std_j r_j + eps)
    J = 1/G sum_i 1/|o_i| sum_t min(rho_it A_i, clip(rho_it, 1 - low, 1 + high) A_i) - beta KL

`grpo` is the DeepSeekMath form with kl 0. With one update a batch (the default) rho is exp(lp - stopgrad(lp)): no second
forward, and the clip is inert. More updates (epochs, minibatches) fix the old log-probs once beforehand.

    whet run grpo --task chain-sum
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from whet import advantages
from whet.errors import WhetError, unknown
from whet.objectives import entropy_bonus, kl_to_reference, policy_gradient
from whet.objectives.given import Given
from whet.objectives.objective import as_objective
from whet.recipes.recipe import Recipe, recipe
from whet.rewards import Reward, accuracy, load_reward, overlong
from whet.sources import DropDead, Gate, Plan, Problems, Rollouts, Uniform, WithGreedy
from whet.training.optimizer import AdamW, Rate
from whet.training.stage import Stage, Update

ADVANTAGES: dict[str, Callable[..., Any]] = {
    "group-std": advantages.group_std,
    "group-mean": advantages.group_mean,
    "batch-std": advantages.batch_std,
    "batch-whiten": advantages.batch_whiten,
    "rloo": advantages.rloo,
    "reinforce++": advantages.reinforce_plus_plus,
    "remax": advantages.remax,
    "raw": advantages.raw,
}


@recipe(paper="grpo")
def grpo(
    group: int = 8,
    batch: int = 8,
    steps: int = 60,
    lr: float | Rate = Rate(small=1e-4, paper=1e-6),
    warmup: float = 5,
    advantage: str = "group-std",
    ratio: str = "token",
    clip: list | None = None,
    normalise: str = "sequence",
    kl: float = 0.0,
    kl_estimator: str = "k3",
    entropy: float = 0.0,
    temperature: float = 1.0,
    max_new_tokens: int = 0,
    epochs: int = 1,
    minibatches: int = 1,
    dynamic: bool = False,
    filter_truncated: bool = False,
    overlong_buffer: int = 0,
    reward: str | Reward | None = None,
    problems: Problems | None = None,
    plan: Plan | None = None,
    given: Given | None = None,
) -> Recipe:
    """Group relative policy optimization: a group's own mean and deviation are the baseline.

    Args:
        group: answers sampled for each problem (G).
        batch: problems a step; group x batch answers are learnt from.
        steps: steps.
        lr: learning rate; by default 1e-4 below 50 M parameters and 1e-6 above.
        warmup: steps of linear warm-up.
        advantage: group-std, group-mean, batch-std, batch-whiten, rloo, reinforce++, remax or raw.
        ratio: token, sequence (GSPO), cispo or none.
        clip: [low, high] around a ratio of 1; by default what the ratio's paper uses.
        normalise: sequence (GRPO), token (DAPO), constant (Dr.GRPO), sequence-sum.
        kl: weight of the KL to the starting policy in the loss; 0 keeps no reference model.
        kl_estimator: k1, k2 or k3.
        entropy: weight of an entropy bonus, a mean over tokens; 0 is off.
        temperature: of sampling, and of every log-prob.
        max_new_tokens: generation budget of an answer; 0 takes the task's.
        epochs: passes over a step's answers.
        minibatches: optimizer steps in a pass.
        dynamic: draw on until the batch is full of groups with right and wrong answers (DAPO).
        filter_truncated: truncated answers count in the group's statistics but are not learnt.
        overlong_buffer: tokens before the budget's end over which a length punishment grows to -1 (DAPO); 0 is off.
        reward: FILE.py:FUNCTION, a function as TRL takes them, added to nothing; by default the verifier's accuracy.
        problems: from Python, where prompts come from.
        plan: from Python, how the answers of a group begin; it knows their number, and `group` is not asked.
        given: from Python, how what answers were given to begin with is learnt.
    """
    if advantage not in ADVANTAGES:
        raise unknown("advantage", advantage, ADVANTAGES)
    rewarded: Reward = load_reward(reward) if isinstance(reward, str) else reward or accuracy()
    if overlong_buffer:
        rewarded = rewarded + overlong(overlong_buffer)
    objective = as_objective(policy_gradient(ratio=ratio, clip=_pair(clip), normalise=normalise, given=given))
    if kl:
        objective = objective + kl * kl_to_reference(estimator=kl_estimator, normalise=normalise)
    if entropy:
        objective = objective + entropy * entropy_bonus()
    update = Update(objective, optimizer=AdamW(lr=lr, warmup=warmup), epochs=epochs, minibatches=minibatches)
    return Recipe([
        Stage(
            problems=problems or Uniform(),
            collect=(WithGreedy if advantage == "remax" else Rollouts)(group, max_new_tokens, temperature, plan=plan),
            reward=rewarded,
            advantage=ADVANTAGES[advantage](),
            gate=DropDead() if dynamic else Gate(),
            transforms=[advantages.filter_overlong()] if filter_truncated else [],
            updates=[update],
            steps=steps,
            batch=batch,
            name="grpo",
        )
    ])  # fmt: skip


def _pair(clip: list | tuple | None) -> tuple[float, float] | None:
    if clip is None:
        return None
    if len(clip) != 2 or not all(isinstance(bound, int | float) and 0 <= bound < math.inf for bound in clip):
        raise WhetError(f"clip is [low, high] around a ratio of 1, e.g. [0.2, 0.28], not {list(clip)}")
    return float(clip[0]), float(clip[1])


def preset(name: str, doc: str, **fixed: Any) -> None:
    """Register a variant: grpo with other defaults, each of which may still be given."""

    def build(**training: Any) -> Recipe:
        return grpo.build(**{**fixed, **training})

    build.__doc__ = doc
    build.__name__ = name
    recipe(paper="grpo", parent="grpo", name=name, defaults=fixed)(build)


preset("dapo", "DAPO (2503.14476): clip-higher, token mean, dynamic sampling, truncated answers filtered, no KL.",
       clip=[0.2, 0.28], normalise="token", dynamic=True, filter_truncated=True)  # fmt: skip
preset("dr-grpo", "Dr.GRPO (2503.20783): no deviation in the advantage, a constant normaliser.",
       advantage="group-mean", normalise="constant")  # fmt: skip
preset("gspo", "GSPO (2507.18071): a ratio for the whole sequence; four updates a batch, or it equals GRPO.",
       ratio="sequence", clip=[3e-4, 4e-4], minibatches=4)  # fmt: skip
preset("rloo", "RLOO (2402.14740): each answer's baseline is the mean of the others.",
       advantage="rloo", ratio="none", normalise="sequence-sum")  # fmt: skip
preset("remax", "ReMax (2310.10505): the baseline is the reward of the greedy answer, which is sampled besides.",
       advantage="remax", ratio="none", normalise="sequence-sum")  # fmt: skip
preset("reinforce++", "REINFORCE++ (2501.03262): no group; returns whitened over the tokens of the batch.",
       advantage="reinforce++", group=1, batch=64, normalise="token")  # fmt: skip
preset("cispo", "CISPO (2506.13585): the ratio is capped and detached, so that no token loses its gradient.",
       ratio="cispo", normalise="token")  # fmt: skip
