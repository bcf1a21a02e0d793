"""ReLIFT: reinforcement as in grpo, and supervised steps of their own on the questions that every answer failed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from trained import trained_policy
from whet.errors import WhetError
from whet.models.policy import Policy
from whet.objectives import Context, nll
from whet.recipes.recipe import get_recipe
from whet.records import Row
from whet.rewards import each
from whet.runs import RunFolder
from whet.sources import Demonstrated
from whet.tasks import get_task
from whet.training.fit import Fit, Options
from whet.training.learner import Learner
from whet.training.optimizer import AdamW
from whet.training.stage import Stage
from whet.weights import Weights

SMALL = {"steps": 3, "batch": 4, "group": 2, "lr": 1e-3, "sft_lr": 1e-3}
GRPO = {"advantage": "group-mean", "normalise": "constant", "ratio": "none", "entropy": 1e-3, "minibatches": 2}


def stage_of(name: str = "relift", **arguments: Any) -> Stage:
    (stage,) = get_recipe(name)(**arguments).stages
    return stage


def run(
    stage: Stage, out: Path | None = None, policy: Policy | None = None, resume: bool = False, **options: Any
) -> Fit:
    if out is not None:
        out.mkdir(exist_ok=True)
    folder = RunFolder(out) if out is not None else None
    fit = Fit(policy or trained_policy(), [stage], get_task("parity"), options=Options(**options), folder=folder)
    fit.run(resume=resume)
    return fit


def buffer_of(stage: Stage) -> Demonstrated:
    buffer = stage.buffers["hardest"]
    assert isinstance(buffer, Demonstrated)
    return buffer


def weights(fit: Fit) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in fit.policy.named_parameters()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


# -- what it is ------------------------------------------------------------------------------------------------------
def test_its_two_updates() -> None:
    stage = stage_of()
    first, second = stage.updates
    assert first.loss.describe() == "1 policy_gradient [constant] + 0.001 entropy_bonus [token]"
    assert second.loss.describe() == "1 nll [token] + 0.0001 entropy_bonus [token]"
    assert (first.rows, second.rows, first.minibatches, second.steps) == ("rows", "hardest", 2, 1)
    assert (first.clip, second.clip, second.temperature) == (0.7, 1.0, 1.0)
    assert buffer_of(stage).size == stage.batch == 8 and buffer_of(stage_of(threshold=3, batch=32)).size == 3
    assert first.optimizer.rate(10**9) == second.optimizer.rate(10**9) == 1e-6
    assert stage.needs() == {"verifier", "demonstrations"}
    assert get_recipe("relift").arguments["ratio"].default == "none", "no clip"


def test_never_filled_it_is_grpo_bit_for_bit() -> None:
    grpo = run(stage_of("grpo", **{k: v for k, v in SMALL.items() if k != "sft_lr"}, **GRPO))
    relift = run(stage_of(**SMALL, threshold="Infinity", grad_clip=1.0))
    assert equal(weights(grpo), weights(relift))
    assert [learner.taken for learner in relift.learners] == [6, 0]
    assert not equal(weights(grpo), weights(run(stage_of(**SMALL, threshold=1, grad_clip=1.0))))


def test_dead_groups_move_it_only_through_the_entropy() -> None:
    reward = each("none", lambda attempt: 0.0)
    still = run(stage_of(**SMALL, threshold=math.inf, entropy=0.0, reward=reward))
    assert equal(weights(still), dict(trained_policy().named_parameters()))
    moved = run(stage_of(**SMALL, threshold=math.inf, reward=reward))
    assert not equal(weights(still), weights(moved))


# -- the second update -----------------------------------------------------------------------------------------------
def test_the_buffer_is_filled_by_accuracy_before_any_filter(tmp_path: Path) -> None:
    """A shaped reward and dynamic sampling change what is reinforced, not what is hardest."""
    seen: list[Row] = []

    def shaped(attempt: Any) -> float:
        seen.append(attempt.row)
        return float(attempt.row["response"].rollout_id)

    stage = stage_of(**{**SMALL, "steps": 1}, threshold=99, dynamic=True, reward=each("shaped", shaped))
    run(stage, tmp_path)
    groups: dict[str, list[Row]] = {}
    for number, row in enumerate(seen):  # a group of one draw may be called as one of another
        groups.setdefault(f"{number // 8}/{row.group_id}", []).append(row)
    failed = [rows[0].problem_id for rows in groups.values() if all(r.numbers["accuracy"] == 0 for r in rows)]
    (line,) = RunFolder(tmp_path).read_metrics()
    assert 0 < len(failed) < len(groups)
    assert sorted(row.problem_id for row in buffer_of(stage).held) == sorted(failed)
    assert (line["hardest/waiting"], line["hardest/used"], line["hardest/questions"]) == (len(failed), 0, len(groups))


def test_the_optimizers_do_not_know_of_each_other() -> None:
    """A supervised step leaves reinforcement's moments and step count as they were, and the other way round."""
    fit = run(stage_of(**{**SMALL, "steps": 1}, threshold=1, select="all"))
    first, second = fit.learners
    assert (first.taken, second.taken) == (2, 1)

    def moments(learner: Learner) -> list[torch.Tensor]:
        return [
            state[k].clone() for state in learner.optimizer.state.values() for k in ("exp_avg", "exp_avg_sq", "step")
        ]

    before = moments(first)
    sample = fit.policy.format.demonstration(get_task("parity").problems("train", 1)[0])
    second.step([Row({"response": sample})], 0, "here")
    assert second.taken == 2 and all(torch.equal(a, b) for a, b in zip(before, moments(first), strict=True))
    own = moments(second)
    sample.per_token["advantage"] = sample.learn_mask.float()
    sample.per_token["old_logprob"] = torch.zeros(len(sample))
    first.step([Row({"response": sample})], 0, "here")
    assert first.taken == 3 and all(torch.equal(a, b) for a, b in zip(own, moments(second), strict=True))


