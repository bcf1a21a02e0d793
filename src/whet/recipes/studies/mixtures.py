"""Which mixtures of some sets to train on, and what a set does to the others: plans and effects of mixture studies.

S[m, t] is the score of a model trained on mixture m on task t; m is a set of names.

    cocktail gain of t     mean over m that contain t and another set of S[m, t] - S[{t}, t]
    transfer of u to t     S[{t, u}, t] - S[{t}, t]
    contribution of u to t S[all, t] - S[all without u, t]

The best of many mixtures on a test set is biased: choose it on validation, and give the single task the same search.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

from whet.errors import WhetError, unknown

Mix = frozenset[str]
Matrix = Mapping[tuple[Mix, str], float]
KINDS = ("singles", "pairs", "leave_one_out", "all")


def plan(sets: Sequence[str], kinds: Sequence[str] = KINDS, custom: Sequence[Sequence[str]] = ()) -> list[Mix]:
    """Unique mixtures of the kinds asked for, and custom ones; in order of first mention."""
    if len(set(sets)) < len(sets) or not sets:
        raise WhetError(f"a plan needs one or more different sets, not {', '.join(sets) or 'none'}")
    found: list[Mix] = []
    for kind in kinds:
        if kind not in KINDS:
            raise unknown("kind of mixture", kind, KINDS)
        sizes = {"singles": 1, "pairs": 2, "leave_one_out": len(sets) - 1, "all": len(sets)}
        found += [frozenset(names) for names in combinations(sets, sizes[kind]) if names]
    for names in custom:
        for name in names:
            if name not in sets:
                raise unknown("set of a mixture", name, sets)
        found.append(frozenset(names))
    return list(dict.fromkeys(found))


def name_of(mix: Mix) -> str:
    """The same for the same sets in any order."""
    return "+".join(sorted(mix))


def gain(s: Matrix, task: str) -> float:
    """The mean gain over all mixtures that hold the task and another set."""
    mixed = [score for (mix, on), score in s.items() if on == task and task in mix and len(mix) > 1]
    if not mixed:
        raise WhetError(f"no mixture holds '{task}' beside another set")
    return sum(mixed) / len(mixed) - s[frozenset({task}), task]


def transfer(s: Matrix, task: str, other: str) -> float:
    """What one other set does to the task."""
    return s[frozenset({task, other}), task] - s[frozenset({task}), task]


def contribution(s: Matrix, task: str, other: str, sets: Sequence[str]) -> float:
    """What the task loses where one set is left out of all."""
    return s[frozenset(sets), task] - s[frozenset(sets) - {other}, task]
