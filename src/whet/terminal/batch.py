"""`whet show-batch`: what a recipe's first step would learn, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from whet.config import RunConfig
from whet.launch import Run
from whet.records import Row, Sample
from whet.terminal.ask import one_line
from whet.terminal.console import console, quiet_libraries, table
from whet.training.fit import Fit, Options


def show_batch(config: RunConfig, n: int) -> None:
    """Print the first rows of the first step, learnt tokens in colour, with what makes their loss."""
    quiet_libraries()
    run = Run(config)
    fit = Fit(run.policy, run.recipe.stages, run.task, weights=run.weights, options=Options(seed=config.seed))
    screen = console()
    with console(stderr=True).status("making the rows of the first step"):
        rows = fit.first_rows()
    stage = run.recipe.stages[0]
    screen.print(f"[bold]{config.recipe}[/] on [bold]{run.task.spec()}[/]  [dim]{len(rows)} rows in the first step of "
                 f"stage {stage.name}; learnt tokens are [/][black on green]green[/]")  # fmt: skip
    for row in rows[:n]:
        screen.print()
        show_row(screen, row, run.policy.tokenizer)
    learnt = sum(s.count_learnt() for row in rows for s in row.all())
    total = sum(len(s) for row in rows for s in row.all())
    screen.print()
    screen.print(f"[dim]{learnt} of {total} tokens are learnt in this step[/]")


def show_row(screen: Console, row: Row, tokenizer: Any) -> None:
    """Each sample of a row: its segments, how many of their tokens are learnt, weights, and the text."""
    numbers = "".join(f"  {name} {value:.3g}" for name, value in row.numbers.items())
    screen.print(Text(row.problem_id, style="bold") + Text(numbers, style="dim"), soft_wrap=True)
    for role in row.samples:
        for sample in row.get(role):
            made = table(role, "learnt", "weight", "text", right=("learnt", "weight"))
            start, mask = 0, sample.learn_mask.tolist()
            for segment in sample.segments:
                stop = start + len(segment.ids)
                learnt = mask[start:stop]
                made.add_row(segment.kind, f"{sum(learnt)}/{len(learnt)}", f"{segment.weight:g}",
                             coloured(tokenizer, segment.ids, learnt))  # fmt: skip
                start = stop
            screen.print(made)
            for name, line in per_token(sample):
                screen.print(Text(f"{name:<18}", style="dim") + line)


def coloured(tokenizer: Any, ids: Sequence[int], learnt: Sequence[bool]) -> Text:
    """The text of a segment: learnt tokens green, the others dim. A character spread over tokens is one piece."""
    text = Text()
    pending: list[int] = []
    for i, learns in zip(ids, learnt, strict=True):
        pending.append(i)
        piece = tokenizer.decode(pending)
        if not piece.endswith("\ufffd"):
            text.append(one_line(piece), style="green" if learns else "dim")
            pending = []
    return text


def per_token(sample: Sample) -> list[tuple[str, Text]]:
    """The tables that stand beside the learnt tokens, as a range or as the one value they all have."""
    mask = sample.learn_mask
    found = []
    for name, values in sample.per_token.items():
        learnt = values[mask].float()
        if name != "mask" and len(learnt):
            low, high = float(learnt.min()), float(learnt.max())
            found.append((name, Text(f"{low:.3f}" if low == high else f"{low:.3f} to {high:.3f}")))
    return found
