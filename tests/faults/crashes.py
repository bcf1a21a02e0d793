"""kill -9 at any moment: what is left goes on to the very end that it would have had.

Half of the kills come after a random time, half at a call that is drawn: in a step, while a checkpoint is saved, before and after
a rename, in the middle of a line of the metrics, while answers are sampled. Kill number i is a function of i alone.
"""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from harness import MOMENTS, RUNS, SAVE_EVERY, Child, again, count, difference, kill, lost_of, whet, words


class Peace:
    """The undisturbed run of a kind: its folder, its duration, and how often each moment comes in it."""

    def __init__(self, kind: str, place: Path) -> None:
        self.kind, self.place = kind, place
        self.out = place / f"{kind}-whole"
        began = time.monotonic()
        self._run(self.out)
        self.seconds = time.monotonic() - began
        self.calls = cache(self._calls)

    def _calls(self, moment: str) -> int:
        file, out = self.place / f"{self.kind}-{moment}.count", self.place / f"{self.kind}-counted"
        self._run(out, moment, file)
        shutil.rmtree(out)
        return int(file.read_text())

    def _run(self, out: Path, moment: str = "", file: Path | None = None) -> None:
        patch = count(moment, file) if file else lambda: None
        ended = whet(words(self.kind, out), self.place / f"{self.kind}-log", patch)
        assert ended.code == 0, ended.err


def one(peace: Peace, number: int) -> dict[str, Any]:
    """Kill number so-and-so of a kind: what was killed when, what was lost, and in what the end differs ("" is in nothing)."""
    rng = random.Random(f"{peace.kind} {number}")
    out, log = peace.place / f"{peace.kind}-{number}", peace.place / f"{peace.kind}-{number}-log"
    row: dict[str, Any] = {"kind": peace.kind, "number": number}
    moment = "any" if number % 2 else list(MOMENTS)[number // 2 % len(MOMENTS)]
    delay = rng.uniform(0.0, peace.seconds)
    at, how = 0 if number % 2 else rng.randint(1, peace.calls(moment)), rng.choice(["before", "middle", "after"])
    while True:
        shutil.rmtree(out, ignore_errors=True)
        if moment == "any":
            row |= {"moment": moment, "seconds": round(delay, 3)}
            child = Child(words(peace.kind, out), log)
            time.sleep(delay)
            child.kill()
        else:
            row |= {"moment": moment, "call": at, "how": how}
            child = Child(words(peace.kind, out), log, kill(moment, at, how))
        ended = child.wait()
        if ended.code == -signal.SIGKILL:
            break
        if ended.code or moment != "any":
            return {**row, "steps_lost": 0, "differs": f"not killed, code {ended.code}: {ended.err[-300:]}"}
        delay *= 0.7  # it was faster than the undisturbed one
    row["steps_lost"] = lost_of(peace.kind, out)
    if not (out / "summary.json").exists():
        ended = whet(again(peace.kind, out), log)
        if ended.code:
            return {**row, "differs": f"code {ended.code}: {ended.err[-300:]}"}
    differs = difference(peace.out, out) or (
        "" if row["steps_lost"] <= SAVE_EVERY else f"{row['steps_lost']} steps were lost"
    )
    shutil.rmtree(out)
    return {**row, "differs": differs}


@cache
def peace_of(kind: str, place: Path) -> Peace:
    return Peace(kind, place)


def kills(n: int, place: Path, done: int = 0) -> Iterator[dict[str, Any]]:
    """`n` kills, the kinds of runs in turn, from the `done`-th on."""
    for number in range(done, n):
        kind = list(RUNS)[number % len(RUNS)]
        yield one(peace_of(kind, place), number // len(RUNS))
