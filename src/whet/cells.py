"""Cells in the making: each arm and seed is a run of its own, done once, resumed where it stopped.

    OUT/start/KEY/           the start, measured once for all
    OUT/runs/ARM-SEED-KEY/   a run folder
    OUT/cells/ARM-SEED.json  what came of it

KEY is a hash of the question (what decides the numbers), so another question asked of the same folder starts other runs,
and one asked again reads what is there. A lock on each run lets several processes work on one folder; one that was killed
lets go of it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from whet.arms import Arm
from whet.config import RunConfig
from whet.engines import Engine, Local
from whet.evaluation.probes import NUMBERS
from whet.evaluation.scores import START, Cell, by_problem
from whet.launch import Run
from whet.recipes.recipe import get_recipe
from whet.runs import RunFolder, plain
from whet.runs.interrupt import Interrupt
from whet.tasks import Task
from whet.training.checkpoint import write_atomic

# settings that change speed, memory or where a run is, but not what it is
IRRELEVANT = {
    "model",
    "device",
    "threads",
    "token_budget",
    "activation_checkpointing",
    "shard",
    "allow_pickle",
    "trust_remote_code",
    "save_every",
    "milestones",
    "track",
}
# of a step's numbers, kept with the curve where there are any
FOLLOWED = ("problems/level", "temperature", "contrast_positive/cosine")
# of a look's, likewise
LOOKED = ("accuracy", "others", *NUMBERS)
MIB = 1 << 20
OF_THE_START = ("task", "verifier", "validation", "test", "dtype", "test_n", "k", "others", "others_n", "probes")


Found = TypeVar("Found")


@dataclass(frozen=True)
class Question:
    """What decides a cell's numbers.

    Attributes:
        values: settings and the recipe's arguments, the defaults among them, as plain values.
        start: hash of the weights that it starts from.
        data: hash of the task's file, or its name and version.
    """

    values: Mapping[str, Any]
    start: str
    data: str

    @property
    def key(self) -> str:
        text = json.dumps([self.values, self.start, self.data], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()

    def answered(self, file: Path) -> Cell | None:
        """The cell in a file, if it answers this question: what it was asked is asked again. A setting or an argument
        that did not exist yet when it was made does not make it wrong; another default of an old one does."""
        cell = Cell.read(file) if file.exists() else None
        if cell is None or (cell.model["hash"], cell.data) != (self.start, self.data):
            return None
        return None if changed(self.values, cell.config) else cell


def changed(values: Mapping[str, Any], answered: Mapping[str, Any]) -> dict[str, Any]:
    """What a question asks otherwise than a cell was asked, by name: the cell's value. Numbers that JSON has no word for are equal to
    what a cell holds in their place."""
    now, then = _flat(plain(dict(values))), _flat(answered)
    return {name: value for name, value in then.items() if now.get(name) != value}


def asked(arm: Arm, config: RunConfig) -> dict[str, Any]:
    """What decides the numbers of an arm's run, as plain values: its settings and all of the recipe's arguments."""
    values = {k: v for k, v in config.model_dump().items() if k not in IRRELEVANT}
    defaults = {k: a.default for k, a in get_recipe(arm.recipe).arguments.items()}
    return _named({**values, "arguments": {**defaults, **config.arguments}})


@dataclass(frozen=True)
class Job:
    """A run to be done.

    Attributes:
        folder: its run folder; the name ends with the question's key.
        cell: the file that is written when it is finished.
        start: the folder where the start was measured.
        until: stop when this share of the budget is spent, to be gone on with later.
    """

    arm: str
    config: RunConfig
    question: Question
    folder: Path
    cell: Path
    start: Path
    task: Task | None = None
    until: float = 1.0

    def __str__(self) -> str:
        return f"{self.arm}, seed {self.config.seed}"


Board = Callable[[Sequence[Job]], AbstractContextManager[object]]  # shows the progress of jobs while it is entered


class Bench:
    """What all arms share: the start, the task, the problems of the evaluation, the budget.

    Args:
        out: the folder of everything.
        shared: settings of all runs (`RunConfig`'s, and arguments that every recipe takes).
        cells: where finished cells go; by default `out/cells`.
        engine: what runs the cells; by default this process.
        board: shows how far they are.
    """

    def __init__(
        self, arms: Sequence[Arm], *, task: str | Task, out: Path, shared: Mapping[str, Any], cells: Path | None = None,
        engine: Engine | None = None, board: Board | None = None,
    ) -> None:  # fmt: skip
        self.task, self.out, self.cells = task, out, cells or out / "cells"
        self.engine, self.board = engine or Local(), board
        self.shared = dict(shared)
        if self.engine.threads and not shared.get("threads"):
            self.shared["threads"] = self.engine.threads
        self._given = task if isinstance(task, Task) else None
        configs = [arm.config(task, 0, self.shared) for arm in arms]
        self.run = Run(configs[0], task=self._given)  # checks the first arm, the task and the model
        for config in configs[1:]:
            get_recipe(config.recipe)(**config.arguments).check(self.run.task)
        self._start = self._question({k: getattr(configs[0], k) for k in OF_THE_START})
        self._start_folder = out / "start" / self._start.key

    @property
    def model(self) -> dict[str, Any]:
        return {"name": self.run.config.model or "base", "hash": self.run.hash, "parameters": self.run.policy.size()}

    def start(self) -> Cell:
        """The model that all arms start from, as a cell."""
        file = self.cells / f"{START}.json"
        kept = self._start.answered(file)
        if kept is None:
            kept = self._measure_start()
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(file, kept.text())
        return kept

    def _measure_start(self) -> Cell:
        folder = self._start_folder
        with locked(folder):
            kept = self._start.answered(folder / "cell.json")
            if kept is None:
                shutil.rmtree(folder, ignore_errors=True)
                self.run.folder = RunFolder.create(folder)
                began = time.perf_counter()
                self.run.before()
                kept = Cell(
                    arm=START, seed=None, key=self._start.key, config=self._start.values, task=self.run.task.spec(),
                    data=self._start.data, model=self.model, versions=self.run.record()["versions"],
                    minutes=(time.perf_counter() - began) / 60, **_measured(folder, "before"),
                )  # fmt: skip
                write_atomic(folder / "cell.json", kept.text())
        return kept

    def job(self, arm: Arm, seed: int, until: float = 1.0) -> Job:
        config = arm.config(self.task, seed, self.shared)
        question = self._question(asked(arm, config))
        folder = self.out / "runs" / f"{arm.slug}-{seed}-{question.key}"
        cell = self.cells / f"{arm.slug}-{seed}.json"
        return Job(arm.label, config, question, folder, cell, self._start_folder, self._given, until)

    def cells_of(self, jobs: Sequence[Job], watch: Callable[[Job, Cell], None] | None = None) -> list[Cell]:
        """The cells of jobs, in their order; those that are not there yet are run."""
        found = [job.question.answered(job.cell) for job in jobs]
        missing = [place for place, cell in enumerate(found) if cell is None]
        for job, cell in zip(jobs, found, strict=True):
            if watch and cell is not None:
                watch(job, cell)
        if missing:
            self._measure_start()
            for place, cell in zip(missing, self.each(finish, [jobs[place] for place in missing], watch), strict=True):
                found[place] = cell
        return [cell for cell in found if cell is not None]

    def ready(self, jobs: Sequence[Job]) -> None:
        """Measure the start where a run will need it."""
        if any(job.question.answered(job.cell) is None for job in jobs):
            self._measure_start()

    def each(
        self, work: Callable[[Job], Found], jobs: Sequence[Job], watch: Callable[[Job, Found], object] | None = None
    ) -> list[Found]:
        """work(job) of each, in order; `watch` hears of each as it is done."""
        if not jobs:
            return []
        found: dict[int, Found] = {}
        with self.board(jobs) if self.board else nullcontext():
            for place, result in self.engine.run(work, jobs):
                found[place] = result
                if watch:
                    watch(jobs[place], result)
        return [found[place] for place in range(len(jobs))]

    def _question(self, values: Mapping[str, Any]) -> Question:
        return Question(_named(values), self.run.hash, self.run.data())


def finish(job: Job) -> Cell:
    """Do a run, or the rest of it, and write its cell; a cell with the job's key is only read."""
    kept = job.question.answered(job.cell)
    if kept is not None:
        return kept
    with locked(job.folder):
        began = time.perf_counter()
        if not RunFolder(job.folder).summary.exists():
            go(open_run(job))
        shutil.rmtree(job.folder / "checkpoints", ignore_errors=True)  # nobody will go on from there
        cell = _cell(job, (time.perf_counter() - began) / 60)
        job.cell.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(job.cell, cell.text())
    return cell


def go(run: Run, until: Callable[[], bool] = lambda: False) -> None:
    """Do a run, `until` so far at most. Ctrl-C and SIGTERM end it too, after its step and with a checkpoint, and are passed on then."""
    with Interrupt(training=True) as told:
        run.stop = lambda: told() or until()
        run.go()
    if told.asked:
        raise KeyboardInterrupt


def open_run(job: Job) -> Run:
    """A job's run: new, or at its newest checkpoint."""
    if RunFolder(job.folder).config.exists():
        run = Run.reopen(job.folder, task=job.task)
    else:
        shutil.rmtree(job.folder, ignore_errors=True)  # killed before it had begun
        run = Run(job.config, out=job.folder, task=job.task)
    if not (job.folder / "before.json").exists():
        for name in ("matrix-before.json", "samples.jsonl", "before.json"):  # with the last, the start is measured
            write_atomic(job.folder / name, (job.start / name).read_text())
    return run


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder against other processes; waits for one that holds it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _cell(job: Job, minutes: float) -> Cell:
    folder = RunFolder(job.folder)
    summary = json.loads(folder.summary.read_text())
    record = RunConfig.read(folder.config)[1]
    question = job.question
    measured = _measured(job.folder, "after")
    spent = summary["compute"]
    measured["metrics"] |= {"steps": summary["steps"], "seconds": spent["seconds"], "updates": spent["optimizer_steps"]}
    if "trained" in spent:  # not in a run of an earlier version
        measured["metrics"] |= {"trained_thousands": spent["trained"] / 1000, "optimizer_mib": spent["optimizer_bytes"] / MIB,
                                "gradient_mib": spent["gradient_bytes"] / MIB}  # fmt: skip
    return Cell(
        arm=job.arm, seed=job.config.seed, key=question.key, config=question.values, data=question.data,
        task=summary["task"], model=summary["model"], curve=_curve(folder), compute=summary["compute"], versions=record["versions"],
        minutes=max(minutes, summary["compute"]["seconds"] / 60), sketches=summary.get("sketches", {}), **measured,
    )  # fmt: skip


def _measured(folder: Path, when: str) -> dict[str, Any]:
    """The metrics, answers and other tasks of a run folder, `before` or `after`."""
    first = json.loads((folder / "before.json").read_text())
    matrix = json.loads((folder / f"matrix-{when}.json").read_text())
    if when == "before":
        found, others = first["test"], {name: (now, now) for name, now in first["others"].items()}
    else:
        summary = json.loads((folder / "summary.json").read_text())
        found, others = summary["after"], {n: (o["before"], o["after"]) for n, o in summary["others"].items()}
    greedy, sampled = matrix["greedy"]["value"], (matrix["sampled"] or {"value": []})["value"]
    answers = {"greedy": "".join(_mark(row[0]) for row in greedy), "k": len(sampled[0]) if sampled else 0,
               "sampled": "".join(_mark(value) for row in sampled for value in row)}  # fmt: skip
    names = ["accuracy", *(f"{name}@{answers['k']}" for name in ("mean", "pass") if sampled)]
    tables = {name: by_problem(answers, name) for name in names}
    metrics = {name: float(np.nanmean(table)) for name, table in tables.items() if table is not None}
    plain_numbers = {k: v["value"] if isinstance(v, Mapping) else v for k, v in found.items()}
    metrics |= {k: v for k, v in plain_numbers.items() if k not in metrics and k != "sampled_accuracy"}
    if others:
        metrics["forgetting"] = sum(b["value"] - a["value"] for b, a in others.values()) / len(others)
    spread = {name: {"before": b["value"], "after": a["value"]} for name, (b, a) in others.items()}
    return {"metrics": metrics, "answers": answers, "others": spread}


def _curve(folder: RunFolder) -> list[dict[str, float]]:
    """Validation accuracy at each evaluation, and accuracy on other tasks, with what was spent by then and what the last step
    showed."""
    found, spent = [], {"share": 0.0, "flops": 0.0}
    for row in folder.read_metrics():
        spent = {k: row.get(k, v) for k, v in spent.items()} | {k: row[k] for k in FOLLOWED if k in row}
        if "validation/accuracy" in row:
            looked = {name: row[f"validation/{name}"] for name in LOOKED if f"validation/{name}" in row}
            found.append({"step": row["step"], **spent, **looked})
    return found


def _named(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same in plain values, objects by their names."""
    return json.loads(json.dumps(values, default=lambda v: getattr(v, "__qualname__", repr(v))))


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    return {**{k: v for k, v in values.items() if k != "arguments"},
            **{f"arguments.{k}": v for k, v in values.get("arguments", {}).items()}}  # fmt: skip


def _mark(value: float | None) -> str:
    return "?" if value is None else "1" if value == 1.0 else "0"
