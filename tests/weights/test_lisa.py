"""LISA: a few blocks move at a time; the others rest to the bit, without gradients and without moments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tiny import KINDS, tiny_policy
from trained import trained_folder
from whet.errors import WhetError
from whet.launch import run
from whet.models.hooks import blocks
from whet.models.policy import Policy
from whet.objectives import nll
from whet.records import Row, Sample, Segment
from whet.training.learner import Learner
from whet.training.optimizer import AdamW
from whet.training.stage import Update
from whet.weights import Lora, Weights, get_weights
from whet.weights.lisa import Lisa

ANSWERS = ([8, 9], [10, 11, 12], [13])
ROWS = [Row({"response": Sample([Segment("question", [5, 6, 7]), Segment("answer", a, learn=True)])}) for a in ANSWERS]
LAYERS = 6


def setup(weights: Weights, kind: str = "qwen3", dtype: torch.dtype = torch.float32, seed: int = 0) -> Learner:
    policy = tiny_policy(kind, dtype, num_hidden_layers=LAYERS)
    weights.attach(policy, seed)
    weights.at_stage_start(policy)
    optimizer = AdamW(lr=1e-2, weight_decay=0.1)
    return Learner(Update(nll(), optimizer=optimizer), {"policy": policy}, weights, steps=50, token_budget=10_000)


def block_names(policy: Policy) -> list[set[str]]:
    names = {id(p): n for n, p in policy.model.named_parameters()}
    return [{names[id(p)] for p in block.parameters()} for block in blocks(policy)]


def moving_blocks(policy: Policy) -> list[int]:
    """By what has `requires_grad`; a block moves or rests as a whole."""
    own = dict(policy.model.named_parameters())
    found = []
    for b, names in enumerate(block_names(policy)):
        states = {own[n].requires_grad for n in names}
        assert len(states) == 1
        found += [b] if states == {True} else []
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_sampled_number_of_blocks_moves_and_what_is_outside_always(kind: str) -> None:
    lisa = Lisa(blocks=2, period=3)
    learner = setup(lisa, kind)
    policy = learner.policy
    inside = set().union(*block_names(policy))
    outside = {n for n, _ in policy.model.named_parameters()} - inside
    ends = (policy.model.get_input_embeddings().weight, policy.model.get_output_embeddings().weight)
    assert {id(e) for e in ends} <= {id(p) for n, p in policy.model.named_parameters() if n in outside}
    windows = []
    for step in range(12):
        windows.append(moving_blocks(policy))
        assert windows[-1] == lisa.moving() and len(windows[-1]) == 2
        own = dict(policy.model.named_parameters())
        assert all(own[n].requires_grad for n in outside)
        learner.step(ROWS, step, "here")
    assert all(len({tuple(w) for w in windows[i : i + 3]}) == 1 for i in range(0, 12, 3)), "a window is three steps"
    assert len({tuple(w) for w in windows}) > 1, "others are drawn"


def test_every_block_is_drawn_equally_often() -> None:
    lisa = Lisa(blocks=2, period=1)
    setup(lisa)
    counts = [0] * LAYERS
    for lisa.taken in range(3000):
        for b in lisa.moving():
            counts[b] += 1
    assert all(abs(n - 1000) < 5 * (3000 * (1 / 3) * (2 / 3)) ** 0.5 for n in counts)


def test_resting_blocks_are_bit_identical_and_have_no_moments() -> None:
    lisa = Lisa(blocks=2, period=3)
    learner = setup(lisa)
    policy = learner.policy
    parts = block_names(policy)
    steps = dict.fromkeys(learner.parameters, 0)  # optimizer steps since it was last drawn
    for step in range(12):
        moving = {n for b, names in enumerate(parts) for n in names if b in lisa.moving()}
        resting = set().union(*parts) - moving
        before = {n: p.detach().clone() for n, p in learner.parameters.items()}
        learner.step(ROWS, step, "here")
        for name, parameter in learner.parameters.items():
            still = torch.equal(before[name], parameter)
            assert still == (name in resting), name
            steps[name] = 0 if name in resting else steps[name] + 1
        state = {n: learner.optimizer.state[p]["step"].item() for n, p in learner.parameters.items()
                 if p in learner.optimizer.state}  # fmt: skip
        assert state == {n: k for n, k in steps.items() if k}, "moments since the block was drawn, and none of others"


def test_gradients_are_those_of_full_training() -> None:
    ours, full = setup(Lisa(2), dtype=torch.float64), setup(Weights(), dtype=torch.float64)
    ours.accumulate(ROWS, 0)
    full.accumulate(ROWS, 0)
    rests = ours.policy.resting
    assert rests and all(ours.parameters[n].grad is None for n in rests)
    for name in set(ours.parameters) - rests:
        torch.testing.assert_close(ours.parameters[name].grad, full.parameters[name].grad, rtol=1e-10, atol=1e-14)
    assert ours.policy.meter.flops < full.policy.meter.flops, "gradients of what rests are not computed, nor counted"


def test_all_blocks_are_full_fine_tuning() -> None:
    ours, full = setup(Lisa(LAYERS, 2)), setup(Weights())
    for step in range(5):
        ours.step(ROWS, step, "here")
        full.step(ROWS, step, "here")
    assert all(torch.equal(p, full.parameters[n]) for n, p in ours.parameters.items())


def test_the_draw_is_the_runs_seed_and_nothing_else() -> None:
    def drawn(seed: int) -> list[list[int]]:
        lisa = Lisa(2, 1)
        learner = setup(lisa, seed=seed)
        torch.manual_seed(seed + 5)
        return [learner.step(ROWS, step, "here") and lisa.moving() for step in range(8)]

    assert drawn(1) == drawn(1) != drawn(2)


def test_its_state_is_the_place_in_the_window() -> None:
    lisa, other = Lisa(2, 3), Lisa(2, 3)
    learner, resumed = setup(lisa), setup(other)
    for step in range(7):
        learner.step(ROWS, step, "here")
    other.load_state_dict(lisa.state_dict())
    assert moving_blocks(resumed.policy) == lisa.moving() == moving_blocks(learner.policy)
    assert lisa.state_dict() == {"taken": 7}


def test_what_rests_is_still_among_the_trainable_and_copies_do_not_train() -> None:
    lisa = Lisa(2)
    policy = setup(lisa).policy
    assert set(policy.trainable_parameters()) == {n for n, _ in policy.model.named_parameters()}
    assert policy.frozen().trainable_parameters() == {} and policy.resting
    lisa.at_stage_end(policy)
    assert not policy.resting and moving_blocks(policy) == list(range(LAYERS))
    Lora(2).attach(policy, 0)
    assert all("lora_" in name for name in policy.trainable_parameters())


# (recipe, its arguments): one update, several, two on the same rows with a value head, stages, stored rows
RL = {"steps": 2, "batch": 2, "group": 4}
RECIPES: list[tuple[str, dict[str, Any]]] = [
    ("sft", {"steps": 3, "batch": 2}),
    ("grpo", {**RL, "minibatches": 2, "kl": 0.1}),
    ("ppo", RL),
    ("dpo", {"steps": 2, "batch": 2, "problems": 8, "samples": 4}),
    ("star", {"number": 2, "steps": 2, "growth": 1.0, "questions": 12, "batch": 4}),
]


@pytest.mark.parametrize(("recipe", "arguments"), RECIPES, ids=[r for r, _ in RECIPES])
def test_with_recipes_of_every_kind(recipe: str, arguments: dict[str, Any]) -> None:
    quick: dict[str, Any] = {"task": "parity", "test_n": 4, "validation_n": 4, "k": 0, "others": [], "eval_every": 1}
    done = run(recipe, model=trained_folder(), weights="lisa:blocks=1,period=1", **quick, **arguments)
    assert done.progress.finished and done.policy.meter.optimizer_steps > 1 and not done.policy.resting


def test_the_model_folder_is_a_plain_one(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"task": "parity", "test_n": 4, "k": 0, "others": [], "eval_every": 0, "steps": 2}
    run("sft", out=tmp_path / "run", model=trained_folder(), weights="lisa:blocks=1", batch=2, **settings)
    assert not (tmp_path / "run" / "model" / "adapter_config.json").exists()


@pytest.mark.parametrize(
    ("spec", "message"),
    [("lisa:blocks=0", "at least 1, not 0 and 20"), ("lisa:period=0", "not 2 and 0"), ("lisa:blocks=1.5", "whole number"),
     ("lisa:layers=2", "layers"), ("lisa:blocks=many", "many")],
)  # fmt: skip
def test_a_spec_that_makes_no_sense_is_refused(spec: str, message: str) -> None:
    with pytest.raises(WhetError, match=message):
        get_weights(spec)


def test_its_cost_is_what_moves_at_a_time() -> None:
    lisa = Lisa(2)
    policy = setup(lisa).policy
    moving = sum(p.numel() for p in policy.model.parameters() if p.requires_grad)
    assert (lisa.cost(policy.model).moving, lisa.cost(policy.model).gradients) == (moving, moving)


def test_more_blocks_than_there_are_is_refused() -> None:
    made: Any = get_weights("lisa:blocks=7,period=5")
    assert (made.name, made.blocks, made.period) == ("lisa", 7, 5)
    with pytest.raises(WhetError, match="the model has 6 blocks, and blocks=7"):
        setup(made)
