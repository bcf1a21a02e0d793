"""DRIFT as a recipe: which models it makes first, what it goes on from, and its study."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trained import trained_folder, trained_policy
from whet.arms import parse_arms
from whet.errors import WhetError
from whet.evaluation.scores import START, Cell, Scores
from whet.launch import resume, run
from whet.recipes.recipe import Recipe, get_recipe
from whet.study import get_study
from whet.tasks import get_task
from whet.training.fit import Fit
from whet.training.optimizer import Rate
from whet.training.options import Options

SMALL: dict[str, Any] = {"steps": 2, "batch": 4, "lr": 1e-2, "expert_tasks": "parity"}
FIRST: dict[str, Any] = {"first": "parity:level=2", "first_lr": 1e-2}
STUDY = get_study("drift")


def fitted(recipe: Recipe) -> dict[str, Tensor]:
    fit = Fit(trained_policy(), recipe.stages, get_task("parity"), options=Options(keep="last"))
    assert fit.run().finished
    return {n: p.detach().clone() for n, p in fit.policy.model.named_parameters()}


def test_its_stages() -> None:
    alone, far = (get_recipe("drift")(**{**SMALL, **more}).stages for more in ({}, FIRST))
    assert [(s.name, s.start) for s in alone] == [("expert", "last"), ("drift", "base")]
    assert [(s.name, s.start) for s in far] == [("expert", "last"), ("first", "base"), ("drift", "last")]
    given = get_recipe("drift")(steps=5, expert=trained_folder(), **FIRST).stages
    assert [(s.name, s.start, s.steps) for s in given] == [("first", "last", 5), ("drift", "last", 5)]
    shown: list[Any] = [s.collect for s in far]
    assert [c.rationale for c in shown] == [True, False, True]
    assert [s.updates[0].optimizer.lr for s in far] == [Rate(small=5e-4, paper=1e-5), 1e-2, 1e-2]
    assert get_recipe("drift")().stages[-1].updates[0].optimizer.lr == Rate(small=5e-4, paper=1e-6)


def test_the_expert_is_what_its_stage_ends_with() -> None:
    """The direction is from the model that training starts from to that, with a stage between and without."""
    for more in ({}, FIRST):
        made = get_recipe("drift")(**{**SMALL, **more, "rescale": False, "mode": "absolute", "lr": 0.0})
        ended = fitted(made)  # the last stage leaves its start as it is
        (alone,) = get_recipe("sft")(steps=2, batch=4).stages
        alone.problems = get_recipe("drift")(**SMALL).stages[0].problems
        expert = fitted(Recipe([alone]))
        weights: Any = made.stages[-1].weights
        assert weights.directions
        for name, d in weights.directions.items():
            torch.testing.assert_close(d, expert[name] - ended[name], rtol=1e-4, atol=1e-6)


def test_no_strength_is_sft_to_the_bit() -> None:
    sft = fitted(get_recipe("sft")(steps=2, batch=4, lr=1e-2))
    given = {"steps": 2, "batch": 4, "lr": 1e-2, "expert": trained_folder(style="plain"), "modules": "mlp"}
    none, some, merged = (
        fitted(get_recipe("drift")(**given, **more)) for more in ({"alpha": 0}, {}, {"alpha": 0, "merge": 0.2})
    )
    assert all(torch.equal(sft[n], none[n]) for n in sft)
    assert any(not torch.equal(sft[n], some[n]) for n in sft) and any(not torch.equal(sft[n], merged[n]) for n in sft)


@pytest.mark.parametrize("stopped_after", [1, 3, 5])
def test_it_resumes_in_each_of_its_stages(stopped_after: int, tmp_path: Path) -> None:
    settings = {**SMALL, **FIRST, "task": "parity", "model": trained_folder(), "inside": "random:density=0.3",
                "test_n": 4, "validation_n": 4, "k": 0, "others": [], "eval_every": 0}  # fmt: skip
    whole = run("drift", **settings).policy
    step = iter(range(1, 100))
    run("drift", out=tmp_path / "halted", stop=lambda: next(step) >= stopped_after, **settings)
    again = resume(tmp_path / "halted").policy
    ours, theirs = dict(whole.named_parameters()), dict(again.named_parameters())
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"expert": "base", "expert_steps": 3}, "leave expert_tasks and expert_steps out"),
        ({"origin": "base"}, "name that as expert"),
        ({"first_steps": 3}, "name them by first"),
        ({"expert": "no/such/folder"}, "no such folder"),
        ({"inside": "lora"}, "lora does not train"),
    ],
)
def test_it_refuses(given: dict[str, Any], told: str) -> None:
    with pytest.raises(WhetError, match=told):
        get_recipe("drift")(**given)


# -- the study -----------------------------------------------------------------------------------------------------------
def scores(values: dict[str, float]) -> Scores:
    def one(arm: str, seed: int | None) -> Cell:
        rng = random.Random(f"{arm}/{seed}")
        at = values.get(arm, 0.5) + rng.uniform(-0.002, 0.002)
        greedy = "".join("1" if i < round(400 * at) else "0" for i in range(400))
        curve = [{"step": i, "share": i / 4, "flops": 1.0, "accuracy": at} for i in range(5)]
        return Cell(arm, seed, "k", {}, "d", STUDY.task, {"hash": "h"}, dict.fromkeys(STUDY.metrics, at),
                    {"greedy": greedy, "k": 0, "sampled": ""}, {}, curve)  # fmt: skip

    return Scores([one(START, None), *(one(arm, seed) for arm in STUDY.arms for seed in range(3))])


def test_every_arm_is_a_run_from_the_same_two_models() -> None:
    task = get_task(STUDY.task)
    made = {}
    for arm in parse_arms(STUDY.arms):
        config = arm.config(STUDY.task, 0, STUDY.settings)
        made[arm.label] = get_recipe(config.recipe)(**config.arguments)
        made[arm.label].check(task)
    for recipe in made.values():
        assert [(s.name, s.steps) for s in recipe.stages[:2]] == [("expert", 80), ("first", 90)]
        assert recipe.stages[2].steps == 60


def test_the_claim_is_judged_by_all_of_its_parts() -> None:
    holds = {"adaptive high": 0.6, "merge 0.3": 0.2, "untrained": 0.3}
    found = STUDY.judge(scores(holds))
    assert found.outcome == "reproduced" and "adaptive high - sft" in found.why and "untrained - merge 0.3" in found.why
    for broken in ({"sft": 0.7}, {"random": 0.65}, {"merge 0.3": 0.4}):
        assert STUDY.judge(scores({**holds, **broken})).outcome == "not reproduced"
    assert STUDY.judge(scores({})).outcome != "reproduced"
