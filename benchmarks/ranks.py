"""Two ranks against one: the same steps of `sft` and `grpo`, one thread a process, on a machine with two idle cores.

    python -m benchmarks.ranks --json results/scale/ranks.json        # about 5 minutes

Blocks run in turn, one process and then two by torchrun; a ratio is that of two neighbours. Loading and the first steps are left out.
A ratio of 2 would be perfect. Both do the same work: the same rows, up to rounding the same gradients.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

WARM, STEPS, PAIRS = 3, 20, 5
CELLS: dict[str, dict[str, Any]] = {"sft": {"batch": 32}, "grpo": {"batch": 8, "group": 8}}
LAUNCH = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


class Clock:
    """An observer that notes when each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def stage(self, index: int, stage: Any, lines: Any) -> None: ...
    def evaluated(self, row: Mapping[str, Any]) -> None: ...

    def step(self, row: Mapping[str, Any]) -> None:
        self.ends.append(time.perf_counter())


def work(cell: str, steps: int, shard: bool) -> float:
    """Seconds a step on this rank, of the shipped base."""
    import torch

    from whet.models import base
    from whet.ranks import Ranks
    from whet.recipes.recipe import get_recipe
    from whet.tasks import get_task
    from whet.training.fit import Fit
    from whet.training.options import Options

    torch.set_num_threads(1)
    policy, clock = base.load(device="cpu"), Clock()
    policy.ranks = Ranks.here()
    stages = get_recipe(cell)(steps=WARM + steps, lr=1e-7, **CELLS[cell]).stages
    Fit(policy, stages, get_task("chain-sum"), options=Options(shard=shard, keep="last"), observer=clock).run()
    return (clock.ends[-1] - clock.ends[WARM - 1]) / steps


def block(cell: str, ranks: int, steps: int, shard: bool) -> float:
    """The same in processes of their own; the first rank's clock."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "seconds"
        worker = [
            "-m",
            "benchmarks.ranks",
            "--worker",
            cell,
            "--steps",
            str(steps),
            "--json",
            str(out),
            *(["--shard"] if shard else []),
        ]
        subprocess.run([sys.executable, *([*LAUNCH, str(ranks)] if ranks > 1 else []), *worker], check=True,
                       env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True)  # fmt: skip
        return float(out.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, required=True, help="where the result is written")
    parser.add_argument("--steps", type=int, default=STEPS, help="steps that a block times")
    parser.add_argument("--pairs", type=int, default=PAIRS, help="blocks of each side")
    parser.add_argument("--shard", action="store_true", help="cut the model among the two ranks")
    parser.add_argument("--worker", choices=CELLS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        seconds = work(asked.worker, asked.steps, asked.shard)
        if os.environ.get("RANK", "0") == "0":
            asked.json.write_text(str(seconds))
        return
    found: dict[str, Any] = {"cores": len(os.sched_getaffinity(0)), "python": platform.python_version(), "steps": asked.steps,
                             "shard": asked.shard, "cells": {}}  # fmt: skip
    for cell in CELLS:
        pairs = [[block(cell, ranks, asked.steps, asked.shard) for ranks in (1, 2)] for _ in range(asked.pairs)]
        ratios = sorted(one / two for one, two in pairs)
        found["cells"][cell] = {"one": [p[0] for p in pairs], "two": [p[1] for p in pairs], "ratio": median(ratios), "low": ratios[0],
                                "high": ratios[-1]}  # fmt: skip
        print(
            f"{cell}: {median(ratios):.2f} times the steps a second of one process ({ratios[0]:.2f} to {ratios[-1]:.2f})",
            flush=True,
        )
    asked.json.parent.mkdir(parents=True, exist_ok=True)
    asked.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
