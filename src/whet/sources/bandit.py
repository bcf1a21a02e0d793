"""A bandit over categories of problems: it asks more of those from which the policy learns most at present (2505.14970).

    p = softmax(Q / tau);   r(c) = mean of the signal over the answers to problems of category c
    Q_c <- (1 - rate) Q_c + rate r(c)

For each problem of a draw a category is drawn by p, and then the next problem of its queue. All Q start at 0, so the first
draw is uniform over categories (not over problems, where categories differ in size).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from whet.advantages.estimators import group_indices, numbers, standardise
from whet.errors import WhetError, unknown
from whet.records import Row
from whet.seeds import rng_for
from whet.sources.curriculum import Queues
from whet.sources.problems import Problems, Uniform
from whet.tasks import Problem, Task

if TYPE_CHECKING:
    from whet.models.policy import Policy
    from whet.sources.collector import Scope

EPSILON = 0.1  # of the greedy rule
LEAST = 0.01  # value below which no category falls under the proportional rule


def softmax(values: Sequence[float], temperature: float) -> list[float]:
    """exp(v / temperature), normalised; an infinite temperature is uniform."""
    top = max(values)
    powers = [math.exp((v - top) / temperature) for v in values]
    return [p / sum(powers) for p in powers]


def proportional(values: Sequence[float], temperature: float) -> list[float]:
    """Each value over their sum; the temperature does not matter."""
    held = [max(v, LEAST) for v in values]
    return [v / sum(held) for v in held]


def greedy(values: Sequence[float], temperature: float) -> list[float]:
    """The best (the first of equal ones) but for a tenth of the draws, which go to the others alike."""
    if len(values) == 1:
        return [1.0]
    best = max(range(len(values)), key=lambda i: values[i])
    return [1 - EPSILON if i == best else EPSILON / (len(values) - 1) for i in range(len(values))]


RULES: dict[str, Callable[[Sequence[float], float], list[float]]] = {
    "softmax": softmax, "proportional": proportional, "greedy": greedy
}  # fmt: skip


def size_of_advantage(rows: Sequence[Row]) -> list[float]:
    """|A| of each answer, the mean over its learnt tokens: answers of any length weigh alike."""
    if any("advantage" not in row["response"].per_token for row in rows):
        raise WhetError(
            "bandit: there is no advantage to take the size of; use signal=accuracy, or a stage that estimates one"
        )
    return [float(row["response"].per_token["advantage"][row["response"].learn_mask].abs().mean()) for row in rows]


def size_of_accuracy(rows: Sequence[Row]) -> list[float]:
    """|A| that accuracy alone would give, standardised in each group. With a success rate p it is about
    2 sqrt(p (1 - p)); points for the format, which make a hopeless category look alive, are left out."""
    accuracy, found = numbers(rows, "accuracy"), torch.zeros(len(rows), dtype=torch.float64)
    for places in group_indices(rows):
        known = torch.tensor([i for i in places if not math.isnan(float(accuracy[i]))], dtype=torch.long)
        found[known] = standardise(accuracy[known]).abs()
    return found.tolist()


def accuracy_itself(rows: Sequence[Row]) -> list[float]:
    return numbers(rows, "accuracy").tolist()


SIGNALS: dict[str, Callable[[Sequence[Row]], list[float]]] = {
    "advantage": size_of_advantage, "accuracy": size_of_accuracy, "progress": accuracy_itself
}  # fmt: skip


class Bandit(Problems):
    """Draws from the categories of another source.

    Args:
        over: the other source; by default the task's own train split. With one category a bandit gives its problems on in
            their order.
        by: what the categories are; see `category_of`.
        rate: alpha of the running mean.
        temperature: tau; the greater, the more evenly it draws.
        rule: `softmax`, `proportional` to the values (at least 0.01), or `greedy` with a tenth of exploration.
        signal: `advantage` (|A|, as the estimator gave it), `accuracy` (|A| of accuracy alone), or `progress` (how much the
            category's mean accuracy changed since it was last drawn).
        decay_unvisited: whether a category that was not drawn counts as one whose signal is 0 (the authors' code), and so
            falls, or keeps its value (the formula).

    Attributes:
        values: Q of each category.
    """

    def __init__(
        self, over: Problems | None = None, by: str = "category", rate: float = 0.5, temperature: float = 1.0,
        rule: str = "softmax", signal: str = "advantage", decay_unvisited: bool = False,
    ) -> None:  # fmt: skip
        if not 0 < rate <= 1 or not temperature > 0:
            raise WhetError(
                f"bandit: the rate is in (0, 1] and the temperature above 0, not {rate:g} and {temperature:g}"
            )
        for what, value, known in (("rule", rule, RULES), ("signal", signal, SIGNALS)):
            if value not in known:
                raise unknown(f"{what} of the bandit", value, known)
        self.over = over or Uniform()
        self.rate, self.temperature, self.rule, self.signal = rate, temperature, rule, signal
        self.decay_unvisited = decay_unvisited
        self.queues = Queues(self.over, by)
        self.values: dict[str, float] = {}
        self.draws = 0
        self._means: dict[str, float] = {}  # of accuracy, when a category was last drawn
        self._drawn: dict[str, str] = {}  # problem id -> category, until its answers are seen

    def tasks(self, task: Task) -> Sequence[Task]:
        return self.over.tasks(task)

    def bind(self, task: Task, seed: int) -> None:
        self._seed = seed
        self.over.bind(task, seed)
        self._open()

    def prepare(self, policy: Policy, scope: Scope) -> None:
        self.over.load_state_dict(self.queues.origin)
        self.over.prepare(policy, scope)
        if self.over.state_dict() != self.queues.origin:  # a filter has made it another source
            self.queues.load_state_dict({"origin": self.over.state_dict(), "taken": 0, "given": {}})
        self._open()

    def _open(self) -> None:
        self.queues.open()
        self._drawn = {}
        self.counts = {**self.over.counts, "categories": len(self.queues.names)}
        if self.over.size:
            self.counts |= {f"category {name}": n for name, n in self.queues.sizes.items()}

    def probabilities(self) -> dict[str, float]:
        """Of each category, now."""
        names = self.queues.names
        shares = RULES[self.rule]([self.values.get(name, 0.0) for name in names], self.temperature)
        return dict(zip(names, shares, strict=True))

    def draw(self, n: int) -> list[Problem]:
        shares = self.probabilities()
        found = []
        for _ in range(n):
            rng = rng_for(self._seed, "bandit", self.draws)
            (category,) = rng.choices(list(shares), list(shares.values()))
            found.append(self.queues.pop(category))
            self._drawn[found[-1].id] = category
            self.draws += 1
        return found

    def observe(self, rows: Sequence[Row]) -> None:
        """Move Q towards what the answers showed; those that could not be judged show nothing."""
        judged = [row for row, reward in zip(rows, numbers(rows), strict=True) if not math.isnan(reward)]
        found: dict[str, list[float]] = {}
        for row, value in zip(judged, SIGNALS[self.signal](judged), strict=True):
            found.setdefault(self._drawn[row.problem_id], []).append(value)
        self.update({category: sum(values) / len(values) for category, values in found.items()})
        self._drawn = {}

    def update(self, means: Mapping[str, float]) -> None:
        """Q <- (1 - rate) Q + rate r, from the mean signal of the categories that were drawn."""
        rewards = dict(means)
        if self.signal == "progress":
            rewards = {c: mean - self._means.get(c, mean) for c, mean in means.items()}
            self._means |= means
        if self.decay_unvisited:
            rewards = {**dict.fromkeys(self.queues.names, 0.0), **rewards}
        for category, reward in rewards.items():
            self.values[category] = (1 - self.rate) * self.values.get(category, 0.0) + self.rate * reward

    def report(self) -> Mapping[str, float]:
        """Q and probability of each category, and the mean level that is drawn from now on."""
        shares = self.probabilities()
        level = sum(share * self.queues.level(name) for name, share in shares.items())
        values = {f"value/{name}": self.values.get(name, 0.0) for name in shares}
        return {"level": level, **{f"share/{name}": share for name, share in shares.items()}, **values}

    def state_dict(self) -> dict[str, Any]:
        return {"queues": self.queues.state_dict(), "values": dict(self.values), "means": dict(self._means),
                "draws": self.draws}  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.queues.load_state_dict(state["queues"])
        self.values = {name: float(v) for name, v in state["values"].items()}
        self._means = {name: float(v) for name, v in state["means"].items()}
        self.draws = int(state["draws"])
        self._open()
