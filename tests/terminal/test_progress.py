"""The displays: their numbers, the guards, lines and the panel."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from whet.runs.interrupt import Interrupt
from whet.terminal import progress
from whet.terminal.progress import WINDOW, Display, Lines, Panel


class Clock:
    """Time that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


def stage(steps: int = 20, batch: int = 8, name: str = "grpo", **counts: int) -> Any:
    return SimpleNamespace(name=name, steps=steps, batch=batch, collect=SimpleNamespace(counts=counts))


def answers(step: int, steps: int = 20, **more: float) -> dict[str, Any]:
    row = {"step": step, "share": step / steps, "reward": 0.5, "reward/accuracy": 0.5, "accuracy": 0.5, "ended": 0.75,
           "entropy": 0.4, "dead_groups": 0.25, "tokens": 12.0, "answers": 64.0, "seconds/sample": 3.0,
           "seconds/score": 0.0, "seconds/learn": 1.0}  # fmt: skip
    return {**row, **more}


def rows(step: int, steps: int = 20, **more: float) -> dict[str, Any]:
    return {"step": step, "share": step / steps, "loss/nll": 0.25, "grad_norm": 1.5, "lr": 1e-3, "seconds/sample": 0.0,
            "seconds/score": 0.0, "seconds/learn": 2.0, **more}  # fmt: skip


def running(kind: Callable[..., Display], **settings: Any) -> Display:
    shown = kind(Interrupt(), 20)
    shown.stage(0, stage(**settings), [])
    return shown


def test_numbers_are_means_over_the_last_steps() -> None:
    shown = running(Display)
    for i in range(WINDOW + 5):
        shown.step(answers(i + 1, accuracy=float(i)))
    assert shown.mean("accuracy") == sum(range(5, WINDOW + 5)) / WINDOW
    assert shown.mean("truncated") == 0.25
    assert math.isnan(shown.mean("nothing"))
    assert shown.split() == {"sample": 0.75, "score": 0.0, "learn": 0.25}
    assert shown.rate() == 16.0  # 64 answers in 4 seconds


def test_a_number_that_a_step_lacks_is_left_out() -> None:
    shown = running(Display)
    shown.step(answers(1, dead_groups=math.nan))
    shown.step(answers(2, dead_groups=0.5))
    assert shown.mean("dead_groups") == 0.5


def test_what_is_left_follows_the_share_that_is_done(clock: Clock) -> None:
    shown = running(Display)
    shown.step(answers(1))
    assert math.isnan(shown.left())
    clock.now += 8.0
    shown.step(answers(5))  # 4 of 20 steps in 8 seconds
    assert shown.left() == pytest.approx(30.0)


def test_a_resumed_run_counts_its_own_pace(clock: Clock) -> None:
    shown = running(Display)
    shown.step(answers(11))
    clock.now += 10.0
    shown.step(answers(16))
    assert shown.left() == pytest.approx(8.0)
    assert shown.place() == "step 16 of 20"


def test_rewards_show_their_parts_and_a_bare_accuracy_stands_alone() -> None:
    shown = running(Display)
    shown.step(answers(1))
    names = [name for name, _ in shown.numbers()]
    assert names == ["accuracy", "entropy", "dead groups", "truncated", "tokens/answer", "answers/s"]
    shown = running(Display)
    shown.step(answers(1, **{"reward/format": 0.1, "reward": 0.6}))
    assert shown.numbers()[:3] == [("reward", "0.600"), ("  accuracy", "0.500"), ("  format", "0.100")]
    assert ("accuracy", "0.500") not in shown.numbers()
    shown = running(Display)
    only = {k: v for k, v in answers(1).items() if k != "reward/accuracy"}
    shown.step({**only, "reward/mine": 0.5})
    assert ("accuracy", "0.500") in shown.numbers()  # the verdict stays beside a reward of the user's own


def test_supervised_steps_show_loss_gradient_and_rate() -> None:
    shown = running(Display, batch=32)
    shown.step(rows(1))
    assert shown.numbers() == [
        ("nll", "0.2500"), ("gradient norm", "1.5"), ("learning rate", "1.00e-03"), ("rows/s", "16")
    ]  # fmt: skip


