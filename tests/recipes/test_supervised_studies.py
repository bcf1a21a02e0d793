"""The studies of the papers whose parts are choices, guidance, curation and mixtures: arms that can run, criteria that judge."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from whet.arms import parse_arms
from whet.evaluation.scores import ON, START, Cell, Scores
from whet.recipes.recipe import get_recipe
from whet.study import get_study
from whet.tasks import get_task

SLUGS = ("pinto", "sgft", "pensez", "cocktail", "opt-r")


def cells(slug: str, value: Any, seeds: int = 3) -> Scores:
    """Every arm's cells, with the metric that `value(arm, metric)` says."""
    study = get_study(slug)
    others = study.settings.get("others", [])
    own = [m for m in study.metrics if not m.startswith(ON)]

    def one(arm: str, seed: int | None) -> Cell:
        rng = random.Random(f"{arm}/{seed}")
        found = {
            m: min(1.0, max(0.0, value(arm, m) + rng.uniform(-0.005, 0.005))) for m in [*own, *(ON + o for o in others)]
        }
        greedy = "".join("1" if i < round(200 * found["accuracy"]) else "0" for i in range(200))
        spread = {o: {"before": 0.0, "after": found[ON + o]} for o in others}
        curve = [{"step": 1, "share": 1.0, "flops": 1.0, "accuracy": found["accuracy"]}]
        return Cell(arm, seed, "k", {}, "d", study.task, {"hash": "h"}, {m: found[m] for m in own},
                    {"greedy": greedy, "k": 0, "sampled": ""}, spread, curve)  # fmt: skip

    return Scores([one(START, None), *(one(arm, seed) for arm in study.arms for seed in range(seeds))])


@pytest.mark.parametrize("slug", SLUGS)
def test_every_arm_is_a_recipe_that_the_task_suits(slug: str) -> None:
    study = get_study(slug)
    task = get_task(study.task)
    for arm in parse_arms(study.arms):
        config = arm.config(study.task, 0, study.settings)
        get_recipe(config.recipe)(**config.arguments).check(task)
    for spec in study.settings.get("others", []):
        assert get_task(spec).problems("test", 1) and get_task(spec).spec() != task.spec()
    assert json.dumps(dict(study.settings)) and any(arm.startswith("sft") for arm in study.arms)
    assert {m.removeprefix(ON) for m in study.metrics if m.startswith(ON)} <= set(study.settings.get("others", []))


@pytest.mark.parametrize("slug", SLUGS)
def test_equal_arms_reproduce_nothing(slug: str) -> None:
    found = get_study(slug).judge(cells(slug, lambda arm, metric: 0.5))
    assert found.outcome != "reproduced"


def claimed(slug: str, arm: str, metric: str) -> float:
    """What would be measured if the claim held."""
    if slug == "pinto":
        return {"no rationale": 0.3, "standard": 0.5, "pinto": 0.7}.get(arm, 0.4)
    if slug == "sgft":
        return 0.8 if arm in ("sgft 100", "sgft 300") else 0.4
    if slug == "pensez":
        return {"pensez": 0.8, "translated traces": 0.8}.get(arm, 0.4)
    if slug == "cocktail":
        if arm.startswith("all but") and arm.removeprefix("all but ") in (
            "sum",
            "change",
            "ratio",
            "compare",
            "lookup",
        ):
            return 0.5
        return 0.8 if arm.startswith("all") else 0.4
    numerical = any(name in metric for name in ("chain-sum", "word-problem", "mod-chain")) or metric == "accuracy"
    if arm == START:
        return 0.5 if "explain=1" in metric else 0.3
    return 0.5 + (0.25 if numerical else 0.05) * (arm == "RE") + 0.001 * (hash_of(metric) % 3 - 1)


def hash_of(text: str) -> int:
    return random.Random(text).randrange(1000)


@pytest.mark.parametrize("slug", SLUGS)
def test_what_is_claimed_would_be_reproduced(slug: str) -> None:
    found = get_study(slug).judge(cells(slug, lambda arm, metric: claimed(slug, arm, metric)))
    assert found.outcome == "reproduced", found.why


def test_the_baseline_is_chosen_on_validation() -> None:
    scores = cells("sgft", lambda arm, metric: 0.9 if arm.endswith("high") else 0.4)
    from whet.study import best

    assert best(scores, "sft 1000", "sft 1000 high") == "sft 1000 high"
