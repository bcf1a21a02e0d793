"""THE loop: the order of a step, gates and skips, evaluation and the best weights, references, guards."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from trained import trained_policy
from whet.advantages import group_mean, group_std
from whet.errors import WhetError
from whet.evaluation.evaluate import Evaluator, Plan
from whet.models.policy import Policy
from whet.objectives import dpo, kl_to_reference, nll, policy_gradient
from whet.objectives.forward import Context
from whet.objectives.objective import Term
from whet.records import Row, Sample, Segment
from whet.rewards import Attempt, Reward, accuracy, each
from whet.runs import RunFolder
from whet.seeds import seed_for
from whet.sources import Buffer, Demonstrations, DropDead, Gate, Pairs, Rollouts, Scope, Uniform
from whet.tasks import Problem, get_task
from whet.training import checkpoint, metrics
from whet.training.fit import Fit, Options, minibatches
from whet.training.optimizer import AdamW
from whet.training.stage import Stage, Update
from whet.weights import Lora, Weights


def sft_stage(**changes: Any) -> Stage:
    update = Update(nll(), optimizer=AdamW(lr=1e-3))
    return Stage(**{"collect": Demonstrations(), "updates": [update], "steps": 3, "batch": 4, "name": "sft", **changes})


def rl_stage(**changes: Any) -> Stage:
    update = Update(policy_gradient(), optimizer=AdamW(lr=1e-3))
    return Stage(**{"collect": Rollouts(4), "updates": [update], "steps": 3, "batch": 3, "reward": accuracy(),
                    "advantage": group_std(), "name": "rl", **changes})  # fmt: skip


def fit(*stages: Stage, policy: Policy | None = None, out: Path | None = None, evaluate: Any = None,
        **options: Any) -> Fit:  # fmt: skip
    folder = None
    if out is not None:
        out.mkdir(exist_ok=True)
        folder = RunFolder(out)
    return Fit(policy or trained_policy(), stages, get_task("parity"), options=Options(**options), folder=folder,
               evaluate=evaluate)  # fmt: skip


def row(accuracy: float, reward: float | None = None, group: str = "g", tokens: float = 3.0, learn: bool = True) -> Row:
    """A row as it is after scoring."""
    sample = Sample([Segment("question", [2]), Segment("answer", [3, 4], learn=learn, sampled=True)], group_id=group)
    numbers = {"accuracy": accuracy, "reward": accuracy if reward is None else reward, "tokens": tokens,
               "ended": 1.0, "unparseable": 0.0, "failed": float(math.isnan(accuracy))}  # fmt: skip
    return Row({"response": sample}, numbers)


# -- the order of a step ---------------------------------------------------------------------------------------------
def test_the_order_of_a_step() -> None:
    """draw, collect, score, estimate advantages, observe, gate, transform, update."""
    seen: list[str] = []

    class Source(Uniform):
        def draw(self, n: int) -> list[Problem]:
            seen.append(f"draw {n}")
            return super().draw(n)

        def observe(self, rows: Sequence[Row]) -> None:
            assert all("advantage" in r.numbers for r in rows), "a bandit may learn from advantages"
            seen.append(f"observe {len(rows)}")

    class Asked(Rollouts):
        def rows(self, *args: Any) -> list[Row]:
            found = super().rows(*args)
            seen.append("collect")
            return found

    class Scored(Reward):
        def __call__(self, group: Sequence[Attempt]) -> list[dict[str, float]]:
            seen.append(f"score {len(group)}")
            return [{"reward": float(i)} for i in range(len(group))]

    class Door(Gate):
        def admits(self, group: Sequence[Row]) -> bool:
            seen.append("gate")
            return len([s for s in seen if s == "gate"]) != 2

    class Baseline:
        needs: frozenset[str] = frozenset()
        needs_group = True

        def __call__(self, rows: Sequence[Row]) -> None:
            seen.append(f"advantage {len(rows)}")
            group_mean()(rows)

    class Learnt(Term):
        name = "learnt"

        def total(self, ctx: Context) -> torch.Tensor:
            seen.append("update")
            assert len(ctx.rows) == 4
            return ctx.forward("response").logprobs.sum()

    stage = rl_stage(problems=Source(), collect=Asked(4), reward=Scored(), advantage=Baseline(), gate=Door(), batch=2,
                     transforms=[lambda rows: seen.append(f"transform {len(rows)}")], updates=[Update(Learnt())],
                     steps=1)  # fmt: skip
    fit(stage).run()
    assert seen == ["draw 2", "collect", "score 4", "score 4", "advantage 8", "observe 8", "gate", "gate",
                    "transform 4", "update"]  # fmt: skip


def test_rows_of_a_step_depend_on_seed_stage_and_step_alone() -> None:
    """Not on how many numbers were drawn before, nor on the weights' history."""

    def rows_at(step: int, others: Sequence[int], seed: int = 0) -> list[list[int]]:
        loop = fit(rl_stage(), seed=seed)
        loop._attach(loop.stages[0])
        loop._enter(0, None)
        loop.stages[0].problems.cursor = 3 * step  # type: ignore[attr-defined]
        for other in others:
            torch.rand(other + 1)
        seen, _ = loop.step.rows(seed_for(seed, "stage", 0, "step", step))
        return [r["response"].ids for r in seen]

    assert rows_at(2, []) == rows_at(2, [0, 1])
    assert rows_at(2, []) != rows_at(1, [])
    assert rows_at(2, []) != rows_at(2, [], seed=1)


