"""ppo: what is fixed for a batch, the first minibatch, the value head and the KL in the reward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from trained import trained_folder, trained_policy
from whet.advantages.gae import AdaptiveKL, GeneralizedAdvantage
from whet.errors import WhetError
from whet.launch import run
from whet.models.policy import Policy
from whet.objectives.forward import Context
from whet.recipes.recipe import get_recipe
from whet.records import Row
from whet.runs import RunFolder
from whet.tasks import get_task
from whet.training import checkpoint
from whet.training.fit import Fit, Options
from whet.training.learner import Learner
from whet.training.stage import Stage

SMALL: dict[str, Any] = {"steps": 1, "batch": 4, "group": 4}


def stage_of(**arguments: Any) -> Stage:
    (stage,) = get_recipe("ppo")(**{**SMALL, **arguments}).stages
    return stage


def spied(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, float]]:
    """The metrics of every optimizer step."""
    seen: list[dict[str, float]] = []
    step = Learner.step

    def spy(self: Learner, *args: Any) -> dict[str, float]:
        seen.append(step(self, *args))
        return seen[-1]

    monkeypatch.setattr(Learner, "step", spy)
    return seen


def last_rows(stage: Stage, policy: Policy | None = None) -> tuple[list[Row], Fit]:
    learnt: list[Row] = []
    stage.transforms = [lambda rows: (learnt.clear(), learnt.extend(rows))[0]]
    fit = Fit(policy or trained_policy(), [stage], get_task("parity"), options=Options(seed=2))
    fit.run()
    return learnt, fit


# -- card test 3 -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_3_in_the_first_minibatch_the_ratio_is_one(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if dropout is on, or if the temperatures of old and new log-probs differ. Later ones move away."""
    policy = trained_policy("gpt2", "tags", resid_pdrop=0.3, attn_pdrop=0.3)  # off in every forward all the same
    seen = spied(monkeypatch)  # from here on: the model may have been trained for this test
    last_rows(stage_of(epochs=2, minibatches=2, lr=3e-3, warmup=0, temperature=temperature), policy)
    first, *rest = seen
    assert len(seen) == 4
    assert first["clip_fraction"] == 0.0
    assert first["ratio_max"] == pytest.approx(1.0, abs=1e-4) and abs(first["approx_kl"]) < 1e-7
    assert first["mismatch"] < 1e-4
    assert all(step["approx_kl"] > 1e-5 for step in rest)


