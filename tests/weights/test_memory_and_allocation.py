"""What optimizers hold, measured; and AdaLoRA, which gives directions up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tiny import tiny_policy
from trained import trained_folder, trained_policy
from whet.cells import MIB
from whet.launch import resume, run
from whet.models import base
from whet.models.policy import Policy
from whet.objectives import nll
from whet.records import Row
from whet.tasks import get_task
from whet.training.learner import Learner
from whet.training.optimizer import AdamW
from whet.training.stage import Update
from whet.weights import get_weights

QUICK: dict[str, Any] = {
    "test_n": 4,
    "validation_n": 4,
    "k": 0,
    "others": [],
    "eval_every": 0,
    "task": "parity",
    "batch": 4,
}


def stepped(policy: Policy, spec: str, task: str, steps: int = 1) -> Learner:
    weights = get_weights(spec)
    weights.attach(policy, 0)
    weights.at_stage_start(policy)
    learner = Learner(
        Update(nll(), optimizer=AdamW(lr=1e-2)), {"policy": policy}, weights, steps=steps, token_budget=4096
    )
    rows = [Row({"response": policy.format.demonstration(p)}) for p in get_task(task).problems("train", 4)]
    for step in range(steps):
        learner.step(rows, step, "test")
    return learner


def test_lift_at_a_twentieth_holds_at_most_15_percent_of_what_full_adamw_holds() -> None:
    """Moments and places, in bytes, on the shipped base; gradients are those of whole matrices."""
    held = {spec: stepped(base.load("base"), spec, "chain-sum").policy.meter for spec in ("full", "lift:density=0.05")}
    full, lift = held.values()
    size = base.load("base").size()
    assert full.trained == size and 8 * size <= full.optimizer_bytes < 8 * size + 1024, (
        "two moments of 4 bytes, and step counts"
    )
    share = lift.optimizer_bytes / full.optimizer_bytes
    print(
        f"optimizer: lift {lift.optimizer_bytes / MIB:.2f} MiB, full {full.optimizer_bytes / MIB:.2f} MiB, {share:.3f}"
    )
    assert 0.03 < share <= 0.15
    cost = get_weights("lift:density=0.05").cost(base.load("base").model)
    assert lift.trained == cost.moving and lift.gradient_bytes == 4 * cost.gradients
    assert lift.optimizer_bytes == pytest.approx(cost.optimizer(), rel=0.01)


@pytest.mark.parametrize(
    "spec", ["norms", "lora:rank=2", "ia3", "bottleneck:size=3", "prompt:tokens=4", "adalora:rank=2", "lisa:blocks=1"]
)
def test_what_is_measured_is_what_the_menu_says(spec: str) -> None:
    meter, cost = (
        stepped(trained_policy(), spec, "parity").policy.meter,
        get_weights(spec).cost(tiny_policy(style="tags").model),
    )
    assert meter.trained == cost.moving and meter.gradient_bytes == 4 * cost.gradients
    assert meter.optimizer_bytes == pytest.approx(8 * cost.moving, rel=0.1)


# -- AdaLoRA ---------------------------------------------------------------------------------------------------------------
def kept(policy: Policy) -> list[int]:
    return [int((p != 0).sum()) for n, p in policy.model.named_parameters() if "lora_E" in n]


def test_directions_are_given_up_until_the_budget_is_left() -> None:
    policy = trained_policy()
    early = stepped(policy, "adalora:rank=2,start=4,steps=20", "parity", steps=3)
    layers = len(kept(policy))
    assert sum(kept(policy)) == 4 * layers, "none in the first fifth"
    late = stepped(trained_policy(), "adalora:rank=2,start=4,steps=20", "parity", steps=18)
    assert sum(kept(late.policy)) == 2 * layers and len(set(kept(late.policy))) > 1, (
        "as many on average, and not everywhere"
    )
    assert early.policy.meter.trained == late.policy.meter.trained


def test_its_sides_are_held_near_orthogonal() -> None:
    """The gradient that is added is that of o (|P^T P - I| + |Q Q^T - I|) / number of them."""
    policy = trained_policy()
    weights: Any = get_weights("adalora:rank=2,orthogonality=0.5")
    weights.attach(policy, 0)
    own = policy.trainable_parameters()
    for p in own.values():
        p.grad = torch.zeros_like(p)
    weights.after_grads(own)
    sides = {n: p for n, p in own.items() if "lora_E" not in n}
    name, p = next((n, p) for n, p in sides.items() if "lora_A" in n)
    gap = p @ p.T - torch.eye(len(p))
    expected = 0.5 / len(sides) * 2 * gap @ p / gap.norm()
    torch.testing.assert_close(p.grad, expected.detach(), atol=1e-6, rtol=1e-4)
    assert all(float(p.grad.abs().sum()) == 0 for n, p in own.items() if n not in sides and p.grad is not None), name


def test_what_is_saved_is_what_is_left_and_a_resumed_run_is_the_same(tmp_path: Path) -> None:
    settings = {
        **QUICK,
        "model": trained_folder(),
        "weights": "adalora:rank=2,start=4,steps=10",
        "steps": 10,
        "lr": 1e-2,
        "keep": "last",
    }
    whole = run("sft", out=tmp_path / "whole", **settings)
    step = iter(range(1, 100))
    run("sft", out=tmp_path / "halted", **settings, stop=lambda: next(step) >= 5)
    again = resume(tmp_path / "halted")
    ours, theirs = dict(whole.policy.named_parameters()), dict(again.policy.named_parameters())
    assert all(torch.equal(p, theirs[n]) for n, p in ours.items())
    probe = torch.arange(2, 40)[None]
    loaded = base.load(tmp_path / "whole" / "model")
    assert (
        sum(p.shape[0] for n, p in loaded.model.named_parameters() if "lora_E" in n)
        == sum(kept(whole.policy))
        == 2 * len(kept(whole.policy))
    )
    with torch.no_grad():
        torch.testing.assert_close(loaded.logits(probe), whole.policy.logits(probe), atol=1e-5, rtol=0)


@pytest.mark.parametrize("spec", ["prompt:tokens=4", "prefix:tokens=4", "bottleneck:size=3"])
def test_what_stands_beside_the_weights_trains_and_resumes(spec: str, tmp_path: Path) -> None:
    """By a recipe that samples and has a reference: that is the base, without them."""
    settings = {
        **QUICK,
        "model": trained_folder(max_position_embeddings=512),
        "weights": spec,
        "steps": 2,
        "lr": 1e-2,
        "group": 4,
    }
    whole = run("grpo", out=tmp_path / "whole", kl=0.1, **settings)
    step = iter(range(1, 100))
    run("grpo", out=tmp_path / "halted", kl=0.1, **settings, stop=lambda: next(step) >= 1)
    again = resume(tmp_path / "halted")
    ours, theirs = dict(whole.policy.named_parameters()), dict(again.policy.named_parameters())
    assert all(torch.equal(p, theirs[n]) for n, p in ours.items())
    probe = torch.arange(2, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(
            base.load(tmp_path / "whole" / "model").logits(probe), whole.policy.logits(probe), atol=1e-5, rtol=0
        )
