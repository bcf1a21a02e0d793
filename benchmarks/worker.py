"""One side of one cell, in a process of its own that is asked for one block after the other.

It reads requests, one JSON object a line, and answers each with one; what trainers print goes to the error stream.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock


def main() -> None:
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import torch
    from transformers.utils import logging as hf_logging

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity_error()
    for line in sys.stdin:
        try:
            answer: dict[str, Any] = {"ok": block(json.loads(line))}
        except Exception:
            answer = {"error": traceback.format_exc()}
        channel.write(json.dumps(answer) + "\n")
        channel.flush()


def block(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Do what a request asks: `what` names a function below; the rest are its arguments."""
    given = {k: v for k, v in asked.items() if k not in ("what", "side")}
    for name in ("model", "file"):
        if name in given:
            given[name] = Path(given[name])
    if asked["what"] in ("train", "sample"):
        from benchmarks import ours, theirs

        side = ours if asked["side"] == "whet" else theirs
        return getattr(side, asked["what"])(**given)
    return {"memory": memory, "flops": flops}[asked["what"]](side=asked["side"], **given)


def memory(
    side: str, cell: str, model: Path, file: Path, settings: Mapping[str, Any], steps: int = 2, **shape: Any
) -> dict[str, float]:
    """Peak resident memory of some training steps, in MiB, and what was resident before the trainer was made.

    The libraries of both sides are imported before, so that only the run is counted.
    """
    import importlib

    from benchmarks import ours, theirs

    for name in ("datasets", "trl", "whet.training.fit"):
        importlib.import_module(name)
    whose = ours if side == "whet" else theirs
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
    whose.train(cell, model, file, settings, warm=1, steps=steps - 1, **shape)
    peak = _status("VmHWM")
    return {"peak_mib": peak, "before_mib": before, "run_mib": peak - before}


def _status(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":")) / 1024


def flops(
    side: str, cell: str, model: Path, file: Path, settings: Mapping[str, Any], warm: int, steps: int, **shape: Any
) -> dict[str, float]:
    """Operations that Whet executes in a step's parts, by PyTorch's counter, over the seconds they take uncounted, and
    the rate of matrix products at the model's own shapes."""
    from benchmarks import ours
    from whet.training.fit import Fit
    from whet.training.learner import Learner
    from whet.training.options import Options

    policy = ours.policy(model, settings.get("dtype", "float32"))
    recipe, clock = ours.stages(cell, warm + 2 * steps, **shape), ours.Clock()
    options = Options(token_budget=settings.get("token_budget", Options.token_budget), keep="last")
    fit = Fit(policy, recipe.stages, ours.task(file), options=options, observer=clock)
    counted = {"learn": 0.0, "sample": 0.0}

    def counting(part: str, method: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            if len(clock.ends) < warm + steps:  # the first steps are timed, the others counted
                return method(*args, **kwargs)
            with _counter() as counter:
                out = method(*args, **kwargs)
            counted[part] += counter.get_total_flops() / steps
            return out

        return run

    collector = type(recipe.stages[0].collect)
    with (
        mock.patch.object(Learner, "step", counting("learn", Learner.step)),
        mock.patch.object(collector, "rows", counting("sample", collector.rows)),
    ):
        fit.run()
    timed = clock.rows[warm : warm + steps]
    rate = matmul_rate(policy, tokens=2048)
    found = {"matmul_gflops": rate / 1e9, "matmul_gflops_64_rows": matmul_rate(policy, tokens=64) / 1e9}
    for part, operations in counted.items():
        seconds = sum(row[f"seconds/{part}"] for row in timed) / steps
        if operations:
            found |= {f"{part}_gflop": operations / 1e9, f"{part}_s": seconds,
                      f"{part}_share": operations / seconds / rate}  # fmt: skip
    return found


def _counter() -> Any:
    """PyTorch's counter, told of the CPU's attention kernels too."""
    import torch
    from torch.utils import flop_counter

    def forward(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return flop_counter.sdpa_flop_count(query, key, value)

    def backward(grad: Any, query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return flop_counter.sdpa_backward_flop_count(grad, query, key, value)

    aten = torch.ops.aten
    return flop_counter.FlopCounterMode(display=False, custom_mapping={
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    })  # fmt: skip


def matmul_rate(policy: Any, tokens: int, repeats: int = 5) -> float:
    """Operations a second of the products of one forward at the model's weight shapes; the best of some repeats."""
    import torch

    weights = [m.weight.detach() for m in policy.model.modules() if isinstance(m, torch.nn.Linear)]
    dtype = torch.bfloat16 if policy.mixed else policy.dtype
    pairs = [(torch.randn(tokens, w.shape[1], dtype=dtype), w.to(dtype)) for w in weights]
    seconds = []
    with torch.no_grad():
        for _ in range(repeats + 1):
            began = time.perf_counter()
            for x, w in pairs:
                torch.nn.functional.linear(x, w)
            seconds.append(time.perf_counter() - began)
    return sum(2.0 * tokens * w.numel() for _, w in pairs) / min(seconds[1:])


if __name__ == "__main__":
    main()
