"""Proximal policy optimization (1707.06347) with generalized advantages (1506.02438) for language models.

    r_t = score at the last action - beta (log pi_old - log pi_ref)_t
    delta_t = r_t + gamma V_{t+1} - V_t;   A_t = delta_t + gamma lambda A_{t+1};   R_t = A_t + V_t
    L = clipped policy loss on whitened A + c_v (half the clipped squared error of V to R)

The value head reads the policy's last hidden state and shares the backbone; it is linear, or has a hidden layer.

    whet run ppo --task chain-sum
"""

from __future__ import annotations

from functools import partial

from whet.advantages import AdaptiveKL, generalized_advantage
from whet.errors import WhetError
from whet.objectives import policy_gradient, value_head, value_loss
from whet.recipes.recipe import Recipe, recipe
from whet.rewards import Reward, accuracy, load_reward
from whet.sources import Rollouts
from whet.training.optimizer import AdamW, Rate
from whet.training.stage import Stage, Update


@recipe(paper="ppo")
def ppo(
    group: int = 4,
    batch: int = 16,
    steps: int = 150,
    lr: float | Rate = Rate(small=1e-4, paper=1e-6),
    warmup: float = 5,
    gamma: float = 1.0,
    lam: float = 0.95,
    clip: float = 0.2,
    value_clip: float = 0.2,
    value_weight: float = 0.1,
    value_width: int = 0,
    kl: float = 0.0,
    kl_target: float = 0.0,
    epochs: int = 2,
    minibatches: int = 1,
    normalise: str = "token",
    dual_clip: float = 0.0,
    temperature: float = 1.0,
    max_new_tokens: int | float = 0,
    reward: str | Reward | None = None,
) -> Recipe:
    """Proximal policy optimization with a value head.

    Args:
        group: answers sampled for each problem; they need no group here.
        batch: problems a step.
        steps: roll-out batches.
        lr: learning rate; by default 1e-4 below 50 M parameters and 1e-6 above.
        warmup: steps of linear warm-up.
        gamma: discount of a token.
        lam: lambda of GAE; 1 is return minus value, 0 is one-step.
        clip: epsilon of the policy ratio.
        value_clip: how far a value may move in one batch.
        value_weight: weight of the value loss (half the squared error).
        value_width: width of the value head's hidden layer; 0 is a linear head.
        kl: beta of the KL to the starting policy inside the reward; 0 keeps no reference model.
        kl_target: adapt beta to hold this KL (nats a token); 0 keeps beta fixed.
        epochs: passes over a batch of answers.
        minibatches: optimizer steps in a pass.
        normalise: token (TRL, verl) or sequence (ReFT).
        dual_clip: bound c of the loss where the advantage is negative; 0 is off.
        temperature: of sampling, and of every log-prob.
        max_new_tokens: generation budget of an answer; 0 takes the task's.
        reward: FILE.py:FUNCTION, a function as TRL takes them; by default the verifier's accuracy.
    """
    if kl_target and not kl:
        raise WhetError("ppo: kl_target adapts kl, which must be above 0 to begin with")
    if value_width < 0:
        raise WhetError(f"ppo: value_width is the width of a hidden layer, or 0 for none, not {value_width}")
    coefficient = AdaptiveKL(kl, kl_target) if kl_target else kl
    objective = policy_gradient(clip=(clip, clip), dual_clip=dual_clip or None, normalise=normalise)
    update = Update(
        objective + value_weight * value_loss(clip=value_clip, normalise=normalise),
        optimizer=AdamW(lr=lr, warmup=warmup), epochs=epochs, minibatches=minibatches,
    )  # fmt: skip
    return Recipe([
        Stage(
            collect=Rollouts(group, max_new_tokens, temperature),
            reward=load_reward(reward) if isinstance(reward, str) else reward or accuracy(),
            advantage=generalized_advantage(gamma, lam, coefficient),
            updates=[update],
            modules={"value": partial(value_head, width=value_width)},
            steps=steps,
            batch=batch,
            name="ppo",
        )
    ])  # fmt: skip
