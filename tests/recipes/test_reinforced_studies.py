"""The studies of memories and of streams of tasks: arms that can run, and criteria that judge cells either way."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from whet.arms import parse_arms
from whet.evaluation.scores import START, Cell, Scores
from whet.recipes.recipe import get_recipe
from whet.study import get_study
from whet.tasks import get_task

SEEDS = range(4)


def scores(
    slug: str, value: Callable[[str, str, int], float], learnt: Callable[[str], float] = lambda arm: 100.0
) -> Scores:
    """Every arm's cells: `value(arm, metric, seed)` of each metric, `learnt(arm)` tokens learnt."""
    study = get_study(slug)
    names = [m for m in [*study.metrics, "accuracy"] if "@" not in m]

    def one(arm: str, seed: int) -> Cell:
        found = {m: value(arm, m, seed) for m in names}
        right = round(200 * min(1.0, max(0.0, found["accuracy"])))
        greedy = "1" * right + "0" * (200 - right)
        curve = [{"step": 1, "share": 1.0, "flops": 1.0, "accuracy": found["accuracy"]}]
        answers = {"greedy": greedy, "k": 4, "sampled": "".join(4 * c for c in greedy)}
        metrics = {**found, "mean@4": right / 200, "pass@4": right / 200}
        return Cell(arm, None if arm == START else seed, "k", {}, "d", study.task, {"hash": "h"}, metrics, answers, curve=curve,
                    compute={"learnt_tokens": learnt(arm)})  # fmt: skip

    return Scores([one(START, 0), *(one(arm, seed) for arm in study.arms for seed in SEEDS)])


@pytest.mark.parametrize("slug", ["memory-rl", "rif-rft"])
def test_every_arm_is_a_recipe_that_the_task_suits(slug: str) -> None:
    study = get_study(slug)
    assert study.seeds == 4
    for arm in parse_arms(study.arms):
        config = arm.config(study.task, 0, study.settings)
        get_recipe(config.recipe)(**config.arguments).check(get_task(study.task))


def test_memory() -> None:
    def claimed(arm: str, metric: str, seed: int) -> float:
        return {"memory-r": 0.7 + 0.005 * seed, "memory-r+": 0.6}.get(arm, 0.4 + 0.03 * seed)

    judge = get_study("memory-rl").judge
    assert judge(scores("memory-rl", claimed)).outcome == "reproduced"
    assert judge(scores("memory-rl", lambda arm, metric, seed: 0.4 + 0.03 * seed)).outcome == "inconclusive"
    worse = judge(scores("memory-rl", lambda arm, metric, seed: 1 - claimed(arm, metric, seed)))
    assert worse.outcome == "not reproduced"

    def unsteady(arm: str, metric: str, seed: int) -> float:
        return 0.7 + 0.05 * seed if arm.startswith("memory") else 0.4 + 0.02 * seed

    found = judge(scores("memory-rl", unsteady))
    assert (
        found.outcome == "not reproduced"
        and "deviation of mean@4 over seeds is 0.065 for memory-r and 0.026" in found.why
    )


FORGOTTEN = {"sft": -0.2, "sft high": -0.3, "grpo": -0.05, "rif": -0.05}


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        ({}, "reproduced"),
        ({"fm_max": {"grpo": -0.12}}, "not reproduced"),  # more than half of sft's
        ({"fm_max": {"sft": 0.0, "grpo": 0.0}}, "inconclusive"),  # where nothing is forgotten nothing is shown
        ({"new_accuracy": {"grpo": 0.6}}, "not reproduced"),
        ({"average_accuracy": {"rif": 0.7}}, "not reproduced"),
        ({"learnt": {"rif": 100.0}}, "not reproduced"),
    ],
)
def test_streams(change: dict[str, dict[str, float]], outcome: str) -> None:
    plain = {"fm_max": FORGOTTEN, "learnt": {"rif": 80.0}}

    def value(arm: str, metric: str, seed: int) -> float:
        wiggle = 0.002 * (seed % 2)
        return {**plain.get(metric, {}), **change.get(metric, {})}.get(arm, 0.0 if metric == "fm_max" else 0.8) - wiggle

    found = scores("rif-rft", value, lambda arm: {**plain["learnt"], **change.get("learnt", {})}.get(arm, 100.0))
    assert get_study("rif-rft").judge(found).outcome == outcome
