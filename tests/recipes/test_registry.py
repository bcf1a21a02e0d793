"""The registry: arguments, their types and help, parents, and the nearest name."""

from __future__ import annotations

from typing import Any

import pytest

from whet.errors import WhetError
from whet.objectives import nll
from whet.recipes import recipe as registry
from whet.recipes.recipe import Entry, Recipe, get_recipe, recipe, recipes
from whet.sources import Demonstrations
from whet.training.optimizer import Rate
from whet.training.stage import Stage, Update


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    recipes()  # all of the package's are in before the copy is made
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))


def stage(**given: Any) -> Recipe:
    made = Recipe([Stage(Demonstrations(), [Update(nll())], steps=1)])
    made.given = given  # type: ignore[attr-defined]
    return made


def parent() -> Entry:
    @recipe(paper="elders")
    def elder(
        steps: int = 10, lr: float | Rate = 0.1, name: str = "7", flag: bool = False, parts: list | None = None
    ) -> Recipe:
        """The elder.

        Args:
            steps: how many,
                over two lines.
            lr: rate.
            name: a text.
            flag: on or off.
            parts: several.

        Not an argument: text.
        """
        return stage(steps=steps, lr=lr, name=name, flag=flag, parts=parts)

    return elder


def test_arguments_have_defaults_types_and_help() -> None:
    elder = parent()
    assert elder.summary == "The elder." and elder.paper == "elders"
    steps = elder.arguments["steps"]
    assert (steps.default, steps.type, steps.help) == (10, "int", "how many, over two lines.")
    assert list(elder.arguments) == ["steps", "lr", "name", "flag", "parts"]
    assert elder.arguments["parts"].help == "several."


def test_a_child_takes_its_parents_arguments_with_its_own_defaults() -> None:
    parent()

    @recipe(parent="elder", defaults={"lr": 0.5})
    def young_one(weight: float = 2.0, **training: Any) -> Recipe:
        """The young one.

        Args:
            weight: its own.
        """
        return stage(weight=weight, **training)

    entry = get_recipe("young-one")
    assert list(entry.arguments) == ["weight", "steps", "lr", "name", "flag", "parts"]
    assert entry.arguments["lr"].default == 0.5 and entry.arguments["steps"].default == 10
    assert entry(weight="3", steps="4").given == {"weight": 3.0, "steps": 4}  # type: ignore[attr-defined]


READ = [
    ("steps", "12", 12), ("steps", 12, 12), ("lr", "1e-4", 1e-4), ("lr", "2", 2.0), ("lr", Rate(1, 2), Rate(1, 2)),
    ("name", "12", "12"), ("name", "null", "null"), ("flag", "true", True), ("parts", "[0.2, 0.3]", [0.2, 0.3]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "value"), READ)
def test_a_command_lines_text_becomes_the_arguments_type(name: str, text: Any, value: Any) -> None:
    given = parent()(**{name: text}).given[name]  # type: ignore[attr-defined]
    assert given == value and type(given) is type(value)


@pytest.mark.parametrize(
    ("name", "text"),
    [("steps", "many"), ("steps", "1.5"), ("steps", "true"), ("lr", "fast"), ("flag", "1"), ("parts", "0.2")],
)
def test_text_of_another_type_is_refused(name: str, text: str) -> None:
    with pytest.raises(WhetError, match=f"recipe 'elder': {name} is .*, not '{text}'"):
        parent()(**{name: text})


def test_unknown_names_come_with_the_nearest() -> None:
    elder = parent()
    with pytest.raises(WhetError, match=r"unknown argument of recipe 'elder' 'stepz': did you mean 'steps'\?"):
        elder(stepz=3)
    with pytest.raises(WhetError, match=r"unknown recipe 'gropo': did you mean 'grpo'\?"):
        get_recipe("gropo")
    assert get_recipe(elder) is elder


def test_two_recipes_of_one_name_are_refused() -> None:
    def other() -> Recipe:
        return stage()

    other.__module__ = "elsewhere"
    with pytest.raises(WhetError, match="two recipes are called 'sft'"):
        recipe(name="sft")(other)


def test_all_recipes_of_this_version_are_found() -> None:
    shipped = {
        "sft",
        "pretrain",
        "grpo",
        "dapo",
        "dr-grpo",
        "gspo",
        "rloo",
        "reinforce++",
        "cispo",
        "ppo",
        "dpo",
        "star",
    }
    assert shipped <= set(recipes())
    assert list(recipes()) == sorted(recipes())
