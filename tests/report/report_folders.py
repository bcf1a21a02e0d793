"""Run folders and comparisons as a run would write them, with chosen numbers: no model is involved."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

EVIL = "<script>document.title = 'owned'</script><img src=x onerror=\"document.title='owned'\">"
METER = {"flops": 2e12, "sampled_tokens": 4000, "scored_tokens": 0, "learnt_tokens": 4000, "optimizer_steps": 4,
         "idle_steps": 0, "verifier_calls": 64, "seconds": 75.0}  # fmt: skip
WRONG, RIGHT = "0", "1"


def make_run(
    path: Path, *, seed: int = 0, before: str = "0010", after: str = "1110", steps: int = 4, finished: bool = True,
    answer: str = "<answer>7</answer>", recipe: str = "grpo", arguments: Mapping[str, Any] | None = None, **asked: Any,
) -> Path:  # fmt: skip
    """A run folder.

    Args:
        before, after: right (1) or wrong (0), a character a test problem.
        answer: the text of every answer after training.
    """
    path.mkdir(parents=True)
    config = {"recipe": recipe, "arguments": dict(arguments or {"steps": steps}), "task": "chain-sum", "weights": "full",
              "seed": seed, "test_n": len(before), "k": 2, **asked}  # fmt: skip
    record = {"started": f"2026-01-0{seed + 1}T10:00:00", "versions": {"whet": "1"}, "model_hash": "abc"}
    (path / "run.yaml").write_text(yaml.safe_dump({**config, "record": record}, sort_keys=False))
    _lines(path / "metrics.jsonl", _metrics(steps, seed))
    _lines(path / "samples.jsonl", [*_answers("before", before, "<answer>0</answer>"),
                                    *(_answers("after", after, answer) if finished else [])])  # fmt: skip
    _write(path / "before.json", {"test": _evaluation(before, 6.0), "others": {"sort:level=1": _share("1111")}})
    _write(path / "matrix-before.json", _matrix(before))
    if finished:
        _write(path / "matrix-after.json", _matrix(after))
        others = {"sort:level=1": {"before": _share("1111"), "after": _share("1101")}}
        _write(path / "summary.json", {
            "recipe": recipe, "task": "chain-sum", "model": {"name": "base", "hash": "abc", "parameters": 2522112},
            "seed": seed, "steps": steps, "best_step": steps, "before": _evaluation(before, 6.0),
            "after": _evaluation(after, 43.5), "others": others, "compute": METER,
        })  # fmt: skip
    return path


def make_comparison(
    path: Path, arms: Mapping[str, Sequence[str]] | None = None, answer: str = "7", **asked: Any
) -> Path:
    """A comparison's folder with its results.json, cells and run folders.

    Args:
        arms: {arm: the answers' marks of each seed}, from the best arm on.
    """
    arms = arms or {"grpo": ["1110", "1111", "1110"], "sft": ["1000", "1010", "0010"]}
    rows, seeds = [], list(range(len(next(iter(arms.values())))))
    for rank, (arm, marks) in enumerate(arms.items(), 1):
        recipe = arm.partition(":")[0]
        for seed, after in enumerate(marks):
            key = f"k{rank}{seed}"
            make_run(path / "runs" / f"{recipe}-{seed}-{key}", seed=seed, after=after, recipe=recipe, answer=answer)
            (path / "cells").mkdir(exist_ok=True)
            _write(path / "cells" / f"{recipe}-{seed}.json", {"arm": arm, "seed": seed, "key": key})
        values = [m.count("1") / len(m) for m in marks]
        curve = [{"step": i, "share": i / 4, "flops": 1e12 * i, "accuracy": values[0] * i / 4} for i in range(5)]
        rows.append({
            "rank": rank, "arm": arm, "recipe": recipe, "settings": {}, "compute": METER, "spent": [1.01] * len(marks),
            "minutes": [1.5] * len(marks), "curves": [curve] * len(marks),
            "metrics": {"accuracy": _interval(values, 4), "pass@2": _interval(values, 4), "steps": _interval([4.0, 4.0], 0),
                        "forgetting": _interval([0.25 - 0.2 * rank] * 3, 0), "tokens_per_answer": _interval([43.0], 0)},
        })  # fmt: skip
    names = list(arms)
    pairs = [
        (a, b) for i, a in enumerate(reversed(names)) for b in list(reversed(names))[i + 1 :]
    ]  # the worse one first
    found = {
        "asked": {"arms": {arm: {"recipe": arm.partition(":")[0], "lr": 1e-4} for arm in reversed(names)},
                  "task": "chain-sum", "model": None, "budget": "flops:2e12", "seeds": seeds, "sweep": {},
                  "settings": {"test_n": 4}, **asked},
        "equal": "flops", "task": "chain-sum", "model": {"name": "base", "hash": "abc", "parameters": 2522112},
        "start": {"accuracy": _interval([0.25], 4), "pass@2": _interval([0.25], 4), "forgetting": _interval([0.0], 0)},
        "arms": rows,
        "differences": {"accuracy": [{"a": a, "b": b, "value": -0.5, "low": -0.8, "high": -0.2, "error": 0.1, "seeds": 3,
                                      "problems": 4, "p": 0.0004, "p_corrected": 0.0012} for a, b in pairs]},
        "detectable": {"accuracy": 0.3}, "forgetting": make_forgetting(list(reversed(names))), "sweep": {}, "versions": {"torch": "2.13"},
    }  # fmt: skip
    _write(path / "results.json", found)
    return path


def make_forgetting(arms: Sequence[str]) -> dict[str, Any]:
    """What a comparison says of forgetting: the last arm learns, the first one never comes far enough."""

    def lost(value: float) -> dict[str, Any]:
        return {**_interval([value] * 3, 0), "step": 12.0, "flops": 1.2e12}

    return {
        "suite": "forgetting/1", "tasks": ["sort:level=1", "lists:level=1"], "n": 256, "look_n": 64, "why": "",
        "at_steps": {"steps": 16, "arms": {arm: lost(0.1 * i) for i, arm in enumerate(arms)}},
        "at_accuracy": {"accuracy": 0.45, "arms": {arms[-1]: lost(0.07)},
                        "missed": dict.fromkeys(arms[:-1], "3 of 3 seeds never come 5 points above the start")},
    }  # fmt: skip


def make_verdict(path: Path, **changed: Any) -> Path:
    """A study's verdict.json, of a paper that exists."""
    accuracy = {"sft": _interval([0.5, 0.52, 0.54], 4), "grpo": _interval([0.7, 0.72, 0.74], 4),
                "start": _interval([0.05], 4),
                "sft - grpo": {**_interval([-0.2], 4), "low": -0.25, "high": -0.15, "p": 0.0002, "p_corrected": 0.0002}}  # fmt: skip
    found = {
        "paper": "grpo", "claim": "Reinforcement | raises a model's accuracy.", "criterion": "Reproduced if it does.",
        "task": "chain-sum", "model": {"name": "base", "parameters": 2522112}, "base_hash": "abc", "budget": "flops:2e12",
        "arms": {"sft": "sft", "grpo": "grpo"}, "controls": [], "seeds": [0, 1, 2],
        "metrics": {"accuracy": {"sft": [0.5, 0.52, 0.54], "grpo": [0.7, 0.72, 0.74]}}, "intervals": {"accuracy": accuracy},
        "verdict": "reproduced at small scale", "detectable": {"accuracy": 0.06},
        "forgetting": make_forgetting(["sft", "grpo"]), "why": "accuracy of grpo - sft is +0.200",
        "versions": {"torch": "2.13"}, "minutes": 12.3, **changed,
    }  # fmt: skip
    path.mkdir(parents=True)
    _write(path / "verdict.json", found)
    return path


# -- parts -------------------------------------------------------------------------------------------------------------
def _metrics(steps: int, seed: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{"step": 0, "validation/accuracy": 0.1}]
    for i in range(1, steps + 1):
        rows.append({
            "step": i, "stage": "grpo", "reward": 0.1 * i, "reward/accuracy": 0.05 * i, "reward/format": 0.05 * i,
            "accuracy": 0.05 * i + 0.01 * seed, "ended": 0.75, "unparseable": 0.0, "failed": 0.0, "dead_groups": 0.25,
            "tokens_right": 40.0 + i, "tokens_wrong": 12.0 if i > 1 else None, "entropy": 0.5 / i, "approx_kl": 0.001 * i,
            "loss/policy_gradient": -0.1, "grad_norm": 1.0 / i, "seconds/sample": 3.0, "seconds/score": 0.0,
            "seconds/learn": 1.0, "flops": 5e11 * i, "share": i / steps,
        })  # fmt: skip
    return [*rows, {"step": steps, "validation/accuracy": 0.6 + 0.1 * seed}]


def _answers(when: str, marks: str, text: str) -> list[dict[str, Any]]:
    return [{"when": when, "problem": f"p{i}", "prompt": f"What is {i}+7?", "gold": str(i + 7), "answer": f"{text} #{i}",
             "correct": mark == RIGHT, "status": "ok" if mark == RIGHT else "wrong", "tokens": 6} for i, mark in enumerate(marks)]  # fmt: skip


def _evaluation(marks: str, tokens: float) -> dict[str, Any]:
    return {
        "accuracy": _share(marks),
        "tokens_per_answer": tokens,
        "ended": 1.0,
        "unparseable": 0.0,
        "pass@2": _share(marks),
    }


def _share(marks: str) -> dict[str, Any]:
    value = marks.count("1") / len(marks)
    return {"value": value, "low": max(0.0, value - 0.2), "high": min(1.0, value + 0.2), "n": len(marks)}


def _interval(values: Sequence[float], problems: int) -> dict[str, Any]:
    value = sum(values) / len(values)
    several = len(values) > 1
    return {"value": value, "low": value - 0.1 if several else None, "high": value + 0.1 if several else None,
            "error": 0.05, "seeds": len(values), "problems": problems, "by_seed": list(values)}  # fmt: skip


def _matrix(marks: str) -> dict[str, Any]:
    values = [[float(mark)] for mark in marks]
    ids = [f"p{i}" for i in range(len(marks))]
    return {"greedy": {"problem": ids, "value": values}, "sampled": {"problem": ids, "value": [v * 2 for v in values]}}


def _lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _write(path: Path, found: Any) -> None:
    path.write_text(json.dumps(found))
