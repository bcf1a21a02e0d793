"""`whet compare` and `whet reproduce`: what they print, and the commands themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from whet.compare import Comparison
    from whet.evaluation.statistics import Interval
    from whet.reproduce import Verdict

STYLES = {"reproduced": "bold green", "not reproduced": "bold red", "inconclusive": "bold yellow"}


def show_comparison(comparison: Comparison, screen: Console) -> None:
    """The ranked table, the differences, and what was equal."""
    screen.print(ranked(comparison))
    if len(comparison.arms) > 1:
        screen.print()
        screen.print(differences(comparison))
    screen.print()
    for text in remarks(comparison):
        screen.print(text, markup=False, style="dim")


def ranked(comparison: Comparison) -> Table:
    """Arms from the best on, under the start; means over seeds, the 95 % interval behind the first metric."""
    from whet.terminal.console import amount, clock, table

    scores = comparison.scores
    sampled = [m for m in scores.metrics if m.startswith(("mean@", "pass@"))]
    others = [m for m in ("forgetting", "tokens_per_answer") if m in scores.metrics]
    named = [comparison.metric, *(m for m in [*sampled, *others] if m != comparison.metric)]
    heads = [m.replace("_per_", "/").replace("_", " ") for m in named]
    made = table("", "arm", heads[0], "95 %", *heads[1:], "steps", "FLOPs", "tokens", "time",
                 right=("", *heads, "steps", "FLOPs", "tokens", "time"))  # fmt: skip
    if scores.start:
        made.add_row("", "start", *_metrics(named, lambda m: scores.interval(m, "start")), "", "", "", "", style="dim")
    for place, arm in enumerate(comparison.ranked, 1):
        spent = comparison.compute(arm)
        tokens = spent["sampled_tokens"] + spent["scored_tokens"] + spent["learnt_tokens"]
        steps = sum(scores.values("steps", arm.label)) / len(scores.cells[arm.label])
        cells = _metrics(named, lambda m, label=arm.label: scores.interval(m, label))
        made.add_row(str(place), arm.label, *cells, f"{steps:.0f}", amount(spent["flops"]), amount(tokens),
                     clock(spent["seconds"]))  # fmt: skip
    return made


def differences(comparison: Comparison) -> Table:
    """Every pair of arms, the better first."""
    from whet.terminal.console import known, table

    metric = comparison.metric
    made = table("difference", metric.replace("_", " "), "95 %", "p", "p, corrected",
                 right=(metric.replace("_", " "), "p", "p, corrected"))  # fmt: skip
    place = {arm.label: i for i, arm in enumerate(comparison.ranked)}
    for d in comparison.scores.differences(metric):
        turned = place[d.a] > place[d.b]
        better, worse, sign = (d.b, d.a, -1) if turned else (d.a, d.b, 1)
        low, high = sorted((sign * d.interval.low, sign * d.interval.high)) if known(d.p) else (d.interval.low,) * 2
        style = "bold" if known(d.corrected) and d.corrected < 0.05 else ""
        made.add_row(f"{better} - {worse}", f"{sign * d.interval.value:+.3f}", _range(low, high, "+.3f"), _p(d.p),
                     _p(d.corrected), style=style)  # fmt: skip
    return made


def remarks(comparison: Comparison) -> list[str]:
    """What the numbers rest on."""
    scores, asked = comparison.scores, comparison.asked
    seeds, first = asked["seeds"], comparison.cells[0]
    found = [f"{first.task} on {first.model['name']} ({first.model['parameters'] / 1e6:.3g} M parameters), seeds "
             f"{', '.join(map(str, seeds))}, {len(first.answers['greedy'])} test problems, the same for all"]  # fmt: skip
    if asked["budget"]:
        shares = [share for arm in comparison.arms for share in comparison.spent(arm)]
        found.append(f"equal: {asked['budget']} a run; spent: {min(shares):.0%} to {max(shares):.0%}")
    else:
        found.append("equal: nothing but the start; each arm took its own steps (give a --budget)")
    if len(seeds) == 1:
        found.append("one seed: the intervals are over problems, and say nothing about another seed")
    elif len(comparison.arms) > 1:
        found.append(f"smallest difference in {comparison.metric} that every pair would have shown (80 % power): "
                     f"{scores.detectable(comparison.metric):.3f}")  # fmt: skip
    for label, tried in comparison.tried.items():
        chosen = ", ".join(f"{k}={v}" for k, v in tried[0].settings.items())
        cost = sum(c.last.flops for c in tried)
        found.append(f"{label}: {chosen}, the best of {len(tried)} on validation ({cost:.2g} FLOPs beside the budget)")
    return found


def show_verdict(verdict: Verdict, screen: Console) -> None:
    """The table of the cells, the claim, and what became of it."""
    from rich.text import Text

    show_comparison(verdict.comparison, screen)
    study = verdict.study
    screen.print()
    screen.print(Text(f"claim: {study.claim}"))
    screen.print(Text(f"criterion: {study.criterion}", style="dim"))
    if verdict.found is None:
        screen.print(Text("no verdict: --quick runs one seed, and one seed shows no claim", style="yellow"))
        return
    outcome = verdict.found["verdict"]
    style = STYLES[outcome.removesuffix(" at small scale")]
    screen.print(Text(f"verdict: {outcome}", style=style) + Text(f" ({verdict.found['minutes']:.0f} min)", style="dim"))
    screen.print(Text(verdict.found["why"]))


def add_commands(app: typer.Typer, panel: str | None = None) -> None:
    """Register `compare` and `reproduce`; nothing heavy is imported before one of them is run."""

    @app.command(rich_help_panel=panel)
    def compare(
        words: Annotated[
            list[str], typer.Argument(metavar="ARM... [KEY=VALUE...]", help="recipes, as grpo or grpo:lr=1e-4,group=16; "
                                      "then settings of all runs, as test_n=256", show_default=False)
        ],
        task: Annotated[str, typer.Option(help="a task's name, a JSONL file, or hub:ORG/NAME")] = "chain-sum",
        model: Annotated[str | None, typer.Option(help="a folder or Hub name; none is the shipped base")] = None,
        budget: Annotated[
            str | None, typer.Option(help="of each run: flops:2e13, tokens:1e6, steps:100 or minutes:5")
        ] = None,
        seeds: Annotated[int, typer.Option(min=1, help="runs of each arm")] = 3,
        sweep: Annotated[
            list[str] | None, typer.Option(help="choose each arm's best on validation: lr=1e-4,3e-4", metavar="KEY=V,V")
        ] = None,
        jobs: Annotated[int, typer.Option(min=1, help="processes")] = 1,
        verifier: Annotated[str | None, typer.Option(help="of a file task: exact, number, math, choice ...")] = None,
        out: Annotated[Path, typer.Option(help="the comparison's folder; a second call goes on with it")] = Path(
            "runs/compare"
        ),
    ) -> None:  # fmt: skip
        """Which recipe is best: several side by side, at equal budget, over seeds."""
        from whet.arms import parse_sweep, split_words
        from whet.compare import compare as run
        from whet.runs.index import record
        from whet.terminal.console import console, note, quiet_libraries

        quiet_libraries()
        arms, settings = split_words(words)
        if verifier:
            settings["verifier"] = verifier
        found = run(arms, task=task, model=model, budget=budget, seeds=seeds, sweep=parse_sweep(sweep or []), jobs=jobs,
                    out=out, watch=_tell(), **settings)  # fmt: skip
        show_comparison(found, console())
        record(out, say=note)
        _tell()(f"all of it is in {out / 'results.json'}")

    @app.command(rich_help_panel=panel)
    def reproduce(
        study: Annotated[str, typer.Argument(help="a study's slug", show_default=False)],
        quick: Annotated[bool, typer.Option("--quick", help="one seed in minutes, without a verdict")] = False,
        full: Annotated[bool, typer.Option("--full", help="the larger scale, for machines that have it")] = False,
        jobs: Annotated[int, typer.Option(min=1, help="processes")] = 1,
        results: Annotated[Path, typer.Option(help="where cells and verdicts lie")] = Path("results"),
        device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps")] = "auto",
    ) -> None:
        """Does a paper's claim hold at small scale? Run its study and judge it."""
        from whet.reproduce import reproduce as run
        from whet.terminal.console import console, quiet_libraries

        quiet_libraries()
        found = run(study, quick=quick, full=full, jobs=jobs, results=results, device=device, watch=_tell())
        show_verdict(found, console())


def _tell() -> Callable[[str], None]:
    """Prints a line on stderr."""
    from whet.terminal.console import console

    screen = console(stderr=True)
    return lambda text: screen.print(text, markup=False, style="dim", soft_wrap=True)


def _metrics(names: Sequence[str], interval: Callable[[str], Interval]) -> list[str]:
    """The first metric with its interval, the others alone."""
    found = [interval(name) for name in names]
    shown = [_number(name, i.value) for name, i in zip(names, found, strict=True)]
    return [shown[0], _range(found[0].low, found[0].high), *shown[1:]]


def _number(metric: str, value: float) -> str:
    return (
        f"{value:.1f}"
        if metric == "tokens_per_answer"
        else f"{value:+.3f}"
        if metric == "forgetting"
        else f"{value:.3f}"
    )


def _range(low: float, high: float, form: str = ".3f") -> str:
    return "" if low != low else f"{low:{form}} to {high:{form}}"


def _p(value: Any) -> str:
    return "-" if value != value else "< 0.001" if value < 0.001 else f"{value:.3f}"
