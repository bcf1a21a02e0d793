"""What there is: tasks, recipes, papers."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Group
from rich.padding import Padding
from rich.text import Text

from whet.errors import WhetError
from whet.papers import papers
from whet.recipes.recipe import HOW_TO_PROVIDE, Argument, Entry, get_recipe, recipes
from whet.seeds import rng_for
from whet.study import studies
from whet.tasks import Problem, Response, Task, get_task, task_names
from whet.tasks.verify import gold_response
from whet.terminal.console import console, table
from whet.training.optimizer import Rate

RESULTS = Path("results")  # verdicts of studies, one folder a paper


# -- tasks -----------------------------------------------------------------------------------------------------------
def list_tasks() -> None:
    """A table of the registered tasks."""
    made = table("task", "levels", "description", "provides")
    for name in task_names():
        try:
            task = get_task(name)
            made.add_row(
                f"[cyan]{name}[/]", levels(task), task.description, f"[dim]{', '.join(sorted(task.provides()))}[/]"
            )
        except WhetError as problem:  # an extra that is not installed
            made.add_row(f"[cyan]{name}[/]", "", Text(str(problem), style="yellow"), "")
    screen = console()
    screen.print(made)
    screen.print("[dim]--task also takes NAME:level=2, a .jsonl file, and hub:ORG/NAME; look at one with "
                 "`whet tasks show NAME`[/]")  # fmt: skip


def levels(task: Task) -> str:
    """`1-6`, with the default where it is another than the first."""
    low, high = min(task.levels), max(task.levels)
    if low == high:
        return str(low)
    return f"{low}-{high}" + (f" ({task.default_level})" if task.default_level != low else "")


def show_task(spec: str, verifier: str | None, n: int = 3) -> None:
    """Some problems with their rationales, a corrupted one, and the verdicts of gold, corrupted and empty answers."""
    task = get_task(spec, verifier=verifier)
    screen = console()
    screen.print(f"[bold]{task.spec()}[/]  {task.description}", soft_wrap=True)
    screen.print(f"[dim]provides {', '.join(sorted(task.provides()))}[/]", soft_wrap=True)
    for problem in task.problems("train", n):
        screen.print()
        for name, text in sides(task, problem):
            screen.print(Text(f"{name:<10}", style="dim") + text, soft_wrap=True)


def sides(task: Task, problem: Problem) -> list[tuple[str, Text]]:
    """(name, text) of everything there is to see of a problem."""
    have = task.provides()
    found = [("problem", Text(problem.prompt, style="bold"))]
    if problem.choices:
        found.append(("choices", Text(" | ".join(problem.choices))))
    found += [("rationale" if i == 0 else "", Text(step.text)) for i, step in enumerate(problem.steps)]
    answers = [("gold", gold_response(problem))] if problem.answer is not None else []
    if problem.chosen is not None:
        found += [("chosen", Text(problem.chosen)), ("rejected", Text(problem.rejected or ""))]
    if "corruptions" in have:
        wrong = task.corrupt(problem, rng_for(0, "shown", problem.id))
        for i, step in enumerate(wrong.steps):
            first = Text(f"   <- {wrong.label}", style="yellow") if i == wrong.step else Text()
            found.append(("corrupted" if i == 0 else "", Text(step.text) + first))
        answers.append(("corrupted", Response(wrong.rationale + "\n" + wrong.answer, wrong.answer, wrong.rationale)))
    if "verifier" in have:
        answers.append(("empty", Response("", "")))
        found += [("verdict", verdict(task, problem, name, answer)) for name, answer in answers]
    return found


def verdict(task: Task, problem: Problem, name: str, response: Response) -> Text:
    """`gold 12: 1 ok`, with the reason."""
    judged = task.verify(problem, response)
    style = {"ok": "green", "wrong": "red"}.get(judged.status, "yellow")
    text = Text(f"{name:<10}{(response.answer or ''):<12} ") + Text(f"{judged.value:g} {judged.status}", style=style)
    return text + Text(f"  {judged.reason}" if judged.reason else "", style="dim")


# -- recipes ---------------------------------------------------------------------------------------------------------
def list_recipes() -> None:
    """A table of the registered recipes."""
    made = table("recipe", "paper", "needs", "what it is")
    for name, entry in recipes().items():
        needs = ", ".join(sorted(frozenset().union(*(s.needs() for s in entry().stages))))
        made.add_row(f"[cyan]{name}[/]", arxiv(entry), f"[dim]{needs}[/]", entry.summary)
    console().print(made)


def arxiv(entry: Entry) -> str:
    """The arXiv number of a recipe's paper; empty where it has none."""
    return next((p.arxiv for p in papers() if p.slug == entry.paper), "")


