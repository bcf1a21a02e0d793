"""Answers before and after training, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from whet.report.read import RunData

CHANGES = {  # (right before, right after)
    (False, True): "fixed",
    (True, False): "broken",
    (False, False): "still wrong",
    (True, True): "still right",
}


@dataclass(frozen=True)
class Pair:
    """A problem with a run's answers to it; everything in it is untrusted text.

    Attributes:
        run: the run's number on the page.
        change: one of `CHANGES`; empty where there is no answer after training.
    """

    run: int
    prompt: str
    gold: str
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None
    change: str


def pairs(run: RunData, number: int) -> Iterator[Pair]:
    """In the order of the file, by problem."""
    before = {row["problem"]: row for row in run.answers["before"]}
    after = {row["problem"]: row for row in run.answers["after"]}
    for problem in dict.fromkeys([*before, *after]):
        old, new = before.get(problem), after.get(problem)
        row = new or old or {}
        change = CHANGES[bool(old["correct"]), bool(new["correct"])] if old and new else ""
        yield Pair(number, _text(row["prompt"]), _text(row.get("gold")), old, new, change)


def _text(value: Any) -> str:
    return "" if value is None else str(value)
