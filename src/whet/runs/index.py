"""The index of past runs: one SQLite file a user, so that `whet runs` answers without searching the disk.

    $WHET_HOME/runs.sqlite, else $XDG_DATA_HOME/whet/runs.sqlite, else ~/.local/share/whet/runs.sqlite

The index holds nothing that is not in the run folders. One that is missing or damaged is made again from them: those
below the given roots, by default `./runs`. Any number of processes may write at once.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import yaml

from whet.errors import WhetError

log = logging.getLogger("whet")
VERSION = 1  # of the table; a file of another one is made again
WAIT = 30.0  # seconds that a writer waits for another
ROOTS = (Path("runs"),)
INSIDE = {"model", "checkpoints", "milestones", "snapshots", "tensorboard"}  # folders of a run that hold no other run
BROKEN = {sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_FORMAT}

Found = TypeVar("Found")
Say = Callable[[str], object]


@dataclass(frozen=True)
class Entry:
    """A run, or a comparison (whose inner runs have no entries of their own).

    Attributes:
        folder: its absolute path.
        recipe: of a comparison, all arms.
        before, after: accuracy on test; of a comparison, the start's and the best arm's. None where not measured yet.
        started: local time, as in run.yaml.
        state: `finished` or `unfinished`.
    """

    folder: str
    kind: str
    recipe: str
    task: str
    model: str
    seed: int | None
    before: float | None
    after: float | None
    steps: int | None
    started: str
    state: str

    @property
    def exists(self) -> bool:
        """Whether the folder is still there."""
        return _is_one(Path(self.folder))


COLUMNS = [f.name for f in fields(Entry)]


def place() -> Path:
    """Where the index is."""
    home = os.environ.get("WHET_HOME")
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return (Path(home) if home else Path(data) / "whet") / "runs.sqlite"


def record(folder: str | Path, say: Say = log.warning) -> None:
    """Note a run or a comparison, or what has changed of it.

    The index is a convenience: where it cannot be written that is said, and the run is as good as without.

    Args:
        say: hears a line of what was amiss; so in the other functions.
    """
    entry = read(folder)
    try:
        _with_index(lambda index: _write(index, [entry]), ROOTS, say)
    except (OSError, sqlite3.Error) as problem:
        say(f"the index of runs '{place()}' could not be written: {problem}")


def entries(roots: Sequence[str | Path] = (), say: Say = log.warning) -> list[Entry]:
    """All that is known, the newest first; what is below `roots` is looked at again before."""
    fresh = scan(roots, say)

    def look(index: sqlite3.Connection) -> list[Entry]:
        _write(index, fresh)
        rows = index.execute(f"SELECT {', '.join(COLUMNS)} FROM runs ORDER BY started DESC, folder")
        return [Entry(*row) for row in rows]

    try:
        return _with_index(look, roots or ROOTS, say)
    except (OSError, sqlite3.Error) as problem:
        raise WhetError(f"the index of runs '{place()}' cannot be used ({problem}); set WHET_HOME to a folder that can be "
                        "written, or remove the file") from None  # fmt: skip


def scan(roots: Sequence[str | Path], say: Say = log.warning) -> list[Entry]:
    """The runs and comparisons below folders. One that cannot be read is said and left out."""
    found = []
    for root in roots:
        for path, folders, _ in os.walk(root):
            if _is_one(Path(path)):
                folders.clear()
                try:
                    found.append(read(path))
                except WhetError as problem:
                    say(str(problem))
            folders[:] = sorted(f for f in folders if f not in INSIDE and not f.startswith("."))
    return found


def read(folder: str | Path) -> Entry:
    """The entry of a folder, from its files alone. Raises WhetError where it holds no run."""
    path = Path(folder).absolute()
    try:
        if (path / "results.json").exists():
            return _comparison(path)
        if (path / "run.yaml").exists():
            return _run(path)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, yaml.YAMLError) as problem:
        raise WhetError(f"the run in '{folder}' cannot be read: {' '.join(str(problem).split())}") from None
    raise WhetError(f"'{folder}' holds no run: it has neither run.yaml nor results.json")


def _run(path: Path) -> Entry:
    asked = yaml.safe_load((path / "run.yaml").read_text())
    summary = _json(path / "summary.json") or {}
    before = summary.get("before") or (_json(path / "before.json") or {}).get("test") or {}
    return Entry(
        folder=str(path), kind="run", recipe=asked["recipe"], task=summary.get("task") or asked["task"],
        model=asked.get("model") or "base", seed=asked.get("seed"), before=_accuracy(before),
        after=_accuracy(summary.get("after") or {}), steps=summary.get("steps"),
        started=asked.get("record", {}).get("started", ""), state="finished" if summary else "unfinished",
    )  # fmt: skip


def _comparison(path: Path) -> Entry:
    found = _json(path / "results.json")
    best = found["arms"][0]["metrics"]["accuracy"]["value"]
    began = (yaml.safe_load(file.read_text())["record"]["started"] for file in (path / "runs").glob("*/run.yaml"))
    return Entry(
        folder=str(path), kind="comparison", recipe=" ".join(found["asked"]["arms"]), task=found["task"],
        model=found["model"]["name"], seed=None, before=_accuracy(found["start"]), after=best, steps=None,
        started=min(began, default=""), state="finished",
    )  # fmt: skip


def _accuracy(found: dict[str, Any]) -> float | None:
    return (found.get("accuracy") or {}).get("value")


def _json(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else None


def _is_one(path: Path) -> bool:
    return (path / "run.yaml").exists() or (path / "results.json").exists()


# -- the file ----------------------------------------------------------------------------------------------------------
def _with_index(work: Callable[[sqlite3.Connection], Found], roots: Sequence[str | Path], say: Say) -> Found:
    """work(index) in one transaction; an index that is missing or damaged is made again first."""
    path = place()
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _opened(path) as index:
            return work(index)
    except (_Unusable, sqlite3.DatabaseError) as problem:
        if not _is_damage(problem):
            raise
        _make(path, roots, say)
    with _opened(path) as index:
        return work(index)


class _Unusable(Exception):
    """There is no index yet, or it is of another version."""


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    if not path.exists():
        raise _Unusable
    with closing(sqlite3.connect(path, timeout=WAIT, isolation_level=None)) as index:
        index.execute("BEGIN IMMEDIATE")  # readers wait too: what they read may be about to be written
        if index.execute("PRAGMA user_version").fetchone()[0] != VERSION:
            raise _Unusable
        yield index
        index.execute("COMMIT")


def _make(path: Path, roots: Sequence[str | Path], say: Say) -> None:
    """Make the index from the folders below `roots`, beside its place, and put it there; one process at a time."""
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            with _opened(path) as index:
                if index.execute("PRAGMA quick_check").fetchone() == ("ok",):
                    return  # another process was faster
        except (_Unusable, sqlite3.DatabaseError) as problem:
            if not _is_damage(problem):
                raise
        if path.exists():
            below = ", ".join(str(r) for r in roots)
            say(f"the index of runs '{path}' was damaged; it is made again from the folders below {below}")
        beside = path.with_suffix(".new")
        beside.unlink(missing_ok=True)
        with closing(sqlite3.connect(beside)) as index:
            index.execute(f"CREATE TABLE runs ({', '.join(COLUMNS)}, PRIMARY KEY (folder))")
            index.execute(f"PRAGMA user_version = {VERSION}")
            _write(index, scan(roots, say))
            index.commit()
        path.with_name(path.name + "-journal").unlink(missing_ok=True)  # it belongs to the file that goes
        beside.replace(path)


def _write(index: sqlite3.Connection, found: Sequence[Entry]) -> None:
    marks = ", ".join("?" * len(COLUMNS))
    index.executemany(
        f"INSERT OR REPLACE INTO runs ({', '.join(COLUMNS)}) VALUES ({marks})", [astuple(entry) for entry in found]
    )


def _is_damage(problem: Exception) -> bool:
    return isinstance(problem, _Unusable) or getattr(problem, "sqlite_errorcode", 0) & 0xFF in BROKEN
