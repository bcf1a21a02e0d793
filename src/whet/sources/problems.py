"""Problems: where prompts come from. A stage draws from it and tells it what came of the draw."""

from __future__ import annotations

import re
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from whet.errors import WhetError
from whet.records import Row
from whet.seeds import rng_for
from whet.tasks import Problem, Split, Task, get_task

if TYPE_CHECKING:
    from whet.models.policy import Policy
    from whet.sources.collector import Scope


class Problems:
    """A source of problems. Subclasses say what to draw; a bandit or a memory also listens in `observe`.

    Attributes:
        counts: what it holds and what was left out, for the log; known once it is bound.
        size: problems of one epoch; 0 where it has no end, or does not say.
        done: whether nothing is left to learn; the stage then ends before its steps do.
    """

    counts: Mapping[str, int] = {}
    size: int = 0
    done: bool = False

    def bind(self, task: Task, seed: int) -> None:
        """Called once, when the run's task and seed are known."""

    def tasks(self, task: Task) -> Sequence[Task]:
        """The tasks that it draws from on a run's task; each must provide what the stage needs."""
        return [task]

    def prepare(self, policy: Policy, scope: Scope) -> None:
        """Once, when the stage is entered, with the policy of that moment: what is asked of it beforehand is asked here."""

    def draw(self, n: int) -> list[Problem]:
        raise NotImplementedError

    def observe(self, rows: Sequence[Row]) -> None:
        """The scored rows of the step, after advantages and before any filter."""

    def learnt(self, found: Mapping[str, float]) -> None:
        """What the step's updates reported, `loss/NAME` among it."""

    def report(self) -> Mapping[str, float]:
        """What it would have logged after each step, as `problems/NAME`."""
        return {}

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
        self._finite: Sequence[Problem] | None = None
        if self.limit or "unlimited" not in task.provides():
            self._finite = task.pool(self.split, self.limit or None, seed=seed)
            if not self._finite:
                raise WhetError(f"task '{task.name}' has no problem in its {self.split} split")
            self.size = len(self._finite)

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


class Over(Problems):
    """The problems of another source: fewer of them, or in another order.

    Args:
        over: the other source; by default the task's own train split.
    """

    def __init__(self, over: Problems | None = None) -> None:
        self.over = over or Uniform()

    def tasks(self, task: Task) -> Sequence[Task]:
        return self.over.tasks(task)

    def bind(self, task: Task, seed: int) -> None:
        self._seed = seed
        self.over.bind(task, seed)

    def prepare(self, policy: Policy, scope: Scope) -> None:
        self.over.prepare(policy, scope)


@dataclass(frozen=True)
class Part:
    """One source of a mixture.

    Attributes:
        task: a task.
        share: its share of the draws, relative to the others.
        worked: share of its documents that show the rationale; the others give the answer at once.
        reliability: share of its rationales (or answers, where it has no steps) that are right; the others are the task's
            corruptions.
        repeats: how often each problem is seen: its distinct problems are its draws divided by this (a file's are those
            that it has, however long the run).
        form: what its documents look like; see `whet.sources.documents`.
        rows: use only its first so many problems; 0 for all.
    """

    task: Task
    share: float = 1.0
    worked: float = 1.0
    reliability: float = 1.0
    repeats: float = 1.0
    form: str = "solve"
    rows: int = 0

    @classmethod
    def read(cls, text: str) -> list[Part]:
        """Parts from text: `task*share~worked#rows`, all but the task optional, separated by `;`.

        A task's options are separated by colons here: `finance:level=1:subtask=sum`.
        """
        found = []
        for part in filter(None, text.split(";")):
            spec, *marked = re.split(r"(?=[*~#])", part.strip())
            given = {mark[0]: mark[1:] for mark in marked}
            try:
                share, worked = float(given.pop("*", 1)), float(given.pop("~", 1))
                found.append(cls(get_task(spec), share, worked, rows=int(given.pop("#", 0))))
            except ValueError:
                raise WhetError(f"mixture: '{part}' is no part; write task*share~worked#rows") from None
        return found


