"""mod-chain: chained assignments in modular arithmetic: hard tokens (the results) among easy ones (the copies)."""

from __future__ import annotations

import random
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from whet.tasks.problem import Problem, Response, Step, Verdict
from whet.tasks.traced import Slip, Traced, Transform, Unreadable, carried, picks, redressed


class Shape(NamedTuple):
    steps: int
    modulus: int
    shuffled: bool = False  # the assignments of the prompt stand in random order
    idle: int = 0  # assignments that the answer does not need


LEVELS = {
    1: Shape(2, 5),
    2: Shape(3, 7),
    3: Shape(4, 7, True),
    4: Shape(5, 11, True, 1),
    5: Shape(6, 13, True, 2),
    6: Shape(6, 499, True, 2),  # too many residues for a guess
}
PLACES = string.ascii_uppercase  # the variables of a bare problem; `build` gives them their names
SKILLS = {"+": "add", "-": "subtract", "*": "multiply", "*+": "multiply-add", "*-": "multiply-subtract"}
_LINE = re.compile(r"([a-z])=([0-9]+(?:[-+*][0-9]+){1,2})=([0-9]+)")
_TOKEN = re.compile(r"[0-9]+|[-+*]")
_NEXT = {ord(c): string.ascii_lowercase[(i + 1) % 26] for i, c in enumerate(string.ascii_lowercase)}
_BEFORE = {ord(b): chr(a) for a, b in _NEXT.items()}


class State(NamedTuple):
    values: dict[str, int]
    written: dict[str, int]  # variable -> index of the step that found it
    lines: int


class ModChain(Traced):
    """`mod 7. a=3. b=a*4+2. c=b+a. c?` with the rationale `b=3*4+2=0`, `c=0+3=3`.

    Tests: binding of variables (copies, easy) and modular arithmetic (results, hard) in one text. Names are random, and
    the splits are disjoint up to names and order.
    Levels: 1 two steps mod 5; 2 three mod 7; 3 four mod 7, assignments shuffled; 4 five mod 11 and one idle variable;
    5 six mod 13 and two idle ones; 6 the same mod 499.
    Verifier: the number. Steps are judged in any order that has what it needs.
    Errors: arithmetic, copy (a wrong operand), operator, skip (a value is used that was never found).
    Skills: add, subtract, multiply, multiply-add, multiply-subtract.
    `data["hard"]`: the (start, end) spans in the rationale's characters that hold results.
    """

    name = "mod-chain"
    levels = tuple(LEVELS)
    default_level = 2
    description = "chained assignments in modular arithmetic, 2 to 6 steps"

    def draw(self, rng: random.Random, level: int) -> tuple[Any, ...]:
        """(seed of names and order, (modulus, first value, expressions in the order of solving))."""
        uniform, modulus = rng.random, LEVELS[level].modulus
        expressions: list[str] = []
        for forms in _expressions(level):
            form = forms[int(uniform() * len(forms))]
            expressions.append(form[int(uniform() * len(form))])
        return rng.getrandbits(32), (modulus, int(uniform() * modulus), tuple(expressions))

    def identity(self, parameters: tuple[Any, ...]) -> object:
        return parameters[1]

    def build(self, parameters: tuple[Any, ...], level: int) -> Problem:
        seed, (modulus, first, expressions) = parameters
        shape, n, rng = LEVELS[level], len(expressions) + 1, random.Random(seed)
        letters = [string.ascii_lowercase[i] for i in picks(rng, 26, n)]
        table = {ord(place): letter for place, letter in zip(PLACES, letters, strict=False)}
        assigned = [(letters[0], str(first)), *zip(letters[1:], (e.translate(table) for e in expressions), strict=True)]
        if shape.shuffled:
            rng.shuffle(assigned)
        data = {
            "modulus": modulus,
            "assignments": dict(assigned),
            "given": letters[0],
            "solve": tuple(letters[1 : shape.steps + 1]),
            "wording": 0,
            "filler": 0,
        }
        return self.word(data, level)

    def extras(self, data: Mapping[str, Any], steps: Sequence[Step], state: State) -> dict[str, Any]:
        spans: list[tuple[int, int]] = []
        offset = 0
        for step in steps:
            spans.append((offset + step.text.rindex("=") + 1, offset + len(step.text)))
            offset += len(step.text) + 1
        return {"data": {**data, "hard": tuple(spans)}}

    def prompt(self, data: Mapping[str, Any]) -> str:
        target = data["solve"][-1]
        if data["wording"] == 0:
            return (
                f"mod {data['modulus']}. "
                + "".join(f"{x}={e}. " for x, e in data["assignments"].items())
                + f"{target}?"
            )
        told = "".join(f"let {x} be {e}. " for x, e in data["assignments"].items())
        return f"{told}find {target} modulo {data['modulus']}."

    def plan(self, data: Mapping[str, Any]) -> str:
        return "find " + ", then ".join(data["solve"])

    def verify(self, problem: Problem, response: Response) -> Verdict:
        """Compares numbers; a result that is not reduced is wrong."""
        from whet.tasks.verify import number

        return number(problem, response)

    # -- the machine ---------------------------------------------------------------------------------------------------
    def start(self, data: Mapping[str, Any]) -> State:
        given = data["given"]
        return State({given: int(data["assignments"][given])}, {}, 0)

    def write(self, data: Mapping[str, Any], state: State) -> tuple[Step, State] | None:
        name = next((x for x in data["solve"] if x not in state.values), None)
        if name is None:
            return None
        expression = data["assignments"][name]
        return _step(name, expression, _filled(expression, state.values), state, data["modulus"])

    def slips(self, data: Mapping[str, Any], state: State, rng: random.Random) -> Iterator[Slip]:
        todo = [x for x in data["solve"] if x not in state.values]
        if not todo:
            return
        modulus, assignments = data["modulus"], data["assignments"]
        name = todo[0]
        expression = assignments[name]
        filled = _filled(expression, state.values)
        result = _value(filled) % modulus
        off = rng.randrange(1, modulus)
        yield Slip("arithmetic", *_step(name, expression, filled, state, modulus, (result + off) % modulus))
        tokens = _TOKEN.findall(filled)
        for i, token in enumerate(tokens):
            if token.isdigit():
                other = str((int(token) + rng.randrange(1, modulus)) % modulus)
                known = [str(v) for v in state.values.values() if str(v) != token]
                for label, new in (("copy", other), *(("copy", k) for k in known[:1])):
                    changed = "".join([*tokens[:i], new, *tokens[i + 1 :]])
                    yield Slip(label, *_step(name, expression, changed, state, modulus))
            else:
                sign = rng.choice([s for s in "+-*" if s != token])
                changed = "".join([*tokens[:i], sign, *tokens[i + 1 :]])
                yield Slip("operator", *_step(name, expression, changed, state, modulus))
        if len(todo) > 1 and name in assignments[todo[1]]:
            guessed = state._replace(values={**state.values, name: (result + off) % modulus})
            after = assignments[todo[1]]
            yield Slip("skip", *_step(todo[1], after, _filled(after, guessed.values), guessed, modulus))

    def read(self, data: Mapping[str, Any], text: str, state: State) -> tuple[str, State]:
        match = _LINE.fullmatch(text.replace(" ", ""))
        assignments = data["assignments"]
        if match is None or match[1] not in assignments:
            raise Unreadable(f"format: '{text[:40]}' assigns no variable of the problem")
        name, written, result = match[1], match[2], int(match[3])
        expression = assignments[name]
        after = State({**state.values, name: result}, {**state.written, name: state.lines}, state.lines + 1)
        return _fault(expression, written, result, state.values, data["modulus"]), after

    def result(self, data: Mapping[str, Any], state: State) -> str | None:
        value = state.values.get(data["solve"][-1])
        return None if value is None else str(value)

    def transforms(self) -> Mapping[str, tuple[Transform, Transform]]:
        rename = redressed(self.word, lambda d: _renamed(d, _NEXT), lambda d: _renamed(d, _BEFORE))
        return {**super().transforms(), "rename": carried(rename)}


