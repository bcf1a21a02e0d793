"""countdown: reach a target from given numbers; the rationale may show a search with dead ends and backtracking."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from whet.errors import unknown
from whet.seeds import rng_for
from whet.tasks.problem import Problem, Response, Step, Verdict
from whet.tasks.traced import Slip, Traced, Transform, Unreadable, carried, cycle, picks, plain, unparseable, wrong

# level: how many numbers, the largest of them, the signs of the gold solution
LEVELS = {
    1: (3, 25, "+-"),
    2: (3, 15, "+-*/"),
    3: (4, 12, "+-*/"),
    4: (4, 25, "+-*/"),
    5: (5, 25, "+-*/"),
    6: (6, 75, "+-*/"),
}
LARGEST = 99
TRACES = ("direct", "search")
SKILLS = {"+": "add", "-": "subtract", "*": "multiply", "/": "divide"}
LONGEST = 200  # characters of an answer: bounds the parser's depth and its numbers
_OPERATION = re.compile(r"([0-9]{1,6})([-+*/])([0-9]{1,6})=([0-9]{1,6})(?::([0-9 ]+))?")
_TOKEN = re.compile(r"\s*([0-9]{1,6}(?![0-9])|[-+*/()])")


class Held(NamedTuple):
    """A number that is left, with how it was made."""

    value: int
    text: str
    binds: int  # how tightly the expression's outermost sign binds: 1 for + and -, 2 for * and /, 3 for a number
    step: int  # index of the step that made it, or -1


class State(NamedTuple):
    move: int  # of data["moves"], the next one
    left: tuple[Held, ...]
    past: tuple[tuple[Held, ...], ...]  # what was left at earlier points, to go back to
    final: str | None
    lines: int


class Countdown(Traced):
    """`make 25 from 2 3 6 7.` with the rationale `6*3=18: 2 7 18`, `18+7=25: 2 25`, `25 reached` and answer `6*3+7`.

    Args:
        level: a level, or a range.
        trace: "direct" (the solution only) or "search" (depth first, with one or two dead ends, each followed to its
            end and left by a line such as `back: 2 3 6 7` that names the point returned to). The problems are the same.

    Tests: search with exact verification; arithmetic below 100; for ASTRO, matched direct and search traces.
    Levels: 1 three numbers to 25 with + and -; 2 three to 15 with + - * /; 3 four to 12; 4 four to 25; 5 five to 25; 6 six to 75.
    Verifier: any expression that uses each number at most once and equals the target, read by a small parser in exact
    fractions; parts `uses` and `value`. A trailing `=25` is allowed where it names the target.
    Errors: arithmetic (a false equation reaches the target), reuse (a number that is used up), invent (a number that
    was never there), target (another value is called reached).
    Skills: add, subtract, multiply, divide, backtrack, conclude. The dead ends of a trace have different values.
    """

    name = "countdown"
    levels = tuple(LEVELS)
    default_level = 2
    description = "reach a target from 3 to 6 numbers with + - * /, each used at most once"

    def __init__(self, level: int | str | None = None, trace: str = "direct") -> None:
        if trace not in TRACES:
            raise unknown("trace", trace, TRACES)
        super().__init__(level, **({} if trace == "direct" else {"trace": trace}))
        self.trace = trace

    def draw(self, rng: random.Random, level: int) -> tuple[Any, ...]:
        """(numbers in ascending order, target, a solution as ((a, sign, b), ...))."""
        count, largest, signs = LEVELS[level]
        uniform = rng.random
        while True:
            numbers = [1 + int(uniform() * largest) for _ in range(count)]
            wandered = _wander(numbers, signs, rng)
            if wandered is None:
                continue
            path, values = wandered
            if values[-1] not in numbers and values[-1] not in values[:-1]:  # else a part of the path would do
                return tuple(sorted(numbers)), values[-1], tuple(path)

    def identity(self, parameters: tuple[Any, ...]) -> object:
        return parameters[:2]

    def build(self, parameters: tuple[Any, ...], level: int) -> Problem:
        numbers, target, path = parameters
        moves = path if self.trace == "direct" else _with_dead_ends(numbers, target, path, LEVELS[level][2])
        data = {"numbers": numbers, "target": target, "moves": moves, "descending": False, "wording": 0, "filler": 0}
        return self.word(data, level)

    def prompt(self, data: Mapping[str, Any]) -> str:
        listed = " ".join(map(str, reversed(data["numbers"]) if data["descending"] else data["numbers"]))
        return (f"make {data['target']} from {listed}.", f"use {listed} to get {data['target']}.")[data["wording"]]

    def plan(self, data: Mapping[str, Any]) -> str:
        chosen: list[tuple[Any, ...]] = []
        for move in data["moves"]:  # a move back takes away what it undoes
            chosen = chosen[: move[1]] if move[0] == "back" else [*chosen, move]
        return ", ".join(SKILLS[sign] for _, sign, _ in chosen)

    def verify(self, problem: Problem, response: Response) -> Verdict:
        """Any right expression is accepted, not only the gold one."""
        target = problem.data["target"]
        expression, equals, claimed = plain(response.answer or "").partition("=")
        try:
            if equals and not re.fullmatch(r"\s*[0-9]{1,6}\s*", claimed):
                raise Unreadable("what follows = is not a number")
            value, used = evaluate(expression)
        except Unreadable as reason:
            return unparseable(str(reason))
        spare = Counter(used) - Counter(problem.data["numbers"])
        parts = {"uses": float(not spare), "value": float(value == target)}
        if spare:
            return wrong(f"uses {' '.join(map(str, spare))} more often than it is given", parts)
        if value != target:
            return wrong(
                "divides by zero" if value is None else f"{expression.strip()} is {value}, not {target}", parts
            )
        if equals and int(claimed) != target:
            return wrong(f"claims {claimed.strip()}, not {target}", parts)
        return Verdict(1.0, "ok", parts)

    # -- the machine ---------------------------------------------------------------------------------------------------
    def start(self, data: Mapping[str, Any]) -> State:
        numbers = reversed(data["numbers"]) if data["descending"] else data["numbers"]
        return State(0, tuple(Held(n, str(n), 3, -1) for n in numbers), (), None, 0)

    def write(self, data: Mapping[str, Any], state: State) -> tuple[Step, State] | None:
        if state.final is not None:
            return None
        if state.move == len(data["moves"]):
            return _reached(next(h for h in state.left if h.value == data["target"]), state)
        move = data["moves"][state.move]
        if move[0] == "back":
            left = state.past[move[1]]
            premises = (state.lines - 1, *(h.step for h in left[-1:] if h.step >= 0))
            step = Step(f"back: {_listed(left)}", "backtrack", "backtrack", tuple(sorted({*premises})))
            return step, State(state.move + 1, left, state.past[: move[1]], None, state.lines + 1)
        a, sign, b = move
        first = next(h for h in state.left if h.value == a)
        second = next(h for h in state.left if h.value == b and h is not first)
        result = _result(a, sign, b)
        assert result is not None, "a gold move has a result"
        return _operate(first, sign, second, result, state, state.move + 1)

    def slips(self, data: Mapping[str, Any], state: State, rng: random.Random) -> Iterator[Slip]:
        """Each claims the target at once, so what follows is the conclusion."""
        if state.final is not None:
            return
        target, numbers, end = data["target"], data["numbers"], len(data["moves"])
        last = state.left[-1]
        if state.lines and last.value != target:
            yield Slip("target", *_reached(last, state))
        if any(h.value == target for h in state.left):
            return
        if len(state.left) > 1:
            i, j = picks(rng, len(state.left), 2)
            first, second = state.left[i], state.left[j]
            for sign in SKILLS:
                if _result(first.value, sign, second.value) not in (target, None):
                    yield Slip("arithmetic", *_operate(first, sign, second, target, state, end))
        for held in state.left:
            for sign, other in (("+", target - held.value), ("-", held.value - target), ("*", target // held.value)):
                exists = any(h.value == other for h in state.left if h is not held)
                if other > 0 and not exists and _exact(held.value, sign, other) == target:
                    stranger = Held(other, str(other), 3, -1)
                    label = "reuse" if other in numbers else "invent"
                    yield Slip(label, *_operate(held, sign, stranger, target, state, end))

    def read(self, data: Mapping[str, Any], text: str, state: State) -> tuple[str, State]:
        target, lines = data["target"], state.lines + 1
        if match := re.fullmatch(r"([0-9]{1,6}) ?reached", text):
            fault = "" if int(match[1]) == target else f"target: {match[1]} is not {target}"
            if not fault and not any(h.value == target for h in state.left):
                fault = f"target: {target} is not among {_listed(state.left)}"
            return fault, state._replace(final=match[1], lines=lines)
        if match := re.fullmatch(r"back: ?([0-9 ]+)", text):
            wanted = sorted(map(int, match[1].split()))
            for depth in range(len(state.past) - 1, -1, -1):
                if sorted(h.value for h in state.past[depth]) == wanted:
                    return "", State(0, state.past[depth], state.past[:depth], None, lines)
            return f"back: {match[1].strip()} was never left", state._replace(lines=lines)
        match = _OPERATION.fullmatch(text.replace(": ", ":"))
        if match is None:
            raise Unreadable(f"format: '{text[:40]}' is no operation, return or conclusion")
        a, sign, b, result = int(match[1]), match[2], int(match[3]), int(match[4])
        first = next((h for h in state.left if h.value == a), None)
        second = next((h for h in state.left if h.value == b and h is not first), None)
        step, after = _operate(
            first or Held(a, str(a), 3, -1), sign, second or Held(b, str(b), 3, -1), result, state, 0
        )
        strange = a if first is None else b if second is None else None
        if strange is not None:
            label = "reuse" if strange in data["numbers"] else "invent"
            return f"{label}: {strange} is not among {_listed(state.left)}", after
        if (right := _exact(a, sign, b)) != result:
            return f"arithmetic: {a}{sign}{b} is {right}, not {result}", after
        if sorted((match[5] or "").split()) != sorted(step.text.partition(": ")[2].split()):
            return f"list: {_listed(after.left)} are left", after
        return "", after

    def result(self, data: Mapping[str, Any], state: State) -> str | None:
        return state.final

    def transforms(self) -> Mapping[str, tuple[Transform, Transform]]:
        return {**super().transforms(), "order": carried(cycle(self.word, "descending", (False, True)))}


# -- expressions -------------------------------------------------------------------------------------------------------
def evaluate(text: str) -> tuple[Fraction | None, list[int]]:
    """The exact value of an expression of + - * / ( ) and its numbers; value None where it divides by zero.

    Raises Unreadable for anything else: signs before a number, powers, names, more than 200 characters.
    """
    if len(text) > LONGEST:
        raise Unreadable(f"longer than {LONGEST} characters")
    tokens: list[str] = []
    at, text = 0, text.rstrip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise Unreadable(f"'{text[at : at + 10]}' is no part of an expression")
        tokens.append(match[1])
        at = match.end()
    used: list[int] = []

    def take() -> str:
        return tokens.pop(0) if tokens else ""

    def atom() -> Fraction | None:
        token = take()
        if token == "(":
            value = total()
            if take() != ")":
                raise Unreadable("a bracket is not closed")
            return value
        if not token.isdigit():
            raise Unreadable(f"a number is missing before '{token}'" if token else "it ends where a number is due")
        used.append(int(token))
        return Fraction(int(token))

    def chain(part: Any, signs: str) -> Fraction | None:
        value = part()
        while tokens and tokens[0] in signs:
            sign, other = take(), part()
            value = None if value is None or other is None else _exact(value, sign, other)
        return value

    def total() -> Fraction | None:
        return chain(lambda: chain(atom, "*/"), "+-")

    value = total()
    if tokens:
        raise Unreadable(f"'{tokens[0]}' stands after the expression's end")
    return value, used


def _exact(a: Any, sign: str, b: Any) -> Fraction | None:
    if sign == "/":
        return None if b == 0 else Fraction(a) / b
    return Fraction(a + b if sign == "+" else a - b if sign == "-" else a * b)


def _result(a: int, sign: str, b: int) -> int | None:
    """The result of an operation that a gold solution may use: a positive integer below 100, and no idle * 1 or / 1."""
    if sign == "+":
        return a + b if a + b <= LARGEST else None
    if sign == "-":
        return a - b if a > b else None
    if sign == "*":
        return a * b if a > 1 and b > 1 and a * b <= LARGEST else None
    return a // b if b > 1 and a % b == 0 else None


# -- traces ------------------------------------------------------------------------------------------------------------
def _wander(
    given: Sequence[int], signs: str, rng: random.Random
) -> tuple[list[tuple[int, str, int]], list[int]] | None:
    """Random operations until one number is left: (moves, their results); None where it got stuck."""
    left, uniform = list(given), rng.random
    moves: list[tuple[int, str, int]] = []
    values: list[int] = []
    for _ in range(12 * len(left)):
        i, j = int(uniform() * len(left)), int(uniform() * len(left))
        if i == j:
            continue
        a, sign, b = left[i], signs[int(uniform() * len(signs))], left[j]
        if a < b and sign in "-/":
            a, b = b, a
        result = _result(a, sign, b)
        if result is None:
            continue
        del left[max(i, j)], left[min(i, j)]
        left.append(result)
        moves.append((a, sign, b))
        values.append(result)
        if len(left) == 1:
            return moves, values
    return None


def _with_dead_ends(
    numbers: tuple[int, ...], target: int, path: tuple[tuple[int, str, int], ...], signs: str
) -> tuple[tuple[Any, ...], ...]:
    """The solution's moves with one or two dead ends before them, each run to its end and undone by ("back", depth).

    The dead ends are a function of the solution; their last values differ, and none of them meets the target.
    """
    rng = rng_for(0, "countdown", numbers, target, path)
    wanted = 1 + int(rng.random() * 2)
    found: dict[int, list[list[tuple[int, str, int]]]] = {}
    ends = {target}
    for _ in range(12):
        depth = int(rng.random() * len(path))
        left = list(numbers)
        for a, sign, b in path[:depth]:
            left.remove(a)
            left.remove(b)
            result = _result(a, sign, b)
            assert result is not None, "a gold move has a result"
            left.append(result)
        wandered = _wander(left, signs, rng)
        if wandered is None:
            continue
        moves, values = wandered
        siblings = [path[depth], *(m[0] for m in found.get(depth, []))]
        if target not in values and values[-1] not in ends and moves[0] not in siblings:
            ends.add(values[-1])
            found.setdefault(depth, []).append(moves)
            wanted -= 1
            if not wanted:
                break
    trace: list[tuple[Any, ...]] = []
    for depth, move in enumerate(path):
        for moves in found.get(depth, []):
            trace += [*moves, ("back", depth)]
        trace.append(move)
    return tuple(trace)


def _listed(left: tuple[Held, ...]) -> str:
    return " ".join(str(h.value) for h in left)


def _operate(a: Held, sign: str, b: Held, result: int, state: State, move: int) -> tuple[Step, State]:
    rest = tuple(h for h in state.left if h is not a and h is not b)
    binds = 1 if sign in "+-" else 2
    left_text = f"({a.text})" if a.binds < binds else a.text
    right_text = f"({b.text})" if b.binds < binds or (b.binds == binds and sign in "-/") else b.text
    left = (*rest, Held(result, f"{left_text}{sign}{right_text}", binds, state.lines))
    text = f"{a.value}{sign}{b.value}={result}"
    premises = tuple(sorted({h.step for h in (a, b) if h.step >= 0}))
    step = Step(f"{text}: {_listed(left)}" if rest else text, "compute", SKILLS[sign], premises)
    return step, State(move, left, (*state.past, state.left), None, state.lines + 1)


def _reached(held: Held, state: State) -> tuple[Step, State]:
    premises = (held.step,) if held.step >= 0 else ()
    step = Step(f"{held.value} reached", "conclude", "conclude", premises)
    return step, state._replace(final=held.text, lines=state.lines + 1)
