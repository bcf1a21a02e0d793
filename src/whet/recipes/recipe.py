"""Recipe: one paper's method as a function of keyword arguments that returns stages.

    @recipe(paper="asft", parent="sft")
    def asft(kl_weight: float = 0.05, **training) -> Recipe:
        return sft(objective=dft() + kl_weight * forward_kl(), **training)

`**training` takes the parent's arguments, so that a recipe lists only what is its own. An unknown argument is refused
with the nearest known one; the help text of an argument is its line in the docstring.
"""

from __future__ import annotations

import importlib
import inspect
import json
import math
import pkgutil
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Integral, Real
from typing import Any

from whet.errors import WhetError, unknown
from whet.evaluation.probes import Probe
from whet.sources import Answering
from whet.tasks import Task
from whet.training.stage import Stage
from whet.weights import Weights

HOW_TO_PROVIDE = {
    "demonstrations": "rows with an answer or a completion",
    "rationales": "rows with a `rationale`",
    "verifier": "rows with an `answer` that a --verifier can check",
    "preferences": "rows with `chosen` and `rejected`",
    "choices": "rows with `choices`",
    "choice rationales": "rows with `choice_rationales`, one for each choice, or rationales=start",
    "plans": "rows with a `plan`",
    "corruptions": "a task with a corruptor",
    "unlimited": "a task that generates problems",
}

# kinds of arguments that can be written on a command line
KINDS: dict[str, tuple[type | tuple[type, ...], str]] = {
    "bool": (bool, "true or false"),
    "int": (Integral, "a whole number"),
    "float": (Real, "a number"),
    "list": ((list, tuple), "a list such as [0.2, 0.28]"),
}
PLAIN = (bool, int, float, str, list, tuple, dict)  # what YAML and a command line can say
MOST = 1 << 63  # of whole numbers
FREE = {"Any", "Literal", "Sequence", "inspect._empty"}  # annotations by which a value's type is not decided
PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}


@dataclass
class Recipe:
    """What a recipe function returns.

    Attributes:
        stages: of a run, in order.
        answering: how the trained policy's answers come about, in every evaluation.
        stream: tasks that are measured at the start and after each stage, where each stage trains on the next of them.
        probes: what the recipe measures besides, of what only it knows.
    """

    stages: list[Stage]
    answering: Answering = field(default_factory=Answering)
    stream: tuple[str, ...] = ()
    probes: Sequence[Probe] = ()

    def moving(self, weights: Weights) -> Recipe:
        """The same stages, of which a recipe says itself what moves."""
        for stage in self.stages:
            stage.weights = weights
        return self

    def check(self, task: Task) -> None:
        """Refuse a task that lacks what a stage needs, by name and with the way to provide it."""
        for stage in self.stages:
            stage.check()
            for source in stage.problems.tasks(stage.task or task):
                for need in sorted(stage.needs() - source.provides()):
                    raise WhetError(f"stage '{stage.name}' needs {need} and task '{source.name}' has none: provide "
                                    f"{HOW_TO_PROVIDE.get(need, need)}")  # fmt: skip


@dataclass(frozen=True)
class Argument:
    """A recipe's argument: its default, its type as written, and its line in the docstring."""

    name: str
    default: Any
    type: str
    help: str


