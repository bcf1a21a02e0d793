"""Curricula: which problems come when. The sources here and in `bandit.py` reorder another one's problems.

A source's problems are a function of its state, so what is kept in a checkpoint is where the other source began and how much of
it was given on; a resumed run takes its problems again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from whet.errors import WhetError
from whet.sources.problems import Over, Problems
from whet.tasks import Problem, Task

if TYPE_CHECKING:
    from whet.models.policy import Policy
    from whet.sources.collector import Scope


def category_of(by: str) -> Callable[[Problem], str]:
    """A problem's category.

    Args:
        by: `category` (a problem without one has its level), `level`, `task`, a column of the rows, or several of these
            joined by `+` (`task+level`).
    """

    def category(problem: Problem) -> str:
        level = f"level-{problem.level}"
        known = {**problem.data, "category": problem.category or level, "level": level, "task": problem.task}
        names = [name.strip() for name in by.split("+")]
        for name in names:
            if name not in known:
                raise WhetError(f"problem '{problem.id}' has no '{name}' to put it into a category by; give one of "
                                f"{', '.join(known)}, or several as task+level")  # fmt: skip
        return "+".join(str(known[name]) for name in names)

    return category


class Reordered(Over):
    """The problems of another source in an order of its own.

    Attributes:
        origin: where the other source was before anything of it was taken.
    """

    def __init__(self, over: Problems | None = None) -> None:
        super().__init__(over)
        self.origin = self.over.state_dict()

    def bind(self, task: Task, seed: int) -> None:
        super().bind(task, seed)
        self.open()

    def prepare(self, policy: Policy, scope: Scope) -> None:
        self.over.load_state_dict(self.origin)
        super().prepare(policy, scope)
        if self.over.state_dict() != self.origin:  # a filter has made it another source
            self.restart(self.over.state_dict())
        self.open()

    def open(self) -> None:
        """Take again what was taken since `origin`."""
        raise NotImplementedError

    def restart(self, origin: Mapping[str, Any]) -> None:
        """Begin there, with nothing taken yet."""
        raise NotImplementedError


class Ordered(Reordered):
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
        super().__init__(over)
        self.total, self.hardest = total, hardest
        self.cursor, self._level = 0, 0.0

    def open(self) -> None:
        self.counts = self.over.counts
        self._pass: list[Problem] = []  # taken when it is drawn from

    def restart(self, origin: Mapping[str, Any]) -> None:
        self.origin, self.cursor = dict(origin), 0

    def draw(self, n: int) -> list[Problem]:
        found = []
        for _ in range(n):
            if self.cursor == self.total:
                self.restart(self.over.state_dict())
                self.open()
            if not self._pass:
                self.over.load_state_dict(self.origin)
                self._pass = sorted(self.over.draw(self.total), key=lambda p: p.level, reverse=self.hardest)
            found.append(self._pass[self.cursor])
            self.cursor += 1
        self._level = sum(p.level for p in found) / max(1, n)
        return found

    def report(self) -> Mapping[str, float]:
        """The mean level of the last draw."""
        return {"level": self._level}

    def state_dict(self) -> dict[str, Any]:
        return {"origin": self.origin, "cursor": self.cursor}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.restart(state["origin"])
        self.cursor = int(state["cursor"])
        self.open()
