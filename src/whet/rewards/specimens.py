"""A few problems for each verifier of file tasks, so that it can be audited without a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from whet.errors import WhetError
from whet.tasks.problem import Problem, Response, Split, Verdict
from whet.tasks.task import Task
from whet.tasks.verify import Verifier, get_verifier

WORDS = ("red", "dark red", "blue", "green", "no colour")
NUMBERS = ("12", "-3", "1,250", "0.5", "7", "64")
FORMULAS = ("12", "\\frac{3}{4}", "x^2+1", "2\\sqrt{3}", "(1, 2)", "-7")
PROGRAMS = (
    "def f(x):\n    return x + 1",
    "def f(x):\n    y = 2 * x\n    return y + 5",
    "def f(x):\n    return x * x - 3",
    "def f(x):\n    return [x, x]",
)
SCHEMA = "CREATE TABLE t (name TEXT, n INTEGER); INSERT INTO t VALUES ('a', 3), ('b', 5), ('c', 5), ('d', 9);"
QUERIES = (
    "SELECT name FROM t WHERE n = 5",
    "SELECT count(*) FROM t",
    "SELECT n, count(*) FROM t GROUP BY n ORDER BY n DESC",
    "SELECT max(n) FROM t;",
)
REGEX = r"regex:(?:answer: )?(\w+)"

ANSWERS: dict[str, tuple[Sequence[str], Sequence[str]]] = {  # verifier -> gold answers, choices
    "exact": (("Paris", "12", "a b c", "No", "x = 4"), ()),
    "normalized": (("Paris", "12", "The Hague", "12:30", "no"), ()),
    "number": (NUMBERS, ()),
    "number:0.01": (NUMBERS, ()),
    "math": (FORMULAS, ()),
    "choice": (WORDS, WORDS),
    REGEX: (("Paris", "Rome", "12", "13"), ()),
    "python": (PROGRAMS, ()),
    "sql": (QUERIES, ()),
}
DATA: dict[str, Sequence[Mapping[str, Any]]] = {  # verifier -> what else its rows hold, where they need it
    "python": [
        {"entry": "f", "tests": [{"input": x, "output": value(x)} for x in (0, 3, -2)]}
        for value in (lambda x: x + 1, lambda x: 2 * x + 5, lambda x: x * x - 3, lambda x: [x, x])
    ],
    "sql": [{"schema": SCHEMA}] * len(QUERIES),
}


class Specimen(Task):
    """The problems of one verifier.

    Args:
        verifier_name: a key of `ANSWERS`.
        verifier: what judges; None takes the one of that name.
    """

    def __init__(self, verifier_name: str, verifier: Verifier | None = None) -> None:
        if verifier_name not in ANSWERS:
            raise WhetError(f"no problems to audit verifier '{verifier_name}' on; name a --task that uses it")
        self.name = f"specimen:{verifier_name}"
        self.verifier_name = verifier_name
        self._verifier = verifier or get_verifier(verifier_name)
        golds, choices = ANSWERS[verifier_name]
        data = DATA.get(verifier_name, [{}] * len(golds))
        self._problems = [
            Problem(f"{self.name}/{i}", f"Question {chr(ord('a') + i)}?", gold, choices=tuple(choices), data=data[i])
            for i, gold in enumerate(golds)
        ]

    def problems(self, split: Split, n: int | None = None, *, seed: int = 0, start: int = 0) -> list[Problem]:
        return self._problems[start : None if n is None else start + n]

    def verify(self, problem: Problem, response: Response) -> Verdict:
        return self._verifier(problem, response)
