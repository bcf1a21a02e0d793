"""Conditioned likelihood: learn answers of every quality, each announced for what it is, then ask for good ones.

A row is the question, a condition (`[CORRECT RATIONALE]`, or the checker's feedback) and the response; what is announced when
the policy is asked is fixed: the condition of good answers. Mistake tuning and feedback-aware fine-tuning are two ways to
say the condition, and return-conditioned training is a third. With nothing to announce it is plain fine-tuning.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from whet.errors import WhetError, unknown
from whet.models.policy import Policy
from whet.records import Row, Sample, Segment
from whet.seeds import rng_for
from whet.sources.attempts import Attempt, Attempts
from whet.sources.collector import Scope, Stored
from whet.sources.problems import Problems
from whet.sources.rollouts import distinct
from whet.tasks import Task

LOSSES = ("response", "condition", "all")
Choose = Callable[[Sequence[Attempt]], Sequence[Attempt]]


class Conditioned(Stored):
    """Attempts, each behind its condition.

    Args:
        attempts: the pool.
        n: problems that attempts are made at.
        announce: what is told before an attempt; "" tells nothing.
        wanted: what the policy announces from then on when it is asked; "" nothing.
        choose: which of a problem's attempts are learnt.
        loss_on: `response`; `condition` (the response and what announces it); `all` (the question too).
        drop: share of rows whose condition is left out, so that the policy can also be asked without one.
    """

    def __init__(
        self, attempts: Attempts, n: int, announce: Callable[[Task, Attempt], str], wanted: Callable[[Task], str],
        choose: Choose = list, loss_on: str = "response", drop: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        if n < 1:
            raise WhetError(f"attempts are made once, at a fixed number of problems: at least 1, not {n}")
        if loss_on not in LOSSES:
            raise unknown("loss_on", loss_on, LOSSES)
        if not 0 <= drop <= 1:
            raise WhetError(f"drop is a share of rows, from 0 to 1, not {drop}")
        self.attempts, self.n, self.announce, self.wanted = attempts, n, announce, wanted
        self.choose, self.loss_on, self.drop = choose, loss_on, drop
        self.needs = attempts.needs

    def bind(self, task: Task) -> None:
        super().bind(task)
        self.condition = self.wanted(task)

    def build(self, problems: Problems, policy: Policy, scope: Scope) -> list[Row]:
        drawn = distinct(problems.draw(self.n))
        pool = self.attempts.make(drawn, policy, scope)
        rows: list[Row] = []
        counts: Counter[str] = Counter()
        for attempt in (a for at_one in pool for a in self.choose(at_one)):
            told = self.announce(scope.task, attempt)
            if self.drop and rng_for(scope.seed, "drop", attempt.problem.id, len(rows)).random() < self.drop:
                told = ""
            prompt = policy.format.prompt(attempt.problem, condition=told)
            sample = Sample([*prompt, *attempt.segments(policy)], attempt.problem.id, attempt.problem.id)
            if len(sample) > policy.max_length:  # a row that is cut says something else than its condition
                counts["too long"] += 1
                continue
            counts["rows"] += 1
            counts["right rows"] += attempt.right
            counts["announced as wanted"] += bool(told) and told == self.condition
            rows.append(Row({"response": learn(sample, self.loss_on)}, {"right": float(attempt.right)}))
        self.counts = {**self.attempts.counts, **counts}
        return rows


def learn(sample: Sample, loss_on: str) -> Sample:
    """The sample with what `loss_on` says learnt besides its response; its first token has nothing to be predicted from."""
    kinds = {"response": (), "condition": ("condition",), "all": ("question", "condition")}[loss_on]
    segments: list[Segment] = []
    for segment in sample.segments:
        segment.learn = segment.learn or segment.kind in kinds
        if segment.learn and not segments:
            segments.append(Segment("start", segment.ids[:1]))
            segment.ids = segment.ids[1:]
        segments.append(segment)
    sample.segments = segments
    return sample
