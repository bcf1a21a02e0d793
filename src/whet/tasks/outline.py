"""Outlines: a worked solution without its numbers says what to do, and not what comes out.

    b=3*4+2=0        b*+
    c=0+3=3    ->    c+

The same cut titles the steps of a plan and those of an execution, so that one can be held against the other.
"""

from __future__ import annotations

import re

from whet.tasks.problem import Problem

NUMBERS = "compute"  # the title of a step that is numbers alone

_NUMBERING = re.compile(r"^\s*(?:step\s*)?(?:\d+\s*[.):]|[-*•])\s+", re.IGNORECASE)
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*|=")


def unnumbered(step: str) -> str:
    """A step without its number or bullet."""
    return _NUMBERING.sub("", step).strip()


def title(step: str) -> str:
    """What a step does: what stands before its colon, if it has one, without numbering, numbers and equals signs."""
    bare = unnumbered(step).partition(":")[0]
    return " ".join(_NUMBER.sub("", bare).split()) or NUMBERS


def titles(text: str) -> list[str]:
    """The titles of its lines; empty ones are no steps."""
    return [title(line) for line in text.splitlines() if line.strip()]


def outline(problem: Problem) -> str:
    """A plan for the problem: the titles of its rationale's steps, a line each."""
    return "\n".join(titles(problem.rationale))


def rotated(plan: str) -> str:
    """The plan with its first step last: as many steps of the same kinds, each in another place."""
    first, *rest = plan.splitlines() or [""]
    return "\n".join([*rest, first])
