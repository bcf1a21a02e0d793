"""Problems: where prompts come from. A stage draws from it and tells it what came of the draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from whet.errors import WhetError
from whet.records import Row
from whet.seeds import rng_for
from whet.tasks import Problem, Split, Task


class Problems:
    """A source of problems. Subclasses say what to draw; a bandit or a memory also listens in `observe`."""

    def bind(self, task: Task, seed: int) -> None:
        """Called once, when the run's task and seed are known."""

    def draw(self, n: int) -> list[Problem]:
        raise NotImplementedError

    def observe(self, rows: Sequence[Row]) -> None:
        """The scored rows of the step, after advantages and before any filter."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Uniform(Problems):
    """Each problem of a split once an epoch, in an order drawn anew each epoch; a generated task never repeats.

    Args:
        split: the split to learn from.
        limit: use only the first so many problems, repeatedly; 0 for all.
    """

    def __init__(self, split: Split = "train", limit: int = 0) -> None:
        self.split: Split = split
        self.limit = limit
        self.cursor = 0
        self._task: Task | None = None

    def bind(self, task: Task, seed: int) -> None:
        self._task, self._seed = task, seed
        self._finite: list[Problem] | None = None
        if self.limit or "unlimited" not in task.provides():
            self._finite = task.problems(self.split, self.limit or None, seed=seed)
            if not self._finite:
                raise WhetError(f"task '{task.name}' has no problem in its {self.split} split")

    def draw(self, n: int) -> list[Problem]:
        assert self._task is not None, "bind first"
        start, self.cursor = self.cursor, self.cursor + n
        if self._finite is None:
            return self._task.problems(self.split, n, seed=self._seed, start=start)
        return [self._finite[i] for i in epochs(len(self._finite), start, n, self._seed)]

    def state_dict(self) -> dict[str, Any]:
        return {"cursor": self.cursor}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.cursor = int(state["cursor"])


@dataclass(frozen=True)
class Part:
    """One source of a mixture.

    Attributes:
        task: a task.
        share: its share of the draws, relative to the others.
        worked: share of its documents that show the rationale; the others give the answer at once.
        reliability: share of its rationales that are right; the others are the task's corruptions.
        repeats: how often each problem is seen: its distinct problems are its draws divided by this (a file's are those
            that it has, however long the run).
        form: what its documents look like; see `whet.sources.documents`.
    """

    task: Task
    share: float = 1.0
    worked: float = 1.0
    reliability: float = 1.0
    repeats: float = 1.0
    form: str = "solve"


class Mixture(Problems):
    """Problems of several tasks by shares, for `pretrain`; which part a problem came from is `part_of(problem)`."""

    def __init__(self, parts: Sequence[Part], split: Split = "train") -> None:
        if not parts:
            raise WhetError("a mixture needs at least one part")
        self.parts = list(parts)
        self.split: Split = split
        self._shares = [p.share for p in self.parts]
        self.cursor = 0

    def bind(self, task: Task, seed: int) -> None:
        self._seed = seed
        self._pools: list[list[Problem]] = []  # of the parts that end
        for part in self.parts:
            have = part.task.provides()
            if part.reliability < 1 and "corruptions" not in have:
                raise WhetError(f"mixture: task '{part.task.name}' writes no wrong rationales; leave reliability at 1")
            self._pools.append([] if "unlimited" in have else part.task.problems(self.split, seed=seed))

    def draw(self, n: int) -> list[Problem]:
        start, self.cursor = self.cursor, self.cursor + n
        return [self._one(i) for i in range(start, start + n)]

    def _one(self, i: int) -> Problem:
        rng = rng_for(self._seed, "mixture", i)
        place = rng.choices(range(len(self.parts)), self._shares)[0]
        part, pool = self.parts[place], self._pools[place]
        # drawing from a pool of 1 / (r - 1) of the part's draws so far meets each problem that is met r times on average
        drawn = (i + 1) * part.share / sum(self._shares)
        index = i if part.repeats <= 1 else rng.randrange(max(1, round(drawn / (part.repeats - 1))))
        if pool:
            problem = pool[index % len(pool)]
        else:
            (problem,) = part.task.problems(self.split, 1, seed=self._seed, start=index)
        return replace(problem, id=f"{place}/{i}/{problem.id}")

    def part_of(self, problem: Problem) -> Part:
        """The part that a drawn problem came from."""
        return self.parts[int(problem.id.split("/", 1)[0])]

    def state_dict(self) -> dict[str, Any]:
        return {"cursor": self.cursor}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.cursor = int(state["cursor"])


def epochs(size: int, start: int, n: int, seed: int) -> list[int]:
    """Indices number `start` to `start + n` of an endless walk that visits all `size` items once an epoch."""
    found: list[int] = []
    while len(found) < n:
        epoch, place = divmod(start + len(found), size)
        found += _order(size, seed, epoch)[place : place + n - len(found)]
    return found


@lru_cache(maxsize=4)
def _order(size: int, seed: int, epoch: int) -> tuple[int, ...]:
    order = list(range(size))
    rng_for(seed, "epoch", epoch).shuffle(order)
    return tuple(order)
