"""Generalised advantage estimation (1506.02438) over tokens, and the KL-in-reward that goes with it.

    d_t = r_t + gamma V_{t+1} - V_t        A_t = d_t + gamma lam A_{t+1}        R_t = A_t + V_t

V_t is the value of the state before action t. V and A behind the last action are 0, also where the answer was
truncated: no bootstrap. Tokens inside a response that are no actions (observations) are skipped: V and A pass through.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from whet.advantages.estimators import Estimator, action_kl, numbers, scatter, token_rewards, whiten_tokens, write
from whet.errors import WhetError
from whet.records import Row, Sample


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float | Sequence[float] = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Advantages and returns, both (B, T), zero outside the mask, not whitened.

    Args:
        rewards: (B, T), or (B, T, K): channels with a discount each, which only lam = 1 defines: then
            R_t = sum over k and u >= t of gamma_k^(u - t) r_{u,k}, and A = R - V.
        values: (B, T); what stands outside the mask is never read.
        mask: (B, T) bool, the actions.
        gamma: one discount, or K.
    """
    if rewards.dim() == 3:
        return _channels(rewards, values, mask, gamma, lam)
    if not isinstance(gamma, int | float):
        raise WhetError("gae: several discounts need rewards of as many channels")
    advantages = torch.zeros_like(values)
    later_value = later_advantage = values.new_zeros(len(values))
    for t in reversed(range(values.shape[1])):
        advantage = rewards[:, t] + gamma * later_value - values[:, t] + gamma * lam * later_advantage
        later_value = torch.where(mask[:, t], values[:, t], later_value)
        later_advantage = torch.where(mask[:, t], advantage, later_advantage)
        advantages[:, t] = torch.where(mask[:, t], advantage, 0.0)
    return advantages, torch.where(mask, advantages + values, 0.0)


def _channels(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float | Sequence[float], lam: float
) -> tuple[Tensor, Tensor]:
    discounts = torch.as_tensor(gamma, dtype=rewards.dtype, device=rewards.device).reshape(-1)
    if len(discounts) not in (1, rewards.shape[2]):
        raise WhetError(f"gae: {len(discounts)} discounts for {rewards.shape[2]} reward channels")
    if lam != 1.0:
        raise WhetError(f"gae: reward channels need lam=1, not {lam:g}")
    returns = torch.zeros_like(values)
    running = rewards.new_zeros(rewards.shape[0], rewards.shape[2])
    for t in reversed(range(values.shape[1])):
        act = mask[:, t, None]
        running = torch.where(act, rewards[:, t] + discounts * running, running)
        returns[:, t] = torch.where(mask[:, t], running.sum(1), 0.0)
    return torch.where(mask, returns - values, 0.0), returns


class AdaptiveKL:
    """A coefficient beta that holds the KL near a target: beta <- beta (1 + clip(KL / target - 1, +-0.2) n / horizon).

    Args:
        value: beta to begin with.
        target: wanted KL, a mean over tokens, in nats.
        horizon: samples over which beta changes by up to a factor e^0.2.
    """

    def __init__(self, value: float, target: float, horizon: float = 10_000) -> None:
        if value <= 0 or target <= 0 or horizon <= 0:
            raise WhetError("adaptive KL: value, target and horizon must be above 0")
        self.value, self.target, self.horizon = value, target, horizon

    def update(self, kl: float, samples: int) -> None:
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.value *= 1 + error * samples / self.horizon

    def state_dict(self) -> dict[str, float]:
        return {"value": self.value}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.value = state["value"]


class GeneralizedAdvantage(Estimator):
    """PPO's per-token advantages from a value head. Also writes `per_token["return"]`, and `kl` (mean k1) of each row.

    Args:
        gamma: discount of a token, or one for each reward channel (see `token_rewards`; lam must be 1).
        lam: 0 is one-step TD, 1 the return minus the value.
        kl_coefficient: beta of -beta (log pi_old - log ref) in the token rewards: a number, 0, or an `AdaptiveKL`.
        whiten: advantages over all learnt tokens of the step; returns stay as they are.
    """

    def __init__(
        self,
        gamma: float | Sequence[float] = 1.0,
        lam: float = 0.95,
        kl_coefficient: float | AdaptiveKL = 0.0,
        whiten: bool = True,
    ) -> None:
        self.channels = 1 if isinstance(gamma, int | float) else len(gamma)
        if self.channels > 1 and lam != 1.0:
            raise WhetError(f"generalized_advantage: several discounts need lam=1, not {lam:g}")
        self.gamma, self.lam, self.whiten = gamma, lam, whiten
        self.kl_coefficient = kl_coefficient
        wants = {"old_logprob", "old_value"} | ({"reference_logprob"} if kl_coefficient else set())
        self.needs = frozenset(wants)

    @property
    def beta(self) -> float:
        held = self.kl_coefficient
        return held.value if isinstance(held, AdaptiveKL) else held

    def __call__(self, rows: Sequence[Row]) -> None:
        scorable = ~numbers(rows).isnan()
        rewards = [token_rewards(row, self.beta, self.channels) for row in rows]
        values = [_old_values(row["response"]) for row in rows]
        lengths = torch.tensor([len(v) for v in values])
        # only actions are laid out, so there is nothing to skip but the padding
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        reward = pad_sequence(rewards, batch_first=True)
        reward = reward if self.channels > 1 else reward[:, :, 0]
        advantages, returns = gae(reward, pad_sequence(values, batch_first=True), mask, self.gamma, self.lam)
        given = [a[:n] if ok else torch.zeros(int(n)) for a, n, ok in zip(advantages, lengths, scorable, strict=True)]
        if self.whiten:
            given = whiten_tokens(rows, given)
        for row, advantage, target, value, ok in zip(rows, given, returns, values, scorable, strict=True):
            write(row, advantage)
            # an answer that could not be scored teaches the value head nothing either
            scatter(row["response"], "return", target[: len(value)] if ok else value)
        if self.kl_coefficient:
            self._observe(rows)

    def _observe(self, rows: Sequence[Row]) -> None:
        kls = [action_kl(row["response"]) for row in rows]
        for row, kl in zip(rows, kls, strict=True):
            row.numbers["kl"] = float(kl.mean()) if len(kl) else 0.0
        if isinstance(self.kl_coefficient, AdaptiveKL):
            self.kl_coefficient.update(float(torch.cat(kls).mean()), len(rows))

    def state_dict(self) -> dict[str, Any]:
        return self.kl_coefficient.state_dict() if isinstance(self.kl_coefficient, AdaptiveKL) else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if isinstance(self.kl_coefficient, AdaptiveKL):
            self.kl_coefficient.load_state_dict(state)


def explained_variance(rows: Sequence[Row]) -> float:
    """1 - var(R - V) / var(R) over the learnt tokens of a step; NaN where the returns do not vary."""
    samples = [row["response"] for row in rows]
    returns = torch.cat([s.per_token["return"][s.learn_mask].double() for s in samples])
    error = returns - torch.cat([_old_values(s) for s in samples])
    spread = float(returns.var())
    return 1 - float(error.var()) / spread if spread > 0 else math.nan


def _old_values(sample: Sample) -> Tensor:
    if "old_value" not in sample.per_token:
        raise WhetError(f"generalized_advantage: the response to '{sample.problem_id}' has no per_token['old_value']; "
                        "the stage needs a value head")  # fmt: skip
    return sample.per_token["old_value"][sample.learn_mask].double()


generalized_advantage = GeneralizedAdvantage
