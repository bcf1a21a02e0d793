"""`whet runs` and `whet report`: what was run before, and a page of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from whet.errors import WhetError

if TYPE_CHECKING:
    from rich.table import Table

    from whet.runs.index import Entry


def add_commands(app: typer.Typer, panel: str | None = None) -> None:
    """Register `runs` and `report`; nothing heavy is imported before one of them is run."""

    @app.command(rich_help_panel=panel)
    def runs(
        roots: Annotated[
            list[Path] | None,
            typer.Argument(help="folders to look for runs in, beside the ones known", metavar="[DIR]...",
                           show_default=False),
        ] = None,
        n: Annotated[int, typer.Option("-n", min=1, help="the newest so many")] = 30,
    ) -> None:  # fmt: skip
        """Past runs and comparisons, the newest first."""
        show_runs(roots or [], n)

    @app.command(rich_help_panel=panel)
    def report(
        folders: Annotated[
            list[Path],
            typer.Argument(help="folders of runs or comparisons; runs that differ in their seeds are drawn as one",
                           metavar="DIR...", show_default=False),
        ],
        out: Annotated[Path, typer.Option(help="the page to write")] = Path("report.html"),
    ) -> None:  # fmt: skip
        """One HTML page of runs and comparisons, that needs no network."""
        from whet.report.page import write_report
        from whet.terminal.console import console

        console().print(f"[dim]report[/]  {write_report(folders, out)}", soft_wrap=True)


def show_runs(roots: Sequence[Path], n: int) -> None:
    """What `whet runs` prints."""
    from whet.runs import index
    from whet.terminal.console import console, note

    for root in roots:
        if not root.is_dir():
            raise WhetError(f"'{root}' is not a folder")
    found = index.entries(roots, say=note)
    screen = console()
    if not found:
        screen.print(
            "no runs yet; `whet run grpo --out runs/first` makes one, and `whet runs DIR` finds those below DIR"
        )
        return
    screen.print(runs_table(found[:n]))
    if len(found) > n:
        screen.print(f"[dim]the newest {n} of {len(found)}; -n shows more[/]")


def runs_table(found: Sequence[Entry]) -> Table:
    """One row a run: what, how good before and after, when, where."""
    from rich.text import Text

    from whet.terminal.console import change, share, table

    made = table("when", "recipe", "task", "model", "before", "after", "change", "folder",
                 right=("before", "after", "change"))  # fmt: skip
    for entry in found:
        when = entry.started.replace("T", " ")[:16]
        state = "" if entry.state == "finished" else f" ({entry.state})"
        folder = near(Path(entry.folder)) if entry.exists else f"{entry.folder} (gone)"
        made.add_row(Text(when, style="dim"), Text(entry.recipe, style="cyan"), Text(entry.task), Text(entry.model),
                     share(entry.before), share(entry.after), change(entry.before, entry.after), Text(folder + state),
                     style="" if entry.exists else "dim")  # fmt: skip
    return made


def near(folder: Path) -> str:
    """A path as it is typed from here: relative where it lies below."""
    here = Path.cwd()
    return str(folder.relative_to(here) if folder.is_relative_to(here) else folder)
