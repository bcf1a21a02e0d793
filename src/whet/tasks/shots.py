"""shots: another task's problems behind solved examples, with or without their rationales.

`shots:n=2:explain=1:draw=3|logic:level=2` puts two solved problems of the task's train split before each question. The
draws with and without rationales show the same examples, so that they differ in the rationales alone.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace

from whet.errors import WhetError
from whet.tasks.problem import Problem, Split
from whet.tasks.task import Task, get_task
from whet.tasks.view import View

SEED = 1  # of the examples: another one than a run's, or they might be what it has just learnt
POOL = 100_000


class Shots(View):
    """A task whose questions come with examples.

    Args:
        task: whose problems they are; verified as ever.
        n: examples before each question.
        explain: whether they show their rationales.
        draw: which examples: another draw has others.
        room: most bytes of the examples and the question. What does not fit is dropped, whole examples at a time, and
            `data["shots"]` says how many are left; a token has one byte at least, so the prompt fits as many tokens.
    """

    name = "shots"

    def __init__(self, task: Task, n: int = 2, explain: bool = False, draw: int = 0, room: int = 768) -> None:
        if n < 1 or draw < 0:
            raise WhetError(f"shots: n is at least 1 and draw at least 0, not {n} and {draw}")
        have = task.provides()
        if "demonstrations" not in have or (explain and "rationales" not in have):
            lacks = "rationales" if "demonstrations" in have else "demonstrations"
            raise WhetError(f"shots: task '{task.name}' has no {lacks} to show")
        super().__init__(task)
        self.n, self.explain, self.draw, self.room = n, explain, draw, room
        self.description = f"{n} solved examples before each question of {task.spec()}"

    @classmethod
    def of(cls, rest: str) -> Shots:
        """From `n=2:explain=1:draw=0|TASK`; nothing is two examples of the default task."""
        head, bar, inner = (rest or "|chain-sum").partition("|")
        try:
            given = {
                k: int(v) for k, v in (part.split("=") for part in filter(None, head.replace(",", ":").split(":")))
            }
            if not bar:
                raise ValueError
            return cls(get_task(inner), **{**given, "explain": bool(given.get("explain", 0))})
        except (ValueError, TypeError):
            raise WhetError(f"task 'shots:{rest}': write shots:n=2:explain=1:draw=0|TASK") from None

    def problems(self, split: Split, n: int | None = None, *, seed: int = 0, start: int = 0) -> list[Problem]:
        return [self._with_shots(p) for p in self.task.problems(split, n, seed=seed, start=start)]

    def _with_shots(self, problem: Problem) -> Problem:
        rng = random.Random(f"{problem.id}/{self.draw}")
        pool = self._examples(rng)
        examples = [p for p in pool if p.prompt != problem.prompt and p.answer is not None][: self.n]
        while examples and sum(map(_size, [*examples, problem])) > self.room:
            examples.pop()  # by their size with rationales, so that both kinds of prompt keep the same ones
        turns: list[Mapping[str, str]] = []
        for example in examples:
            told = {"rationale": example.rationale} if self.explain else {}
            turns += [{"role": "user", "content": example.prompt},
                      {"role": "assistant", "answer": example.answer or "", **told}]  # fmt: skip
        asked = problem.messages or ({"role": "user", "content": problem.prompt},)
        data = {**problem.data, "shots": len(examples), "examples": tuple(e.id for e in examples)}
        return replace(problem, messages=(*turns, *asked), data=data)

    def _examples(self, rng: random.Random) -> list[Problem]:
        if "unlimited" in self.task.provides():
            return self.task.problems("train", self.n + 2, seed=SEED, start=rng.randrange(POOL))
        known = self.task.problems("train", None)
        return rng.sample(known, min(len(known), self.n + 2))

    def spec(self) -> str:
        return f"shots:n={self.n}:explain={int(self.explain)}:draw={self.draw}|{self.task.spec()}"


def _size(problem: Problem) -> int:
    return len(f"{problem.prompt}{problem.rationale}{problem.answer}".encode())
