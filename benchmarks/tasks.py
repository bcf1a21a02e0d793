"""Every generated task and level: gold and corrupted answers, split leaks, determinism, problems a second.

python -m benchmarks.tasks [--n 1000] [--out results/tasks.md]
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from whet.errors import WhetError
from whet.seeds import rng_for
from whet.tasks import Problem, Response, Task, get_task, task_names


def answer(problem: Problem, text: str | None, rationale: str) -> Response:
    return Response(text or "", text, rationale)


def fingerprint(spec: str, n: int) -> str:
    """A hash of the first `n` problems of train and of test."""
    task = get_task(spec)
    found = [task.problems(split, n) for split in ("train", "test")]
    return hashlib.blake2b(repr(found).encode(), digest_size=8).hexdigest()


def elsewhere(spec: str, n: int) -> str:
    """The same hash, from another process."""
    code = f"from benchmarks.tasks import fingerprint; print(fingerprint({spec!r}, {n}))"
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def rate(task: Task, n: int = 1000, repeat: int = 5) -> float:
    """Problems a second of the slower split: the best of some repeats, since the collector walks over all that the other
    measurements keep and another process may take the core."""
    slowest = 0.0
    for split in ("train", "test"):
        seconds = []
        for _ in range(repeat):
            began = time.process_time()
            task.problems(split, n, seed=7)
            seconds.append(time.process_time() - began)
        slowest = max(slowest, min(seconds))
    return n / slowest


def specs() -> list[str]:
    """Every level of every generated task, but for those that need a library that is not there, or another task."""
    found = []
    for name in task_names():
        if name == "gym":
            continue  # see benchmarks.gym
        try:
            levels = [f"{name}:level={level}" for level in get_task(name).levels]
            found += [spec for spec in levels if get_task(spec)]
        except WhetError as reason:
            print(f"left out: {reason}")
    return found


def measure(spec: str, n: int) -> dict[str, Any]:
    task = get_task(spec)
    train, test = task.problems("train", n), task.problems("test", n)
    gold = sum(task.verify(p, answer(p, p.answer, p.rationale)).value == 1.0 for p in train + test)
    wrong = labelled = tried = 0
    for i, problem in enumerate(train):
        try:
            corrupted = task.corrupt(problem, rng_for(0, spec, i))
        except WhetError:
            continue  # a problem without any step to corrupt says so
        tried += 1
        response = answer(problem, corrupted.answer, corrupted.rationale)
        wrong += task.verify(problem, response).value == 0.0
        fails = [c.name for c in task.check(problem, response) if c.result == "fail"]
        # the first fault is at the corrupted step, or (a plan that is judged as a whole) the check that the label names
        labelled += bool(fails) and fails[0] in (f"step {corrupted.step + 1}", corrupted.label)
    leaks = len({p.prompt for p in test} & {p.prompt for p in train})
    return {
        "task": spec, "gold": gold / (2 * n), "corrupted": tried, "corrupted scores 0": wrong / tried if tried else "-",
        "label at its step": labelled / tried if tried else "-", "test prompts in train": leaks,
        "same in another process": fingerprint(spec, n) == elsewhere(spec, n), "problems/s": round(rate(task)),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("results/tasks.md"))
    arguments = parser.parse_args()
    rows = []
    for spec in specs():
        rows.append(measure(spec, arguments.n))
        print(rows[-1], flush=True)
    slowest = min(rows, key=lambda row: row["problems/s"])
    head = (
        f"`python -m benchmarks.tasks --n {arguments.n}`: {len(rows)} task-levels. problems/s: of one process, the slower of "
        f"train and test, the best of 5 x 1,000; the slowest is {slowest['task']} with {slowest['problems/s']:,}.\n\n"
    )
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([shown(v) for v in row.values()] for row in rows)]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(head + "".join(f"| {' | '.join(line)} |\n" for line in lines))


def shown(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)


if __name__ == "__main__":
    main()