# -- gates and skips -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("admits", "draws", "rows"), [("all", 1, 12), ("every third", 3, 12), ("none", 10, 0)])
def test_a_refilling_gate_draws_until_the_batch_is_full(admits: str, draws: int, rows: int) -> None:
    count = itertools.count()

    class Some(DropDead):
        def admits(self, group: Sequence[Row]) -> bool:
            return admits == "all" or (admits == "every third" and next(count) % 3 == 0)

    drawn: list[int] = []

    class Source(Uniform):
        def draw(self, n: int) -> list[Problem]:
            drawn.append(n)
            return super().draw(n)

    loop = fit(rl_stage(gate=Some(), problems=Source(), steps=1))
    learnt: list[int] = []
    loop.stages[0].transforms = [lambda given: learnt.append(len(given))]
    assert loop.run().finished
    assert drawn == [3] * draws and learnt == [rows]
    assert loop.learners[0].taken == (0 if admits == "none" else 1)


def test_what_a_refill_draws_too_much_is_dropped() -> None:
    loop = fit(rl_stage(gate=DropDead(), steps=1, batch=4, collect=Rollouts(8)))
    learnt: list[Row] = []
    loop.stages[0].transforms = [learnt.extend]
    loop.run()
    groups = {r.group_id for r in learnt}
    assert len(groups) == 4 and len(learnt) == 32
    for group in groups:
        right = [r.numbers["accuracy"] for r in learnt if r.group_id == group]
        assert 0 < sum(right) < 8


def test_a_run_of_dead_batches_goes_on_and_says_so(tmp_path: Path) -> None:
    loop = fit(rl_stage(reward=each("constant", lambda attempt: 0.5)), out=tmp_path)
    before = {n: p.clone() for n, p in loop.policy.model.named_parameters()}
    assert loop.run().finished
    assert all(torch.equal(before[n], p) for n, p in loop.policy.model.named_parameters())
    lines = RunFolder(tmp_path).read_metrics()
    assert [line["skipped"] for line in lines] == [1.0, 1.0, 1.0]
    assert loop.learners[0].skipped == 3 and loop.policy.meter.optimizer_steps == 0


# -- guards ----------------------------------------------------------------------------------------------------------
class Diverges(Term):
    """The likelihood, which is NaN in its third step."""

    name = "diverges"

    def __init__(self) -> None:
        self.steps = 0

    def total(self, ctx: Context) -> torch.Tensor:
        self.steps += 1
        return -ctx.forward("response").logprobs.sum() * (math.nan if self.steps == 3 else 1.0)


def test_a_loss_that_is_not_finite_stops_the_run_and_spoils_nothing(tmp_path: Path) -> None:
    loop = fit(sft_stage(updates=[Update(Diverges())], steps=9), out=tmp_path, save_every=1)
    with pytest.raises(WhetError, match=r"step 3 \(sft\): term 'diverges' is nan on parity/1/train/\d+/1/8"):
        loop.run()
    (*_, last) = checkpoint.found(tmp_path / "checkpoints")
    assert last.name == "step-00000002"
    weights, state = checkpoint.load(last)
    assert state["progress"]["total"] == 2
    assert all(bool(w.isfinite().all()) for w in weights.values())
    assert [line["step"] for line in RunFolder(tmp_path).read_metrics()] == [1, 2]


