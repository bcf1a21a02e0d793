"""The commands that run a run or a comparison again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from whet.config import RunConfig

ELSEWHERE = {"recipe", "arguments", "task"}


def of_run(asked: Mapping[str, Any]) -> str:
    """`whet run grpo steps=12 --task chain-sum --seed 1 --out NEW`: what differs from the defaults."""
    words = ["whet", "run", asked["recipe"], *(_pair(k, v) for k, v in asked.get("arguments", {}).items())]
    words += ["--task", asked["task"]]
    for name, value in asked.items():
        field = RunConfig.model_fields.get(name)
        if name in ELSEWHERE or field is None or value == field.default:
            continue
        option = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words += [option] if value else []
        else:
            words += [option, ",".join(value) or "none"] if isinstance(value, list) else [option, _written(value)]
    return shlex.join([*words, "--out", "NEW"])


def from_file(folder: Path) -> str:
    """The same from its run.yaml, which holds everything."""
    return shlex.join(["whet", "run", str(folder / "run.yaml"), "--out", "NEW"])


def of_comparison(asked: Mapping[str, Any]) -> str:
    """`whet compare sft grpo:group=4 --task chain-sum --budget flops:1e13 --seeds 3 --out NEW`."""
    words = ["whet", "compare"]
    for arm in asked["arms"].values():
        settings = ",".join(_pair(k, v) for k, v in arm.items() if k != "recipe")
        words.append(arm["recipe"] + (f":{settings}" if settings else ""))
    words += [_pair(k, v) for k, v in asked["settings"].items()]
    words += ["--task", asked["task"]]
    for name in ("model", "budget"):
        words += [f"--{name}", asked[name]] if asked[name] else []
    words += ["--seeds", str(len(asked["seeds"]))]
    for key, values in asked["sweep"].items():
        words += ["--sweep", f"{key}={','.join(map(_written, values))}"]
    return shlex.join([*words, "--out", "NEW"])


def _pair(key: str, value: Any) -> str:
    return f"{key}={_written(value)}"


def _written(value: Any) -> str:
    """As the command line reads it."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
