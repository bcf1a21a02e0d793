"""What is seen of a run while it trains: a live panel on a terminal, plain lines elsewhere, or nothing.

All numbers are means over the last steps, since single steps are noisy.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from whet.config import RunConfig
from whet.models.policy import Policy
from whet.runs.interrupt import Interrupt
from whet.tasks import Task
from whet.terminal.console import amount, clock, console, curve, known, note, percent, share
from whet.training.guards import WINDOW
from whet.training.stage import Stage

EVERY = 5.0  # seconds between plain lines
PHASES = ("sample", "score", "learn")


class Display:
    """Collects what the loop reports; shows nothing itself, which is `--quiet`.

    Args:
        interrupt: told when steps begin and end.
        steps: steps of all stages together; 0 where only the stages know.
    """

    def __init__(self, interrupt: Interrupt, steps: int = 0) -> None:
        self.interrupt = interrupt
        self.steps = steps
        self.step_now = 0
        self.share = 0.0  # of the run that is done
        self.budgeted = False  # whether a budget ends the run and not its number of steps
        self.stage_now: Stage | None = None
        self.recent: deque[Mapping[str, Any]] = deque(maxlen=WINDOW)
        self.validation: list[tuple[int, float]] = []
        self.doing = ""
        self._began = self._phase_began = time.monotonic()
        self._start = math.nan  # the share that was done when the first step ended

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *_: object) -> None: ...

    # -- what the run reports ---------------------------------------------------------------------------------------
    def start(self, config: RunConfig, policy: Policy, task: Task, lines: Sequence[str]) -> None:
        self.budgeted = config.budget is not None
        self.head(headline(config, policy, task, lines))

    def phase(self, text: str) -> None:
        self.interrupt.training = False
        self.doing, self._phase_began = text, time.monotonic()
        self.show()

    def stage(self, index: int, stage: Stage, lines: Sequence[str]) -> None:
        self.stage_now = stage
        self.recent.clear()
        self.doing = ""
        self.interrupt.training = True
        self.steps = max(self.steps, stage.steps)
        if stage.collect.counts:
            made = ", ".join(f"{what} {n}" for what, n in stage.collect.counts.items())
            self.tell(f"{stage.name}: {made}")

    def step(self, row: Mapping[str, Any]) -> None:
        self.step_now = int(row["step"])
        self.share = row["share"]
        if math.isnan(self._start):
            self._start, self._began = self.share, time.monotonic()
        self.recent.append(row)
        for text in row.get("warnings", ()):
            self.tell(f"step {self.step_now}: {text}", warning=True)
        self.show()

    def evaluated(self, row: Mapping[str, Any]) -> None:
        self.step_now = int(row["step"])
        self.validation.append((self.step_now, row["validation/accuracy"]))

    # -- what subclasses do -----------------------------------------------------------------------------------------
    def head(self, lines: Sequence[str]) -> None:
        """What is run, before anything happens."""

    def tell(self, text: str, *, warning: bool = False) -> None:
        """A line that stays."""

    def show(self) -> None:
        """The numbers have changed."""

    # -- numbers ----------------------------------------------------------------------------------------------------
    def mean(self, name: str) -> float:
        """Over the recent steps that have it; NaN where none has."""
        if name == "truncated":
            return 1.0 - self.mean("ended")
        values = [row[name] for row in self.recent if known(row.get(name))]
        return sum(values) / len(values) if values else math.nan

    def split(self) -> dict[str, float]:
        """The share of the time that each part of a step takes."""
        spent = {name: self.mean(f"seconds/{name}") for name in PHASES}
        total = sum(spent.values())
        return {name: seconds / total for name, seconds in spent.items()} if total > 0 else {}

    def rate(self) -> float:
        """Answers, or rows, a second of step time."""
        batch = self.stage_now.batch if self.stage_now else 0
        done = sum(row.get("answers", batch) for row in self.recent)
        spent = sum(row.get(f"seconds/{name}", 0.0) for row in self.recent for name in PHASES)
        return done / spent if spent else math.nan

    def left(self) -> float:
        """Seconds to go at the pace so far, evaluations included."""
        done = self.share - self._start
        return (time.monotonic() - self._began) / done * (1.0 - self.share) if done > 0 else math.nan

    def place(self) -> str:
        """`step 12 of 150`; under a budget, where the number of steps is not known, `step 12, 40 %`."""
        if self.budgeted:
            return f"step {self.step_now}, {percent(self.share)}"
        return f"step {self.step_now} of {self.steps}"

    def best(self) -> tuple[int, float] | None:
        """The first of the best evaluations, which is the one that is kept."""
        return max(self.validation, key=lambda v: v[1], default=None)

    @property
    def reinforced(self) -> bool:
        return known(self.mean("reward"))

    def numbers(self) -> list[tuple[str, str]]:
        """(name, text) of what there is to say about the recent steps."""
        if not self.reinforced:
            losses = [k for row in list(self.recent)[-1:] for k in row if "loss/" in k]
            found = [(k.replace("loss/", ""), f"{self.mean(k):.4f}") for k in losses]
            found += [("accuracy", share(self.mean("accuracy")))] if known(self.mean("accuracy")) else []
            found.append(("gradient norm", f"{self.mean('grad_norm'):.3g}"))
            found.append(("learning rate", f"{self.recent[-1].get('lr', math.nan):.2e}"))
            return [*found, ("rows/s", amount(self.rate()))]
        parts = sorted(k for k in self.recent[-1] if k.startswith("reward/"))
        shown = [(k.removeprefix("reward/"), f"{self.mean(k):.3f}") for k in parts]
        if [name for name, _ in shown] != ["accuracy"]:  # else the reward is the accuracy
            shown = [("reward", f"{self.mean('reward'):.3f}"), *((f"  {name}", text) for name, text in shown)]
            if "reward/accuracy" not in parts:
                shown.append(("accuracy", share(self.mean("accuracy"))))
        shown.append(("entropy", share(self.mean("entropy"))))
        shown.append(("dead groups", percent(self.mean("dead_groups"))))
        shown.append(("truncated", percent(self.mean("truncated"))))
        shown.append(("unparseable", percent(self.mean("unparseable"))))
        shown.append(("mismatch", amount(self.mean("mismatch"))))
        shown.append(("tokens/answer", f"{self.mean('tokens'):.1f}"))
        for which in ("right", "wrong"):
            shown.append((f"  {which}", amount(self.mean(f"tokens_{which}"))))
        return [(name, text) for name, text in shown if text != "-"] + [("answers/s", amount(self.rate()))]


class Lines(Display):
    """Plain lines, every few seconds and at evaluations."""

    def __init__(self, interrupt: Interrupt, steps: int = 0) -> None:
        super().__init__(interrupt, steps)
        self._last = 0.0

    def head(self, lines: Sequence[str]) -> None:
        for line in lines:
            self.tell(line)

    def phase(self, text: str) -> None:
        super().phase(text)
        self.tell(f"{text} ...")

    def step(self, row: Mapping[str, Any]) -> None:
        super().step(row)
        if time.monotonic() - self._last >= EVERY or self.share >= 1:
            self._last = time.monotonic()
            numbers = "  ".join(f"{name.strip()} {text}" for name, text in self.numbers())
            spent = " ".join(f"{name} {percent(s)}" for name, s in self.split().items())
            self.tell(f"{self.place()}  {numbers}  [{spent}]  {clock(self.left())} left")

    def evaluated(self, row: Mapping[str, Any]) -> None:
        super().evaluated(row)
        step, best = self.best() or (0, math.nan)
        now = share(row["validation/accuracy"])
        self.tell(f"{self.place()}  validation accuracy {now} (best {share(best)} at step {step})")

    def tell(self, text: str, *, warning: bool = False) -> None:
        if warning:
            note(text)
        else:
            print(text, flush=True)


class Panel(Display):
    """A live panel for a terminal."""

    def __init__(self, interrupt: Interrupt, steps: int = 0) -> None:
        super().__init__(interrupt, steps)
        self.console = console()
        self.spinner = Spinner("dots", style="cyan")
        self.doing = "loading"
        self.live = Live(get_renderable=self.render, console=self.console, refresh_per_second=5, transient=True)

    def __enter__(self) -> Panel:
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def head(self, lines: Sequence[str]) -> None:
        first, *rest = lines
        self.console.print(Text(first, style="bold"))
        for line in rest:
            self.console.print(Text(line, style="dim"))
        self.console.print()

    def tell(self, text: str, *, warning: bool = False) -> None:
        self.console.print(Text(("! " if warning else "") + text, style="yellow" if warning else "dim"))

    def render(self) -> RenderableType:
        if self.doing or self.stage_now is None or not self.recent:
            began = self._phase_began if self.doing else self._began
            self.spinner.update(text=Text(f"{self.doing or 'starting'}  {clock(time.monotonic() - began)}"))
            return self.spinner
        return Group(self._bar(), Text(), self._grid(), Text())

    def _bar(self) -> RenderableType:
        row = Table.grid(padding=(0, 2))
        row.add_column(width=40)
        what = self.place()
        if self.stage_now and self.stage_now.steps != self.steps:
            what = f"{self.stage_now.name} · {what}"
        state = Text(f"{clock(self.left())} left", style="dim")
        if self.interrupt.asked:
            state = Text("stopping after this step; Ctrl-C again aborts", style="yellow")
        bar = ProgressBar(total=1.0, completed=self.share, width=40, complete_style="cyan", finished_style="cyan")
        row.add_row(bar, Text(what), state)
        return row

    def _grid(self) -> RenderableType:
        """Two columns of numbers beside what came of the evaluations and where the time goes."""
        numbers = self.numbers()
        half = (len(numbers) + 1) // 2
        right: list[tuple[str, str]] = []
        if self.validation:
            step, best = self.best() or (0, math.nan)
            right.append(("validation", f"{share(self.validation[-1][1])}  {curve([v for _, v in self.validation])}"))
            right.append(("  best", f"{share(best)} at step {step}"))
        spent = "  ".join(f"{name} {percent(s)}" for name, s in self.split().items())
        right.append(("time", spent))
        grid = Table.grid(padding=(0, 2))
        for style in ("dim", "", "dim", "", "dim", ""):
            grid.add_column(style=style, justify="left" if style else "right", no_wrap=True)
        grid.columns[5].justify = "left"
        for i in range(max(half, len(right))):
            cells = [*_at(numbers[:half], i), *_at(numbers[half:], i), *_at(right, i)]
            grid.add_row(*(Text(cell) for cell in cells))
        return grid


def headline(config: RunConfig, policy: Policy, task: Task, lines: Sequence[str]) -> list[str]:
    """What is run, on what, and the stages in words."""
    import torch

    threads = torch.get_num_threads()
    where = f"{policy.device.type}, {config.dtype}, {threads} thread{'s' * (threads > 1)}"
    model = config.model or "base"
    return [
        f"{config.recipe} on {task.spec()}",
        f"model {model} ({amount(policy.size())} parameters), weights {config.weights}, {where}, seed {config.seed}",
        *([task.description] if getattr(task, "fingerprint", None) else []),
        *lines,
        *([f"budget {config.budget}, which ends the run instead of the steps"] if config.budget else []),
    ]


def display(interrupt: Interrupt, steps: int = 0, quiet: bool = False) -> Display:
    """The display that fits stdout."""
    kind = Display if quiet else Panel if console().is_terminal else Lines
    return kind(interrupt, steps)


def _at(pairs: Sequence[tuple[str, str]], i: int) -> tuple[str, str]:
    return pairs[i] if i < len(pairs) else ("", "")
