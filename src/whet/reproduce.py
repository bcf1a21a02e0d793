"""Run a study's cells, each once, and compute its verdict from them.

    results/<slug>/<arm>-<seed>.json    one cell, committed; `start.json` is the model that all arms start from
    results/<slug>/verdict.json         a function of the cells: `recompute` gives it again

`--full` writes the same into `results/<slug>/full`. `--quick` runs one seed, keeps its cells elsewhere and writes no verdict.
Run folders lie below `work` and need not be kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whet.arms import parse_arms
from whet.cells import Bench
from whet.compare import LOOKS, Comparison, line
from whet.engines import Local
from whet.errors import WhetError
from whet.evaluation.forgetting import forgetting
from whet.evaluation.scores import START, Cell, Scores, interval_dict
from whet.runs import plain
from whet.study import LEAST_SEEDS, Study, get_study
from whet.training.checkpoint import write_atomic

VERDICT = "verdict.json"


@dataclass
class Verdict:
    """What `reproduce` returns.

    Attributes:
        comparison: its runs as `compare` would show them.
        found: the contract of `verdict.json`; None after `--quick`.
    """

    study: Study
    comparison: Comparison
    found: dict[str, Any] | None


def reproduce(
    slug: str | Study, *, quick: bool = False, full: bool = False, jobs: int = 1, results: str | Path = "results",
    work: str | Path = "runs/studies", watch: Callable[[str], None] | None = None, **settings: Any,
) -> Verdict:  # fmt: skip
    """Run what is missing of a study and judge it.

    Args:
        quick: one seed and whatever the study's `quick` says; no verdict.
        full: the study's `full` scale.
        jobs: processes.
        results: where committed cells and verdicts lie.
        work: where runs are kept.
        watch: hears a line of every run that is done.
        settings: of the machine (device, threads, token_budget ...): what decides numbers is the study's.
    """
    study = slug if isinstance(slug, Study) else get_study(slug)
    if quick and full:
        raise WhetError("--quick and --full: one of them")
    scale = "quick" if quick else "full" if full else ""
    asked = study.asked(scale)
    folder = Path(work) / study.slug / (scale or "small")
    cells_folder = folder / "cells" if quick else Path(results) / study.slug / scale
    shared = {**LOOKS, **asked, **settings}
    task, seeds = shared.pop("task"), range(shared.pop("seeds"))
    arms = parse_arms(study.arms)
    bench = Bench(arms, task=task, out=folder, shared=shared, cells=cells_folder, engine=Local(jobs))
    runs = [bench.job(arm, seed) for seed in seeds for arm in arms]
    cells = bench.cells_of(runs, lambda job, cell: watch and watch(line(cell)))
    cells = [bench.start(), *(cell for arm in arms for cell in cells if cell.arm == arm.label)]
    comparison = Comparison(arms, cells, {**asked, "arms": dict(study.arms), "seeds": list(seeds)})
    if quick:
        return Verdict(study, comparison, None)
    found = judge(study, cells)
    write_atomic(cells_folder / VERDICT, json.dumps(found, indent=1) + "\n")
    return Verdict(study, comparison, found)


def judge(study: Study, cells: Sequence[Cell]) -> dict[str, Any]:
    """The contents of `verdict.json`, from the cells and the study's criterion alone."""
    scores = Scores(cells)
    arms = list(study.arms)
    seeds = sorted({c.seed for c in cells if c.seed is not None})
    for label in arms:
        own = sorted(c.seed for c in scores.cells.get(label, ()) if c.seed is not None)
        if own != seeds or len(own) < LEAST_SEEDS:
            raise WhetError(f"study '{study.slug}': arm '{label}' has seeds {own} of {seeds}, and a verdict needs at least "
                            f"{LEAST_SEEDS} of every arm; run `whet reproduce {study.slug}`")  # fmt: skip
    for what, values in (("task", {c.task for c in cells}), ("start", {c.model["hash"] for c in cells})):
        if len(values) > 1:
            raise WhetError(
                f"study '{study.slug}': its cells are of more than one {what} ({', '.join(sorted(values))})"
            )
    judgement = study.judge(scores)
    metrics = study.metrics
    first = scores.cells[arms[0]][0]
    return plain({
        "paper": study.paper, "claim": study.claim, "criterion": study.criterion, "task": first.task,
        "model": {k: first.model[k] for k in ("name", "parameters")}, "base_hash": first.model["hash"],
        "budget": first.config.get("budget"), "arms": dict(study.arms), "controls": list(study.controls), "seeds": seeds,
        "metrics": {m: {arm: scores.values(m, arm) for arm in _having(scores, m)} for m in metrics},
        "intervals": {m: _intervals(scores, m) for m in metrics}, "forgetting": forgetting(scores),
        "verdict": f"{judgement.outcome} at small scale",
        "detectable": {m: scores.detectable(m) for m in metrics}, "why": judgement.why,
        "versions": {k: ", ".join(sorted({c.versions[k] for c in cells})) for k in first.versions},
        "minutes": round(sum(c.minutes for c in cells), 2),
    })  # fmt: skip


def recompute(folder: Path) -> dict[str, Any]:
    """The verdict of a folder of committed cells, computed again."""
    slug = folder.parent.name if folder.name == "full" else folder.name
    study = get_study(slug)
    files = [f for f in sorted(folder.glob("*.json")) if f.name != VERDICT]
    cells = [Cell.read(f) for f in files]
    known = {START, *study.arms}
    for file, cell in zip(files, cells, strict=True):
        if cell.arm not in known:
            raise WhetError(f"'{file}': study '{slug}' has no arm '{cell.arm}' any more; remove the file")
    order = {arm: place for place, arm in enumerate([START, *study.arms])}
    return judge(study, sorted(cells, key=lambda c: (order[c.arm], c.seed or 0)))


def _having(scores: Scores, metric: str) -> list[str]:
    """The arms that have a metric; where none has, all of them, so that asking the first says so."""
    return scores.having(metric) or scores.arms


def _intervals(scores: Scores, metric: str) -> dict[str, Any]:
    """Of every arm, of the start, and of the difference of every two arms."""
    found = {arm: interval_dict(scores.interval(metric, arm)) for arm in _having(scores, metric)}
    if scores.start and scores.start.number(metric) is not None:
        found[START] = interval_dict(scores.interval(metric, START))
    for d in scores.differences(metric):
        found[d.name] = {**interval_dict(d.interval), "p": d.p, "p_corrected": d.corrected}
    return found
