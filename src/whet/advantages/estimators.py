"""Estimators: from the rewards of one step's rows to advantages.

An estimator sees all rows of a step (whole groups), reads `row.numbers["reward"]` and writes `row.numbers["advantage"]`
and the response's `per_token["advantage"]`, (length,) float32, zero on tokens that are not learnt. A reward of NaN
marks an answer that could not be scored: it enters no mean and no deviation, and its advantage is 0. Standard
deviations are unbiased (n - 1). Means over a batch are over the rows given: across ranks, gather the rows first.

| name | advantage of answer i with reward r_i in a group of G |
|---|---|
| `group_std` | (r_i - mean) / (std + 1e-6): GRPO 2402.03300 |
| `group_mean` | r_i - mean: Dr.GRPO 2503.20783 |
| `batch_std` | (r_i - mean) / (std of all rewards of the batch + 1e-6) |
| `batch_whiten` | r_i - mean, whitened over all learnt tokens of the batch: REINFORCE++-baseline |
| `rloo` | r_i - mean of the others = G / (G - 1) (r_i - mean): 2402.14740 |
| `remax` | r_i - reward of the greedy answer: 2310.10505 |
| `raw` | r_i: REINFORCE |
| `reinforce_plus_plus` | discounted returns of the token rewards, whitened over all learnt tokens: 2501.03262 |
| `normalise_then_sum` | each part normalised in its group, summed, standardised over the batch |
| `process_supervised` | sum of the normalised rewards of the steps that end at or after a token: GRPO, section 4.1.3 |
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from whet.errors import WhetError
from whet.records import Row, Sample

Lone = Literal["refuse", "reinforce"]


class Estimator:
    """From scored rows to advantages.

    Attributes:
        needs: what must have been written into `per_token` before: `old_logprob`, `old_value`, `reference_logprob`.
        needs_group: whether a group of one answer gives no baseline, so that a stage must refuse it.
    """

    needs: frozenset[str] = frozenset()
    needs_group: bool = False

    def __call__(self, rows: Sequence[Row]) -> None:
        raise NotImplementedError


# -- reading and writing ---------------------------------------------------------------------------------------------
def numbers(rows: Sequence[Row], name: str = "reward") -> Tensor:
    """(rows,) float64 numbers of the rows."""
    for row in rows:
        if name not in row.numbers:
            raise WhetError(
                f"advantage: a row of problem '{row.problem_id}' has no number '{name}'; has it been scored?"
            )
    return torch.tensor([row.numbers[name] for row in rows], dtype=torch.float64)


def write(row: Row, advantage: Tensor | float) -> None:
    """Write an advantage: a number, or one for each learnt token; the row's number is then their mean."""
    for sample in row.get("response"):
        scatter(sample, "advantage", advantage)
    if isinstance(advantage, Tensor):
        advantage = float(advantage.mean()) if len(advantage) else 0.0
    row.numbers["advantage"] = advantage


def scatter(sample: Sample, name: str, values: Tensor | float) -> None:
    """Write values of the learnt tokens into `per_token[name]`, zero elsewhere."""
    full = torch.zeros(len(sample))
    full[sample.learn_mask] = torch.as_tensor(values, dtype=full.dtype)
    sample.per_token[name] = full


def group_indices(rows: Sequence[Row]) -> list[list[int]]:
    """Places of the rows of each group, groups in order of first appearance."""
    found: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        found.setdefault(row.group_id, []).append(place)
    return list(found.values())


# -- statistics ------------------------------------------------------------------------------------------------------
def centre(values: Tensor) -> Tensor:
    """Values minus their mean; exactly 0 where all are equal, which a plain mean does not promise."""
    shifted = values - values[:1]
    return shifted - shifted.mean() if len(values) else values


def deviation(values: Tensor) -> Tensor:
    """Unbiased standard deviation; 0 for fewer than two values."""
    return centre(values).std() if len(values) > 1 else values.new_zeros(())


def standardise(values: Tensor, epsilon: float = 1e-6) -> Tensor:
    return centre(values) / (deviation(values) + epsilon)


def whiten(values: Tensor, epsilon: float = 1e-8) -> Tensor:
    """(values - mean) / sqrt(variance + epsilon), over one dimension, unbiased."""
    return centre(values) / (deviation(values).square() + epsilon).sqrt()


def whiten_tokens(rows: Sequence[Row], values: Sequence[Tensor]) -> list[Tensor]:
    """Whiten per-token values over all learnt tokens of the rows that could be scored; the others get 0."""
    scored = [not math.isnan(row.numbers["reward"]) for row in rows]
    kept = [v for v, ok in zip(values, scored, strict=True) if ok]
    white = iter(whiten(torch.cat(kept)).split([len(v) for v in kept]) if kept else ())
    return [next(white) if ok else torch.zeros_like(v) for v, ok in zip(values, scored, strict=True)]


