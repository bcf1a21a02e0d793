"""How long every recipe's default run takes: `whet run SLUG`, in a process of its own, evaluation before and after included.

    python -m benchmarks.defaults [SLUG ...] [--out results/defaults]

A recipe's figures are one JSON file, and it is not run again while that is there. Seconds by the clock are those of an idle machine
only; processor seconds, with OMP_NUM_THREADS=1, are what the run takes on one idle core whatever else is running.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from whet.recipes.recipe import recipes
from whet.training.checkpoint import write_atomic


def timed(slug: str) -> dict[str, Any]:
    """Seconds from the command to its end, and what the run says of itself. A run that fails raises."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        start, before = time.perf_counter(), used()
        subprocess.run([sys.executable, "-m", "whet", "run", slug, "--quiet", "--out", str(out)], check=True)
        seconds, processor = time.perf_counter() - start, used() - before
        summary = json.loads((out / "summary.json").read_text())
    accuracy = {when: summary[when]["accuracy"]["value"] for when in ("before", "after")}
    return {"slug": slug, "task": summary["task"], "seconds": round(seconds, 1),
            "processor_seconds": round(processor, 1), "threads": os.environ.get("OMP_NUM_THREADS", ""), **accuracy,
            "flops": summary["compute"]["flops"]}  # fmt: skip


def used() -> float:
    """Processor seconds of all processes started here that have ended."""
    found = resource.getrusage(resource.RUSAGE_CHILDREN)
    return found.ru_utime + found.ru_stime


def table(found: list[dict[str, Any]]) -> str:
    rows = [
        f"| {r['slug']} | {r['task']} | {r['seconds']:.0f} | {r['processor_seconds']:.0f} | {r['threads'] or 'all'} | {r['before']:.3f} | {r['after']:.3f} |"
        for r in sorted(found, key=lambda r: -r["processor_seconds"])
    ]
    head = "| recipe | task | seconds | processor seconds | threads | greedy before | after |\n|---|---|---|---|---|---|---|\n"
    return (f"`whet run SLUG` with nothing else said, on the shipped base (`python -m benchmarks.defaults`): seconds from the "
            f"command to its end, both evaluations included, while other processes ran beside it; processor seconds with one thread "
            f"are the clock's on one idle core.\n\n{head}" + "\n".join(rows) + "\n")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("slugs", nargs="*", help="recipes; all that follow a paper by default")
    parser.add_argument("--out", type=Path, default=Path("results/defaults"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for slug in arguments.slugs or [name for name, entry in recipes().items() if entry.paper]:
        file = arguments.out / f"{slug}.json"
        if not file.exists():
            write_atomic(file, json.dumps(timed(slug), indent=1) + "\n")
        print(file.read_text(), flush=True)
    found = [json.loads(f.read_text()) for f in sorted(arguments.out.glob("*.json"))]
    write_atomic(arguments.out / "defaults.md", table(found))


if __name__ == "__main__":
    main()
