"""From the shipped base, with default arguments: what `sft` and `grpo` do to several tasks, and how long it takes.

    python -m benchmarks.improve [--out results/improve]

Each run is one JSON file and is not run again while it is there.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import whet

TASKS = (
    "chain-sum", "mod-chain", "lists", "word-problem:level=3", "countdown", "solutions:level=3", "sort:level=3", "finance:level=2",
)  # fmt: skip
RECIPES = ("sft", "grpo")


def measure(recipe: str, task: str) -> dict[str, Any]:
    began = time.perf_counter()
    result = whet.run(recipe, task=task)
    summary = result.summary
    return {
        "recipe": recipe, "task": task, "model": summary["model"], "seed": summary["seed"], "steps": summary["steps"],
        "before": summary["before"], "after": summary["after"], "others": summary["others"],
        "training_seconds": summary["compute"]["seconds"], "seconds": time.perf_counter() - began,
    }  # fmt: skip


def name(recipe: str, task: str) -> str:
    return f"{recipe}-{task.replace(':', '-').replace('=', '')}.json"


def line(cell: dict[str, Any]) -> str:
    before, after = cell["before"]["accuracy"], cell["after"]["accuracy"]
    apart = "yes" if after["low"] > before["high"] else "no"
    shown = " | ".join(f"{a['value']:.3f} [{a['low']:.3f}, {a['high']:.3f}]" for a in (before, after))
    return f"| {cell['recipe']} | {cell['task']} | {shown} | {apart} | {cell['training_seconds']:.0f} | {cell['seconds']:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("results/improve"))
    parser.add_argument("--recipes", nargs="*", default=RECIPES, help="measure only these now")
    arguments = parser.parse_args()
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    for task in TASKS:
        for recipe in arguments.recipes:
            file = out / name(recipe, task)
            if not file.exists():
                file.write_text(json.dumps(measure(recipe, task), indent=1))
            print(line(json.loads(file.read_text())), flush=True)
    found = (out / name(recipe, task) for task in TASKS for recipe in RECIPES)
    cells = [json.loads(file.read_text()) for file in found if file.exists()]
    head = (
        "`python -m benchmarks.improve`: default arguments, seed 0, test n = 512. *apart*: the 95 % intervals do not "
        "touch. Seconds of training alone and of everything (evaluations before and after included), each run beside one or two "
        "others on 2 cores.\n\n"
        "| recipe | task | before | after | apart | training s | all s |\n|---|---|---|---|---|---|---|\n"
    )
    (out / "improve.md").write_text(head + "\n".join(map(line, cells)) + "\n")


if __name__ == "__main__":
    main()
