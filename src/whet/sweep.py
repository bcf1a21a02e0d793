"""Choosing each arm's settings by halving: one seed, on validation.

Every candidate runs to half of the budget; the half of them (rounded up) that was best on validation by then goes on to
the end, where the best is chosen. A candidate's score is the best validation accuracy of its run so far. The seed is none that is reported, so that luck on it does not reach the table, and test is not looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from whet.arms import Arm, check_sweep
from whet.cells import Bench, Job, go, locked, open_run
from whet.errors import WhetError
from whet.runs import RunFolder
from whet.training import checkpoint

SEED = 7919

Watch = Callable[[str], None]


@dataclass(frozen=True)
class Trial:
    """How far a candidate has come.

    Attributes:
        score: its best validation accuracy; -inf where it failed.
        flops: what it had cost by then.
        failed: why it ended, where it could not learn (a loss that is not finite).
    """

    score: float
    flops: float
    failed: str = ""


@dataclass(frozen=True)
class Candidate:
    """What became of one point of an arm's grid: its scores at half of the budget and, if it got there, at the end."""

    settings: Mapping[str, Any]
    half: Trial
    end: Trial | None = None

    @property
    def last(self) -> Trial:
        return self.end or self.half

    def as_dict(self) -> dict[str, Any]:
        return {"settings": dict(self.settings), "half": self.half.score, "end": self.end and self.end.score,
                "flops": self.last.flops, "failed": self.last.failed}  # fmt: skip


def choose(
    bench: Bench, arms: Sequence[Arm], sweep: Mapping[str, Sequence[Any]], watch: Watch | None = None
) -> tuple[list[Arm], dict[str, list[Candidate]]]:
    """Each arm with its best settings, and what was tried for each arm that had a choice, the chosen one first."""
    check_sweep(arms, sweep)
    grids = {arm.label: arm.candidates(sweep) for arm in arms}
    grids = {label: grid for label, grid in grids.items() if len(grid) > 1}
    if grids and not bench.run.budget:
        raise WhetError("a sweep halves at half of a budget: give one, as in --budget steps:100")
    halves = _run(bench, grids, 0.5, watch)
    kept = {label: _best(trials)[: math.ceil(len(trials) / 2)] for label, trials in halves.items()}
    going_on = {label: [grids[label][i] for i in places] for label, places in kept.items() if len(places) > 1}
    ends = _run(bench, going_on, 1.0, watch)
    chosen: dict[str, Arm] = {}
    tried: dict[str, list[Candidate]] = {}
    for label, grid in grids.items():
        ended = dict(zip(kept[label], ends.get(label, []), strict=False))
        order = [kept[label][i] for i in _best(ends[label])] if label in ends else kept[label]
        order += [i for i in _best(halves[label]) if i not in order]
        chosen[label] = grid[order[0]]
        tried[label] = [
            Candidate({k: grid[i].settings[k] for k in sweep if k in grid[i].settings}, halves[label][i], ended.get(i))
            for i in order
        ]
        if tried[label][0].last.failed:
            raise WhetError(f"arm '{label}': every point of its sweep failed; one says: {tried[label][0].last.failed}")
    return [chosen.get(arm.label, arm) for arm in arms], tried


def attempt(job: Job) -> Trial:
    """Run a candidate to `job.until` of its budget, if it has not been there, and read its score."""
    with locked(job.folder):
        reached = _reached(job)
        if reached is None:
            run = open_run(job)
            budget = run.budget
            assert budget is not None
            try:
                go(run, lambda: budget.share(run.policy.meter) >= job.until)
            except WhetError as problem:
                return Trial(-math.inf, run.policy.meter.flops, str(problem))
            reached = _reached(job)
    assert reached is not None, "a run stops when its budget is spent"
    return reached


def _run(
    bench: Bench, points: Mapping[str, Sequence[Arm]], until: float, watch: Watch | None
) -> dict[str, list[Trial]]:
    jobs = [bench.job(point, SEED, until) for grid in points.values() for point in grid]
    bench.ready(jobs)
    trials = iter(bench.each(attempt, jobs, lambda job, trial: watch and watch(_line(job, trial))))
    return {label: [next(trials) for _ in grid] for label, grid in points.items()}


def _best(trials: Sequence[Trial]) -> list[int]:
    """Places from the best score on; equal ones keep their order."""
    return sorted(range(len(trials)), key=lambda i: -trials[i].score)


def _reached(job: Job) -> Trial | None:
    """The score by `job.until`, from the run's metrics; None where it has not come so far.

    Only rows up to the step that spent the share count, and only when a checkpoint says that the step was done with: so a
    run that was killed, then or later, gives the same score.
    """
    folder = RunFolder(job.folder)
    rows = folder.read_metrics()
    cut = next((row for row in rows if row.get("share", 0.0) >= job.until), None)
    if cut is None and folder.summary.exists():  # its patience ended it before
        cut = rows[-1]
    saved = checkpoint.found(folder.checkpoints)
    if cut is None or not saved or int(saved[-1].name.removeprefix(checkpoint.PREFIX)) < cut["step"]:
        return None
    scores = [row["validation/accuracy"] for row in rows if row["step"] <= cut["step"] and "validation/accuracy" in row]
    return Trial(
        max(scores, default=-math.inf), max(row.get("flops", 0.0) for row in rows if row["step"] <= cut["step"])
    )


def _line(job: Job, trial: Trial) -> str:
    settings = ", ".join(f"{k}={v}" for k, v in job.config.arguments.items())
    what = trial.failed or f"{trial.score:.3f} on validation"
    return f"{job.arm} ({settings}): {what} at {job.until:.0%} of the budget"