def test_the_first_of_equal_evaluations_is_the_best() -> None:
    shown = running(Display)
    for step, value in ((0, 0.1), (5, 0.4), (10, 0.4), (15, 0.2)):
        shown.evaluated({"step": step, "validation/accuracy": value})
    assert shown.best() == (5, 0.4)


def test_what_the_guards_told_is_a_note_of_its_step(capsys: pytest.CaptureFixture[str]) -> None:
    shown = running(Lines)
    shown.step(answers(1))
    assert capsys.readouterr().err == ""
    shown.step({**answers(2), "warnings": ["the entropy has collapsed", "lr 1 is above all"]})
    shown.step(answers(3))
    said = capsys.readouterr().err.splitlines()
    assert said == ["whet: note: step 2: the entropy has collapsed", "whet: note: step 2: lr 1 is above all"]


def test_guards_stand_in_the_line_where_they_are_known() -> None:
    shown = running(Display)
    shown.step(answers(1, unparseable=0.125, mismatch=3e-7, tokens_right=20.0, tokens_wrong=math.nan))
    numbers = dict(shown.numbers())
    assert (numbers["unparseable"], numbers["mismatch"], numbers["  right"]) == ("12 %", "3e-07", "20")
    assert "  wrong" not in numbers, "no answer was wrong"


def test_lines_come_every_few_seconds_at_evaluations_and_at_the_end(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = running(Lines)
    for i in range(19):
        clock.now += 2.0
        shown.step(answers(i + 1))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == [f"step {n} of 20" for n in (1, 4, 7, 10, 13, 16, 19)]
    assert "[sample 75 % score 0 % learn 25 %]" in lines[0]
    shown.evaluated({"step": 19, "validation/accuracy": 0.5})
    assert capsys.readouterr().out == "step 19 of 20  validation accuracy 0.500 (best 0.500 at step 19)\n"
    shown.step(answers(20))
    assert capsys.readouterr().out.startswith("step 20 of 20  ")


def test_under_a_budget_the_share_is_shown() -> None:
    shown = running(Display)
    shown.budgeted = True
    shown.step(answers(7, share=0.41))
    assert shown.place() == "step 7, 41 %"


def test_what_a_stage_prepared_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    running(Lines, name="round 1", questions=64, kept=50)
    assert capsys.readouterr().out == "round 1: questions 64, kept 50\n"


def test_steps_are_interrupted_gently_and_evaluations_at_once() -> None:
    interrupt = Interrupt()
    shown = Display(interrupt, 20)
    shown.phase("evaluating before training")
    with pytest.raises(KeyboardInterrupt):
        interrupt._handle(2, None)
    shown.stage(0, stage(), [])
    interrupt._handle(2, None)
    assert interrupt()
    with pytest.raises(KeyboardInterrupt):
        interrupt._handle(2, None)
    interrupt.asked = False
    shown.phase("evaluating after training")
    with pytest.raises(KeyboardInterrupt):
        interrupt._handle(2, None)


def drawn(shown: Panel, width: int = 100) -> list[str]:
    screen = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None, legacy_windows=False)
    with screen.capture() as capture:
        screen.print(shown.render())
    return capture.get().splitlines()


def test_the_panel_fits_a_hundred_columns_and_says_all(clock: Clock) -> None:
    shown = running(Panel)
    assert isinstance(shown, Panel)
    assert "starting" in drawn(shown)[0]
    shown.step(answers(1))
    clock.now += 60.0
    shown.step(answers(11, **{"reward/format": 0.1}))
    shown.evaluated({"step": 0, "validation/accuracy": 0.1})
    shown.evaluated({"step": 11, "validation/accuracy": 0.6})
    lines = drawn(shown)
    text = "\n".join(lines)
    assert "step 11 of 20" in lines[0]
    assert "0:54 left" in lines[0]
    for part in ("format", "entropy", "dead groups", "truncated", "0.600  ▁█", "0.600 at step 11",
                 "sample 75 %  score 0 %  learn 25 %"):  # fmt: skip
        assert part in text, part
    assert all(len(line.rstrip()) <= 100 for line in lines)
    assert len(lines) < 10
    shown.interrupt.asked = True
    assert "stopping after this step" in drawn(shown)[0]
    shown.phase("evaluating after training")
    assert "evaluating after training" in drawn(shown)[0]