@cache
def _expressions(level: int) -> tuple[tuple[tuple[str, ...], ...], ...]:
    """For each assignment but the first its possible expressions, by form; each uses the one before (or, if idle, any).

    Tables, because a test problem takes ten draws.
    """
    shape, tables = LEVELS[level], []
    m = shape.modulus
    for i in range(1, shape.steps + shape.idle + 1):
        lasts = PLACES[i - 1 : i] if i <= shape.steps else PLACES[:i]
        linear = tuple(
            f"{x}*{k}{sign}{c}" for x in lasts for k in range(2, min(m, 10)) for sign in "+-" for c in range(1, m)
        )
        constant = tuple(f"{x}{sign}{c}" for x in lasts for sign in "+-" for c in range(1, m))
        pairs = tuple(f"{x}{sign}{y}" for x in lasts for sign in "+-*" for y in PLACES[:i] if y != x)
        tables.append((linear, constant, pairs) if pairs else (linear, constant))
    return tuple(tables)


def _step(
    name: str, expression: str, filled: str, state: State, modulus: int, result: int | None = None
) -> tuple[Step, State]:
    value = _value(filled) % modulus if result is None else result
    found = state.written
    premises = tuple(sorted({found[x] for x in expression if x in found}))
    signs = "".join(c for c in expression if c in SKILLS)
    step = Step(f"{name}={filled}={value}", "compute", SKILLS[signs], premises)
    return step, State({**state.values, name: value}, {**found, name: state.lines}, state.lines + 1)


def _filled(expression: str, values: Mapping[str, int]) -> str:
    return "".join(str(values[c]) if c in values else c for c in expression)


def _value(filled: str) -> int:
    """Worked with precedence; `filled` has two or three non-negative numbers."""
    total, term, sign = 0, 1, "+"
    for token in _TOKEN.findall(filled + "+"):
        if token.isdigit():
            term *= int(token)
        elif token != "*":
            total += term if sign == "+" else -term
            term, sign = 1, token
    return total


def _fault(expression: str, written: str, result: int, values: Mapping[str, int], modulus: int) -> str:
    missing = next((c for c in expression if c.isalpha() and c not in values), None)
    if missing is not None:
        return f"skip: {missing} has no value yet"
    due = _filled(expression, values)
    if [c for c in written if c in "+-*"] != [c for c in due if c in "+-*"]:
        return f"operator: {expression} does not give {written}"
    if written != due:
        return f"copy: {expression} is {due}, not {written}"
    right = _value(due) % modulus
    return "" if result == right else f"arithmetic: {due} is {right} mod {modulus}, not {result}"


def _renamed(data: Mapping[str, Any], table: Mapping[int, str]) -> dict[str, Any]:
    return {
        "assignments": {x.translate(table): e.translate(table) for x, e in data["assignments"].items()},
        "given": data["given"].translate(table),
        "solve": tuple(x.translate(table) for x in data["solve"]),
    }
