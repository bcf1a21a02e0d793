"""A part of the fault suite that takes seconds; `make faults` runs all of it, and so do the slow tests, section by section."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import crashes
import pytest
import signals
import surroundings
import table
import teachers
from harness import RUNS, Ended, difference, lost, quiet_home
from sections import SECTIONS, Section

from whet.training import checkpoint


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("faults")
    with quiet_home(folder):
        yield folder


# kinds of runs and kills of each: in a step, while a checkpoint is saved, at a rename, in a line of metrics, in an answer, at any time
KILLS = [("sft", 2), ("sft", 4), ("sft", 6), ("grpo", 8), ("grpo", 1), ("relift", 0), ("lift", 2)]


@pytest.mark.parametrize(("kind", "number"), KILLS)
def test_a_killed_run_goes_on_to_the_same_end(kind: str, number: int, place: Path) -> None:
    row = crashes.one(crashes.peace_of(kind, place), number)
    assert not row["differs"], row


@pytest.mark.parametrize(
    "case", [signals.CASES[n] for n in (0, 1, 3, 9)], ids=["SIGINT", "SIGTERM", "SIGINT twice", "compare"]
)
def test_a_signal_saves_and_says_how_to_go_on(case: tuple[Any, ...], place: Path) -> None:
    row = signals.one(crashes.peace_of(case[0], place), *case[1:])
    assert not row["differs"], row


QUICK = [
    "disk full in the first checkpoint",
    "files limited to 100 KiB",
    "clock jumps by a day, sft",
    "out of memory in a step, CPU",
]


@pytest.mark.parametrize("fault", QUICK)
def test_what_a_run_stands_on_gives_way(fault: str, place: Path) -> None:
    row = surroundings.attempt(fault, place)
    if row["survived"] is None:
        pytest.skip(row["ended"])
    assert row["survived"], row


@pytest.mark.parametrize("name", ["500", "breaks off in its reply"])
def test_a_teachers_fault_that_passes_is_lived_through(name: str, tmp_path: Path) -> None:
    row = teachers.attempt(name, teachers.PASSING[name], 4, tmp_path)
    assert row["survived"], row


@pytest.mark.parametrize(
    "name", ["no JSON", "no text", "endless nesting", "a list", "content that is no text", "429, come back in a day"]
)
def test_a_teachers_fault_that_stays_is_one_line(name: str, tmp_path: Path) -> None:
    row = teachers.attempt(name, teachers.STAYING[name], teachers.EVER, tmp_path)
    assert row["survived"], row


@pytest.mark.slow
@pytest.mark.parametrize("section", [s for s in SECTIONS if s.there], ids=lambda s: s.name)
def test_everything_is_survived(section: Section, place: Path, tmp_path: Path) -> None:
    rows = list(section.rows(tmp_path, 0))
    assert rows
    bad = [row for row in rows if row.get("differs") or row.get("survived") is False or row.get("scored")]
    assert not bad
    table.lines(section.table(rows))


# -- the suite can fail ------------------------------------------------------------------------------------------------
def test_a_difference_is_seen(place: Path, tmp_path: Path) -> None:
    whole = crashes.peace_of("sft", place).out
    other = tmp_path / "other"
    for change in ("weights", "numbers", "files"):
        shutil.rmtree(other, ignore_errors=True)
        shutil.copytree(whole, other)
        assert not difference(whole, other)
        if change == "weights":
            file = other / "model" / "model.safetensors"
            data = bytearray(file.read_bytes())
            data[-1] ^= 1
            file.write_bytes(data)
        elif change == "numbers":
            file = other / "metrics.jsonl"
            file.write_text(file.read_text().partition("\n")[2])
        else:
            (other / ".left").touch()
        assert difference(whole, other).startswith(change)


def test_steps_that_no_checkpoint_holds_are_counted(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": n, "share": 0.1}) + "\n" for n in range(1, 6)) + '{"step": 6, "l'
    )
    assert lost(tmp_path) == 5
    checkpoint.save(tmp_path / "checkpoints", 3, {}, {})
    assert lost(tmp_path) == 2
    (tmp_path / "checkpoints" / "step-00000003" / "state.pt").write_bytes(b"torn")
    assert lost(tmp_path) == 5


def test_one_line_is_one_line() -> None:
    assert Ended(2, "", "whet: error: no\n").in_one_line
    assert not Ended(2, "", "Traceback\nwhet: error: no\n").in_one_line
    assert not Ended(1, "", "whet: error: no\n").in_one_line


def test_the_page_keeps_what_is_written_by_hand(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    rows = [
        {"kind": kind, "moment": "any", "steps_lost": n, "differs": "weights" * (n == 2)} for n, kind in enumerate(RUNS)
    ]
    (tmp_path / "crashes.json").write_text(json.dumps(rows))
    table.write(tmp_path, page)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert "| all | 5 | 5 | 4 | 4 | 2.0 |" in text
