"""Whet: fine-tune models so that they reason better, and know which method did it.

    import whet
    result = whet.run("grpo", task="chain-sum", steps=100)

Importing whet imports no torch: names are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "run": "whet.launch", "resume": "whet.launch", "Result": "whet.launch",
    "load": "whet.models.base", "Policy": "whet.models.policy", "Format": "whet.models.format",
    "Segment": "whet.records", "Sample": "whet.records", "Row": "whet.records",
    "Problem": "whet.tasks", "Response": "whet.tasks", "Step": "whet.tasks", "Task": "whet.tasks",
    "Procedural": "whet.tasks", "Verdict": "whet.tasks", "get_task": "whet.tasks",
    "Request": "whet.sampling.sampler", "SamplingSettings": "whet.sampling.sampler",
    "Reward": "whet.rewards", "Term": "whet.objectives", "Objective": "whet.objectives",
    "Weights": "whet.weights", "get_weights": "whet.weights",
    "Problems": "whet.sources", "Collector": "whet.sources", "Gate": "whet.sources",
    "Stage": "whet.training.stage", "Update": "whet.training.stage", "Fit": "whet.training.fit",
    "Recipe": "whet.recipes.recipe", "recipe": "whet.recipes.recipe", "get_recipe": "whet.recipes.recipe",
    "WhetError": "whet.errors",
}  # fmt: skip

__all__ = ["__version__", *_WHERE]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'whet' has no attribute '{name}'")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


if TYPE_CHECKING:
    from whet.launch import Result as Result
    from whet.launch import resume as resume
    from whet.launch import run as run
    from whet.models.base import load as load
    from whet.recipes.recipe import recipe as recipe
