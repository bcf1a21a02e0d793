"""Traced: a procedural task whose rationale is the run of a small machine.

One machine gives the gold steps, the labelled corruptions and the per-step checks: `write` makes the next right step,
`slips` lists wrong ones (the run then goes on from what was written), and `read` judges a line that somebody wrote,
given the lines before it as they were written. So an error that is carried through fails at its own step only.
"""

from __future__ import annotations

import inspect
import random
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, ClassVar

from whet.errors import WhetError
from whet.tasks.problem import Check, Corruption, Problem, Response, Split, Step, Verdict
from whet.tasks.task import Procedural
from whet.tasks.transforms import Transform, cycle

FILLERS = ("", "it rains today. ", "the cat sleeps. ")
SCALE = 3
_LONG = re.compile(r"[0-9]{13}")
_SIGNS = str.maketrans({"−": "-", "–": "-", "×": "*", "·": "*", "÷": "/"})


class Unreadable(ValueError):
    """A line or an answer that cannot be parsed; the message says why."""


@dataclass(frozen=True, slots=True)
class Slip:
    """A wrong next step: the label of its error, the step, and the state after it."""

    label: str
    step: Step
    state: Any


class Traced(Procedural):
    """What a task writes: `draw`, `build` (which ends in `word`), `prompt`, `plan`, and the machine over states."""

    datasheet: ClassVar[str] = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.datasheet = inspect.getdoc(cls) or ""

    def __init__(self, level: int | str | None = None, **options: str) -> None:
        super().__init__(level)
        self.options = options  # those that differ from their defaults
        self._budget = 0

    # -- what a task writes --------------------------------------------------------------------------------------------
    def prompt(self, data: Mapping[str, Any]) -> str:
        raise NotImplementedError

    def plan(self, data: Mapping[str, Any]) -> str:
        """What to do, without numbers."""
        raise NotImplementedError

    def category(self, data: Mapping[str, Any], level: int) -> str:
        return f"level-{level}"

    def start(self, data: Mapping[str, Any]) -> Any:
        """The state before the first step."""
        raise NotImplementedError

    def write(self, data: Mapping[str, Any], state: Any) -> tuple[Step, Any] | None:
        """The next right step and the state after it; None at the end, or where a slip left no way on."""
        raise NotImplementedError

    def slips(self, data: Mapping[str, Any], state: Any, rng: random.Random) -> Iterator[Slip]:
        """Wrong steps that might stand next."""
        raise NotImplementedError

    def read(self, data: Mapping[str, Any], text: str, state: Any) -> tuple[str, Any]:
        """The fault of a written line ("label: what is wrong", empty where it is right) and the state after it.

        Raises Unreadable where the line cannot be parsed.
        """
        raise NotImplementedError

    def result(self, data: Mapping[str, Any], state: Any) -> str | None:
        """The answer that the steps lead to; None where they lead to none."""
        raise NotImplementedError

    def extras(self, data: Mapping[str, Any], steps: Sequence[Step], state: Any) -> dict[str, Any]:
        """Further fields of the problem, from its steps and the last state."""
        return {}

    # -- what it gets --------------------------------------------------------------------------------------------------
    def run(self, data: Mapping[str, Any], state: Any = None) -> tuple[tuple[Step, ...], Any]:
        """The steps from `state` (default: the start) to the end, and the last state."""
        steps: list[Step] = []
        state = self.start(data) if state is None else state
        while (written := self.write(data, state)) is not None:
            step, state = written
            steps.append(step)
        return tuple(steps), state

    def word(self, data: Mapping[str, Any], level: int) -> Problem:
        """The whole problem from its data."""
        steps, state = self.run(data)
        fields = {
            "prompt": FILLERS[data["filler"]] + self.prompt(data),
            "answer": self.result(data, state),
            "level": level,
            "steps": steps,
            "plan": self.plan(data),
            "category": self.category(data, level),
            "data": data,
        }
        return Problem(id="", **{**fields, **self.extras(data, steps, state)})

    def problem(self, split: Split, index: int, *, seed: int = 0) -> Problem:
        found = super().problem(split, index, seed=seed)
        if not self.options:
            return found
        return replace(found, id="/".join([found.id, *(f"{k}={v}" for k, v in self.options.items())]))

    def check(self, problem: Problem, response: Response) -> list[Check]:
        """One check a step, each given the lines before it as written, then the answer's."""
        state: Any = self.start(problem.data)
        lines = [line.strip() for line in response.rationale.splitlines() if line.strip()]
        checks: list[Check] = []
        for i in range(max(len(lines), len(problem.steps))):
            name = f"step {i + 1}"
            if i >= len(lines) or state is None:
                checks.append(Check(name, "n.a.", "no such step" if i >= len(lines) else "a step before it is unclear"))
                continue
            try:
                line = plain(lines[i])
                if _LONG.search(line):  # Python refuses to read the longest
                    raise Unreadable("format: a number of more than twelve digits")
                reason, state = self.read(problem.data, line, state)
            except Unreadable as problem_with_it:
                reason, state = str(problem_with_it), None
            checks.append(Check(name, "fail" if reason else "pass", reason))
        return [*checks, *super().check(problem, response)]

    def corrupt(self, problem: Problem, rng: random.Random) -> Corruption:
        """A slip at a random step, of a random label among those possible, carried through to a wrong answer."""
        data = problem.data
        proposals: dict[str, list[tuple[tuple[Step, ...], Slip]]] = {}
        state, before = self.start(data), ()
        while True:
            for slip in self.slips(data, state, rng):
                proposals.setdefault(slip.label, []).append((before, slip))
            if (written := self.write(data, state)) is None:
                break
            before, state = (*before, written[0]), written[1]
        labels = list(proposals)
        rng.shuffle(labels)
        for label in labels:
            rng.shuffle(proposals[label])
            for before, slip in proposals[label]:
                rest, end = self.run(data, slip.state)
                answer = self.result(data, end)
                steps = (*before, slip.step, *rest)
                if answer is None or steps[: len(problem.steps)] == problem.steps:
                    continue
                text = "\n".join(s.text for s in steps)
                if self.verify(problem, Response(f"{text}\n{answer}", answer, text)).status == "wrong":
                    return Corruption(steps, answer, label, len(before))
        raise WhetError(f"problem '{problem.id}': no slip leads to a wrong answer")

    def transforms(self) -> Mapping[str, tuple[Transform, Transform]]:
        return {
            "paraphrase": carried(cycle(self.word, "wording", (0, 1))),
            "filler": carried(cycle(self.word, "filler", range(len(FILLERS)))),
        }

    def spec(self) -> str:
        given = {} if self._given is None else {"level": self._given}
        chosen = ",".join(f"{k}={v}" for k, v in {**given, **self.options}.items())
        return f"{self.name}:{chosen}" if chosen else str(self.name)

    def max_answer_tokens(self) -> int:
        """A quarter more than the longest of 100 problems a level, in characters (a token has at least one)."""
        if not self._budget:
            longest = 0
            for level in self.chosen:
                rng = random.Random(level)
                for _ in range(100):
                    p = self.build(self.draw(rng, level), level)
                    longest = max(longest, len(p.plan) + len(p.rationale) + len(p.answer or ""))
            self._budget = longest * 5 // 4 + 24
        return self._budget


