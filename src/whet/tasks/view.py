"""Views: another task's problems, changed on the way; what is said of answers stays the task's."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from whet.tasks.problem import Check, Corruption, Problem, Response, Verdict
from whet.tasks.task import Task


class View(Task):
    """A task that is seen through another; written `NAME:KEY=VALUE|TASK`.

    Args:
        task: whose problems they are.
    """

    takes_spec = True

    def __init__(self, task: Task) -> None:
        self.task, self.version, self.levels, self.judged = task, task.version, task.levels, task.judged
        self.gives_shares = task.gives_shares

    def verify(self, problem: Problem, response: Response) -> Verdict:
        return self.task.verify(problem, response)

    def verify_all(self, pairs: Sequence[tuple[Problem, Response]]) -> list[Verdict]:
        return self.task.verify_all(pairs)

    def check(self, problem: Problem, response: Response) -> list[Check]:
        return self.task.check(problem, response)

    def corrupt(self, problem: Problem, rng: random.Random) -> Corruption:
        return self.task.corrupt(problem, rng)

    def statements(self, n: int, *, seed: int = 0) -> Iterable[str]:
        return self.task.statements(n, seed=seed)

    def provides(self) -> set[str]:
        return self.task.provides()

    def max_answer_tokens(self) -> int:
        return self.task.max_answer_tokens()
