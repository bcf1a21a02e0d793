"""Rewards see all attempts at one problem and give each attempt named parts, whose sum is its reward.

    reward = accuracy() + 0.1 * format_bonus() + gate(accuracy(), overlong(4096))

Filters, curricula and logs read `Attempt.verdict`, never the shaped sum. A sum that is NaN means that the attempt could
not be scored; advantages leave it out of a group's statistics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from whet.errors import WhetError, unknown
from whet.tasks.functions import call_trl, is_trl, load_function, parameters
from whet.tasks.problem import Problem, Response, Verdict

if TYPE_CHECKING:
    from whet.models.policy import Policy
    from whet.records import Row

Parts = dict[str, float]
NAN = float("nan")


@dataclass(slots=True)
class Attempt:
    """One response to a problem, judged.

    Attributes:
        tokens: the length of the response, end token included.
        truncated: whether the length limit cut it off.
        budget: that limit, in tokens; 0 where unknown.
        row: the row it will be learnt as, where there is one (its sample `response` has the token ids).
    """

    problem: Problem
    response: Response
    verdict: Verdict
    tokens: int
    truncated: bool
    budget: int = 0
    row: Row | None = None


class Reward:
    """A function of a group; subclass it and write `__call__`, or wrap a function with `each` or `from_function`.

    Rewards add (`a + b`: all parts; parts of one name add up) and scale (`0.1 * a`). One that remembers overrides
    `state_dict` and `load_state_dict`; those it is made of (`children`) are saved with it.
    """

    children: tuple[Reward, ...] = ()

    def bind(self, policy: Policy) -> None:
        """Once, before anything moves: what looks at answers with the policy as it was at the run's start copies it here."""
        for child in self.children:
            child.bind(policy)

    def __call__(self, group: Sequence[Attempt]) -> list[Parts]:
        """The parts for each attempt of one problem's group, in order."""
        raise NotImplementedError

    def __add__(self, other: Reward) -> Reward:
        return _Sum((self, other))

    def __mul__(self, factor: float) -> Reward:
        return _Scaled(self, factor)

    __rmul__ = __mul__

    def state_dict(self) -> dict[str, Any]:
        states = [child.state_dict() for child in self.children]
        return {"children": states} if any(states) else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        states = state.get("children", [{}] * len(self.children))
        if len(states) != len(self.children) or set(state) - {"children"}:
            raise WhetError("the saved state of the reward is of another reward; use the run's own reward settings")
        for child, saved in zip(self.children, states, strict=True):
            child.load_state_dict(saved)


def total(parts: Mapping[str, float]) -> float:
    """The reward: the sum of its parts; NaN where one of them is."""
    return sum(parts.values(), 0.0)


class _Sum(Reward):
    def __init__(self, children: tuple[Reward, ...]) -> None:
        self.children = children

    def __call__(self, group: Sequence[Attempt]) -> list[Parts]:
        summed: list[Parts] = [{} for _ in group]
        for child in self.children:
            for into, parts in zip(summed, child(group), strict=True):
                for name, value in parts.items():
                    into[name] = into.get(name, 0.0) + value
        return summed


class _Scaled(Reward):
    def __init__(self, child: Reward, factor: float) -> None:
        self.children, self.factor = (child,), float(factor)

    def __call__(self, group: Sequence[Attempt]) -> list[Parts]:
        return [{name: self.factor * value for name, value in parts.items()} for parts in self.children[0](group)]


class _Each(Reward):
    def __init__(self, name: str, score: Callable[[Attempt], float]) -> None:
        self.name, self.score = name, score

    def __call__(self, group: Sequence[Attempt]) -> list[Parts]:
        return [{self.name: float(self.score(attempt))} for attempt in group]


def each(name: str, score: Callable[[Attempt], float]) -> Reward:
    """One part, a function of the attempt alone."""
    return _Each(name, score)


def accuracy() -> Reward:
    """Part `accuracy`: the verdict's value, NaN where the verifier could not judge."""
    return each("accuracy", lambda attempt: attempt.verdict.value)


def format_bonus() -> Reward:
    """Part `format`: 1 where the response ended and the Format found its answer's tag, else 0.

    A verdict with a part `format` (a task that judges its own form) decides instead.
    """

    def score(attempt: Attempt) -> float:
        own = attempt.verdict.parts.get("format")
        if own is not None:
            return own
        response = attempt.response
        # a Format that found no tag hands over no answer, or the whole text as the answer
        return float(response.ended and response.answer is not None and response.answer != response.text)

    return each("format", score)


