"""The tables of a report: before and after, ranked arms, differences. Cells are text; the page escapes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from whet.evaluation.statistics import Interval, over_seeds, over_seeds_and_problems, paired_difference
from whet.report.numbers import NONE, amount, clock, flops, interval, known, name, number, p_value
from whet.report.read import ComparisonData, Group, RunData

FIRST = ("accuracy", "sampled_accuracy")
BETTER = {"accuracy": 1, "sampled_accuracy": 1, "ended": 1, "unparseable": -1, "failed": -1}  # the others are neither


@dataclass
class Cell:
    """A cell's text, a dim second part (an interval) and a tone (`good`, `bad`, `head`, `dim` ...)."""

    text: str
    more: str = ""
    tone: str = ""


@dataclass
class Table:
    """Heads and rows. The first column names the row; in a `dense` table intervals stand below their numbers."""

    heads: Sequence[str]
    rows: list[list[Cell]] = field(default_factory=list)
    caption: str = ""
    dense: bool = False


def before_after(group: Group) -> Table:
    """A group's evaluation on test before and after, and on other tasks; means over its seeds."""
    runs = group.finished
    seeds = f"{len(runs)} seeds" if len(runs) > 1 else f"seed {runs[0].seed}"
    made = Table(["test", "before", "after", "change", "n"], caption=f"{group.label}, {seeds}; 95 % intervals")
    for metric in metrics_of(runs[0].after):
        made.rows.append(_change_row(metric, *measured(runs, metric), _n(runs[0].after[metric])))
    others = runs[0].summary["others"] if runs[0].summary else {}
    if others:
        made.rows.append([Cell("accuracy on other tasks", tone="head")])
    for task in others:
        before = [run.summary["others"][task]["before"] for run in runs if run.summary]
        after = [run.summary["others"][task]["after"] for run in runs if run.summary]
        found = _pooled(before), _pooled(after), _moved(before, after)
        made.rows.append(_change_row("accuracy", *found, _n(after[0]), title=task))
    return made


def metrics_of(found: Mapping[str, Any]) -> list[str]:
    """In the order in which they are read: shares first."""
    first = [m for m in FIRST if m in found] + [m for m in found if "@" in m]
    return first + [m for m in found if m not in first]


