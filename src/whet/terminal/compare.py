"""`whet compare` and `whet reproduce`: what they print, and the commands themselves."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from whet.compare import Comparison
    from whet.evaluation.statistics import Interval
    from whet.reproduce import Verdict

START = "start"
STYLES = {"reproduced": "bold green", "not reproduced": "bold red", "inconclusive": "bold yellow"}


def show_comparison(comparison: Comparison, screen: Console) -> None:
    """The ranked table, what was forgotten, the differences, and what was equal."""
    for made in [*ranked(comparison, screen), forgotten(comparison)]:
        if made.row_count:
            screen.print(made)
            screen.print()
    if len(comparison.arms) > 1:
        screen.print(differences(comparison))
        screen.print()
    for text in remarks(comparison):
        screen.print(text, markup=False, style="dim")


def ranked(comparison: Comparison, screen: Console) -> list[Table]:
    """Arms from the best on, under the start; means over seeds, the 95 % interval behind the first metric.

    One table; on a screen that is too narrow for it, one of the scores and one of what they cost.
    """
    from rich.measure import Measurement

    from whet.terminal.console import amount, clock, flops

    scores = comparison.scores
    sampled = [m for m in scores.metrics if m.startswith(("mean@", "pass@"))]
    named = [
        comparison.metric,
        *(m for m in [*sampled, "forgetting"] if m in scores.metrics and m != comparison.metric),
    ]
    lengths = [m for m in ["tokens_per_answer"] if m in scores.metrics]
    of_scores = [named[0].replace("_", " "), "95 %", *named[1:]]
    of_costs = [*(["tokens/answer"] if lengths else []), "steps", "FLOPs", "tokens", "time"]
    rows = []
    for place, arm in [("", START)] * bool(scores.start) + [
        (str(i), a.label) for i, a in enumerate(comparison.ranked, 1)
    ]:
        costs = [_number(m, scores.interval(m, arm).value) for m in lengths]
        if arm == START:
            costs += [""] * 4
        else:
            spent = comparison.compute(next(a for a in comparison.arms if a.label == arm))
            tokens = spent["sampled_tokens"] + spent["scored_tokens"] + spent["learnt_tokens"]
            steps = sum(scores.values("steps", arm)) / len(scores.cells[arm])
            costs += [f"{steps:.0f}", flops(spent["flops"]), amount(tokens), clock(spent["seconds"])]
        rows.append(([place, arm], _metrics(named, lambda m, label=arm: scores.interval(m, label)), costs))
    whole = _armed([*of_scores, *of_costs], [(name, [*values, *costs]) for name, values, costs in rows])
    if Measurement.get(screen, screen.options.update(max_width=1000), whole).maximum <= screen.width:
        return [whole]
    return [_armed(of_scores, [(name, values) for name, values, _ in rows]),
            _armed(of_costs, [(name, costs) for name, _, costs in rows])]  # fmt: skip


def forgotten(comparison: Comparison) -> Table:
    """Accuracy lost on other tasks where arms have taken equal steps, and where they are equally accurate."""
    from whet.terminal.console import flops

    found = comparison.forgetting
    steps, target = found["at_steps"], found["at_accuracy"]
    heads = [f"at {steps['steps']:.0f} steps" if steps else "",
             f"at accuracy {target['accuracy']:.3f}" if target else "at equal accuracy", "FLOPs there"]  # fmt: skip
    rows = []
    for place, arm in enumerate(comparison.ranked if steps else [], 1):
        there = target["arms"].get(arm.label) if target else None
        at = flops(there["flops"]) if there else ""
        rows.append(([str(place), arm.label], [_lost(steps["arms"][arm.label]), _lost(there), at]))
    return _armed(heads, rows, "forgetting, 95 %")


def differences(comparison: Comparison) -> Table:
    """Every pair of arms, the better first."""
    from rich.text import Text

    from whet.terminal.console import known, table

    metric = comparison.metric
    heads = [metric.replace("_", " "), "95 %", "p", "p, corrected"]
    made = table("difference", *heads, right=(heads[0], *heads[2:]))
    made.columns[0].no_wrap, made.columns[0].overflow = False, "fold"
    made.columns[2].no_wrap = True
    place = {arm.label: i for i, arm in enumerate(comparison.ranked)}
    for d in comparison.scores.differences(metric):
        turned = place[d.a] > place[d.b]
        better, worse, sign = (d.b, d.a, -1) if turned else (d.a, d.b, 1)
        low, high = sorted((sign * d.interval.low, sign * d.interval.high)) if known(d.p) else (d.interval.low,) * 2
        style = "bold" if known(d.corrected) and d.corrected < 0.05 else ""
        made.add_row(Text(f"{better} - {worse}"), f"{sign * d.interval.value:+.3f}", _range(low, high, "+.3f"), _p(d.p),
                     _p(d.corrected), style=style)  # fmt: skip
    return made


def remarks(comparison: Comparison) -> list[str]:
    """What the numbers rest on."""
    from whet.terminal.console import flops

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
    found += forgetting_remarks(comparison.forgetting)
    for label, tried in comparison.tried.items():
        chosen = ", ".join(f"{k}={v}" for k, v in tried[0].settings.items())
        cost = sum(c.last.flops for c in tried)
        found.append(
            f"{label}: {chosen}, the best of {len(tried)} on validation ({flops(cost)} FLOPs beside the budget)"
        )
    return found


def forgetting_remarks(found: Mapping[str, Any]) -> list[str]:
    """Which tasks forgetting is of, and what could not be compared."""
    if not found["tasks"]:
        return []
    said = [f"forgetting ({found['suite'] or 'tasks of its own'}): accuracy lost on {', '.join(found['tasks'])}; "
            f"{found['n']} problems of each at the end, {found['look_n']} where arms are equal"]  # fmt: skip
    said += [f"not compared: {found['why']}"] if found["why"] else []
    missed = found["at_accuracy"]["missed"] if found["at_accuracy"] else {}
    return said + [
        f"{arm} does not come to the accuracy that the others are compared at: {why}" for arm, why in missed.items()
    ]


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
        model: Annotated[str | None, typer.Option(help="base, micro, a folder or Hub name; none is base")] = None,
        budget: Annotated[
            str | None, typer.Option(help="of each run: flops:2e13, tokens:1e6, steps:100 or minutes:5")
        ] = None,
        seeds: Annotated[int, typer.Option(min=1, help="runs of each arm")] = 3,
        sweep: Annotated[
            list[str] | None, typer.Option(help="choose each arm's best on validation: lr=1e-4,3e-4", metavar="KEY=V,V")
        ] = None,
        jobs: Annotated[int, typer.Option(min=1, help="processes")] = 1,
        engine: Annotated[str, typer.Option(help="where the runs run: local, or ray (a cluster)")] = "local",
        address: Annotated[
            str | None, typer.Option(help="of a running Ray cluster: auto, HOST:6379; none starts one here")
        ] = None,
        cpus: Annotated[float | None, typer.Option(help="ray: processors of a run, 0.5 for two on one")] = None,
        gpus: Annotated[float | None, typer.Option(help="ray: GPUs of a run, 0.25 for four on one")] = None,
        verifier: Annotated[str | None, typer.Option(help="of a file task: exact, number, math, choice ...")] = None,
        out: Annotated[Path, typer.Option(help="the comparison's folder; a second call goes on with it")] = Path(
            "runs/compare"
        ),
    ) -> None:  # fmt: skip
        """Which recipe is best: several side by side, at equal budget, over seeds."""
        from whet.arms import parse_sweep, split_words
        from whet.compare import compare as run
        from whet.engines import get_engine
        from whet.runs.index import record
        from whet.terminal.board import Board
        from whet.terminal.console import console, note, quiet_libraries

        quiet_libraries()
        arms, settings = split_words(words)
        if verifier:
            settings["verifier"] = verifier
        where = get_engine(engine, jobs=jobs, address=address, cpus=cpus, gpus=gpus)
        board = Board()
        with _gone_on_with():
            found = run(arms, task=task, model=model, budget=budget, seeds=seeds, sweep=parse_sweep(sweep or []),
                        engine=where, out=out, watch=board.tell, board=board.showing, **settings)  # fmt: skip
        show_comparison(found, console())
        record(out, say=note)
        board.tell(f"all of it is in {out / 'results.json'}")

    @app.command(rich_help_panel=panel)
    def reproduce(
        study: Annotated[str, typer.Argument(help="a study's slug", show_default=False)],
        quick: Annotated[bool, typer.Option("--quick", help="one seed in minutes, without a verdict")] = False,
        full: Annotated[bool, typer.Option("--full", help="the larger scale, for machines that have it")] = False,
        jobs: Annotated[int, typer.Option(min=1, help="processes")] = 1,
        results: Annotated[Path, typer.Option(help="where cells and verdicts lie")] = Path("results"),
        docs: Annotated[Path, typer.Option(help="where the ledger is, if there is one: it is written anew")] = Path(
            "docs"
        ),
        device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps")] = "auto",
    ) -> None:
        """Does a paper's claim hold at small scale? Run its study, judge it, and write its page."""
        from whet.report import ledger
        from whet.reproduce import reproduce as run
        from whet.terminal.console import console, quiet_libraries

        quiet_libraries()
        with _gone_on_with():
            found = run(study, quick=quick, full=full, jobs=jobs, results=results, device=device, watch=_tell())
        show_verdict(found, console())
        if found.found and (docs / "ledger.md").exists():
            for page in ledger.write(results, docs):
                _tell()(f"{page} is written")


