"""Gates: which groups are admitted to learning, by raw accuracy and never by the shaped reward."""

from __future__ import annotations

import math
from collections.abc import Sequence

from whet.records import Row


def groups_of(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows by group, in order of first appearance."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.group_id, []).append(row)
    return list(found.values())


def is_dead(group: Sequence[Row]) -> bool:
    """Whether all answers are judged alike (all right, all wrong): no group baseline then gives a gradient.

    Answers that could not be judged (NaN) count for nothing: they are left out of the baseline too.
    """
    return len({a for row in group if not math.isnan(a := row.numbers["accuracy"])}) <= 1


class Gate:
    """Admit every group.

    Attributes:
        refill: draw further problems until the batch is full again, at most `max_draws` times a step.
        needs_group: whether it admits no group of one answer.
    """

    refill = False
    needs_group = False
    max_draws = 10

    def admits(self, group: Sequence[Row]) -> bool:
        return True


class DropDead(Gate):
    """Keep groups with 0 < right < G (DAPO's dynamic sampling when `refill`)."""

    needs_group = True

    def __init__(self, refill: bool = True, max_draws: int = 10) -> None:
        self.refill = refill
        self.max_draws = max_draws

    def admits(self, group: Sequence[Row]) -> bool:
        return not is_dead(group)
