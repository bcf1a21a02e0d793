"""What the child does once it is confined: call a function, run a script, or ask a database. One JSON line a result."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

ROWS = 10_000  # of a query's result
TEXT = 1_000_000  # bytes of one value in SQL
BLOB = "\0blob:"  # before the hexadecimal digits of a blob

Job = dict[str, Any]


def perform(job: Job, channel: int) -> int:
    """Do a job; the exit code of the process.

    Args:
        job: `kind` (`function`, `script`, `query`) and what the function below needs.
        channel: file descriptor for the results.
    """
    return KINDS[job["kind"]](job, channel)


def _send(channel: int, **line: Any) -> None:
    data = json.dumps(line, allow_nan=False).encode() + b"\n"
    while data:
        data = data[os.write(channel, data) :]


def _told(problem: BaseException) -> str:
    return f"{type(problem).__name__}: {problem}"[:200]


def function(job: Job, channel: int) -> int:
    """Define `code`, call its `entry` on each of `inputs` ({args, kwargs}); a line {value} or {error} for each."""
    space: dict[str, Any] = {"__name__": "answer", "__builtins__": __builtins__}
    try:
        exec(compile(job["code"], "answer.py", "exec"), space)
        entry = space[job["entry"]]
    except KeyError:
        _send(channel, missing=job["entry"])
        return 0
    except BaseException as problem:
        _send(channel, broken=_told(problem))
        return 0
    for given in job["inputs"]:
        try:
            _send(channel, value=entry(*given["args"], **given["kwargs"]))
        except BaseException as problem:  # SystemExit too: an early exit answers nothing
            _send(channel, error=_told(problem))
    return 0


def script(job: Job, channel: int) -> int:
    """Run `code` as a program of its own; it reads and writes the process's standard streams."""
    os.dup2(channel, 1)
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115 (for the rest of the process)
    code = 0
    try:
        exec(compile(job["code"], "answer.py", "exec"), {"__name__": "__main__", "__builtins__": __builtins__})
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        code = 1
    try:
        sys.stdout.flush()
    except BaseException:
        code = 1
    return code & 255


def query(job: Job, channel: int) -> int:
    """Build a database by the script `schema`, ask it `query` read-only; one line {value: rows} or {error}."""
    import sqlite3

    def limited(connection: Any, operations: int) -> Any:
        for limit, value in ((sqlite3.SQLITE_LIMIT_ATTACHED, 0), (sqlite3.SQLITE_LIMIT_LENGTH, TEXT),
                             (sqlite3.SQLITE_LIMIT_EXPR_DEPTH, 200)):  # fmt: skip
            connection.setlimit(limit, value)
        spent = 0

        def progress() -> int:
            nonlocal spent
            spent += 1
            return spent * 1000 > operations

        connection.set_progress_handler(progress, 1000)
        return connection

    allowed = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}

    def authorize(action: int, first: str | None, second: str | None, *_: Any) -> int:
        loads = action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in ("load_extension", "fts3_tokenizer")
        return sqlite3.SQLITE_DENY if loads or action not in allowed else sqlite3.SQLITE_OK

    try:
        building = limited(sqlite3.connect("given.db"), job["operations"])
        building.executescript(job["schema"])
        building.commit()
        building.close()
    except Exception as problem:
        _send(channel, broken=_told(problem))
        return 0
    try:
        connection = limited(sqlite3.connect("file:given.db?mode=ro", uri=True), job["operations"])
        connection.execute("PRAGMA query_only = ON")
        connection.execute("PRAGMA cell_size_check = ON")
        connection.set_authorizer(authorize)
        connection.text_factory = lambda data: data.decode(errors="replace")
        rows = connection.execute(job["query"]).fetchmany(ROWS + 1)
        if len(rows) > ROWS:
            raise ValueError(f"more than {ROWS} rows")
        _send(channel, value=[[BLOB + v.hex() if isinstance(v, bytes) else _finite(v) for v in row] for row in rows])
    except Exception as problem:
        _send(channel, error=_told(problem))
    return 0


def _finite(value: Any) -> Any:
    return (
        f"{BLOB}{value!r}" if isinstance(value, float) and value - value != 0 else value
    )  # JSON has no infinity; no text is equal


KINDS: dict[str, Callable[[Job, int], int]] = {"function": function, "script": script, "query": query}
