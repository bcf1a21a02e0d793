"""CorDA as a recipe and as a study: it is sft with those weights, and its decomposition spares what a sample needs."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from trained import trained_folder
from whet.arms import parse_arms
from whet.errors import WhetError
from whet.evaluation.scores import START, Cell, Scores
from whet.launch import run
from whet.models import base
from whet.models.policy import Policy
from whet.objectives import Context, as_objective, nll
from whet.recipes.recipe import get_recipe
from whet.records import Row
from whet.sources import calibration_rows
from whet.study import get_study
from whet.tasks import get_task
from whet.training.optimizer import Rate
from whet.weights.calibration import second_moments
from whet.weights.corda import Corda, decompose, divided
from whet.weights.selectors import matrices

QUICK: dict[str, Any] = {"test_n": 4, "validation_n": 4, "k": 0, "others": [], "eval_every": 0, "threads": 1, "task": "parity",
                         "steps": 2, "batch": 4}  # fmt: skip


def test_it_is_sft_with_its_weights_to_the_bit() -> None:
    model = trained_folder()
    own = run("corda", model=model, rank=4, rows=8, lr=1e-2, **QUICK)
    same = run("sft", model=model, weights="corda:rank=4,rows=8", lr=1e-2, **QUICK)
    ours, theirs = (dict(done.policy.named_parameters()) for done in (own, same))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


def test_its_settings() -> None:
    stage = get_recipe("corda")(mode="kpm", calibrate="sort;lists", rank=3, rows="64", peak="absolute").stages[0]
    weights: Any = stage.weights
    assert isinstance(weights, Corda) and (weights.mode, weights.rank, weights.alpha) == ("kpm", 3, 3.0)
    assert (weights.count, weights.tasks, weights.peak) == (64, ["sort", "lists"], "absolute")
    assert get_recipe("corda")().stages[0].updates[0].optimizer.lr == Rate(small=1e-3, paper=2e-5)
    with pytest.raises(WhetError, match="kpm keeps what its sample shows"):
        get_recipe("corda")(mode="kpm")


def loss(policy: Policy, rows: list[Row]) -> float:
    objective = as_objective(nll())
    with torch.no_grad():
        ((total, count),) = objective.total(Context(rows, {"policy": policy}, objective.counts(rows))).values()
    return float(total / count)


def test_the_directions_a_sample_uses_least_can_be_dropped() -> None:
    """A quarter of each matrix's directions: the loss on other rows of the sample's task, after a decomposition with the sample, with
    the size of its activations alone, and without it."""

    def dropped(context: Callable[[torch.Tensor], torch.Tensor | None]) -> float:
        policy = base.load("micro", device="cpu")
        sample = calibration_rows(policy, task, 0, 64)
        layers = {name.removesuffix(".weight"): p for name, p in matrices(policy.model).items()}
        moments = second_moments(policy, sample, list(layers), divided, per_sequence=True)
        with torch.no_grad():
            for name, weight in layers.items():
                u, sizes, v = decompose(weight, context(moments[name]))
                last = len(sizes) // 4
                weight -= (u[:, -last:] * sizes[-last:]) @ v[-last:]
        return loss(policy, calibration_rows(policy, task, 1, 64))

    task = get_task("sort:level=1")
    policy = base.load("micro", device="cpu")
    whole = loss(policy, calibration_rows(policy, task, 1, 64))
    ours, scaled, plain = (
        dropped(context) - whole for context in (lambda c: c, lambda c: torch.diag(c.diagonal().sqrt()), lambda c: None)
    )
    assert ours < 0.5 * scaled < 0.5 * plain


# -- the study -----------------------------------------------------------------------------------------------------------
def cells(value: Callable[[str], tuple[float, float]]) -> Scores:
    """Cells of all arms: `value(arm)` is how fast it learns and what it has lost where its accuracy is 1/2."""
    study = get_study("corda")

    def one(arm: str, seed: int | None) -> Cell:
        draw = random.Random(f"{arm}/{seed}")
        speed, lost = (v + draw.uniform(-0.002, 0.002) for v in value(arm))
        curve = []
        for look in range(5):
            accuracy = min(0.7, speed * look)
            curve.append(
                {
                    "step": look,
                    "share": look / 4,
                    "flops": float(look),
                    "accuracy": accuracy,
                    "others": 0.9 - 2 * lost * accuracy,
                }
            )
        metrics = {"accuracy": 0.7, "forgetting": lost}
        return Cell(arm, seed, "k", {"others_n": 4, "others_look_n": 4}, "d", study.task, {"hash": "h"}, metrics,
                    {"greedy": "10" * 50, "k": 0, "sampled": ""}, {}, curve)  # fmt: skip

    return Scores([one(START, None), *(one(arm, seed) for arm in study.arms for seed in range(3))])


def test_its_arms_are_runs() -> None:
    study = get_study("corda")
    for arm in parse_arms(study.arms):
        config = arm.config(study.task, 0, study.settings)
        get_recipe(config.recipe)(**config.arguments).check(get_task(study.task))
    kpm = get_recipe("corda")(**parse_arms({"kpm": study.arms["kpm"]})[0].settings).stages[0].weights
    assert kpm.tasks == ["word-problem:level=1", "sort:level=1", "lists:level=1"]


def claimed(arm: str) -> tuple[float, float]:
    return (0.4 if arm.startswith("ipm") else 0.2), (0.1 if arm in ("kpm", "kpm high") else 0.3)


@pytest.mark.parametrize(
    ("value", "outcome"),
    [(claimed, "reproduced"), (lambda arm: (0.2, 0.3), "inconclusive"),
     (lambda arm: (claimed(arm)[0], 0.1 if arm.startswith("kpm") else 0.3), "inconclusive"),
     (lambda arm: (0.2 if arm.startswith("ipm") else 0.4, claimed(arm)[1]), "not reproduced")],
    ids=["claimed", "equal", "any sample", "slow"],
)  # fmt: skip
def test_it_judges(value: Any, outcome: str) -> None:
    found = get_study("corda").judge(cells(value))
    assert found.outcome == outcome, found.why