def test_or_it_is_left_out_and_said(tmp_path: Path) -> None:
    loop = fit(sft_stage(updates=[Update(Diverges())], steps=4), out=tmp_path, on_nonfinite="skip")
    assert loop.run().finished and loop.learners[0].taken == 3
    lines = RunFolder(tmp_path).read_metrics()
    assert [line.get("nonfinite", 0.0) for line in lines] == [0.0, 0.0, 1.0, 0.0]
    assert "term 'diverges' is nan" in lines[2]["warnings"][0] and "warnings" not in lines[3]


def test_a_row_without_a_learnt_token_is_refused() -> None:
    class Long(Demonstrations):
        def rows(self, *args: Any) -> list[Row]:
            found = super().rows(*args)
            found[1]["response"].segments = found[1]["response"].segments[:1]
            return found

    with pytest.raises(WhetError, match="has no learnt token"):
        fit(sft_stage(collect=Long())).run()


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"steps": 0}, "steps and batch must be at least 1"),
    ({"start": "middle"}, "one of last, base"),
    ({"collect": Rollouts(1)}, "a group of one has no baseline"),
    ({"collect": Rollouts(1), "advantage": None, "gate": DropDead()}, "every group of one is all right or all wrong"),
    ({"reward": None}, "has an advantage but no reward"),
    ({"updates": [Update(nll(), rows="hardest")]}, "'hardest', which is no buffer"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[m for _, m in REFUSED])
