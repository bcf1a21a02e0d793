"""Rows without a tokenizer, and the gradient of an objective as the trainer takes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tiny import tiny_policy
from whet.models.packing import micro_batches
from whet.models.policy import Policy
from whet.objectives import Context, Objective, Term, as_objective
from whet.records import Row, Sample, Segment


def exact(seed: int = 0) -> Policy:
    """A policy that computes in fp64 throughout: the norms of Llama-like models step down to fp32."""
    policy = tiny_policy("gpt2", dtype=torch.float64, seed=seed)
    policy.packs = False  # views are padded; padded too, what is clean can be compared with them bit for bit
    return policy


def sample(prompt: int, response: int, seed: int = 0, **fields: Any) -> Sample:
    """A sample of random tokens: a question, `response - 1` rationale tokens and an end token, the last two learnt."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, 300, (prompt + response - 1,), generator=draw).tolist()
    body = [Segment("rationale", ids[prompt:], learn=True, sampled=True)] if response > 1 else []
    segments = [Segment("question", ids[:prompt]), *body, Segment("eos", [1], learn=True, sampled=True)]
    return Sample(segments, problem_id=f"p{seed}", group_id=f"g{seed // 2}", **fields)


def rollouts(lengths: Sequence[tuple[int, int]] = ((3, 4), (5, 1), (2, 6), (4, 3))) -> list[Row]:
    """Rows of one response each, with an advantage that differs by row."""
    rows = []
    for place, (prompt, response) in enumerate(lengths):
        one = sample(prompt, response, place)
        one.per_token["advantage"] = (1.0 - 0.8 * place) * one.learn_mask
        rows.append(Row({"response": one}, {"weight": 0.5 - place}))
    return rows


def pairs(n: int = 4) -> list[Row]:
    return [Row({"chosen": sample(3 + i, 2 + i, i), "rejected": sample(3 + i, 5 - i, 100 + i)}) for i in range(n)]


def with_old(rows: Sequence[Row], policy: Policy, scale: float = 0.3) -> None:
    """Give every response old log-probs near the policy's own, so that the ratios differ from 1."""
    with torch.no_grad():
        ctx = Context(rows, {"policy": policy})
        old = ctx.forward("response").logprobs
        noise = torch.randn(len(old), generator=torch.Generator().manual_seed(5), dtype=old.dtype)
        ctx.batch("response").scatter("old_logprob", old + scale * noise)


def loss_of(
    objective: Objective | Term, rows: Sequence[Row], policies: Policy | Mapping[str, Policy], *, budget: int = 16,
    tokens: int = 10_000, seed: int = 0,
) -> Tensor:  # fmt: skip
    """The loss over all rows, in micro-batches of at most `tokens`; differentiable."""
    objective = as_objective(objective)
    policies = policies if isinstance(policies, Mapping) else {"policy": policies}
    counts = objective.counts(rows, budget)
    loss = torch.zeros((), dtype=policies["policy"].dtype)
    for part in micro_batches(rows, tokens):
        ctx = Context(part, policies, counts, seed, budget=budget)
        loss = loss + sum(total / count for total, count in objective.total(ctx).values())
    return loss


def gradient(objective: Objective | Term, rows: Sequence[Row], policies: Any, **how: Any) -> Tensor:
    """All gradients of the policy, flat."""
    policy = policies["policy"] if isinstance(policies, Mapping) else policies
    parameters = list(policy.trainable_parameters().values())
    found = torch.autograd.grad(loss_of(objective, rows, policies, **how), parameters, allow_unused=True)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(found, parameters, strict=True)]
    )


def distance(a: Tensor, b: Tensor) -> float:
    """Relative to the larger norm."""
    return float((a - b).norm() / max(a.norm(), b.norm(), torch.tensor(1e-300)))
