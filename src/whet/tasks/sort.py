"""sort: put numbers in order by selection, one selected number a step."""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from whet.tasks.problem import Check, Corruption, Problem, Response, Step, Verdict
from whet.tasks.task import Procedural
from whet.tasks.transforms import Transform, cycle

# level: shortest list, longest list, largest number
LEVELS = {1: (3, 3, 9), 2: (4, 5, 20), 3: (5, 7, 99), 4: (7, 9, 999)}
WORDINGS = (("Sort ascending: {}.", "Sort descending: {}."), ("From small to large: {}.", "From large to small: {}."))
FILLERS = ("", "Here is a list. ", "Take your time. ")
PLANS = (
    "Take the smallest of the numbers left, again and again.",
    "Take the largest of the numbers left, again and again.",
)
_STEP = re.compile(r"(?:smallest|largest) of ([0-9 ,]+) is ([0-9]{1,12})(?![0-9])|last is ([0-9]{1,12})(?![0-9])")


class Sort(Procedural):
    """`Sort ascending: 12 3 7.` with the rationale `smallest of 12 3 7 is 3`, `smallest of 12 7 is 7`, `last is 12`.

    The answer is `3 7 12`; the numbers of a list differ.
    """

    name = "sort"
    levels = tuple(LEVELS)
    description = "put 3 to 9 numbers in ascending or descending order"

    def draw(self, rng: random.Random, level: int) -> tuple[bool, tuple[int, ...]]:
        """(descending, numbers)."""
        shortest, longest, largest = LEVELS[level]
        uniform = rng.random  # several times faster than sample, and a test problem takes ten draws
        length = shortest + int(uniform() * (longest - shortest + 1))
        numbers: dict[int, None] = {}
        while len(numbers) < length:
            numbers[1 + int(uniform() * largest)] = None
        return uniform() < 0.5, tuple(numbers)

    def build(self, parameters: tuple[Any, ...], level: int) -> Problem:
        descending, numbers = parameters
        return _word({"descending": descending, "numbers": numbers, "wording": 0, "filler": 0}, level)

    def verify(self, problem: Problem, response: Response) -> Verdict:
        """Compares the lists, whatever stands between the numbers; `parts["positions"]` is the share in place."""
        gold = _numbers(problem.answer)
        given = _numbers(response.answer)
        if gold is None:
            return Verdict(float("nan"), "error", reason=f"problem '{problem.id}' has no list as its answer")
        if given is None:
            return Verdict(0.0, "unparseable", {"positions": 0.0}, "no list of numbers")
        right = sum(a == b for a, b in zip(given, gold, strict=False)) / max(len(given), len(gold))
        label = " ".join(map(str, given))
        if given == gold:
            return Verdict(1.0, "ok", {"positions": right}, label=label)
        return Verdict(0.0, "wrong", {"positions": right}, f"{label} is not {problem.answer}", label)

    def check(self, problem: Problem, response: Response) -> list[Check]:
        """One check for each selection (on its own, from what the steps before it left), then the answer's."""
        left = list(problem.data["numbers"])
        descending = problem.data["descending"]
        text = unicodedata.normalize("NFKC", response.rationale)
        found = [(_numbers(a) or [], int(b)) if b else ([int(c)], int(c)) for a, b, c in _STEP.findall(text)]
        checks: list[Check] = []
        for i in range(max(len(problem.steps), len(found))):
            name = f"step {i + 1}"
            if i >= len(found):
                checks.append(Check(name, "n.a.", "no such step found"))
                continue
            listed, taken = found[i]
            reason = _fault(left, listed, taken, descending)
            checks.append(Check(name, "fail" if reason else "pass", reason))
            left = [n for n in listed if n != taken]
        return [*checks, *super().check(problem, response)]

    def corrupt(self, problem: Problem, rng: random.Random) -> Corruption:
        """Labels: swap (the second in order goes first), drop (a number is lost), duplicate (one goes twice)."""
        numbers, descending = problem.data["numbers"], problem.data["descending"]
        label = rng.choice(("swap", "drop", "duplicate"))
        last = len(numbers) - (2 if label == "drop" else 1)  # a step must be left that shows the number's absence
        steps, order = _select(numbers, descending, label, rng.randrange(last), rng)
        wrong = next(i for i, (a, b) in enumerate(zip(steps, problem.steps, strict=False)) if a.text != b.text)
        return Corruption(steps, " ".join(map(str, order)), label, wrong)

    def transforms(self) -> Mapping[str, tuple[Transform, Transform]]:
        return {
            "paraphrase": cycle(_word, "wording", range(len(WORDINGS))),
            "filler": cycle(_word, "filler", range(len(FILLERS))),
        }

    def max_answer_tokens(self) -> int:
        _, longest, largest = LEVELS[self.chosen[-1]]
        width = len(str(largest)) + 1
        listed = width * longest * (longest + 1) // 2  # what is left shrinks by one a step
        return listed + longest * (len("smallest of is \n") + width) + longest * width + 24


def _word(data: Mapping[str, Any], level: int) -> Problem:
    numbers, descending = data["numbers"], data["descending"]
    steps, order = _select(numbers, descending)
    prompt = WORDINGS[data["wording"]][descending].format(" ".join(map(str, numbers)))
    return Problem(
        id="",
        prompt=FILLERS[data["filler"]] + prompt,
        answer=" ".join(map(str, order)),
        level=level,
        steps=steps,
        plan=PLANS[descending],
        category=f"level-{level}",
        data=data,
    )


def _select(
    numbers: Sequence[int], descending: bool, error: str = "", at: int = -1, rng: random.Random | None = None
) -> tuple[tuple[Step, ...], list[int]]:
    """Selection steps and the order they lead to, with `error` made in step `at` and carried through."""
    word, skill = ("largest", "select-largest") if descending else ("smallest", "select-smallest")
    left = list(numbers)
    steps: list[Step] = []
    order: list[int] = []
    while left:
        i = len(steps)
        taken = max(left) if descending else min(left)
        if i == at and error == "swap":
            taken = sorted(left, reverse=descending)[1]
        premises = (i - 1,) if i else ()
        if len(left) > 1:
            listed = " ".join(map(str, left))
            steps.append(Step(f"{word} of {listed} is {taken}", "compare", skill, premises))
        else:
            steps.append(Step(f"last is {taken}", "conclude", "last", premises))
        order.append(taken)
        if i != at or error != "duplicate":
            left.remove(taken)
        if i == at and error == "drop":
            assert rng is not None
            left.remove(rng.choice(left))
    return tuple(steps), order


def _numbers(text: str | None) -> list[int] | None:
    """The numbers of a list written with spaces or commas; None where anything else stands in it."""
    words = re.split(r"[\s,;]+", unicodedata.normalize("NFKC", text or "").strip(" \t\n,;"))
    if not all(re.fullmatch(r"-?[0-9]{1,12}", w) for w in words):
        return None
    return [int(w) for w in words]


def _fault(left: list[int], listed: list[int], taken: int, descending: bool) -> str:
    if sorted(listed) != sorted(left):
        return f"looks at {' '.join(map(str, listed))} where {' '.join(map(str, left))} are left"
    right = max(listed) if descending else min(listed)
    return "" if taken == right else f"takes {taken}, not {right}"
