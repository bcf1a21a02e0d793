"""Whet and TRL side by side: the same model folder, rows, lengths and threads, in processes of the same kind.

    python -m benchmarks.throughput --json results/throughput/throughput.json      # 20 minutes on 2 idle cores
    python -m benchmarks.throughput --sweep                                        # the settings of both sides first
    python -m benchmarks.throughput --json /tmp/quick.json --quick                 # does it run at all?

Each side of a cell is one process (`worker.py`). Both are warmed up and then asked for a block in turn, A B A B ..., while
the other waits; a ratio is that of two neighbouring blocks. Each cell is one JSON beside the result and is not measured
again while it is there. Work units: learnt tokens a second (sft, dpo), steps a second (grpo), new tokens a second
(sampling).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import growth, workload
from benchmarks.ratios import paired
from benchmarks.settings import CHOSEN, candidates, chosen

CELLS = ("sft", "dpo", "grpo_short", "grpo_long", "sampling_ragged")
UNIT = {"sft": "tokens/s", "dpo": "tokens/s", "grpo_short": "steps/s", "grpo_long": "steps/s",
        "sampling_ragged": "tokens/s"}  # fmt: skip
# steps of warm-up and of a block, on either side: blocks of about 5 to 15 seconds
STEPS = {"sft": {"whet": (2, 16), "trl": (2, 8)}, "dpo": {"whet": (2, 12), "trl": (2, 6)},
         "grpo_short": {"whet": (2, 12), "trl": (1, 5)}, "grpo_long": {"whet": (1, 5), "trl": (1, 1)}}  # fmt: skip
PAIRS, QUICK_PAIRS = 5, 1


class Bench:
    """Everything that cells share.

    Args:
        cells: the folder of the cells' JSON files; data and models stand in its `data`.
        threads: OMP_NUM_THREADS of every process.
        quick: one pair of the smallest blocks: to see that it runs, not to be quoted.
    """

    def __init__(self, cells: Path, threads: int, quick: bool) -> None:
        self.cells, self.threads, self.quick = cells, threads, quick
        self.data = cells / "data"
        self.data.mkdir(parents=True, exist_ok=True)

    def once(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A cell, from its file where it is there."""
        file = self.cells / f"{name}.json"
        if not file.exists():
            began = time.perf_counter()
            found = {**measure(), "wall_s": time.perf_counter() - began}
            partial = file.with_suffix(".part")
            partial.write_text(json.dumps(found, indent=1))
            partial.replace(file)
            print(f"{name}: {summary(found)} ({found['wall_s']:.0f} s)", flush=True)
        return json.loads(file.read_text())

    @contextmanager
    def worker(self) -> Iterator[Callable[[Mapping[str, Any]], dict[str, Any]]]:
        """A fresh process; called with a request it returns what was measured."""
        env = {**os.environ, "OMP_NUM_THREADS": str(self.threads), "OMP_WAIT_POLICY": "PASSIVE",
               "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}  # fmt: skip
        with (self.cells / "workers.log").open("a") as log:
            process = subprocess.Popen([sys.executable, "-m", "benchmarks.worker"], stdin=subprocess.PIPE,
                                       stdout=subprocess.PIPE, stderr=log, text=True, env=env)  # fmt: skip

        def ask(request: Mapping[str, Any]) -> dict[str, Any]:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(json.dumps(request, default=str) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
            answer: dict[str, Any] = (
                json.loads(line) if line else {"error": f"the process died; see {self.cells / 'workers.log'}"}
            )
            if "error" in answer:
                raise RuntimeError(answer["error"])
            return answer["ok"]

        try:
            yield ask
        finally:
            process.kill()
            process.wait()

    def model(self, vocabulary: int = workload.VOCABULARY) -> Path:
        return workload.model(self.data, vocabulary=vocabulary, steps=60 if vocabulary == workload.VOCABULARY else 0)

    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.model())

    def file(self, cell: str) -> Path:
        n = 64 if self.quick else 1024
        if cell == "sft":
            return workload.demonstrations(self.data, n)
        if cell == "dpo":
            return workload.preferences(self.data, n)
        if cell == "sampling_ragged":
            return workload.questions(self.data, 16 if self.quick else 128, 20, self.tokenizer())
        return workload.questions(self.data, n // 4, 400 if cell == "grpo_long" else 20, self.tokenizer())

    def request(self, cell: str, side: str, settings: Mapping[str, Any], seed: int = 0) -> dict[str, Any]:
        asked = {"side": side, "model": self.model(), "file": self.file(cell), "settings": settings, "seed": seed}
        if cell == "sampling_ragged":
            return {**asked, "what": "sample", "new_tokens": 16 if self.quick else 256}
        warm, steps = (1, 1) if self.quick else STEPS[cell][side]
        shape = {"group": 4, "batch": 2, "new_tokens": 8} if self.quick and cell.startswith("grpo") else {}
        return {**asked, "what": "train", "cell": cell, "warm": warm, "steps": steps, **shape}

    # -- cells ------------------------------------------------------------------------------------------------------
    def compare(self, cell: str) -> dict[str, Any]:
        """Blocks of both sides in turn."""
        blocks: dict[str, list[dict[str, Any]]] = {"whet": [], "trl": []}
        settings = {side: chosen(side, cell) for side in blocks}
        with self.worker() as ours, self.worker() as theirs:
            for pair in range(QUICK_PAIRS if self.quick else PAIRS):
                for side, ask in (("whet", ours), ("trl", theirs)):
                    blocks[side].append(ask(self.request(cell, side, settings[side], seed=pair)))
        unit = UNIT[cell]
        rates = {side: [b[unit] for b in found] for side, found in blocks.items()}
        sides = {
            side: {unit: median(rates[side]), "settings": settings[side], "blocks": blocks[side]} for side in blocks
        }
        return {"ratio": paired(rates["whet"], rates["trl"]), "unit": unit, **sides}

    def memory(self) -> dict[str, Any]:
        """Peak memory of an SFT step with a large vocabulary and of a GRPO step: TRL with its defaults."""
        defaults = {"bf16": True, "gradient_checkpointing": True, "micro": 10**6}
        rows, tokens = (4, 64) if self.quick else (32, 256)
        large, small = self.model(2048 if self.quick else workload.LARGE), self.model()
        sft = {"cell": "sft", "model": large, "file": workload.full(self.data, 4 * rows, tokens, self.tokenizer()),
               "batch": rows}  # fmt: skip
        grpo = {"cell": "grpo_short", "model": small, "file": self.file("grpo_short"),
                **({"batch": 2, "group": 4, "new_tokens": 8} if self.quick else {})}  # fmt: skip
        found: dict[str, Any] = {}
        for name, given in (("sft", sft), ("grpo", grpo)):
            sides = {
                "trl": ("trl", defaults),
                "trl_fastest": ("trl", {**chosen("trl", str(given["cell"])), "micro": 10**6, "packing": False}),
                "whet": ("whet", {}),
                "whet_fastest": ("whet", chosen("whet", str(given["cell"]))),
            }
            for label, (side, settings) in sides.items():
                runs = []
                for _ in range(1 if self.quick else 3):
                    with self.worker() as ask:
                        runs.append(ask({"what": "memory", "side": side, "settings": settings, "steps": 2, **given}))
                middle = sorted(runs, key=lambda run: run["run_mib"])[len(runs) // 2]
                found.setdefault(name, {})[label] = {**middle, "runs": runs, "settings": settings}
            found[name]["ratio"] = found[name]["whet"]["run_mib"] / found[name]["trl"]["run_mib"]
        return found

    def flops(self) -> dict[str, Any]:
        """Whet's share of the rate of matrix products, in fp32 and with the settings of the comparison."""
        found: dict[str, Any] = {}
        for cell in ("sft", "grpo_short", "grpo_long"):
            for name, settings in (("float32", {"dtype": "float32"}), ("fastest", chosen("whet", cell))):
                asked = {**self.request(cell, "whet", settings), "what": "flops"}
                asked.pop("seed")
                asked |= {"warm": 1, "steps": 1 if self.quick else 5}
                with self.worker() as ask:
                    found.setdefault(cell, {})[name] = ask(asked)
        return found

    def growth(self) -> dict[str, Any]:
        """What group size, prompt length, model size and vocabulary do to a GRPO step of Whet."""
        groups, prompts = ((2, 4), (4, 20)) if self.quick else (growth.GROUPS, growth.PROMPTS)
        files = {n: workload.questions(self.data, 64, n, self.tokenizer()) for n in prompts}
        request = self.request("grpo_short", "whet", chosen("whet", "grpo_short"))
        with self.worker() as ask:
            found = growth.by_group(ask, request, files, groups, *((1, 1) if self.quick else (3, 2)))
        sizes: dict[str, Any] = {}
        ends = {n: files[n] for n in (min(files), max(files))}
        for name, shape in list(growth.SIZES.items())[: 1 if self.quick else None]:
            model = workload.model(self.data, shape=shape, steps=0)
            with self.worker() as ask:
                sizes[name] = growth.by_group(ask, {**request, "model": model}, ends, (groups[0], groups[-2]), 1, 1)
            sizes[name]["arithmetic"] = growth.arithmetic(shape, max(files))
        step: dict[int, float] = {}
        for vocabulary in growth.VOCABULARIES[: 1 if self.quick else None]:
            model = workload.model(self.data, vocabulary=vocabulary, steps=0)
            asked = {**request, "model": model, "warm": 1, "steps": 1 if self.quick else 3}
            with self.worker() as ask:
                step[vocabulary] = 1 / ask(asked)["steps/s"]
        return {**found, "by_size": sizes, "step_s_by_vocabulary": step}

    def precision(self) -> dict[str, Any]:
        """What `dtype=mixed` would bring the sampler here."""
        found = {}
        for dtype in ("float32", "mixed"):
            settings = {"dtype": dtype, "batch_size": 512}
            with self.worker() as ask:
                found[dtype] = ask(self.request("sampling_ragged", "whet", settings))
        return found

    def sweep(self) -> dict[str, Any]:
        """Every combination of settings once; those that cannot run are noted with their error."""
        found: dict[str, Any] = {}
        for cell in CELLS:
            found[cell] = {}
            for side in ("whet", "trl"):
                found[cell][side] = self.once(f"sweep-{cell}-{side}", lambda c=cell, s=side: self._best(c, s))
        return found

    def _best(self, cell: str, side: str) -> dict[str, Any]:
        tried = []
        for settings in candidates(side, cell):
            try:
                with self.worker() as ask:
                    rate = ask(self.request(cell, side, settings))[UNIT[cell]]
                tried.append({"settings": settings, UNIT[cell]: rate})
            except RuntimeError as error:
                tried.append({"settings": settings, "error": str(error).strip().splitlines()[-1]})
        best = max((t for t in tried if "error" not in t), key=lambda t: t[UNIT[cell]])
        return {"settings": best["settings"], "tried": tried}


def summary(found: Mapping[str, Any]) -> str:
    """One line of a cell."""
    if "ratio" not in found:
        return "measured"
    ratio = found["ratio"]
    return f"Whet / TRL {ratio['median']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"


def machine(threads: int) -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    packages = ("torch", "transformers", "trl", "peft")
    return {"cpu": model, "cores": os.cpu_count(), "threads": threads, "load": os.getloadavg()[0],
            "python": platform.python_version(), **{p: metadata.version(p) for p in packages}}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where the result goes; its cells stand in a folder beside it")
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", 0)) or os.cpu_count() or 1)
    parser.add_argument("--cells", nargs="*", default=[*CELLS, "memory", "flops", "growth", "precision"])
    parser.add_argument("--quick", action="store_true", help="see that it runs; its numbers mean nothing")
    parser.add_argument("--sweep", action="store_true", help="choose each side's settings and write settings.json")
    arguments = parser.parse_args()
    if not arguments.json and not arguments.sweep:
        parser.error("say where the result goes: --json FILE")
    out: Path = arguments.json or CHOSEN
    cells = out.parent / (out.stem + ("-quick" if arguments.quick else "-cells"))
    bench = Bench(cells, arguments.threads, arguments.quick)
    if arguments.sweep:
        found = bench.sweep()
        if not arguments.quick:
            CHOSEN.write_text(json.dumps(found, indent=1) + "\n")
        return
    before = machine(arguments.threads)
    result: dict[str, Any] = {}
    for cell in arguments.cells:
        measure = getattr(bench, cell) if cell not in CELLS else lambda c=cell: bench.compare(c)
        result[cell] = bench.once(cell, measure)
    result |= {"machine": {**before, "load_after": os.getloadavg()[0]}, "quick": arguments.quick}
    out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