def test_what_cannot_work_is_refused_before_the_first_step(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(WhetError, match=message):
        fit(rl_stage(**changes))


@pytest.mark.parametrize("change", [{"start": "base"}, {"reference": "base"}], ids=["start", "reference"])
@pytest.mark.parametrize("kinds", [(Weights(), Lora(4)), (Lora(4), Weights())], ids=["injected", "merged"])
def test_the_base_is_not_gone_back_to_once_adapters_came_or_went(kinds: Any, change: dict[str, str]) -> None:
    """They would stay as they were trained, and the base would silently be another model."""
    update = Update(policy_gradient() + 0.1 * kl_to_reference())
    first, second = sft_stage(weights=kinds[0]), rl_stage(updates=[update], weights=kinds[1], **change)
    with pytest.raises(WhetError, match="stage 'rl' goes back to the run's base, but adapters came in or were merged"):
        fit(first, second)
    second.start, second.reference = "last", "start"
    fit(first, second)


def test_adapters_from_the_start_go_back_to_the_base() -> None:
    kinds = Lora(4), Lora(4)
    second = rl_stage(updates=[Update(policy_gradient() + 0.1 * kl_to_reference())], weights=kinds[1], start="base",
                      reference="base", steps=1)  # fmt: skip
    loop = fit(sft_stage(weights=kinds[0], updates=[Update(nll(), optimizer=AdamW(lr=1e-2))]), second)
    probe = torch.arange(2, 30)[None]
    base = loop.policy.logits(probe).detach()
    at: list[torch.Tensor] = []
    second.transforms = [lambda rows: at.append(loop.policy.logits(probe).detach())]
    loop.run()
    held = loop.policies["reference"].logits(probe).detach()
    torch.testing.assert_close(at[0], base)
    torch.testing.assert_close(held, base)
    assert not torch.allclose(loop.policy.logits(probe).detach(), base)


# -- what is prepared ------------------------------------------------------------------------------------------------
def last_rows(stage: Stage, policy: Policy | None = None) -> list[Row]:
    learnt: list[Row] = []
    stage.transforms = [learnt.extend]
    fit(stage, policy=policy).run()
    return learnt


def test_old_log_probs_are_computed_only_where_the_policy_moves_away() -> None:
    """One update a batch needs none: its ratio is exp(lp - sg[lp])."""
    once = last_rows(rl_stage(steps=1))
    assert not {"old_logprob", "reference_logprob"} & once[0]["response"].per_token.keys()
    several = last_rows(rl_stage(steps=1, updates=[Update(policy_gradient(), epochs=2)]))
    kept = several[0]["response"].per_token
    assert "old_logprob" in kept and "reference_logprob" not in kept


def test_recorded_log_probs_are_those_of_the_sampler() -> None:
    """The trainer's forward at the one temperature agrees with what the sampler drew from."""
    rows = last_rows(rl_stage(steps=1, collect=Rollouts(4, 0, 1.3), updates=[Update(policy_gradient(), epochs=2)]))
    for sample in (r["response"] for r in rows):
        mask = sample.learn_mask
        gap = sample.per_token["old_logprob"][mask] - sample.per_token["sampler_logprob"][mask]
        assert float(gap.abs().max()) < 1e-4


def test_rows_that_the_gate_drops_are_not_scored() -> None:
    """What only the objective needs is computed for what is learnt; an advantage, or a buffer, needs it of all rows."""

    class First(Gate):
        def admits(self, group: Sequence[Row]) -> bool:
            return group[0].group_id.startswith("0/")

    def scored(**changes: Any) -> tuple[int, int, int]:
        """Scored tokens, and the tokens of admitted and of all rows."""
        seen: list[Row] = []
        learnt: list[Row] = []
        objective = policy_gradient() + 0.1 * kl_to_reference()
        stage = rl_stage(
            gate=First(), updates=[Update(objective, epochs=2)], steps=1, transforms=[learnt.extend], **changes
        )
        stage.problems.observe = seen.extend  # type: ignore[method-assign]
        policy = trained_policy()
        fit(stage, policy=policy).run()
        assert all({"old_logprob", "reference_logprob"} <= r["response"].per_token.keys() for r in learnt)
        admitted, everything = (sum(len(r["response"]) for r in rows) for rows in (learnt, seen))
        return policy.meter.scored_tokens, admitted, everything

    tokens, admitted, everything = scored()
    assert tokens == 2 * admitted < 2 * everything
    tokens, _, everything = scored(buffers={"kept": Waits()})
    assert tokens == 2 * everything
    needy = group_std()
    needy.needs = frozenset({"old_logprob"})  # type: ignore[misc]
    tokens, admitted, everything = scored(advantage=needy)
    assert tokens == everything + admitted


@pytest.mark.parametrize("given", [0, 9])
def test_the_constant_normaliser_divides_by_the_generation_budget(given: int, tmp_path: Path) -> None:
    """Also in the first step, and after a resume; the task's budget where none is given."""
    budgets: list[int] = []

    class Noted(Term):
        name = "noted"
        normalise = "constant"

        def total(self, ctx: Context) -> torch.Tensor:
            budgets.append(ctx.budget)
            assert ctx.counts["noted"] == 12 * ctx.budget
            return ctx.forward("response").logprobs.sum()

    def stage() -> Stage:
        return rl_stage(collect=Rollouts(4, given), updates=[Update(Noted())], steps=2)

    fit(stage(), out=tmp_path, stop=lambda: True).run()
    fit(stage(), out=tmp_path).run(resume=True)
    assert budgets == [given or get_task("parity").max_answer_tokens()] * 2


@pytest.mark.parametrize("reference", ["start", "base"])
def test_the_reference_is_frozen_where_it_was_taken(reference: str) -> None:
    """In a second stage: the policy that the first one left, or the run's first weights."""
    policy = trained_policy()
    probe = torch.arange(2, 30)[None]
    at: dict[str, torch.Tensor] = {"base": policy.logits(probe).detach()}

    class Entry(Rollouts):
        def prepare(self, *args: Any) -> None:
            at["start"] = policy.logits(probe).detach()

    second = rl_stage(collect=Entry(4), updates=[Update(policy_gradient() + 0.1 * kl_to_reference())], steps=2,
                      reference=reference)  # fmt: skip
    loop = fit(sft_stage(), second, policy=policy)
    loop.run()
    held = loop.policies["reference"].logits(probe).detach()
    assert torch.equal(held, at[reference]) and not torch.equal(at["start"], at["base"])
    assert not torch.equal(held, policy.logits(probe).detach())
    assert not any(p.requires_grad for p in loop.policies["reference"].model.parameters())


def test_scores_of_a_fixed_reference_are_computed_once_a_row() -> None:
    policy = trained_policy()
    stage = Stage(Pairs(12, 4, cap=1), [Update(dpo())], steps=6, batch=4, name="dpo")
    loop = fit(stage, policy=policy)
    loop.run()
    pairs = len(stage.collect.stored)  # type: ignore[attr-defined]
    tokens = sum(len(s) for r in stage.collect.stored for s in r.all())  # type: ignore[attr-defined]
    assert pairs < 24 and policy.meter.scored_tokens == tokens


# -- evaluation and which weights are kept -----------------------------------------------------------------------------
def scripted(*values: float) -> Callable[[Policy], dict[str, float]]:
    left = iter(values)
    return lambda policy: {"accuracy": next(left)}


@pytest.mark.parametrize("keep", ["best", "last"])
def test_the_run_ends_with_the_best_weights_or_the_last(keep: str, tmp_path: Path) -> None:
    states: list[dict[str, torch.Tensor]] = []
    script = scripted(0.1, 0.2, 0.7, 0.3, 0.7)  # before, after steps 1 to 4: a tie is no improvement

    def evaluate(policy: Policy) -> dict[str, float]:
        states.append({n: p.clone() for n, p in policy.model.named_parameters()})
        return script(policy)

    loop = fit(sft_stage(steps=4), evaluate=evaluate, eval_every=1, keep=keep, out=tmp_path)
    progress = loop.run()
    assert (progress.best, progress.best_step, progress.stale) == (0.7, 2, 2)
    kept = states[2 if keep == "best" else 4]
    assert all(torch.equal(kept[n], p) for n, p in loop.policy.model.named_parameters())
    lines = [line for line in RunFolder(tmp_path).read_metrics() if "validation/accuracy" in line]
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]


