"""Geometry and sampled drift as numbers of a run, and the sketches that a comparison keeps."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from trained import trained_folder, trained_policy
from whet.compare import compare
from whet.evaluation.matrix import Matrix
from whet.evaluation.probes import GEOMETRY, NUMBERS, Geometry, SampledDrift, drift, merged
from whet.evaluation.scores import LOWER_IS_BETTER, Cell
from whet.launch import run
from whet.probes.agreement import sketched_jaccard
from whet.records import Row, Sample, Segment
from whet.tasks import get_task
from whet.weights import Lora

QUICK: dict[str, Any] = {"task": "parity", "test_n": 6, "validation_n": 6, "k": 0, "others": [], "batch": 4}
NONE = Matrix([])


def bound(probe: Any) -> tuple[Any, Any]:
    policy = trained_policy()
    probe.bind(policy, get_task("parity"), 0)
    return policy, probe


def test_geometry_of_a_policy_is_that_of_its_weights() -> None:
    policy, probe = bound(Geometry(rank=2))
    assert probe.measure(policy, NONE) == {}, "nothing has moved, and nothing can be told"
    with torch.no_grad():
        policy.model.get_parameter("model.layers.0.mlp.up_proj.weight").mul_(1.5)
    found = probe.measure(policy, NONE)
    assert set(found) <= set(GEOMETRY.values()) and found["geometry/angle_left"] == pytest.approx(0, abs=1e-2)
    sizes = {n: p.numel() for n, p in policy.model.named_parameters() if "_proj" in n}
    share = sizes["model.layers.0.mlp.up_proj.weight"] / sum(sizes.values())
    assert found["geometry/change"] == pytest.approx(0.5 * share) and found["geometry/drift"] == pytest.approx(
        0.5 * share, rel=1e-4
    )
    assert found["geometry/sparsity"] == pytest.approx(1 - share, abs=0.01)


def test_adapters_are_merged_on_a_copy() -> None:
    policy, probe = bound(Geometry())
    Lora(2).attach(policy, 0)
    assert set(merged(policy)) == set(probe.start) and probe.measure(policy, NONE) == {}
    with torch.no_grad():
        for name, p in policy.model.named_parameters():
            if "lora_B" in name:
                p.fill_(0.1)
    assert probe.measure(policy, NONE)["geometry/change"] > 0
    assert any("lora_B" in n for n, _ in policy.model.named_parameters()), "the policy keeps its adapters"


def test_sketches_of_equal_and_of_other_changes() -> None:
    texts = []
    for seed in (0, 0, 1):
        policy, probe = bound(Geometry())
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in policy.model.parameters():
                p += 0.1 * torch.randn(p.shape, generator=draw)
        texts.append(probe.sketches(policy))
    assert set(texts[0]) == {"changed", "moved most"} and texts[0] == texts[1]
    now, chance = sketched_jaccard(texts[0]["moved most"], texts[2]["moved most"])
    assert chance == pytest.approx(1 / 9, abs=0.02) and now == pytest.approx(chance, abs=0.03)
    assert sketched_jaccard(texts[0]["moved most"], texts[1]["moved most"])[0] == 1.0


def test_sampled_drift_is_the_other_direction_on_the_policys_own_answers() -> None:
    policy, probe = bound(SampledDrift(n=5))
    assert len(probe.requests) == 5 and all("/validation/" in r.problem_id for r in probe.requests)
    assert probe.measure(policy, NONE) == {"sampled_kl": 0.0} and policy.meter.flops == 0
    start = policy.frozen()
    with torch.no_grad():
        for p in policy.model.parameters():
            p += 0.02
    first = probe.measure(policy, NONE)["sampled_kl"]
    assert first == probe.measure(policy, NONE)["sampled_kl"] > 1e-4, "the answers have seeds"
    rows = [Row({"response": s}) for (s,) in policy.sample(probe.requests)]
    assert first == pytest.approx(drift(policy, start, rows, first="policy"), rel=1e-6)
    row = Row({"response": Sample([Segment("question", [5, 6]), Segment("answer", [7], learn=True)])})
    with torch.no_grad():
        now, was = (m.logits(torch.tensor([[5, 6]]))[0, -1].log_softmax(-1) for m in (policy, start))
    assert drift(policy, start, [row], first="policy") == pytest.approx(
        float((now.exp() * (now - was)).sum()), rel=1e-4
    )
    assert drift(policy, start, [row]) == pytest.approx(float((was.exp() * (was - now)).sum()), rel=1e-4)


def test_a_run_has_geometry_at_its_end_and_drift_at_each_look(tmp_path: Path) -> None:
    asked = {**QUICK, "probes": ["geometry", "sampled-drift"], "eval_every": 1, "steps": 2, "keep": "last"}
    done = run("sft", out=tmp_path / "run", model=trained_folder(), **asked)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert not any("geometry" in name for row in lines for name in row)
    assert sum("validation/sampled_kl" in row for row in lines) == 3
    assert done.summary["before"]["sampled_kl"] == 0.0 and "geometry/change" not in done.summary["before"]
    assert set(GEOMETRY.values()) <= set(done.summary["after"]) and set(done.summary["sketches"]) == {
        "changed",
        "moved most",
    }
    assert "sketches" not in run("sft", model=trained_folder(), **QUICK, steps=1).summary
    assert "sampled_kl" in NUMBERS and "sampled_kl" in LOWER_IS_BETTER


def test_a_comparison_keeps_numbers_and_sketches_in_its_cells(tmp_path: Path) -> None:
    shared = {**QUICK, "model": trained_folder(), "probes": ["geometry"], "evaluations": 1, "threads": 1}
    found = compare(["sft"], budget="steps:2", seeds=2, out=tmp_path, **shared)
    one, other = found.scores.cells["sft"]
    assert 0 < sketched_jaccard(one.sketches["changed"], other.sketches["changed"])[0] <= 1
    assert Cell.read(tmp_path / "cells" / "sft-0.json") == one
    assert {"geometry/change", "geometry/drift_by_change"} <= set(found.scores.metrics)
    assert found.scores.start is not None and found.scores.start.sketches == {}
    assert not math.isnan(found.scores.interval("geometry/principal", "sft").value)
