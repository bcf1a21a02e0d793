"""One optimizer step: gradients that do not depend on how it is cut up, skips, guards and hooks."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from trained import trained_policy
from whet.advantages import generalized_advantage, group_std
from whet.errors import WhetError
from whet.models.policy import Policy
from whet.objectives import dpo, kl_to_reference, nll, policy_gradient, value_head, value_loss
from whet.objectives.contrastive import CHAIN, contrast
from whet.objectives.forward import Context
from whet.objectives.objective import Objective, Term, as_objective
from whet.records import Row
from whet.rewards import accuracy
from whet.sources import Demonstrations, Pairs, Rollouts, Scope, Uniform
from whet.tasks import get_task
from whet.training.fit import frozen_copy
from whet.training.learner import MOST_NONFINITE, Learner
from whet.training.optimizer import AdamW
from whet.training.scoring import prepare, score
from whet.training.stage import Update
from whet.weights import Lora, Weights

EXACT = 10_000  # a token budget that all rows fit in
OBJECTIVES: dict[str, Objective | Term] = {
    "sft": nll(),
    "sft sequence": nll(normalise="sequence"),
    "grpo": policy_gradient() + 0.1 * kl_to_reference(),
    "dr-grpo": policy_gradient(normalise="constant"),
    "gspo": policy_gradient(ratio="sequence", normalise="sequence"),
    "ppo": policy_gradient(normalise="token") + 0.1 * value_loss(),
    "contrast": policy_gradient() + 0.5 * contrast(),
    "dpo": dpo() + 0.5 * nll(role="chosen", name="sft"),
    "ipo": dpo("ipo"),
}


def rows_of(name: str, policy: Policy, reference: Policy) -> list[Row]:
    """Rows as the loop records them, of ragged lengths."""
    task = get_task("parity:level=1-2")
    problems, scope = Uniform(), Scope(task, 1)
    problems.bind(task, 1)
    if "sft" in name:
        rows = Demonstrations().rows(problems, 6, policy, scope)
        for row in rows[::2]:  # some without their rationale
            row["response"].segments.pop(1)
        return rows
    if name in ("dpo", "ipo"):
        collect = Pairs(problems=16, samples=4, temperature=1.0)
        collect.bind(task)
        rows = collect.build(problems, policy, scope)[:5]
        prepare(rows, frozenset({"reference_logprob"}), {"policy": policy, "reference": reference}, 1.0, EXACT)
        return rows
    collect = Rollouts(4, 12, 1.5)  # so hot that lengths differ
    rows = collect.rows(problems, 3, policy, scope)
    wants = frozenset({"old_logprob", "reference_logprob"} | ({"old_value"} if name == "ppo" else set()))
    score(rows, accuracy(), policy, scope)
    prepare(rows, wants, {"policy": policy, "reference": reference}, 1.5, EXACT)
    draw = torch.Generator().manual_seed(2)
    for row in rows if name == "contrast" else ():
        row.vectors[CHAIN] = torch.randn(8, generator=draw)
    for row in rows[::2]:
        row.numbers["reward"] += 0.25
    (generalized_advantage() if name == "ppo" else group_std())(rows)
    return rows


def setup(name: str, dtype: torch.dtype, weights: Weights | None = None) -> tuple[Learner, list[Row]]:
    """A learner whose policy has moved away from the one that made the rows, and those rows."""
    kind = "gpt2" if dtype == torch.float64 else "qwen3"  # Llama's relatives take their norms in fp32
    policy = trained_policy(kind, dtype=dtype)
    weights = weights or Weights()
    weights.attach(policy, 0)
    if name == "ppo":
        policy.modules["value"] = value_head(policy)
    if name == "contrast":
        torch.manual_seed(0)
        policy.modules["value"] = value_head(policy, 8)
    reference = frozen_copy(trained_policy(kind, dtype=dtype, steps=30), {})
    rows = rows_of(name, policy, reference)
    assert len({len(s) for row in rows for s in row.all()}) > 1, "rows of one length show nothing about padding"
    with torch.no_grad():
        draw = torch.Generator().manual_seed(0)
        for p in policy.trainable_parameters().values():
            p += 0.02 * torch.randn(p.shape, generator=draw, dtype=p.dtype)
    learner = Learner(Update(OBJECTIVES[name]), {"policy": policy, "reference": reference}, weights, steps=10,
                      token_budget=EXACT, temperature=1.5 if name in ("contrast", "grpo", "ppo", "gspo", "dr-grpo") else 1.0,
                      budget=12)  # fmt: skip
    return learner, rows


def gradient(learner: Learner, rows: Sequence[Row], token_budget: int = EXACT) -> tuple[Tensor, dict[str, float]]:
    learner.token_budget = token_budget
    found = learner.accumulate(rows, 0, "here")
    given = [p.grad for p in learner.parameters.values() if p.grad is not None]
    return torch.cat([g.flatten().double() for g in given]), found


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / a.norm())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=["fp32", "fp64"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_gradient_does_not_depend_on_how_the_batch_is_cut(name: str, dtype: torch.dtype, tolerance: float) -> None:
    """One micro-batch (all padded to the longest), a row each (no padding), something between, and another order."""
    learner, rows = setup(name, dtype)
    whole, losses = gradient(learner, rows)
    assert float(whole.norm()) > 1e-3
    shuffled = rows[:]
    random.Random(3).shuffle(shuffled)
    assert [r.problem_id for r in shuffled] != [r.problem_id for r in rows] or name in ("grpo", "ppo", "contrast")
    for order, token_budget in ((rows, 1), (rows, 90), (shuffled, EXACT), (shuffled, 60), (rows[::-1], 1)):
        other, found = gradient(learner, order, token_budget)
        assert distance(whole, other) < tolerance
        for key in losses:
            if key.startswith("loss/") or key == "learnt_tokens":
                assert found[key] == pytest.approx(losses[key], rel=1e-4 if dtype == torch.float32 else 1e-9, abs=1e-6)


@pytest.mark.parametrize("name", ["sft", "grpo", "dpo"])
def test_the_same_holds_for_adapters(name: str) -> None:
    learner, rows = setup(name, torch.float64, Lora(4))
    whole, _ = gradient(learner, rows)
    assert distance(whole, gradient(learner, rows[::-1], 1)[0]) < 1e-10


def test_a_row_without_an_advantage_still_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dead groups dilute the mean over sequences: leaving them out would be another objective."""
    learner, rows = setup("grpo", torch.float64)
    learner.update = Update(policy_gradient(normalise="sequence"))
    dead = [row for row in rows if not row.numbers["advantage"]]
    live = [row for row in rows if row.numbers["advantage"]]
    for row in live[:2]:
        row["response"].per_token["advantage"].zero_()
        dead, live = [*dead, row], [r for r in live if r is not row]
    alone, _ = gradient(learner, live)
    together, _ = gradient(learner, [*live, *dead])
    assert distance(alone * len(live) / len(rows), together) < 1e-10


