"""Noisy labels: a view of a task's problems in which a known share of the gold answers is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from whet.errors import WhetError
from whet.seeds import rng_for
from whet.sources.problems import Uniform
from whet.tasks import Problem, Response, Split, Task


class NoisyLabels(Uniform):
    """The first so many problems of a split, a share of them with a wrong gold answer, drawn in epochs.

    Planted is the task's corruption (answer and rationale) where it has a corruptor, else another problem's answer. The
    verifier must believe it: a task that checks answers without looking at the gold one cannot have noisy labels. Which
    problems are wrong is a function of the seed, and those of a lower rate are among those of a higher one. The truth is
    kept in `data["truth"]`.

    Args:
        rate: share that is made wrong, up to rounding.
        limit: problems; 0 takes a file whole.
        words: leave out problems whose gold answer has more words (long free text cannot be checked by rules); 0 keeps
            all.

    Attributes:
        counts: how many problems there are, how many were left out, how many are wrong.
    """

    def __init__(self, rate: float, limit: int = 512, words: int = 0, split: Split = "train") -> None:
        if not 0 <= rate <= 1:
            raise WhetError(f"noisy labels: the rate is a share from 0 to 1, not {rate:g}")
        super().__init__(split, limit)
        self.rate, self.words = rate, words

    def bind(self, task: Task, seed: int) -> None:
        super().bind(task, seed)
        if self._finite is None:
            raise WhetError(f"noisy labels: task '{task.name}' is generated and never ends; say how many rows")
        clean = [p for p in self._finite if not self.words or len((p.answer or "").split()) <= self.words]
        if not clean:
            raise WhetError(f"noisy labels: no gold answer of task '{task.name}' has {self.words} words or fewer")
        order = list(range(len(clean)))
        rng_for(seed, "noisy labels").shuffle(order)
        wrong = order[: round(self.rate * len(clean))]
        self.counts = {"problems": len(clean), "left out, long answer": len(self._finite) - len(clean),
                       "wrong gold answers": len(wrong)}  # fmt: skip
        self._finite, self.size = list(clean), len(clean)
        for place in wrong:
            self._finite[place] = mislabelled(task, clean, place, seed)


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
