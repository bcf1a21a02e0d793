"""Several recipes side by side, from the same start, on the same problems, with the same budget.

    whet compare sft grpo star --task chain-sum --budget flops:1e13 --seeds 3
    whet compare grpo:group=4 grpo:group=16 --budget tokens:1e6 --sweep lr=1e-4,3e-4
    whet compare sft grpo --budget flops:1e13 --engine ray --address HOST:6379 --gpus 0.25 --out /shared/compare

or from Python

    from whet.compare import compare
    found = compare(["sft", "grpo"], task="chain-sum", budget="flops:1e13", out="runs/compare")

Each arm and seed is a run of its own below `out`; what is there is not run again, and a comparison that was stopped or
killed goes on where it was. `out/results.json` is a function of the cells in `out/cells`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from whet.arms import Arm, parse_arms
from whet.cells import Bench, Board
from whet.engines import Engine, get_engine
from whet.errors import WhetError
from whet.evaluation.forgetting import CURRENT, forgetting
from whet.evaluation.scores import START, Cell, Scores, interval_dict
from whet.models.meter import Meter
from whet.runs import plain
from whet.sweep import Candidate, choose
from whet.tasks import Task
from whet.training.budget import Budget
from whet.training.checkpoint import write_atomic

# looks at validation at equal shares of each run, so that every arm is looked at equally often, and at the forgetting suite
LOOKS = {"evaluations": 8, "others": [CURRENT.name], "others_n": CURRENT.n, "others_look_n": CURRENT.look_n}


@dataclass
class Comparison:
    """What `compare` returns: a function of its cells.

    Attributes:
        arms: as they were run, with the settings that a sweep chose.
        cells: of every arm and seed, and of the start.
        tried: of each arm with a choice, the candidates of its sweep, the chosen one first.
        asked: what the comparison was asked for.
    """

    arms: list[Arm]
    cells: list[Cell]
    asked: Mapping[str, Any]
    tried: Mapping[str, Sequence[Candidate]] = field(default_factory=dict)
    metric: str = "accuracy"

    @cached_property
    def scores(self) -> Scores:
        return Scores(self.cells)

    @cached_property
    def forgetting(self) -> dict[str, Any]:
        """By the forgetting suite, at equal steps and at equal accuracy; see `whet.evaluation.forgetting`."""
        return forgetting(self.scores)

    @property
    def ranked(self) -> list[Arm]:
        """Arms from the best on."""
        order = self.scores.ranked(self.metric)
        return sorted(self.arms, key=lambda arm: order.index(arm.label))

    def compute(self, arm: Arm) -> dict[str, float]:
        """The meter of a run of the arm, the mean over its seeds."""
        cells = self.scores.cells[arm.label]
        return {
            k: sum(c.compute[k] for c in cells) / len(cells)
            for k in cells[0].compute
            if all(k in c.compute for c in cells)
        }

    def spent(self, arm: Arm) -> list[float]:
        """The spent share of the budget, one number a seed; a step's overshoot above 1. Empty without a budget."""
        if not self.asked["budget"]:
            return []
        budget = Budget.parse(self.asked["budget"])
        return [budget.share(Meter(**c.compute)) for c in self.scores.cells[arm.label]]  # type: ignore[arg-type]

    def as_dict(self) -> dict[str, Any]:
        """The contract of `results.json`."""
        scores = self.scores
        rows = [
            {
                "rank": rank, "arm": arm.label, "recipe": arm.recipe, "settings": dict(arm.settings),
                "metrics": {m: {**interval_dict(scores.interval(m, arm.label)), "by_seed": scores.values(m, arm.label)}
                            for m in scores.metrics},
                "compute": self.compute(arm), "spent": self.spent(arm),
                "minutes": [c.minutes for c in scores.cells[arm.label]],
                "curves": [list(c.curve) for c in scores.cells[arm.label]],
            }
            for rank, arm in enumerate(self.ranked, 1)
        ]  # fmt: skip
        start = {m: interval_dict(scores.interval(m, START)) for m in scores.metrics if m in scores.start.metrics} if (
            scores.start) else {}  # fmt: skip
        found = {
            "asked": dict(self.asked), "equal": Budget.parse(self.asked["budget"]).kind if self.asked["budget"] else None,
            "task": self.cells[0].task, "model": dict(self.cells[0].model), "start": start, "arms": rows,
            "differences": {m: [d.as_dict() for d in scores.differences(m)] for m in scores.metrics},
            "detectable": {m: scores.detectable(m) for m in scores.metrics}, "forgetting": self.forgetting,
            "sweep": {label: [c.as_dict() for c in rows] for label, rows in self.tried.items()},
            "versions": dict(self.cells[0].versions),
        }  # fmt: skip
        return plain(found)


