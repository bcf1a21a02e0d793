"""Scoring: verdicts, rewards, and the per-token numbers that need a forward without a gradient."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from whet.errors import WhetError
from whet.models.packing import Batch
from whet.models.policy import Policy
from whet.objectives.forward import run
from whet.objectives.value import values
from whet.objectives.views import Clean
from whet.records import Row
from whet.rewards import Attempt, Reward, total
from whet.sources import Scope, groups_of, verdicts
from whet.training.references import References


def score(rows: Sequence[Row], reward: Reward, policy: Policy, scope: Scope) -> list[Attempt]:
    """Verify every response and reward each group. The verdicts are dealt out to the ranks; rewards are cheap and may
    remember, so that each rank asks for all of them, and those of the first rank count.

    Writes `accuracy` (the raw verdict, whatever the reward's shape), `reward`, `reward/<part>`, `tokens`, `ended`,
    `unparseable` and `failed` (could not be judged) into the rows' numbers.
    """
    groups = groups_of(rows)
    everyone = _attempts([row for group in groups for row in group], policy, scope)
    left = iter(everyone)
    attempts = [[next(left) for _ in group] for group in groups]
    scored = policy.ranks.broadcast([list(reward(group)) for group in attempts])
    for group, scores in zip(attempts, scored, strict=True):
        if len(scores) != len(group):
            raise WhetError(f"reward: {len(scores)} scores for a group of {len(group)} answers")
        for attempt, parts in zip(group, scores, strict=True):
            row, verdict = attempt.row, attempt.verdict
            assert row is not None
            row.numbers |= {f"reward/{name}": value for name, value in parts.items()}
            row.numbers |= {
                "reward": total(parts),
                "accuracy": verdict.value,
                "tokens": float(attempt.tokens),
                "ended": float(not attempt.truncated),
                "unparseable": float(verdict.status == "unparseable"),
                "failed": float(verdict.status in ("error", "timeout")),
            }
    return everyone


def _attempts(rows: Sequence[Row], policy: Policy, scope: Scope) -> list[Attempt]:
    samples = [row["response"] for row in rows]
    asked = [(scope.known[sample.problem_id], policy.format.read(sample)) for sample in samples]
    found: list[Attempt] = []
    for row, sample, (problem, response), verdict in zip(
        rows, samples, asked, verdicts(scope.task, asked, policy), strict=True
    ):
        tokens = sum(len(s.ids) for s in sample.segments if s.sampled)
        budget = int((sample.settings or {}).get("max_new_tokens", 0))
        found.append(Attempt(problem, response, verdict, tokens, not sample.ended, budget, row))
    return found


@torch.no_grad()
def prepare(
    rows: Sequence[Row], wants: frozenset[str], policies: Mapping[str, Policy], temperature: float, token_budget: int,
    references: References | None = None,
) -> None:  # fmt: skip
    """Write `old_logprob`, `old_value` and `reference_logprob` of every sample into `per_token`, where wanted.

    A reference score that a sample already carries is kept: the reference is fixed for the stage. Those of given texts
    are kept in `references` for the epochs to come.
    """
    policy = policies["policy"]
    old = wants & {"old_logprob", "old_value"}
    if old:

        def now(batch: Batch) -> dict[str, Tensor]:
            forward = run(policy, batch, Clean(), 0, temperature)
            return {name: forward.logprobs if name == "old_logprob" else values(forward) for name in sorted(old)}

        _write(rows, now, policy, token_budget)
    if "reference_logprob" in wants:
        reference = policies["reference"]

        def fixed(batch: Batch) -> dict[str, Tensor]:
            return {"reference_logprob": run(reference, batch, Clean(), 0, temperature).logprobs}

        if references is not None:
            references.read(rows)
        missing = [row for row in rows if any("reference_logprob" not in s.per_token for s in row.all())]
        with policy.adapters_off() if reference is policy else contextlib.nullcontext():
            _write(missing, fixed, policy, token_budget)
        if references is not None:
            references.keep(missing)


def _write(
    rows: Sequence[Row], forward: Callable[[Batch], Mapping[str, Tensor]], policy: Policy, token_budget: int
) -> None:
    """Write what `forward` finds at the learnt tokens into `per_token` of every sample; each rank runs whole groups."""

    def own(groups: Sequence[Sequence[Row]]) -> list[list[dict[str, Tensor]]]:
        names: set[str] = set()
        samples = [Row({"response": s}) for rows in groups for row in rows for s in row.all()]
        for part in policy.micro_batches(samples, token_budget):
            batch = Batch.of([row["response"] for row in part], policy.device)
            for name, found in forward(batch).items():
                batch.scatter(name, found)
                names.add(name)
        return [[{n: s.per_token[n] for n in names} for row in rows for s in row.all()] for rows in groups]

    groups = groups_of(rows)
    found = policy.ranks.map(own, groups, cost=lambda group: sum(len(s) for row in group for s in row.all()))
    for group, written in zip(groups, found, strict=True):
        for sample, tables in zip((s for row in group for s in row.all()), written, strict=True):
            sample.per_token |= tables
