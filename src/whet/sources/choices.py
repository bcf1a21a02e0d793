"""Choosing: rows of choices with a rationale for each, and answering by their scores."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from whet.errors import WhetError
from whet.models.meter import Meter
from whet.models.policy import Policy
from whet.objectives.choices import score_choices
from whet.objectives.views import View
from whet.records import Row, Sample
from whet.sampling.sampler import SamplingSettings
from whet.seeds import rng_for
from whet.sources.answering import Answering
from whet.sources.collector import Collector, Scope
from whet.sources.problems import Problems
from whet.sources.teachers import ModelTeacher, Question, get_teacher, user
from whet.tasks import Problem, Task

LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Justify:
    """One rationale for each choice of a problem, wrong choices too; nobody is told which one is right.

    Args:
        source: `task` takes the problem's own, `none` has none, `start` asks the run's model as it was at the start, and
            anything else is a teacher (`model:NAME`, `http://HOST:PORT/v1#NAME`).
        listed: whether the choices are listed behind the question.
        budget: most tokens of a rationale that the start model writes.
    """

    def __init__(self, source: str = "task", listed: bool = True, budget: int = 64) -> None:
        self.source, self.listed, self.budget = source, listed, budget
        self.teacher = None if source in ("task", "none", "start") else get_teacher(source)
        self._written, self._meter = dict[str, tuple[str, ...]](), Meter()

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"choices", "choice rationales"} if self.source == "task" else {"choices"})

    def bind(self, policy: Policy) -> None:
        self._meter = policy.meter
        if self.source == "start":
            writer = policy.frozen()
            writer.meter = Meter()  # what a teacher computes is no part of the run's budget
            self.teacher = ModelTeacher(writer, SamplingSettings(self.budget, temperature=0.0))

    def __call__(self, problems: Sequence[Problem]) -> list[tuple[str, ...]]:
        """The rationales of each problem, choices in order; what was written once is not written again."""
        if self.source == "none":
            return [("",) * len(p.choices) for p in problems]
        if self.source == "task":
            return [p.choice_rationales for p in problems]
        missing = list({p.id: p for p in problems if p.id not in self._written}.values())
        if missing:
            assert self.teacher is not None, "bind first"
            asked = [self.question(p, choice) for p in missing for choice in p.choices]
            texts = iter([plain_words(reply) for reply in self.teacher.ask(asked, self._meter)])
            self._written |= {p.id: tuple(next(texts) for _ in p.choices) for p in missing}
        return [self._written[p.id] for p in problems]

    def question(self, problem: Problem, choice: str) -> Question:
        """What the writer is asked: the question, the choices and the one to argue for."""
        return Question(user(f"{listing(problem)}\nWhy {choice}?"), problem)

    def samples(self, policy: Policy, problem: Problem, rationales: Sequence[str]) -> list[Sample]:
        """One sample a choice, to be scored; `rollout_id` is the choice's place."""
        prompt = self.prompt(problem)
        found = []
        for place, (choice, rationale) in enumerate(zip(problem.choices, rationales, strict=True)):
            segments = policy.format.prompt(prompt) + policy.format.scored(rationale, choice)
            sample = Sample(segments, problem.id, problem.id, place)
            if len(sample) > policy.max_length:  # cutting it would cut the rationale or the choice away
                raise WhetError(f"problem '{problem.id}': question, rationale and choice have {len(sample)} tokens and the "
                                f"model takes {policy.max_length}; shorten the rationale or drop the row")  # fmt: skip
            found.append(sample)
        return found

    def prompt(self, problem: Problem) -> Problem:
        """The problem as it is asked."""
        return replace(problem, prompt=listing(problem), messages=()) if self.listed else problem


class Choices(Collector):
    """Rows of choices, each behind the question and its own rationale; `gold` is the place of the right one."""

    def __init__(self, justify: Justify) -> None:
        self.justify = justify
        self.needs = justify.needs | {"verifier"}

    def rows(self, problems: Problems, n: int, policy: Policy, scope: Scope) -> list[Row]:
        drawn = problems.draw(n)
        scope.remember(drawn)
        found = []
        for problem, rationales in zip(drawn, self.justify(drawn), strict=True):
            if problem.answer not in problem.choices:
                raise WhetError(f"problem '{problem.id}': the answer '{problem.answer}' is none of the choices "
                                f"({', '.join(problem.choices)})")  # fmt: skip
            samples = self.justify.samples(policy, problem, rationales)
            found.append(Row({"choices": samples}, {"gold": float(problem.choices.index(problem.answer))}))
        return found


