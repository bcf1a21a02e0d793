"""Refinement by feedback (2408.06318, RQ3): a checker says what is wrong with an answer, and it is written anew.

Who gives the feedback is the question: the task's own checks (the oracle), another model, or chance in a valid form. An answer
is refined while any check fails, four times at most in the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from whet.decoding.revising import revise
from whet.seeds import rng_for, seed_for
from whet.sources import Question, Teacher, feedback_text, user
from whet.tasks import Check, Problem, Response, Task

REFINE = """{question}

A first draft:
{answer}

What was found about it:
{feedback}

Write it again so that everything succeeds. Write the answer alone."""
Critic = Callable[[Problem, str], str]  # -> feedback, "" where every check passed


def oracle(task: Task) -> Critic:
    """The task's own checks, all that apply."""

    def criticise(problem: Problem, answer: str) -> str:
        checks = [c for c in task.check(problem, Response(answer, answer)) if c.result != "n.a."]
        failed = any(c.result == "fail" for c in checks)
        return feedback_text([c.name for c in checks], checks) if failed else ""

    return criticise


def random_feedback(task: Task, seed: int = 0, fails: float = 0.25) -> Critic:
    """The checks that every answer is judged by, each failing by chance: a control."""

    def criticise(problem: Problem, answer: str) -> str:
        rng = rng_for(seed, "feedback", problem.id, answer)
        checks = [Check(name, "fail" if rng.random() < fails else "pass") for name in task.judged]
        return feedback_text(task.judged, checks) if any(c.result == "fail" for c in checks) else ""

    return criticise


def refine(
    speaker: Teacher, problems: Sequence[Problem], answers: Sequence[str], critic: Critic, rounds: int = 4, seed: int = 0
) -> list[list[str]]:  # fmt: skip
    """Each answer with its refinements; the last counts."""

    def judge(places: Sequence[int], drafts: Sequence[str]) -> list[str]:
        return [critic(problems[i], draft) for i, draft in zip(places, drafts, strict=True)]

    def rewrite(places: Sequence[int], drafts: Sequence[str], found: Sequence[str]) -> list[str]:
        return speaker.reply([
            Question(user(REFINE.format(question=problems[i].prompt, answer=draft, feedback=feedback)), problems[i],
                     seed=seed_for(seed, "refine", problems[i].id, draft))
            for i, draft, feedback in zip(places, drafts, found, strict=True)
        ])  # fmt: skip

    return revise(answers, judge, rewrite, rounds)


def changes(before: Sequence[float], after: Sequence[float]) -> dict[str, float]:
    """Shares of answers whose score stayed (`flat`), rose (`up`) and fell (`down`); they sum to 1."""
    pairs = list(zip(before, after, strict=True))
    counts = {"flat": sum(a == b for b, a in pairs), "up": sum(a > b for b, a in pairs),
              "down": sum(a < b for b, a in pairs)}  # fmt: skip
    return {name: n / len(pairs) for name, n in counts.items()} if pairs else dict.fromkeys(counts, 0.0)
