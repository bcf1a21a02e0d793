"""Curricula: which problems come when. Both sources here reorder another one, whose problems they put into categories.

A source's problems are a function of its state, so what is kept in a checkpoint is where the other source began, how many
problems were taken from it, and how many of each category were given on; a resumed run takes them again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from whet.errors import WhetError
from whet.sources.problems import Problems, Uniform
from whet.tasks import Problem, Task

if TYPE_CHECKING:
    from whet.models.policy import Policy
    from whet.sources.collector import Scope

LOOK = 512  # problems of a source without an end that are looked at to find its categories
PATIENCE = 100_000  # problems looked through for one of a category


def category_of(by: str) -> Callable[[Problem], str]:
    """A problem's category.

    Args:
        by: `category` (a problem without one has its level), `level`, `task`, a column of the rows, or several of these
            joined by `+` (`task+level`).
    """
    names = [name.strip() for name in by.split("+")]
    if not all(names):
        raise WhetError(
            f"categories by '{by}': give category, level, task, a column of the rows, or several as task+level"
        )

    def one(problem: Problem, name: str) -> str:
        if name == "category":
            return problem.category or f"level-{problem.level}"
        if name == "level":
            return f"level-{problem.level}"
        if name == "task":
            return problem.task
        if name not in problem.data:
            raise WhetError(f"problem '{problem.id}' has no '{name}' to put it into a category by; its task gives category, "
                            f"level, task{''.join(f', {column}' for column in problem.data)}")  # fmt: skip
        return str(problem.data[name])

    return lambda problem: "+".join(one(problem, name) for name in names)


class Queues:
    """The problems of another source in a queue for each category, in the order in which it gives them.

    An empty queue is filled by drawing on, for all categories at once. Of a source that ends, each epoch thus puts a fresh
    shuffled copy of every category's problems behind what remains of the last.
    """

    def __init__(self, over: Problems, by: str) -> None:
        self.over, self._category = over, category_of(by)
        self.origin = over.state_dict()
        self.taken, self.given = 0, dict[str, int]()
        self._waiting: dict[str, deque[Problem]] = {}
        self._levels: dict[str, tuple[int, int]] = {}  # how many problems, and the sum of their levels

    def open(self) -> None:
        """Take again what was taken, or a first look; the categories are then known."""
        self.over.load_state_dict(self.origin)
        wanted, given = max(self.taken, self.over.size or LOOK), self.given
        self.taken, self.given, self._waiting, self._levels = 0, {}, {}, {}
        for problem in self.over.draw(wanted):
            self._put(problem)
        for category, n in given.items():
            for _ in range(n):
                self.pop(category)

    def _put(self, problem: Problem) -> None:
        category = self._category(problem)
        self.taken += 1
        self._waiting.setdefault(category, deque()).append(problem)
        n, levels = self._levels.get(category, (0, 0))
        self._levels[category] = n + 1, levels + problem.level

    @property
    def names(self) -> list[str]:
        """The categories, in order of their names."""
        return sorted(self._waiting)

    @property
    def sizes(self) -> dict[str, int]:
        """Problems of each category so far."""
        return {name: self._levels[name][0] for name in self.names}

    def level(self, category: str) -> float:
        """The mean level of its problems."""
        n, levels = self._levels[category]
        return levels / n

    def pop(self, category: str) -> Problem:
        looked = 0
        waiting = self._waiting.setdefault(category, deque())
        while not waiting:
            if looked == PATIENCE:
                raise WhetError(f"there is no further problem of category '{category}' among {PATIENCE} problems")
            self._put(*self.over.draw(1))
            looked += 1
        self.given[category] = self.given.get(category, 0) + 1
        return waiting.popleft()

    def state_dict(self) -> dict[str, Any]:
        return {"origin": self.origin, "taken": self.taken, "given": dict(self.given)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.origin, self.taken = dict(state["origin"]), int(state["taken"])
        self.given = {name: int(n) for name, n in state["given"].items()}


class Ordered(Problems):
    """The problems of another source by level, easiest or hardest first, ties in its own order.

    Each `total` of its problems are one pass: they are the problems that a run of so many draws sees without an order,
    and only the order differs.

    Args:
        total: problems of a pass; a run's steps times its batch, if it is to get through once.
        hardest: whether the hardest come first.
        over: by default the task's own train split.
    """

    def __init__(self, total: int, hardest: bool = False, over: Problems | None = None) -> None:
        if total < 1:
            raise WhetError(f"an order needs at least one problem, not {total}")
        self.total, self.hardest, self.over = total, hardest, over or Uniform()
        self.cursor = 0
        self._origin = self.over.state_dict()
        self._pass: list[Problem] = []
        self._level = 0.0

    def tasks(self, task: Task) -> Sequence[Task]:
        return self.over.tasks(task)

    def bind(self, task: Task, seed: int) -> None:
        self.over.bind(task, seed)
        self._pass = []

    def prepare(self, policy: Policy, scope: Scope) -> None:
        self.over.load_state_dict(self._origin)
        self.over.prepare(policy, scope)
        if self.over.state_dict() != self._origin:  # a filter has made it another source
            self._origin, self.cursor = self.over.state_dict(), 0
        self.counts, self._pass = self.over.counts, []

    def draw(self, n: int) -> list[Problem]:
        found: list[Problem] = []
        while len(found) < n:
            if self.cursor == self.total:
                self.cursor, self._origin, self._pass = 0, self.over.state_dict(), []
            if not self._pass:
                self.over.load_state_dict(self._origin)
                sign = -1 if self.hardest else 1
                self._pass = sorted(self.over.draw(self.total), key=lambda p: sign * p.level)
            part = self._pass[self.cursor : self.cursor + n - len(found)]
            self.cursor += len(part)
            found += part
        self._level = sum(p.level for p in found) / max(1, n)
        return found

    def report(self) -> Mapping[str, float]:
        """The mean level of the last draw."""
        return {"level": self._level}

    def state_dict(self) -> dict[str, Any]:
        return {"origin": self._origin, "cursor": self.cursor}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._origin, self.cursor, self._pass = dict(state["origin"]), int(state["cursor"]), []