class ByScore(Answering):
    """The answer is the choice with the best score (at a temperature above 0: drawn from their softmax).

    Problems without choices are answered as ever.

    Args:
        lengths: what a score is divided by; see `objectives.choices`.
        hidden: a view that hides the rationales, to measure what the model makes of the question alone.
    """

    def __init__(self, justify: Justify, lengths: str = "token", hidden: View | None = None) -> None:
        self.justify, self.lengths, self.hidden = justify, lengths, hidden

    def bind(self, policy: Policy) -> None:
        self.justify.bind(policy)

    def ask(
        self, policy: Policy, problems: Sequence[Problem], settings: SamplingSettings, n: int, seed: int
    ) -> list[list[Sample]]:
        if not all(self._fits(p) for p in problems):
            return super().ask(policy, problems, settings, n, seed)
        rationales = self.justify(problems)
        scored, found = self.scores(policy, problems, rationales), []
        for problem, reasons, scores in zip(problems, rationales, scored, strict=True):
            answers = []
            for i in range(n):
                place = int(scores.argmax())
                if settings.temperature > 0:
                    odds = (scores / settings.temperature).softmax(0).tolist()
                    (place,) = rng_for(seed, problem.id, i).choices(range(len(odds)), odds)
                response = policy.format.response(reasons[place], problem.choices[place])
                segments = [replace(s, sampled=True) for s in response]
                prompt = policy.format.prompt(self.justify.prompt(problem))
                answers.append(Sample(prompt + segments, problem.id, problem.id, i))
            found.append(answers)
        return found

    def scores(
        self, policy: Policy, problems: Sequence[Problem], rationales: Sequence[Sequence[str]], view: View | None = None
    ) -> list[Tensor]:
        """(K,) scores of each problem's choices."""
        asked = [self.justify.samples(policy, p, r) for p, r in zip(problems, rationales, strict=True)]
        return score_choices(policy, asked, self.lengths, view=view)

    def measure(self, policy: Policy, task: Task, problems: Sequence[Problem]) -> Mapping[str, float]:
        """How much the choice rests on the rationales.

        `sensitivity` is the mean fall of the chosen one's probability when every choice gets the rationale of another
        problem; `trust_masked` the mean probability of the chosen one with hidden rationales, `accuracy_masked` how often
        that one is right: a model that trusts itself more than that is not calibrated.
        """
        if not all(self._fits(p) for p in problems):
            return {}
        rationales = self.justify(problems)
        clean = [s.softmax(0) for s in self.scores(policy, problems, rationales)]
        swapped = [s.softmax(0) for s in self.scores(policy, problems, shuffled(rationales))]
        falls = [float(c.max() - s[c.argmax()]) for c, s in zip(clean, swapped, strict=True)]
        found = {"confidence": mean([float(c.max()) for c in clean]), "sensitivity": mean(falls)}
        if self.hidden is not None:
            masked = [s.softmax(0) for s in self.scores(policy, problems, rationales, self.hidden)]
            right = [float(p.choices[int(m.argmax())] == p.answer) for p, m in zip(problems, masked, strict=True)]
            found |= {"trust_masked": mean([float(m.max()) for m in masked]), "accuracy_masked": mean(right)}
        return found

    def _fits(self, problem: Problem) -> bool:
        return bool(problem.choices) and (self.justify.source != "task" or bool(problem.choice_rationales))


def listing(problem: Problem) -> str:
    """The question and its choices: `(a) red (b) blue`."""
    listed = " ".join(f"({LETTERS[i % 26]}) {choice}" for i, choice in enumerate(problem.choices))
    return f"{problem.prompt}\nChoices: {listed}"


def shuffled(rationales: Sequence[Sequence[str]]) -> list[list[str]]:
    """Each problem's rationales from the next problem, choice by choice (round and round where that has fewer)."""
    others = [*rationales[1:], *rationales[:1]]
    return [[other[i % len(other)] for i in range(len(own))] for own, other in zip(rationales, others, strict=True)]


def plain_words(reply: str) -> str:
    """A teacher's reply as bare words: what it concluded with and the tags of a format are not part of a rationale."""
    return re.sub(r"</?[a-z]+>", " ", reply.partition("<answer>")[0] or reply).strip()


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
