"""What a method remembers goes on bit for bit after a stop: curricula, memories, buffers, value heads, schedules, moments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trained import trained_policy
from whet.recipes.recipe import get_recipe
from whet.runs import RunFolder
from whet.tasks import get_task
from whet.training.fit import Fit, Options

RL: dict[str, Any] = {"steps": 4, "batch": 4, "group": 4, "lr": 1e-3}
PPO: dict[str, Any] = {"warm": 2, "limit": 24, "steps": 3, "batch": 8, "lr": 1e-3}
# recipe -> its arguments, and the steps after which it is stopped
CASES: dict[str, tuple[dict[str, Any], int]] = {
    "sec": ({**RL, "by": "level", "tau": 0.2}, 2),
    "memory-rl": ({**RL, "encoder": "ngrams", "after": 2, "window": 9}, 2),
    "relift": ({**RL, "threshold": 3, "sft_lr": 1e-3}, 2),
    "prefix-rft": (RL, 2),
    "rif-rft": ({**RL, "tasks": "parity", "pool": 12, "samples": 2}, 2),
    "acereason": ({**RL, "sft_steps": 0, "budgets": [1.0], "follow": 0.5, "looks": 4, "pool": 12}, 2),
    "reft": (PPO, 3),
    "carft": ({**PPO, "signal": "both", "weight": 0.5, "near_partial": True}, 3),
    "long-cot": ({**RL, "sft_steps": 0}, 2),
}
TASKS = {"long-cot": "noisy:rate=0.25:rows=24|parity"}


def fitted(name: str, folder: Path, stop: int = 0, resume: bool = False) -> Fit:
    folder.mkdir(exist_ok=True)
    count = iter(range(1, 100))
    options = Options(seed=3, stop=(lambda: next(count) >= stop) if stop else None)
    stages = get_recipe(name)(**CASES[name][0]).stages
    fit = Fit(
        trained_policy(),
        stages,
        get_task(TASKS.get(name, "parity:level=1-2")),
        options=options,
        folder=RunFolder(folder),
    )
    assert fit.run(resume=resume).finished == (not stop)
    return fit


def remembered(fit: Fit) -> dict[str, Any]:
    """Weights (those of a value head too), what the last stage's parts hold, and the optimizers' moments."""
    return {
        "weights": {n: p.detach() for n, p in fit.policy.named_parameters()},
        "stage": fit.stages[-1].state_dict(),
        "learners": [learner.state_dict() for learner in fit.learners],
    }


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return bool(np.array_equal(a, b))
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, Sequence) and not isinstance(a, str):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


@pytest.mark.parametrize("name", CASES)
def test_a_stop_changes_nothing_that_is_remembered(name: str, tmp_path: Path) -> None:
    stop = CASES[name][1]
    whole = remembered(fitted(name, tmp_path / "whole"))
    halted = remembered(fitted(name, tmp_path / "halted", stop))
    resumed = remembered(fitted(name, tmp_path / "halted", resume=True))
    for what in whole:
        assert same(whole[what], resumed[what]), what
    assert not same(whole["weights"], halted["weights"]) and not same(whole["learners"], halted["learners"])
    if name in ("reft", "carft"):
        assert any(n.startswith("modules.value") for n in whole["weights"])
