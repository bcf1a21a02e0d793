"""`whet run`: from the command line to a run, its display, and what is said at its end."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from whet.config import RunConfig
from whet.errors import WhetError
from whet.launch import Result, Run
from whet.ranks import Ranks, accelerated
from whet.recipes.recipe import get_recipe
from whet.runs import RunFolder
from whet.runs.index import record
from whet.runs.interrupt import Interrupt
from whet.terminal.console import command, console, note, quiet_libraries
from whet.terminal.memory import estimate, memory_table
from whet.terminal.progress import Display, display, headline
from whet.terminal.tables import before_after, compute_lines


def train(
    recipe: str | None, words: Sequence[str], settings: Mapping[str, Any], *, out: Path | None, resume: Path | None,
    quiet: bool, dry_run: bool,
) -> None:  # fmt: skip
    """What `whet run` does.

    Args:
        recipe: a recipe's name or a run.yaml.
        words: `key=value` of the recipe's own arguments.
        settings: the options that were given.

    Raises:
        WhetError: for everything that the user can mend.
        typer.Exit: 130 after a second Ctrl-C.

    Under torchrun every rank does it, and the first one reports.
    """
    quiet_libraries()
    ranks = Ranks.here()
    if not ranks.first:  # what the first rank notes, the others need not repeat
        logging.getLogger("whet").setLevel(logging.ERROR)
        logging.getLogger("whet.ranks").setLevel(logging.WARNING)
    if resume is not None and (recipe or words or settings or out or dry_run):
        raise WhetError(f"a resumed run takes everything from {resume / 'run.yaml'}: give --resume and nothing else")
    if dry_run:
        rehearse(config_of(recipe, words, settings), out)
        return
    with Interrupt() as interrupt, display(interrupt, quiet=quiet or not ranks.first) as shown:
        try:
            if resume is not None:
                run = Run.reopen(resume, watcher=shown, stop=interrupt)
            else:
                run = Run(config_of(recipe, words, settings), out=out, watcher=shown, stop=interrupt)
            shown.steps = sum(stage.steps for stage in run.recipe.stages)
            out = resume or out
            result = run.go()
        except KeyboardInterrupt:
            shown.__exit__()
            if ranks.first:
                stopped(out if out and (out / "run.yaml").exists() else None, shown)
            raise typer.Exit(130 if interrupt.asked else 0) from None
    if not ranks.first:
        return
    if out is not None:
        record(out, say=note)
    if result.summary:
        finished(result, run, out)
    else:
        stopped(out, shown)


def config_of(recipe: str | None, words: Sequence[str], settings: Mapping[str, Any]) -> RunConfig:
    """The config of a recipe's name or of a run.yaml, with what the command line says over it."""
    if recipe is None:
        raise WhetError("name a recipe (see `whet recipes`), a run.yaml, or --resume DIR")
    given = {**accelerated(os.environ), **settings}
    for name in {"others", "probes"} & given.keys():
        given[name] = split_specs(given[name])
    arguments: dict[str, Any] = read_pairs(words)
    if recipe.endswith((".yaml", ".yml")):
        config, _ = RunConfig.read(Path(recipe))
        given = {**config.model_dump(), **given}
        recipe, arguments = config.recipe, {**config.arguments, **arguments}
    entry = get_recipe(recipe)
    for key in arguments:
        if key in RunConfig.model_fields and key not in entry.arguments:
            raise WhetError(f"'{key}' is an option and no argument of recipe '{entry.name}': write "
                            f"--{key.replace('_', '-')} {arguments[key]}")  # fmt: skip
    return RunConfig.make({"task": entry.task, **given, "recipe": entry.name, "arguments": entry.read(arguments)})


def read_pairs(words: Sequence[str]) -> dict[str, str]:
    """{key: value} of `key=value` words."""
    found: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise WhetError(f"'{word}' is not of the form key=value")
        found[key] = value
    return found


def split_specs(given: Sequence[str]) -> list[str]:
    """Task specs of a repeated option whose values may be comma lists; `none` is no task.

    A piece `key=value` goes on with the spec before it: `sort:level=1,word-problem:lang=fr,level=2` are two.
    """
    specs: list[str] = []
    for piece in (piece for text in given for piece in text.split(",")):
        if specs and "=" in piece.partition(":")[0]:
            specs[-1] += f",{piece}"
        elif piece and piece != "none":
            specs.append(piece)
    return specs


def rehearse(config: RunConfig, out: Path | None) -> None:
    """Check everything, say what would be done and what memory it takes; write nothing."""
    if out is not None:
        RunFolder.check_free(out)
    run = Run(config)
    say = console().print
    lines = [line for stage in run.recipe.stages for line in stage.describe()]
    for line in headline(config, run.policy, run.task, lines):
        say(line, markup=False)
    say(
        memory_table(estimate(run.policy.model, run.recipe.stages, run.task, config, run.policy.format, run.ranks.size))
    )
    say("all is in order; nothing was written", style="green")


def finished(result: Result, run: Run, out: Path | None) -> None:
    """The before/after table, the compute, where the model lies and how to ask it."""
    say = console().print
    progress, summary = result.progress, result.summary
    how = f"after {progress.total} steps" + (" (stopped early)" if progress.stopped_early else "")
    if run.config.keep == "best" and progress.best_step >= 0:
        kept = f"kept are the weights of step {progress.best_step}, chosen on validation"
        how += f"; {kept if progress.best_step else 'kept are the first weights: no step did better on validation'}"
    say(f"[bold]{summary['recipe']}[/] on [bold]{summary['task']}[/], seed {summary['seed']}, {how}", soft_wrap=True)
    say()
    say(before_after(summary))
    say()
    for name, line in zip(("compute", "tokens ", "teacher"), compute_lines(summary["compute"]), strict=False):
        say(f"[dim]{name}[/]  {line}", soft_wrap=True)
    if out is None:
        say("[dim]nothing was kept: name a folder with --out to keep the model[/]")
        return
    prompt = run.task.problems("test", 1)[0].prompt
    question = prompt if len(prompt) <= 100 and prompt.isprintable() else "..."
    say(f"[dim]model  [/]  {out / 'model'}", soft_wrap=True)
    say("[dim]ask it [/]  ", end="")
    say(command("whet", "ask", out, question), markup=False, soft_wrap=True)


def stopped(out: Path | None, shown: Display) -> None:
    """What is said of a run that was interrupted."""
    say = console().print
    where = f"stopped at step {shown.step_now} of {shown.steps}" if shown.step_now else "stopped before the first step"
    if out is None:
        say(f"{where}; nothing was kept, since no --out was given")
    else:
        say(f"{where}; go on with it:  ", end="")
        say(command("whet", "run", "--resume", out), markup=False, style="bold", soft_wrap=True)


def build_base(name: str, out: Path, steps: int | None) -> None:
    """What `whet base build` does."""
    from whet.bases import build, describe

    quiet_libraries()
    total = steps or describe(name)["steps"]
    with Interrupt() as interrupt, display(interrupt, total) as shown:
        shown.head([f"base {name}: {total} steps into {out}"])
        build(name, out, steps=steps, observer=shown, stop=interrupt)
    if interrupt.asked:
        console().print(f"stopped at step {shown.step_now} of {total}; the same command goes on with it")
    else:
        console().print(f"[dim]model[/]  {out / 'model'}", soft_wrap=True)
