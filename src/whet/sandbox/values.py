"""Reading and comparing what a child wrote: JSON and nothing else, so that no object of the program's has a say."""

from __future__ import annotations

import json
import math
from typing import Any

DEPTH = 64
NEAR = 1e-9  # relative; the order of a sum is no error


def results(output: bytes, n: int) -> list[dict[str, Any]]:
    """The lines of a child's results as objects; [] where they are not `n` lines, or not such objects: who writes more than
    it was asked for is not believed anything.
    """
    lines = output.split(b"\n")
    if len(lines) != n + 1 or lines[-1]:
        return []
    try:
        found = [json.loads(line, parse_constant=_refuse) for line in lines[:-1]]
    except (ValueError, RecursionError):  # no JSON, an integer of thousands of digits, brackets without end
        return []
    return found if all(isinstance(line, dict) and not too_deep(line) for line in found) else []


def _refuse(constant: str) -> Any:
    raise ValueError(constant)


def too_deep(value: Any, most: int = DEPTH) -> bool:
    """Whether lists and objects are nested more than `most` deep."""
    level = [value]
    for _ in range(most):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return False
    return True


def _inside(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []


def equal(given: Any, wanted: Any) -> bool:
    """Whether two JSON values are the same: true is not 1, 1 is 1.0, floats are equal to a part in 10^9."""
    if isinstance(given, bool) or isinstance(wanted, bool):
        return given is wanted
    if isinstance(given, int) and isinstance(wanted, int):
        return given == wanted
    if isinstance(given, int | float) and isinstance(wanted, int | float):
        try:
            return math.isclose(given, wanted, rel_tol=NEAR, abs_tol=NEAR * NEAR)
        except OverflowError:
            return False
    if isinstance(given, list) and isinstance(wanted, list):
        return len(given) == len(wanted) and all(map(equal, given, wanted))
    if isinstance(given, dict) and isinstance(wanted, dict):
        return given.keys() == wanted.keys() and all(equal(given[key], wanted[key]) for key in wanted)
    return type(given) is type(wanted) and given == wanted


def same_text(given: str, wanted: str) -> bool:
    """Whether two outputs are the same up to white space at the ends of lines and of the whole."""
    return _lines(given) == _lines(wanted)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def same_rows(given: list[Any], wanted: list[Any], ordered: bool) -> bool:
    """Whether two results of queries hold the same rows, each as often; in the same order where that was asked for."""
    if len(given) != len(wanted):
        return False
    if not ordered:
        given, wanted = sorted(given, key=_order), sorted(wanted, key=_order)
    return equal(given, wanted)


def _order(row: Any) -> str:
    # 3 and 3.0 sort alike, as they are equal; close floats too
    return json.dumps([f"{v:.6g}" if isinstance(v, int | float) else v for v in row] if isinstance(row, list) else row)