# -- small parts -------------------------------------------------------------------------------------------------------
def picks(rng: random.Random, n: int, k: int) -> list[int]:
    """`k` different numbers below `n` in random order; several times faster than `rng.sample` for few of many."""
    uniform = rng.random
    found = dict.fromkeys([int(uniform() * n) for _ in range(k)])
    while len(found) < k:  # some came twice
        found[int(uniform() * n)] = None
    return list(found)


def plain(text: str) -> str:
    """`text` with full-width digits and typographic signs as ASCII."""
    return text if text.isascii() else unicodedata.normalize("NFKC", text).translate(_SIGNS)


def numbers_in(text: str | None) -> list[int] | None:
    """The integers of a list written with spaces, commas or brackets; None where anything else stands in it."""
    words = re.split(r"[\s,;]+", plain(text or "").strip(" \t\n,;[]"))
    return [int(w) for w in words] if all(re.fullmatch(r"-?[0-9]{1,12}", w) for w in words) else None


def wrong(reason: str, parts: Mapping[str, float], label: str | None = None) -> Verdict:
    return Verdict(0.0, "wrong", dict(parts), reason, label)


def unparseable(reason: str) -> Verdict:
    return Verdict(0.0, "unparseable", {}, reason)


def carried(
    pair: tuple[Transform, Transform],
    there: Callable[[str], str] = str,
    back: Callable[[str], str] = str,
) -> tuple[Transform, Transform]:
    """A transform that takes the answer along as text (mapped by `there` and `back`) where the pair would make the gold
    answer anew: so a model's answer to the transformed problem can be carried back."""
    forward, inverse = pair

    def go(problem: Problem, move: Transform, change: Callable[[str], str]) -> Problem:
        return replace(move(problem), answer=None if problem.answer is None else change(problem.answer))

    return (lambda problem: go(problem, forward, there)), (lambda problem: go(problem, inverse, back))


def redressed(
    word: Callable[[Mapping[str, Any], int], Problem],
    forward: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    inverse: Callable[[Mapping[str, Any]], Mapping[str, Any]],
) -> tuple[Transform, Transform]:
    """A transform from a change of a problem's data and the change that undoes it."""

    def go(problem: Problem, change: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> Problem:
        made = word({**problem.data, **change(problem.data)}, problem.level)
        return replace(made, id=problem.id, task=problem.task)

    return (lambda problem: go(problem, forward)), (lambda problem: go(problem, inverse))


def rescaled(
    word: Callable[[Mapping[str, Any], int], Problem],
    change: Callable[[Mapping[str, Any], Fraction], Mapping[str, Any]],
    scales: Callable[[Problem], bool] = lambda problem: True,
) -> tuple[Transform, Transform]:
    """Scaling by three and back (`data["scale"]`), which keeps parity, order and equality; the move undoes itself.

    `change(data, factor)` scales a problem's numbers, and the numbers of an answer are scaled where
    `scales(problem)`. In an answer that does not come out even a fraction is left, so a wrong one stays wrong.
    """

    def move(problem: Problem) -> Problem:
        back = problem.data["scale"] != 1
        factor = Fraction(1, SCALE) if back else Fraction(SCALE)
        data = {**problem.data, **change(problem.data, factor), "scale": 1 if back else SCALE}
        answer = problem.answer
        if answer is not None and scales(problem):
            answer = re.sub(r"[0-9]{1,12}", lambda m: str(int(m[0]) * factor), answer)
        return replace(word(data, problem.level), id=problem.id, task=problem.task, answer=answer)

    return move, move
