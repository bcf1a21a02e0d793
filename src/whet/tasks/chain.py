"""Chains of arithmetic with a running value: their steps, labelled corruptions and checks.

A chain is a start value and operations such as `(("+", 45), ("-", 7))`, worked from left to right without precedence.
"""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Callable, Sequence

from whet.tasks.problem import Check, Corruption, Step

Operation = tuple[str, int]
_EQUATION = re.compile(r"(-?[0-9]{1,12})\s*([-+*])\s*([0-9]{1,12})\s*=\s*(-?[0-9]{1,12})(?![0-9])")
_SIGNS = str.maketrans({"−": "-", "–": "-", "×": "*", "·": "*"})


def apply(value: int, sign: str, n: int) -> int:
    """`value` after one operation; `sign` is +, - or *."""
    return value + n if sign == "+" else value - n if sign == "-" else value * n


def steps_of(start: int, operations: Sequence[Operation], slip_at: int = -1, slip: int = 0) -> tuple[Step, ...]:
    """One step for each operation; the result of step `slip_at` is off by `slip`, and what follows builds on it."""
    steps: list[Step] = []
    value = start
    for i, (sign, n) in enumerate(operations):
        result = apply(value, sign, n) + (slip if i == slip_at else 0)
        premises = (i - 1,) if i else ()
        steps.append(Step(f"{value}{sign}{n}={result}", "compute", _skill(value, sign, n), premises))
        value = result
    return tuple(steps)


def value_of(start: int, operations: Sequence[Operation]) -> int:
    """The value at the end of the chain."""
    for sign, n in operations:
        start = apply(start, sign, n)
    return start


def _skill(value: int, sign: str, n: int) -> str:
    if sign != "+":
        return "subtract" if sign == "-" else "multiply"
    return "carry" if _carries(value, n) else "add"


def _carries(a: int, b: int) -> bool:
    while a > 0 and b > 0:
        if a % 10 + b % 10 > 9:
            return True
        a, b = a // 10, b // 10  # without a carry so far, the columns are independent
    return False


# -- corruptions: each proposes (start, operations, index of the slip, slip) -------------------------------------------
Proposal = tuple[int, list[Operation], int, int]


def _arithmetic(start: int, operations: list[Operation], rng: random.Random) -> Proposal:
    return start, operations, rng.randrange(len(operations)), rng.choice((-1, 1)) * rng.randint(1, 9)


def _carry(start: int, operations: list[Operation], rng: random.Random) -> Proposal:
    at = rng.randrange(len(operations))
    sign, n = operations[at]
    forgotten = _skill(value_of(start, operations[:at]), sign, n) == "carry"
    return start, operations, at, -10 if forgotten else 10


def _copy(start: int, operations: list[Operation], rng: random.Random) -> Proposal:
    at = rng.randrange(-1, len(operations))
    if at < 0:
        return _miscopied(start, rng), operations, -1, 0
    sign, n = operations[at]
    return start, [*operations[:at], (sign, _miscopied(n, rng)), *operations[at + 1 :]], -1, 0


def _skip(start: int, operations: list[Operation], rng: random.Random) -> Proposal:
    at = rng.randrange(max(1, len(operations) - 1))  # never the last: a step must be left that shows the error
    return start, [*operations[:at], *operations[at + 1 :]], -1, 0


def _operation(start: int, operations: list[Operation], rng: random.Random) -> Proposal:
    at = rng.randrange(len(operations))
    sign, n = operations[at]
    return start, [*operations[:at], ("-" if sign == "+" else "+", n), *operations[at + 1 :]], -1, 0


_ERRORS: dict[str, Callable[[int, list[Operation], random.Random], Proposal]] = {
    "arithmetic": _arithmetic,
    "carry": _carry,
    "copy": _copy,
    "skip": _skip,
    "operation": _operation,
}


def _miscopied(n: int, rng: random.Random) -> int:
    """`n` with one digit replaced by another; the first digit never becomes 0."""
    digits = str(n)
    at = rng.randrange(len(digits))
    others = [d for d in ("123456789" if at == 0 else "0123456789") if d != digits[at]]
    return int(digits[:at] + rng.choice(others) + digits[at + 1 :])


def corrupt(start: int, operations: Sequence[Operation], rng: random.Random, labels: Sequence[str]) -> Corruption:
    """A rationale with one error of one of `labels`, carried through to a wrong answer; no value gets negative."""
    given = list(operations)
    gold, answer = steps_of(start, given), value_of(start, given)
    for _ in range(100):
        label = rng.choice(labels)
        begin, changed, at, slip = _ERRORS[label](start, given, rng)
        steps = steps_of(begin, changed, at, slip)
        results = [int(s.text.rpartition("=")[2]) for s in steps]
        wrong = next((i for i, (a, b) in enumerate(zip(steps, gold, strict=False)) if a.text != b.text), None)
        if wrong is not None and min(results) >= 0 and results[-1] != answer:
            return Corruption(steps, str(results[-1]), label, wrong)
    last = len(given) - 1  # one too many at the end is always possible
    return Corruption(steps_of(start, given, last, 1), str(answer + 1), "arithmetic", last)


# -- checks ----------------------------------------------------------------------------------------------------------
def check_steps(start: int, operations: Sequence[Operation], rationale: str) -> list[Check]:
    """One check for each step, on the equations found in `rationale`.

    A step is judged on its own: it must start from the response's previous result, use the operation that is due and
    get it right. So an error that is carried through fails at its step alone (and at the answer).
    """
    text = unicodedata.normalize("NFKC", rationale).translate(_SIGNS)
    found = [(int(a), sign, int(b), int(c)) for a, sign, b, c in _EQUATION.findall(text)]
    checks: list[Check] = []
    value = start
    for i in range(max(len(operations), len(found))):
        name = f"step {i + 1}"
        if i >= len(found):
            checks.append(Check(name, "n.a.", "no equation found for it"))
            continue
        due = operations[i] if i < len(operations) else None
        reason = _fault(value, due, *found[i])
        checks.append(Check(name, "fail" if reason else "pass", reason))
        value = found[i][3]
    return checks


def _fault(value: int, due: Operation | None, left: int, sign: str, n: int, result: int) -> str:
    if due is None:
        return "one step too many"
    if sign in "+*" and (n, left) == (value, due[1]):
        left, n = n, left  # 45+12 for 12+45
    if (sign, n) != due:
        return f"uses {sign}{n} where {due[0]}{due[1]} is due"
    if left != value:
        return f"starts from {left}, not from {value}"
    right = apply(left, sign, n)
    return "" if result == right else f"{left}{sign}{n} is {right}, not {result}"