# -- group baselines -------------------------------------------------------------------------------------------------
@dataclass
class GroupBaseline(Estimator):
    """Reward minus the mean of its group, then scaled.

    Attributes:
        scale: by the group's deviation, the batch's, whitened over tokens, G / (G - 1), or not at all.
        epsilon: added to a deviation.
        lone: a group of one answer is refused, or has mean 0 and deviation 1 (verl): plain REINFORCE.
    """

    scale: Literal["group", "batch", "tokens", "leave-one-out", "none"]
    epsilon: float = 1e-6
    lone: Lone = "refuse"

    def __post_init__(self) -> None:
        if self.lone not in ("refuse", "reinforce"):
            raise WhetError(f"advantage: lone is refuse or reinforce, not '{self.lone}'")
        self.needs_group = self.lone == "refuse"

    def __call__(self, rows: Sequence[Row]) -> None:
        advantage = self.advantages(rows, numbers(rows))
        if self.scale == "tokens":
            lengths = [sum(s.count_learnt() for s in row.get("response")) for row in rows]
            values = whiten_tokens(rows, [a.expand(n) for a, n in zip(advantage, lengths, strict=True)])
            advantage = torch.stack([v[0] if len(v) else v.new_zeros(()) for v in values])
        for row, value in zip(rows, advantage, strict=True):
            write(row, float(value))

    def advantages(self, rows: Sequence[Row], rewards: Tensor) -> Tensor:
        """(rows,) advantages before any whitening over tokens."""
        advantage = torch.zeros_like(rewards)
        scorable = ~rewards.isnan()
        batch = deviation(rewards[scorable])
        for places in group_indices(rows):
            index = torch.tensor(places)
            index = index[scorable[index]]
            if len(places) == 1:
                if self.lone == "refuse":
                    raise WhetError(
                        f"advantage: the group of problem '{rows[places[0]].problem_id}' has one answer and so no "
                        "baseline; sample a group of 2 or more, or use lone=reinforce"
                    )
                advantage[index] = rewards[index]
                continue
            group = rewards[index]
            advantage[index] = centre(group) * self._factor(group, batch)
        return advantage

    def _factor(self, group: Tensor, batch: Tensor) -> Tensor | float:
        if self.scale == "group":
            return 1 / (deviation(group) + self.epsilon)
        if self.scale == "batch":
            return 1 / (batch + self.epsilon)
        if self.scale == "leave-one-out":
            return len(group) / max(len(group) - 1, 1)
        return 1.0


def group_std(epsilon: float = 1e-6, lone: Lone = "refuse") -> GroupBaseline:
    return GroupBaseline("group", epsilon, lone)


def group_mean(lone: Lone = "refuse") -> GroupBaseline:
    return GroupBaseline("none", lone=lone)


def batch_std(epsilon: float = 1e-6, lone: Lone = "refuse") -> GroupBaseline:
    return GroupBaseline("batch", epsilon, lone)


def batch_whiten(lone: Lone = "refuse") -> GroupBaseline:
    return GroupBaseline("tokens", lone=lone)


def rloo(lone: Lone = "refuse") -> GroupBaseline:
    return GroupBaseline("leave-one-out", lone=lone)


@dataclass
class NormaliseThenSum(Estimator):
    """Several rewards: each part standardised in its group, the weighted sum standardised over the batch (TRL's
    `normalize_then_sum`). The default elsewhere is to normalise the sum, `row.numbers["reward"]`.

    Attributes:
        parts: weight of each `reward/<part>`.
    """

    parts: Mapping[str, float]
    epsilon: float = 1e-6
    needs_group = True

    def __call__(self, rows: Sequence[Row]) -> None:
        scorable = ~numbers(rows).isnan()
        total = torch.zeros(len(rows), dtype=torch.float64)
        each = GroupBaseline("group", self.epsilon)
        for part, weight in self.parts.items():
            total += weight * each.advantages(rows, numbers(rows, f"reward/{part}").where(scorable, torch.nan))
        advantage = torch.zeros_like(total)
        advantage[scorable] = standardise(total[scorable], self.epsilon)
        for row, value in zip(rows, advantage, strict=True):
            write(row, float(value))


@dataclass
class ProcessSupervised(Estimator):
    """Rewards of steps: `per_token["step_reward"]` of the response, (length,), NaN except at each step's last token.
    All step rewards of a group are standardised together."""

    epsilon: float = 1e-6

    def __call__(self, rows: Sequence[Row]) -> None:
        for places in group_indices(rows):
            steps = [self._steps(rows[i]) for i in places]
            ends = [~s.isnan() for s in steps]
            given = standardise(torch.cat([s[e] for s, e in zip(steps, ends, strict=True)]), self.epsilon)
            for i, end, part in zip(places, ends, given.split([int(e.sum()) for e in ends]), strict=True):
                token = torch.zeros(len(end), dtype=torch.float64)
                token[end] = part
                write(rows[i], token.flip(0).cumsum(0).flip(0)[rows[i]["response"].learn_mask])

    @staticmethod
    def _steps(row: Row) -> Tensor:
        sample = row["response"]
        if "step_reward" not in sample.per_token:
            raise WhetError(f"advantage: the response to '{sample.problem_id}' has no per_token['step_reward']; "
                            "process_supervised needs a reward for each step")  # fmt: skip
        steps = sample.per_token["step_reward"].double()
        return torch.full_like(steps, torch.nan) if math.isnan(row.numbers.get("reward", 0.0)) else steps


