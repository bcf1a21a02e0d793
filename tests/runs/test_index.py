"""The index of runs: what it holds, and that it can be lost, damaged and written by several at once."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import sqlite3
from pathlib import Path

import pytest
import yaml

from whet.errors import WhetError
from whet.runs import index


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An index of its own, and a working directory with ./runs."""
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def make_run(path: Path, after: float | None = 0.7, started: str = "2026-01-01T10:00:00") -> Path:
    path.mkdir(parents=True)
    config = {"recipe": "grpo", "task": "chain-sum", "seed": 3, "record": {"started": started}}
    (path / "run.yaml").write_text(yaml.safe_dump(config))
    (path / "before.json").write_text(json.dumps({"test": {"accuracy": {"value": 0.1}}}))
    if after is not None:
        summary = {"task": "chain-sum:level=2", "steps": 12, "before": {"accuracy": {"value": 0.1}},
                   "after": {"accuracy": {"value": after}}}  # fmt: skip
        (path / "summary.json").write_text(json.dumps(summary))
    return path


def make_comparison(path: Path) -> Path:
    make_run(path / "runs" / "grpo-0-abc", started="2026-02-01T10:00:00")
    found = {"asked": {"arms": {"sft": {}, "grpo": {}}}, "task": "sort", "model": {"name": "base"},
             "start": {"accuracy": {"value": 0.2}}, "arms": [{"metrics": {"accuracy": {"value": 0.9}}}]}  # fmt: skip
    (path / "results.json").write_text(json.dumps(found))
    return path


def names() -> list[str]:
    return [Path(entry.folder).name for entry in index.entries()]


def test_a_run_is_listed_with_its_numbers(tmp_path):
    index.record(make_run(tmp_path / "elsewhere" / "a"))
    (entry,) = index.entries()
    assert entry == index.Entry(
        folder=str(tmp_path / "elsewhere" / "a"), kind="run", recipe="grpo", task="chain-sum:level=2", model="base", seed=3,
        before=0.1, after=0.7, steps=12, started="2026-01-01T10:00:00", state="finished",
    )  # fmt: skip
    assert entry.exists
    shutil.rmtree(tmp_path / "elsewhere")
    assert not index.entries()[0].exists


def test_the_newest_stands_first_and_a_run_is_listed_once(tmp_path):
    old = make_run(tmp_path / "old", after=None)
    index.record(old)
    index.record(make_run(tmp_path / "new", started="2026-01-02T10:00:00"))
    assert [(e.state, e.after) for e in index.entries()] == [("finished", 0.7), ("unfinished", None)]
    shutil.rmtree(old)
    index.record(make_run(tmp_path / "old", after=0.5))
    assert names() == ["new", "old"]
    assert index.entries()[1].after == 0.5


def test_a_comparison_is_one_entry(tmp_path):
    make_comparison(tmp_path / "runs" / "compared")
    (entry,) = index.entries()
    assert (entry.kind, entry.recipe, entry.before, entry.after) == ("comparison", "sft grpo", 0.2, 0.9)
    assert entry.started == "2026-02-01T10:00:00"


def test_a_deleted_index_is_made_again_from_the_runs_folder(home, tmp_path):
    index.record(make_run(tmp_path / "runs" / "a"))
    index.record(make_run(tmp_path / "elsewhere" / "b", started="2025-01-01T10:00:00"))
    assert names() == ["a", "b"]
    shutil.rmtree(home)
    said = []
    assert [Path(e.folder).name for e in index.entries(say=said.append)] == ["a"]
    assert not said  # nothing is amiss: there was none
    index.entries([tmp_path / "elsewhere"])
    assert names() == ["a", "b"]


@pytest.mark.parametrize("damage", ["text", "empty", "page", "version"])
def test_a_damaged_index_is_made_again_with_a_note(home, tmp_path, damage):
    index.record(make_run(tmp_path / "runs" / "a"))
    file = home / "runs.sqlite"
    if damage == "page":  # the table's own page; the header is whole
        whole = bytearray(file.read_bytes())
        whole[4096:] = b"\xff" * (len(whole) - 4096)
        file.write_bytes(whole)
    elif damage == "version":
        with sqlite3.connect(file) as other:
            other.execute("PRAGMA user_version = 99")
        other.close()
    else:
        file.write_bytes(b"no database" * 100 if damage == "text" else b"")
    said: list[str] = []
    assert [Path(e.folder).name for e in index.entries(say=said.append)] == ["a"]
    assert len(said) == 1 and "made again from the folders below runs" in said[0]
    assert [Path(e.folder).name for e in index.entries(say=said.append)] == ["a"]
    assert len(said) == 1


def test_a_run_that_cannot_be_read_is_said_and_left_out(tmp_path):
    make_run(tmp_path / "runs" / "a")
    (make_run(tmp_path / "runs" / "b") / "summary.json").write_text("{")
    said: list[str] = []
    assert [Path(e.folder).name for e in index.entries(say=said.append)] == ["a"]
    assert len(said) == 1 and "runs/b' cannot be read" in said[0]


def test_folders_inside_a_run_are_not_searched(tmp_path):
    make_run(tmp_path / "runs" / "a")
    make_run(tmp_path / "runs" / "a" / "inner")
    make_run(tmp_path / "runs" / "group" / "c", started="2025-01-01T10:00:00")
    assert names() == ["a", "c"]


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(WhetError, match="holds no run"):
        index.record(tmp_path)


def test_an_index_that_cannot_be_written_costs_a_note_and_not_the_run(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "file" / "below"))
    said: list[str] = []
    index.record(make_run(tmp_path / "runs" / "a"), say=said.append)
    assert len(said) == 1 and "could not be written" in said[0]
    with pytest.raises(WhetError, match="set WHET_HOME"):
        index.entries()


def test_where_the_index_is(tmp_path, monkeypatch):
    assert index.place() == tmp_path / "home" / "runs.sqlite"
    monkeypatch.delenv("WHET_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert index.place() == tmp_path / "data" / "whet" / "runs.sqlite"


def test_several_processes_write_at_once(home, tmp_path):
    """Each process finds the index missing or damaged, and none loses what another has written."""
    home.mkdir()
    (home / "runs.sqlite").write_bytes(b"no database" * 100)
    folders = [[make_run(tmp_path / "elsewhere" / f"{p}-{i}") for i in range(8)] for p in range(3)]
    context = multiprocessing.get_context("fork")
    gate = context.Barrier(3)
    processes = [context.Process(target=_record, args=(own, gate)) for own in folders]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert sorted(names()) == sorted(folder.name for own in folders for folder in own)


def _record(folders: list[Path], gate) -> None:
    gate.wait()
    for folder in folders:
        index.record(folder)
