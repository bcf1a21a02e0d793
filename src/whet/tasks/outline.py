"""Outlines: a worked solution without what it computes says what to do, and not what comes out.

    b=3*4+2=0        b*+          12+45=57        +45
    c=0+3=3    ->    c+           57-7=50    ->   -7

The same cut titles the steps of a plan and those of an execution, so that one can be held against the other.
"""

from __future__ import annotations

import re

from whet.tasks.problem import Problem

NUMBERS = "compute"  # the title of a step that is numbers alone

_NUMBERING = re.compile(r"^\s*(?:step\s*)?(?:\d+\s*[.):]|[-*•])\s+", re.IGNORECASE)
_OPERATION = re.compile(r"(?:\d+\s*)?([-+*/×])\s*(\d+)\s*(?:=.*)?")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*|=")


def unnumbered(step: str) -> str:
    """A step without its number or bullet."""
    return _NUMBERING.sub("", step).strip()


def title(step: str) -> str:
    """What a step does, without what comes out: the operation that an equation applies to a running value, else what stands
    before the colon, if there is one, without numbers and equals signs. Of a title it is the title."""
    bare = unnumbered(step)
    if operation := _OPERATION.fullmatch(bare):
        return operation[1] + operation[2]
    return " ".join(_NUMBER.sub("", bare.partition(":")[0]).split()) or NUMBERS


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