# -- skips -----------------------------------------------------------------------------------------------------------
def test_a_batch_without_anything_to_learn_is_a_counted_skip() -> None:
    """No optimizer step: Adam's momentum would move the weights without a gradient."""
    learner, rows = setup("grpo", torch.float32)
    learner.update = Update(policy_gradient(), optimizer=AdamW(lr=0.1))
    learner.step(rows, 0, "warm")
    before = {n: p.clone() for n, p in learner.parameters.items()}
    for row in rows:
        row["response"].per_token["advantage"].zero_()
    assert learner.step(rows, 0, "dead") == {"skipped": 1.0}
    assert learner.step([], 0, "empty") == {"skipped": 1.0}
    assert (learner.taken, learner.skipped) == (1, 2)
    assert all(torch.equal(before[n], p) for n, p in learner.parameters.items())
    state = learner.state_dict()
    learner.taken = learner.skipped = 0
    learner.load_state_dict(state)
    assert (learner.taken, learner.skipped) == (1, 2)


def test_a_dead_batch_still_learns_what_another_term_has() -> None:
    learner, rows = setup("grpo", torch.float32)
    for row in rows:
        row["response"].per_token["advantage"].zero_()
    found = learner.step(rows, 0, "dead but anchored")
    assert "skipped" not in found and found["loss/kl"] > 0 and found["grad_norm"] > 0


