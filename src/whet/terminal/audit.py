"""`whet audit-reward`: what a verifier pays for answers that must not score."""

from __future__ import annotations

import typer
from rich.text import Text

from whet.rewards.audit import GOLD, audit, exploits
from whet.tasks import get_task
from whet.terminal.console import console, known, table


def audit_reward(spec: str, verifier: str | None, n: int) -> None:
    """Print what each attack earns; leave with 1 where one of them scores, or a gold answer does not."""
    task = get_task(spec, verifier=verifier)
    rows = audit(task, n)
    made = table("answer", "n", "mean", "verdicts", "example", right=("n", "mean"))
    found = exploits(rows)
    gold = next((r for r in rows if r.attack == GOLD), None)
    short = gold is not None and gold.mean != 1.0
    for row in rows:
        bad = short if row.attack == GOLD else row in found
        style = "red" if bad else "green" if row.attack == GOLD else ""
        mean = f"{row.mean:.3f}" if known(row.mean) else "-"
        verdicts = ", ".join(f"{status} {count}" for status, count in row.statuses.items())
        made.add_row(Text(row.attack, style=style), str(row.n), Text(mean, style=style), Text(verdicts, style="dim"),
                     Text(row.example, style="dim"))  # fmt: skip
    screen = console()
    screen.print(f"[bold]{task.spec()}[/]  [dim]verifier {getattr(task, 'verifier_name', 'of its own')}[/]")
    screen.print(made)
    if short:
        screen.print("[red]a gold answer does not score 1[/]: no answer could earn the whole reward")
    if found:
        screen.print(f"[red]{len(found)} of {len(rows)} kinds of answer score that must not[/]: "
                     f"{', '.join(r.attack for r in found)}", soft_wrap=True)  # fmt: skip
    if short or found:
        raise typer.Exit(1)
    screen.print("[green]nothing scores that must not[/]")
