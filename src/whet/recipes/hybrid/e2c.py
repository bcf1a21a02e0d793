"""E2C (2509.23946): explore, a short plan; then execute, the steps that follow it.

    p(plan, execution | question) = p(plan | question) p(execution | plan, question)

    1  sft on plans with executions that were written from them
    2  grpo, wide and hot: 32 answers at temperature 1.3, the plain reward
    3  grpo with   A_{i,t} = w A_i  before the end of the plan, A_i from there on        w = 2
                   reward  = (steps of the plan that the execution takes) / (steps of the plan) if right, else 0

A plan is the solution's steps without what they compute (`teacher=task`), or what a teacher distils. To answer, many plans are drawn
and few are carried out (`decode`, see `decoding/exploring.py`). Weight 1 without coverage is grpo.

Departures: an answer without a plan is left at weight 1, where the released code weights all of it (`missing=whole`), which
learns most from leaving the plan out; stages 2 and 3 are short, and the second is off by default. Both take grpo's switches:
`dynamic=true` is DAPO's sampling, `overlong_buffer` its soft punishment, which the release has on. One plan at random is
`decode=all explore=1`. An answer is wherever the task finds it, not within the last 300 characters. A loop that revises its
plan after execution, and coefficients of entropy and KL for each part (0 in the release), are not here.

    whet run e2c
    whet run e2c decode=cluster explore=16
"""

from __future__ import annotations

from typing import Any

from whet.advantages.segments import plan_weight
from whet.decoding import Explore, Following
from whet.errors import WhetError, unknown
from whet.recipes.recipe import Recipe, recipe
from whet.recipes.reinforced.grpo import grpo
from whet.recipes.supervised.sft import sft
from whet.rewards.coverage import covered
from whet.sources import Collector, Rollouts, get_teacher
from whet.sources.planned import Branches, Distilled, Planned
from whet.tasks import get_task
from whet.training.optimizer import Rate

DECODES = ("policy", "all", "cluster", "judge")
TASK = "chain-sum:level=4"


@recipe(paper="e2c", parent="grpo", task=TASK)
def e2c(
    warm: int = 100,
    warm_batch: int = 32,
    warm_lr: float | Rate = Rate(small=5e-4, paper=2e-5),
    pairs: str = "causal",
    teacher: str = "task",
    wide: int = 0,
    wide_group: int = 32,
    wide_temperature: float = 1.3,
    steps: int = 60,
    weight: float = 2.0,
    missing: str = "plain",
    coverage: bool = True,
    branches: int = 0,
    decode: str = "policy",
    explore: int = 8,
    clusters: int = 3,
    plan_temperature: float = 0.9,
    plan_budget: int = 128,
    execution_temperature: float = 0.0,
    encoder: str = "policy",
    **training: Any,
) -> Recipe:
    """Plan, then execute: learnt from pairs, then reinforced with more weight on the plan.

    Args:
        warm: steps of sft on plans and executions; 0 leaves it out.
        warm_batch: pairs a step of it.
        warm_lr: its learning rate.
        pairs: causal, or shuffled: plans beside other problems' executions, which teach to ignore them.
        teacher: who writes the pairs: task (its solutions), model:NAME, or http://HOST:PORT/v1#NAME.
        wide: steps of the first reinforced stage; 0 leaves it out.
        wide_group: its answers for each problem.
        wide_temperature: its temperature.
        steps: steps of the second; 0 leaves it out.
        weight: of plan tokens in the second (lambda); 1 is plain grpo.
        missing: weight of an answer without a plan in the second: plain is 1, whole is that of a plan.
        coverage: whether a right answer of the second is worth the share of its plan that was carried out.
        branches: executions below each sampled plan in the second; 0 samples whole answers.
        decode: policy answers by itself; of several plans all, cluster or judge says which are carried out.
        explore: plans for an answer (K).
        clusters: plans carried out with decode=cluster, at most (M).
        plan_temperature: of these plans.
        plan_budget: most tokens of a plan.
        execution_temperature: of what is carried out; 0 is greedy.
        encoder: whose vectors are clustered: policy, ngrams, or the name of a sentence model.
    """
    if decode not in DECODES:
        raise unknown("decode", decode, DECODES)
    if not warm and not wide and not steps:
        raise WhetError("e2c: warm, wide and steps are all 0, so nothing is learnt")
    if coverage and steps and training.get("reward"):
        raise WhetError("e2c: coverage is the reward of the second stage; with a reward of your own set coverage=false")
    stages = []
    if warm:
        source: Collector = Planned(pairs) if teacher == "task" else Distilled(get_teacher(teacher))
        stages += sft(steps=warm, batch=warm_batch, lr=warm_lr).stages
        stages[-1].collect, stages[-1].name = source, "pairs"
    if wide:
        hot = {"group": wide_group, "temperature": wide_temperature, "steps": wide}
        stages += grpo(**{**training, **hot}).stages
        stages[-1].name = "explore"
    if steps:
        stages += grpo(**{**training, "steps": steps, **({"reward": covered()} if coverage else {})}).stages
        stage = stages[-1]
        stage.name, stage.transforms = "execute", [*stage.transforms, plan_weight(weight, missing)]
        if branches:
            stage.collect = _branching(stage.collect, branches, plan_budget)
    if decode == "policy":
        return Recipe(stages, Following())
    return Recipe(
        stages,
        Explore(explore, decode, clusters, plan_temperature, execution_temperature, plan_budget, encoder=encoder),
    )


@recipe(paper="e2c", parent="sft", task="word-problem:level=3")
def ef_sft(original: str = TASK, warm: int = 100, replay: float = 0.1, learn: str = "plan", **training: Any) -> Recipe:
    """EF-SFT: to a new domain by its plans alone; how to carry one out is known.

    Args:
        original: the task where plans and executions are learnt first; `word-problem:level=2`.
        warm: steps of that.
        replay: share of rows from it afterwards, learnt whole, so that it is not forgotten.
        learn: plan, or all of the new domain's rows.
    """
    if not training.get("rationale", True):
        raise WhetError("ef-sft learns plans and no demonstrations: leave out rationale")
    known = get_task(original)
    made = sft(**training)
    made.stages[0].collect = Planned(learn=learn, original=known if replay else None, keep=replay)
    made.stages[0].name = "plans"
    if warm:
        (first,) = sft(steps=warm, batch=made.stages[0].batch).stages
        first.collect, first.task, first.name = Planned(), known, "pairs"
        made.stages.insert(0, first)
    made.answering = Following()
    return made


def _branching(collect: Collector, executions: int, budget: int) -> Rollouts:
    assert isinstance(collect, Rollouts)
    plans, left = divmod(collect.group, executions)
    if left or plans < 1:
        raise WhetError(f"e2c: a group of {collect.group} answers does not branch into {executions} below each plan")
    given = collect.settings.max_new_tokens if collect.own_budget else 0
    return Rollouts(max_new_tokens=given, temperature=collect.temperature, plan=Branches(plans, executions, budget))
