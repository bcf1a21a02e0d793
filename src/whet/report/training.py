"""The charts of how training went: one set for all groups of runs, drawn from their metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from whet.report import charts
from whet.report.charts import Chart, Colours, Series
from whet.report.curves import over_steps
from whet.report.numbers import known, name
from whet.report.read import Group

CLOCK = ("sample", "score", "learn")
GUARDS = {
    "dead_groups": "Dead groups",
    "truncated": "Truncated answers",
    "unparseable": "Unparseable answers",
    "failed": "Answers that could not be judged",
}


def training_charts(groups: Sequence[Group], colours: Colours) -> list[Chart]:
    """In the order in which they are read. A chart whose numbers no run has is left out."""
    if len(groups) == 1:  # it needs no name
        groups, colours = [replace(groups[0], label="")], Colours([""])
    drawn = [
        _of(groups, colours, "Validation accuracy", [("validation/accuracy", "")], share=True, evaluations=True),
        _of(groups, colours, "Accuracy of sampled answers", [("accuracy", "")], share=True),
        *_each(groups, colours, "Reward", _reward_parts(groups)),
        _of(
            groups,
            colours,
            "Tokens of an answer",
            [("tokens_right", "right"), ("tokens_wrong", "wrong")],
            metric="tokens",
        ),
        _of(groups, colours, "Entropy of a token", [("entropy", "")]),
        *_each(groups, colours, "KL", [key for key in _keys(groups) if _is_kl(key) and _ever(groups, key)]),
        *(_of(groups, colours, title, [(key, "")], share=True) for key, title in GUARDS.items() if _ever(groups, key)),
        _of(groups, colours, "Mismatch of sampler and trainer", [("mismatch", "")]),
        *_each(groups, colours, "Loss", [k for k in _keys(groups) if "loss/" in k and not _is_kl(k)]),
        _of(groups, colours, "Norm of the gradient", [("grad_norm", "")]),
        charts.time_split({group.label: _seconds(group) for group in groups}),
    ]
    return [chart for chart in drawn if chart is not None]


def always_zero(groups: Sequence[Group]) -> list[str]:
    """What would be a flat line at 0 and has no chart for it."""
    keys = [key for key in _keys(groups) if key in GUARDS or _is_kl(key)]
    return [name(key) for key in keys if not _ever(groups, key)]


def warnings(groups: Sequence[Group]) -> list[str]:
    """What the guards told: `grpo: the entropy has collapsed ... (in 3 of 3 seeds, first after step 40)`."""
    found: list[str] = []
    for group in groups:
        name = f"{group.label}: " if len(groups) > 1 else ""
        for text in dict.fromkeys(text for run in group.runs for text in run.warnings):
            steps = [run.warnings[text] for run in group.runs if text in run.warnings]
            seeds = f"in {len(steps)} of {len(group.runs)} seeds, first " if len(group.runs) > 1 else ""
            found.append(f"{name}{text} ({seeds}after step {min(steps)})")
    return found


def _of(
    groups: Sequence[Group], colours: Colours, title: str, keys: Sequence[tuple[str, str]], *, metric: str = "",
    share: bool = False, evaluations: bool = False,
) -> Chart | None:  # fmt: skip
    """One chart of all groups; each key is a line of every group, the second one dashed."""
    series = [Series(group.label, over_steps(group, key, evaluations), part, dashed=place > 0)
              for group in groups for place, (key, part) in enumerate(keys)]  # fmt: skip
    return charts.curves(title, series, colours, metric=metric or ("" if share else "plain"), share=share)


def _each(
    groups: Sequence[Group], colours: Colours, title: str, keys: Sequence[str], share: bool = False
) -> list[Chart | None]:
    """Several keys: lines of one chart where there is one group, a chart each where there are more."""
    if len(groups) > 1:
        return [_of(groups, colours, _titled(title, key), [(key, "")], share=share) for key in keys]
    series = [Series(_part(key), over_steps(groups[0], key)) for key in keys]
    if len(series) == 1:
        return [_of(groups, colours, _titled(title, keys[0]), [(keys[0], "")], share=share)]
    return [charts.curves(title, series, Colours([s.name for s in series]), metric="" if share else "plain",
                          share=share)]  # fmt: skip


def _reward_parts(groups: Sequence[Group]) -> list[str]:
    """The total and its parts; the total alone where there is one part, nothing where that is the accuracy."""
    keys = [key for key in _keys(groups) if key == "reward" or key.startswith("reward/")]
    if len(keys) > 2:
        return keys
    rows = [row for group in groups for run in group.runs for row in run.steps]
    same = all(row.get("reward") == row.get("accuracy") for row in rows)
    return [] if same else keys[:1]


def _keys(groups: Sequence[Group]) -> list[str]:
    return list(dict.fromkeys(k for group in groups for run in group.runs for row in run.steps for k in row))


def _ever(groups: Sequence[Group], key: str) -> bool:
    """Whether any step has a number other than 0."""
    return any(known(row.get(key)) and row[key] for group in groups for run in group.runs for row in run.steps)


def _is_kl(key: str) -> bool:
    return "kl" in key.replace("/", "_").split("_")


def _part(key: str) -> str:
    return name(key.partition("/")[2] or key)


def _titled(title: str, key: str) -> str:
    return title if _part(key).lower() == title.lower() else f"{title}: {_part(key)}"


def _seconds(group: Group) -> dict[str, float]:
    """Mean seconds of a step, by part."""
    rows: list[Any] = [row for run in group.runs for row in run.steps]
    sums = {part: sum(row.get(f"seconds/{part}") or 0.0 for row in rows) for part in CLOCK}
    return {part: total / max(1, len(rows)) for part, total in sums.items()}
