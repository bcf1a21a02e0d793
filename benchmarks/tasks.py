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

from whet.errors import WhetError
from whet.seeds import rng_for
from whet.sheet import specs
from whet.tasks import Problem, Response, Task, get_task


def answer(problem: Problem, text: str | None, rationale: str) -> Response:
    return Response(text or "", text, rationale)


def fingerprint(spec: str, n: int) -> str:
    """A hash of the first `n` training problems."""
    found = [(p.id, p.prompt, p.answer, p.rationale) for p in get_task(spec).problems("train", n)]
    return hashlib.blake2b(repr(found).encode(), digest_size=8).hexdigest()


def elsewhere(spec: str, n: int) -> str:
    """The same hash, from another process."""
    code = f"from benchmarks.tasks import fingerprint; print(fingerprint({spec!r}, {n}))"
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def rate(task: Task, n: int) -> float:
    """Problems a second, of the slower split."""
    slowest = 0.0
    for split in ("train", "test"):
        began = time.process_time()
        task.problems(split, n, seed=7)
        slowest = max(slowest, time.process_time() - began)
    return n / slowest


def measure(spec: str, n: int) -> dict[str, object]:
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
        wrong += task.verify(problem, response).value < 1.0
        fails = [c.name for c in task.check(problem, response) if c.result == "fail"]
        labelled += bool(corrupted.label) and bool(fails) and fails[0] in (f"step {corrupted.step + 1}", "answer")
    leaks = len({p.prompt for p in test} & {p.prompt for p in train})
    return {
        "task": spec, "gold": gold / (2 * n), "corrupted wrong": wrong / max(1, tried),
        "label at its step": labelled / max(1, tried), "tried": tried, "test prompts in train": leaks,
        "same in another process": fingerprint(spec, 200) == elsewhere(spec, 200), "problems/s": round(rate(task, n)),
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
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += [
        "| " + " | ".join(f"{v:.3f}" if isinstance(v, float) else str(v) for v in r.values()) + " |" for r in rows
    ]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    head = f"`python -m benchmarks.tasks --n {arguments.n}`; problems a second of one process, the slower of train and test.\n\n"
    arguments.out.write_text(head + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
