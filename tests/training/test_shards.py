"""A model that is cut among ranks learns what a whole one learns, is saved and resumed by any number of them, and what cannot be cut
is refused; what the ranks do is in `many_ranks.py`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from many_ranks import KINDS, RECIPES, RUNS
from safetensors.torch import load_file

from trained import trained_policy
from whet.config import RunConfig
from whet.errors import WhetError
from whet.launch import resume
from whet.models.meter import Shapes
from whet.models.sharded import Sharded, kind
from whet.recipes.recipe import get_recipe
from whet.records import Row
from whet.sampling.layers import Unreadable, read
from whet.tasks import get_task
from whet.terminal.memory import LEARN, estimate, peak
from whet.training.memory import check_bits, stranger
from whet.training.optimizer import AdamW
from whet.weights import Weights, get_weights

TOLERANCE = {"fp64": 1e-10, "fp32": 1e-5, "mixed": 0.03}  # bf16: micro-batches are cut otherwise
STAGES = get_recipe("sft")(steps=1).stages
SIZES = [2, pytest.param(4, marks=pytest.mark.slow)]


def launched(size: int, *words: str, limit: float = 900, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command on so many gloo ranks."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
    return subprocess.run(
        [*launch, *words], env={**surroundings(), **environment}, timeout=limit, capture_output=True, text=True
    )


def surroundings() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shards")


@pytest.fixture(scope="module")
def two(folder: Path) -> list[dict[str, Any]]:
    return reports(folder, 2)


@pytest.fixture(scope="module")
def four(folder: Path, two: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """It goes on with what the two have saved."""
    return reports(folder, 4)


def reports(folder: Path, size: int) -> list[dict[str, Any]]:
    done = launched(size, str(Path(__file__).parent / "many_ranks.py"), str(folder))
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{size}-{rank}.json").read_text()) for rank in range(size)]


# -- gradients -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("precision", KINDS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_gradients_of_recorded_rows_are_those_of_one_rank(
    recipe: str, precision: str, size: int, request: pytest.FixtureRequest
) -> None:
    """Shared among ranks with a whole model on each, and with the model cut by FSDP2."""
    found = request.getfixturevalue({2: "two", 4: "four"}[size])
    for report in found:
        updates = report["gradients"][f"{recipe} {precision}"]
        assert len(updates) == (2 if recipe == "relift" else 1)
        for update in updates.values():
            assert update["shared"] < TOLERANCE[precision] and update["cut"] < TOLERANCE[precision]
            assert update["losses"]


def test_ranks_had_unequal_numbers_of_micro_batches(two: list[dict[str, Any]]) -> None:
    """Or the cut gradients would show nothing about ranks that have fewer."""
    numbers = [[u["micros"] for r in report["gradients"].values() for u in r.values()] for report in two]
    assert numbers[0] != numbers[1] and max(map(max, numbers)) > 1


# -- steps and memory --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", RUNS)
def test_a_few_steps_of_a_cut_model_end_with_the_weights_of_a_whole_one(kind: str, two: list[dict[str, Any]]) -> None:
    """Adapters, value heads, masked entries whose moments are carried over, resting blocks; clipping, references, sampling."""
    for report in two:
        found = report["steps"][kind]
        assert found["distance"] < 1e-7
        assert not found["apart"]


def test_a_batch_that_is_not_finite_is_left_out_by_all(two: list[dict[str, Any]]) -> None:
    """The rank that found it must not leave the others alone in a backward."""
    for report in two:
        found = report["left out"]
        assert found["found"] == {"skipped": 1.0, "nonfinite": 1.0} and found["same"]
        assert "term 'policy_gradient' is" in found["said"][0]


@pytest.mark.parametrize("kind", RUNS)
def test_each_rank_holds_its_part_of_gradients_and_moments(kind: str, two: list[dict[str, Any]]) -> None:
    parts = [report["steps"][kind]["bytes"]["cut"] for report in two]
    whole = two[0]["steps"][kind]["bytes"]["alone"]
    for part in parts if kind != "sft lisa" else ():  # which counts blocks that rest, too, in one of both
        assert all(p < 0.75 * w for p, w in zip(part, whole, strict=True))
    if kind in ("sft", "lift"):  # nothing is replicated; each rank's is the most of several choices
        assert sum(part[2] for part in parts) == pytest.approx(whole[2], rel=0 if kind == "sft" else 0.02)


# -- checkpoints -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["sft", "lift"])
def test_the_same_number_of_ranks_goes_on_bit_for_bit(name: str, two: list[dict[str, Any]], folder: Path) -> None:
    whole, halted = (ended(folder / f"{name}-{how}") for how in ("whole", "halted"))
    assert whole.keys() == halted.keys() and all(torch.equal(whole[n], halted[n]) for n in whole)


@pytest.mark.parametrize("size", [1, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["sft", "lift"])
def test_other_numbers_of_ranks_go_on_up_to_rounding(
    name: str, size: int, two: list[dict[str, Any]], folder: Path, request: pytest.FixtureRequest
) -> None:
    if size == 1:
        resume(folder / f"{name}-on-1")
    else:
        request.getfixturevalue("four")
    whole, other = (ended(folder / f"{name}-{how}") for how in ("whole", f"on-{size}"))
    for n, value in whole.items():
        assert torch.allclose(other[n], value, rtol=1e-9, atol=1e-10), n


def test_a_checkpoint_of_cut_moments_is_shards_in_safetensors(two: list[dict[str, Any]], folder: Path) -> None:
    """And never a pickled index."""
    (last,) = sorted((folder / "sft-whole" / "checkpoints").glob("step-*"))[-1:]
    shards = sorted(p.name for p in (last / "cuts").iterdir())
    assert len(shards) == 2 and all(name.endswith(".safetensors") for name in shards)
    assert set(json.loads((last / "manifest.json").read_text())) >= {f"cuts/{name}" for name in shards}


def ended(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


# -- what is refused -------------------------------------------------------------------------------------------------
def test_what_cannot_be_cut_is_refused_on_every_rank(two: list[dict[str, Any]]) -> None:
    for report in two:
        anchored, adalora, hooked = report["refused"]
        assert "term 'anchor' is of the parameters themselves" in anchored
        assert "weights adalora look at whole tensors in a step (AdaLora." in adalora
        assert "has a hook" in hooked


@pytest.mark.parametrize("spec", ["full", "lora", "dora", "lift", "hft:share=0.5", "lisa", "ia3", "corda"])
def test_weights_whose_hooks_know_shards(spec: str) -> None:
    assert stranger(get_weights(spec)) == ""


def test_a_hook_that_is_new_is_a_stranger_until_it_says_otherwise() -> None:
    class Own(Weights):
        def after_step(self, parameters: Any) -> None: ...

    class Known(Own):
        shards = True

        def after_step(self, parameters: Any) -> None: ...

    assert stranger(Own()) == "Own.after_step" and stranger(Known()) == ""


def test_rows_of_other_roles_are_another_kind() -> None:
    sample: Any = object()
    assert kind([Row({"chosen": sample}), Row({"rejected": sample, "choices": []})]) == ("chosen", "rejected")


# -- fewer bits ------------------------------------------------------------------------------------------------------
def test_fewer_bits_are_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    how = {"base": False, "moments": True, "shard": False}
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(WhetError, match="bitsandbytes, which is not installed: pip install"):
        check_bits(STAGES, Weights(), **how)
    monkeypatch.setitem(sys.modules, "bitsandbytes", object())  # type: ignore[arg-type]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(WhetError, match="run on CUDA, and no device was found"):
        check_bits(STAGES, Weights(), **how)
    with pytest.raises(WhetError, match="use one of --shard"):
        check_bits(STAGES, Weights(), **{**how, "shard": True})
    with pytest.raises(WhetError, match="weights full would move it; use adapters"):
        check_bits(STAGES, Weights(), base=True, moments=False, shard=False)
    with pytest.raises(WhetError, match="moments of chosen entries alone"):
        check_bits(STAGES, get_weights("lift"), **how)
    check_bits(STAGES, Weights(), base=False, moments=False, shard=True)


def test_packed_entries_count_as_what_they_stand_for() -> None:
    """As bitsandbytes packs them: two of 4 bits in a byte, beside a state that knows the shape."""
    policy = trained_policy("qwen3")
    before, size = Shapes.of(policy.model), policy.size()
    layer = next(m for m in policy.model.modules() if isinstance(m, torch.nn.Linear))
    packed = torch.nn.Parameter(torch.zeros(layer.weight.numel() // 2, 1, dtype=torch.uint8), requires_grad=False)
    packed.quant_state = SimpleNamespace(shape=layer.weight.shape)  # type: ignore[attr-defined]
    layer.weight = packed
    assert policy.size() == size and Shapes.of(policy.model).body == before.body
    with pytest.raises(Unreadable, match="quantized"):
        read(policy)
    with pytest.raises(WhetError, match="of several kinds"):
        Sharded(policy)


def test_moments_of_eight_bits_are_the_librarys(monkeypatch: pytest.MonkeyPatch) -> None:
    class Optimizer:
        @staticmethod
        def AdamW8bit(groups: Any, **how: Any) -> Any:
            return groups, how

    class Library:
        optim = Optimizer

    monkeypatch.setitem(sys.modules, "bitsandbytes", Library)  # type: ignore[arg-type]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    parameters = {"w": torch.nn.Parameter(torch.ones(2, 2)), "b": torch.nn.Parameter(torch.ones(2))}
    groups, how = AdamW(lr=1e-3, weight_decay=0.1).build(parameters, 6, eight_bit=True)  # type: ignore[misc]
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0]
    assert how == {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8}


# -- the estimate ----------------------------------------------------------------------------------------------------
def test_the_estimate_of_a_cut_run_is_a_share_of_each_rank(two: list[dict[str, Any]]) -> None:
    policy = trained_policy("gpt2", dtype=torch.float64)
    made = {"recipe": "grpo", "task": "parity", "dtype": "float64"}
    stages, task = get_recipe("grpo")(steps=1).stages, get_task("parity")

    def sizes(ranks: int, **more: Any) -> dict[str, float]:
        items = estimate(policy.model, stages, task, RunConfig.make({**made, **more}), policy.format, ranks)
        assert peak(items)[0] < sum(i.size for i in items)
        assert not any(i.what == "weights" and LEARN in i.when for i in items if more.get("shard"))
        return {i.what: i.size for i in items}

    alone, shared, cut = sizes(1), sizes(2), sizes(2, shard=True)
    assert shared["optimizer"] == alone["optimizer"] and shared["gradients"] == alone["gradients"]
    assert (cut["optimizer"], cut["gradients"]) == (alone["optimizer"] / 2, alone["gradients"] / 2)
    measured = [report["steps"]["grpo"]["bytes"]["cut"] for report in two]
    assert sum(m[0] for m in measured) == pytest.approx(alone["optimizer"], rel=0.01)
    assert sum(m[1] for m in measured) == pytest.approx(alone["gradients"], rel=0.01)
    eight = sizes(1, optimizer="adamw8bit")
    assert eight["optimizer"] < alone["optimizer"] / 7
    assert sizes(1, quantize="nf4", weights="lora")["weights"] < alone["weights"]
