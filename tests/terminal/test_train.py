"""What a command line means, and what its run will take."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tiny import tiny_policy
from whet.config import RunConfig
from whet.errors import WhetError
from whet.objectives.forward import chunk_tokens
from whet.recipes.recipe import get_recipe
from whet.tasks import get_task
from whet.terminal.inspect import reflowed, written
from whet.terminal.memory import activations, estimate
from whet.terminal.train import config_of, read_pairs, split_specs
from whet.training.optimizer import AdamW, Rate
from whet.weights import get_weights


@pytest.mark.parametrize(
    ("given", "specs"),
    [
        (["sort"], ["sort"]),
        (["sort:level=1,word-problem:level=2"], ["sort:level=1", "word-problem:level=2"]),
        (["word-problem:lang=fr,level=1-2,sort"], ["word-problem:lang=fr,level=1-2", "sort"]),
        (["sort", "chain-sum:level=2"], ["sort", "chain-sum:level=2"]),
        (["none"], []),
    ],
)
def test_other_tasks_are_repeated_or_listed(given: list[str], specs: list[str]) -> None:
    assert split_specs(given) == specs


def test_pairs() -> None:
    assert read_pairs(["steps=3", "reward=a.py:f", "note=x=y"]) == {"steps": "3", "reward": "a.py:f", "note": "x=y"}
    with pytest.raises(WhetError, match="'=3' is not of the form key=value"):
        read_pairs(["=3"])


def test_arguments_get_their_types() -> None:
    config = config_of("dapo", ["steps=3", "lr=1", "clip=[0.1, 0.2]", "dynamic=False", "advantage=rloo"], {"seed": 4})
    assert config.arguments == {"steps": 3, "lr": 1.0, "clip": [0.1, 0.2], "dynamic": False, "advantage": "rloo"}
    assert config.seed == 4
    assert config_of("grpo", ["clip=null"], {}).arguments == {"clip": None}
    with pytest.raises(WhetError, match="dynamic is true or false, not '1'"):
        config_of("dapo", ["dynamic=1"], {})
    with pytest.raises(WhetError, match=r"steps is a whole number, not '2\.5'"):
        config_of("dapo", ["steps=2.5"], {})


def test_a_run_yaml_is_run_again_with_what_the_command_line_says_over_it(tmp_path: Any) -> None:
    file = tmp_path / "run.yaml"
    first = RunConfig.make({"recipe": "grpo", "arguments": {"steps": 3, "group": 4}, "task": "sort", "seed": 7})
    file.write_text(first.dump({"started": "then"}))
    again = config_of(str(file), ["steps=5"], {"seed": 8, "others": ["chain-sum"]})
    assert again == first.model_copy(update={"arguments": {"steps": 5, "group": 4}, "seed": 8, "others": ["chain-sum"]})


def test_defaults_are_written_as_they_would_be_given() -> None:
    assert [written(v) for v in (Rate(1e-4, 1e-6), None, "", True, [0.2, 0.28], 0.1, "token")] == [
        "0.0001, 1e-6", "-", "-", "true", "[0.2, 0.28]", "0.1", "token"
    ]  # fmt: skip


def test_paragraphs_are_reflowed_and_equations_are_not() -> None:
    text = "One\nparagraph.\n\n    a = b\n    c = d\n\n| a | b |\n| - | - |"
    assert reflowed(text) == "One paragraph.\n\n    a = b\n    c = d\n\n| a | b |\n| - | - |"


@pytest.mark.parametrize("kind", ["qwen3", "gpt2"])
@pytest.mark.parametrize(
    "spec", ["full", "lora:rank=4", "rslora:rank=2", "dora:rank=4", "norms", "layers", "lift:rank=4", "hft:seed=0"]
)
def test_the_estimate_counts_what_moves(spec: str, kind: str) -> None:
    policy, weights = tiny_policy(kind), get_weights(spec)
    counted = weights.cost(policy.model)
    weights.attach(policy, 0)
    weights.at_stage_start(policy)
    moving = policy.trainable_parameters()
    assert counted.gradients == sum(p.numel() for p in moving.values())
    optimizer = weights.optimizer(lambda chosen: AdamW().build(chosen, policy.size(), moving), moving)
    for p in moving.values():
        p.grad = torch.ones_like(p)
    optimizer.step()
    state = optimizer.state_dict()["state"].values()
    assert counted.moving == sum(s["exp_avg"].numel() for s in state)
    held = sum(t.numel() * t.element_size() for s in state for t in s.values() if t.dim())
    held += sum(t.numel() * t.element_size() for t in getattr(optimizer, "places", {}).values())
    assert counted.optimizer() == held, "bytes of moments and places"


def test_the_estimate_states_the_logits_and_what_chunking_makes_of_them() -> None:
    policy = tiny_policy()
    vocabulary = policy.model.config.vocab_size
    rows = chunk_tokens(vocabulary)
    tokens = 8 * rows
    config = RunConfig.make({"recipe": "ppo", "arguments": {"kl": 0.1}, "task": "sort:level=1", "token_budget": tokens})
    recipe = get_recipe("ppo")(**config.arguments)
    found = {i.what: i for i in estimate(policy.model, recipe.stages, get_task(config.task), config, policy.format)}
    size = policy.size()
    assert found["weights"].size == found["gradients"].size == found["reference"].size == 4 * size
    assert found["optimizer"].size == 8 * size
    assert f"B·L·V = {tokens} x {vocabulary}" in found["logits"].how
    assert found["logits"].size == 12 * rows * vocabulary  # an eighth of the tokens fits into a chunk
    half = config.model_copy(update={"dtype": "bfloat16"})
    halved = {i.what: i for i in estimate(policy.model, recipe.stages, get_task(config.task), half, policy.format)}
    assert halved["weights"].size == 2 * size
    assert halved["activations"].size == found["activations"].size / 2


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_the_estimated_activations_are_what_a_forward_keeps(kind: str) -> None:
    wide = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "num_hidden_layers": 4}
    policy = tiny_policy(kind, **wide)
    known = {p.untyped_storage().data_ptr() for p in policy.model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.randint(2, 300, (8, 64))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        policy.hidden(ids)
    measured = sum(size for place, size in kept.items() if place not in known)
    estimated = 4 * ids.numel() * activations(policy.model.config, checkpointing=False)[0]
    assert estimated == pytest.approx(measured, rel=0.25)
    assert activations(policy.model.config, checkpointing=True)[0] * 2 < estimated / 4 / ids.numel()
