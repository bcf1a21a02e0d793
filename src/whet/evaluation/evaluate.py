"""Before and after: the evaluations that a run reports."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from whet.evaluation import metrics
from whet.evaluation.matrix import Matrix, evaluate
from whet.evaluation.probes import Probe
from whet.models.meter import Meter
from whet.models.policy import Policy
from whet.seeds import seed_for
from whet.sources import Answering
from whet.tasks import Problem, Split, Task, get_task


@dataclass(frozen=True)
class Plan:
    """How much is evaluated.

    Attributes:
        n: problems of the test split.
        k: sampled answers to each (pass@k); 0 leaves sampling out.
        validation: problems of the validation split, at each evaluation during training.
        others: task specs whose accuracy shows what is forgotten.
        n_others: problems of each.
        look_others: problems of each at each evaluation during training; 0 leaves them out.
        seed: of the problems and the sampled answers; the same before and after, and over runs.
    """

    n: int = 512
    k: int = 16
    validation: int = 256
    others: tuple[str, ...] = ()
    n_others: int = 256
    look_others: int = 0
    seed: int = 0


class Evaluator:
    """Evaluates a policy on a task; it spends no training budget.

    Args:
        answering: how answers come about, where the policy does not give them by itself.
        probes: what is measured besides.
    """

    def __init__(
        self, task: Task, plan: Plan, answering: Answering | None = None, probes: Sequence[Probe] = ()
    ) -> None:
        self.task = task
        self.plan = plan
        self.answering = answering or Answering()
        self.probes = probes
        self.others = {spec: get_task(spec) for spec in plan.others}

    def bind(self, policy: Policy) -> None:
        """Once, when the policy has the run's first weights: who stays as it is, is copied here."""
        self.answering.bind(policy)
        for probe in self.probes:
            probe.bind(policy, self.task, self.plan.seed)

    def probed(self, policy: Policy, greedy: Matrix, *, look: bool = False) -> dict[str, float]:
        """What the probes measure, at a look at validation or before and after."""
        asked = [probe for probe in self.probes if probe.looks or not look]
        return {name: value for probe in asked for name, value in probe.measure(policy, greedy).items()}

    def sketches(self, policy: Policy) -> dict[str, str]:
        """What the probes keep of a run's end, to be compared between runs."""
        return {name: text for probe in self.probes for name, text in probe.sketches(policy).items()}

    def validation(self, policy: Policy, task: Task | None = None) -> dict[str, float]:
        """Greedy accuracy and its companions on validation (of `task`, where a stage trains on another), for choosing; and the
        mean accuracy on `others`, if they are looked at, which is for reports and chooses nothing."""
        found = self._matrix(policy, task or self.task, "validation", self.plan.validation)
        cells = [c for row in found.cells for c in row]
        judged = metrics.accuracy(found)
        accuracy = float(judged["value"])
        looked = self.forgetting(policy, self.plan.look_others) if self.plan.look_others and self.others else {}
        others = {"others": sum(found["value"] for found in looked.values()) / len(looked)} if looked else {}
        return {
            "accuracy": accuracy,
            "error": math.sqrt(accuracy * (1 - accuracy) / max(1, judged["n"])),
            "tokens": sum(c.tokens for c in cells) / max(1, len(cells)),
            "ended": metrics.share(cells, "ended"),
            "unparseable": metrics.share(cells, "unparseable"),
            **others,
            **self.probed(policy, found, look=True),
        }

    def test(self, policy: Policy) -> tuple[dict[str, Any], Matrix]:
        """The summary on test, and the greedy matrix."""
        greedy, sampled = self.matrices(policy)
        return metrics.summary(greedy, sampled), greedy

    def matrices(self, policy: Policy) -> tuple[Matrix, Matrix | None]:
        """The greedy and the sampled matrix on test."""
        greedy = self._matrix(policy, self.task, "test", self.plan.n)
        return greedy, self._matrix(policy, self.task, "test", self.plan.n, self.plan.k) if self.plan.k else None

    def measures(self, policy: Policy) -> dict[str, float]:
        """What the way of answering measures besides, on the test problems."""
        problems = self.task.problems("test", self.plan.n, seed=self.plan.seed)
        with policy.metered(Meter()):
            return dict(self.answering.measure(policy, self.task, problems))

    def aspects(self, policy: Policy) -> dict[str, dict[str, Any]]:
        """Greedy accuracy on each further set of problems that the task names."""
        sets = self.task.aspects(self.plan.n, seed=self.plan.seed)
        return {
            name: dict(metrics.accuracy(self._answered(policy, self.task, problems, name)))
            for name, problems in sets.items()
        }

    def forgetting(self, policy: Policy, n: int = 0) -> dict[str, dict[str, Any]]:
        """Greedy test accuracy on every other task, on `n` problems of each or as many as planned."""
        return {
            spec: dict(metrics.accuracy(self._matrix(policy, task, "test", n or self.plan.n_others)))
            for spec, task in self.others.items()
        }

    def _matrix(self, policy: Policy, task: Task, split: Split, n: int, k: int = 0) -> Matrix:
        return self._answered(policy, task, task.problems(split, n, seed=self.plan.seed), split, k)

    def _answered(self, policy: Policy, task: Task, problems: Sequence[Problem], name: str, k: int = 0) -> Matrix:
        seed = seed_for(self.plan.seed, "evaluation", task.name, name)
        with policy.metered(Meter()):
            return evaluate(policy, task, problems, k=k or 1, temperature=1.0 if k else 0.0, seed=seed,
                            answering=self.answering)  # fmt: skip


def sample_rows(matrix: Matrix, when: str, n: int = 64) -> Sequence[Mapping[str, Any]]:
    """Lines for `samples.jsonl`: the first `n` problems with their first answer."""
    return [
        {"when": when, "problem": p.id, "prompt": p.prompt, "gold": p.answer, "answer": row[0].text,
         "correct": row[0].value == 1.0, "status": row[0].status, "tokens": row[0].tokens}
        for p, row in list(zip(matrix.problems, matrix.cells, strict=True))[:n]
    ]  # fmt: skip
