"""Roll-out filters: which problems the policy is trained on, decided by its own answers when a stage is entered.

Each problem of a pool is answered K times by the policy that enters the stage. A rule over the (problems, K) matrix of
accuracies says which are kept; the stage then draws from those, and its own answers are new ones. Rules read the verifier's
accuracy and never a shaped reward: points for the format would keep what was never solved.

    Filtered(solvable(), samples=8, pool=256)            drop what is never solved (2507.05386)
    Filtered(pass_rate(0.0, 0.75), samples=16)           drop what is solved too often
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from whet.errors import WhetError
from whet.models.policy import Policy
from whet.sampling.sampler import SamplingSettings
from whet.seeds import seed_for
from whet.sources.problems import Over, Problems, epochs
from whet.sources.rollouts import ask, distinct, judge_all
from whet.tasks import Problem, Task

if TYPE_CHECKING:
    from whet.sources.collector import Scope

# (P, K) accuracies, NaN where an answer could not be judged -> (P,) bool: kept
Rule = Callable[[np.ndarray], np.ndarray]


def solvable(drop_all_correct: bool = False) -> Rule:
    """Keep what at least one answer solves; with `drop_all_correct` only what not all answers solve."""

    def rule(accuracy: np.ndarray) -> np.ndarray:
        right, judged = (accuracy == 1.0).sum(1), (~np.isnan(accuracy)).sum(1)
        return (right > 0) & ((right < judged) if drop_all_correct else True)

    return rule


def pass_rate(low: float, high: float) -> Rule:
    """Keep what is solved in a share from `low` to `high`, both included, of the answers that could be judged; a problem
    of which none could be judged is dropped."""
    if not 0 <= low <= high <= 1:
        raise WhetError(f"pass rate: needs 0 <= low <= high <= 1, not {low:g} and {high:g}")

    def rule(accuracy: np.ndarray) -> np.ndarray:
        right, judged = (accuracy == 1.0).sum(1), (~np.isnan(accuracy)).sum(1)
        rate = right / np.maximum(judged, 1)
        return (judged > 0) & (low <= rate) & (rate <= high)

    return rule


def answered(
    problems: Sequence[Problem], samples: int, policy: Policy, task: Task, seed: int, temperature: float = 1.0
) -> np.ndarray:
    """(P, K) accuracy of `samples` answers to each problem, NaN where one could not be judged."""
    settings = SamplingSettings(task.max_answer_tokens(), temperature=temperature)
    answers = ask(policy, problems, settings, samples, seed)
    judged = judge_all(task, problems, policy, answers)
    return np.array([[v.value for v in own] for own in judged]).reshape(len(problems), samples)


class Filtered(Over):
    """The problems of another source that pass a rule, each once an epoch.

    They are chosen once, when the stage is entered, and stay for the stage; the next stage chooses anew. Before that
    nothing is filtered. What the choice costs counts as the run's compute.

    Args:
        rule: which are kept.
        samples: answers to each (K).
        pool: how many problems are looked at; 0 is one epoch of a source that ends.
        temperature: of the answers.
        over: the other source; by default the task's own train split.
    """

    def __init__(
        self, rule: Rule, samples: int = 8, pool: int = 0, temperature: float = 1.0, over: Problems | None = None
    ) -> None:
        if samples < 1 or pool < 0:
            raise WhetError(f"filter: at least one sample and no negative pool, not samples={samples} and pool={pool}")
        self.rule, self.samples, self.pool, self.temperature = rule, samples, pool, temperature
        super().__init__(over)
        self.counts = {}
        self.cursor = 0
        self._origin: Mapping[str, Any] = {}
        self._kept: list[int] | None = None

    def bind(self, task: Task, seed: int) -> None:
        super().bind(task, seed)
        self._origin = self.over.state_dict()
        self.cursor, self._kept, self._problems = 0, None, list[Problem]()
        n = self.pool or self.over.size
        if not n:
            raise WhetError(f"task '{task.spec()}' has no end: say how many of its problems are filtered (pool=256)")
        self._looked = n

    def prepare(self, policy: Policy, scope: Scope) -> None:
        if "verifier" not in scope.task.provides():
            raise WhetError(f"task '{scope.task.spec()}' has no verifier to filter its problems by")
        super().prepare(policy, scope)
        self._origin = self.over.state_dict()
        pool = self._pool()
        accuracy = answered(pool, self.samples, policy, scope.task, seed_for(scope.seed, "filter"), self.temperature)
        right = (accuracy == 1.0).sum(1)
        self._keep([int(i) for i in np.flatnonzero(self.rule(accuracy))], pool)
        self.counts = {**self.over.counts, "filtered": len(pool), "never solved": int((right == 0).sum()),
                       "always solved": int((right == self.samples).sum()), "kept": self.size}  # fmt: skip
        if not self.size:
            told = ", ".join(f"{what} {n}" for what, n in self.counts.items())
            raise WhetError(f"filter: no problem of task '{scope.task.spec()}' is left ({told}); use an easier level, more "
                            "samples or a larger pool")  # fmt: skip

    def _pool(self) -> list[Problem]:
        """The problems that are looked at: always those that the other source gives first."""
        self.over.load_state_dict(self._origin)
        return distinct(self.over.draw(self._looked))

    def _keep(self, places: list[int], pool: Sequence[Problem]) -> None:
        self._kept, self._problems, self.cursor = places, [pool[i] for i in places], 0
        self.size = len(places)

    def draw(self, n: int) -> list[Problem]:
        if self._kept is None:
            return self.over.draw(n)
        start, self.cursor = self.cursor, self.cursor + n
        return [self._problems[i] for i in epochs(len(self._problems), start, n, self._seed)]

    def state_dict(self) -> dict[str, Any]:
        return {"origin": dict(self._origin), "kept": self._kept, "cursor": self.cursor, "over": self.over.state_dict(),
                "counts": dict(self.counts)}  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._origin, self.counts = dict(state["origin"]), dict(state["counts"])
        self._kept, self._problems, self.size = None, [], 0
        if state["kept"] is not None:
            self._keep([int(i) for i in state["kept"]], self._pool())
        self.over.load_state_dict(state["over"])
        self.cursor = int(state["cursor"])
