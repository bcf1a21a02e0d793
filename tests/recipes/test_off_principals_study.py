"""The study of off-principals: arms that can run, and a criterion that sees what it is about."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from tiny import tiny_model
from whet.arms import parse_arms
from whet.evaluation.probes import GEOMETRY, get_probes
from whet.evaluation.scores import START, Cell, Scores
from whet.probes.agreement import sketch
from whet.recipes.recipe import get_recipe
from whet.recipes.sparse.off_principals_study import distance
from whet.study import get_study
from whet.tasks import get_task
from whet.weights import get_weights

STUDY = get_study("off-principals")
CLAIMED = {
    "geometry/drift_by_change": {"grpo": 0.05}, "geometry/angle_by_change": {"grpo": 0.05},
    "geometry/top_principal": {"grpo": 0.1}, "geometry/principal": {"grpo": 0.15},
    "geometry/change": {"grpo": 0.3, "sft-low": 0.35, "sft": 0.9},
}  # fmt: skip


def scores(values: Any, curves: dict[str, float], shared: float = 0.0) -> Scores:
    """Cells with metrics `values[metric][arm]` (0.5 where nothing is said), flat curves, and masks that share some entries."""
    common = torch.rand(28, 4000, generator=torch.Generator().manual_seed(9)) < 0.2

    def one(arm: str, seed: int | None) -> Cell:
        rng = random.Random(f"{arm}/{seed}")
        metrics = {m: values.get(m, {}).get(arm, 0.5) + rng.uniform(-0.002, 0.002) for m in STUDY.metrics}
        draw = torch.Generator().manual_seed(rng.randrange(1 << 30))
        own = torch.rand(28, 4000, generator=draw) < 0.2
        masks = torch.where(torch.rand(28, 4000, generator=draw) < shared, common, own)
        text = sketch({f"m{i}": mask for i, mask in enumerate(masks)})
        at = curves.get(arm, 0.5) + rng.uniform(-0.002, 0.002)
        curve = [{"step": i, "share": i / 4, "flops": 1.0, "accuracy": at, "sampled_kl": at} for i in range(5)]
        return Cell(arm, seed, "k", {}, "d", STUDY.task, {"hash": "h"}, metrics, {"greedy": "10", "k": 0, "sampled": ""},
                    {}, curve, sketches={"changed": text, "moved most": text})  # fmt: skip

    return Scores([one(START, None), *(one(arm, seed) for arm in STUDY.arms for seed in range(3))])


def test_every_arm_is_a_recipe_with_weights_that_the_task_suits() -> None:
    task, model = get_task(STUDY.task), tiny_model()
    sizes = {}
    for arm in parse_arms(STUDY.arms):
        config = arm.config(STUDY.task, 0, STUDY.settings)
        get_recipe(config.recipe)(**config.arguments).check(task)
        sizes[arm.label] = get_weights(config.weights).cost(model).moving
    assert sizes["principal"] == sizes["non-principal"] < sizes["random"] < sizes["grpo"] == sizes["sft"]
    assert get_probes(STUDY.settings["probes"])
    assert {m for m in STUDY.metrics if m.startswith("geometry/")} <= set(GEOMETRY.values())


def test_the_claim_is_reproduced_where_it_holds() -> None:
    found = STUDY.judge(scores(CLAIMED, {"principal": 0.3}, shared=0.6))
    assert found.outcome == "reproduced", found.why
    assert "sft-low" in found.why and " sft " not in found.why, "the arm of the nearest |dW|"


@pytest.mark.parametrize(
    "broken",
    [
        "geometry/drift_by_change",
        "geometry/angle_by_change",
        "geometry/top_principal",
        "geometry/principal",
        "jaccard",
        "masks",
    ],
)
def test_it_is_not_where_one_part_does_not_hold(broken: str) -> None:
    values = {name: {"grpo": 0.6} if name == broken else arms for name, arms in CLAIMED.items()}
    curves = {} if broken == "masks" else {"principal": 0.3}
    found = STUDY.judge(scores(values, curves, shared=0.0 if broken == "jaccard" else 0.6))
    assert found.outcome == ("not reproduced" if broken.startswith("geometry/") else "inconclusive"), found.why


def test_the_distance_of_curves_is_a_mean_over_looks() -> None:
    found = scores({}, {"principal": 0.3, "grpo": 0.5})
    assert distance(found, "principal", "accuracy") == pytest.approx([0.2] * 3, abs=0.005)
    assert distance(found, "grpo", "sampled_kl") == [0.0] * 3


def test_the_masks_of_the_paper_on_one_model() -> None:
    """principal and non-principal share nothing and leave nothing; safe holds non-principal."""
    model = tiny_model()
    principal, other, safe = (get_weights(name).select(model) for name in ("principal", "non-principal", "safe"))  # type: ignore[attr-defined]
    assert principal.keys() == other.keys() == safe.keys()
    for name, mask in principal.items():
        assert torch.equal(mask, ~other[name]) and bool((safe[name] >= other[name]).all())
        small = model.get_parameter(name).abs().flatten().argsort()[: round(0.586 * mask.numel())]
        assert bool(safe[name].flatten()[small].all())
