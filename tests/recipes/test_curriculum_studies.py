"""The studies of sec and acereason: arms that can run, and criteria that judge."""

from __future__ import annotations

import random
from typing import Any

import pytest

from whet.arms import parse_arms
from whet.cells import _curve
from whet.errors import WhetError
from whet.evaluation.scores import ON, START, Cell, Scores
from whet.recipes.recipe import get_recipe
from whet.runs import RunFolder
from whet.study import Judgement, get_study
from whet.tasks import get_task

SLUGS = ("sec", "acereason")


def scores(slug: str, value: Any, rise: float = 0.0) -> Scores:
    """Every arm's cells, with the accuracy that `value(arm)` says, and levels that rise by so much."""
    study = get_study(slug)
    others = study.settings.get("others", [])

    def one(arm: str, seed: int | None) -> Cell:
        rng = random.Random(f"{arm}/{seed}")
        found = value(arm) + rng.uniform(-0.004, 0.004)
        greedy = "".join("1" if i < round(200 * found) else "0" for i in range(200))
        curve = [{"step": s, "share": s / 2, "flops": 1.0, "accuracy": found, **({"problems/level": 2.0 + s * rise / 2} if s else {})}
                 for s in range(3)]  # fmt: skip
        return Cell(arm, seed, "k", {}, "d", study.task, {"hash": "h"}, {"accuracy": found}, {"greedy": greedy, "k": 0, "sampled": ""},
                    {o: {"before": 0.0, "after": found} for o in others}, curve)  # fmt: skip

    return Scores([one(START, None), *(one(arm, seed) for arm in study.arms for seed in range(3))])


def judge(slug: str, rise: float = 0.0, **values: float) -> Judgement:
    named = {name.replace("_", " "): v for name, v in values.items()}
    return get_study(slug).judge(scores(slug, lambda arm: named.get(arm, named["rest"]), rise))


@pytest.mark.parametrize("slug", SLUGS)
def test_every_arm_is_a_recipe_that_the_task_suits(slug: str) -> None:
    study = get_study(slug)
    task = get_task(study.task)
    for arm in parse_arms(study.arms):
        config = arm.config(study.task, 0, study.settings)
        get_recipe(config.recipe)(**config.arguments).check(task)
    others = study.settings.get("others", [])
    assert {m.removeprefix(ON) for m in study.metrics if m.startswith(ON)} == set(others)
    assert all(get_task(spec).spec() == spec and get_task(spec).problems("test", 1) for spec in others)
    assert set(study.controls) >= {"sft", "sft high"}


def test_sec() -> None:
    ranked = {"rest": 0.6, "hard-to-easy": 0.3}
    assert get_study("sec").judge(scores("sec", lambda arm: ranked.get(arm, 0.6), 0.5)).outcome == "reproduced"
    assert judge("sec", rise=0.5, rest=0.6).outcome != "reproduced", "the control must be worse"
    still = get_study("sec").judge(scores("sec", lambda arm: ranked.get(arm, 0.6), -0.5))
    assert still.outcome == "not reproduced" and "mean level drawn by sec, last look - first is -0." in still.why
    assert judge("sec", rise=0.5, rest=0.6, sec=0.2).outcome == "not reproduced"
    with pytest.raises(WhetError, match="two are needed"):
        one = scores("sec", lambda arm: 0.5)
        for cell in one.cells["sec"]:
            del cell.curve[1:]  # type: ignore[attr-defined]
        get_study("sec").judge(one)


def test_acereason() -> None:
    extremes = {"cold": 0.5, "hot": 0.2}
    found = get_study("acereason").judge(scores("acereason", lambda arm: extremes.get(arm, 0.7)))
    assert found.outcome == "reproduced"
    assert judge("acereason", rest=0.6).outcome != "reproduced"
    assert judge("acereason", rest=0.6, cold=0.9).outcome == "not reproduced"
    swept = {"cold": 0.5, "hot": 0.5, "entropy 0.3": 0.2, "entropy 0.1": 0.7}
    found = get_study("acereason").judge(scores("acereason", lambda arm: swept.get(arm, 0.5)))
    assert found.outcome == "reproduced" and "entropy 0.1" in found.why, "the target is chosen on validation"


def test_the_curve_keeps_what_the_last_step_showed(tmp_path: Any) -> None:
    folder = RunFolder(tmp_path)
    for row in ({"step": 0, "validation/accuracy": 0.1}, {"step": 1, "share": 0.5, "flops": 3.0, "problems/level": 1.5, "reward": 1.0},
                {"step": 1, "validation/accuracy": 0.2}):  # fmt: skip
        folder.append_metrics(row)
    assert _curve(folder) == [{"step": 0, "share": 0.0, "flops": 0.0, "accuracy": 0.1},
                              {"step": 1, "share": 0.5, "flops": 3.0, "problems/level": 1.5, "accuracy": 0.2}]  # fmt: skip
