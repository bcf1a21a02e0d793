"""ReFT: reasoning with reinforced fine-tuning (2401.08967), and the two self-trainings that it is compared with.

Warm up on the gold chains, briefly; then PPO on the same questions, against the frozen warm-up:

    r_t = s 1[t is the last action] - beta (log pi_old - log pi_warm)_t      s = 1 right, 0.1 wrong but read, 0 nothing read
    L = clipped policy loss on whitened A + 5 (half the clipped squared error of V to R),  mean in each answer, then over answers

The warm-up is the beginning of a long run of sft: one schedule spans both, so it ends while the rate still rises. It is not the
best sft model, which would have little left to explore. The value head is fresh and shares the backbone. Learning is online: two
passes over one answer a question.

`online-self-training` learns the right ones of its own answers as they come, beside the gold chains; `offline-self-training` those
of the warm-up, from the base again.

Where a question has choices a guess is often right, and is paid though its chain is wrong: that is the paper's hacking of multiple
choice. A wrong choice earns 0.1 too, as in the release, or nothing (`partial_numeric_only=true`).

Departures: chains are the task's text, not programs that are run; numbers are right exactly unless the verifier allows a distance
(`--verifier number:0.01` is the release's); rates of small models are higher, and 16 answers a question stand for 100 offline.
Answers vote (majority@k) and are not ranked by a reward model.

    whet run reft --task chain-sum:level=4
    whet run reft --task logic:level=5,form=choice
"""

from __future__ import annotations

from typing import Any

from whet.advantages.transforms import right_only
from whet.errors import WhetError
from whet.objectives import nll
from whet.recipes.recipe import Recipe, recipe
from whet.recipes.reinforced.ppo import ppo
from whet.recipes.supervised.sft import sft
from whet.rewards import accuracy, partial_credit
from whet.sources import Bootstrapped, Rollouts, Uniform
from whet.training.optimizer import AdamW, Rate
from whet.training.stage import Stage, Update

SFT: dict[str, Any] = {"batch": 48, "lr": Rate(small=5e-4, paper=1e-5), "warmup": 0.1, "schedule": "linear"}
RL_RATE = Rate(small=1e-4, paper=3e-7)
PPO: dict[str, Any] = {"group": 1, "batch": 32, "steps": 100, "lr": RL_RATE, "warmup": 0, "value_weight": 5.0, "kl": 0.05,
                       "normalise": "sequence"}  # fmt: skip


def warm_up(limit: int, steps: int, span: float, lr: float | Rate = SFT["lr"]) -> Stage:
    """The first `steps` of an sft run that is `span` times as long, on the first `limit` questions."""
    (stage,) = sft(**{**SFT, "lr": lr}, limit=limit, steps=steps, span=span).stages
    stage.name = "warm-up"
    return stage


@recipe(paper="reft", parent="ppo", defaults=PPO, task="chain-sum:level=4")
def reft(
    limit: int = 512,
    warm: int = 20,
    warm_lr: float | Rate = SFT["lr"],
    span: float = 20.0,
    partial: float = 0.1,
    partial_numeric_only: bool = False,
    **training: Any,
) -> Recipe:
    """Reinforced fine-tuning: a short warm-up on gold chains, then PPO on the same questions.

    Args:
        limit: questions, the same in both stages; 0 for all that there are.
        warm: optimizer steps of the warm-up, 48 chains each.
        warm_lr: peak rate of the whole sft run; by default 5e-4 below 50 M parameters and 1e-5 above.
        span: how many times longer that run's schedule is than the warm-up (40 epochs for 2).
        partial: reward of an answer that was read and is wrong.
        partial_numeric_only: whether only numbers have it.
    """
    if training.get("reward") and (partial or partial_numeric_only):
        raise WhetError("reft: a reward of your own says what wrong answers are worth; give partial=0 with it")
    given = training.pop("reward", None) or partial_credit(partial, partial_numeric_only)
    (stage,) = ppo(**{**PPO, **training, "reward": given}).stages
    stage.problems, stage.name = Uniform(limit=limit), "reft"
    return Recipe([warm_up(limit, warm, span, warm_lr), stage])


@recipe(paper="reft", parent="sft", defaults={**SFT, "limit": 512, "steps": 200}, task="chain-sum:level=4")
def offline_self_training(
    limit: int = 512, warm: int = 20, span: float = 20.0, samples: int = 16, cap: int = 10, **training: Any
) -> Recipe:
    """Offline self-training: the base learns gold chains and the warm-up's right answers, sampled once.

    Args:
        limit: questions, the same in both stages.
        warm: optimizer steps of the warm-up that answers them.
        span: how many times longer the warm-up's schedule is than the warm-up.
        samples: answers a question (100 in the paper).
        cap: right and different ones that are kept of each question, at most.
    """
    if limit < 1:
        raise WhetError("offline-self-training asks every question once: say how many (limit)")
    (stage,) = sft(**{**SFT, "steps": 200, **training}).stages
    stage.problems, stage.start, stage.name = Uniform(limit=limit), "base", "self-training"
    stage.collect = Bootstrapped(limit, samples, temperature=1.0, rationalize=False, cap=cap, gold=True)
    return Recipe([warm_up(limit, warm, span, training.get("lr", SFT["lr"])), stage])


@recipe(paper="reft", task="chain-sum:level=4")
def online_self_training(
    limit: int = 512,
    warm: int = 20,
    warm_lr: float | Rate = SFT["lr"],
    span: float = 20.0,
    steps: int = 200,
    batch: int = 32,
    lr: float | Rate = RL_RATE,
    epochs: int = 2,
    temperature: float = 1.0,
    max_new_tokens: int = 0,
) -> Recipe:
    """Online self-training: half the likelihood of the policy's right answers, half that of the gold chains.

    Args:
        limit: questions, the same in both stages; 0 for all that there are.
        warm: optimizer steps of the warm-up.
        warm_lr: peak rate of the whole sft run.
        span: how many times longer that run's schedule is than the warm-up.
        steps: roll-out batches.
        batch: questions a step, answered once each.
        lr: learning rate after the warm-up; by default 1e-4 below 50 M parameters and 3e-7 above.
        epochs: passes over a step's answers.
        temperature: of sampling.
        max_new_tokens: generation budget of an answer; 0 takes the task's.
    """
    objective = 0.5 * nll(name="own") + 0.5 * nll(role="gold", name="gold")
    stage = Stage(
        problems=Uniform(limit=limit),
        collect=Rollouts(1, max_new_tokens, temperature, gold=True),
        reward=accuracy(),
        transforms=[right_only()],
        updates=[Update(objective, optimizer=AdamW(lr=lr), epochs=epochs)],
        steps=steps,
        batch=batch,
        name="self-training",
    )
    return Recipe([warm_up(limit, warm, span, warm_lr), stage])