def test_a_term_without_a_count_leaves_the_others_alone() -> None:
    """0 / 0 in one term must not spoil the step: here no row has a chosen sample with a learnt token."""
    learner, rows = setup("sft", torch.float64)
    alone, _ = gradient(learner, rows)
    for row in rows:
        empty = row["response"].copy()
        empty.per_token["mask"] = torch.zeros(len(empty), dtype=torch.bool)
        row.samples["chosen"] = empty
    learner.update = Update(nll() + nll(role="chosen", name="sft"))
    both, found = gradient(learner, rows)
    assert distance(alone, both) < 1e-12
    assert "loss/sft" not in found


# -- guards ----------------------------------------------------------------------------------------------------------
class Broken(Term):
    """nan on one problem, an infinite gradient without an infinite loss, or plain."""

    name = "broken"

    def __init__(self, kind: str, problem: str = "") -> None:
        self.kind, self.problem = kind, problem

    def total(self, ctx: Context) -> Tensor:
        logprobs = ctx.forward("response").logprobs
        if self.kind == "gradient":
            return (logprobs - logprobs.detach()).clamp(min=0).sqrt().sum()
        ids = [row.problem_id for row in ctx.rows]
        return logprobs.sum() * (math.nan if self.problem in ids else 1.0)


def test_a_loss_that_is_not_finite_names_step_term_and_problems() -> None:
    learner, rows = setup("sft", torch.float32)
    ids = [row.problem_id for row in rows]
    learner.update = Update(as_objective(nll()) + Broken("loss", ids[2]))
    learner.token_budget = 1
    before = {n: p.clone() for n, p in learner.parameters.items()}
    with pytest.raises(WhetError, match=r"step 7 \(sft\): term 'broken' is nan on ") as problem:
        learner.step(rows, 0, "step 7 (sft)")
    assert ids[2] in str(problem.value) and not any(i in str(problem.value) for i in ids[:2] + ids[3:])
    assert all(torch.equal(before[n], p) for n, p in learner.parameters.items())
    learner.update = Update(Broken("gradient"))
    with pytest.raises(WhetError, match=r"step 8: the gradient norm is (nan|inf); lower the learning rate"):
        learner.step(rows, 0, "step 8")
    assert all(torch.equal(before[n], p) for n, p in learner.parameters.items())


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_such_a_batch_can_be_left_out_a_few_times(kind: str) -> None:
    learner, rows = setup("sft", torch.float32)
    learner.skip, learner.update = True, Update(as_objective(nll()) + Broken(kind, rows[2].problem_id))
    before = {n: p.clone() for n, p in learner.parameters.items()}
    for number in range(1, MOST_NONFINITE + 1):
        assert learner.step(rows, 0, f"step {number}") == {"skipped": 1.0, "nonfinite": 1.0}
        (line,) = learner.said()
        assert line.startswith(f"step {number}: ") and f"left out, number {number} of at most {MOST_NONFINITE}" in line
    assert all(torch.equal(before[n], p) for n, p in learner.parameters.items())
    assert learner.taken == 0 and learner.state_dict()["nonfinite"] == MOST_NONFINITE and not learner.said()
    with pytest.raises(WhetError, match=f"{MOST_NONFINITE} batches were left out before"):
        learner.step(rows, 0, "step 11")
    learner.update = Update(nll())
    learner.step(rows, 0, "step 12")
    assert learner.taken == 1 and any(not torch.equal(before[n], p) for n, p in learner.parameters.items())


GPU_FULL = torch.OutOfMemoryError("tried to allocate 2 GiB")
CPU_FULL = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 2 GiB")


class Large(Term):
    """Out of memory above so many rows at once."""

    name = "large"

    def __init__(self, most: int, full: Exception = GPU_FULL) -> None:
        self.most, self.full = most, full

    def total(self, ctx: Context) -> Tensor:
        if len(ctx.rows) > self.most:
            raise self.full
        return 0.0 * ctx.forward("response").logprobs.sum()


