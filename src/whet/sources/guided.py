"""Guided answers: one model writes the steps of a solution, another one follows them.

    g = guide(question)          answer = responder(question, g)

The two may be different models with different tokenizers; only texts pass between them. An empty guidance leaves the
responder's prompt as it is without one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from whet.errors import unknown
from whet.models.meter import Meter
from whet.models.policy import Policy
from whet.records import Row, Sample
from whet.sampling.sampler import SamplingSettings
from whet.sources.answering import Answering, alone, behind
from whet.sources.collector import Scope, Stored, trim
from whet.sources.problems import Problems
from whet.sources.rollouts import ask, distinct
from whet.sources.teachers import Teacher
from whet.tasks import Problem, Response, Task
from whet.tasks.outline import unnumbered

ASK = "Write the steps. Do not solve."
FOLLOW = "Steps to follow:"
GUIDES = ("policy", "task", "none")
LEAST, MOST = 2, 6  # steps of a guidance

_NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")
_COMPUTED = re.compile(r"\d\s*[-+*/×÷^]\s*\d|=\s*[-+]?\d|\d\s*=")


def steps_of(guidance: str) -> list[str]:
    """Its steps, without their numbering."""
    return [unnumbered(line) for line in guidance.splitlines() if line.strip()]


def fault(guidance: str, problem: Problem) -> str:
    """Why a guidance is none: it has too few or too many steps, or it computes; "" where it is one.

    A computation is an operator between digits, an `=` beside a number, a number that is not in the question, or the answer
    (unless the question names it).
    """
    steps = steps_of(guidance)
    if not LEAST <= len(steps) <= MOST:
        return f"not {LEAST} to {MOST} steps"
    if any(_COMPUTED.search(step) for step in steps):
        return "computes"
    known = set(_numbers(problem.prompt))
    if any(number not in known for step in steps for number in _numbers(step)):
        return "a number that is not in the question"
    named = re.compile(rf"(?<!\w){re.escape(problem.answer)}(?!\w)") if problem.answer else None
    if named and not named.search(problem.prompt) and any(named.search(step) for step in steps):
        return "the answer"
    return ""


def _numbers(text: str) -> list[str]:
    return [number.replace(",", "") for number in _NUMBER.findall(text)]


def guide_prompt(problem: Problem) -> Problem:
    """What the guide is asked."""
    return replace(problem, prompt=f"{problem.prompt}\n{ASK}", messages=())


def guided_prompt(problem: Problem, guidance: str) -> Problem:
    """What the responder is asked; the plain problem where there is no guidance."""
    if not guidance:
        return problem
    return replace(problem, prompt=f"{problem.prompt}\n{FOLLOW}\n{guidance}", messages=())


class Guidances(Stored):
    """Guidances to learn, made once: the task's plans or a teacher's, without those that compute.

    Args:
        rows: questions; 0 takes `4096` of a generated task and all of a file.
        teacher: who writes them; None takes `Problem.plan`.
    """

    def __init__(self, rows: int = 1000, teacher: Teacher | None = None) -> None:
        super().__init__()
        self.n, self.teacher = rows or 4096, teacher
        if teacher is None:
            self.needs = frozenset({"plans"})

    def asked(self, problem: Problem) -> str:
        """What the teacher is asked."""
        return guide_prompt(problem).prompt

    def build(self, problems: Problems, policy: Policy, scope: Scope) -> list[Row]:
        drawn = distinct(problems.draw(self.n))
        if self.teacher is None:
            written = [p.plan for p in drawn]
        else:
            written = self.teacher.about(drawn, [self.asked(p) for p in drawn], scope.seed, policy.meter)
        kept, dropped = list[tuple[Problem, str]](), Counter[str]()
        for problem, text in zip(drawn, written, strict=True):
            guidance = "\n".join(steps_of(text))
            if why := fault(guidance, problem):
                dropped[f"dropped: {why}"] += 1
                continue
            kept.append((problem, guidance))
        samples = self.samples(kept, policy, scope)
        self.counts = {"questions": len(drawn), "kept": len(samples), **dropped}
        return [Row({"response": trim(sample, policy.max_length)}) for sample in samples]

    def samples(self, kept: Sequence[tuple[Problem, str]], policy: Policy, scope: Scope) -> list[Sample]:
        """What is learnt of problems and their guidances."""
        form = policy.format
        return [Sample(form.prompt(guide_prompt(p)) + form.response(guidance, None, kind="plan"), p.id, p.id)
                for p, guidance in kept]  # fmt: skip


class Guided(Answering):
    """The policy writes the guidance, the responder answers with it.

    Args:
        responder: loads the model that answers, which is never trained; None is the run's model as it was at the start.
        guide: `policy`; or `task`, whose plans show what the responder makes of perfect guidance; or `none`.
        budget: most tokens of a guidance.
    """

    def __init__(self, responder: Callable[[], Policy] | None = None, guide: str = "policy", budget: int = 128) -> None:
        if guide not in GUIDES:
            raise unknown("guide", guide, GUIDES)
        self.load, self.guide, self.budget = responder, guide, budget
        self.responder: Policy | None = None
        self._written: dict[str, str] = {}

    def bind(self, policy: Policy) -> None:
        self.responder = self.load() if self.load else policy.frozen()
        self.responder.ranks = policy.ranks

    def ask(
        self, policy: Policy, problems: Sequence[Problem], settings: SamplingSettings, n: int, seed: int
    ) -> list[list[Sample]]:
        assert self.responder is not None, "bind first"
        guided = self.guidances(policy, problems, settings, n, seed)
        asked = [guided_prompt(p, text) for p, own in zip(problems, guided, strict=True) for text, _ in own]
        with self.responder.metered(policy.meter):  # both generations are what an answer costs
            answers = iter(ask(self.responder, asked, settings, 1, seed))
        found = []
        for own in guided:
            row = []
            for i, (_, spent) in enumerate(own):
                (sample,) = next(answers)
                row.append(replace(behind(sample, spent), rollout_id=i))
            found.append(row)
        return found

    def guidances(
        self, policy: Policy, problems: Sequence[Problem], settings: SamplingSettings, n: int, seed: int
    ) -> list[list[tuple[str, list[int]]]]:
        """`n` guidances to each problem, as text and as the tokens that they took."""
        if self.guide != "policy":
            return [[(p.plan if self.guide == "task" else "", [])] * n for p in problems]
        own = replace(settings, max_new_tokens=self.budget)
        found = []
        for samples in ask(policy, [guide_prompt(p) for p in problems], own, n, seed):
            texts = [read.rationale or read.text for read in map(policy.format.read, samples)]
            found.append([(text.strip(), sample.sampled) for text, sample in zip(texts, samples, strict=True)])
        if settings.temperature == 0:
            self._written = {p.id: row[0][0] for p, row in zip(problems, found, strict=True)}
        return found

    def read(self, policy: Policy, sample: Sample) -> Response:
        assert self.responder is not None, "bind first"
        return self.responder.format.read(alone(sample))

    def measure(self, policy: Policy, task: Task, problems: Sequence[Problem]) -> Mapping[str, float]:
        """`plans_leak`: the share of written guidances that compute; `plans_exact`: of those that are the task's plan."""
        if self.guide != "policy":
            return {}
        if any(p.id not in self._written for p in problems):
            with policy.metered(Meter()):
                self.guidances(policy, problems, SamplingSettings(self.budget, temperature=0.0), 1, 0)
        texts = [self._written[p.id] for p in problems]
        whys = [fault(text, p) for text, p in zip(texts, problems, strict=True)]
        n = max(1, len(problems))
        found = {"plans_leak": sum(bool(why) and "steps" not in why for why in whys) / n}
        if "plans" in task.provides():
            exact = sum(steps_of(text) == steps_of(p.plan) for text, p in zip(texts, problems, strict=True))
            found["plans_exact"] = exact / n
        return found
