"""Credit for answers that could be read, though they are wrong."""

from __future__ import annotations

from collections.abc import Sequence

from whet.errors import WhetError
from whet.rewards.reward import Attempt, Parts, Reward
from whet.tasks.answers import plain_number


class PartialCredit(Reward):
    """Part `accuracy`, the verdict's value, and part `partial`: what a wrong answer lacks of `credit` (ReFT, 2401.08967).

    So an answer earns 1, `credit` where one was read, and 0 where none was: it is worth something to end with an answer.

    Args:
        credit: of a wrong answer.
        numeric_only: whether only numbers have it, not letters of a choice, say, which a guess always is.
    """

    def __init__(self, credit: float = 0.1, numeric_only: bool = False) -> None:
        if not 0 <= credit < 1:
            raise WhetError(f"partial credit is from 0 to below 1, what a right answer earns; not {credit:g}")
        self.credit, self.numeric_only = credit, numeric_only

    def __call__(self, group: Sequence[Attempt]) -> list[Parts]:
        return [{"accuracy": a.verdict.value, "partial": self._partial(a)} for a in group]

    def _partial(self, attempt: Attempt) -> float:
        verdict = attempt.verdict
        read = verdict.status == "wrong" and (
            not self.numeric_only or plain_number(verdict.label or attempt.response.answer or "") is not None
        )
        return max(0.0, self.credit - verdict.value) if read else 0.0


partial_credit = PartialCredit