@pytest.mark.parametrize("full", [GPU_FULL, CPU_FULL], ids=["GPU", "CPU"])
def test_what_does_not_fit_is_run_in_halves_with_the_same_gradient(full: Exception) -> None:
    learner, rows = setup("sft", torch.float64)
    learner.update = Update(nll())
    whole, _ = gradient(learner, rows)
    learner.update = Update(as_objective(nll()) + Large(2, full))
    halves, _ = gradient(learner, rows)
    (told,) = learner.said()
    assert distance(whole, halves) < 1e-12
    assert f"out of memory; from here on {learner.token_budget} tokens at once" in told
    assert learner.state_dict()["token_budget"] == learner.token_budget < 200
    learner.accumulate(rows, 0, "step 2")
    assert not learner.said(), "it stays with what fits"
    learner.update = Update(as_objective(nll()) + Large(0, full))
    with pytest.raises(WhetError, match=r"out of memory with .* tokens at once.*smaller --token-budget.*2 GiB"):
        learner.accumulate(rows, 0, "step 3")
    learner.update = Update(as_objective(nll()) + Large(0, RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        learner.accumulate(rows, 0, "step 4")


def test_the_gradient_is_clipped_to_its_norm() -> None:
    learner, rows = setup("sft", torch.float64)
    learner.update = Update(nll(), clip=0.01)
    learner.accumulate(rows, 0)
    norm = learner._clip("here")
    grads = torch.cat([p.grad.flatten() for p in learner.parameters.values() if p.grad is not None])
    assert norm > 0.01 and float(grads.norm()) == pytest.approx(0.01, rel=1e-3)
    learner.update = Update(nll(), clip=0.0)
    learner.accumulate(rows, 0)
    assert learner._clip("here") == pytest.approx(norm)


# -- order and schedule ----------------------------------------------------------------------------------------------
class Recorded(Weights):
    every = 2

    def __init__(self) -> None:
        self.calls: list[str] = []

    def after_grads(self, parameters: Any) -> None:
        assert all(p.grad is not None for p in parameters.values())
        self.calls.append("after_grads")

    def mask(self, parameters: Any) -> None:
        self.calls.append("mask")
        for name, p in parameters.items():
            if "embed" not in name:
                p.grad = None

    def after_step(self, parameters: Any) -> None:
        self.calls.append("after_step")

    def every_n_steps(self, policy: Policy, step: int) -> None:
        self.calls.append(f"every {step}")


def test_hooks_run_in_order_and_a_masked_parameter_stays() -> None:
    learner, rows = setup("sft", torch.float32, hooks := Recorded())
    clip, step = learner._clip, learner.optimizer.step
    learner._clip = lambda where: (hooks.calls.append("clip"), clip(where))[1]  # type: ignore[method-assign]
    learner.optimizer.step = lambda *a, **k: (hooks.calls.append("optimizer"), step(*a, **k))[1]  # type: ignore
    before = {n: p.clone() for n, p in learner.parameters.items()}
    for _ in range(2):
        learner.step(rows, 0, "here")
    once = ["after_grads", "mask", "clip", "optimizer", "after_step"]
    assert hooks.calls == [*once, *once, "every 2"]
    moved = {n for n, p in learner.parameters.items() if not torch.equal(before[n], p)}
    assert moved == {n for n in learner.parameters if "embed" in n}


def test_the_rate_follows_the_schedule_of_the_stage() -> None:
    learner, rows = setup("sft", torch.float32)
    optimizer = AdamW(lr=1e-3, warmup=0.2, schedule="linear")
    learner = Learner(
        Update(nll(), optimizer=optimizer), learner.policies, learner.weights, steps=10, token_budget=EXACT
    )
    rates = [learner.step(rows, 0, "here")["lr"] for _ in range(4)]
    assert rates == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3, 1e-3 * 7 / 8])


def test_what_is_counted() -> None:
    learner, rows = setup("sft", torch.float32)
    policy = learner.policy
    found = learner.step(rows, 0, "here")
    learnt = sum(s.count_learnt() for row in rows for s in row.all())
    assert found["learnt_tokens"] == policy.meter.learnt_tokens == learnt
    assert policy.meter.optimizer_steps == 1 and policy.meter.scored_tokens == 0 and policy.meter.flops > 0


def test_a_maximum_is_not_averaged_over_micro_batches() -> None:
    class Extreme(Term):
        name = "extreme"

        def total(self, ctx: Context) -> Tensor:
            logprobs = ctx.forward("response").logprobs
            ctx.log("logprob_max", logprobs.max())
            ctx.log("logprob", logprobs)
            return logprobs.sum()

    learner, rows = setup("sft", torch.float64)
    learner.update = Update(Extreme())
    (_, whole), (_, split) = gradient(learner, rows), gradient(learner, rows, 1)
    for name in ("logprob", "logprob_max"):
        assert whole[name] == pytest.approx(split[name], rel=1e-6)
