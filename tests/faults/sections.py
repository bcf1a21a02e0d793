"""The sections of the suite: what is tried, and what its rows come to in the table. A section whose module is not there is left out."""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crashes import kills
from harness import whet
from signals import signals
from surroundings import surroundings
from teachers import teachers

Row = dict[str, Any]
KILLS, INPUTS = 50, 300


@dataclass(frozen=True)
class Section:
    """One part of the table.

    Args:
        title: its heading.
        rows: (a folder to work in, how many rows there are already) -> the others, as they come.
        table: rows -> the lines of its table, the head first.
        module: what it needs, by name.
    """

    name: str
    title: str
    rows: Callable[[Path, int], Iterable[Row]]
    table: Callable[[Sequence[Row]], list[list[Any]]]
    module: str = "harness"

    @property
    def there(self) -> bool:
        return importlib.util.find_spec(self.module) is not None


def crashes(place: Path, done: int) -> Iterator[Row]:
    return kills(KILLS, place, done)


def killed(rows: Sequence[Row]) -> list[list[Any]]:
    moments = list(dict.fromkeys(row["moment"] for row in rows))
    lines: list[list[Any]] = [["run", *moments, "kills", "survived", "steps lost, at most", "mean"]]
    for kind in [*dict.fromkeys(row["kind"] for row in rows), "all"]:
        own = [row for row in rows if kind in (row["kind"], "all")]
        lost = [row["steps_lost"] for row in own]
        lines.append([kind, *(sum(r["moment"] == m for r in own) for m in moments), len(own),
                      sum(not r["differs"] for r in own), max(lost), f"{sum(lost) / len(lost):.1f}"])  # fmt: skip
    return lines


def told(rows: Sequence[Row]) -> list[list[Any]]:
    heads = ["run", "signal", "in", "exit code", "steps lost", "goes on to the same end"]
    return [heads, *([r["run"], r["signal"], r["in"], r["code"], r["steps_lost"], r["differs"] or "yes"] for r in rows)]


def survived(rows: Sequence[Row]) -> list[list[Any]]:
    mark = {True: "yes", False: "**no**", None: "-"}
    return [["fault", "how it ended", "survived"], *([r["fault"], r["ended"], mark[r["survived"]]] for r in rows)]


def surveyed(place: Path, done: int) -> Iterator[Row]:
    """`survey` of bad_input.py, a kind a row."""
    from bad_input import KINDS, survey

    for kind in list(KINDS)[done:]:
        yield {"input": kind, **survey(INPUTS, (kind,))[kind]}


def refused(rows: Sequence[Row]) -> list[list[Any]]:
    columns = ["tried", "refused", "taken"]
    body = [[r["input"], *(r.get(c, 0) for c in columns)] for r in rows]
    return [
        ["input", "tried", "refused in one line", "taken"],
        *body,
        ["all", *(sum(r.get(c, 0) for r in rows) for c in columns)],
    ]


def audited(place: Path, done: int) -> Iterator[Row]:
    """`whet audit-reward --task all`, a verifier a row."""
    if done:
        return
    file = place / "audit.json"
    ended = whet(["audit-reward", "--task", "all", "--json", str(file)], place / "log", seconds=1800.0)
    assert file.exists(), ended.err[-600:]
    for row in json.loads(file.read_text())["verifiers"]:
        yield {
            name: row[name] for name in ("task", "verifier", "attacks", "tried", "scored", "slowest_ms", "gold_scores")
        }


def attacked(rows: Sequence[Row]) -> list[list[Any]]:
    columns = ["attacks", "tried", "scored"]
    total = [max(r["attacks"] for r in rows), sum(r["tried"] for r in rows), sum(r["scored"] for r in rows)]
    return [["task", "verifier", "kinds of attack", "answers", "scored that must not"],
            *([r["task"], r["verifier"], *(r[c] for c in columns)] for r in rows), ["all", f"{len(rows)}", *total]]  # fmt: skip


def escaped(place: Path, done: int) -> Iterator[Row]:
    """`survey` of escapes.py, an escape on a backend a row."""
    if not done:
        yield from (found.row() for found in importlib.import_module("escapes").survey())


def stopped(rows: Sequence[Row]) -> list[list[Any]]:
    lines: list[list[Any]] = [["backend", "tried", "stopped", "earned a reward", "got through"]]
    for backend in dict.fromkeys(row["backend"] for row in rows):
        own = [row for row in rows if row["backend"] == backend]
        through = [row["name"] for row in own if row["breaches"]]
        earned = sum(row["rewarded"] for row in own)
        lines.append([backend, len(own), len(own) - len(through), earned, ", ".join(through) or "none"])
    return lines


def counted(module: str) -> Callable[[Path, int], Iterator[Row]]:
    """`survey` of a module, which is one row of counts."""

    def rows(place: Path, done: int) -> Iterator[Row]:
        if not done:
            yield importlib.import_module(module).survey()

    return rows


def loaded(part: str) -> Callable[[Path, int], Iterator[Row]]:
    """A part of load.py."""

    def rows(place: Path, done: int) -> Iterator[Row]:
        if not done:
            for measure in importlib.import_module("load").PARTS[part]:
                yield measure()

    return rows


def measured(rows: Sequence[Row]) -> list[list[Any]]:
    """Each number in a line of its own, the rows beside each other; series are left out."""
    names = dict.fromkeys(name for row in rows for name, value in row.items() if not isinstance(value, list | dict))
    return [["measured", *(f"{i}" if len(rows) > 1 else "value" for i in range(1, len(rows) + 1))],
            *([name.replace("_", " "), *(row.get(name, "") for row in rows)] for name in names)]  # fmt: skip


SECTIONS = [
    Section("crashes", "Killed with SIGKILL", crashes, killed),
    Section("signals", "Ctrl-C and SIGTERM", signals, told),
    Section("surroundings", "Disk, clock, memory, processes", surroundings, survived),
    Section("teachers", "A teacher server that fails", teachers, survived),
    Section("inputs", "Bad input", surveyed, refused, "bad_input"),
    Section("rewards", "Attacks on rewards", audited, attacked),
    Section("escapes", "Escapes from the sandbox", escaped, stopped, "escapes"),
    Section("loading", "Hostile model folders", counted("loading"), measured, "loading"),
    Section("xss", "Scripts in a report", counted("xss"), measured, "xss"),
    Section("stream", "A large file", loaded("stream"), measured, "load"),
    Section("evaluation", "A large evaluation", loaded("evaluation"), measured, "load"),
    Section("soak", "Memory and pace over a long run", loaded("soak"), measured, "load"),
]
