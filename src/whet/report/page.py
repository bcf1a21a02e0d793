"""`whet report`: one self-contained HTML page from run folders and comparisons.

    whet report runs/first runs/compare --out report.html

The page needs no network, and its content policy forbids any: scripts are inlined and allowed by their hashes alone, so
that nothing a model wrote can run even if it were not escaped (it is). It is a function of the files it was made from.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from whet.errors import WhetError
from whet.report import commands, tables
from whet.report.numbers import interval, known, number, p_value
from whet.report.read import ComparisonData, Group, RunData, grouped, read
from whet.report.samples import CHANGES, Pair, pairs
from whet.report.tables import Table


@dataclass
class Section:
    """A part of the page: a comparison, or the runs that were named.

    Attributes:
        claims: what it comes down to, in sentences.
        results, training: charts; the first stand beside the tables.
        zero: what was 0 in every step and has no chart.
        warnings: what the guards told while it trained.
        runs: (label, run) whose answers and config are shown.
    """

    id: str
    title: str
    subtitle: str
    claims: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)
    training: list[Any] = field(default_factory=list)
    zero: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    compute: Table | None = None
    runs: list[tuple[str, RunData]] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    command: str = ""
    versions: dict[str, str] = field(default_factory=dict)


def write_report(folders: Sequence[str | Path], out: str | Path) -> Path:
    """Write the page for folders of runs and comparisons; returns where it is.

    Raises:
        WhetError: a folder holds neither, or `out` cannot be written, or the `report` extra is not installed.
    """
    out = Path(out)
    text = render(folders)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8", errors="replace")  # half of a character that some file held
    except OSError as problem:
        raise WhetError(f"report '{out}' cannot be written: {problem.strerror}") from None
    return out


def render(folders: Sequence[str | Path]) -> str:
    """The page's text."""
    bundle = javascript()
    import jinja2

    found = [read(folder) for folder in dict.fromkeys(map(Path, folders))]
    sections = [of_comparison(c, f"comparison-{i}") for i, c in enumerate(found, 1) if isinstance(c, ComparisonData)]
    runs = [run for run in found if isinstance(run, RunData)]
    if runs:
        sections.append(of_runs(runs))
    scripts = [bundle, _resource("page.js")]
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(_resource("page.html.jinja"))
    from whet.report import charts

    return template.render(
        title=" · ".join(section.title for section in sections), sections=sections, style=_resource("page.css"),
        scripts=scripts, hashes=" ".join(f"'sha256-{_sha256(s)}'" for s in scripts), changes=list(CHANGES.values()),
        charts=[chart for section in sections for chart in (*section.results, *section.training)], config=charts.CONFIG,
        commands=commands,
    )  # fmt: skip


def of_runs(runs: Sequence[RunData]) -> Section:
    """The section of runs that were named themselves."""
    from whet.report.charts import Colours
    from whet.report.training import always_zero, training_charts, warnings

    groups = grouped(runs)
    tasks = " and ".join(dict.fromkeys(str(run.asked["task"]) for run in runs))
    recipes = " and ".join(dict.fromkeys(run.asked["recipe"] for run in runs))
    models = " and ".join(dict.fromkeys(str(run.asked.get("model") or "the shipped base") for run in runs))
    made = Section(
        id="runs", title=f"{recipes} on {tasks}",
        subtitle=f"{models}, {len(runs)} run{'s' * (len(runs) > 1)}{_when(runs)}",
    )  # fmt: skip
    for group in groups:
        made.remarks += [
            f"{run.folder}: not finished, {len(run.steps)} steps so far" for run in group.runs if not run.summary
        ]
        if group.finished:
            made.claims.append(_claim(group))
            made.tables.append(tables.before_after(group))
    made.compute = tables.compute(groups) if any(group.finished for group in groups) else None
    made.training = training_charts(groups, Colours([group.label for group in groups]))
    made.zero, made.warnings = always_zero(groups), warnings(groups)
    several = any(len(group.runs) > 1 for group in groups)
    made.runs = [(f"{g.label}, seed {run.seed}" if several else g.label, run) for g in groups for run in g.runs]
    made.pairs = [pair for i, (_, run) in enumerate(made.runs) for pair in pairs(run, i)]
    return made


def of_comparison(comparison: ComparisonData, name: str) -> Section:
    """The section of a comparison; of its runs' answers and configs the first seed's are shown."""
    from whet.report import charts
    from whet.report.charts import Colours
    from whet.report.training import always_zero, training_charts, warnings

    results, asked = comparison.results, comparison.results["asked"]
    arms = results["arms"]
    colours = Colours([arm["arm"] for arm in arms])
    seeds = len(asked["seeds"])
    made = Section(
        id=name, title=f"{' · '.join(arm['arm'] for arm in arms)} on {results['task']}",
        subtitle=f"{results['model']['name']}, {results['model']['parameters'] / 1e6:.3g} M parameters, {seeds} "
                 f"seed{'s' * (seeds > 1)} of each arm",
        command=commands.of_comparison(asked), versions=results["versions"],
    )  # fmt: skip
    made.claims, made.remarks = _verdict(comparison), _remarks(comparison)
    made.tables = [tables.ranked(comparison)]
    if len(arms) > 1:
        made.tables.append(tables.differences(comparison))
    for more in (tables.forgotten(results.get("forgetting"), [arm["arm"] for arm in arms]), tables.sweeps(comparison)):
        made.tables += [more] if more else []
    made.remarks += tables.forgetting_notes(results.get("forgetting"))
    start = results["start"]
    rows = [{"arm": arm["arm"], **arm["metrics"]["accuracy"]} for arm in arms]
    made.results.append(charts.intervals("Accuracy on test", rows, start.get("accuracy", {}).get("value"), colours))
    made.results.append(_learning(comparison, colours))
    made.results.append(_trade_off(comparison, colours) if "forgetting" in comparison.metrics else None)
    made.results = [chart for chart in made.results if chart]
    groups = [group for group in comparison.groups if group.runs]
    made.training = [c for c in training_charts(groups, colours) if c.title != "Validation accuracy"] if groups else []
    made.zero, made.warnings = always_zero(groups), warnings(groups)
    made.runs = [(f"{group.label}, seed {group.runs[0].seed}", group.runs[0]) for group in groups]
    made.pairs = [pair for i, (_, run) in enumerate(made.runs) for pair in pairs(run, i)]
    return made


