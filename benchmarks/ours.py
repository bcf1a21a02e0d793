"""Whet's side of each cell: the recipes as users run them, without evaluation and without a folder."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import workload


class Clock:
    """An observer that notes when each step ended and what it logged."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.rows: list[Mapping[str, Any]] = []

    def stage(self, index: int, stage: Any, lines: Any) -> None: ...
    def evaluated(self, row: Mapping[str, Any]) -> None: ...

    def step(self, row: Mapping[str, Any]) -> None:
        self.ends.append(time.perf_counter())
        self.rows.append(row)


def policy(model: Path, dtype: str) -> Any:
    from whet.models import base

    return base.load(model, device="cpu", dtype=dtype, style="plain")


def task(file: Path) -> Any:
    """A task that learns from every row of the file."""
    from whet.tasks import get_task

    columns = set(workload.rows_of(file)[0])
    held = {}
    for name in ("validation", "test"):
        row = {"prompt": f"held out for {name}", "answer": "0", "chosen": "a", "rejected": "b"}
        held[name] = str(workload.write(file.parent, f"{name}-{file.stem}", [{k: row[k] for k in sorted(columns)}]))
    return get_task(str(file), verifier="exact" if "answer" in columns else None, **held)


def stages(cell: str, steps: int, *, group: int = 8, batch: int = 0, new_tokens: int = 64) -> Any:
    """The recipe of a cell."""
    from whet.recipes.preference.dpo import dpo
    from whet.recipes.reinforced.grpo import grpo
    from whet.recipes.supervised.sft import sft
    from whet.rewards import from_function

    lr = workload.LEARNING_RATE
    if cell == "sft":
        return sft(steps=steps, batch=batch or 32, lr=lr)
    if cell == "dpo":
        return dpo(steps=steps, batch=batch or 16, lr=lr, pairs="given")
    reward = from_function(workload.letters)
    return grpo(steps=steps, batch=batch or 8, group=group, lr=lr, max_new_tokens=new_tokens, reward=reward)


def train(
    cell: str,
    model: Path,
    file: Path,
    settings: Mapping[str, Any],
    *,
    warm: int,
    steps: int,
    seed: int = 0,
    **shape: Any,
) -> dict[str, Any]:
    """Train for some steps and time those after the warm-up."""
    from whet.training.fit import Fit
    from whet.training.options import Options

    clock, recipe = Clock(), stages(cell, warm + steps, **shape)
    options = Options(seed=seed, token_budget=settings.get("token_budget", Options.token_budget), keep="last")
    Fit(
        policy(model, settings.get("dtype", "float32")), recipe.stages, task(file), options=options, observer=clock
    ).run()
    seconds = clock.ends[-1] - clock.ends[warm - 1]
    rows = clock.rows[warm:]
    found = {
        "seconds": seconds, "steps": steps, "steps/s": steps / seconds,
        "tokens/s": sum(r["learnt_tokens"] for r in rows) / seconds,
        "learnt_tokens": sum(r["learnt_tokens"] for r in rows),
    }  # fmt: skip
    for part in ("sample", "score", "learn"):
        found[f"{part}_s"] = sum(r[f"seconds/{part}"] for r in rows) / steps
    if "tokens" in rows[0]:
        found["answer_tokens"] = sum(r["tokens"] for r in rows) / steps
    return found


def requests(whose: Any, rows: list[dict[str, str]], new_tokens: int, seed: int) -> list[Any]:
    from whet.sampling import Request, SamplingSettings
    from whet.tasks import Problem

    drawn = SamplingSettings(max_new_tokens=new_tokens)
    prompts = [whose.format.prompt(Problem(id=str(i), prompt=r["prompt"], answer="0")) for i, r in enumerate(rows)]
    return [Request(segments, [seed * 100_000 + i], drawn, str(i)) for i, segments in enumerate(prompts)]


def sample(
    model: Path, file: Path, settings: Mapping[str, Any], *, new_tokens: int, seed: int = 0, warm: int = 8
) -> dict[str, Any]:
    """Answer every prompt once."""
    from whet.sampling import NativeSampler, choose_sampler

    whose = policy(model, settings["dtype"])
    choose_sampler(whose)  # the self-check that every run makes
    whose.sampler = NativeSampler(batch_size=settings["batch_size"])
    rows = workload.rows_of(file)
    whose.sample(requests(whose, rows[:warm], 8, seed))
    began = time.perf_counter()
    answers = [a for (a,) in whose.sample(requests(whose, rows, new_tokens, seed))]
    seconds = time.perf_counter() - began
    tokens = sum(len(a) - a.prompt_length for a in answers)
    longest = max(len(a) - a.prompt_length for a in answers)
    return {
        "seconds": seconds,
        "tokens/s": tokens / seconds,
        "answer_tokens": tokens / len(answers),
        "longest": longest,
    }
