"""Answer, have it looked at, answer again: the loop that self-rethinking and plan refinement share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from whet.errors import WhetError

T = TypeVar("T")


def revise(
    first: Sequence[T],
    judge: Callable[[Sequence[int], Sequence[T]], Sequence[str]],
    rewrite: Callable[[Sequence[int], Sequence[T], Sequence[str]], Sequence[T]],
    rounds: int = 1,
) -> list[list[T]]:
    """Every answer with its revisions; the last of each counts.

    An answer with which nothing is wrong stays as it is and is not looked at again. Those of one round are judged, and then
    rewritten, together.

    Args:
        first: an answer to each question.
        judge: (places of the questions, their answers) -> what is wrong with each, "" for nothing.
        rewrite: (places, answers, what is wrong) -> new answers.
        rounds: revisions of an answer at most.
    """
    if rounds < 0:
        raise WhetError(f"rounds must be at least 0, not {rounds}")
    trails = [[answer] for answer in first]
    open_ = list(range(len(trails)))
    for _ in range(rounds):
        if not open_:
            break
        faults = judge(open_, [trails[i][-1] for i in open_])
        wrong = [(i, fault) for i, fault in zip(open_, faults, strict=True) if fault]
        open_ = [i for i, _ in wrong]
        if open_:
            answers = rewrite(open_, [trails[i][-1] for i in open_], [fault for _, fault in wrong])
            for i, answer in zip(open_, answers, strict=True):
                trails[i].append(answer)
    return trails
