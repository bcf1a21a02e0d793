"""The study of the menu: arms that can run, equal budgets, and a criterion that sees what it is about."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import pytest

from tiny import tiny_model
from whet.arms import parse_arms
from whet.evaluation.scores import START, Cell, Scores
from whet.models import base
from whet.recipes.recipe import get_recipe
from whet.recipes.sparse.peft_survey_study import MEMBERS
from whet.study import get_study
from whet.tasks import get_task
from whet.weights import get_weights, menu

STUDY = get_study("peft-survey")
TRUE = {"full": 0.8, "lift": 0.8, "lora-1": 0.6, "lora-4": 0.75, "lora-16": 0.8, "prompt": 0.4}
LOST = {"full": 0.3, "lift": 0.1, "lora-4": 0.15}


def scores(accuracy: Mapping[str, float], lost: Mapping[str, float]) -> Scores:
    """Cells whose accuracy and loss on other tasks grow evenly over the run; the high rate is a little worse on validation."""

    def one(arm: str, seed: int | None) -> Cell:
        name, rng = arm.removesuffix(" high"), random.Random(f"{arm}/{seed}")
        end = accuracy.get(name, 0.5) - 0.05 * arm.endswith("high") + rng.uniform(-0.005, 0.005)
        curve = [{"step": i, "share": i / 6, "flops": 1.0, "accuracy": 0.1 + (end - 0.1) * i / 6,
                  "others": 0.9 - lost.get(name, 0.3) * i / 6} for i in range(7)]  # fmt: skip
        answers = {"greedy": "1" * round(1000 * end) + "0" * (1000 - round(1000 * end)), "k": 0, "sampled": ""}
        metrics: dict[str, Any] = dict.fromkeys(STUDY.metrics, 0.1) | {"accuracy": end}
        others = {"sort": {"before": 0.9, "after": 0.9 - lost.get(name, 0.3)}}
        return Cell(arm, seed, "k", {}, "d", STUDY.task, {"hash": "h"}, metrics, answers, others, curve)

    return Scores([one(START, None), *(one(arm, seed) for arm in STUDY.arms for seed in range(3))])


def test_every_arm_is_a_choice_of_the_menu_at_two_rates() -> None:
    task, families = get_task(STUDY.task), set()
    for arm in parse_arms(STUDY.arms):
        config = arm.config(STUDY.task, 0, STUDY.settings)
        get_recipe(config.recipe)(**config.arguments).check(task)
        assert get_weights(config.weights).cost(tiny_model()).moving > 0
        families.add(menu()[config.weights.partition(":")[0]].family)
    assert families == {c.family for c in menu().values()} and len(STUDY.arms) == 2 * len(MEMBERS)


def test_members_that_are_compared_move_as_many_entries() -> None:
    model = base.load("micro").model
    moving = {name: get_weights(weights).cost(model).moving for name, (weights, *_) in MEMBERS.items()}
    matched = [moving[name] for name in ("lift", "bottleneck", "lora-4", "lora-norms")]
    assert max(matched) < 1.2 * min(matched) and moving["lora-4"] == 4 * moving["lora-1"] == moving["lora-16"] / 4


def test_the_claim_is_reproduced_where_it_holds() -> None:
    found = STUDY.judge(scores(TRUE, LOST))
    assert found.outcome == "reproduced" and "high" not in found.why, found.why


@pytest.mark.parametrize(
    ("accuracy", "lost"),
    [({"lora-1": 0.9}, {}), ({"prompt": 0.9}, {}), ({}, {"lift": 0.5}), ({}, {"lora-4": 0.5})],
)
def test_each_part_of_the_claim_can_fail(accuracy: dict[str, float], lost: dict[str, float]) -> None:
    assert STUDY.judge(scores(TRUE | accuracy, LOST | lost)).outcome == "not reproduced"