def test_kept_are_the_latest_weights_within_a_standard_error_of_the_best() -> None:
    """A lucky evaluation early on must not throw the rest of the training away; patience still counts from it."""
    values = iter([0.5, 0.8, 0.72, 0.69, 0.71])
    loop = fit(sft_stage(steps=4), evaluate=lambda policy: {"accuracy": next(values), "error": 0.1}, eval_every=1)
    progress = loop.run()
    assert (progress.best, progress.best_step, progress.stale) == (0.8, 4, 3)


def test_the_last_step_is_always_evaluated() -> None:
    loop = fit(sft_stage(steps=5), evaluate=scripted(0.0, 0.0, 0.0), eval_every=3)
    steps: list[int] = []
    real = loop._evaluate
    loop._evaluate = lambda: (steps.append(loop.progress.total), real())[1]  # type: ignore[method-assign]
    loop.run()
    assert steps == [0, 3, 5]


def test_patience_ends_a_run_that_no_longer_improves() -> None:
    loop = fit(sft_stage(steps=9), evaluate=scripted(0.1, 0.5, 0.4, 0.5), eval_every=1, patience=2)
    progress = loop.run()
    assert progress.stopped_early and not progress.finished and progress.total == 3 and progress.best_step == 1


def test_an_accuracy_that_is_not_a_number_is_no_best() -> None:
    loop = fit(sft_stage(steps=2), evaluate=scripted(math.nan, 0.0, math.nan), eval_every=1)
    assert loop.run().best_step == 1


# -- two updates -----------------------------------------------------------------------------------------------------
class Waits(Buffer):
    """A buffer that hands over what it holds once it has 10 rows."""

    def __init__(self) -> None:
        self.held: list[Row] = []

    def add(self, rows: Sequence[Row], policy: Policy, scope: Scope) -> None:
        self.held += rows

    def take(self) -> list[Row] | None:
        if len(self.held) < 10:
            return None
        taken, self.held = self.held, []
        return taken

    def state_dict(self) -> dict[str, Any]:
        return {"held": [r.state() for r in self.held]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.held = [Row.from_state(r) for r in state["held"]]


def test_a_second_update_waits_for_its_buffer_and_survives_a_resume(tmp_path: Path) -> None:
    def stage() -> Stage:
        updates = [Update(nll()), Update(nll(normalise="sequence"), rows="kept", optimizer=AdamW(lr=1e-3))]
        return sft_stage(updates=updates, buffers={"kept": Waits()}, steps=6)

    whole = fit(stage(), out=tmp_path / "whole")
    whole.run()
    assert [learner.taken for learner in whole.learners] == [6, 2]
    fit(stage(), out=tmp_path / "halted", stop=lambda: True).run()
    resumed = fit(stage(), out=tmp_path / "halted")
    resumed.run(resume=True)
    ours, theirs = dict(whole.policy.named_parameters()), dict(resumed.policy.named_parameters())
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)


