"""Collector: how a batch of problems becomes rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from whet.errors import WhetError
from whet.models.policy import Policy
from whet.records import Row, Sample
from whet.sampling.sampler import SamplingSettings
from whet.seeds import rng_for, seed_for
from whet.sources.problems import Problems, Uniform, epochs
from whet.tasks import Problem, Task, get_task


@dataclass
class Scope:
    """What a collector may know.

    Attributes:
        task: the run's task.
        seed: the step's seed (the stage's, in `prepare`).
        known: every problem met so far in this stage, by id: rows hold ids.
        share: how much of the stage is done, from 0, for what changes as it goes on.
    """

    task: Task
    seed: int
    known: dict[str, Problem] = field(default_factory=dict)
    share: float = 0.0

    def remember(self, problems: Sequence[Problem]) -> None:
        self.known.update((p.id, p) for p in problems)


class Collector:
    """Makes rows.

    Attributes:
        needs: what the task must provide (`demonstrations`, `verifier`, `preferences` ...).
        settings: how it samples, or None where it does not.
        own_budget: whether `settings` hold a generation budget that was asked for; else it is the task's.
        group: samples of one problem; 1 where there are no groups.
        counts: what `prepare` made and dropped, for the log.
        condition: what the policy announces before its answers from this stage on, known once the collector is bound; None
            leaves it as it is.
    """

    needs: frozenset[str] = frozenset()
    settings: SamplingSettings | None = None
    own_budget: bool = False
    group: int = 1
    counts: Mapping[str, int] = {}
    condition: str | None = None

    @property
    def temperature(self) -> float:
        """The one temperature of old, new and reference log-probs: that of sampling, or 1."""
        return self.settings.temperature or 1.0 if self.settings else 1.0

    @property
    def budget(self) -> int:
        """Most tokens of a sampled answer; 0 where nothing is sampled."""
        return self.settings.max_new_tokens if self.settings else 0

    def bind(self, task: Task) -> None:
        """Called when the stage is entered, before anything else."""
        if self.settings is not None and not self.own_budget:
            self.settings = replace(self.settings, max_new_tokens=task.max_answer_tokens())

    def prepare(self, problems: Problems, policy: Policy, scope: Scope) -> None:
        """Once, when the stage is entered, before its start weights are restored: offline data is made here."""

    def rows(self, problems: Problems, n: int, policy: Policy, scope: Scope) -> list[Row]:
        """The rows of one step, from `n` problems."""
        raise NotImplementedError

    def report(self) -> Mapping[str, float]:
        """What it would have logged after each step."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Demonstrations(Collector):
    """Gold responses, learnt whole.

    Args:
        rationale: whether the gold rationale stands before the answer; or of which share of the problems, drawn by their ids.
        answer_first: whether it stands behind it, where it cannot help to find it.
    """

    needs = frozenset({"demonstrations"})

    def __init__(self, rationale: float = True, answer_first: bool = False) -> None:
        if not 0 <= rationale <= 1:
            raise WhetError(f"the share of demonstrations with a rationale is from 0 to 1, not {rationale:g}")
        self.rationale, self.answer_first = rationale, answer_first

    def rows(self, problems: Problems, n: int, policy: Policy, scope: Scope) -> list[Row]:
        drawn = problems.draw(n)
        scope.remember(drawn)
        samples = [
            policy.format.demonstration(p, rationale=self._shown(p), answer_first=self.answer_first) for p in drawn
        ]
        return [Row({"response": trim(s, policy.max_length)}) for s in samples]

    def _shown(self, problem: Problem) -> bool:
        return rng_for(0, "rationale", problem.id).random() < self.rationale


def calibration_rows(policy: Policy, own: Task, seed: int, n: int, task: str = "") -> list[Row]:
    """`n` demonstrations of a named task, or of the `own` one, drawn beside those that are learnt from."""
    source = get_task(task) if task else own
    if "demonstrations" not in source.provides():
        raise WhetError(
            f"weights calibrate on demonstrations, and task '{source.name}' has none: provide rows with an answer"
        )
    problems = Uniform()
    problems.bind(source, seed_for(seed, "calibration"))
    return Demonstrations().rows(problems, n, policy, Scope(source, 0))


class Stored(Collector):
    """Rows made once, at the stage's entry, and then drawn in epochs. Subclasses say how to make them."""

    def __init__(self) -> None:
        self.stored: list[Row] = []
        self.cursor = 0
        self.seed = 0
        self.counts = {}

    def build(self, problems: Problems, policy: Policy, scope: Scope) -> list[Row]:
        """All rows; fill `self.counts` with what was kept and what each filter dropped."""
        raise NotImplementedError

    def prepare(self, problems: Problems, policy: Policy, scope: Scope) -> None:
        self.stored = self.build(problems, policy, scope)
        self.cursor, self.seed = 0, scope.seed
        if not self.stored:
            found = ", ".join(f"{k} {v}" for k, v in self.counts.items())
            raise WhetError(f"{type(self).__name__} found nothing to learn from ({found}): use an easier level, more "
                            "problems or more samples a problem")  # fmt: skip

    def rows(self, problems: Problems, n: int, policy: Policy, scope: Scope) -> list[Row]:
        start, self.cursor = self.cursor, self.cursor + n
        return [self.stored[i] for i in epochs(len(self.stored), start, n, self.seed)]

    def state_dict(self) -> dict[str, Any]:
        return {"rows": [r.state() for r in self.stored], "cursor": self.cursor, "seed": self.seed,
                "counts": self.counts}  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.stored = [Row.from_state(r) for r in state["rows"]]
        self.cursor, self.seed, self.counts = int(state["cursor"]), int(state["seed"]), dict(state["counts"])


def trim(sample: Sample, limit: int) -> Sample:
    """Cut a sample to `limit` tokens from its end; a response that is cut has no end token."""
    extra = len(sample) - limit
    if extra > 0:
        segments = list(sample.segments)
        while extra > 0 and segments:
            last = segments.pop()
            if len(last.ids) > extra:
                last.ids = last.ids[:-extra]
                segments.append(last)
                break
            extra -= len(last.ids)
        sample.segments = segments
    return sample