def compare(
    recipes: Sequence[str | Arm] | Mapping[str, str], *, task: str | Task = "chain-sum", model: str | None = None,
    budget: str | None = None, seeds: int | Sequence[int] = 3, sweep: Mapping[str, Sequence[Any]] | None = None,
    jobs: int = 1, engine: Engine | str = "local", out: str | Path, watch: Callable[[str], None] | None = None,
    board: Board | None = None, **settings: Any,
) -> Comparison:  # fmt: skip
    """Train with each recipe and each seed, and say which is best and how sure that is.

    Args:
        recipes: arms, as `grpo` or `grpo:lr=1e-4,group=16`; or {label: arm}.
        task, model: what all of them train, from the same weights.
        budget: what each run may spend (`flops:2e13`, `tokens:1e6`, `steps:100`, `minutes:5`); None lets each arm take
            its own steps, and then nothing is equal but the start.
        seeds: how many runs of each arm, or the seeds themselves.
        sweep: {"lr": [1e-4, 3e-4]}: each arm's best is chosen on validation, see `whet.sweep`.
        jobs: processes. From a script, more than one needs `if __name__ == "__main__":`.
        engine: where the cells run: `local`, `ray`, or an engine of `whet.engines`.
        out: the folder of the comparison; a second call goes on with it.
        watch: hears a line of every run that is done.
        board: shows the progress of runs while it is entered with them.
        settings: of all runs: `RunConfig`'s, and arguments that every recipe takes.

    Raises:
        WhetError: for anything the user can mend; every arm is checked before the first run.
    """
    numbers = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not numbers or len(set(numbers)) < len(numbers):
        raise WhetError(f"seeds '{seeds}': at least one, and no two alike")
    arms = parse_arms(recipes)
    shared = {**LOOKS, **settings, "model": model, "budget": budget}
    folder = Path(out)
    chosen_engine = get_engine(engine, jobs=jobs) if isinstance(engine, str) else engine
    bench = Bench(arms, task=task, out=folder, shared=shared, engine=chosen_engine, board=board)
    chosen, tried = choose(bench, arms, sweep or {}, watch)
    runs = [bench.job(arm, seed) for seed in numbers for arm in chosen]  # by seed: all arms early, more seeds later
    cells = bench.cells_of(runs, lambda job, cell: watch and watch(line(cell)))
    asked = {
        "arms": {arm.label: {"recipe": arm.recipe, **arm.settings} for arm in arms}, "task": bench.run.task.spec(),
        "model": model, "budget": budget, "seeds": numbers, "sweep": {k: list(v) for k, v in (sweep or {}).items()},
        "settings": settings,
    }  # fmt: skip
    in_order = [cell for arm in chosen for cell in cells if cell.arm == arm.label]
    comparison = Comparison(chosen, [bench.start(), *in_order], asked, tried)
    write_atomic(folder / "results.json", json.dumps(comparison.as_dict(), indent=1))
    return comparison


def line(cell: Cell) -> str:
    """One line about a finished cell."""
    return (f"{cell.arm}, seed {cell.seed}: {cell.metrics['accuracy']:.1%} on test after {cell.metrics['steps']:.0f} steps, "
            f"{cell.compute['flops']:.2g} flops, {cell.minutes:.1f} min")  # fmt: skip