def show_recipe(name: str) -> None:
    """Paper, equation, arguments, what it needs, and the stages in words."""
    entry = get_recipe(name)
    screen = console()
    module = sys.modules[entry.build.__module__]
    paper = next((p for p in papers() if p.slug == entry.paper), None)
    screen.print(f"[bold cyan]{entry.name}[/]  {entry.summary}", soft_wrap=True)
    if paper:
        screen.print(f"[dim]paper[/]   {paper.title} (arXiv {paper.arxiv})", soft_wrap=True)
    if entry.parent:
        fixed = ", ".join(f"{k}={written(v)}" for k, v in entry.defaults.items())
        screen.print(f"[dim]parent[/]  {entry.parent}" + (f" with {fixed}" if fixed else ""), soft_wrap=True)
    screen.print()
    screen.print(Padding(Text(reflowed(inspect.getdoc(module) or "")), (0, 0, 1, 2)))
    own = {k: a for k, a in entry.arguments.items() if is_own(entry, k)}
    inherited = {k: a for k, a in entry.arguments.items() if k not in own}
    if own:
        screen.print(arguments_table(list(own.values())))
    if inherited:
        screen.print(f"  [dim]from {entry.parent}, * where {entry.name} has its own default[/]")
        screen.print(arguments_table(list(inherited.values()), entry.defaults))
    recipe = entry()
    for need in sorted(frozenset().union(*(s.needs() for s in recipe.stages))):
        screen.print(f"  [dim]needs[/]   {need}: {HOW_TO_PROVIDE.get(need, '')}", soft_wrap=True)
    screen.print()
    screen.print(Group(*(Text(f"  {line}") for stage in recipe.stages for line in stage.describe())))


def reflowed(text: str) -> str:
    """Running paragraphs on one line each, to be wrapped to the screen; equations and tables stay as they are."""
    blocks = []
    for block in text.split("\n\n"):
        running = not any(line.startswith((" ", "|")) for line in block.split("\n"))
        blocks.append(" ".join(block.split("\n")) if running else block)
    return "\n\n".join(blocks)


def is_own(entry: Entry, name: str) -> bool:
    """Whether a recipe's function names the argument itself."""
    return name in inspect.signature(entry.build).parameters


def arguments_table(arguments: Sequence[Argument], changed: Sequence[str] | dict = ()) -> Padding:
    """Name, type, default and meaning."""
    made = table("argument", "type", "default", "meaning")
    for a in arguments:
        star = "*" if a.name in changed else ""
        kind = a.type.replace(" | Rate", "").replace(" | None", "")
        made.add_row(f"[cyan]{a.name}[/]", f"[dim]{kind}[/]", written(a.default) + star, Text(a.help))
    return Padding(made, (0, 0, 0, 2))


def written(value: object) -> str:
    """A default as it would be given on the command line."""
    if isinstance(value, Rate):
        return f"{value.small:g}, {value.paper:g}".replace("e-0", "e-")
    if value is None or value == "":
        return "-"
    return json.dumps(value) if isinstance(value, bool | list | tuple) else str(value)


# -- papers ----------------------------------------------------------------------------------------------------------
def list_papers(family: str | None) -> None:
    """All papers: implemented where a registered recipe or a study names one, with the last verdict of its study."""
    by_paper: dict[str, list[str]] = {}
    for name, entry in recipes().items():
        by_paper.setdefault(entry.paper, []).append(name)
    for made in studies().values():
        by_paper.setdefault(made.paper, ["a study"])
    shown = [p for p in papers() if family in (None, p.family)]
    if not shown:
        raise WhetError(f"no family is called '{family}': " + ", ".join(dict.fromkeys(p.family for p in papers())))
    made = table("family", "paper", "title", "arXiv", "state", "verdict")
    for paper in shown:
        named = by_paper.get(paper.slug)
        state = f"[green]implemented[/] [dim]{', '.join(named)}[/]" if named else "[dim]planned[/]"
        made.add_row(f"[dim]{paper.family}[/]", f"[cyan]{paper.slug}[/]", Text(paper.title), paper.arxiv, state,
                     last_verdict(paper.slug))  # fmt: skip
    done = sum(p.slug in by_paper for p in shown)
    screen = console()
    screen.print(made)
    screen.print(f"[dim]{len(shown)} papers, {done} implemented, {len(shown) - done} planned[/]")


def last_verdict(slug: str) -> str:
    """The verdict of a paper's study; `-` where none was run."""
    file = RESULTS / slug / "verdict.json"
    if not file.exists():
        return "-"
    return str(json.loads(file.read_text())["verdict"])
