"""noisy: another task's problems, of which a known share of the gold answers is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from whet.errors import WhetError
from whet.seeds import rng_for
from whet.tasks.problem import Problem, Response, Split
from whet.tasks.task import Task, get_task
from whet.tasks.view import View


class Noisy(View):
    """A finite train split, a share of it with a wrong gold answer; validation and test are the task's.

    Planted is the task's corruption (answer and rationale) where it has a corruptor, else another problem's answer. The
    verifier must believe it: a task that checks answers without looking at the gold one cannot have noisy labels. Which
    problems are wrong is a function of `draw`, and those of a lower rate are among those of a higher one. The truth is
    kept in `data["truth"]`.

    Args:
        task: whose problems they are.
        rate: share that is made wrong, up to rounding.
        rows: problems of the train split; 0 takes a file whole.
        words: leave out problems whose gold answer has more words (long free text cannot be checked by rules); 0 keeps
            all.
        draw: which problems, and which of them are wrong.
    """

    name = "noisy"

    def __init__(self, task: Task, rate: float = 0.3, rows: int = 512, words: int = 0, draw: int = 0) -> None:
        if not 0 <= rate <= 1:
            raise WhetError(f"noisy labels: the rate is a share from 0 to 1, not {rate:g}")
        if not rows and "unlimited" in task.provides():
            raise WhetError(f"noisy labels: task '{task.name}' is generated and never ends; say how many rows")
        super().__init__(task)
        self.rate, self.rows, self.words, self.draw = rate, rows, words, draw
        self.description = f"{task.spec()} with a share of {rate:g} wrong gold answers"
        self.made: list[Problem] = []

    @classmethod
    def of(cls, rest: str) -> Noisy:
        """From `rate=0.3:rows=512|TASK`; nothing is the default task with a share of 0.3."""
        head, bar, inner = (rest or "|chain-sum").partition("|")
        try:
            parts = dict(part.split("=") for part in filter(None, head.replace(",", ":").split(":")))
            given = {key: float(value) if key == "rate" else int(value) for key, value in parts.items()}
            if not bar or given.keys() - {"rate", "rows", "words", "draw"}:
                raise ValueError
        except ValueError:
            raise WhetError(f"task 'noisy:{rest}': write noisy:rate=0.3:rows=512:words=0:draw=0|TASK") from None
        return cls(get_task(inner), **given)  # type: ignore[arg-type]

    def problems(self, split: Split, n: int | None = None, *, seed: int = 0, start: int = 0) -> list[Problem]:
        if split != "train":
            return self.task.problems(split, n, seed=seed, start=start)
        return self.train()[start : None if n is None else start + n]

    def train(self) -> list[Problem]:
        """All of it, made once. Raises WhetError where the verifier would not believe a wrong answer."""
        if not self.made:
            found = self.task.problems("train", self.rows or None, seed=self.draw)
            clean = [p for p in found if not self.words or len((p.answer or "").split()) <= self.words]
            if not clean:
                raise WhetError(
                    f"noisy labels: no gold answer of task '{self.task.name}' has {self.words} words or fewer"
                )
            order = list(range(len(clean)))
            rng_for(self.draw, "noisy labels").shuffle(order)
            made = list(clean)
            for place in order[: round(self.rate * len(clean))]:
                made[place] = mislabelled(self.task, clean, place, self.draw)
            self.made = made
        return self.made

    def provides(self) -> set[str]:
        return self.task.provides() - {"unlimited"}

    def spec(self) -> str:
        return f"noisy:rate={self.rate:g}:rows={self.rows}:words={self.words}:draw={self.draw}|{self.task.spec()}"


def mislabelled(task: Task, problems: Sequence[Problem], place: int, seed: int) -> Problem:
    """The problem at `place` with a gold answer that is wrong and that the task's verifier takes for right."""
    problem = problems[place]
    truth = problem.answer
    if truth is None:
        raise WhetError(f"noisy labels: problem '{problem.id}' has no gold answer")
    data = {**problem.data, "truth": truth}
    if "corruptions" in task.provides():
        bad = task.corrupt(problem, rng_for(seed, "noisy labels", problem.id))
        candidates = [replace(problem, answer=bad.answer, steps=bad.steps, data=data)]
    else:
        others = (*problems[place + 1 :], *problems[:place])
        answers = dict.fromkeys(p.answer for p in others if p.answer is not None)
        candidates = [replace(problem, answer=answer, data=data) for answer in answers]
    for candidate in candidates:
        told = [task.verify(candidate, Response(a, a)).value == 1.0 for a in (candidate.answer, truth) if a is not None]
        if told == [True, False]:
            return candidate
    raise WhetError(f"noisy labels: the verifier of task '{task.name}' does not go by the gold answer, so that a wrong one "
                    "changes nothing; use a task whose answers are compared (chain-sum, word-problem, lists)")  # fmt: skip
