"""Masked weights: what is outside does not move, the state is as large as what moves, refreshes and resumes."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tiny import tiny_policy
from trained import trained_folder, trained_policy
from whet.advantages import group_std
from whet.errors import WhetError
from whet.launch import resume, run
from whet.models.policy import Policy
from whet.objectives import nll, policy_gradient, value_head, value_loss
from whet.rewards import accuracy
from whet.sources import Demonstrations, Rollouts, Scope, Uniform
from whet.tasks import get_task
from whet.training.fit import Fit
from whet.training.learner import Learner
from whet.training.optimizer import AdamW
from whet.training.options import Options
from whet.training.stage import Stage, Update
from whet.weights import Masked, Packed, Weights, get_weights
from whet.weights.halves import Half
from whet.weights.selectors import (
    NOTHING,
    Facts,
    Named,
    Rule,
    Selector,
    Top,
    chance,
    low_rank_magnitude,
    magnitude,
    matrices,
)
from whet.weights.snapshot import copy_weights

PRINCIPAL = partial(low_rank_magnitude, rank=4)


def begin(weights: Weights, policy: Policy, optimizer: AdamW, seed: int = 0, steps: int = 100) -> Learner:
    weights.attach(policy, seed)
    weights.at_stage_start(policy)
    return Learner(Update(nll(), optimizer=optimizer), {"policy": policy}, weights, steps=steps, token_budget=10_000)


def teach(learner: Learner, steps: int, start: int = 0) -> None:
    task, problems = get_task("parity"), Uniform()
    problems.bind(task, 7)
    problems.cursor = 4 * start
    for step in range(start, start + steps):
        learner.step(Demonstrations().rows(problems, 4, learner.policy, Scope(task, step)), step, "training")


def copies(policy: Policy) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in policy.model.named_parameters()}


# -- what is outside -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("kind", "select"),
    [("qwen3", Top(PRINCIPAL, 0.05)), ("gpt2", Top(PRINCIPAL, 0.05)), ("qwen3", Half()), ("gpt2", Named("h[.]1[.]"))],
)
def test_what_is_outside_is_bit_identical_after_100_steps_with_decay(select: Selector, kind: str) -> None:
    policy = tiny_policy(kind)
    before, weights = copies(policy), Masked(select)
    learner = begin(weights, policy, AdamW(lr=1e-2, weight_decay=0.1))
    teach(learner, 100)
    masks = weights.selection
    for name, now in copies(policy).items():
        mask = masks.get(name, False)
        changed = now != before[name]
        assert not bool((changed & ~mask).any() if isinstance(mask, Tensor) else changed.any() and not mask), name
        if isinstance(mask, Tensor):
            assert bool(changed[mask].all()), "everything inside moves: it decays"


def test_everything_chosen_is_full_fine_tuning() -> None:
    full, masked = trained_policy(), trained_policy()
    optimizer = AdamW(lr=1e-2, weight_decay=0.1)
    teach(begin(Weights(), full, optimizer), 10)
    teach(begin(Masked(Half(1.0)), masked, optimizer), 10)
    assert all(torch.equal(a, b) for a, b in zip(full.model.parameters(), masked.model.parameters(), strict=True))
    entries = trained_policy()  # as vectors, all of those tensors
    teach(begin(Masked(Top(magnitude, 1.0)), entries, optimizer), 10)
    only = trained_policy()
    teach(begin(Masked(Named("proj")), only, optimizer), 10)
    assert all(torch.equal(a, b) for a, b in zip(entries.model.parameters(), only.model.parameters(), strict=True))


def test_decay_moves_what_is_chosen_of_matrices_and_nothing_of_vectors() -> None:
    """A chosen entry of a matrix decays, though it lies in a vector; a norm's does not."""
    policy = tiny_policy()
    weights = Masked(Top(magnitude, 0.5, where=lambda m: dict(m.named_parameters())))
    learner = begin(weights, policy, AdamW(lr=0.1, weight_decay=0.5))
    before = copies(policy)
    for p in policy.model.parameters():
        p.grad = torch.zeros_like(p)
    learner.optimizer.step()
    for name, mask in weights.selection.items():
        now = dict(policy.model.named_parameters())[name]
        expected = before[name].clone()
        if now.dim() >= 2:
            expected[mask] *= 1 - 0.1 * 0.5
        torch.testing.assert_close(now.detach(), expected, rtol=1e-6, atol=0)


def test_the_norm_that_is_clipped_is_that_of_what_moves() -> None:
    policy = trained_policy()
    weights = Masked(Top(magnitude, 0.05))
    learner = begin(weights, policy, AdamW(lr=0.0))
    task, problems = get_task("parity"), Uniform()
    problems.bind(task, 7)
    rows = Demonstrations().rows(problems, 4, policy, Scope(task, 0))
    learner.accumulate(rows, 0)
    inside = torch.cat([p.grad[weights.selection[n]] for n, p in learner.parameters.items()]).norm()
    everything = torch.cat([p.grad.flatten() for p in learner.parameters.values()]).norm()
    assert float(inside) < 0.9 * float(everything)
    assert learner.step(rows, 0, "here")["grad_norm"] == pytest.approx(float(inside), rel=1e-5)


