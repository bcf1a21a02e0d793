"""Load: a large file is streamed, a large evaluation is flat, and a long run neither grows nor slows down.

python tests/faults/load.py [stream] [evaluation] [soak]      each in a process of its own; results/faults/NAME.json
"""

from __future__ import annotations

import gc
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

import whet
from trained import trained_folder
from whet.evaluation.evaluate import Evaluator, Plan
from whet.models import base
from whet.runs.interrupt import Interrupt
from whet.sources.problems import Uniform
from whet.tasks import get_task
from whet.terminal.progress import Display
from whet.training.checkpoint import write_atomic

RESULTS = Path(__file__).parents[2] / "results" / "faults"
MIB = 1 << 20
STREAM_BOUND = 60.0  # MiB over what the process had before, for a file of any size below a few hundred thousand rows
SLOPE_BOUND = 0.5  # MiB per 1,000 steps
STUDENT = {8: 2.31, 10: 2.23, 20: 2.09, 40: 2.02}  # 97.5 % points, by degrees of freedom


def resident() -> float:
    """MiB of memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB


class Peak:
    """The most memory that is held while it is entered, over what was held before; by the kernel, so that nothing is missed."""

    def __enter__(self) -> Peak:
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # begins the kernel's mark of the most anew
        self.before = resident()
        self.began = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self.began
        found = Path("/proc/self/status").read_text()
        high = next(int(line.split()[1]) for line in found.splitlines() if line.startswith("VmHWM"))
        self.mib = high / 1024 - self.before
        self.left = resident() - self.before


# -- a large file ------------------------------------------------------------------------------------------------------
def write_rows(file: Path, rows: int, size: int = 2000) -> None:
    """Rows of about `size` bytes: a long prompt, a rationale and an answer."""
    with file.open("w") as out:
        for i in range(rows):
            filler = f"the {i}th fact is of no use here; " * (size // 36)
            out.write(
                json.dumps({"prompt": f"parity {i}. {filler}", "rationale": str(i % 10), "answer": str(i % 2)}) + "\n"
            )


def stream(rows: int = 100_000, size: int = 2000, steps: int = 200, batch: int = 16) -> dict[str, Any]:
    """Read a JSONL file as the files task does, draw batches from it in a training order, and take test problems."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "rows.jsonl"
        write_rows(file, rows, size)
        mib = file.stat().st_size / MIB
        write_rows(Path(place) / "few.jsonl", 20)
        get_task(str(Path(place) / "few.jsonl"))  # what is imported once is no part of it
        with Peak() as opening:
            task = get_task(str(file))
        with Peak() as drawing:
            problems = Uniform()
            problems.bind(task, 0)
            for _ in range(steps):
                problems.draw(batch)
            task.problems("test", 512)
    return {"rows": rows, "file_mib": round(mib, 1), "opening_mib": round(opening.mib, 1), "opening_seconds": round(opening.seconds, 1),
            "kept_mib": round(opening.left, 1), "drawing_mib": round(max(0.0, drawing.mib), 1), "draws": steps * batch,
            "draw_microseconds": round(1e6 * drawing.seconds / (steps * batch)), "bound_mib": STREAM_BOUND,
            "holds": max(opening.mib, drawing.mib) < STREAM_BOUND}  # fmt: skip


