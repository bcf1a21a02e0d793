"""The same learning: GRPO by Whet and by TRL from the same folder with matched settings, their reward curves compared.

    python -m benchmarks.curves --steps 100 --seeds 3 --json results/curves/curves.json
    python -m benchmarks.curves --steps 2 --seeds 2 --batch 2 --group 4 --json /tmp/curves.json      # does it run at all?

Both start from the shipped base and answer the same problems of `chain-sum` in the same order. Matched are the prompts'
token ids, sampling, the reward (Whet's verifier on the drawn tokens), the loss, and AdamW with its clipping; the rate is
constant. Each side draws its answers with its own random numbers. A run is one JSON beside the result and is not run again
while it is there.

Compared is the mean reward in blocks of steps: Whet less TRL, seed by seed (the problems are the same), with a 95 %
interval over the seeds. `same` says that no block differs at 5 % after Holm's correction; `detectable` is the smallest
difference of a block that would have been seen with a probability of 80 %, so that `same` is not taken for more than it is.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import theirs
from benchmarks.ours import Clock
from benchmarks.throughput import machine
from whet.evaluation.scores import interval_dict
from whet.evaluation.statistics import holm, over_seeds
from whet.runs import plain

TASK = "chain-sum"
LEARNING_RATE = 1e-4
SIDES = ("whet", "trl")


def whet(seed: int, steps: int, batch: int, group: int) -> list[float]:
    """The mean reward of each step of Whet's GRPO."""
    from whet.models import base
    from whet.recipes.reinforced.grpo import grpo
    from whet.tasks import get_task
    from whet.training.fit import Fit
    from whet.training.options import Options

    clock = Clock()
    stages = grpo(steps=steps, batch=batch, group=group, lr=LEARNING_RATE, warmup=0).stages
    policy = base.load(None, device="cpu", dtype="float32")
    Fit(policy, stages, get_task(TASK), options=Options(seed=seed, keep="last"), observer=clock).run()
    return [float(row["reward"]) for row in clock.rows]


def trl(seed: int, steps: int, batch: int, group: int) -> list[float]:
    """The mean reward of each step of TRL's."""
    import trl as library
    from datasets import Dataset

    from whet.models import base
    from whet.records import Sample
    from whet.seeds import seed_for
    from whet.sources import Uniform
    from whet.tasks import get_task

    task, form = get_task(TASK), base.load(None, device="cpu").format
    source = Uniform()
    source.bind(task, seed_for(seed, "problems"))  # the problems that Whet's run draws
    problems = source.draw(steps * batch)
    prompts = [[i for segment in form.prompt(p) for i in segment.ids] for p in problems]
    loaded, tokenizer = theirs.load(base.shipped())
    leading = len(form.start())
    texts = [form.decode(ids[leading:]) for ids in prompts]
    if tokenizer(text=texts)["input_ids"] != prompts:
        raise RuntimeError("the prompts of the two sides are not the same tokens")
    found: list[float] = []

    def reward(
        prompts: Any, completions: Any, completion_ids: list[list[int]], number: list[int], **_: Any
    ) -> list[float]:
        values = []
        for i, ids in zip(number, completion_ids, strict=True):
            values.append(task.verify(problems[i], form.read(Sample(form.cut(ids)))).value)
        found.append(sum(values) / len(values))
        return values

    given = {
        **theirs.common(steps, {}, seed), "learning_rate": LEARNING_RATE, "lr_scheduler_type": "constant",
        "warmup_steps": 0, "weight_decay": 0.0, "max_grad_norm": 1.0, "adam_beta1": 0.9, "adam_epsilon": 1e-8,
    }  # fmt: skip
    args = library.GRPOConfig(
        **given, per_device_train_batch_size=batch * group, num_generations=group, shuffle_dataset=False,
        max_completion_length=task.max_answer_tokens(), temperature=1.0, top_p=1.0, top_k=0, beta=0.0, loss_type="grpo",
        scale_rewards="group",
    )  # fmt: skip
    rows = Dataset.from_list([{"prompt": text, "number": i} for i, text in enumerate(texts)])
    library.GRPOTrainer(
        model=loaded, args=args, train_dataset=rows, processing_class=tokenizer, reward_funcs=reward
    ).train()
    if len(found) != steps:
        raise RuntimeError(f"{len(found)} batches of answers in {steps} steps")
    return found


