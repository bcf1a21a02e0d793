"""The README's demo over five seeds: what `whet run grpo` does to the shipped base.

    python -m benchmarks.demo [--out results/demo] [--runs runs/demo-seeds]

A seed's summary is one JSON file and is not run again while it is there.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import whet
from whet.training.checkpoint import write_atomic

SEEDS = range(5)


def line(seed: int, summary: dict[str, Any]) -> str:
    numbers = [
        summary[when][name]["value"] for name in ("accuracy", "sampled_accuracy") for when in ("before", "after")
    ]
    changes = [o["after"]["value"] - o["before"]["value"] for o in summary["others"].values()]
    shown = [*(f"{x:.3f}" for x in numbers), *(f"{x:+.3f}" for x in changes)]
    return f"| {seed} | {' | '.join(shown)} | {summary['compute']['seconds']:.0f} |"


def table(summaries: dict[int, dict[str, Any]]) -> str:
    first = next(iter(summaries.values()))
    others = [f"{name} change" for name in first["others"]]
    head = ["seed", "greedy before", "after", "sampled before", "after", *others, "seconds"]
    return (
        f"`whet run grpo --seed N` from the shipped base, weights {first['model']['hash']} (`python -m benchmarks.demo`); "
        f"test n = {first['before']['accuracy']['n']} (greedy), the same problems sampled, n = "
        f"{next(iter(first['others'].values()))['before']['n']} for other tasks. Seconds of training.\n\n"
        f"| {' | '.join(head)} |\n|{'---|' * len(head)}\n"
        + "\n".join(line(seed, summary) for seed, summary in summaries.items())
        + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("results/demo"))
    parser.add_argument("--runs", type=Path, default=Path("runs/demo-seeds"), help="where the run folders go")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    summaries = {}
    for seed in SEEDS:
        file = arguments.out / f"seed-{seed}.json"
        if not file.exists():
            folder = arguments.runs / str(seed)
            if not (folder / "summary.json").exists():
                whet.run("grpo", seed=seed, out=folder)
            shutil.copy(folder / "summary.json", file)
        summaries[seed] = json.loads(file.read_text())
        print(line(seed, summaries[seed]), flush=True)
    write_atomic(arguments.out / "demo.md", table(summaries))


if __name__ == "__main__":
    main()