# -- a large evaluation ------------------------------------------------------------------------------------------------
def evaluate_many(problems: int = 10_000, k: int = 4) -> dict[str, Any]:
    """Greedy and sampled answers of a tiny model to many problems, and to a tenth of them for comparison."""
    policy, task = base.load(trained_folder(), device="cpu"), get_task("parity")
    Evaluator(task, Plan(n=256, k=k)).test(policy)  # what is imported and compiled once
    found: dict[str, Any] = {"problems": problems, "answers": problems * (1 + k)}
    for name, n in (("tenth", problems // 10), ("all", problems)):
        with Peak() as peak:
            summary, matrix = Evaluator(task, Plan(n=n, k=k)).test(policy)
        found[f"{name}_mib"], found[f"{name}_seconds"] = round(peak.mib, 1), round(peak.seconds, 1)
        assert matrix.n == n
        found["accuracy"] = summary["accuracy"]["value"]
    more = problems - problems // 10
    found["bytes_per_answer"] = round((found["all_mib"] - found["tenth_mib"]) * MIB / (more * (1 + k)))
    found["answers_per_second"] = round(found["answers"] / found["all_seconds"])
    found["holds"] = found["bytes_per_answer"] < 1500
    return found


# -- a long run --------------------------------------------------------------------------------------------------------
class Sampling(Display):
    """A run's display that notes memory, objects and time every so many steps."""

    def __init__(self, every: int) -> None:
        super().__init__(Interrupt())
        self.every, self.seen = every, list[tuple[int, float, int, float]]()

    def step(self, row: Mapping[str, Any]) -> None:
        super().step(row)
        if self.step_now % self.every == 0:
            gc.collect()
            self.seen.append((self.step_now, resident(), len(gc.get_objects()), time.process_time()))


def soak(steps: int = 20_000, recipe: str = "sft", every: int = 500, **arguments: Any) -> dict[str, Any]:
    """A run of tiny steps in one process, on problems that never repeat: how its memory, its number of objects and the processor time of
    a step go.

    The first fifth of the samples is warm-up. The interval is that of a straight line through the others.
    """
    watcher = Sampling(every)
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "run"
        whet.run(recipe, out=out, watcher=watcher, model=trained_folder(), task="chain-sum", steps=steps, batch=2, test_n=8, k=0,
                 others=[], validation_n=8, eval_every=5 * every, save_every=2 * every, threads=1, **arguments)  # fmt: skip
        metrics = (out / "metrics.jsonl").stat().st_size
        files = sum(p.is_file() for p in out.rglob("*"))
    warm = watcher.seen[len(watcher.seen) // 5 :]
    at = [step / 1000 for step, *_ in warm]
    slope, error = line(at, [mib for _, mib, *_ in warm])
    paces = [
        1000 * (b[3] - a[3]) / every for a, b in zip(watcher.seen, watcher.seen[1:], strict=False)
    ]  # ms a step, checkpoints and looks included
    quarter = max(1, len(paces) // 4)
    first, last = statistics.median(paces[:quarter]), statistics.median(paces[-quarter:])
    return {
        "recipe": recipe, "steps": steps, "mib_per_1000_steps": round(slope, 4), "plus_minus": round(error, 4),
        "mib_first": round(warm[0][1], 1), "mib_last": round(warm[-1][1], 1),
        "objects_per_1000_steps": round(line(at, [float(n) for _, _, n, _ in warm])[0], 1),
        "milliseconds_first_quarter": round(first, 2), "milliseconds_last_quarter": round(last, 2),
        "metrics_bytes_per_step": round(metrics / steps), "files": files,
        "samples": [[step, round(mib, 2), n] for step, mib, n, _ in watcher.seen],
        "holds": slope - error < SLOPE_BOUND and last < 1.5 * first,
    }  # fmt: skip


def line(x: list[float], y: list[float]) -> tuple[float, float]:
    """The slope of a straight line, and half the width of its 95 % interval."""
    n, mean = len(x), statistics.fmean(x)
    spread = sum((a - mean) ** 2 for a in x)
    slope = sum((a - mean) * b for a, b in zip(x, y, strict=True)) / spread
    start = statistics.fmean(y) - slope * mean
    rest = sum((b - start - slope * a) ** 2 for a, b in zip(x, y, strict=True))
    if n < 3:
        return slope, math.inf
    point = next((t for degrees, t in STUDENT.items() if n - 2 <= degrees), 1.96) if n > 9 else 3.2
    return slope, point * math.sqrt(rest / (n - 2) / spread)


def keep(name: str, found: Any) -> None:
    """Write what was measured to results/faults."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_atomic(RESULTS / f"{name}.json", json.dumps(found if isinstance(found, list) else [found], indent=1) + "\n")


PARTS: dict[str, tuple[Callable[[], dict[str, Any]], ...]] = {
    "stream": (stream,),
    "evaluation": (evaluate_many,),
    "soak": (soak, lambda: soak(2000, "grpo", 50, group=2)),
}


def measure(name: str) -> list[dict[str, Any]]:
    """Measure a part, and keep what came of it."""
    found = []
    for part in PARTS[name]:
        found.append(part())
        keep(name, found)
    return found


def main() -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("WHET_HOME", tempfile.mkdtemp(prefix="whet-home-"))
    for name in sys.argv[1:] or PARTS:
        print(name, json.dumps([{k: v for k, v in row.items() if k != "samples"} for row in measure(name)]), flush=True)


if __name__ == "__main__":
    main()