# -- the state -----------------------------------------------------------------------------------------------------------
def test_the_state_is_as_large_as_what_moves() -> None:
    policy = tiny_policy()
    learner = begin(Masked(Top(PRINCIPAL, 0.05)), policy, AdamW())
    teach(learner, 1)
    chosen = sum(max(1, round(0.05 * p.numel())) for p in matrices(policy.model).values())
    state = learner.optimizer.state_dict()["state"].values()
    assert sum(s["exp_avg"].numel() for s in state) == sum(s["exp_avg_sq"].numel() for s in state) == chosen
    packed: Any = learner.optimizer
    assert sum(p.numel() for p in packed.packed.values()) == 0, "between steps only the moments are held"
    whole = begin(Weights(), tiny_policy(), AdamW())
    teach(whole, 1)

    def held(optimizer: Any) -> int:
        tensors = [t for s in optimizer.state_dict()["state"].values() for t in s.values() if t.dim()]
        tensors += list(getattr(optimizer, "places", {}).values())
        return sum(t.numel() * t.element_size() for t in tensors)

    assert held(learner.optimizer) <= 0.15 * held(whole.optimizer)


class Fixed(Selector):
    """Given places of one tensor, one list a draw."""

    def __init__(self, name: str, *draws: list[int]) -> None:
        self.name, self.draws = name, list(draws)

    def __call__(self, model: Any, facts: Facts = NOTHING) -> dict[str, Tensor | bool]:
        mask = torch.zeros_like(dict(model.named_parameters())[self.name], dtype=torch.bool)
        mask.view(-1)[self.draws.pop(0)] = True
        return {self.name: mask}


def test_moments_are_carried_over_a_refresh() -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    policy = tiny_policy()
    weights = Masked(Fixed(name, [1, 5, 9, 100], [0, 5, 100, 101, 102]))
    learner = begin(weights, policy, AdamW(lr=1e-2))
    teach(learner, 2)
    packed: Any = learner.optimizer
    at = {key: dict(zip([1, 5, 9, 100], values.tolist(), strict=True)) for key, values in moments(packed).items()}
    weights.every_n_steps(policy, 2)
    now = {
        key: dict(zip([0, 5, 100, 101, 102], values.tolist(), strict=True)) for key, values in moments(packed).items()
    }
    for key in ("exp_avg", "exp_avg_sq"):
        assert now[key][5] == at[key][5] != 0 and now[key][100] == at[key][100] != 0
        assert now[key][0] == now[key][101] == now[key][102] == 0.0
    (state,) = packed.inside.state.values()
    assert float(state["step"]) == 2, "the step count goes on"
    before = copies(policy)[name].flatten()
    teach(learner, 1, start=2)
    after = copies(policy)[name].flatten()
    assert set((after != before).nonzero().flatten().tolist()) == {0, 5, 100, 101, 102}
    assert float(state["step"]) == 3


def moments(packed: Packed) -> dict[str, Tensor]:
    (state,) = packed.inside.state.values()
    return {key: state[key].clone() for key in ("exp_avg", "exp_avg_sq")}


def test_entries_that_leave_keep_their_value_and_the_update_is_wider_than_a_mask() -> None:
    policy = tiny_policy()
    before = copies(policy)
    weights = Masked(Top(chance, 0.05), refresh=2)
    learner = begin(weights, policy, AdamW(lr=1e-2))
    teach(learner, 6)
    assert weights.drawn == 4, "at the start and after steps 2, 4 and 6"
    for name in matrices(policy.model):
        moved = int((copies(policy)[name] != before[name]).sum())
        k = max(1, round(0.05 * before[name].numel()))
        assert k < moved <= 3 * k


def test_a_refresh_reaches_the_optimizers_of_all_updates() -> None:
    policy = tiny_policy()
    weights = Masked(Top(chance, 0.05), refresh=2)
    first = begin(weights, policy, AdamW(lr=1e-2))
    second = Learner(Update(nll(), optimizer=AdamW(lr=1e-2)), {"policy": policy}, weights, steps=9, token_budget=10_000)
    teach(second, 1)
    teach(first, 2)
    for learner in (first, second):
        packed: Any = learner.optimizer
        assert all(torch.equal(packed.places[n], weights.places[n]) for n in weights.places)
        for parameter, state in packed.inside.state.items():
            name = next(n for n, p in packed.packed.items() if p is parameter)
            assert state["exp_avg"].shape == weights.places[name].shape
    teach(second, 1)


def test_other_tensors_within_a_stage_are_refused() -> None:
    policy = tiny_policy()
    learner = begin(Masked(Half(), refresh=1), policy, AdamW())
    with pytest.raises(WhetError, match="choose once a stage"):
        teach(learner, 1)


