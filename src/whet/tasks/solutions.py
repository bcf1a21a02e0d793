"""solutions: one problem, three solution formats (program, tagged steps, prose), any of which the verifier accepts."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any, Literal, NamedTuple

from whet.errors import unknown
from whet.tasks.problem import Problem, Response, Step, Verdict
from whet.tasks.traced import Slip, Traced, Transform, Unreadable, plain, rescaled, unparseable, wrong

Style = Literal["program", "steps", "prose", "other"]
STYLES = ("program", "steps", "prose")
# level: equation or not, operations, largest number, signs
LEVELS = {
    1: (False, 2, 9, "+-"),
    2: (False, 3, 9, "+-*"),
    3: (True, 2, 20, ""),
    4: (False, 4, 40, "+-*"),
    5: (True, 3, 20, ""),
    6: (False, 9, 400, "+-*"),
}
INVERSE = {"+": "-", "-": "+", "*": "/", "/": "*"}
VERBS = {"+": "add", "-": "take", "*": "times", "/": "over"}
WORDS = {"+": "plus", "-": "minus", "*": "times", "/": "over"}
SIGNS = {word: sign for sign, word in WORDS.items()}
SKILLS = {"+": "add", "-": "subtract", "*": "multiply", "/": "divide"}
BOUND = 10**12  # of a program's values
_ASSIGNMENT = re.compile(r"t([0-9]{1,3}) ?= ?(t?[0-9]{1,9}) ?([-+*/]) ?(t?[0-9]{1,9}) ?;?")
_LINES = {
    "steps": re.compile(r"<s>(-?[0-9]{1,9})([-+*/])([0-9]{1,9})=(-?[0-9]{1,9})</s>"),
    "prose": re.compile(r"(?:first|then) (-?[0-9]{1,9}) (plus|minus|times|over) ([0-9]{1,9}) is (-?[0-9]{1,9})\.?"),
}


class State(NamedTuple):
    operation: int  # of data["operations"], the next one
    value: int | None  # None where a slip led to a fraction or below zero
    lines: int


class Solutions(Traced):
    """`start 3. add 4. times 2. result?`, solved as a program (`t1=3+4`, `t2=t1*2`), as tagged steps
    (`<s>3+4=7</s>`, `<s>7*2=14</s>`) or in prose (`first 3 plus 4 is 7`, `then 7 times 2 is 14`).

    Args:
        level: a level, or a range.
        style: "program", "steps", "prose" or "mixed" (each third of the problems in one). The problems are the same in
            every style, and `restyled` turns one into another style, for mixtures of other proportions.

    Tests: which format training picks (echo chamber); a program needs no arithmetic, prose is the longest.
    Levels: 1 two operations + -; 2 three with *; 3 an equation such as x*3+4=19; 4 four operations to 40; 5 an equation
    such as (x+2)*3-5=16; 6 nine operations to 400.
    Verifier: a program is run (straight-line assignments, exact fractions, own interpreter), its last value counts and
    the answer beside it, which must be there, is only noted in part `stated`; the other formats are judged by their
    answer. `style_of` says which format a text is in, whether or not it runs.
    Errors: arithmetic (not in programs), copy (a wrong number), operator, skip (an operation is left out).
    Skills: add, subtract, multiply, divide. Categories: arithmetic, algebra.
    """

    name = "solutions"
    levels = tuple(LEVELS)
    default_level = 2
    description = "small arithmetic and equations, solved as a program, as tagged steps or in prose"

    def __init__(self, level: int | str | None = None, style: str = "mixed") -> None:
        if style not in (*STYLES, "mixed"):
            raise unknown("style", style, (*STYLES, "mixed"))
        super().__init__(level, **({} if style == "mixed" else {"style": style}))
        self.style = style

    def draw(self, rng: random.Random, level: int) -> tuple[Any, ...]:
        """(style, is it an equation, first value, operations that solve it)."""
        equation, count, largest, signs = LEVELS[level]
        uniform = rng.random
        style = STYLES[int(uniform() * 3)]
        if equation:
            return style, True, *_equation(rng, count, largest)
        first = value = 1 + int(uniform() * 20)
        operations: list[tuple[str, int]] = []
        while len(operations) < count:
            sign, n = signs[int(uniform() * len(signs))], 1 + int(uniform() * largest)
            if sign == "*":
                n = 2 + n % 4
            if (sign == "-" and n > value) or (sign == "*" and value > 20):
                continue
            value = value + n if sign == "+" else value - n if sign == "-" else value * n
            operations.append((sign, n))
        return style, False, first, tuple(operations)

    def identity(self, parameters: tuple[Any, ...]) -> object:
        return parameters[1:]

    def build(self, parameters: tuple[Any, ...], level: int) -> Problem:
        style, equation, first, operations = parameters
        data = {
            "style": style if self.style == "mixed" else self.style,
            "equation": equation,
            "first": first,
            "operations": operations,
            "scale": 1,
            "wording": 0,
            "filler": 0,
        }
        return self.word(data, level)

    def prompt(self, data: Mapping[str, Any]) -> str:
        if data["equation"]:
            return ("{}. x?", "solve {} for x.")[data["wording"]].format(_written(data))
        if data["wording"] == 0:
            told = "".join(f"{VERBS[sign]} {n}. " for sign, n in data["operations"])
            return f"start {data['first']}. {told}result?"
        told = ", ".join(f"{WORDS[sign]} {n}" for sign, n in data["operations"])
        return f"what is {data['first']}, {told}, from left to right?"

    def plan(self, data: Mapping[str, Any]) -> str:
        return ", ".join(SKILLS[sign] for sign, _ in data["operations"])

    def category(self, data: Mapping[str, Any], level: int) -> str:
        return "algebra" if data["equation"] else "arithmetic"

    def restyled(self, problem: Problem, style: str) -> Problem:
        """The same problem with its rationale in another style."""
        if style not in STYLES:
            raise unknown("style", style, STYLES)
        made = self.word({**problem.data, "style": style}, problem.level)
        return replace(made, id=problem.id, task=problem.task)

    def verify(self, problem: Problem, response: Response) -> Verdict:
        from whet.tasks.verify import number

        text = response.rationale or response.text
        if style_of(text) != "program" or not (response.answer or "").strip():
            return number(problem, response)  # no format is let off giving an answer
        gold = Fraction(problem.answer or "0")
        try:
            value = run_program(text)
        except Unreadable as reason:
            return unparseable(f"the program does not run: {reason}")
        stated = number(problem, response).value == 1.0
        parts = {"executed": float(value == gold), "stated": float(stated)}
        if value == gold:
            return Verdict(1.0, "ok", parts, label=str(value))
        return wrong(f"the program gives {value}, not {problem.answer}", parts, str(value))

    # -- the machine ---------------------------------------------------------------------------------------------------
    def start(self, data: Mapping[str, Any]) -> State:
        return State(0, data["first"], 0)

    def write(self, data: Mapping[str, Any], state: State) -> tuple[Step, State] | None:
        if state.operation == len(data["operations"]) or state.value is None:
            return None
        return _step(data["style"], state, *data["operations"][state.operation])

    def slips(self, data: Mapping[str, Any], state: State, rng: random.Random) -> Iterator[Slip]:
        operations, style = data["operations"], data["style"]
        if state.operation == len(operations) or state.value is None:
            return
        sign, n = operations[state.operation]
        result = _apply(state.value, sign, n)
        proposals: list[tuple[str, State, str, int, int | None]] = []
        if style != "program" and result is not None:
            proposals += [("arithmetic", state, sign, n, result + off) for off in (-10, -2, -1, 1, 2, 3, 10)]
        proposals += [("copy", state, sign, n + off, None) for off in (-2, -1, 1, 2, 3) if n + off > 0]
        proposals += [("operator", state, other, n, None) for other in SKILLS if other != sign]
        following = operations[state.operation + 1] if state.operation + 1 < len(operations) else None
        proposals = [p for p in proposals if p[2:4] != following]  # else it would be a skip
        if following not in (None, (sign, n)):
            proposals.append(("skip", state._replace(operation=state.operation + 1), *following, None))
        for label, before, other, m, given in proposals:
            step, after = _step(style, before, other, m, given)
            if after.value is not None and after.value >= 0:
                yield Slip(label, step, after)

    def read(self, data: Mapping[str, Any], text: str, state: State) -> tuple[str, State]:
        operations, at = data["operations"], state.operation
        left, sign, n, given = _parsed(text, state)
        result = _apply(left, sign, n) if given is None else given
        due = operations[at] if at < len(operations) else None
        after = State(at + 1, result, state.lines + 1)
        if due is None:
            return "skip: one step too many", after
        if left != state.value:
            return f"copy: it should start from {state.value}, not {left}", after
        if (sign, n) != due and at + 1 < len(operations) and (sign, n) == operations[at + 1]:
            return f"skip: {due[0]}{due[1]} is passed over", after._replace(operation=at + 2)
        if sign != due[0]:
            return f"operator: {due[0]}{due[1]} is due, not {sign}{n}", after
        if n != due[1]:
            return f"copy: {due[0]}{due[1]} is due, not {sign}{n}", after
        if given is not None and given != (right := _apply(left, sign, n)):
            return f"arithmetic: {left}{sign}{n} is {right}, not {given}", after
        return "", after

    def result(self, data: Mapping[str, Any], state: State) -> str | None:
        done = state.operation == len(data["operations"]) and state.value is not None
        return str(state.value) if done else None

    def transforms(self) -> Mapping[str, tuple[Transform, Transform]]:
        return {**super().transforms(), "scaling": rescaled(self.word, _scaled)}


def style_of(text: str) -> Style:
    """The format a text is in: `steps` where a tag occurs, else `program` where a line begins with an assignment, else
    `prose` where a line begins with "first" or "then", else `other`. Every text has exactly one; it need not run."""
    text = plain(text)
    if "<s>" in text:
        return "steps"
    if re.search(r"(?m)^[^\S\n]*t[0-9]+ ?=", text):
        return "program"
    return "prose" if re.search(r"(?m)^[^\S\n]*(?:first|then)\b", text, re.IGNORECASE) else "other"


def run_program(text: str) -> Fraction:
    """The last value of a straight-line program, one assignment a line; lines that assign nothing are passed over.

    Raises Unreadable for a malformed assignment, an unknown variable, a division by zero or a value above 10**12.
    """
    values: dict[str, Fraction] = {}
    last: Fraction | None = None
    for line in plain(text).splitlines():
        line = line.strip()
        if not re.match(r"t[0-9]+ ?=", line):
            continue
        match = _ASSIGNMENT.fullmatch(line)
        if match is None:
            raise Unreadable(f"'{line[:40]}' is no assignment")
        a, b = (_operand(operand, values) for operand in (match[2], match[4]))
        if match[3] == "/" and b == 0:
            raise Unreadable(f"'{line}' divides by zero")
        last = a + b if match[3] == "+" else a - b if match[3] == "-" else a * b if match[3] == "*" else a / b
        if max(abs(last.numerator), last.denominator) > BOUND:
            raise Unreadable("its values grow beyond bounds")
        values[f"t{match[1]}"] = last
    if last is None:
        raise Unreadable("it assigns nothing")
    return last


def _operand(text: str, values: Mapping[str, Fraction]) -> Fraction:
    if not text.startswith("t"):
        return Fraction(text)
    if text not in values:
        raise Unreadable(f"{text} has no value")
    return values[text]


def _equation(rng: random.Random, count: int, largest: int) -> tuple[int, tuple[tuple[str, int], ...]]:
    """(right-hand side, operations that lead from it to x) of x*a+b=c or, with three operations, (x+d)*a+b=c."""
    uniform = rng.random
    value = 1 + int(uniform() * largest)
    built: list[tuple[str, int]] = []
    if count == 3:
        built.append(("+" if uniform() < 0.5 else "-", 1 + int(uniform() * min(9, value))))
        value += built[0][1] if built[0][0] == "+" else -built[0][1]
    factor = 2 + int(uniform() * 8)
    built.append(("*", factor))
    value *= factor
    term = 1 + int(uniform() * largest)
    sign = "-" if term < value and uniform() < 0.5 else "+"
    built.append((sign, term))
    value += term if sign == "+" else -term
    return value, tuple((INVERSE[s], n) for s, n in reversed(built))


def _written(data: Mapping[str, Any]) -> str:
    """The equation that the operations solve."""
    text, loose = "x", False
    for sign, n in reversed(data["operations"]):
        undone = INVERSE[sign]
        text = f"({text}){undone}{n}" if undone in "*/" and loose else f"{text}{undone}{n}"
        loose = undone in "+-"
    return f"{text}={data['first']}"


def _apply(value: int | None, sign: str, n: int) -> int | None:
    if value is None:
        return None
    if sign == "/":
        return value // n if n and value % n == 0 else None
    return value + n if sign == "+" else value - n if sign == "-" else value * n


def _step(style: str, state: State, sign: str, n: int, given: int | None = None) -> tuple[Step, State]:
    """The step that applies an operation and states its result (or another, `given`)."""
    result = _apply(state.value, sign, n) if given is None else given
    premises = (state.lines - 1,) if state.lines else ()
    if style == "program":
        text = f"t{state.lines + 1}={f't{state.lines}' if state.lines else state.value}{sign}{n}"
    elif style == "steps":
        text = f"<s>{state.value}{sign}{n}={result}</s>"
    else:
        text = f"{'then' if state.lines else 'first'} {state.value} {WORDS[sign]} {n} is {result}"
    kind = "program" if style == "program" else "compute"
    return Step(text, kind, SKILLS[sign], premises), State(state.operation + 1, result, state.lines + 1)


def _parsed(text: str, state: State) -> tuple[int, str, int, int | None]:
    """(left, sign, right, stated result or None) of a line in any style; a variable is the value it has."""
    if match := _ASSIGNMENT.fullmatch(text):
        if match[4].startswith("t") or (match[2].startswith("t") and match[2] != f"t{state.lines}"):
            raise Unreadable(f"format: '{text[:40]}' uses a variable that is not the last one")
        left = state.value if match[2].startswith("t") else int(match[2])
        if left is None:
            raise Unreadable(f"format: '{match[2]}' is not a whole number")
        return left, match[3], int(match[4]), None
    if match := _LINES["steps"].fullmatch(text.replace(" ", "")):
        return int(match[1]), match[2], int(match[3]), int(match[4])
    if match := _LINES["prose"].fullmatch(text.lower()):
        return int(match[1]), SIGNS[match[2]], int(match[3]), int(match[4])
    raise Unreadable(f"format: '{text[:40]}' is a step of no style")


def _scaled(data: Mapping[str, Any], factor: Fraction) -> dict[str, Any]:
    operations = tuple((sign, int(n * factor) if sign in "+-" else n) for sign, n in data["operations"])
    return {"first": int(data["first"] * factor), "operations": operations}