def compare(curves: Mapping[str, Sequence[Sequence[float]]], block: int) -> dict[str, Any]:
    """Whet less TRL by blocks of steps.

    Args:
        curves: of each side, (seeds, steps) mean rewards; seed by seed from the same problems.
        block: steps of a block; the last one may be shorter.
    """
    tables = {side: np.asarray(curves[side], dtype=float) for side in SIDES}
    seeds, steps = tables["whet"].shape
    if tables["trl"].shape != (seeds, steps):
        raise ValueError(f"curves of {tables['whet'].shape} and {tables['trl'].shape} cannot be compared")
    gaps, blocks = [], []
    for start in range(0, steps, block):
        stop = min(steps, start + block)
        means = {side: table[:, start:stop].mean(1) for side, table in tables.items()}
        gap = over_seeds(means["whet"] - means["trl"])
        gaps.append(gap)
        blocks.append({
            "steps": [start, stop], **{side: {"mean": float(m.mean()), "by_seed": m.tolist()} for side, m in means.items()},
            "difference": interval_dict(gap), "p": gap.p,
        })  # fmt: skip
    corrected = holm([gap.p for gap in gaps])
    for found, p in zip(blocks, corrected, strict=True):
        found["p_holm"] = p
    whole = over_seeds(tables["whet"].mean(1) - tables["trl"].mean(1))
    return {
        "blocks": blocks, "whole": {**interval_dict(whole), "p": whole.p},
        "detectable": max(gap.detectable() for gap in gaps),
        "same": all(p >= 0.05 for p in corrected) if seeds > 1 else None,
    }  # fmt: skip


def once(file: Path, side: str, seed: int, shape: Mapping[str, int]) -> list[float]:
    """A run's curve, from its file where it is there.

    Raises:
        SystemExit: the file is of a run of another shape.
    """
    asked = {"side": side, "seed": seed, **shape}
    if not file.exists():
        began = time.perf_counter()
        rewards = {"whet": whet, "trl": trl}[side](seed, **shape)
        cell = {**asked, "reward": rewards, "seconds": time.perf_counter() - began}
        partial = file.with_suffix(".part")
        partial.write_text(json.dumps(cell))
        partial.replace(file)
        print(
            f"{side}, seed {seed}: reward {rewards[0]:.3f} to {rewards[-1]:.3f} ({cell['seconds']:.0f} s)", flush=True
        )
    cell = json.loads(file.read_text())
    if {name: cell[name] for name in asked} != asked:
        raise SystemExit(f"{file} is of another run than {asked}: choose another --json or remove it")
    return cell["reward"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--json", type=Path, required=True, help="where the result goes; its runs stand in a folder beside it"
    )
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8, help="problems a step")
    parser.add_argument("--group", type=int, default=8, help="answers to each")
    parser.add_argument("--block", type=int, default=10, help="steps whose rewards are averaged")
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", 0)) or os.cpu_count() or 1)
    asked = parser.parse_args()
    import torch

    torch.set_num_threads(asked.threads)
    out: Path = asked.json
    cells = out.parent / f"{out.stem}-cells"
    cells.mkdir(parents=True, exist_ok=True)
    shape = {"steps": asked.steps, "batch": asked.batch, "group": asked.group}
    curves: dict[str, list[list[float]]] = {side: [] for side in SIDES}
    for seed in range(asked.seeds):
        for side in SIDES:
            curves[side].append(once(cells / f"{side}-{seed}.json", side, seed, shape))
    found = {"task": TASK, "learning_rate": LEARNING_RATE, **shape, **compare(curves, asked.block), "curves": curves}
    out.write_text(json.dumps(plain({**found, "machine": machine(asked.threads)}), indent=1) + "\n")
    whole = found["whole"]
    print(f"Whet less TRL {whole['value']:+.4f} [{whole['low']:+.4f}, {whole['high']:+.4f}]; same: {found['same']}")


if __name__ == "__main__":
    main()
