"""SIGTERM and Ctrl-C: the step is finished and saved, the exit code is 0, and the command that is printed goes on to the same end."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from crashes import Peace, peace_of
from harness import Patch, again, difference, lost_of, patched, whet, words

CASES: list[tuple[str, int, int, str]] = [(kind, number, times, moment) for kind in ("sft", "grpo") for number, times, moment in (
    (signal.SIGINT, 1, "step"), (signal.SIGTERM, 1, "step"), (signal.SIGTERM, 1, "sampling"), (signal.SIGINT, 2, "step"))]  # fmt: skip
CASES += [
    ("compare", signal.SIGINT, 1, "step"),
    ("compare", signal.SIGTERM, 1, "step"),
    ("compare", signal.SIGINT, 2, "step"),
]
GO_ON = "go on with it:  "


def told(number: int, times: int, moment: str, at: int) -> Patch:
    """Let a child get a signal at the `at`-th call of a moment, so often."""

    def tell(call: int, do: Any, args: Any) -> Any:
        if call == at:
            for _ in range(times):
                os.kill(os.getpid(), number)
        return do()

    return lambda: patched(moment, tell)


def one(peace: Peace, number: int, times: int, moment: str) -> dict[str, Any]:
    """A signal in the middle of a run: how it ended, and in what the end of what goes on differs."""
    name = signal.Signals(number).name
    out, log = peace.place / f"{peace.kind}-{name}-{times}-{moment}", peace.place / "signal-log"
    at = (
        peace.calls(moment) // 2 if moment == "step" else 2
    )  # the second call of `sample` is in the evaluation before training
    ended = whet(words(peace.kind, out), log, told(number, times, moment, at))
    row = {"run": peace.kind, "signal": name + " twice" * (times == 2), "in": "a step" if moment == "step" else "an evaluation",
           "code": ended.code, "steps_lost": lost_of(peace.kind, out)}  # fmt: skip
    said = next((line.partition(GO_ON)[2] for line in ended.out.splitlines() if GO_ON in line), "")
    expected = 130 if times == 2 and peace.kind != "compare" else 0
    wrong = "" if ended.code == expected else f"code {ended.code}: {ended.err[-200:]}"
    wrong = wrong or ("" if said == shlex.join(["whet", *again(peace.kind, out)]) else f"printed: {ended.out[-200:]}")
    if times == 1 and row["steps_lost"]:
        wrong = wrong or "the step was not saved"
    if not wrong:
        ended = whet(shlex.split(said)[1:], log)
        wrong = difference(peace.out, out) if ended.code == 0 else f"code {ended.code}: {ended.err[-200:]}"
    shutil.rmtree(out)
    return {**row, "differs": wrong}


def signals(place: Path, done: int = 0) -> Iterator[dict[str, Any]]:
    for kind, *case in CASES[done:]:
        yield one(peace_of(kind, place), *case)