def test_two_updates_of_a_stage_report_side_by_side(tmp_path: Path) -> None:
    updates = [Update(nll(), optimizer=AdamW(lr=1e-3)), Update(nll(), optimizer=AdamW(lr=1e-4)),
               Update(nll(), rows="kept", optimizer=AdamW(lr=1e-5))]  # fmt: skip
    loop = fit(sft_stage(updates=updates, buffers={"kept": Waits()}, steps=3), out=tmp_path)
    loop.run()
    *_, last = RunFolder(tmp_path).read_metrics()
    assert [last[k] for k in ("lr", "rows-2/lr", "kept/lr")] == pytest.approx([1e-3, 1e-4, 1e-5])
    assert [last[k] for k in ("learnt_tokens", "kept/learnt_tokens")] == [
        last["rows-2/learnt_tokens"], sum(line["learnt_tokens"] for line in RunFolder(tmp_path).read_metrics()),
    ]  # fmt: skip
    assert last["loss/nll"] > last["rows-2/loss/nll"] > 0, "the second one comes after the first has learnt"
    first = RunFolder(tmp_path).read_metrics()[0]
    assert "kept/loss/nll" not in first, "it waited"


# -- small functions -------------------------------------------------------------------------------------------------
def test_minibatches_are_parts_shuffled_anew_each_epoch() -> None:
    rows = [row(0.0, group=str(i)) for i in range(10)]
    first, second = (minibatches(rows, 3, seed=1, epoch=e) for e in (0, 1))
    assert [len(p) for p in first] == [4, 3, 3]
    for parts in (first, second):
        assert sorted(r.group_id for p in parts for r in p) == sorted(r.group_id for r in rows)
    assert [[r.group_id for r in p] for p in first] != [[r.group_id for r in p] for p in second]
    assert [[r.group_id for r in p] for p in first] != [[r.group_id for r in p] for p in minibatches(rows, 3, 2, 0)]
    assert minibatches(rows, 1, seed=1, epoch=0) == [rows]
    assert [len(p) for p in minibatches(rows[:2], 4, seed=1, epoch=0)] == [1, 1, 0, 0]


def test_the_metrics_of_a_step() -> None:
    nan = math.nan
    seen = [row(1.0, group="a", tokens=2), row(0.0, group="a", tokens=6), row(1.0, group="b", tokens=4),
            row(1.0, group="b", tokens=6), row(nan, group="c", tokens=9), row(1.0, group="c", tokens=4)]  # fmt: skip
    found = metrics.of_rows(seen, seen[:2])
    assert found["accuracy"] == 0.8 and found["failed"] == pytest.approx(1 / 6)
    assert found["tokens_right"] == 4.0 and found["tokens_wrong"] == 6.0, "an answer that was not judged is neither"
    assert found["dead_groups"] == pytest.approx(2 / 3) and found["admitted"] == pytest.approx(1 / 3)
    assert math.isnan(metrics.of_rows([row(1.0, group="x")], [])["dead_groups"]), "a group of one is not dead or alive"


def test_means_over_updates_sum_what_is_counted() -> None:
    found = metrics.mean([{"loss": 1.0, "learnt_tokens": 4.0}, {"skipped": 1.0}, {"loss": 2.0, "learnt_tokens": 6.0}])
    assert found == {"loss": 1.5, "learnt_tokens": 10.0, "skipped": 1.0}


def test_evaluation_spends_no_budget() -> None:
    evaluator = Evaluator(get_task("parity"), Plan(n=2, k=2, validation=4))

    def spent(**options: Any) -> dict[str, float]:
        loop = fit(sft_stage(), **options)
        loop.run()
        return {k: v for k, v in loop.policy.meter.as_dict().items() if k != "seconds"}

    assert spent(evaluate=evaluator.validation, eval_every=1) == spent()


def test_the_latest_weights_within_one_standard_error_of_the_best_are_kept() -> None:
    script = iter([0.1, 0.7, 0.66, 0.6, 0.62])
    loop = fit(sft_stage(steps=4), evaluate=lambda _: {"accuracy": next(script), "error": 0.05}, eval_every=1)
    progress = loop.run()
    assert (progress.best, progress.best_step, progress.stale) == (0.7, 2, 3)
