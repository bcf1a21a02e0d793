"""The menu: every choice of weights by name, as `--weights NAME:key=value,key=value` asks for it.

A choice is a function with the decorator, in any module of this folder; its annotated arguments are those of the spec:

    @choice("lift", family="selective, by score", paper="lift")
    def lift(rank: int = 32, density: float = 0.05, refresh: int = 200) -> Weights: ...
"""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from whet.errors import WhetError, unknown
from whet.weights.weights import Lora, Weights

FAMILIES = ("full", "selective, by rule", "selective, by score", "additive", "prompt", "reparameterisation", "hybrid")
_MENU: dict[str, Choice] = {}
_WORDS = {"true": True, "false": False}


@dataclass(frozen=True)
class Choice:
    """One choice of weights.

    Attributes:
        family: one of `FAMILIES`, the survey's (2501.13787).
        paper: slug of its paper, empty where it has none in `whet papers`.
    """

    name: str
    make: Callable[..., Weights]
    family: str
    paper: str = ""

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return (inspect.getdoc(self.make) or "").split("\n", 1)[0]

    @property
    def arguments(self) -> dict[str, inspect.Parameter]:
        return dict(inspect.signature(self.make).parameters)

    def read(self, pairs: dict[str, str]) -> dict[str, Any]:
        """The arguments of a spec with their types."""
        for key in pairs:
            if key not in self.arguments:
                raise unknown(f"argument of weights '{self.name}'", key, self.arguments)
        return {key: _read(key, str(self.arguments[key].annotation), value) for key, value in pairs.items()}


def choice(name: str, *, family: str, paper: str = "") -> Callable[[Callable[..., Weights]], Callable[..., Weights]]:
    """Put a function that makes Weights on the menu."""
    if family not in FAMILIES:
        raise WhetError(f"weights '{name}': family is one of {', '.join(FAMILIES)}")

    def decorate(make: Callable[..., Weights]) -> Callable[..., Weights]:
        if name in _MENU and _MENU[name].make.__module__ != make.__module__:
            raise WhetError(f"two choices of weights are called '{name}'")
        _MENU[name] = Choice(name, make, family, paper)
        return make

    return decorate


def menu() -> dict[str, Choice]:
    """All choices, family by family. Every module of this folder is imported once."""
    package = importlib.import_module("whet.weights")
    for found in pkgutil.iter_modules(package.__path__, "whet.weights."):
        importlib.import_module(found.name)
    return dict(sorted(_MENU.items(), key=lambda item: FAMILIES.index(item[1].family)))


def get_weights(spec: str | Weights) -> Weights:
    """Weights from a spec: `full`, `lora`, `lora:rank=8,alpha=16`, `named:pattern=layers[.]1[.]` ..."""
    if isinstance(spec, Weights):
        return spec
    name, _, rest = spec.partition(":")
    known = menu()
    if name not in known:
        raise unknown("weights", name, known)
    parts = re.split(r",(?=\w+=)", rest) if rest else []  # a comma inside a pattern is the pattern's
    try:
        pairs = dict(part.split("=", 1) for part in parts)
    except ValueError:
        raise WhetError(f"weights '{spec}': written as {name}:key=value,key=value") from None
    try:
        return known[name].make(**known[name].read(pairs))
    except (WhetError, TypeError) as problem:
        raise WhetError(f"weights '{spec}': {problem}") from None


def _read(key: str, kind: str, text: str) -> Any:
    if kind.startswith("str"):
        return text
    if kind.startswith("bool"):
        if text.lower() not in _WORDS:
            raise WhetError(f"{key} is true or false, not '{text}'")
        return _WORDS[text.lower()]
    try:
        value = float(text)
    except ValueError:
        raise WhetError(f"{key} is a number, not '{text}'") from None
    if math.isnan(value):
        raise WhetError(f"{key} is a number, not '{text}'")
    if not kind.startswith("int"):
        return value
    if not value.is_integer():
        raise WhetError(f"{key} is a whole number, not '{text}'")
    return int(value)


@choice("full", family="full")
def full() -> Weights:
    """All parameters."""
    return Weights()


@choice("lora", family="reparameterisation")
def lora(rank: int | None = None, alpha: float | None = None) -> Weights:
    """Low-rank adapters on every linear layer but the head (2106.09685)."""
    return Lora(rank, alpha)


@choice("rslora", family="reparameterisation")
def rslora(rank: int | None = None, alpha: float | None = None) -> Weights:
    """The same, scaled by alpha / sqrt(rank) (2312.03732)."""
    return Lora(rank, alpha, "rslora")


@choice("dora", family="reparameterisation")
def dora(rank: int | None = None, alpha: float | None = None) -> Weights:
    """The same with the columns' lengths apart (2402.09353)."""
    return Lora(rank, alpha, "dora")