def test_what_a_batch_fixes_does_not_move_with_the_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Old log-probs, values, advantages and returns are those of the policy that sampled."""
    held: list[list[torch.Tensor]] = []
    real = Learner.step

    def spy(self: Learner, rows: list[Row], *args: Any) -> dict[str, float]:
        names = ("old_logprob", "old_value", "advantage", "return")
        held.append([row["response"].per_token[n].clone() for row in rows for n in names])
        return real(self, rows, *args)

    monkeypatch.setattr(Learner, "step", spy)
    last_rows(stage_of(epochs=3, lr=3e-3, warmup=0))
    assert len(held) == 3
    for later in held[1:]:
        assert all(torch.equal(a, b) for a, b in zip(held[0], later, strict=True))


def test_returns_are_the_score_where_nothing_is_discounted() -> None:
    rows, _ = last_rows(stage_of(lam=1.0))
    for row in rows:
        sample = row["response"]
        returns = sample.per_token["return"][sample.learn_mask]
        assert torch.allclose(returns, torch.full_like(returns, row.numbers["reward"]), atol=1e-6)
        assert not bool(sample.per_token["return"][~sample.learn_mask].any())
    advantages = torch.cat([r["response"].per_token["advantage"][r["response"].learn_mask] for r in rows])
    assert float(advantages.mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(advantages.std()) == pytest.approx(1.0, abs=1e-4)


def test_old_values_are_the_heads_before_the_batch() -> None:
    """V_t is read in the state before action t."""
    policy = trained_policy()
    stage = stage_of(lr=0.0, warmup=0)
    rows, fit = last_rows(stage, policy)
    with torch.no_grad():
        for row in rows[:3]:
            sample = row["response"]
            hidden = policy.hidden(torch.tensor(sample.ids)[None])[0]
            values = policy.modules["value"](hidden)[:, 0]
            start = sample.prompt_length
            assert torch.allclose(sample.per_token["old_value"][start:], values[start - 1 : -1], atol=1e-5)
    assert fit.learners[0].taken == 2


def test_the_value_head_learns_and_pulls_at_the_policy(tmp_path: Path) -> None:
    policy = trained_policy()
    stage = stage_of(steps=8, epochs=4, batch=8, lr=3e-3, warmup=0, value_weight=1.0, value_clip=10.0)
    fit = Fit(policy, [stage], get_task("parity"), folder=RunFolder(tmp_path))
    fit.run()
    losses = [line["loss/value"] for line in RunFolder(tmp_path).read_metrics()]
    assert losses[-1] < 0.7 * losses[0]
    with torch.enable_grad():
        ctx = Context(_learnt_rows(fit), fit.policies, {"policy_gradient": 1.0, "value": 1.0})
        (_, _), (_, value) = stage.updates[0].loss.terms
        value.total(ctx).backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in policy.model.parameters())


def _learnt_rows(fit: Fit) -> list[Row]:
    return fit.step.rows(5)[1]


# -- KL in the reward ------------------------------------------------------------------------------------------------
def test_the_kl_in_the_reward_is_zero_at_first_and_adapts(tmp_path: Path) -> None:
    stage = stage_of(steps=4, kl=0.1, kl_target=1e-4, lr=3e-3, warmup=0, epochs=2)
    assert stage.wants() == {"old_logprob", "old_value", "reference_logprob"}
    rows, _ = last_rows(stage)
    advantage = stage.advantage
    assert isinstance(advantage, GeneralizedAdvantage) and isinstance(advantage.kl_coefficient, AdaptiveKL)
    assert advantage.beta != 0.1, "a policy that moves away changes beta"
    assert any(abs(row.numbers["kl"]) > 1e-4 for row in rows)
    first, _ = last_rows(stage_of(kl=0.1))
    assert all(abs(row.numbers["kl"]) < 1e-5 for row in first)


def test_settings() -> None:
    stage = stage_of(kl=0.0, normalise="sequence", dual_clip=3.0, clip=0.1, value_weight=5.0)
    (one, policy), (weight, value) = stage.updates[0].loss.terms
    assert (one, policy.clip, policy.dual_clip, policy.normalise) == (1.0, (0.1, 0.1), 3.0, "sequence")  # type: ignore[attr-defined]
    assert (weight, value.clip, value.normalise) == (5.0, 0.2, "sequence")  # type: ignore[attr-defined]
    assert stage.wants() == {"old_logprob", "old_value"}, "no KL, no reference model"
    with pytest.raises(WhetError, match="kl_target adapts kl"):
        stage_of(kl_target=0.1)
    with pytest.raises(WhetError, match="width of a hidden layer"):
        stage_of(value_width=-1)
    stage_of(group=1).check()  # the value head is the baseline


def test_the_value_head_is_in_the_checkpoint_and_not_in_the_model(tmp_path: Path) -> None:
    done = run("ppo", model=trained_folder(), task="parity", out=tmp_path / "run", test_n=2, k=0, others=[],
               eval_every=0, **SMALL)  # fmt: skip
    weights, _ = checkpoint.load(checkpoint.found(tmp_path / "run" / "checkpoints")[-1])
    assert torch.equal(weights["modules.value.weight"], done.policy.modules["value"].weight)
    saved = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert not any("value" in name and "modules" in name for name in saved)
    assert set(saved) <= set(trained_policy().model.state_dict())
