"""The studies of reft and two-stage: arms that can run, criteria that judge."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

import pytest

from whet.arms import parse_arms
from whet.evaluation.scores import START, Cell, Scores
from whet.recipes.recipe import get_recipe
from whet.study import get_study
from whet.tasks import get_task

Value = Callable[[str, str], float]


def cells(slug: str, value: Value, first: float = 0.3) -> Scores:
    """Every arm with three seeds; `first` is the accuracy on validation at the first look after the start."""
    study = get_study(slug)

    def one(arm: str, seed: int | None) -> Cell:
        rng = random.Random(f"{arm}/{seed}")

        def near(metric: str) -> float:
            return value(arm, metric) * (1 + rng.uniform(-0.005, 0.005))

        def text(share: float) -> str:
            return "".join("1" if i < round(400 * share) else "0" for i in range(400))

        found = {m: near(m) for m in study.metrics}
        looks = [{"step": i, "share": i / 2, "flops": 1.0, "accuracy": a} for i, a in enumerate((0.9, first))]
        looks.append({"step": 2, "share": 1.0, "flops": 1.0, "accuracy": found["accuracy"]})
        # one sampled answer a problem is its own majority
        answers = {"greedy": text(found["accuracy"]), "k": 0, "sampled": ""}
        return Cell(arm, seed, "k", {}, "d", study.task, {"hash": "h"}, found, answers, {}, looks)

    return Scores([one(START, None), *(one(arm, seed) for arm in study.arms for seed in range(study.seeds))])


@pytest.mark.parametrize("slug", ["reft", "two-stage"])
def test_every_arm_is_a_recipe_that_the_task_suits(slug: str) -> None:
    study = get_study(slug)
    for arm in parse_arms(study.arms):
        config = arm.config(study.task, 0, study.settings)
        get_recipe(config.recipe)(**config.arguments).check(get_task(study.task))
    assert json.dumps(dict(study.settings)) and len(study.arms) <= 6


def claimed(arm: str, metric: str) -> float:
    if metric == "tokens_per_answer":
        return 40.0 if arm == "two-stage" else 80.0
    return {"reft": 0.8, "two-stage": 0.7, "sft 10": 0.7}.get(arm, 0.5)


@pytest.mark.parametrize("slug", ["reft", "two-stage"])
def test_what_is_claimed_would_be_reproduced_and_equal_arms_are_not(slug: str) -> None:
    judge = get_study(slug).judge
    found = judge(cells(slug, claimed))
    assert found.outcome == "reproduced", found.why
    assert judge(cells(slug, lambda arm, metric: 0.5)).outcome == "not reproduced"


def test_reft_must_have_learnt_behind_its_warm_up() -> None:
    """The first look is the warm-up's; a start that was better still says nothing."""
    assert get_study("reft").judge(cells("reft", claimed, first=0.85)).outcome == "not reproduced"
    assert "above +0.03" in get_study("reft").judge(cells("reft", claimed)).why


@pytest.mark.parametrize(("tokens", "outcome"), [(66.0, "reproduced"), (70.0, "not reproduced")])
def test_the_answers_must_be_shorter_by_a_share(tokens: float, outcome: str) -> None:
    def value(arm: str, metric: str) -> float:
        return tokens if (arm, metric) == ("two-stage", "tokens_per_answer") else claimed(arm, metric)

    assert get_study("two-stage").judge(cells("two-stage", value)).outcome == outcome
