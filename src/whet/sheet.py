"""The data-sheet of a base: accuracy, pass@k and ended share of each task and level, on test, from one command.

    whet base sheet --out results/base

A cell is one JSON file and is never measured twice for the same weights, so the command can be stopped and called again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from whet.errors import WhetError
from whet.evaluation.evaluate import Evaluator, Plan
from whet.models import base
from whet.models.policy import Policy
from whet.tasks import get_task, task_names
from whet.training.checkpoint import write_atomic

MASTERED, HEADROOM, BEYOND = 0.8, 0.3, 0.1


def specs(names: list[str] | None = None) -> Iterator[str]:
    """Every level of every generated task that a base may know."""
    for name in names or [n for n in task_names() if n != "gym"]:
        task = get_task(name)
        yield from (f"{name}{',' if ':' in name else ':'}level={level}" for level in task.levels)


def measure(
    policy: Policy, out: Path, *, names: list[str] | None = None, n: int = 512, k: int = 16,
    tell: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Measure what is missing and return all cells."""
    out.mkdir(parents=True, exist_ok=True)
    weights = base.weights_hash(policy.model)
    cells = []
    for spec in specs(names):
        file = out / f"{spec.replace(':', '-').replace('=', '').replace(',', '-')}.json"
        cell = json.loads(file.read_text()) if file.exists() else {}
        if (cell.get("hash"), cell.get("n"), cell.get("k")) != (weights, n, k):
            summary, _ = Evaluator(get_task(spec), Plan(n=n, k=k)).test(policy)
            cell = {"task": spec, "hash": weights, "n": n, "k": k, **summary}
            write_atomic(file, json.dumps(cell, indent=1))
        cells.append(cell)
        if tell:
            tell(line(cell))
    write_atomic(out / "sheet.md", table(cells))
    return cells


def line(cell: dict[str, Any]) -> str:
    """One row of the table."""
    a, s, p = (cell[name] for name in ("accuracy", "sampled_accuracy", f"pass@{cell['k']}"))
    shown = f"{a['value']:.3f} [{a['low']:.3f}, {a['high']:.3f}] | {s['value']:.3f} | {p['value']:.3f}"
    return f"| {cell['task']} | {shown} | {cell['ended']:.3f} | {cell['tokens_per_answer']:.0f} | {kind(cell)} |"


def kind(cell: dict[str, Any]) -> str:
    """What a level is good for: forgetting (mastered), improvement (headroom), limits (beyond)."""
    accuracy, reach = cell["accuracy"]["value"], cell[f"pass@{cell['k']}"]["value"]
    found = [
        ("mastered", accuracy >= MASTERED),
        ("headroom", reach - accuracy >= HEADROOM),
        ("beyond", reach <= BEYOND),
    ]
    return ", ".join(name for name, holds in found if holds)


def table(cells: list[dict[str, Any]]) -> str:
    """The data-sheet as Markdown."""
    if not cells:
        raise WhetError("a data-sheet needs at least one task")
    n, k = cells[0]["n"], cells[0]["k"]
    head = (
        f"Measured on test, n = {n} a cell, {k} samples at temperature 1, weights {cells[0]['hash']}. "
        f"*mastered*: accuracy >= {MASTERED}; *headroom*: pass@{k} - accuracy >= {HEADROOM}; "
        f"*beyond*: pass@{k} <= {BEYOND}.\n\n"
        f"| task | greedy accuracy [95 %] | sampled accuracy | pass@{k} | ended | tokens | |\n|---|---|---|---|---|---|---|\n"
    )
    return head + "\n".join(map(line, cells)) + "\n"
