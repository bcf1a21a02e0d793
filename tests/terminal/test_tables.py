"""Tables and how numbers are written."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
from rich.console import Console

from whet.terminal.console import amount, change, clock, command, curve, memory, percent, share
from whet.terminal.tables import before_after, compute_lines, measured, names


def printed(table: Any, colour: bool = False) -> str:
    screen = Console(file=io.StringIO(), width=120, force_terminal=colour, color_system="standard" if colour else None)
    with screen.capture() as capture:
        screen.print(table)
    return capture.get()


def metrics(value: float, sampled: float, n: int = 512) -> dict[str, Any]:
    interval = {"low": value - 0.04, "high": value + 0.04, "n": n}
    return {"accuracy": {"value": value, **interval}, "tokens_per_answer": 12.3, "ended": 0.9, "unparseable": 0.2,
            "sampled_accuracy": {"value": sampled, **interval}, "pass@16": {"value": 0.75, **interval}}  # fmt: skip


def summary() -> dict[str, Any]:
    after = {**metrics(0.67, 0.38), "tokens_per_answer": 31.0, "unparseable": 0.05, "ended": 0.95}
    others = {"sort:level=1": {"before": {"value": 0.8, "low": 0.7, "high": 0.9, "n": 256},
                               "after": {"value": 0.7, "low": 0.6, "high": 0.8, "n": 256}}}  # fmt: skip
    return {"before": metrics(0.06, 0.14), "after": after, "others": others}


def cells(table: Any, name: str) -> list[str]:
    return next(line for line in printed(table).splitlines() if line.startswith(name))[len(name) :].split()


def test_before_and_after_with_n_interval_and_change() -> None:
    table = before_after(summary())
    assert cells(table, "accuracy") == [
        "0.060",
        "0.020",
        "to",
        "0.100",
        "0.670",
        "0.630",
        "to",
        "0.710",
        "+0.610",
        "512",
    ]
    assert cells(table, "sampled accuracy")[0] == "0.140"
    assert cells(table, "tokens per answer") == ["12.3", "31.0", "+18.7"]
    assert cells(table, "unparseable") == ["0.200", "0.050", "-0.150"]
    assert cells(table, "sort:level=1")[-2:] == ["-0.100", "256"]


def test_gains_are_green_losses_red_and_lengths_neither() -> None:
    lines = printed(before_after(summary()), colour=True).splitlines()
    green, red = "\x1b[32m", "\x1b[31m"
    found = {name: next(line for line in lines if line.startswith(name)) for name in
             ("accuracy", "unparseable", "tokens per answer", "sort:level=1", "pass@16")}  # fmt: skip
    assert green in found["accuracy"]
    assert green in found["unparseable"]  # fewer of them
    assert red in found["sort:level=1"]
    assert green not in found["tokens per answer"] + found["pass@16"]
    assert red not in found["tokens per answer"] + found["pass@16"]


def test_what_was_not_measured_is_a_dash() -> None:
    before = {**metrics(0.5, 0.5), "accuracy": {"value": None, "low": 0.0, "high": 1.0, "n": 0}, "ended": None}
    table = before_after({"before": before, "after": before, "others": {}})
    assert cells(table, "accuracy") == ["-", "-", "-", "0"]
    assert cells(table, "ended") == ["-", "-", "-"]
    assert cells(measured(before), "accuracy") == ["-", "0"]


def test_shares_come_first() -> None:
    found = {"accuracy": 1, "tokens_per_answer": 1, "ended": 1, "sampled_accuracy": 1, "pass@16": 1, "majority@16": 1}
    assert names(found) == ["accuracy", "sampled_accuracy", "pass@16", "majority@16", "tokens_per_answer", "ended"]


def test_compute_lines() -> None:
    spent = {"seconds": 62.4, "optimizer_steps": 150, "flops": 3.14e12, "sampled_tokens": 300_000, "scored_tokens": 0,
             "learnt_tokens": 290_500}  # fmt: skip
    assert compute_lines(spent) == ["1:02 of training, 150 optimizer steps, 3.1e12 FLOPs",
                                    "300 k sampled, 0 scored, 290 k learnt tokens"]  # fmt: skip


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (share(0.4126), "0.413"), (share(math.nan), "-"), (share(None), "-"), (percent(0.415), "42 %"),
        (change(0.25, 0.5), "+0.250"), (change(None, 0.5), "-"), (amount(812), "812"), (amount(2_522_112), "2.52 M"),
        (amount(0.6e9), "600 M"), (amount(math.nan), "-"), (memory(64 << 20), "64.0 MiB"), (memory(3 << 30), "3.0 GiB"),
        (memory(4096), "4.0 KiB"), (clock(7.4), "0:07"), (clock(750), "12:30"), (clock(3750), "1:02:30"),
        (clock(math.nan), "-:--"), (curve([0.0, 0.5, 1.0]), "▁▅█"), (curve([0.3, 0.3]), "▁▁"), (curve([]), ""),
        (curve([math.nan, 1.0, 2.0], width=2), "▁█"), (command("whet", "ask", "it's"), "whet ask 'it'\"'\"'s'"),
    ],
)  # fmt: skip
def test_numbers(written: str, expected: str) -> None:
    assert written == expected
