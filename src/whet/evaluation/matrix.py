"""The stored problem x sample matrix of an evaluation; every metric is a pure function of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from whet.models.policy import Policy
from whet.sampling.sampler import SamplingSettings
from whet.sources import ask
from whet.tasks import Problem, Status, Task, Verdict


@dataclass(frozen=True, slots=True)
class Cell:
    """One answer.

    Attributes:
        value: the verdict's value; NaN where it could not be judged.
        tokens: its length, end token included.
        label: the answer as text, for votes; None where the format found none.
    """

    value: float
    status: Status
    tokens: int
    ended: bool
    label: str | None
    text: str = ""


@dataclass
class Matrix:
    """Problems x samples.

    Attributes:
        cells: one row of equally many cells for each problem.
    """

    problems: Sequence[Problem]
    cells: list[list[Cell]] = field(default_factory=list)

    @property
    def n(self) -> int:
        return len(self.cells)

    @property
    def k(self) -> int:
        return len(self.cells[0]) if self.cells else 0

    def as_dict(self) -> dict[str, list]:
        """Plain values, one list a problem: what every metric can be computed from again."""
        table: dict[str, list] = {"problem": [p.id for p in self.problems], "level": [p.level for p in self.problems]}
        for name in ("value", "status", "tokens", "ended", "label"):
            table[name] = [[getattr(cell, name) for cell in row] for row in self.cells]
        return table


def evaluate(
    policy: Policy, task: Task, problems: Sequence[Problem], *, k: int = 1, temperature: float = 0.0, seed: int = 0,
    max_new_tokens: int = 0,
) -> Matrix:  # fmt: skip
    """Answer each problem `k` times (greedily at temperature 0) and judge the answers.

    A task without a verifier (a preference file) still shows lengths and ends; its verdicts are NaN.
    """
    settings = SamplingSettings(max_new_tokens=max_new_tokens or task.max_answer_tokens(), temperature=temperature)
    unjudged = None if "verifier" in task.provides() else Verdict(math.nan, "error", reason="the task has no verifier")
    cells = []
    for problem, samples in zip(problems, ask(policy, problems, settings, k, seed), strict=True):
        row = []
        for sample in samples:
            response = policy.format.read(sample)
            verdict = unjudged or task.verify(problem, response)
            tokens = sum(len(s.ids) for s in sample.segments if s.sampled)
            row.append(Cell(verdict.value, verdict.status, tokens, sample.ended, response.answer, response.text))
        cells.append(row)
    return Matrix(problems, cells)
