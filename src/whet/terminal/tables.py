"""Tables of evaluations: before and after, other tasks, compute."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from whet.terminal.console import amount, change, clock, flops, share, table

BETTER = {"accuracy": 1, "sampled accuracy": 1, "ended": 1, "unparseable": -1}  # the others are neither good nor bad


def before_after(summary: Mapping[str, Any]) -> Table:
    """The table that a run ends with, from its `summary.json`."""
    before, after = summary["before"], summary["after"]
    made = table("test", "before", "95 %", "after", "95 %", "change", "n", right=("before", "after", "change", "n"))
    for name in names(after):
        made.add_row(*_row(name.replace("_", " "), before.get(name), after[name]))
    if summary["others"]:
        made.add_section()
        made.add_row(Text("other tasks", style="dim"))
        for task, row in summary["others"].items():
            made.add_row(*_row(task, row["before"], row["after"], good=1))
    return made


def measured(found: Mapping[str, Any]) -> Table:
    """The table of one evaluation."""
    made = table("test", "", "95 %", "n", right=("", "n"))
    for name in names(found):
        value, interval, n = _cells(found[name])
        made.add_row(name.replace("_", " "), value, Text(interval, style="dim"), Text(n, style="dim"))
    return made


def names(found: Mapping[str, Any]) -> list[str]:
    """The metrics in the order in which they are read: shares first."""
    first = [n for n in ("accuracy", "sampled_accuracy") if n in found]
    sampled = [n for n in found if "@" in n]
    return [*first, *sampled, *(n for n in found if n not in (*first, *sampled))]


def compute_lines(compute: Mapping[str, Any]) -> list[str]:
    """What the training cost, evaluation left out: time and FLOPs, tokens, and a third line where a teacher was asked."""
    tokens = ", ".join(f"{amount(compute[f'{what}_tokens'])} {what}" for what in ("sampled", "scored", "learnt"))
    steps = f"{compute['optimizer_steps']} optimizer steps"
    lines = [f"{clock(compute['seconds'])} of training, {steps}, {flops(compute['flops'])} FLOPs", f"{tokens} tokens"]
    if compute.get("teacher_replies"):  # which runs of an earlier version did not count
        read, written = (amount(compute[f"teacher_{what}_tokens"]) for what in ("prompt", "completion"))
        lines.append(f"{amount(compute['teacher_replies'])} new replies, {read} tokens read, {written} written")
    return lines


def _row(name: str, before: Any, after: Any, good: int | None = None) -> list[str | Text]:
    value, interval, n = _cells(before)
    value_after, interval_after, n_after = _cells(after)
    old, new = _number(before), _number(after)
    moved = change(old, new, "+.1f" if name.startswith("tokens") else "+.3f")
    direction = BETTER.get(name, 1 if "@" in name else 0) if good is None else good
    style = ""
    if moved != "-" and direction and round(new - old, 3):
        style = "green" if direction * (new - old) > 0 else "red"
    counts = n_after if n in ("", n_after) else f"{n}, {n_after}"
    return [name, value, Text(interval, style="dim"), Text(value_after, style="bold"),
            Text(interval_after, style="dim"), Text(moved, style=style), Text(counts, style="dim")]  # fmt: skip


def _cells(metric: Any) -> tuple[str, str, str]:
    """Value, interval and n as text."""
    if isinstance(metric, Mapping):
        interval = f"{share(metric['low'])} to {share(metric['high'])}"
        return share(metric["value"]), "" if metric["value"] is None else interval, str(metric["n"])
    return ("-" if metric is None else f"{metric:.1f}" if metric > 1 else share(metric)), "", ""


def _number(metric: Any) -> Any:
    return metric["value"] if isinstance(metric, Mapping) else metric
