"""Seconds of a learning step (forward and backward) on the shipped base: plain padding against packed rows.

    python -m benchmarks.forward [--repeats 5] [--only NAME]

The same rows, the same loss; plain is what `Policy.packs = False` gives: right-padded, cut by cost. Each number is the least
of the repeats, taken in turns, in processor seconds (of one thread where OMP_NUM_THREADS=1), which other work on the machine
disturbs less than the clock on the wall. GFLOP are those that were executed.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable

import torch

from whet.models.base import load
from whet.models.meter import Meter
from whet.models.policy import Policy
from whet.objectives import dpo, nll, policy_gradient
from whet.records import Row, Sample, Segment
from whet.training.learner import Learner
from whet.training.stage import Update
from whet.weights import Weights

Tokens = list[int]


def answered(prompt: Tokens, answer: Tokens, group: str) -> Sample:
    sample = Sample([Segment("question", prompt), Segment("answer", answer, learn=True, sampled=True)], group, group)
    sample.per_token["advantage"] = torch.ones(len(sample))
    sample.per_token["reference_logprob"] = torch.zeros(len(sample))
    return sample


def grpo(prompt: int, group: int = 8, groups: int = 8) -> list[Row]:
    draw = random.Random(0)
    rows = []
    for g in range(groups):
        ids = some(draw, prompt)
        rows += [Row({"response": answered(ids, some(draw, draw.randint(15, 45)), f"g{g}")}) for _ in range(group)]
    return rows


def pairs(prompt: int, number: int = 16) -> list[Row]:
    draw = random.Random(0)
    rows = []
    for g in range(number):
        ids = some(draw, prompt)
        sides = [answered(ids, some(draw, draw.randint(15, 45)), f"g{g}") for _ in range(2)]
        rows.append(Row({"chosen": sides[0], "rejected": sides[1]}))
    return rows


def documents(number: int = 64) -> list[Row]:
    """Ragged texts as supervised fine-tuning meets them: 20 to 200 tokens, most of them short."""
    draw = random.Random(0)
    lengths = [min(200, int(20 * 10 ** draw.betavariate(1, 2))) for _ in range(number)]
    return [Row({"response": answered(some(draw, 12), some(draw, n), f"d{i}")}) for i, n in enumerate(lengths)]


def some(draw: random.Random, n: int) -> Tokens:
    return [draw.randrange(40, 1000) for _ in range(n)]


CASES: dict[str, Callable[[], tuple[Update, list[Row]]]] = {
    "grpo 8 x 8, prompts of 20": lambda: (Update(policy_gradient()), grpo(20)),
    "grpo 8 x 8, prompts of 400": lambda: (Update(policy_gradient()), grpo(400)),
    **{
        f"grpo 4 x {g}, prompts of {p}": lambda p=p, g=g: (Update(policy_gradient()), grpo(p, g, 4))
        for p in (20, 400)
        for g in (4, 32)
    },
    "dpo 16 pairs, prompts of 100": lambda: (Update(dpo()), pairs(100)),
    "sft 64 ragged": lambda: (Update(nll()), documents()),
}


def measure(policy: Policy, learner: Learner, rows: list[Row], packs: bool) -> tuple[float, float]:
    """Seconds and GFLOP of one gradient."""
    policy.packs, policy.meter = packs, Meter()
    began = time.process_time()
    learner.accumulate(rows, 0)
    return time.process_time() - began, policy.meter.flops / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--token-budget", type=int, default=1024)
    asked = parser.parse_args()
    policy, weights = load(), Weights()
    weights.attach(policy, 0)
    assert policy.packs
    print(
        f"{'':30} {'plain s':>8} {'packed s':>8} {'ratio':>6} {'plain GFLOP':>12} {'packed GFLOP':>12} {'GFLOP/s':>8}"
    )
    for name, make in CASES.items():
        if asked.only not in name:
            continue
        update, rows = make()
        learner = Learner(update, {"policy": policy}, weights, steps=1, token_budget=asked.token_budget)
        for packs in (False, True):
            measure(policy, learner, rows, packs)
        found = [[measure(policy, learner, rows, packs) for packs in (False, True)] for _ in range(asked.repeats)]
        (plain, work), (packed, less) = (min(turns) for turns in zip(*found, strict=True))
        print(
            f"{name:30} {plain:8.3f} {packed:8.3f} {plain / packed:6.2f} {work:12.1f} {less:12.1f} {less / packed:8.1f}"
        )


if __name__ == "__main__":
    main()
