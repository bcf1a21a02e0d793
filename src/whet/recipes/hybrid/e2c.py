"""E2C (2509.23946): explore, a short plan; then execute, the steps that follow it.

    p(plan, execution | question) = p(plan | question) p(execution | plan, question)

    1  sft on plans with executions that were written from them
    2  grpo, wide and hot: 32 answers at temperature 1.3, the plain reward
    3  grpo with   A_{i,t} = w A_i  before the end of the plan, A_i from there on        w = 2
                   reward  = (steps of the plan that the execution takes) / (steps of the plan) if right, else 0

A plan is the solution's steps without what they compute (`teacher=task`), or what a teacher distils. To answer, many plans are drawn
and few are carried out (`decode`, see `decoding/exploring.py`). Weight 1 without coverage is grpo.

EF-SFT takes a model that plans to a new domain by its plans alone: `learn=plan steps=0`, from the folder of such a model.

Departures: an answer without a plan is left at weight 1, where the released code weights all of it (`missing=whole`), which
learns most from leaving the plan out; stages 2 and 3 are short, and the second is off by default. Both take grpo's switches:
`dynamic=true` is DAPO's sampling, `overlong_buffer` its soft punishment, which the release has on. One plan at random is
`decode=all explore=1`. An answer is wherever the task finds it, not within the last 300 characters. A model that judges its own
plans (E2C-Select), a loop that revises its plan after execution, old rows among those of EF-SFT, and coefficients of entropy and
KL for each part (0 in the release), are not here.

    whet run e2c
    whet run e2c decode=cluster explore=16
    whet run e2c learn=plan steps=0 --model runs/e2c/model --task word-problem:level=3
"""

from __future__ import annotations

from typing import Any

from whet.advantages.segments import plan_weight
from whet.decoding import Explore, Following
from whet.errors import WhetError, unknown
from whet.recipes.recipe import Recipe, recipe
from whet.recipes.reinforced.grpo import grpo
from whet.recipes.supervised.sft import sft_on
from whet.rewards.coverage import covered
from whet.sources import get_teacher
from whet.sources.planned import Distilled, Planned
from whet.training.optimizer import Rate

DECODES = ("policy", "all", "cluster")


@recipe(paper="e2c", parent="grpo", task="chain-sum:level=4")
def e2c(
    warm: int = 100,
    warm_batch: int = 32,
    warm_lr: float | Rate = Rate(small=5e-4, paper=2e-5),
    pairs: str = "causal",
    learn: str = "all",
    teacher: str = "task",
    wide: int = 0,
    steps: int = 40,
    weight: float = 2.0,
    missing: str = "plain",
    coverage: bool = True,
    decode: str = "policy",
    explore: int = 8,
    clusters: int = 3,
    plan_temperature: float = 0.9,
    plan_budget: int = 128,
    execution_temperature: float = 0.0,
    **training: Any,
) -> Recipe:
    """Plan, then execute: learnt from pairs, then reinforced with more weight on the plan.

    Args:
        warm: steps of sft on plans and executions; 0 leaves it out.
        warm_batch: pairs a step of it.
        warm_lr: its learning rate.
        pairs: causal, or shuffled: plans beside other problems' executions, which teach to ignore them.
        learn: all of a pair, or its plan alone (EF-SFT).
        teacher: who writes the pairs: task (its solutions), model:NAME, or http://HOST:PORT/v1#NAME.
        wide: steps of the first reinforced stage; 0 leaves it out.
        steps: steps of the second; 0 leaves it out.
        weight: of plan tokens in the second (lambda); 1 is plain grpo.
        missing: weight of an answer without a plan in the second: plain is 1, whole is that of a plan.
        coverage: whether a right answer of the second is worth the share of its plan that was carried out.
        decode: policy answers by itself; of several plans all or cluster says which are carried out.
        explore: plans for an answer (K).
        clusters: plans carried out with decode=cluster, at most (M); 0 is all.
        plan_temperature: of these plans.
        plan_budget: most tokens of a plan.
        execution_temperature: of what is carried out; 0 is greedy.
    """
    if decode not in DECODES:
        raise unknown("decode", decode, DECODES)
    if not warm and not wide and not steps:
        raise WhetError("e2c: warm, wide and steps are all 0, so nothing is learnt")
    if teacher != "task" and (pairs, learn) != ("causal", "all"):
        raise WhetError("e2c: a teacher's pairs are causal and learnt whole; leave out pairs and learn")
    if coverage and steps and training.get("reward"):
        raise WhetError("e2c: coverage is the reward of the second stage; with a reward of your own set coverage=false")
    stages = []
    if warm:
        collect = Planned(pairs, learn) if teacher == "task" else Distilled(teacher=get_teacher(teacher))
        stages += sft_on(collect, steps=warm, batch=warm_batch, lr=warm_lr).stages
        stages[-1].name = "pairs"
    if wide:
        stages += grpo(**{**training, "steps": wide, "group": 32, "temperature": 1.3}).stages
        stages[-1].name = "explore"
    if steps:
        stages += grpo(**{**training, "steps": steps, **({"reward": covered()} if coverage else {})}).stages
        stages[-1].transforms = [*stages[-1].transforms, plan_weight(weight, missing)]
        stages[-1].name = "execute"
    if decode == "policy":
        return Recipe(stages, Following())
    carried = clusters if decode == "cluster" else 0
    return Recipe(stages, Explore(explore, carried, plan_temperature, execution_temperature, plan_budget))
