"""lists: eleven small skills on a list of numbers, one a problem: what a curriculum chooses between."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

from whet.errors import unknown
from whet.tasks.problem import Problem, Response, Step, Verdict
from whet.tasks.traced import (
    Slip,
    Traced,
    Transform,
    Unreadable,
    numbers_in,
    plain,
    rescaled,
    unparseable,
    wrong,
)

LEVELS = {1: (4, 9), 2: (5, 9), 3: (6, 20), 4: (7, 30), 5: (9, 99), 6: (14, 999)}  # how many numbers, the largest


class State(NamedTuple):
    at: int  # numbers dealt with
    left: tuple[int, ...]  # sort and reverse: still to take
    kept: tuple[int, ...]  # what the answer will list
    value: int  # the running sum, maximum, minimum or tally, or the last number looked at
    lines: int


@dataclass(frozen=True, slots=True)
class Skill:
    """How a skill is asked for (plainly, and in other words), its plan, its machine and what its wrong decisions are
    called; `{arg}` is its number."""

    plain: str
    paraphrase: str
    plan: str
    machine: str
    error: str


SKILLS = {
    "sort": Skill("sort", "put in ascending order", "take the smallest again and again", "pick", "compare"),
    "even": Skill("even", "keep the even numbers", "test each number", "sift", "parity"),
    "odd": Skill("odd", "keep the odd numbers", "test each number", "sift", "parity"),
    "above": Skill("above {arg}", "keep what is greater than {arg}", "compare each number", "sift", "compare"),
    "dedupe": Skill("dedupe", "keep the first of equal numbers", "keep each number not seen yet", "sift", "membership"),
    "count": Skill("count {arg}", "how often does {arg} occur", "keep a tally", "sift", "compare"),
    "reverse": Skill("reverse", "read backwards", "take the last again and again", "pick", "order"),
    "max": Skill("max", "find the greatest", "carry the greater along", "fold", "compare"),
    "min": Skill("min", "find the smallest", "carry the smaller along", "fold", "compare"),
    "sum": Skill("sum", "add up", "keep the running total", "fold", "arithmetic"),
    "index": Skill("item {arg}", "find number {arg} of", "number them up to the place", "walk", "shift"),
}
NAMES = tuple(SKILLS)
_LINES = {
    "sift": re.compile(r"([0-9]+) (yes|no)(?: ([0-9]+))?"),
    "fold": re.compile(r"([0-9]+) ?[+,] ?([0-9]+) ?[=:] ?([0-9]+)"),
    "pick": re.compile(r"take ([0-9]+)(?: leave ([0-9 ]+))?"),
    "walk": re.compile(r"([0-9]+): ?([0-9]+)"),
}


class Lists(Traced):
    """`above 4: 3 9 1 6` with the rationale `3 no`, `9 yes`, `1 no`, `6 yes` and the answer `9 6` (or `empty`).

    Args:
        level: a level, or a range.
        skill: one of the skills, where not all of them are wanted. `Problem.category` is the skill.

    Tests: eleven skills of different difficulty in one task, for curricula and forgetting: sort, even, odd, above,
    dedupe, count, reverse, max, min, sum, index.
    Levels: 1 four numbers to 9; 2 five to 9; 3 six to 20; 4 seven to 30; 5 nine to 99; 6 fourteen to 999.
    Rationales: a verdict a number (even, odd, above, dedupe, count), a running value (max, min, sum), what is taken and
    what is left (sort, reverse), the numbered list up to the place (index).
    Verifier: the list, whatever stands between its numbers; part `positions` is the share in place.
    Errors: compare, parity, membership, arithmetic, order, shift (the skill's own wrong decision), tally (miscounted),
    skip (a number is passed over), lose (one gets lost from what is left), copy (a number is misread).
    """

    name = "lists"
    levels = tuple(LEVELS)
    default_level = 2
    description = "eleven small skills on lists of 4 to 14 numbers (sort, filter, count, sum ...)"

    def __init__(self, level: int | str | None = None, skill: str | None = None) -> None:
        if skill is not None and skill not in SKILLS:
            raise unknown("skill of task 'lists'", skill, SKILLS)
        super().__init__(level, **({} if skill is None else {"skill": skill}))
        self.skill = skill

    def draw(self, rng: random.Random, level: int) -> tuple[Any, ...]:
        """(skill, numbers, the skill's number or 0)."""
        count, largest = LEVELS[level]
        uniform = rng.random
        skill = self.skill or NAMES[int(uniform() * len(NAMES))]
        span = count + 2 if skill in ("dedupe", "count") else largest + 1  # few values, so that some are equal
        lowest = int(uniform() * (largest + 2 - span))
        numbers = tuple([lowest + int(uniform() * span) for _ in range(count)])
        while len({*numbers}) == 1:  # nothing can be done wrongly with equal numbers
            numbers = tuple([lowest + int(uniform() * span) for _ in range(count)])
        arg = 0
        if skill in ("above", "count"):
            arg = numbers[int(uniform() * count)]
        elif skill == "index":
            arg = 1 + int(uniform() * count)
        return skill, numbers, arg

    def build(self, parameters: tuple[Any, ...], level: int) -> Problem:
        skill, numbers, arg = parameters
        return self.word({"skill": skill, "numbers": numbers, "arg": arg, "scale": 1, "wording": 0, "filler": 0}, level)

    def prompt(self, data: Mapping[str, Any]) -> str:
        skill = SKILLS[data["skill"]]
        asked = (skill.plain, skill.paraphrase)[data["wording"]].replace("{arg}", str(data["arg"]))
        return f"{asked}: {' '.join(map(str, data['numbers']))}"

    def plan(self, data: Mapping[str, Any]) -> str:
        return SKILLS[data["skill"]].plan

    def category(self, data: Mapping[str, Any], level: int) -> str:
        return data["skill"]

    def verify(self, problem: Problem, response: Response) -> Verdict:
        given, gold = _answer(response.answer), _answer(problem.answer)
        if gold is None:
            return Verdict(float("nan"), "error", {}, f"the gold answer '{problem.answer}' is no list of numbers")
        if given is None:
            return unparseable("no list of numbers")
        longest = max(len(given), len(gold))
        hits = sum(a == b for a, b in zip(given, gold, strict=False))
        parts = {"positions": hits / longest if longest else 1.0}
        label = " ".join(map(str, given))
        if given == gold:
            return Verdict(1.0, "ok", parts, label=label)
        return wrong(f"{response.answer} is not {problem.answer}", parts, label)

    # -- the machine ---------------------------------------------------------------------------------------------------
    def start(self, data: Mapping[str, Any]) -> State:
        folds = SKILLS[data["skill"]].machine == "fold"
        return State(int(folds), data["numbers"], (), data["numbers"][0] if folds else 0, 0)

    def write(self, data: Mapping[str, Any], state: State) -> tuple[Step, State] | None:
        if _done(data, state):
            return None
        return _step(data, state, _decide(data, state), state.at)

    def slips(self, data: Mapping[str, Any], state: State, rng: random.Random) -> Iterator[Slip]:
        if _done(data, state):
            return
        skill, numbers, at = SKILLS[data["skill"]], data["numbers"], state.at
        right = _decide(data, state)
        if skill.machine == "pick":
            for other in {*state.left} - {right}:
                yield Slip(skill.error, *_step(data, state, other, at))
            for lost in {*_without(state.left, right, data["skill"])} - {right}:
                left = _without(state.left, lost, "sort")
                yield Slip("lose", *_step(data, state._replace(left=left), right, at))
            return
        if skill.machine == "walk":
            if at + 1 < len(numbers) and numbers[at + 1] != numbers[at]:
                shifted = (*numbers[:at], *numbers[at + 1 :], numbers[at])
                yield Slip("shift", *_step({**data, "numbers": shifted}, state._replace(left=shifted), shifted[at], at))
            misread = right + rng.randrange(1, 9)
            if misread not in numbers[at + 1 : at + 2]:  # else it would be a shift
                yield Slip("copy", *_step(data, state, misread, at))
            return
        if skill.machine == "sift":
            yield Slip(skill.error, *_step(data, state, 1 - right, at))
            if data["skill"] == "count":
                step, after = _step(data, state, right, at)
                tally = after.value + 1
                yield Slip(
                    "tally", _renamed(step, f"{step.text.rpartition(' ')[0]} {tally}"), after._replace(value=tally)
                )
        elif data["skill"] == "sum":
            off = rng.choice([d for d in (-10, -2, -1, 1, 2, 10) if right + d >= 0])
            yield Slip("arithmetic", *_step(data, state, right + off, at))
            misread = state._replace(value=state.value + rng.randrange(1, 9))
            yield Slip("copy", *_step(data, misread, _decide(data, misread), at))
        else:
            if state.value != numbers[at]:
                yield Slip("compare", *_step(data, state, state.value + numbers[at] - right, at))
            yield Slip("copy", *_step(data, state, max(state.value, numbers[at]) + rng.randrange(1, 9), at))
        if at + 1 < len(numbers) and numbers[at + 1] != numbers[at]:
            passed = state._replace(at=at + 1)
            yield Slip("skip", *_step(data, passed, _decide(data, passed), at + 1))

    def read(self, data: Mapping[str, Any], text: str, state: State) -> tuple[str, State]:
        machine = SKILLS[data["skill"]].machine
        match = _LINES[machine].fullmatch(text)
        if match is None:
            raise Unreadable(f"format: '{text[:40]}' is no step of {data['skill']}")
        if _done(data, state):
            return "skip: one step too many", state
        if machine == "pick":
            return _read_pick(data, state, int(match[1]), tuple(map(int, (match[2] or "").split())))
        if machine == "walk":
            return _read_walk(data, state, int(match[1]), int(match[2]))
        numbers = data["numbers"]
        here, fault = state, ""
        number = int(match[1] if machine == "sift" else match[2])
        if number != numbers[state.at]:
            fault = f"copy: {numbers[state.at]} is due, not {number}"
            if state.at + 1 < len(numbers) and number == numbers[state.at + 1]:
                here, fault = state._replace(at=state.at + 1), f"skip: {numbers[state.at]} is passed over"
        right = _decide(data, here)
        given = int(match[2] == "yes") if machine == "sift" else int(match[3])
        step, after = _step(data, here, given, here.at)
        if machine == "fold" and int(match[1]) != state.value:
            fault = fault or f"copy: {state.value} is carried along, not {match[1]}"
        elif data["skill"] in ("max", "min") and given not in (here.value, number):
            fault = fault or f"copy: {given} is neither {here.value} nor {number}"
        elif given != right:
            fault = (
                fault or f"{SKILLS[data['skill']].error}: it should be '{_step(data, here, right, here.at)[0].text}'"
            )
        elif machine == "sift" and (match[3] or "") != (str(after.value) if data["skill"] == "count" else ""):
            fault = fault or f"tally: it should be '{step.text}'"
        return fault, after._replace(value=int(match[3])) if machine == "sift" and match[3] else after

    def result(self, data: Mapping[str, Any], state: State) -> str | None:
        if not _done(data, state):
            return None
        if SKILLS[data["skill"]].machine in ("fold", "walk") or data["skill"] == "count":
            return str(state.value)
        return " ".join(map(str, state.kept)) or "empty"

    def transforms(self) -> Mapping[str, tuple[Transform, Transform]]:
        return {**super().transforms(), "scaling": rescaled(self.word, _scaled, lambda p: p.category != "count")}


def _done(data: Mapping[str, Any], state: State) -> bool:
    if data["skill"] == "index":
        return state.at == data["arg"]
    return not state.left if SKILLS[data["skill"]].machine == "pick" else state.at >= len(data["numbers"])


def _decide(data: Mapping[str, Any], state: State) -> int:
    """The right decision: keep or not (1, 0), the new running value, or the number to take."""
    skill, number = data["skill"], data["numbers"][min(state.at, len(data["numbers"]) - 1)]
    if skill in ("even", "odd"):
        return int(number % 2 == (skill == "odd"))
    if skill == "above":
        return int(number > data["arg"])
    if skill == "dedupe":
        return int(number not in state.kept)
    if skill == "count":
        return int(number == data["arg"])
    if skill == "sum":
        return state.value + number
    if skill in ("max", "min"):
        return (max if skill == "max" else min)(state.value, number)
    if skill == "index":
        return state.left[state.at]
    return min(state.left) if skill == "sort" else state.left[-1]


def _step(data: Mapping[str, Any], state: State, decision: int, at: int) -> tuple[Step, State]:
    """The step that states a decision (right or not) on number `at`, and the state after it."""
    skill, number = data["skill"], data["numbers"][min(at, len(data["numbers"]) - 1)]
    premises = (state.lines - 1,) if state.lines else ()
    lines = state.lines + 1
    machine = SKILLS[skill].machine
    if machine == "sift":
        kept = (*state.kept, number) if decision else state.kept
        tally = state.value + decision
        text = f"{number} {'yes' if decision else 'no'}" + (f" {tally}" if skill == "count" else "")
        if skill == "count":
            return Step(text, "compare", skill, premises), State(at + 1, state.left, kept, tally, lines)
        seen = tuple(range(state.lines)) if skill == "dedupe" else ()
        return Step(text, "compare", skill, seen), State(at + 1, state.left, kept, state.value, lines)
    if machine == "fold":
        text = f"{state.value}+{number}={decision}" if skill == "sum" else f"{state.value},{number}: {decision}"
        kind = "compute" if skill == "sum" else "compare"
        return Step(text, kind, skill, premises), State(at + 1, state.left, (), decision, lines)
    if machine == "walk":
        return Step(f"{at + 1}: {decision}", "lookup", skill), State(at + 1, state.left, (), decision, lines)
    left = _without(state.left, decision, skill)
    text = f"take {decision} leave {' '.join(map(str, left))}" if left else f"take {decision}"
    kind = "compare" if skill == "sort" else "copy"
    return Step(text, kind, skill, premises), State(at + 1, left, (*state.kept, decision), 0, lines)


def _without(left: tuple[int, ...], taken: int, skill: str) -> tuple[int, ...]:
    """`left` without the first such number (reverse: the last such)."""
    at = len(left) - 1 - left[::-1].index(taken) if skill == "reverse" else left.index(taken)
    return left[:at] + left[at + 1 :]


def _read_pick(data: Mapping[str, Any], state: State, taken: int, left: tuple[int, ...]) -> tuple[str, State]:
    skill, lines = data["skill"], state.lines + 1
    after = State(state.at + 1, left, (*state.kept, taken), 0, lines)
    if taken not in state.left:
        return f"copy: {taken} is not left", after
    right = _decide(data, state)
    if taken != right:
        return f"{SKILLS[skill].error}: {right} is next, not {taken}", after
    due = _without(state.left, taken, skill)
    return "" if left == due else f"lose: {' '.join(map(str, due)) or 'nothing'} should be left", after


def _read_walk(data: Mapping[str, Any], state: State, place: int, number: int) -> tuple[str, State]:
    at, numbers = state.at, data["numbers"]
    after = State(at + 1, state.left, (), number, state.lines + 1)
    if place != at + 1:
        return f"skip: place {at + 1} is due, not {place}", after
    if number == numbers[at]:
        return "", after
    if at + 1 < len(numbers) and number == numbers[at + 1]:
        return f"shift: {number} is at place {at + 2}", after
    return f"copy: {numbers[at]} is at place {place}, not {number}", after


def _renamed(step: Step, text: str) -> Step:
    return Step(text, step.kind, step.skill, step.premises)


def _answer(text: str | None) -> list[int] | None:
    return [] if plain(text or "").strip(" .\n").lower() == "empty" else numbers_in(text)


def _scaled(data: Mapping[str, Any], factor: Fraction) -> dict[str, Any]:
    arg = int(data["arg"] * factor) if data["skill"] in ("above", "count") else data["arg"]
    return {"numbers": tuple(int(n * factor) for n in data["numbers"]), "arg": arg}
