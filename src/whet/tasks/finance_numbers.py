"""The numeric subtasks of finance: tables and loans, the derivation of an answer as a small program, and its mistakes.

A derivation is a list of operations; running it gives the steps and the answer, running it with one operation or value
changed gives a wrong rationale whose later steps build on the error.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import gcd
from typing import Any

from whet.errors import WhetError
from whet.tasks import finance_templates as words
from whet.tasks.problem import Corruption, Problem, Step

# level: years (rows), items (columns), largest value
LEVELS = {1: (2, 1, 20), 2: (2, 2, 60), 3: (3, 2, 99), 4: (4, 3, 999)}
RISES, FALLS = (10, 20, 25, 50, 75, 100, 150), (-10, -20, -25, -50, -75)
SKILLS = {"+": "add", "-": "subtract", "*": "multiply", "/": "divide"}
NUMBER = r"-?[0-9]{1,12}(?:\.[0-9]{1,4})?"


@dataclass(frozen=True, slots=True)
class Read:
    """A step that reads a cell: `sales 2019 = 40`."""

    row: int
    column: int


@dataclass(frozen=True, slots=True)
class Calc:
    """A step that calculates: `50-40=10`. An operand is ("step", index) or ("number", value)."""

    left: tuple[str, int]
    sign: str
    right: tuple[str, int]


@dataclass(frozen=True, slots=True)
class Compare:
    """A step that compares the two steps before it: `50>40`."""

    reversed: bool = False  # states the opposite


Operation = Read | Calc | Compare


# -- drawing -----------------------------------------------------------------------------------------------------------
def draw_table(rng: random.Random, level: int, subtask: str) -> tuple[Any, ...]:
    """((items, first year, rows of cells), (column, row, other row)); what is not asked for is 0."""
    uniform = rng.random  # several times faster than randint, and a test problem takes ten draws
    rows, columns, largest = LEVELS[level]
    items: dict[int, None] = {}
    while len(items) < columns:
        items[int(uniform() * len(words.ITEMS))] = None
    cells = [[1 + int(uniform() * largest) for _ in range(columns)] for _ in range(rows)]
    column, first = int(uniform() * columns), int(uniform() * rows)
    second = (first + 1 + int(uniform() * (rows - 1))) % rows
    if subtask == "change":
        first, second = min(first, second), max(first, second)
        percents = RISES + FALLS if level > 2 else RISES
        percent = percents[int(uniform() * len(percents))]
        unit = 100 // gcd(100, percent)
        old = unit * (1 + int(uniform() * (largest // unit)))
        cells[first][column], cells[second][column] = old, old * (100 + percent) // 100
    elif subtask == "ratio":
        halves = 4 + int(uniform() * 7) if level > 2 else 2 * (2 + int(uniform() * 4))  # the ratio times 2
        base = 2 * (1 + int(uniform() * (largest // halves)))
        cells[first][column], cells[second][column] = base, base * halves // 2
    elif subtask == "compare" and cells[first][column] == cells[second][column]:
        cells[first][column] += 1
    year = 2001 + int(uniform() * 20)
    asked = (column, first if subtask != "sum" else 0, second if subtask not in ("sum", "lookup") else 0)
    return (tuple(items), year, tuple(map(tuple, cells))), asked


def draw_loan(rng: random.Random, level: int) -> tuple[int, int, int, bool]:
    """(loan, rate in percent, years, whether the repayment is asked for)."""
    unit, most = ((100, 30), (100, 30), (50, 60), (50, 100))[level - 1]
    loan = unit * (1 + int(rng.random() * most))
    return (
        loan,
        1 + int(rng.random() * (9, 9, 9, 12)[level - 1]),
        2 + int(rng.random() * (3, 4, 4, 8)[level - 1]),
        level > 2,
    )


def table_prompt(data: Mapping[str, Any]) -> str:
    items, year, cells = data["table"]
    column, first, second = data["asked"]
    lines = [" ".join(["year", *(words.ITEMS[i] for i in items)])]
    lines += [" ".join([str(year + i), *(str(v * data["scale"]) for v in row)]) for i, row in enumerate(cells)]
    a, b = year_of(first, data), year_of(second, data)
    ask = words.ASK[data["subtask"]][data["wording"]]
    return "\n".join([*lines, ask.format(item=words.ITEMS[items[column]], year=a, a=a, b=b)])


def year_of(row: int, data: Mapping[str, Any]) -> str:
    return str(data["table"][1] + row)


# -- solving -----------------------------------------------------------------------------------------------------------
def program(data: Mapping[str, Any]) -> list[Operation]:
    """The gold derivation; empty for texts."""
    subtask = data["subtask"]
    if subtask in ("sentiment", "extract"):
        return []
    if subtask == "interest":
        loan, rate, years, repaid = data["asked"]
        sum_ = ("number", loan * data["scale"])
        steps: list[Operation] = [
            Calc(sum_, "*", ("number", rate)),
            Calc(("step", 0), "/", ("number", 100)),
            Calc(("step", 1), "*", ("number", years)),
        ]
        return [*steps, Calc(sum_, "+", ("step", 2))] if repaid else steps
    column, first, second = data["asked"]
    a, b = Read(first, column), Read(second, column)
    match subtask:
        case "lookup":
            return [a]
        case "compare":
            return [a, b, Compare()]
        case "ratio":
            return [a, b, Calc(("step", 1), "/", ("step", 0))]
        case "change":
            return [
                a,
                b,
                Calc(("step", 1), "-", ("step", 0)),
                Calc(("step", 2), "*", ("number", 100)),
                Calc(("step", 3), "/", ("step", 0)),
            ]
    values = [row[column] * data["scale"] for row in data["table"][2]]
    start = ("number", values[0])
    return [Calc(("step", i - 1) if i else start, "+", ("number", v)) for i, v in enumerate(values[1:])]


def run(
    program: Sequence[Operation], data: Mapping[str, Any], slips: Mapping[int, Fraction | int | None]
) -> tuple[tuple[Step, ...], str] | None:
    """Steps and answer; step i's value is `slips[i]` instead of its own. None where it divides by 0 or does not come
    out at two decimals.
    """
    values: list[Fraction] = []
    steps: list[Step] = []
    for i, operation in enumerate(program):
        slip = slips.get(i)
        if isinstance(operation, Read):
            value = Fraction(_cell(operation, data) if slip is None else slip)
            item = words.ITEMS[data["table"][0][operation.column]]
            steps.append(Step(f"{item} {year_of(operation.row, data)} = {_text(value)}", "lookup", "lookup"))
        elif isinstance(operation, Calc):
            left, right = (_operand(o, values) for o in (operation.left, operation.right))
            if operation.sign == "/" and right == 0:
                return None
            value = _apply(left, operation.sign, right) + (slip or 0)
            premises = tuple(sorted(n for kind, n in (operation.left, operation.right) if kind == "step"))
            text = f"{_text(left)}{operation.sign}{_text(right)}={_text(value)}"
            steps.append(Step(text, "compute", SKILLS[operation.sign], premises))
        else:
            larger = (values[0] > values[1]) != operation.reversed
            steps.append(
                Step(f"{_text(values[0])}{'>' if larger else '<'}{_text(values[1])}", "compare", "compare", (0, 1))
            )
            if values[0] == values[1]:
                return None
            return tuple(steps), year_of(data["asked"][1 if larger else 2], data)
        if (value * 100).denominator != 1:
            return None
        values.append(value)
    return tuple(steps), _text(values[-1]) + ("%" if data["subtask"] == "change" else "")


def corrupt(problem: Problem, rng: random.Random) -> Corruption:
    """One mistake, carried through to a wrong answer."""
    data = problem.data
    gold = program(data)
    for _ in range(200):
        at = rng.randrange(len(gold))
        label, slip, operation = _mistake(data, gold, at, rng)
        done = run([*gold[:at], operation, *gold[at + 1 :]], data, {at: slip})
        if done is None or done[1] == problem.answer or done[0][at].text == problem.steps[at].text:
            continue
        if label == "arithmetic" and "=-" in done[0][at].text and "=-" not in problem.steps[at].text:
            continue  # a negative sum would give itself away
        return Corruption(*done, label, at)
    raise WhetError(f"problem '{problem.id}': found no corruption")


def _mistake(
    data: Mapping[str, Any], program: Sequence[Operation], at: int, rng: random.Random
) -> tuple[str, Fraction | int | None, Operation]:
    """(label, slip, operation) that puts one error into step `at`."""
    operation = program[at]
    if isinstance(operation, Compare):
        return "compare", None, Compare(reversed=True)
    if isinstance(operation, Read):
        others = [v * data["scale"] for row in data["table"][2] for v in row]
        if rng.random() < 0.5:
            return "cell", rng.choice(others), operation
        return "copy", int(words.miscopied(str(_cell(operation, data)), rng)), operation
    numbers = [side for side in ("left", "right") if getattr(operation, side)[0] == "number"]
    kinds = ["arithmetic"]
    if numbers:
        kinds.append("copy")
    if operation.sign in "-/" and not numbers:
        kinds.append("swap")
    if data["subtask"] == "change" and at == len(program) - 1:
        kinds.append("base")
    label = rng.choice(kinds)
    match label:
        case "copy":
            side = rng.choice(numbers)
            wrong = int(words.miscopied(str(getattr(operation, side)[1]), rng))
            return label, None, replace(operation, **{side: ("number", wrong)})
        case "swap":
            return label, None, Calc(operation.right, operation.sign, operation.left)
        case "base":
            return label, None, replace(operation, right=("step", 1))
    return label, rng.choice((-1, 1)) * rng.randint(1, 9), operation


def fault(line: str, due: Operation, data: Mapping[str, Any], stated: list[Fraction]) -> str:
    """What is wrong with a step, or ""; its value goes to `stated`."""
    if isinstance(due, Read):
        found = re.fullmatch(rf"(\w+) (\d{{4}}) = ({NUMBER})", line)
        right = Fraction(_cell(due, data))
        value = Fraction(found[3]) if found else right
        stated.append(value)
        asked = f"{words.ITEMS[data['table'][0][due.column]]} {year_of(due.row, data)}"
        if not found or f"{found[1]} {found[2]}" != asked:
            return f"'{asked}' is due"
        return "" if value == right else f"{asked} is {_text(right)}, not {_text(value)}"
    if isinstance(due, Compare):
        found = re.fullmatch(rf"({NUMBER})\s*([<>])\s*({NUMBER})", line)
        if not found or sorted((Fraction(found[1]), Fraction(found[3]))) != sorted(stated):
            return "does not compare the two values"
        larger = Fraction(found[1]) > Fraction(found[3])
        return "" if larger == (found[2] == ">") and found[1] != found[3] else f"{line} is false"
    found = re.fullmatch(rf"({NUMBER})\s*([-+*/])\s*({NUMBER})\s*=\s*({NUMBER})", line)
    left, right = (_operand(o, stated) for o in (due.left, due.right))
    if not found:
        stated.append(_apply(left, due.sign, right) if due.sign != "/" or right else Fraction(0))
        return f"'{_text(left)}{due.sign}{_text(right)}' is due"
    given = Fraction(found[1]), Fraction(found[3])
    stated.append(Fraction(found[4]))
    if found[2] != due.sign or (given != (left, right) and (due.sign in "-/" or given != (right, left))):
        return f"'{_text(left)}{due.sign}{_text(right)}' is due"
    if due.sign == "/" and right == 0:
        return "divides by zero"
    value = _apply(left, due.sign, right)
    return "" if stated[-1] == value else f"{_text(left)}{due.sign}{_text(right)} is {_text(value)}, not {found[4]}"


def _cell(read: Read, data: Mapping[str, Any]) -> int:
    return data["table"][2][read.row][read.column] * data["scale"]


def _operand(operand: tuple[str, int], values: Sequence[Fraction]) -> Fraction:
    kind, n = operand
    return values[n] if kind == "step" else Fraction(n)


def _apply(left: Fraction, sign: str, right: Fraction) -> Fraction:
    return {"+": left.__add__, "-": left.__sub__, "*": left.__mul__, "/": left.__truediv__}[sign](right)


def _text(value: Fraction) -> str:
    """An exact decimal, without needless zeros."""
    return str(value.numerator) if value.denominator == 1 else f"{float(value):.2f}".rstrip("0")
