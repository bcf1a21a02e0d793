"""`whet weights`: the menu with what each choice costs."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from rich.text import Text
from torch import nn

from whet.errors import WhetError
from whet.terminal.console import amount, console, memory, percent, quiet_libraries, table
from whet.terminal.doctor import shapes
from whet.weights import Weights, menu


def list_weights(name: str | None) -> None:
    """A table of all choices, each as it is by default, on a model of which only the shapes are read."""
    quiet_libraries()
    model, _ = shapes(name)
    size = sum(p.numel() for p in model.parameters())
    made = table("weights", "what moves, and its arguments", "moves", "share", "gradients", "optimizer",
                 right=("moves", "share", "gradients", "optimizer"))  # fmt: skip
    family = ""
    for choice in menu().values():
        if choice.family != family:
            family = choice.family
            made.add_row(Text(family, style="dim"))
        given = ",".join(f"{p.name}={_written(p)}" for p in choice.arguments.values())
        told = Text(choice.summary) + (Text("\n" + given, style="dim") if given else Text())
        made.add_row(Text(choice.name, style="cyan"), told, *_cost(choice.make, model, size))
    screen = console()
    screen.print(made)
    screen.print(f"[dim]on {name or 'base'} ({amount(size)} parameters), fp32; optimizer: two moments of AdamW and the places of "
                 "chosen entries. Gradients and activations are not saved by masks within a tensor. "
                 "--weights NAME:key=value,key=value[/]")  # fmt: skip


def _cost(make: Callable[..., Weights], model: nn.Module, size: int) -> list[Text]:
    try:
        cost = make().cost(model)
    except WhetError:  # the model has none of these: biases, say
        return [Text(shown) for shown in ("none", "-", "-", "-")]
    shown = (amount(cost.moving), percent(cost.moving / size), memory(4 * cost.gradients), memory(cost.optimizer()))
    return [Text(s) for s in shown]


def _written(parameter: inspect.Parameter) -> str:
    value = parameter.default
    return "" if value is None or value == "" else str(value).lower() if isinstance(value, bool) else str(value)
