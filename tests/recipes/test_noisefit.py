"""noisefit: which blocks get noise, the methods that it contains, and its controls."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from test_asft import same, weights
from test_sft import QUICK, my_file

from tiny import tiny_policy
from trained import trained_folder, trained_policy
from whet.errors import WhetError
from whet.launch import resume, run
from whet.recipes.recipe import get_recipe
from whet.recipes.supervised.noise_blocks import (
    GRID,
    Plan,
    Planned,
    automatic,
    score,
    signal_to_noise,
    smallest,
    spread,
)
from whet.recipes.supervised.noisefit import Calibrated
from whet.sources import Scope, Uniform
from whet.tasks import get_task
from whet.training.learner import Learner
from whet.weights import Weights


@pytest.fixture(scope="module")
def deep():
    """A policy of six blocks that reads the tests' task, and rows of it."""
    policy = tiny_policy("qwen3", style="tags", num_hidden_layers=6)
    return policy, rows_of(policy)


def rows_of(policy, n: int = 8) -> list:
    source, task = Uniform(), get_task("parity")
    source.bind(task, 1)
    return Calibrated(True, Plan()).rows(source, n, policy, Scope(task, 0))


# -- which blocks ------------------------------------------------------------------------------------------------------
def test_largest_and_lowest_are_disjoint_and_stable(deep) -> None:
    policy, rows = deep
    picks = {}
    for rule in ("largest", "lowest"):
        plans = [Plan(rule, 3) for _ in range(3)]
        for seed, plan in enumerate(plans):
            plan.choose(policy, rows, seed)
        assert len({plan.scales for plan in plans}) == 1, "a few draws decide nothing"
        picks[rule] = {block for block, _ in plans[0].scales}
    assert len(picks["largest"]) == len(picks["lowest"]) == 3 and not picks["largest"] & picks["lowest"]
    ratios = signal_to_noise(policy, rows, 0)
    assert min(ratios[b] for b in picks["largest"]) > max(ratios[b] for b in picks["lowest"])


def test_random_blocks_are_a_function_of_the_seed(deep) -> None:
    policy, rows = deep
    picks = []
    for seed in (1, 1, 2, 3):
        plan = Plan("random", 2)
        plan.choose(policy, rows, seed)
        assert len(plan.scales) == 2
        picks.append(plan.scales)
    assert picks[0] == picks[1] and len(set(picks)) > 1


def test_automatic_choice(deep) -> None:
    policy, rows = deep
    found = automatic(policy, rows, 0)
    assert 1 <= len(found) <= 3 and set(found) <= set(range(6))  # ceil(sqrt(6))
    unit = 32**-0.5
    assert all(any(sigma == pytest.approx(f * unit) for f in GRID) for sigma in found.values())
    assert found == automatic(policy, rows, 0)


def test_scores_and_scales() -> None:
    assert score(1.0, 0.3, 0.0) == 0.3
    assert score(0.25, 0.3, 0.5) == pytest.approx(0.3 / 1.5 / 1.2)
    assert smallest({0.25: 0.1, 0.5: 0.2, 1.0: 0.4}, 0.15) == 0.5
    assert smallest({0.25: 0.1, 0.5: 0.12}, 0.15) == 0.5  # the nearest


def test_spread() -> None:
    """median 2, median deviation 1: blocks of at least 3 stand out; at most ceil(sqrt(9)) of them, one a third of depth."""
    assert spread([9, 8, 7, 1, 1, 2, 3, 1, 2]) == [0, 1, 6]  # the middle third has none: the best other fills up
    assert spread([9, 8, 1, 1, 5, 2, 3, 1, 2]) == [0, 4, 6]
    assert spread([0, 0, 0, 5]) == [3]
    assert len(spread([0.0, 0.0, 0.0])) == 1  # nothing moves anything: some block is taken all the same


# -- what it contains --------------------------------------------------------------------------------------------------
def test_identities() -> None:
    sft = weights("sft")
    assert same(weights("noisefit", alpha=1, consistency=0), sft)
    assert not same(weights("noisefit"), sft)
    assert same(weights("neftune", alpha=0), sft)
    assert not same(weights("neftune"), sft)