# -- stages and runs -----------------------------------------------------------------------------------------------------
def test_each_stage_draws_anew_from_the_seed() -> None:
    def drawn(seed: int, own: int | None = None) -> list[list[str]]:
        weights, policy = Masked(Half(), seed=own), tiny_policy()
        weights.attach(policy, seed)
        found = []
        for _ in range(2):
            weights.at_stage_start(policy)
            found.append(sorted(weights.whole))
        return found

    one, two = drawn(1)
    assert one != two and drawn(1) == [one, two] and drawn(2)[0] != one
    assert drawn(1, own=5) == drawn(2, own=5), "a seed of its own does not change with the run's"


def stages(kind: str) -> list[Stage]:
    def sft() -> Stage:
        return Stage(Demonstrations(), [Update(nll(), optimizer=AdamW(lr=1e-2, weight_decay=0.1))], steps=2, batch=4)

    if kind == "rl":
        ppo = Update(policy_gradient() + 0.1 * value_loss(), optimizer=AdamW(lr=1e-2), epochs=2)
        from whet.advantages import generalized_advantage

        second = Stage(Rollouts(4), [ppo], steps=2, batch=2, reward=accuracy(), advantage=generalized_advantage(),
                       modules={"value": value_head})  # fmt: skip
        return [sft(), second]
    if kind == "carry":
        second = sft()
        second.carry = True
        return [sft(), second]
    if kind == "relift":
        grpo = Stage(Rollouts(4), [Update(policy_gradient(), optimizer=AdamW(lr=1e-2)), Update(nll(), optimizer=AdamW(lr=1e-2))],
                     steps=3, batch=2, reward=accuracy(), advantage=group_std())  # fmt: skip
        return [grpo]
    return [sft(), sft()]


def fit_of(kind: str, weights: str, out: Path, stop: Any = None) -> Fit:
    from whet.runs import RunFolder

    out.mkdir(exist_ok=True)
    return Fit(trained_policy(), stages(kind), get_task("parity"), weights=get_weights(weights),
               options=Options(seed=3, stop=stop, keep="last"), folder=RunFolder(out))  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "weights"),
    [("sft", "hft"), ("sft", "lift:rank=4,refresh=1"), ("rl", "lift:rank=4,refresh=2"), ("rl", "hft"), ("relift", "random:refresh=1"),
     ("carry", "lift:rank=4,refresh=1")],
)  # fmt: skip
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_runs_resume_bit_for_bit(kind: str, weights: str, stop: int, tmp_path: Path) -> None:
    whole = fit_of(kind, weights, tmp_path / "whole")
    assert whole.run().finished
    count = iter(range(1, 100))
    fit_of(kind, weights, tmp_path / "halted", lambda: next(count) >= stop).run()
    resumed = fit_of(kind, weights, tmp_path / "halted")
    assert resumed.run(resume=True).finished
    ours, theirs = dict(whole.policy.named_parameters()), dict(resumed.policy.named_parameters())
    assert not [n for n in ours if not torch.equal(ours[n], theirs[n])]


def test_moments_are_not_carried_between_masked_weights_and_others(tmp_path: Path) -> None:
    fit = fit_of("carry", "lift:rank=4", tmp_path)
    fit.stages[0].weights = Masked(Rule(matrices))
    with pytest.raises(WhetError, match="not carried on between masked weights and others"):
        fit.run()


@pytest.mark.parametrize(
    ("recipe", "more"), [("sft", {}), ("grpo", {"group": 4}), ("dpo", {"problems": 12, "samples": 4})]
)
def test_a_run_of_any_recipe(recipe: str, more: dict[str, Any], tmp_path: Path) -> None:
    quick = {
        "test_n": 4,
        "validation_n": 4,
        "k": 0,
        "others": [],
        "eval_every": 1,
        "threads": 1,
        "task": "parity",
        "steps": 3,
        "batch": 4,
    }
    settings = {**quick, **more, "model": trained_folder(), "weights": "lift:rank=4,density=0.1,refresh=2"}
    whole = run(recipe, out=tmp_path / "whole", **settings)
    count = iter(range(1, 100))
    run(recipe, out=tmp_path / "halted", stop=lambda: next(count) >= 2, **settings)
    resume(tmp_path / "halted")
    first, second = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "halted"))
    assert all(torch.equal(first[n], second[n]) for n in first)
    start = trained_policy().model.state_dict()
    moved = {n for n in first if not torch.equal(first[n], start[n])}
    assert moved and moved <= {n for n in start if "proj" in n}
    assert whole.policy.peft is None
    assert json.loads((tmp_path / "whole" / "summary.json").read_text())["steps"] == 3


def test_weights_that_choose_nothing_are_refused() -> None:
    policy = tiny_policy()
    start = copy_weights(policy, moving=False)
    with pytest.raises(
        WhetError, match="no entry was chosen"
    ):  # HFT's share of 0 with frozen ends: the model stays as it is
        begin(Masked(Half(0.0, ends=False)), policy, AdamW())
    assert all(torch.equal(p, start[n]) for n, p in policy.model.named_parameters())
    with pytest.raises(WhetError, match="nothing was chosen before"):
        Masked(Top(magnitude, 0.1)).optimizer(lambda p: AdamW().build(p, 1), {})
    with pytest.raises(WhetError, match="refresh is a number"):
        Masked(Half(), refresh=-1)