@dataclass(frozen=True)
class Entry:
    """A registered recipe.

    Attributes:
        paper: slug of its paper (`whet papers`), empty where it has none.
        parent: the recipe whose arguments it takes besides its own.
        defaults: where it differs from its parent's.
        task: what it runs on where no task is named.
    """

    name: str
    build: Callable[..., Recipe]
    paper: str
    parent: str
    defaults: dict[str, Any]
    task: str = "chain-sum"

    @cached_property
    def arguments(self) -> dict[str, Argument]:
        """Its own arguments, then its parent's."""
        lines = _argument_lines(inspect.getdoc(self.build) or "")
        own: dict[str, Argument] = {}
        passes_on = False
        for p in inspect.signature(self.build).parameters.values():
            if p.kind is p.VAR_KEYWORD:
                passes_on = True
            elif not p.name.startswith("_"):
                own[p.name] = Argument(p.name, p.default, _written(p.annotation), lines.get(p.name, ""))
        if passes_on and self.parent:
            for key, argument in get_recipe(self.parent).arguments.items():
                own.setdefault(key, replace(argument, default=self.defaults.get(key, argument.default)))
        return own

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return (inspect.getdoc(self.build) or "").split("\n", 1)[0]

    def read(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments, their types checked: text values are read as JSON where the argument is not text."""
        known = self.arguments
        for name in arguments:
            if name not in known:
                raise unknown(f"argument of recipe '{self.name}'", name, known)
        return {name: _read(self.name, known[name], value) for name, value in arguments.items()}

    def __call__(self, **arguments: Any) -> Recipe:
        """Build it.

        Raises:
            WhetError: an argument is unknown, of another type, out of range, or one that the recipe sets itself.
        """
        read = self.read(arguments)
        try:
            made = self.build(**read)
        except ArithmeticError as problem:  # steps of an endless pass, rows over a batch of 0
            told = ", ".join(f"{name}={value!r}" for name, value in read.items())
            raise WhetError(
                f"recipe '{self.name}' cannot be made with {told} ({problem}); give other numbers"
            ) from problem
        except TypeError as problem:
            twice = re.search(r"multiple values for keyword argument '(\w+)'", str(problem))
            if not twice or twice[1] not in read:
                raise
            raise WhetError(f"recipe '{self.name}' sets {twice[1]} itself; leave it out") from problem
        for name, value in read.items():  # what a recipe says of its own counts is better, so this comes last
            known = self.arguments[name]
            if (
                known.type == "int"
                and isinstance(value, int)
                and value < 0 <= (known.default if isinstance(known.default, int) else 0)
            ):
                raise WhetError(f"recipe '{self.name}': {name} is a count, from 0, not '{value}'")
        return made


_REGISTRY: dict[str, Entry] = {}


def recipe(
    paper: str = "", parent: str = "", name: str = "", defaults: dict[str, Any] | None = None, task: str = "chain-sum"
) -> Callable[[Callable[..., Recipe]], Entry]:
    """Register a recipe function under its own name (underscores become hyphens)."""

    def decorate(build: Callable[..., Recipe]) -> Entry:
        entry = Entry(name or build.__name__.replace("_", "-"), build, paper, parent, defaults or {}, task)
        if entry.name in _REGISTRY and _REGISTRY[entry.name].build.__module__ != build.__module__:
            raise WhetError(f"two recipes are called '{entry.name}'")
        _REGISTRY[entry.name] = entry
        return entry

    return decorate


def recipes() -> dict[str, Entry]:
    """All recipes by name. Every module below `whet.recipes` is imported once."""
    package = importlib.import_module("whet.recipes")
    for found in pkgutil.walk_packages(package.__path__, "whet.recipes."):
        importlib.import_module(found.name)
    return dict(sorted(_REGISTRY.items()))


def get_recipe(name: str | Entry) -> Entry:
    """A recipe by name. Raises WhetError with the nearest name."""
    if isinstance(name, Entry):
        return name
    known = recipes()
    if name not in known:
        raise unknown("recipe", name, known)
    return known[name]


def _written(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _argument_lines(doc: str) -> dict[str, str]:
    """The `Args:` section as {name: text}."""
    _, _, section = doc.partition("Args:\n")
    found: dict[str, str] = {}
    name = ""
    for line in section.split("\n"):
        if line and not line.startswith(" "):
            break
        start = re.match(r" {4}(\w+): (.*)", line)
        if start:
            name = start[1]
            found[name] = start[2]
        elif name and line.strip():
            found[name] += " " + line.strip()
    return found


def _read(recipe_name: str, argument: Argument, value: Any) -> Any:
    """Check that a value has the argument's type; a command line's text is turned into it."""
    names = re.sub(r"\[.*\]", "", argument.type).split(" | ")
    kinds = [name for name in names if name in KINDS]
    objects = set(names) - {*KINDS, "str", "None"}
    read, text = value, isinstance(value, str) and names[0] != "str"
    if text and kinds:
        try:
            read = json.loads(PYTHON_WORDS.get(value, value))
        except (ValueError, RecursionError):
            read = value
    if (read is None and "None" in names) or (isinstance(read, str) and "str" in names):
        return read
    kind = next((k for k in kinds if _fits(read, k)), "")
    if kind:
        return float(read) if text and kind == "float" else read  # pyright: ignore[reportArgumentType]
    if not (read is None or isinstance(read, PLAIN)) or objects & {type(read).__name__, *FREE}:
        return read  # an object, from Python: what it must be able to do, no annotation says
    wanted = KINDS[kinds[0]][1] if kinds else "a text" if "str" in names else "an object, given from Python only"
    told = value if isinstance(value, str) else repr(value)
    hint = f", not '{told if len(told) <= 60 else told[:57] + '...'}'"
    raise WhetError(f"recipe '{recipe_name}': {argument.name} is {wanted}{hint if kinds or 'str' in names else ''}")


def _fits(value: Any, kind: str) -> bool:
    if not isinstance(value, KINDS[kind][0]) or (isinstance(value, bool) and kind != "bool"):
        return False
    if isinstance(value, Integral):
        return abs(int(value)) < MOST
    return not isinstance(value, Real) or not math.isnan(value)
