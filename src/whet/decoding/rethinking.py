"""Self-rethinking (2403.20046, section 4): is there a mistake in it like those that I make? Then think again.

    1  answer with a rationale
    2  shown types of error, an example of one (question, right and wrong rationale, cause): does the last rationale make a
       similar mistake?
    3  no: that is the answer.  Yes: a new rationale, with the example and the suspect one in sight; to 2, `rounds` times

It asks for judgement in words, so the speaker must follow instructions: a server, or a model that was tuned to. A question
takes 2 calls where nothing is suspected, and at most 1 + 2 x rounds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from whet.decoding.revising import revise
from whet.errors import WhetError
from whet.seeds import rng_for, seed_for
from whet.sources import Attempt, Question, Teacher, error_cause, user
from whet.tasks import Problem

COT = '{question}\n\nLet\'s think step by step, and end with the answer behind "Answer:".'
CAUSE = """{question}

The right rationale:
{correct}

A student's rationale:
{incorrect}

In one sentence: what is the student's mistake?"""
EXAMPLE = """Typical mistakes: {types}.

An example. Question: {question}
A right rationale:
{correct}
A wrong one:
{incorrect}
Its mistake: {cause}
"""
JUDGE = """{example}
Now this question: {asked}
My rationale:
{answer}

Does my rationale make a similar mistake? Say yes or no."""
REWRITE = """{example}
Now this question: {asked}
A rationale that may make a similar mistake:
{answer}

Avoid the mistake. Think step by step again, and end with the answer behind "Answer:"."""


@dataclass(frozen=True)
class Mistake:
    """A row of an error set: a question with a right and a wrong rationale, the wrong one's type of error and cause."""

    question: str
    correct: str
    incorrect: str
    type: str
    cause: str


def error_set(pool: Sequence[Sequence[Attempt]], teacher: Teacher | None = None) -> list[Mistake]:
    """An error set from a pool of attempts: each wrong one beside the problem's gold one.

    Args:
        teacher: who writes the causes, shown both rationales; by default the task's checks.
    """
    pairs = [(right, wrong) for attempts in pool
             for right in [a for a in attempts if a.origin == "gold"][:1]
             for wrong in attempts if wrong.verdict.status == "wrong"]  # fmt: skip
    causes = [error_cause(wrong.checks) for _, wrong in pairs]
    if teacher is not None:
        texts = [
            CAUSE.format(question=right.problem.prompt, correct=right.text(), incorrect=wrong.text())
            for right, wrong in pairs
        ]
        causes = teacher.reply([Question(user(text), wrong.problem, wrong)
                                for text, (_, wrong) in zip(texts, pairs, strict=True)])  # fmt: skip
    return [Mistake(right.problem.prompt, right.text(), wrong.text(), wrong.label, cause)
            for (right, wrong), cause in zip(pairs, causes, strict=True)]  # fmt: skip


@dataclass
class Rethinking:
    """Self-rethinking.

    Attributes:
        speaker: who answers, judges and answers again.
        mistakes: an error set; each judgement is shown one of it, drawn at random.
        rounds: revisions at most (k; 1 in the paper's main table).
        calls: replies of the speaker so far.
    """

    speaker: Teacher
    mistakes: Sequence[Mistake]
    rounds: int = 1
    calls: int = 0

    def __post_init__(self) -> None:
        if not self.mistakes:
            raise WhetError("self-rethinking shows past mistakes and was given none: make some with error_set")

    def answer(self, problems: Sequence[Problem], seed: int = 0) -> list[list[str]]:
        """Each problem's rationales in order; the last is the answer."""
        types = ", ".join(sorted({m.type for m in self.mistakes if m.type}))
        shown: dict[int, str] = {}
        turn = 0

        def say(places: Sequence[int], texts: Sequence[str]) -> list[str]:
            nonlocal turn
            turn += 1
            self.calls += len(texts)
            return self.speaker.reply([
                Question(user(text), problems[i], seed=seed_for(seed, "rethinking", problems[i].id, turn))
                for i, text in zip(places, texts, strict=True)
            ])  # fmt: skip

        def judge(places: Sequence[int], answers: Sequence[str]) -> list[str]:
            for i in places:
                mistake = rng_for(seed, "mistake", problems[i].id, turn).choice(self.mistakes)
                shown[i] = EXAMPLE.format(types=types, **vars(mistake))
            said = say(places, [JUDGE.format(example=shown[i], asked=problems[i].prompt, answer=answer)
                                for i, answer in zip(places, answers, strict=True)])  # fmt: skip
            return ["suspected" if suspects(text) else "" for text in said]

        def rewrite(places: Sequence[int], answers: Sequence[str], faults: Sequence[str]) -> list[str]:
            return say(places, [REWRITE.format(example=shown[i], asked=problems[i].prompt, answer=answer)
                                for i, answer in zip(places, answers, strict=True)])  # fmt: skip

        first = say(range(len(problems)), [COT.format(question=p.prompt) for p in problems])
        return revise(first, judge, rewrite, self.rounds)


def suspects(text: str) -> bool:
    """Whether a judgement says yes: its first yes or no decides, and one without either suspects nothing."""
    found = re.search(r"\b(yes|no)\b", text, re.IGNORECASE)
    return found is not None and found[1].lower() == "yes"
