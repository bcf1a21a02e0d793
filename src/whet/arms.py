"""Arms: what is compared. An arm is a recipe with settings of its own, written `grpo` or `grpo:lr=1e-4,group=16`."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from whet.config import RunConfig
from whet.errors import WhetError, unknown
from whet.evaluation.scores import START
from whet.launch import configure
from whet.recipes.recipe import get_recipe
from whet.tasks import Task

# what all arms share, or their numbers could not be compared
SHARED = ("task", "verifier", "validation", "test", "model", "dtype", "seed", "budget", "keep", "evaluations", "test_n",
          "validation_n", "k", "others", "others_n", "others_look_n", "probes")  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """A recipe with its settings.

    Attributes:
        label: its name in tables and files.
        settings: the recipe's own arguments, and settings of a run that are not shared (`weights=lora`).
    """

    label: str
    recipe: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str, label: str = "") -> Arm:
        """Read `RECIPE` or `RECIPE:KEY=VALUE,KEY=VALUE`; a value may hold commas in brackets (`clip=[0.2,0.28]`)."""
        name, _, rest = text.partition(":")
        arguments = get_recipe(name).arguments
        settings: dict[str, Any] = {}
        for part in filter(None, re.split(r",(?=\w+=)", rest)):
            key, equals, value = part.partition("=")
            if not equals:
                raise WhetError(f"arm '{text}': '{part}' is not KEY=VALUE")
            if key in SHARED and key not in arguments:
                raise WhetError(f"arm '{text}' may not set {key}: all arms share it; give it once, outside the arms")
            settings[key] = _value(value) if not _is_text(name, key) else value
        arm = cls(label or text, name, settings)
        if arm.label == START:
            raise WhetError(f"an arm may not be called '{START}': that is the model that all arms start from")
        return arm

    @property
    def slug(self) -> str:
        """The label as a part of a file's name."""
        return re.sub(r"[^\w.=+-]+", "_", self.label)

    def having(self, **settings: Any) -> Arm:
        """The same arm with more settings, under the same label."""
        return Arm(self.label, self.recipe, {**self.settings, **settings})

    def config(self, task: str | Task, seed: int, shared: Mapping[str, Any]) -> RunConfig:
        """The config of one of its runs."""
        return configure(self.recipe, task=task, **{**shared, **self.settings, "seed": seed})

    def candidates(self, sweep: Mapping[str, Sequence[Any]]) -> list[Arm]:
        """The arm at each point of a grid, over the settings that it takes and has not fixed itself; itself alone where
        there are none."""
        known = [*get_recipe(self.recipe).arguments, *(k for k in RunConfig.model_fields if k not in SHARED)]
        keys = [k for k in sweep if k in known and k not in self.settings]
        return [self.having(**dict(zip(keys, point, strict=True)))
                for point in itertools.product(*(sweep[k] for k in keys))]  # fmt: skip


def parse_arms(texts: Sequence[str | Arm] | Mapping[str, str]) -> list[Arm]:
    """Arms from texts, or from {label: text}; labels must differ."""
    if isinstance(texts, Mapping):
        arms = [Arm.parse(text, label) for label, text in texts.items()]
    else:
        arms = [Arm.parse(text) if isinstance(text, str) else text for text in texts]
    if not arms:
        raise WhetError("name at least one recipe to compare")
    slugs = [arm.slug for arm in arms]
    for arm in arms:
        if slugs.count(arm.slug) > 1:
            raise WhetError(f"two arms are called '{arm.label}'")
    return arms


def split_words(words: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """A command line's words as arms and settings: `test_n=64` is a setting of all runs, `grpo:lr=1e-4` is an arm."""
    arms = [word for word in words if "=" not in word.partition(":")[0]]
    pairs = [word.split("=", 1) for word in words if word not in arms]
    return arms, {key: _value(value) for key, value in pairs}


def parse_sweep(texts: Sequence[str]) -> dict[str, list[Any]]:
    """{"lr": [1e-4, 3e-4]} from ["lr=1e-4,3e-4"]."""
    found: dict[str, list[Any]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        if not equals or len(values.split(",")) < 2:
            raise WhetError(f"sweep '{text}': name a setting and at least two values, as in lr=1e-4,3e-4")
        found[key] = [_value(v) for v in values.split(",")]
    return found


def check_sweep(arms: Sequence[Arm], sweep: Mapping[str, Sequence[Any]]) -> None:
    """Refuse a setting that no arm takes."""
    known = {k for arm in arms for k in get_recipe(arm.recipe).arguments}
    for key in sweep:
        if key not in known and (key in SHARED or key not in RunConfig.model_fields):
            raise unknown("setting to sweep", key, known)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _is_text(recipe: str, key: str) -> bool:
    argument = get_recipe(recipe).arguments.get(key)
    return argument is not None and argument.type.startswith("str")
