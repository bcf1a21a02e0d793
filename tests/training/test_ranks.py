"""Two ranks do what one process does: gradients, decisions, counts and files; what they do is in `two_ranks.py`."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_learner import OBJECTIVES
from test_resume import assert_same_run, metrics

from whet.models.meter import Meter
from whet.ranks import Ranks, _buckets
from whet.training import metrics as reports

CASES = [*OBJECTIVES, "sft, one group", "grpo, one group", "anchored", "whole batch", "sft lora"]
# clocks, padding, and in the first step the sign of differences that are 0 up to rounding
OWN = {"flops", "seconds/sample", "seconds/score", "seconds/learn", "stage", "pair_accuracy"}
RUNS = ("sft", "grpo", "dapo", "ppo", "dpo")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("ranks")
    script = Path(__file__).parent / "two_ranks.py"
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    paths = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run([sys.executable, *launch, str(script), str(place)], env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}, timeout=600,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return place


@pytest.fixture(scope="module")
def reports_of(folder: Path) -> list[dict[str, Any]]:
    """What each rank found."""
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


# -- gradients -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("case", CASES)
def test_the_gradient_is_that_of_one_process(case: str, reports_of: list[dict[str, Any]]) -> None:
    """In fp64; also where one rank has no row, or the ranks' rows count differently."""
    one, two = (report["gradients"][case] for report in reports_of)
    assert one["norm"] > 1e-3 and one["rows"] + two["rows"] == one["all"]
    for found in (one, two):
        assert found["distance"] < 1e-10
        assert found["shared"].keys() == found["alone"].keys()
        for name, value in found["alone"].items():
            assert found["shared"][name] == pytest.approx(value, rel=1e-5, abs=1e-6), name
    alone = case.endswith("one group") or case == "whole batch"
    assert (two["rows"] == 0) == alone, "a group, or a batch that a term couples, is on one rank"


def test_a_parameter_that_nothing_pulls_at_stays_without_a_gradient(reports_of: list[dict[str, Any]]) -> None:
    """Zeros would let Adam's momentum and weight decay move it."""
    assert all(report["gradients"]["spare"] for report in reports_of)


# -- steps -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", RUNS)
def test_a_few_steps_end_with_the_same_weights_counts_and_decisions(
    kind: str, reports_of: list[dict[str, Any]]
) -> None:
    for report in reports_of:
        found = report["steps"][kind]
        assert found["distance"] < 1e-8
        alone, shared = found["alone"], found["shared"]
        assert len(alone) == len(shared) == 3
        for ours, theirs in zip(alone, shared, strict=True):
            assert ours.keys() == theirs.keys()
            assert ours.get("warnings") == theirs.get("warnings")
            for name in ours.keys() - OWN - {"warnings"}:
                assert theirs[name] == pytest.approx(ours[name], rel=1e-5, abs=1e-6, nan_ok=True), name
        one, two = found["meters"]
        for name in one.keys() - {"flops", "seconds"}:
            assert one[name] == two[name], name
        assert two["flops"] == pytest.approx(one["flops"], rel=0.3), "less padding, but nothing left out or done twice"
    if kind == "dapo":
        assert any(line["answers"] > 12 for line in reports_of[0]["steps"][kind]["alone"]), "no batch was refilled"
    assert reports_of[0]["steps"][kind]["shared"][-1]["flops"] == reports_of[1]["steps"][kind]["shared"][-1]["flops"]


# -- runs ------------------------------------------------------------------------------------------------------------
def test_two_ranks_write_one_run_that_resumes(folder: Path) -> None:
    """Stopped by a signal that only one rank got, and bit for bit the run that was not stopped."""
    assert_same_run(folder / "whole", folder / "halted")
    lines = metrics(folder / "whole")
    assert [line["step"] for line in lines if "loss/policy_gradient" in line] == [1, 2, 3, 4]
    assert [line["step"] for line in lines if "validation/accuracy" in line] == [0, 2, 4]
    assert "ranks: 2" in (folder / "whole" / "run.yaml").read_text()


def test_a_failure_of_one_rank_ends_all_with_its_message(reports_of: list[dict[str, Any]]) -> None:
    first, second = (report["failure"] for report in reports_of)
    assert first == {"code": 2, "said": "whet: error: rank 1 failed: the judge is out\n"}
    assert second == {"code": 2, "said": "whet: error: the judge is out\n"}


def test_ranks_that_come_apart_are_stopped(reports_of: list[dict[str, Any]]) -> None:
    assert all("the ranks have come apart in the rows" in report["apart"] for report in reports_of)


# -- shares ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_every_item_is_one_ranks_and_the_loads_are_even(size: int) -> None:
    rng = random.Random(size)
    items = [rng.randrange(1, 50) for _ in range(40)]
    shares = [Ranks(rank, size).share(list(enumerate(items)), cost=lambda item: item[1]) for rank in range(size)]
    assert sorted(item for share in shares for item in share) == list(enumerate(items))
    assert all(share == sorted(share) for share in shares)
    loads = [sum(cost for _, cost in share) for share in shares]
    assert max(loads) - min(loads) <= max(items)


def test_alone_nothing_is_shared() -> None:
    alone, parameter = Ranks.here(), torch.nn.Parameter(torch.ones(2))
    assert (alone.size, alone.first) == (1, True)
    alone.sum_gradients([parameter])
    assert parameter.grad is None
    assert alone.map(lambda items: [i * i for i in items], [3, 1, 2]) == [9, 1, 4]
    assert alone.sum({"a": 1}) == {"a": 1} and alone.gather("x") == ["x"] and alone.broadcast("x") == "x"
    alone.agree("anything", 1.0)


def test_gradients_are_summed_in_buckets_of_one_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whet.ranks.BUCKET", 10)
    tensors = [torch.zeros(n) for n in (4, 5, 2, 30)] + [torch.zeros(3, dtype=torch.float64)]
    sizes = [[t.numel() for t in bucket] for bucket in _buckets(tensors)]
    assert sizes == [[4, 5], [2], [30], [3]]


def test_metrics_of_ranks_are_merged() -> None:
    one = ({"nll": 1.0}, {"ratio": (2.0, 1), "ratio_max": (3.0, 1), "only": (0.5, 4), "none": (float("nan"), 0)})
    two = ({"nll": 0.5, "kl": 0.25}, {"ratio": (4.0, 3), "ratio_max": (7.0, 2)})
    found = reports.merge([one, two])
    assert found.pop("none") != found.get("none")
    assert found == {"loss/nll": 1.5, "loss/kl": 0.25, "ratio": 3.5, "ratio_max": 7.0, "only": 0.5}


def test_a_meter_alone_counts_for_itself() -> None:
    meter = Meter(flops=2.0)
    meter.load({"flops": 5.0, "learnt_tokens": 3})
    meter.sum(Ranks())
    assert meter == Meter(flops=5.0, learnt_tokens=3)
