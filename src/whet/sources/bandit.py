"""A bandit over categories of problems: it asks more of those from which the policy learns most at present (2505.14970).

    p = softmax(Q / tau);   r(c) = mean of the signal over the answers to problems of category c
    Q_c <- (1 - rate) Q_c + rate r(c)

For each problem of a draw a category is drawn by p, and then the next problem of its queue. All Q start at 0, so the first
draw is uniform over categories (not over problems, where categories differ in size).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

import torch

from whet.advantages.estimators import group_indices, numbers, standardise
from whet.errors import WhetError, unknown
from whet.records import Row
from whet.seeds import rng_for
from whet.sources.curriculum import Reordered, category_of
from whet.sources.problems import Problems
from whet.tasks import Problem

LOOK = 512  # problems of a source without an end that are looked at to find its categories
PATIENCE = 100_000  # problems looked through for one of a category
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
        raise WhetError("bandit: the answers have no advantage; use signal=accuracy, or a stage that estimates one")
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


class Bandit(Reordered):
    """Draws from the categories of another source, each a queue in the order in which that source gives its problems.

    An empty queue is filled by drawing on, for all categories at once. Of a source that ends, each epoch thus puts a fresh
    shuffled copy of every category's problems behind what remains of the last.

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
        queues: the problems of each category that were taken of the other source; the first `given` of them were drawn.
        values: Q of each category.
    """

    def __init__(
        self, over: Problems | None = None, by: str = "category", rate: float = 0.5, temperature: float = 1.0,
        rule: str = "softmax", signal: str = "advantage", decay_unvisited: bool = False,
    ) -> None:  # fmt: skip
        if not 0 < rate <= 1 or not temperature > 0:
            raise WhetError(f"bandit: rate is in (0, 1] and temperature above 0, not {rate:g} and {temperature:g}")
        for what, value, known in (("rule", rule, RULES), ("signal", signal, SIGNALS)):
            if value not in known:
                raise unknown(f"{what} of the bandit", value, known)
        super().__init__(over)
        self.category, self.rate, self.temperature = category_of(by), rate, temperature
        self.rule, self.signal, self.decay_unvisited = rule, signal, decay_unvisited
        self.values: dict[str, float] = {}
        self.draws = 0
        self._means: dict[str, float] = {}  # of accuracy, when a category was last drawn
        self.restart(self.origin)

    # -- queues ----------------------------------------------------------------------------------------------------------
    def restart(self, origin: Mapping[str, Any]) -> None:
        self.origin, self.taken, self.given = dict(origin), 0, Counter[str]()

    def open(self) -> None:
        """Besides, a first look: the categories are then known."""
        self.over.load_state_dict(self.origin)
        wanted, self.taken = max(self.taken, self.over.size or LOOK), 0
        self.queues: dict[str, list[Problem]] = {}
        self._drawn: dict[str, str] = {}  # problem id -> category, until its answers are seen
        self._take(wanted)
        self.counts = {**self.over.counts, "categories": len(self.queues)}
        if self.over.size:
            self.counts |= {f"category {name}": len(self.queues[name]) for name in self.categories}

    def _take(self, n: int) -> None:
        self.taken += n
        for problem in self.over.draw(n):
            self.queues.setdefault(self.category(problem), []).append(problem)

    def pop(self, category: str) -> Problem:
        """The next problem of a category."""
        looked, place = 0, self.given[category]
        while place == len(self.queues.get(category, ())):
            if looked == PATIENCE:
                raise WhetError(f"there is no further problem of category '{category}' among {PATIENCE} problems")
            self._take(1)
            looked += 1
        self.given[category] += 1
        return self.queues[category][place]

    @property
    def categories(self) -> list[str]:
        """In order of their names."""
        return sorted(self.queues)

    # -- values ----------------------------------------------------------------------------------------------------------
    def probabilities(self) -> dict[str, float]:
        """Of each category, now."""
        names = self.categories
        shares = RULES[self.rule]([self.values.get(name, 0.0) for name in names], self.temperature)
        return dict(zip(names, shares, strict=True))

    def draw(self, n: int) -> list[Problem]:
        shares = self.probabilities()
        found = []
        for _ in range(n):
            rng = rng_for(self._seed, "bandit", self.draws)
            (category,) = rng.choices(list(shares), list(shares.values()))
            found.append(self.pop(category))
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
            rewards = {**dict.fromkeys(self.queues, 0.0), **rewards}
        for category, reward in rewards.items():
            self.values[category] = (1 - self.rate) * self.values.get(category, 0.0) + self.rate * reward

    def report(self) -> Mapping[str, float]:
        """Q and probability of each category, and the mean level that is drawn from now on."""
        shares = self.probabilities()
        level = sum(share * fmean(p.level for p in self.queues[name]) for name, share in shares.items())
        values = {f"value/{name}": self.values.get(name, 0.0) for name in shares}
        return {"level": level, **{f"share/{name}": share for name, share in shares.items()}, **values}

    def state_dict(self) -> dict[str, Any]:
        return {"origin": self.origin, "taken": self.taken, "given": dict(self.given), "values": dict(self.values),
                "means": dict(self._means), "draws": self.draws}  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.restart(state["origin"])
        self.taken, self.given, self.draws = int(state["taken"]), Counter(state["given"]), int(state["draws"])
        self.values, self._means = dict(state["values"]), dict(state["means"])
        self.open()
