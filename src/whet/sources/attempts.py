"""The pool of attempts: candidate answers to problems with their verdicts, which critique fine-tuning, mistake tuning and
feedback-aware fine-tuning learn from in their own ways.

An attempt is a task's gold response, an answer that the policy sampled, or a wrong one that the task's corruptor wrote. Each
is judged once; repeats of a problem's response are dropped, and so are answers that were cut off. A pool is a function of
(seed, problems, policy), and the rows made of it are kept in the checkpoints (`Stored`), so a resumed run makes none anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from whet.errors import WhetError, unknown
from whet.models.policy import Policy
from whet.records import Sample, Segment
from whet.sampling.sampler import SamplingSettings
from whet.seeds import rng_for, seed_for
from whet.sources.collector import Scope
from whet.sources.rollouts import ask
from whet.tasks import Check, Problem, Response, Task, Verdict

SOURCES = ("auto", "policy", "corruptor", "mixed")
TRIES = 20  # corruptions asked for each one that is wanted: some problems have few different ones


@dataclass(frozen=True)
class Attempt:
    """A candidate answer.

    Attributes:
        origin: gold, policy or corruptor.
        checks: the task's, in order.
        label: the corruptor's name of the error; of another wrong attempt what `error_type` finds; "" of a right one.
        sample: the token ids, where the policy sampled it.
    """

    problem: Problem
    response: Response
    verdict: Verdict
    checks: tuple[Check, ...]
    origin: str
    label: str = ""
    sample: Sample | None = None

    @property
    def right(self) -> bool:
        return self.verdict.value == 1.0

    def text(self) -> str:
        """The attempt in words, as it is shown to a reader: without the tags of a format."""
        response = self.response
        if response.answer is None or response.answer == response.text:
            return f"{response.rationale}\n{response.text}" if response.rationale else response.text
        return "\n".join(part for part in (response.rationale, f"Answer: {response.answer}") if part)

    def segments(self, policy: Policy) -> list[Segment]:
        """What is learnt of it: the sampled ids themselves, or the response as the format writes it."""
        if self.sample is not None:
            return [replace(s, ids=list(s.ids), learn=True) for s in self.sample.segments if s.sampled]
        return policy.format.response(self.response.rationale, self.response.answer)


def error_type(checks: Sequence[Check]) -> str:
    """The type of the first error: what stands before the colon of the first failed check's reason, else its name.

    Tasks whose checks name the slip (`copy: 'swap Q B' is due`) are so clustered without a reader; "" where all passed.
    """
    failed = next((c for c in checks if c.result == "fail"), None)
    if failed is None:
        return ""
    keyword, colon, _ = failed.reason.partition(":")
    return keyword if colon and keyword.replace(" ", "").isalpha() and len(keyword.split()) <= 2 else failed.name


def error_cause(checks: Sequence[Check]) -> str:
    """Where and why an attempt is wrong, in one sentence; "" where all checks passed."""
    failed = next((c for c in checks if c.result == "fail"), None)
    return "" if failed is None else f"{failed.name}: {failed.reason or 'it is wrong'}"


def feedback_text(names: Sequence[str], checks: Sequence[Check], reasons: bool = True) -> str:
    """The outcome of named checks as text, a line for each and always in the order of `names`: `name: success`, or
    `name: fail, reason`. A check that does not apply has not failed; one that was not made has.
    """
    found = {check.name: check for check in checks}
    lines = []
    for name in names:
        check = found.get(name, Check(name, "fail", "not checked"))
        reason = f", {check.reason}" if reasons and check.reason else ""
        lines.append(f"{name}: fail{reason}" if check.result == "fail" else f"{name}: success")
    return "\n".join(lines)


class Attempts:
    """Makes the pool.

    Args:
        source: where attempts beside the gold response come from: `policy` samples them, `corruptor` is the task's, `mixed`
            fills up the policy's different ones with the corruptor's where the task has one, `auto` is the corruptor where
            the task has one, else the policy.
        samples: attempts a problem beside the gold response, at most.
        temperature: of the policy's.
        gold: whether the gold response is one.

    Attributes:
        counts: what the last pool holds and what was dropped.
    """

    def __init__(self, source: str = "auto", samples: int = 4, temperature: float = 1.0, gold: bool = True) -> None:
        if source not in SOURCES:
            raise unknown("source of attempts", source, SOURCES)
        if samples < 0 or (samples == 0 and not gold):
            raise WhetError(f"attempts: samples must be at least {0 if gold else 1}, not {samples}")
        if temperature <= 0 and samples > 1 and source != "corruptor":
            raise WhetError("attempts: several samples a problem need a temperature above 0, or they are all alike")
        self.source, self.samples, self.temperature, self.gold = source, samples, temperature, gold
        self.counts: Counter[str] = Counter()

    @property
    def needs(self) -> frozenset[str]:
        """What the task must provide."""
        own = {"corruptions"} if self.source == "corruptor" and self.samples else set()
        return frozenset({"verifier"} | own | ({"demonstrations"} if self.gold else set()))

    def make(self, problems: Sequence[Problem], policy: Policy, scope: Scope) -> list[list[Attempt]]:
        """The attempts at each problem, the gold one first."""
        self.counts = Counter({"problems": len(problems)})
        corrupts = "corruptions" in scope.task.provides()
        asked = self.source in ("policy", "mixed") or (self.source == "auto" and not corrupts)
        sampled: list[list[Sample]] = [[] for _ in problems]
        if asked and self.samples:
            settings = SamplingSettings(scope.task.max_answer_tokens(), self.temperature)
            sampled = ask(policy, problems, settings, self.samples, seed_for(scope.seed, "attempts"))
        found = []
        for problem, samples in zip(problems, sampled, strict=True):
            own: dict[tuple[str, str | None], Attempt] = {}
            for attempt in self._candidates(problem, samples, policy, scope, corrupts and self.source != "policy"):
                if attempt.origin != "gold" and sum(a.origin != "gold" for a in own.values()) == self.samples:
                    break
                own.setdefault((attempt.response.rationale, attempt.response.answer), attempt)
            found.append(list(own.values()))
            for attempt in found[-1]:
                self.counts[attempt.origin] += 1
                self.counts["right"] += attempt.right
        self.counts["attempts"] = sum(map(len, found))
        return found

    def _candidates(
        self, problem: Problem, samples: Sequence[Sample], policy: Policy, scope: Scope, corrupts: bool
    ) -> Iterator[Attempt]:
        task = scope.task
        if self.gold and problem.answer is not None:
            response = _given(problem.rationale, problem.answer)
            yield _judged(task, problem, response, "gold")
        for sample in samples:
            if not sample.ended:
                self.counts["cut off"] += 1
                continue
            policy.meter.verifier_calls += 1
            attempt = _judged(task, problem, policy.format.read(sample), "policy")
            if attempt.verdict.status in ("timeout", "error"):
                self.counts["not judged"] += 1
                continue
            kept = sample.copy()
            kept.per_token = {}
            yield replace(attempt, label=error_type(attempt.checks), sample=kept)
        rng = rng_for(scope.seed, "corruptions", problem.id)
        for _ in range(TRIES * self.samples if corrupts else 0):
            wrong = task.corrupt(problem, rng)
            yield _judged(task, problem, _given(wrong.rationale, wrong.answer), "corruptor", wrong.label)


def _given(rationale: str, answer: str) -> Response:
    return Response("\n".join(filter(None, (rationale, answer))), answer, rationale)


def _judged(task: Task, problem: Problem, response: Response, origin: str, label: str = "") -> Attempt:
    verdict = task.verify(problem, response)
    return Attempt(problem, response, verdict, tuple(task.check(problem, response)), origin, label)
