"""The console, and how numbers are written on it."""

from __future__ import annotations

import logging
import os
import shlex
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from whet.report.numbers import flops, known

WIDE = 120  # columns where the output is no terminal: a file or a pipe
BARS = "▁▂▃▄▅▆▇█"


def console(stderr: bool = False) -> Console:
    """A console on the stream as it is now."""
    stream = sys.stderr if stderr else sys.stdout
    fits = stream.isatty() or "COLUMNS" in os.environ
    return Console(file=stream, highlight=False, width=None if fits else WIDE)


def note(text: str) -> None:
    """One line on stderr that is not an error."""
    console(stderr=True).print(f"whet: note: {text}", markup=False, style="yellow", soft_wrap=True)


def table(*columns: str, right: Sequence[str] = ()) -> Table:
    """A table with a dim head and no frame; the first column names the row, the columns in `right` hold numbers."""
    made = Table(box=box.SIMPLE_HEAD, header_style="dim", pad_edge=False, show_edge=False)
    for place, name in enumerate(columns):
        number = name in right
        made.add_column(name, justify="right" if number else "left", no_wrap=number or place == 0)
    return made


def quiet_libraries() -> None:
    """Whet's own notes go to stderr as one line each; those of the libraries below it stay away."""
    from transformers.utils import logging as hf_logging

    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    log = logging.getLogger("whet")
    if not any(isinstance(h, _Notes) for h in log.handlers):
        log.addHandler(_Notes(logging.WARNING))
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.showwarning = lambda message, category, *_, **__: note(str(message))


class _Notes(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        note(record.getMessage())


# -- numbers ---------------------------------------------------------------------------------------------------------
def share(value: Any) -> str:
    """A share, or a mean of shares: 0.413."""
    return f"{value:.3f}" if known(value) else "-"


def percent(value: Any) -> str:
    """A share in percent: 41 %."""
    return f"{100 * value:.0f} %" if known(value) else "-"


def change(before: Any, after: Any, form: str = "+.3f") -> str:
    """The signed difference."""
    return format(after - before, form) if known(before) and known(after) else "-"


def amount(value: Any) -> str:
    """A large number, shortened: 812, 2.52 M, 3.1e12."""
    if not known(value):
        return "-"
    if abs(value) >= 1e12:
        return flops(value)
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.3g}"


def memory(size: float) -> str:
    """Bytes, in KiB, MiB or GiB."""
    power, unit = next(((p, u) for p, u in ((30, "GiB"), (20, "MiB")) if size >= 2**p), (10, "KiB"))
    return f"{size / 2**power:.1f} {unit}"


def clock(seconds: Any) -> str:
    """0:07, 12:30, 1:02:30."""
    if not known(seconds):
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def curve(values: Sequence[float], width: int = 24) -> str:
    """A line of bars, from the lowest to the highest value; the last `width` ones."""
    shown = [v for v in values if known(v)][-width:]
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((v - low) * scale)] for v in shown)


def command(*words: object) -> str:
    """A command line that can be pasted into a shell."""
    return shlex.join(map(str, words))