def _when(runs: Sequence[RunData]) -> str:
    days = sorted({str(run.record["started"])[:10] for run in runs if "started" in run.record})
    return f", {' to '.join(dict.fromkeys([days[0], days[-1]]))}" if days else ""


# -- sentences ---------------------------------------------------------------------------------------------------------
def _claim(group: Group) -> str:
    """`grpo: accuracy 0.042 before, 0.667 after: +0.625 (0.48 to 0.77)`."""
    before, after, change = tables.measured(group.finished, "accuracy")
    reach = interval("accuracy", change, signed=True)
    return (f"{group.label}: accuracy {number('accuracy', before['value'])} before, {number('accuracy', after['value'])} "
            f"after: {number('accuracy', change['value'], signed=True)}{f' ({reach})' if reach else ''}")  # fmt: skip


def _verdict(comparison: ComparisonData) -> list[str]:
    """Who is best and whether that is more than chance."""
    best, *others = comparison.results["arms"]
    found = best["metrics"]["accuracy"]
    reach = interval("accuracy", found)
    said = [f"{best['arm']} is best: accuracy {number('accuracy', found['value'])}{f' ({reach})' if reach else ''}."]
    if others:
        second = others[0]["arm"]
        d = next(d for d in comparison.results["differences"]["accuracy"] if {d["a"], d["b"]} == {best["arm"], second})
        d = d if d["a"] == best["arm"] else tables.turned(d)
        sure = known(d["p_corrected"]) and d["p_corrected"] < 0.05
        said.append(f"Its lead over {second}, {number('accuracy', d['value'], signed=True)}, is "
                    f"{'more than chance' if sure else 'not shown to be more than chance'} "
                    f"(corrected p {p_value(d['p_corrected'])}).")  # fmt: skip
    return said


def _remarks(comparison: ComparisonData) -> list[str]:
    """What the numbers rest on."""
    results, asked = comparison.results, comparison.results["asked"]
    said = []
    if asked["budget"]:
        shares = [share for arm in results["arms"] for share in arm["spent"]]
        said.append(f"Equal: {asked['budget']} a run; {min(shares):.0%} to {max(shares):.0%} of it was spent.")
    else:
        said.append("Equal: nothing but the start; each arm took its own steps.")
    if len(asked["seeds"]) == 1:
        said.append("One seed: intervals are over problems and say nothing about another seed.")
    elif known(results["detectable"].get("accuracy")) and len(results["arms"]) > 1:
        said.append("The smallest difference in accuracy that every pair of arms would have shown (80 % power): "
                    f"{results['detectable']['accuracy']:.3f}.")  # fmt: skip
    problems = results["arms"][0]["metrics"]["accuracy"]["problems"]
    said.append(f"All arms began with the same weights and answered the same {problems} test problems; intervals are 95 %, "
                "p-values are corrected for the number of pairs (Holm).")  # fmt: skip
    return said


def _learning(comparison: ComparisonData, colours: Any) -> Any:
    from whet.report.charts import Series, curves
    from whet.report.curves import aligned

    series = [Series(arm["arm"], aligned(arm["curves"], "flops", "accuracy")) for arm in comparison.results["arms"]]
    return curves("Validation accuracy", series, colours, metric="", x="FLOPs", share=True, height=240)


def _trade_off(comparison: ComparisonData, colours: Any) -> Any:
    from whet.report.charts import trade_off

    rows = []
    for arm in comparison.results["arms"]:
        row = {"arm": arm["arm"], "flops": arm["compute"]["flops"], "seconds": arm["compute"]["seconds"]}
        for metric in ("accuracy", "forgetting"):
            found = arm["metrics"][metric]
            row |= {metric: found["value"], f"{metric}_low": found["low"], f"{metric}_high": found["high"]}
        rows.append(row)
    start = comparison.results["start"].get("accuracy")
    return trade_off(rows, {"accuracy": start["value"], "forgetting": 0.0} if start else None, colours)


# -- what the page is made of ------------------------------------------------------------------------------------------
@cache
def javascript() -> str:
    """Vega, Vega-Lite and Vega-Embed in one text, without a network. Raises WhetError without the extra."""
    try:
        import altair
        import jinja2  # noqa: F401
        import vl_convert
    except ImportError as problem:
        raise WhetError(f"a report needs a library that is not installed ({problem.name}): pip install 'whet[report]'"
                        ) from None  # fmt: skip
    version = re.sub(r"^v(\d+\.\d+).*", r"\1", altair.SCHEMA_VERSION)
    text = vl_convert.javascript_bundle(vl_version=version)  # pyright: ignore[reportCallIssue]  # snippet has a default that the stub lacks
    return text.replace("\r\n", "\n").replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _resource(name: str) -> str:
    return (resources.files("whet.report") / name).read_text(encoding="utf-8")