def test_without_noise_it_is_alpha_times_the_likelihood() -> None:
    policy = trained_policy()
    Weights().attach(policy, 0)
    rows = rows_of(policy)
    (ours,) = get_recipe("noisefit")(noise=0, alpha=0.25).stages
    found = Learner(ours.updates[0], {"policy": policy}, Weights(), steps=1, token_budget=100).accumulate(rows, 0)
    gradient = {n: p.grad.clone() for n, p in policy.named_parameters()}
    assert found["loss/soft_1"] == found["loss/soft_2"] == found["loss/consistency"] == 0
    (sft,) = get_recipe("sft")().stages
    plain = Learner(sft.updates[0], {"policy": policy}, Weights(), steps=1, token_budget=100).accumulate(rows, 0)
    assert found["loss/nll"] == pytest.approx(0.25 * plain["loss/nll"])
    for name, parameter in policy.named_parameters():
        torch.testing.assert_close(gradient[name], 0.25 * parameter.grad, rtol=1e-4, atol=1e-5)


def test_it_learns_the_rows_of_sft_in_their_order() -> None:
    """The rows that the blocks are chosen on are drawn again."""
    policy, task = trained_policy(), get_task("parity")
    ids = []
    for collect in (get_recipe("noisefit")().stages[0].collect, get_recipe("sft")().stages[0].collect):
        source = Uniform()
        source.bind(task, 4)
        collect.prepare(source, policy, Scope(task, 0))
        ids.append([row["response"].problem_id for row in collect.rows(source, 8, policy, Scope(task, 0))])
    assert ids[0] == ids[1]


# -- a run -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("chosen", ["full", "lora"])
@pytest.mark.parametrize("name", ["noisefit", "neftune", "r-drop"])
def test_a_file_of_the_users(name: str, chosen: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = run(name, task=my_file(tmp_path), verifier="number", model=trained_folder("qwen2", "plain"), weights=chosen,
               out=out, steps=4, batch=48, warmup=0, lr=3e-3, **QUICK)  # fmt: skip
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    key = "loss/nll_1" if name == "r-drop" else "loss/nll"
    losses = [row[key] for row in rows if key in row]
    assert len(losses) == 4 and losses[-1] < losses[0]
    if name == "noisefit":
        assert any(k.startswith("collected/noise in block") for k in rows[0])
        assert all(row["soft_1"] > 0 and row["consistency"] > 0 for row in rows[1:])
    assert not any(m._forward_hooks for m in done.policy.model.modules())


@pytest.mark.parametrize("blocks", ["auto", "largest"])
def test_a_resumed_run_keeps_its_blocks_and_its_noise(blocks: str, tmp_path: Path) -> None:
    settings = {**QUICK, "model": trained_folder(), "task": "parity", "steps": 4, "batch": 4, "blocks": blocks}
    settings |= {} if blocks == "auto" else {"number": 1, "noise": 100.0}
    whole = run("noisefit", out=tmp_path / "whole", **settings).policy.model.state_dict()
    count = iter(range(1, 100))
    run("noisefit", out=tmp_path / "cut", stop=lambda: next(count) >= 2, **settings)
    assert same(resume(tmp_path / "cut").policy.model.state_dict(), whole)


def test_refusals() -> None:
    entry = get_recipe("noisefit")
    for wrong, said in (
        ({"alpha": 2.0}, "between 0 and 1"), ({"noise": -1.0}, "0 or more"), ({"temperature": 0.0}, "above 0"),
        ({"blocks": "large"}, "did you mean 'largest'"), ({"number": 2}, "blocks=largest"),
        ({"alpha": 0, "noise": 0}, "nothing to learn"),
    ):  # fmt: skip
        with pytest.raises(WhetError, match=said):
            entry(**wrong)
    with pytest.raises(WhetError, match="0 or more"):
        get_recipe("neftune")(alpha=-1.0)
    with pytest.raises(WhetError, match="between 0 and 1"):
        get_recipe("r-drop")(dropout=1.0)
    with pytest.raises(WhetError, match="the model has 2 blocks"):
        weights("noisefit", blocks="lowest")
    assert Planned(Plan(), 1) == Planned(Plan(), 1) != Planned(Plan(), 2)
