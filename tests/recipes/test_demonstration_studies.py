"""The studies of demonstrations within reinforcement: arms that can run, and criteria that judge cells either way."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from whet.arms import parse_arms
from whet.evaluation.scores import ON, START, Cell, Scores
from whet.recipes.recipe import get_recipe
from whet.study import get_study
from whet.tasks import get_task

SLUGS = ("relift", "prefix-rft")


def scores(slug: str, value: Callable[[str, str], float]) -> Scores:
    """Every arm's cells: `value(arm, metric)`, a little different from seed to seed."""
    study = get_study(slug)

    def one(arm: str, seed: int | None) -> Cell:
        found = {m: value(arm, m) + 0.002 * (seed or 0) for m in study.metrics if "@" not in m}
        right = round(200 * found["accuracy"])
        own = {m: v for m, v in found.items() if not m.startswith(ON)}
        others = {m.removeprefix(ON): {"before": 0.0, "after": v} for m, v in found.items() if m.startswith(ON)}
        curve = [{"step": 1, "share": 1.0, "flops": 1.0, "accuracy": found["accuracy"]}]
        return Cell(arm, seed, "k", {}, "d", study.task, {"hash": "h"}, own,
                    {"greedy": "1" * right + "0" * (200 - right), "k": 0, "sampled": ""}, others, curve)  # fmt: skip

    return Scores([one(START, None), *(one(arm, seed) for arm in study.arms for seed in range(3))])


@pytest.mark.parametrize("slug", SLUGS)
def test_every_arm_is_a_recipe_that_the_task_suits(slug: str) -> None:
    study = get_study(slug)
    task = get_task(study.task)
    for arm in parse_arms(study.arms):
        config = arm.config(study.task, 0, study.settings)
        made = get_recipe(config.recipe)(**config.arguments)
        made.check(task)
        assert sum(stage.steps for stage in made.stages) == 60, "equal steps"
    assert {m.removeprefix(ON) for m in study.metrics if m.startswith(ON)} == set(study.settings["others"])
    assert all(get_task(spec).problems("test", 1) for spec in study.settings["others"])


def relift(arm: str, metric: str) -> float:
    if metric == "demonstrations_used":
        return {"relift": 0.25, "rl": 0.0}.get(arm, 0.9)
    if "interest" in metric:
        return 0.6 if arm == "relift" else 0.02
    return 0.7 if arm in ("relift", "rl") else 0.5


def prefix_rft(arm: str, metric: str) -> float:
    gain = {"prefix-rft": 0.3, "tenth": 0.2}.get(arm, 0.0)
    return 0.4 + gain * (0.3 if "level=4" in metric else 1.0)


def head_to_head(arm: str, metric: str) -> float:
    return 0.5 if arm in ("reft", "relift", "prefix-rft") else 0.3


CLAIMED = {"relift": relift, "prefix-rft": prefix_rft, "head-to-head": head_to_head}


@pytest.mark.parametrize("slug", CLAIMED)
def test_what_is_claimed_would_be_reproduced(slug: str) -> None:
    found = get_study(slug).judge(scores(slug, CLAIMED[slug]))
    assert found.outcome == "reproduced", found.why


@pytest.mark.parametrize("slug", CLAIMED)
def test_equal_arms_reproduce_nothing(slug: str) -> None:
    found = get_study(slug).judge(scores(slug, lambda arm, metric: 0.4)).outcome
    assert found == ("inconclusive" if slug == "head-to-head" else "not reproduced"), "it asks for no margin"


@pytest.mark.parametrize(
    ("slug", "arm", "metric", "value"),
    [("relift", "relift", "interest", 0.1), ("relift", "rl", "interest", 0.58), ("relift", "relift", "sum", 0.6),
     ("relift", "relift", "used", 0.5), ("relift", "sft-low", "accuracy", 0.8), ("prefix-rft", "rft", "accuracy", 0.75),
     ("prefix-rft", "sft", "accuracy", 0.75), ("prefix-rft", "prefix-rft", "level=5", 0.41),
     ("prefix-rft", "tenth", "accuracy", 0.35), ("head-to-head", "reft", "accuracy", 0.1),
     ("head-to-head", "sft low", "accuracy", 0.6), ("head-to-head", "grpo", "accuracy", 0.6)],
)  # fmt: skip
def test_each_part_of_the_criterion_can_fail(slug: str, arm: str, metric: str, value: float) -> None:
    def measured(a: str, m: str) -> float:
        return value if a == arm and metric in m else CLAIMED[slug](a, m)

    assert get_study(slug).judge(scores(slug, measured)).outcome == "not reproduced"
