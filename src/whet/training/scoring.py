"""Scoring: verdicts, rewards, and the per-token numbers that need a forward without a gradient."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

import torch

from whet.errors import WhetError
from whet.models.packing import Batch, sample_batches
from whet.models.policy import Policy
from whet.objectives.forward import run
from whet.objectives.value import values
from whet.objectives.views import Clean
from whet.records import Row, Sample
from whet.rewards import Attempt, Reward, total
from whet.sources import Scope, groups_of


def score(rows: Sequence[Row], reward: Reward, policy: Policy, scope: Scope) -> list[Attempt]:
    """Verify every response and reward each group.

    Writes `accuracy` (the raw verdict, whatever the reward's shape), `reward`, `reward/<part>`, `tokens`, `ended`,
    `unparseable` and `failed` (could not be judged) into the rows' numbers.
    """
    everyone: list[Attempt] = []
    for group in groups_of(rows):
        attempts = [_attempt(row, policy, scope) for row in group]
        scores = reward(attempts)
        if len(scores) != len(group):
            raise WhetError(f"reward: {len(scores)} scores for a group of {len(group)} answers")
        for row, attempt, parts in zip(group, attempts, scores, strict=True):
            verdict = attempt.verdict
            row.numbers |= {f"reward/{name}": value for name, value in parts.items()}
            row.numbers |= {
                "reward": total(parts),
                "accuracy": verdict.value,
                "tokens": float(attempt.tokens),
                "ended": float(not attempt.truncated),
                "unparseable": float(verdict.status == "unparseable"),
                "failed": float(verdict.status in ("error", "timeout")),
            }
        everyone += attempts
    return everyone


def _attempt(row: Row, policy: Policy, scope: Scope) -> Attempt:
    sample = row["response"]
    problem = scope.known[sample.problem_id]
    response = policy.format.read(sample)
    policy.meter.verifier_calls += 1
    verdict = scope.task.verify(problem, response)
    tokens = sum(len(s.ids) for s in sample.segments if s.sampled)
    budget = int((sample.settings or {}).get("max_new_tokens", 0))
    return Attempt(problem, response, verdict, tokens, not sample.ended, budget, row)


@torch.no_grad()
def prepare(
    rows: Sequence[Row], wants: frozenset[str], policies: Mapping[str, Policy], temperature: float, token_budget: int
) -> None:
    """Write `old_logprob`, `old_value` and `reference_logprob` of every sample into `per_token`, where wanted.

    A reference score that a sample already carries is kept: the reference is fixed for the stage.
    """
    samples = [s for row in rows for s in row.all()]
    policy = policies["policy"]
    if "old_logprob" in wants or "old_value" in wants:
        for batch in _batches(samples, token_budget, policy):
            forward = run(policy, batch, Clean(), 0, temperature)
            if "old_logprob" in wants:
                batch.scatter("old_logprob", forward.logprobs)
            if "old_value" in wants:
                batch.scatter("old_value", values(forward))
    if "reference_logprob" in wants:
        reference = policies["reference"]
        missing = [s for s in samples if "reference_logprob" not in s.per_token]
        off = policy.adapters_off() if reference is policy else contextlib.nullcontext()
        with off:
            for batch in _batches(missing, token_budget, policy):
                batch.scatter("reference_logprob", run(reference, batch, Clean(), 0, temperature).logprobs)


def _batches(samples: Sequence[Sample], token_budget: int, policy: Policy) -> list[Batch]:
    return [Batch.of(part, policy.device) for part in sample_batches(samples, token_budget)]
