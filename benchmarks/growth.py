"""How the cost of a GRPO step of Whet grows: with the group, the prompt, the model and the vocabulary.

A further sample's *response-only* cost is its cost behind a prompt of 4 tokens: a group's prompt is run once, so what a
long prompt adds to it are the products of its own tokens with the prompt's keys and values. `arithmetic` says how many
operations these are; no way of computing exact attention takes fewer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import workload
from benchmarks.ratios import slope

GROUPS, PROMPTS, BATCH = (4, 8, 16, 32), (4, 20, 400), 4
ANSWER = 32  # tokens, about the mean of these benchmarks' answers
SIZES = {
    "2.4 M": workload.SHAPE,
    "12 M": {"hidden": 512, "layers": 4, "heads": 8, "kv_heads": 4, "inner": 1536},
    "28 M": {"hidden": 768, "layers": 4, "heads": 12, "kv_heads": 4, "inner": 2304},
}
VOCABULARIES = (512, 8192, workload.LARGE)

Ask = Callable[[Mapping[str, Any]], dict[str, Any]]


def by_group(
    ask: Ask, request: Mapping[str, Any], files: Mapping[int, Path], groups: Sequence[int], repeats: int, steps: int
) -> dict[str, Any]:
    """Seconds of a step for each prompt length and group size, and what one more sample costs.

    Args:
        files: by prompt length; the shortest is what the others are compared with.
    """
    seconds: dict[int, dict[int, list[float]]] = {p: {g: [] for g in groups} for p in files}
    for _ in range(repeats):
        for length, file in files.items():
            for group in groups:
                asked = {**request, "file": file, "warm": 1, "steps": steps, "group": group, "batch": BATCH}
                seconds[length][group].append(1 / ask(asked)["steps/s"])
    middle = {p: {g: median(s) for g, s in by.items()} for p, by in seconds.items()}
    sample = {p: slope(by) / BATCH for p, by in middle.items()}  # of BATCH prompts, one more sample each
    shortest = min(files)
    return {
        "step_s": middle,
        "sample_s": sample,
        "over_response_only": {p: s / sample[shortest] for p, s in sample.items() if p != shortest},
    }


def arithmetic(shape: Mapping[str, int], prompt: int, answer: int = ANSWER) -> float:
    """Operations of an answer's tokens in the layers behind a prompt, over those behind 4 tokens."""
    head = shape["hidden"] // shape["heads"]
    attention = shape["hidden"] * (2 * shape["hidden"] + 2 * head * shape["kv_heads"])
    weights = attention + 3 * shape["hidden"] * shape["inner"]

    def each(keys: float) -> float:
        return 2 * weights + 4 * keys * shape["hidden"]

    return each(prompt + answer / 2) / each(4 + answer / 2)