def _tell() -> Callable[[str], None]:
    """Prints a line on stderr."""
    from whet.terminal.console import console

    screen = console(stderr=True)
    return lambda text: screen.print(text, markup=False, style="dim", soft_wrap=True)


@contextmanager
def _gone_on_with() -> Iterator[None]:
    """After Ctrl-C or SIGTERM, by which each run has been saved (`whet.cells.go`), or a full disk: the same command goes on."""
    from whet.errors import mendable
    from whet.runs.interrupt import Interrupt
    from whet.terminal.console import command, console

    again = command("whet", *sys.argv[1:])
    memory = "out of memory; make the runs smaller"
    try:
        with Interrupt(), mendable(f"mend that, then go on with it:  {again}", lambda: memory):
            yield
    except KeyboardInterrupt:
        console().print("stopped; go on with it:  ", end="")
        console().print(again, markup=False, style="bold", soft_wrap=True)
        raise typer.Exit(0) from None


def _armed(heads: Sequence[str], rows: Sequence[tuple[Sequence[str], Sequence[str]]], name: str = "arm") -> Table:
    """A table of arms. A long arm is folded, so that the numbers stay whole."""
    from rich.text import Text

    from whet.terminal.console import table

    made = table("", name, *heads, right=("", *(head for head in heads if head != "95 %")))
    for place, column in enumerate(made.columns):
        column.no_wrap = place != 1
    made.columns[1].overflow, made.columns[1].min_width = "fold", 12
    for (place, arm), cells in rows:
        made.add_row(place, Text(arm), *cells, style="dim" if arm == START else "")
    return made


def _lost(found: Mapping[str, Any] | None) -> str:
    """Forgetting with half the width of its interval, which is symmetric."""
    if found is None:
        return "-"
    half = found["high"] - found["value"]
    return f"{found['value']:+.3f}" + (f" ± {half:.3f}" if half == half else "")


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