# -- without groups --------------------------------------------------------------------------------------------------
class ReMax(Estimator):
    """The reward minus that of the greedy answer to the same problem (ReMax, 2310.10505): no statistics of a group.

    The greedy answer is the row of each group whose number `greedy` is 1 (`sources.WithGreedy`). It is withdrawn from
    learning. Where it could not be judged there is no baseline, and the group learns nothing.
    """

    def __call__(self, rows: Sequence[Row]) -> None:
        rewards = numbers(rows).tolist()
        for places in group_indices(rows):
            greedy = [i for i in places if rows[i].numbers.get("greedy")]
            if len(greedy) != 1:
                raise WhetError(f"advantage: the group of problem '{rows[places[0]].problem_id}' has {len(greedy)} greedy answers "
                                "and remax needs one: collect=WithGreedy(...)")  # fmt: skip
            for i in places:
                advantage = rewards[i] - rewards[greedy[0]]
                write(rows[i], 0.0 if math.isnan(advantage) else advantage)
            for sample in rows[greedy[0]].get("response"):
                sample.per_token["mask"] = torch.zeros(len(sample), dtype=torch.bool)


class Raw(Estimator):
    """The reward itself."""

    def __call__(self, rows: Sequence[Row]) -> None:
        for row, value in zip(rows, numbers(rows).nan_to_num(0.0), strict=True):
            write(row, float(value))


def token_rewards(row: Row, kl_coefficient: float = 0.0, channels: int = 1) -> Tensor:
    """(actions, channels) float64 rewards of the learnt tokens of a row's response.

    The row's reward stands on the last action (the end token, or the last one of a truncated answer), in channel 0.
    Dense rewards `per_token["reward"]` are added: (length,) to the last channel, (length, channels - 1) to all but the
    first. Of -beta k1, k1 = log pi_old - log ref, every channel gets an equal part.
    """
    sample = row["response"]
    mask = sample.learn_mask
    rewards = torch.zeros(int(mask.sum()), channels, dtype=torch.float64)
    if not len(rewards):
        return rewards
    rewards[-1, 0] = row.numbers["reward"]
    if "reward" in sample.per_token:
        dense = sample.per_token["reward"][mask].double()
        if dense.dim() == 1:
            rewards[:, -1] += dense
        else:
            rewards[:, 1:] += dense
    if kl_coefficient:
        rewards -= kl_coefficient / channels * action_kl(sample)[:, None]
    return rewards


def action_kl(sample: Sample) -> Tensor:
    """(actions,) k1 = log pi_old - log ref at the learnt tokens."""
    for name in ("old_logprob", "reference_logprob"):
        if name not in sample.per_token:
            raise WhetError(f"advantage: the response to '{sample.problem_id}' has no per_token['{name}']")
    return (sample.per_token["old_logprob"] - sample.per_token["reference_logprob"])[sample.learn_mask].double()


def discounted(rewards: Tensor, gamma: float) -> Tensor:
    """(T,) sums of gamma^(u - t) r_u over u >= t."""
    if gamma == 1.0:
        return rewards.flip(0).cumsum(0).flip(0)
    returns = torch.zeros_like(rewards)
    running = rewards.new_zeros(())
    for t in reversed(range(len(rewards))):
        running = rewards[t] + gamma * running
        returns[t] = running
    return returns


@dataclass
class ReinforcePlusPlus(Estimator):
    """Returns of the token rewards from each token on, whitened over all learnt tokens of the batch. No group.

    Attributes:
        gamma: discount of a token.
        kl_coefficient: beta of the KL to the reference in the reward; 0 needs no reference.
    """

    gamma: float = 1.0
    kl_coefficient: float = 0.0

    def __post_init__(self) -> None:
        self.needs = frozenset({"old_logprob", "reference_logprob"} if self.kl_coefficient else ())

    def __call__(self, rows: Sequence[Row]) -> None:
        numbers(rows)
        returns = [discounted(token_rewards(row, self.kl_coefficient)[:, 0], self.gamma) for row in rows]
        for row, value in zip(rows, whiten_tokens(rows, returns), strict=True):
            write(row, value)


raw = Raw
remax = ReMax
reinforce_plus_plus = ReinforcePlusPlus
normalise_then_sum = NormaliseThenSum
process_supervised = ProcessSupervised
