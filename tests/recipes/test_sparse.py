"""LIFT, HFT and LT-SFT as recipes: which weights move, when they are drawn, and what is put back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tiny import tiny_policy
from trained import trained_folder, trained_policy
from whet.errors import WhetError
from whet.launch import resume, run
from whet.objectives import Context, as_objective
from whet.recipes.recipe import Recipe, get_recipe
from whet.recipes.sparse.composed import START
from whet.recipes.sparse.hft import HalfReset
from whet.recipes.sparse.lt_sft import DistanceToStart, Ticket
from whet.tasks import get_task
from whet.training.fit import Fit
from whet.training.optimizer import Rate
from whet.training.options import Options
from whet.weights import Masked
from whet.weights.delta import WeightDelta
from whet.weights.halves import Half
from whet.weights.selectors import matrices, without_norms

SMALL = {"steps": 2, "batch": 4, "lr": 1e-2}


def made(name: str, **arguments: Any) -> Recipe:
    return get_recipe(name)(**{**SMALL, **arguments})


class Seen:
    """The weights at each stage's entry."""

    def __init__(self) -> None:
        self.entered: list[dict[str, Tensor]] = []
        self.fit: Fit | None = None

    def stage(self, index: int, *_: Any) -> None:
        assert self.fit is not None
        self.entered.append({n: p.detach().clone() for n, p in self.fit.policy.model.named_parameters()})

    def step(self, *_: Any) -> None: ...

    def evaluated(self, *_: Any) -> None: ...


def fitted(recipe: Recipe, seed: int = 0) -> tuple[dict[str, Tensor], Seen]:
    seen = Seen()
    fit = Fit(
        trained_policy(), recipe.stages, get_task("parity"), options=Options(seed=seed, keep="last"), observer=seen
    )
    seen.fit = fit
    assert fit.run().finished
    return {n: p.detach() for n, p in fit.policy.model.named_parameters()}, seen


def start() -> dict[str, Tensor]:
    return {n: p.detach() for n, p in trained_policy().model.named_parameters()}


# -- LIFT ----------------------------------------------------------------------------------------------------------------
def test_lift_moves_linear_layers_only_and_is_what_its_weights_are() -> None:
    ended, _ = fitted(made("lift", rank=2, refresh=1))
    moved = {n for n, before in start().items() if not torch.equal(ended[n], before)}
    assert moved == set(matrices(trained_policy().model))
    stage = made("sft").stages[0]
    stage.weights = get_recipe("lift")(rank=2, refresh=1).stages[0].weights
    same, _ = fitted(Recipe([stage]))
    assert all(torch.equal(ended[n], same[n]) for n in ended)


def test_lifts_entries_are_as_many_as_adapters_have() -> None:
    weights: Any = made("lift", budget_rank=1).stages[0].weights
    model = tiny_policy().model
    assert weights.cost(model).moving == sum(sum(p.shape) for p in matrices(model).values())


def test_the_smallest_are_a_control() -> None:
    found = []
    for smallest in (False, True):
        weights: Any = made("lift", smallest=smallest, density=0.2).stages[0].weights
        weights.attach(trained_policy(), 0)
        weights.at_stage_start(weights.policy)
        found.append(weights.selection)
    assert not any(bool((found[0][n] & found[1][n]).any()) for n in found[0])


def test_rates_are_those_of_sparse_arms() -> None:
    optimizer = get_recipe("lift")().stages[0].updates[0].optimizer
    assert optimizer.lr == Rate(small=1e-3, paper=2e-4)


# -- HFT -----------------------------------------------------------------------------------------------------------------
def test_all_of_it_is_sft_to_the_bit() -> None:
    whole, _ = fitted(made("sft", weight_decay=0.1))
    for name, arguments in (("hft", {"share": 1.0}), ("half-reset", {"share": 0.0})):
        same, _ = fitted(made(name, weight_decay=0.1, **arguments))
        assert all(torch.equal(whole[n], same[n]) for n in whole), name


def test_what_rests_in_a_stage_is_as_the_stage_found_it() -> None:
    recipe = made("hft", tasks="parity;parity:level=2", weight_decay=0.1)
    assert recipe.stream == ("parity", "parity:level=2") or len(recipe.stream) == 2
    ended, seen = fitted(recipe)
    first, second = seen.entered
    moved = [{n for n in ended if not torch.equal(a[n], b[n])} for a, b in ((first, second), (second, ended))]
    blocks = {n for n in ended if ".layers." in n}
    assert moved[0] & blocks != moved[1] & blocks, "each stage draws anew"
    for names in moved:
        assert 0 < len(names & blocks) < len(blocks) and "model.embed_tokens.weight" in names
        for layer in range(2):
            own = {n for n in names if f".layers.{layer}." in n}
            assert len({n for n in own if "proj" in n and "attn" in n}) == 2 and any("mlp" in n for n in own)
    frozen, _ = fitted(made("hft", ends=False))
    assert torch.equal(frozen["model.embed_tokens.weight"], start()["model.embed_tokens.weight"])