class Mixture(Problems):
    """Problems of several tasks; which part a problem came from is `part_of(problem)`.

    | temperature | draws |
    |---|---|
    | None | by the parts' shares, without end |
    | 1 | all rows of all parts, shuffled, each once an epoch; of one part it is `Uniform` |
    | t > 1 | a part by n_i^(1/t) / sum_j n_j^(1/t) of its n_i rows, then its own rows in epochs; infinity is equal rates |

    With a temperature every part ends (a file, or `rows` of a generator), and rows that would teach a test are left out: those
    whose prompt or `data["document"]` is held out in any file, and repeats of an earlier part's prompt.

    Attributes:
        counts: rows of each part and what was left out, for the log.
    """

    def __init__(self, parts: Sequence[Part], split: Split = "train", temperature: float | None = None) -> None:
        if not parts:
            raise WhetError("a mixture needs at least one part")
        if temperature is not None and temperature < 1:
            raise WhetError(f"a mixture's temperature is at least 1 (inf for equal rates), not {temperature:g}")
        self.parts = list(parts)
        self.split: Split = split
        self.temperature = temperature
        self._shares = [p.share for p in self.parts]
        self.cursor = 0
        self._visits = [0] * len(self.parts)

    def tasks(self, task: Task) -> Sequence[Task]:
        return [part.task for part in self.parts]

    def bind(self, task: Task, seed: int) -> None:
        self._seed = seed
        self._pools: list[Sequence[Problem]] = []  # of the parts that end
        for part in self.parts:
            have = part.task.provides()
            if part.reliability < 1 and "corruptions" not in have:
                raise WhetError(f"mixture: task '{part.task.name}' writes no wrong rationales; leave reliability at 1")
            ends = part.rows or "unlimited" not in have
            self._pools.append(part.task.pool(self.split, part.rows or None, seed=seed) if ends else [])
            if self.temperature is not None and not self._pools[-1]:
                told = "is generated and never ends; say how many rows of it" if not ends else "has no rows"
                raise WhetError(f"mixture: task '{part.task.spec()}' {told}")
        if self.temperature is not None:
            self._leave_out()
            self._shares = rates([len(pool) for pool in self._pools], self.temperature)

    def _leave_out(self) -> None:
        held = set[object]()
        for part in self.parts if len(self.parts) > 1 else ():
            # the splits of a generated task are disjoint by construction, in all of its forms
            for split in ("validation", "test") if "unlimited" not in part.task.provides() else ():
                held |= {key for p in part.task.problems(split) for key in _keys(p)}
        seen, counts = set[object](), dict[str, int]()
        for place, (part, pool) in enumerate(zip(self.parts, self._pools, strict=True)):
            fresh = [p for p in pool if not _keys(p) & held]
            kept = [p for p in fresh if p.prompt not in seen]
            seen |= {p.prompt for p in kept}
            counts[f"{part.task.spec()}: rows"] = len(kept)
            counts[f"{part.task.spec()}: held out elsewhere"] = len(pool) - len(fresh)
            counts[f"{part.task.spec()}: in an earlier set"] = len(fresh) - len(kept)
            if not kept:
                raise WhetError(f"mixture: every row of task '{part.task.spec()}' is held out or in an earlier set")
            # one part alone keeps its ids, so that it is the run on this task; several might share them
            self._pools[place] = kept if len(self.parts) == 1 else [replace(p, id=f"{place}/{p.id}") for p in kept]
        self.counts = {what: n for what, n in counts.items() if n}
        self._all = [p for pool in self._pools for p in pool]
        self.size = len(self._all)

    def draw(self, n: int) -> list[Problem]:
        start, self.cursor = self.cursor, self.cursor + n
        if self.temperature == 1:
            return [self._all[i] for i in epochs(len(self._all), start, n, self._seed)]
        one = self._one if self.temperature is None else self._row
        return [one(i) for i in range(start, start + n)]

    def _row(self, i: int) -> Problem:
        place = rng_for(self._seed, "mixture", i).choices(range(len(self.parts)), self._shares)[0]
        visit, self._visits[place] = self._visits[place], self._visits[place] + 1
        (index,) = epochs(len(self._pools[place]), visit, 1, self._seed)
        return self._pools[place][index]

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
        return self.parts[0 if len(self.parts) == 1 else int(problem.id.split("/", 1)[0])]

    def state_dict(self) -> dict[str, Any]:
        return {"cursor": self.cursor, "visits": list(self._visits)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.cursor, self._visits = int(state["cursor"]), [int(n) for n in state["visits"]]


def rates(sizes: Sequence[int], temperature: float) -> list[float]:
    """How often each part is drawn from: n_i^(1/t) / sum_j n_j^(1/t)."""
    powers = [n ** (1 / temperature) for n in sizes]
    return [p / sum(powers) for p in powers]


def _keys(problem: Problem) -> set[object]:
    """What must not be in two splits: the prompt, and the document that it is about."""
    document = problem.data.get("document")
    found: set[object] = {problem.prompt}
    return found | {("document", document)} if document is not None else found


def epochs(size: int, start: int, n: int, seed: int) -> list[int]:
    """Indices number `start` to `start + n` of an endless walk that visits all `size` items once an epoch."""
    found: list[int] = []
    while len(found) < n:
        epoch, place = divmod(start + len(found), size)
        found += _order(size, seed, epoch)[place : place + n - len(found)]
    return found


@lru_cache(maxsize=4)
def _order(size: int, seed: int, epoch: int) -> array[int]:
    order = array("Q", range(size))  # 8 bytes a row, of files that are not held in memory
    rng_for(seed, "epoch", epoch).shuffle(order)
    return order