class _Gate(Reward):
    def __init__(self, by: Reward | Callable[[Attempt], bool], reward: Reward) -> None:
        self.by = by
        self.children = (by, reward) if isinstance(by, Reward) else (reward,)

    def __call__(self, group: Sequence[Attempt]) -> list[Parts]:
        if isinstance(self.by, Reward):
            keys = [total(parts) for parts in self.by(group)]
        else:
            keys = [float(self.by(attempt)) for attempt in group]
        factors = [NAN if math.isnan(key) else float(key > 0) for key in keys]
        gated = self.children[-1](group)
        # shut means 0 even where the part itself is NaN; a key that is unknown makes the part unknown
        return [
            {name: value if f == 1 else f for name, value in parts.items()}
            for f, parts in zip(factors, gated, strict=True)
        ]


def gate(by: Reward | Callable[[Attempt], bool], reward: Reward) -> Reward:
    """`reward` where `by` is positive (or true), else 0; `by` itself is not paid out."""
    return _Gate(by, reward)


class _Clip(Reward):
    def __init__(self, reward: Reward, low: float, high: float) -> None:
        if not low < high:
            raise WhetError(f"clip needs low < high, not {low:g} and {high:g}")
        self.children, self.low, self.high = (reward,), low, high

    def __call__(self, group: Sequence[Attempt]) -> list[Parts]:
        return [{**p, "clip": self._excess(total(p)) + p.get("clip", 0.0)} for p in self.children[0](group)]

    def _excess(self, value: float) -> float:
        return 0.0 if math.isnan(value) else min(max(value, self.low), self.high) - value


def clip(reward: Reward, low: float, high: float) -> Reward:
    """The sum kept within [low, high]; what that takes away (or adds) is the part `clip`."""
    return _Clip(reward, low, high)


class _Route(Reward):
    def __init__(self, by: Callable[[Attempt], str], rewards: Mapping[str, Reward]) -> None:
        self.by, self.rewards, self.children = by, dict(rewards), tuple(rewards.values())

    def __call__(self, group: Sequence[Attempt]) -> list[Parts]:
        keys = [self.by(attempt) for attempt in group]
        for key in keys:
            if key not in self.rewards:
                raise unknown("reward route", key, self.rewards)
        scored = {key: self.rewards[key](group) for key in dict.fromkeys(keys)}
        return [scored[key][i] for i, key in enumerate(keys)]


def route(by: Callable[[Attempt], str], rewards: Mapping[str, Reward]) -> Reward:
    """For each attempt the reward that `by` names (`lambda a: a.problem.task`); each of them sees the whole group."""
    return _Route(by, rewards)


class _TRL(Reward):
    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self.function, self.name = function, name

    def __call__(self, group: Sequence[Attempt]) -> list[Parts]:
        ids = None
        if all(a.row is not None for a in group):
            ids = [a.row["response"].response for a in group if a.row is not None]
        try:
            values = call_trl(self.function, [a.problem for a in group], [a.response.text for a in group], ids)
        except WhetError:
            raise
        except Exception as failure:
            raise WhetError(f"reward function '{self.name}' raised {type(failure).__name__} on problem "
                            f"'{group[0].problem.id}': {failure}") from failure  # fmt: skip
        return [{self.name: value} for value in values]


def from_function(function: Callable[..., Any], name: str | None = None) -> Reward:
    """A TRL reward function, unchanged: `f(prompts, completions, **columns) -> list[float | None]`.

    It gets what TRL's GRPOTrainer gives it: texts, or lists of messages where the problem has messages; the row's
    columns as lists; `completion_ids` where the attempts have rows; without `**kwargs` only what it names. None is NaN.
    An exception of its own becomes a WhetError that names the problem.
    """
    return _TRL(function, name or getattr(function, "__name__", type(function).__name__))


class _Group(Reward):
    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, group: Sequence[Attempt]) -> list[Parts]:
        return self.function(group)


def load_reward(spec: str) -> Reward:
    """The reward `module.py:name` of a user's file: a Reward, a TRL reward function, or `f(group) -> [parts]`."""
    found = load_function(spec)
    if isinstance(found, Reward):
        return found
    if is_trl(found):
        return from_function(found)
    if callable(found) and "group" in parameters(found):
        return _Group(found)
    raise WhetError(f"'{spec}' is no reward: write f(prompts, completions, **columns) -> [float], f(group) -> "
                    "[{part: value}], or a Reward")  # fmt: skip
