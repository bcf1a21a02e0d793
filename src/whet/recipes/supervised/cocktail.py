"""Cocktail (2410.01109): fine-tune on a mixture of related tasks, with general and mathematical data beside them.

    rows of all sets, shuffled, each once an epoch;  L = - sum_t log p(y_t | x, y_<t) / (number of learnt tokens)

With `count=epochs` every row is seen equally often, so that a larger mixture takes more steps; with `count=steps` every
mixture takes equally many, so that each set is seen less. Report both: part of a gain may be the further steps. Long answers
drown labels of one token in a mean over tokens; `normalise=sequence` weighs every row alike.

Departures: learning rate, epochs and caps are ours; the paper's were not to be had. Rows whose prompt (or `document`) is
held out in any of the sets are left out and counted.

    whet run cocktail
    whet run cocktail sets="a.jsonl;b.jsonl;chain-sum" limit=500 --task a.jsonl
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from whet.errors import WhetError, unknown
from whet.recipes.recipe import Recipe, recipe
from whet.recipes.supervised.sft import sft
from whet.sources import Mixture, Part

FINANCE = tuple(f"finance:level=2:subtask={name}" for name in ("sum", "change", "ratio", "compare", "lookup"))


@recipe(paper="cocktail", parent="sft", task="finance:level=2,subtask=sum")
def cocktail(
    sets: str = ";".join((*FINANCE, "chain-sum:level=1-2")),
    limit: int = 300,
    count: str = "epochs",
    epochs: float = 2.0,
    steps: int = 100,
    batch: int = 32,
    mixture_temperature: float = 1.0,
    **training: Any,
) -> Recipe:
    """Fine-tune on a mixture of tasks.

    Args:
        sets: the tasks to learn, as `task#rows`, separated by `;` (colons between a task's options).
        limit: rows of a set that does not say how many.
        count: epochs, or steps.
        epochs: passes over all rows, where they are counted.
        steps: optimizer steps, where they are.
        batch: rows a step.
        mixture_temperature: 1 sees every row once an epoch, more evens out the sets' rates (inf makes them equal).
    """
    if count not in ("epochs", "steps"):
        raise unknown("count of cocktail", count, ("epochs", "steps"))
    if training.get("mixture") or training.get("problems"):
        raise WhetError("cocktail: what is learnt is given by sets; leave out mixture and problems")
    parts = [part if part.rows else replace(part, rows=limit) for part in Part.read(sets)]
    if count == "epochs":
        steps = max(1, round(epochs * sum(map(size, parts)) / batch))
    mixed = Mixture(parts, temperature=mixture_temperature)
    made = sft(problems=mixed, steps=steps, batch=batch, **training)
    made.stages[0].name = "cocktail"
    return made


def size(part: Part) -> int:
    """Rows of a part: those that are wanted, or that a file has."""
    return part.rows if "unlimited" in part.task.provides() else len(part.task.problems("train", part.rows))
