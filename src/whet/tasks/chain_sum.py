"""chain-sum: several terms to add and subtract, with a running value a step.

From level 3 on a direct guess is nearly always wrong while each step is easy, which is what makes it the demo task.
Level 1 has only 81 problems (66 to train on, 6 to validate, 9 to test), so longer runs see them again.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from whet.tasks import chain
from whet.tasks.problem import Check, Corruption, Problem, Response, Verdict
from whet.tasks.task import Procedural
from whet.tasks.transforms import Transform, cycle
from whet.tasks.verify import number

# level: fewest terms, most terms, largest operand, whether terms are subtracted
LEVELS = {
    1: (2, 2, 9, False),
    2: (3, 3, 99, False),
    3: (4, 5, 99, False),
    4: (5, 6, 99, True),
    5: (6, 8, 999, True),
    6: (8, 10, 999, True),
}
WORDINGS = ("Compute {}.", "What is {}?")
FILLERS = ("", "The day is young. ", "Here is a sum. ", "Take your time. ")
SCALE = 10  # of the transform `scaling`
PLAN = "Add the terms from left to right, keeping the running total."
PLAN_MINUS = "Add or subtract the terms from left to right, keeping the running total."


class ChainSum(Procedural):
    """`Compute 12+45-7+30.` with the rationale `12+45=57`, `57-7=50`, `50+30=80`. No running value is negative."""

    name = "chain-sum"
    levels = tuple(LEVELS)
    default_level = 3
    description = "add and subtract 2 to 10 terms, keeping a running total"

    def draw(self, rng: random.Random, level: int) -> tuple[int, ...]:
        """The terms; a negative one is subtracted."""
        fewest, most, largest, minus = LEVELS[level]
        uniform = rng.random  # several times faster than randint, and a test problem takes ten draws
        terms: list[int] = []
        total = 0
        for _ in range(fewest + int(uniform() * (most - fewest + 1))):
            term = 1 + int(uniform() * largest)
            if minus and term <= total and uniform() < 0.5:
                term = -term
            terms.append(term)
            total += term
        return tuple(terms)

    def build(self, parameters: tuple[int, ...], level: int) -> Problem:
        return _word({"terms": parameters, "scale": 1, "wording": 0, "filler": 0}, level)

    def verify(self, problem: Problem, response: Response) -> Verdict:
        """Compares numbers."""
        return number(problem, response)

    def check(self, problem: Problem, response: Response) -> list[Check]:
        """One check a step, then the answer's."""
        return [*chain.check_steps(*_chain(problem.data), response.rationale), *super().check(problem, response)]

    def corrupt(self, problem: Problem, rng: random.Random) -> Corruption:
        """Labels: arithmetic, carry (off by a ten), copy (an operand) and skip (a term)."""
        start, operations = _chain(problem.data)
        labels = ("arithmetic", "carry", "copy", "skip") if len(operations) > 1 else ("arithmetic", "carry", "copy")
        return chain.corrupt(start, operations, rng, labels)

    def another_way(self, problem: Problem, rng: random.Random) -> Problem:
        """The terms behind the first one in turn, from any of them on and round again, as long as no running value is negative."""
        start, operations = _chain(problem.data)
        turned = [operations[i:] + operations[:i] for i in range(len(operations))]
        ways = [way for way in turned if all(chain.value_of(start, way[:i]) >= 0 for i in range(1, len(way)))]
        return replace(problem, steps=chain.steps_of(start, rng.choice(ways)))

    def transforms(self) -> Mapping[str, tuple[Transform, Transform]]:
        return {
            "paraphrase": cycle(_word, "wording", range(len(WORDINGS))),
            "filler": cycle(_word, "filler", range(len(FILLERS))),
            "scaling": cycle(_word, "scale", (1, SCALE)),
        }

    def max_answer_tokens(self) -> int:
        _, most, largest, _ = LEVELS[self.chosen[-1]]
        value, operand = len(str(most * largest * SCALE)), len(str(largest * SCALE))
        return (most - 1) * (2 * value + operand + 3) + value + 24


def _chain(data: Mapping[str, Any]) -> tuple[int, list[chain.Operation]]:
    first, *rest = (term * data["scale"] for term in data["terms"])
    return first, [("+", term) if term > 0 else ("-", -term) for term in rest]


def _word(data: Mapping[str, Any], level: int) -> Problem:
    start, operations = _chain(data)
    written = f"{start}" + "".join(f"{sign}{n}" for sign, n in operations)
    return Problem(
        id="",
        prompt=FILLERS[data["filler"]] + WORDINGS[data["wording"]].format(written),
        answer=str(chain.value_of(start, operations)),
        level=level,
        steps=chain.steps_of(start, operations),
        plan=PLAN_MINUS if any(sign == "-" for sign, _ in operations) else PLAN,
        category=f"level-{level}",
        data=data,
    )