def measured(runs: Sequence[RunData], metric: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Before, after and change of a metric, each with its interval where there is one.

    Accuracy and pass@k are known problem by problem: over several seeds their intervals are over seeds and problems, and
    the change is paired. Other metrics have an interval over seeds.
    """
    before, after = [run.before.get(metric) for run in runs], [run.after.get(metric) for run in runs]
    rows = [[run.by_problem(metric, when) for run in runs] for when in ("before", "after")]
    problems = {tuple(run.problems(when)) for run in runs for when in ("before", "after")}
    if len(problems) > 1 or any(row is None for side in rows for row in side):
        return _pooled(before), _pooled(after), _moved(before, after)
    tables = np.array(rows)  # (2, S, P)
    old, new = tables[:, :, ~np.isnan(tables).any((0, 1))]
    same_start = bool((old == old[0]).all())
    change = paired_difference(new, old[0] if same_start else old)
    later = _pooled(after) if len(runs) == 1 else _plain(over_seeds_and_problems(new))
    return _pooled(before), later, _plain(change)


def ranked(comparison: ComparisonData) -> Table:
    """Arms from the best on, under the start."""
    results = comparison.results
    shown = ["accuracy", *(m for m in comparison.metrics if m.startswith(("mean@", "pass@", "majority@")))]
    shown += [m for m in ("forgetting", "tokens_per_answer") if m in comparison.metrics]
    made = Table(["arm", *map(name, shown), "steps", "FLOPs", "tokens", "training"], dense=True)
    if results["start"]:
        start = [results["start"].get(m) for m in shown]
        made.rows.append([Cell("start", tone="dim"), *(_value(m, f) for m, f in zip(shown, start, strict=True)),
                          *(Cell("") for _ in range(4))])  # fmt: skip
    for arm in results["arms"]:
        spent = arm["compute"]
        tokens = spent["sampled_tokens"] + spent["scored_tokens"] + spent["learnt_tokens"]
        steps = arm["metrics"].get("steps", {}).get("value")
        made.rows.append([
            Cell(f"{arm['rank']}. {arm['arm']}"), *(_value(m, arm["metrics"][m]) for m in shown),
            Cell(f"{steps:.0f}" if known(steps) else NONE), Cell(flops(spent["flops"])), Cell(amount(tokens)),
            Cell(clock(spent["seconds"])),
        ])  # fmt: skip
    return made


def forgotten(found: Mapping[str, Any] | None, arms: Sequence[str]) -> Table | None:
    """Accuracy lost on other tasks at equal steps and at equal accuracy; None where nothing was looked at."""
    if not found or not found["at_steps"]:
        return None
    target = found["at_accuracy"]
    there = target["arms"] if target else {}
    made = Table(["arm", f"at {found['at_steps']['steps']:.0f} steps",
                  f"at accuracy {target['accuracy']:.3f}" if target else "at equal accuracy", "steps there",
                  "FLOPs there"], caption="Forgetting: accuracy lost on other tasks", dense=True)  # fmt: skip
    for arm in arms:
        own = there.get(arm)
        made.rows.append([
            Cell(arm), _value("forgetting", found["at_steps"]["arms"][arm]), _value("forgetting", own),
            Cell(f"{own['step']:.0f}" if own else NONE), Cell(flops(own["flops"]) if own else NONE),
        ])  # fmt: skip
    return made


def forgetting_notes(found: Mapping[str, Any] | None) -> list[str]:
    """Which tasks forgetting is of, and which arm could not be compared."""
    if not found or not found["tasks"]:
        return []
    looks = f", {found['look_n']} where arms are equal" if found["at_steps"] else ""
    said = [f"Forgetting is the accuracy lost on {', '.join(found['tasks'])} ({found['suite'] or 'tasks of its own choice'}): "
            f"{found['n']} problems of each at the end{looks}."]  # fmt: skip
    said += [f"At equal steps and accuracy: {found['why']}."] if found["why"] else []
    missed = found["at_accuracy"]["missed"] if found["at_accuracy"] else {}
    return said + [f"{arm} does not come to the accuracy that the others are compared at: {why}."
                   for arm, why in missed.items()]  # fmt: skip


def differences(comparison: ComparisonData, metric: str = "accuracy") -> Table:
    """Every pair of arms, the better one first."""
    made = Table([f"difference in {name(metric)}", "", "p", "p, corrected"])
    place = {arm["arm"]: arm["rank"] for arm in comparison.results["arms"]}
    for found in comparison.results["differences"][metric]:
        d = found if place[found["a"]] < place[found["b"]] else turned(found)
        tone = "strong" if known(d["p_corrected"]) and d["p_corrected"] < 0.05 else ""
        made.rows.append([Cell(f"{d['a']} – {d['b']}", tone=tone), _value(metric, d, signed=True),
                          Cell(p_value(d["p"])), Cell(p_value(d["p_corrected"]), tone=tone)])  # fmt: skip
    return made


def turned(d: Mapping[str, Any]) -> dict[str, Any]:
    """b - a from a - b."""
    return {**negated(d), "a": d["b"], "b": d["a"]}


def negated(d: Mapping[str, Any]) -> dict[str, Any]:
    """An estimate and its interval with the other sign."""
    low, high = (None if d[k] is None else -d[k] for k in ("high", "low"))
    return {**d, "value": -d["value"], "low": low, "high": high}


def sweeps(comparison: ComparisonData) -> Table | None:
    """What a sweep tried; None where there was none."""
    tried = comparison.results["sweep"]
    if not tried:
        return None
    made = Table(["arm", "settings", "validation at half", "at the end", "FLOPs"])
    for arm, candidates in tried.items():
        for place, c in enumerate(candidates):
            settings = ", ".join(f"{k}={v}" for k, v in c["settings"].items()) + (" (chosen)" if place == 0 else "")
            end = Cell(c["failed"], tone="bad") if c["failed"] else Cell(number("accuracy", c["end"]))
            made.rows.append([Cell(arm), Cell(settings, tone="" if place else "strong"),
                              Cell(number("accuracy", c["half"])), end, Cell(flops(c["flops"]))])  # fmt: skip
    return made


def compute(groups: Sequence[Group]) -> Table:
    """What the training cost, the mean over each group's seeds; evaluation is not counted."""
    columns: dict[str, tuple[str, Callable[[Any], str]]] = {
        "seconds": ("training", clock), "flops": ("FLOPs", flops), "optimizer_steps": ("steps", amount),
        "sampled_tokens": ("sampled tokens", amount), "scored_tokens": ("scored", amount),
        "learnt_tokens": ("learnt", amount), "verifier_calls": ("verdicts", amount),
    }  # fmt: skip
    made = Table(["", *(title for title, _ in columns.values())])
    for group in groups:
        spent = [run.summary["compute"] for run in group.finished if run.summary]
        if spent:
            means = {k: sum(s.get(k, 0.0) for s in spent) / len(spent) for k in columns}
            made.rows.append([Cell(group.label), *(Cell(write(means[k])) for k, (_, write) in columns.items())])
    return made


# -- parts -------------------------------------------------------------------------------------------------------------
def _change_row(
    metric: str, before: Mapping[str, Any], after: Mapping[str, Any], change: Mapping[str, Any], n: str, title: str = ""
) -> list[Cell]:
    moved = _value(metric, change, signed=True)
    better = BETTER.get(metric, 1 if "@" in metric else 0)
    if better and known(change["value"]) and round(change["value"], 3):
        moved.tone = "good" if better * change["value"] > 0 else "bad"
    return [Cell(title or name(metric)), _value(metric, before), _value(metric, after), moved, Cell(n, tone="dim")]


def _value(metric: str, found: Mapping[str, Any] | None, signed: bool = False) -> Cell:
    return Cell(NONE) if not found else Cell(number(metric, found["value"], signed), interval(metric, found, signed))


def _pooled(found: Sequence[Any]) -> dict[str, Any]:
    """One number from one a run: a run's own with its own interval, several with an interval over them."""
    if len({str(f) for f in found}) == 1:  # one run, or the same start for all
        return dict(found[0]) if isinstance(found[0], Mapping) else {"value": found[0]}
    values = [_number(f) for f in found]
    if not all(map(known, values)):
        return {"value": None}
    pooled = over_seeds(values)  # type: ignore[arg-type]
    shares = all(isinstance(f, Mapping) for f in found)  # what has an interval of its own
    return _plain(pooled.as_share() if shares else pooled)


def _moved(before: Sequence[Any], after: Sequence[Any]) -> dict[str, Any]:
    pairs = [(_number(b), _number(a)) for b, a in zip(before, after, strict=True)]
    if not all(known(b) and known(a) for b, a in pairs):
        return {"value": None}
    return _plain(over_seeds([a - b for b, a in pairs]))  # type: ignore[operator]


def _number(found: Any) -> float | None:
    return found["value"] if isinstance(found, Mapping) else found


def _n(found: Any) -> str:
    return str(found["n"]) if isinstance(found, Mapping) and "n" in found else ""


def _plain(found: Interval) -> dict[str, Any]:
    return {"value": found.value, "low": found.low, "high": found.high}