def test_the_supervised_schedule_counts_supervised_steps(tmp_path: Path) -> None:
    stage = stage_of(**SMALL, threshold=2)
    stage.updates[1].optimizer = AdamW(lr=1e-3, warmup=4)
    fit = run(stage, tmp_path)
    taken = [line for line in RunFolder(tmp_path).read_metrics() if "hardest/lr" in line]
    assert len(taken) == fit.learners[1].taken
    assert [line["hardest/lr"] for line in taken] == pytest.approx([1e-3 * (i + 1) / 5 for i in range(len(taken))])


def test_its_loss_is_at_temperature_one() -> None:
    """Whatever reinforcement samples at."""
    stage = stage_of(**{**SMALL, "steps": 1}, threshold=1, temperature=2.0, sft_entropy=0.0)
    policy = trained_policy()
    policy.packs = False
    fit = run(stage, policy=policy)
    assert [learner.temperature for learner in fit.learners] == [2.0, 1.0]
    row = Row({"response": policy.format.demonstration(get_task("parity").problems("train", 1)[0])})
    with torch.no_grad():
        expected = -Context([row], {"policy": policy}).forward("response").logprobs.mean()
    assert fit.learners[1].accumulate([row], 0)["loss/nll"] == pytest.approx(float(expected), rel=1e-6)


def test_padding_changes_neither_loss() -> None:
    """Rows beside a longer one: the normalisers count tokens and the budget, not columns."""
    policy = trained_policy("gpt2", dtype=torch.float64)
    policy.packs = False
    stage = stage_of()
    moving = Weights()
    moving.attach(policy, 0)
    problems = get_task("parity:level=2").problems("train", 4, seed=2)
    rows = [Row({"response": policy.format.demonstration(p)}) for p in problems]
    for i, row in enumerate(rows):
        row["response"].per_token["advantage"] = (i - 2.0) * row["response"].learn_mask
    for update in stage.updates:
        found = []
        for tokens in (1, 10_000):  # one sample at a time, or all of them padded to the longest
            learner = Learner(update, {"policy": policy}, moving, steps=1, token_budget=tokens, budget=14)
            learner.accumulate(rows, 0)
            found.append(torch.cat([p.grad.flatten() for p in learner.parameters.values() if p.grad is not None]))
        assert float((found[0] - found[1]).norm() / found[0].norm()) < 1e-10


def test_a_resumed_run_goes_on_with_its_buffer(tmp_path: Path) -> None:
    settings = {**SMALL, "steps": 4, "threshold": 3}
    whole = run(stage_of(**settings), tmp_path / "whole")
    halt = iter(range(1, 100))
    halted = run(stage_of(**settings), tmp_path / "halted", stop=lambda: next(halt) >= 2)
    assert buffer_of(halted.stages[0]).held, "something waits when it stops"
    resumed = run(stage_of(**settings), tmp_path / "halted", resume=True)
    assert equal(weights(whole), weights(resumed))
    ours, theirs = (buffer_of(f.stages[0]).state_dict() for f in (whole, resumed))
    assert ours == theirs and whole.learners[1].taken == resumed.learners[1].taken > 0


def test_how_many_demonstrations_were_used_is_measured() -> None:
    made = get_recipe("relift")(**SMALL, threshold=2)
    fit = run(made.stages[0])
    used = fit.learners[1].taken * 2
    found = made.answering.measure(fit.policy, get_task("parity"), [])
    assert used > 0 and found == {"demonstrations_used": used / 12}


def test_first_supervised_then_reinforced() -> None:
    first, second = get_recipe("sft-grpo")(warm=7, steps=3, warm_batch=5).stages
    assert (first.steps, first.batch, second.steps, second.start) == (7, 5, 3, "last")
    assert second.updates[0].loss.describe() == stage_of("dr-grpo", entropy=1e-3).updates[0].loss.describe()


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(WhetError, match="did you mean 'random'"):
        get_recipe("relift")(select="randm")
    with pytest.raises(WhetError, match="at least 1 entry"):
        get_recipe("relift")(threshold=0.5)
    with pytest.raises(WhetError, match="at least 1 entry"):
        Demonstrated(-1)
    assert nll().behaviour is False, "a supervised step asks for no old log-probs"