def test_one_draw_for_all_stages_is_a_control() -> None:
    ended, seen = fitted(made("hft", tasks="parity;parity:level=2", once=True))
    first, second = seen.entered
    moved = [{n for n in ended if not torch.equal(a[n], b[n])} for a, b in ((first, second), (second, ended))]
    assert moved[0] == moved[1]


def test_a_draw_of_its_own_does_not_change_with_the_runs_seed() -> None:
    found = []
    for seed in (1, 2):
        weights: Any = made("hft", draw=5).stages[0].weights
        weights.attach(trained_policy(), seed)
        weights.at_stage_start(weights.policy)
        found.append(weights.whole)
    assert found[0] == found[1]


def test_half_reset_puts_back_exactly_what_is_drawn() -> None:
    whole, _ = fitted(made("sft"))
    before = start()
    half, _ = fitted(made("half-reset"))
    back = {n for n in half if torch.equal(half[n], before[n]) and not torch.equal(whole[n], before[n])}
    assert back and all(torch.equal(half[n], whole[n]) for n in half if n not in back)
    assert all(".layers." in n for n in back)
    attention = [n for n in back if "self_attn" in n and "proj" in n]
    assert len(attention) == 4, "2 of 4 in each of two blocks"
    everything, _ = fitted(made("half-reset", share=1.0))
    for name in everything:
        assert torch.equal(everything[name], (before if ".layers." in name else whole)[name])


def test_half_reset_may_be_done_twice() -> None:
    """A run that ended but was not saved ends again."""
    policy = trained_policy()
    weights = HalfReset(Half(0.5, ends=False))
    weights.attach(policy, 0)
    with torch.no_grad():
        for p in policy.model.parameters():
            p.add_(0.125)
    weights.at_stage_end(policy)
    once = {n: p.detach().clone() for n, p in policy.model.named_parameters()}
    weights.at_stage_end(policy)
    assert all(torch.equal(p, once[n]) for n, p in policy.model.named_parameters())


# -- LT-SFT --------------------------------------------------------------------------------------------------------------
def test_the_rewind_is_exact_and_only_the_chosen_move() -> None:
    recipe = made("lt-sft", density=0.1)
    ended, seen = fitted(recipe)
    before = start()
    assert all(torch.equal(seen.entered[1][n], before[n]) for n in before), (
        "the second phase begins where the first did"
    )
    ticket: Any = recipe.stages[1].weights
    masks, eligible = ticket.selection, without_norms(trained_policy().model)
    assert sum(int(m.sum()) for m in masks.values()) == round(0.1 * sum(p.numel() for p in eligible.values()))
    for name in before:
        changed = ended[name] != before[name]
        assert not bool((changed & ~masks[name]).any() if name in masks else changed.any()), name
    shares = [float(m.float().mean()) for m in masks.values()]
    assert max(shares) > 1.5 * min(shares), "one threshold for all tensors"


def test_the_chosen_are_those_that_moved_most() -> None:
    recipe = made("lt-sft", density=0.05)
    fitted(recipe)
    ticket: Any = recipe.stages[1].weights
    dense = made("lt-sft").stages[0]
    after, _ = fitted(Recipe([dense]))
    moved = {n: (after[n] - b).abs() for n, b in start().items() if n in ticket.selection}
    inside = torch.cat([moved[n][m] for n, m in ticket.selection.items()])
    outside = torch.cat([moved[n][~m] for n, m in ticket.selection.items()])
    assert float(inside.min()) >= float(outside.max())
    assert all(torch.equal(after[n], b) for n, b in start().items() if n not in ticket.selection), (
        "norms stay in both phases"
    )


def test_all_entries_are_train_rewind_train() -> None:
    """The second phase is then a fresh dense run."""
    both, _ = fitted(made("lt-sft", density=1.0))
    dense, _ = fitted(Recipe([made("lt-sft").stages[0]]))
    assert all(torch.equal(both[n], dense[n]) for n in both)


def test_the_difference_is_sparse_and_adds_up() -> None:
    ended, _ = fitted(made("lt-sft", density=0.05))
    delta = WeightDelta.between(ended, start()).compact(1e-7)
    kept = sum(len(getattr(delta[n], "places", ())) for n in delta)
    eligible = sum(p.numel() for p in without_norms(trained_policy().model).values())
    assert 0 < kept <= round(0.05 * eligible)


