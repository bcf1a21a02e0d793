"""Coverage: how much of an answer's plan its execution carries out (E2C, 2509.23946).

    c = (plan steps whose title is found among the execution's) / (plan steps)

A title is found within another one, or where the words that both have in the same order are more than 0.3 of the shorter one's.
So short general titles are found anywhere: look at the number of steps beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

from whet.rewards.reward import Reward, accuracy, each, gate
from whet.tasks.alignment import common
from whet.tasks.outline import titles

SHARED = 0.3  # of the shorter title's words


def found(wanted: str, among: Sequence[str]) -> bool:
    """Whether a title is among others."""
    a = wanted.lower()
    for other in map(str.lower, among):
        shorter = min(len(a.split()), len(other.split()))
        if a in other or sum(common(a.split(), other.split())[0]) / shorter > SHARED:
            return True
    return False


def coverage(plan: str, execution: str) -> float:
    """The share of the plan's steps that are found in the execution, both a step a line; 0 where nothing is planned."""
    planned, done = titles(plan), titles(execution)
    return sum(found(step, done) for step in planned) / len(planned) if planned else 0.0


def covered() -> Reward:
    """Part `coverage`: that of the answer's plan where the answer is right, else 0."""
    return gate(accuracy(), each("coverage", lambda a: coverage(a.response.plan, a.response.execution)))
