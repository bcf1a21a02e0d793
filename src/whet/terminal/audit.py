"""`whet audit-reward`: what a verifier pays for answers that must not score."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer
from rich.text import Text

from whet.rewards.audit import GOLD, LIMIT, AuditRow, audit, exploits
from whet.rewards.specimens import ANSWERS, Specimen
from whet.tasks import Task, get_task, task_names
from whet.terminal.console import console, known, table

ALL = "all"


def audit_reward(spec: str, verifier: str | None, n: int, limit: float = LIMIT, out: Path | None = None) -> None:
    """Print what the attacks earn; leave with 1 where one scores or is not judged in time, or a gold answer scores less.

    Args:
        spec: a task, or `all`: every built-in task, and every verifier of file tasks on problems of its own.
        out: where the table goes as JSON, with a row for each attack.
    """
    if spec == ALL:
        tasks = [*map(get_task, task_names()), *map(Specimen, [verifier] if verifier else ANSWERS)]
    else:
        tasks = [get_task(spec, verifier=verifier)]
    screen = console()
    found: list[dict[str, Any]] = []
    for task in tasks:
        rows = audit(task, n, limit=limit)
        if spec != ALL:
            _show(task, rows)
        found.append(_summary(task, rows))
    screen.print(_table(found))
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"limit": limit, "verifiers": found}, indent=1) + "\n", encoding="utf-8")
    for line in filter(None, map(_complaint, found)):
        screen.print(f"[red]{line}", soft_wrap=True)
    if any(map(_complaint, found)):
        raise typer.Exit(1)
    screen.print("[green]nothing scores that must not[/]")


def _show(task: Task, rows: Sequence[AuditRow]) -> None:
    made = table("answer", "n", "mean", "ms", "verdicts", "example", right=("n", "mean", "ms"))
    bad = {row.attack for row in exploits(rows)} | {row.attack for row in rows if row.late}
    for row in rows:
        red = row.mean != 1.0 if row.attack == GOLD else row.attack in bad
        style = "red" if red else "green" if row.attack == GOLD else ""
        mean = f"{row.mean:.3f}" if known(row.mean) else "-"
        verdicts = ", ".join(f"{status} {count}" for status, count in row.statuses.items())
        made.add_row(Text(row.attack, style=style), str(row.n), Text(mean, style=style), f"{row.slowest * 1000:.0f}",
                     Text(verdicts, style="dim"), Text(row.example, style="dim"))  # fmt: skip
    console().print(f"[bold]{task.spec()}[/]  [dim]verifier {getattr(task, 'verifier_name', 'of its own')}[/]")
    console().print(made)


def _summary(task: Task, rows: Sequence[AuditRow]) -> dict[str, Any]:
    gold = next((r.mean for r in rows if r.attack == GOLD), None)
    attacks = [r for r in rows if r.attack != GOLD]
    return {
        "task": task.spec(),
        "verifier": getattr(task, "verifier_name", "of its own"),
        "attacks": len(attacks),
        "tried": sum(r.tried for r in attacks),
        "scored": sum(r.scored for r in attacks),
        "exploits": [r.attack for r in exploits(rows)],
        "late": [r.attack for r in attacks if r.late],
        "slowest_ms": round(1000 * max((r.slowest for r in attacks), default=0.0), 1),
        "gold": None if gold is None or math.isnan(gold) else gold,
        "gold_scores": gold is None or gold == 1.0,
        "rows": [{**asdict(r), "mean": None if math.isnan(r.mean) else r.mean} for r in rows],
    }


def _table(found: Sequence[dict[str, Any]]) -> Any:
    made = table("task", "verifier", "attacks", "tried", "scored", "slowest ms",
                 right=("attacks", "tried", "scored", "slowest ms"))  # fmt: skip
    for row in found:
        style = "red" if _complaint(row) else ""
        made.add_row(Text(row["task"], style=style), Text(row["verifier"]), str(row["attacks"]), str(row["tried"]),
                     Text(str(row["scored"]), style=style), f"{row['slowest_ms']:.0f}")  # fmt: skip
    return made


def _complaint(row: dict[str, Any]) -> str:
    """One line on what is wrong with a verifier; empty where nothing is."""
    said: list[str] = []
    if not row["gold_scores"]:
        said.append("a gold answer does not score 1: no answer could earn the whole reward")
    if row["late"]:
        said.append(f"not judged in time: {', '.join(row['late'])}")
    if row["exploits"]:
        said.append(f"{len(row['exploits'])} of {row['attacks']} kinds of answer score that must not: "
                    f"{', '.join(row['exploits'])}")  # fmt: skip
    return f"{row['task']}: {'; '.join(said)}" if said else ""