def test_the_distance_to_the_start_pulls_back_and_does_not_overshoot() -> None:
    """A step of lr w / N towards the start; at the start no pull."""
    policy, anchor = trained_policy(dtype=torch.float64), trained_policy(dtype=torch.float64)
    name = "model.layers.0.mlp.up_proj.weight"
    weight = dict(policy.model.named_parameters())[name]
    with torch.no_grad():
        weight[0, 0] += 0.5
        weight[0, 1] -= 0.25
    objective = as_objective(4.0 * DistanceToStart())
    ctx = Context([], {"policy": policy, "reference": anchor}, objective.counts([]))
    ((total, count),) = objective.total(ctx, scope="parameters").values()
    assert (total / count).item() == pytest.approx(4.0 * 0.75 / policy.size())
    (total / count).backward()
    pull = 4.0 / policy.size()
    assert weight.grad[0, :3].tolist() == pytest.approx([pull, -pull, 0.0])
    assert int((weight.grad != 0).sum()) == 2


def test_l1_enters_each_phase_by_its_own_weight() -> None:
    recipe = made("lt-sft", l1=0.1)
    assert ["l1" in s.updates[0].loss.describe() for s in recipe.stages] == [True, False]
    ended, _ = fitted(made("lt-sft", l1=1e6, l1_sparse=1e6, steps=1))
    assert any(not torch.equal(ended[n], b) for n, b in start().items()), "at the start there is no pull"
    with pytest.raises(WhetError, match="weighs 0 or more"):
        made("lt-sft", l1=-1.0)


def test_a_random_ticket_is_a_control_of_equal_size() -> None:
    counts = []
    for random in (False, True):
        recipe = made("lt-sft", density=0.1, random=random)
        fitted(recipe)
        ticket: Any = recipe.stages[1].weights
        counts.append(sum(int(m.sum()) for m in ticket.selection.values()))
    assert counts[0] == counts[1]


@pytest.mark.parametrize(("method", "stop"), [("sft", 1), ("sft", 2), ("sec:group=4,by=level", 3)])
def test_it_trains_any_method_and_resumes(method: str, stop: int, tmp_path: Path) -> None:
    settings = {"test_n": 4, "validation_n": 4, "k": 0, "others": [], "eval_every": 0, "threads": 1, "task": "parity:level=1-2",
                "model": trained_folder(), "steps": 2, "batch": 4, "method": method, "l1_sparse": 0.1}  # fmt: skip
    whole = run("lt-sft", out=tmp_path / "whole", **settings)
    assert [type(s.weights) for s in get_recipe("lt-sft")(method="grpo").stages] == [Masked, Ticket]
    count = iter(range(1, 100))
    run("lt-sft", out=tmp_path / "halted", stop=lambda: next(count) >= stop, **settings)
    resumed = resume(tmp_path / "halted")
    ours, theirs = dict(whole.policy.named_parameters()), dict(resumed.policy.named_parameters())
    assert whole.progress.total == 4 and not [n for n in ours if not torch.equal(ours[n], theirs[n])]


def test_what_cannot_be_a_method_is_refused() -> None:
    for method in ("star", "lift"):
        with pytest.raises(WhetError, match="a recipe of one stage"):
            get_recipe("lt-sft")(method=method)
    with pytest.raises(WhetError, match="unknown argument of recipe 'grpo' 'gruop'"):
        get_recipe("lt-sft")(method="grpo:gruop=4")


# -- composition ---------------------------------------------------------------------------------------------------------
TWO = "parity;parity:level=2"


def test_the_sum_is_the_start_and_every_change() -> None:
    recipe = made("composed-sft", tasks=TWO, density=0.1)
    ended, seen = fitted(recipe)
    before = start()
    assert len(recipe.stages) == 4 and all(
        torch.equal(entered[n], before[n]) for entered in seen.entered for n in before
    )
    held = recipe.stages[-1].weights.held
    assert set(held) == {START, *(stage.task.spec() for stage in recipe.stages)}
    changes = [{n: held[s][n] - before[n] for n in before} for s in held if s != START]
    for name in before:
        assert torch.allclose(ended[name], before[name] + sum(change[name] for change in changes), atol=1e-6), name
    eligible = sum(p.numel() for p in without_norms(trained_policy().model).values())
    for change in changes:
        assert 0 < sum(int((d != 0).sum()) for d in change.values()) <= round(0.1 * eligible)


def test_whole_changes_are_added_in_one_phase_each() -> None:
    recipe = made("composed-sft", tasks=TWO, dense=True)
    ended, _ = fitted(recipe)
    alone = [fitted(Recipe([made("composed-sft", tasks=TWO, dense=True).stages[0]]))[0]]
    held, before = recipe.stages[-1].weights.held, start()
    assert len(recipe.stages) == 2
    assert all(torch.equal(held[recipe.stages[0].task.spec()][n], alone[0][n]) for n in before)
    assert all(torch.equal(ended[n], before[n]) for n in before if "norm" in n), "norms stay"


def test_a_sum_needs_two_tasks() -> None:
    with pytest.raises(WhetError, match="two tasks"):
        get_recipe("composed-sft")(tasks="parity")
