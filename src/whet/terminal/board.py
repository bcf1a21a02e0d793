"""The runs of a comparison in one live table. It reads the runs' folders, so that it does not matter where they run."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.live import Live
from rich.table import Table
from rich.text import Text

from whet.runs import RunFolder
from whet.terminal.console import console, known, percent, table

if TYPE_CHECKING:
    from whet.cells import Job

TAIL = 1 << 16  # bytes of a run's metrics that are read for its last steps


class Board:
    """Shows jobs on a terminal; elsewhere only what is told to it."""

    def __init__(self) -> None:
        self.screen = console(stderr=True)

    def tell(self, text: str) -> None:
        """One line, above the table where there is one."""
        self.screen.print(text, markup=False, style="dim", soft_wrap=True)

    @contextmanager
    def showing(self, jobs: Sequence[Job]) -> Iterator[None]:
        """The table while it is entered."""
        if not self.screen.is_terminal:
            yield
            return
        with Live(get_renderable=lambda: board(jobs), console=self.screen, refresh_per_second=1, transient=True):
            yield


def board(jobs: Sequence[Job]) -> Table:
    """One row a run: how far it is, and its last accuracy on validation."""
    made = table("run", "seed", "is", "step", "done", "validation", right=("seed", "step", "done", "validation"))
    for job in jobs:
        made.add_row(Text(job.arm), str(job.config.seed), *row_of(job))
    return made


def row_of(job: Job) -> tuple[str, str, str, str]:
    """State, step, share of the budget and validation accuracy of a job, as its folder shows them."""
    folder = RunFolder(job.folder)
    rows = tail(folder.metrics)
    state = "finished" if folder.summary.exists() else "runs" if folder.config.exists() else "waits"
    step = str(rows[-1]["step"]) if rows else ""
    share = next((row["share"] for row in reversed(rows) if known(row.get("share"))), None)
    accuracy = next(
        (row["validation/accuracy"] for row in reversed(rows) if known(row.get("validation/accuracy"))), None
    )
    return (
        state,
        step,
        "" if share is None else percent(min(1.0, share)),
        "" if accuracy is None else percent(accuracy),
    )


def tail(file: Path) -> list[Mapping[str, Any]]:
    """The last rows of a run's metrics; a line that is being written is left out."""
    try:
        with file.open("rb") as opened:
            size = opened.seek(0, 2)
            opened.seek(max(0, size - TAIL))
            lines = opened.read().split(b"\n")
    except FileNotFoundError:
        return []
    rows = []
    for line in lines[1 if size > TAIL else 0 : -1]:
        with contextlib.suppress(ValueError):  # a damaged line is said by whoever needs it
            rows += [json.loads(line)] if line else []
    return rows
