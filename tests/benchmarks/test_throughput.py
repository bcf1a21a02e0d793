"""The benchmark's pure parts: ratios and intervals, settings, what both sides are given; and one run of it (slow)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # the benchmarks are no part of the package

from benchmarks.ratios import interval, paired, slope
from benchmarks.throughput import CELLS, STEPS, UNIT, Bench, summary

from benchmarks import growth, ours, settings, workload
from whet.models import base

ROOT = Path(__file__).parents[2]


def test_ratios_are_paired_before_the_median() -> None:
    found = paired([2.0, 4.0, 30.0], [1.0, 1.0, 10.0])
    assert found["median"] == 3.0 and (found["low"], found["high"]) == (2.0, 4.0)
    assert found["pairs"] == 3 and found["coverage"] == 0.75
    slow = paired([1.0, 2.0, 3.0, 4.0, 5.0], [0.5, 1.0, 1.5, 2.0, 2.5])  # a machine that grows faster: no spread
    assert slow["low"] == slow["median"] == slow["high"] == 2.0
    for ours_, theirs in (([], []), ([1.0], [1.0, 2.0])):
        with pytest.raises(ValueError, match="cannot be paired"):
            paired(ours_, theirs)


def test_the_interval_is_the_narrowest_that_covers_enough() -> None:
    assert interval([3.0]) == (3.0, 3.0, 0.0)
    assert interval([5.0, 1.0, 2.0, 4.0, 3.0]) == (1.0, 5.0, 1 - 2 / 32)
    low, high, coverage = interval(list(range(1, 13)))  # n = 12: k = 2 covers 1 - 2 * 79 / 4096
    assert (low, high) == (3, 10) and coverage == pytest.approx(1 - 2 * 79 / 4096)


def test_a_slope_is_the_cost_of_one_more() -> None:
    assert slope({4: 1.0, 8: 3.0, 16: 7.0}) == pytest.approx(0.5)


def test_every_cell_has_settings_units_and_steps() -> None:
    assert set(settings.TRL) == set(settings.WHET) == set(UNIT) == set(CELLS)
    assert set(STEPS) == set(CELLS) - {"sampling_ragged"}
    for side in ("whet", "trl"):
        for cell in CELLS:
            found = settings.candidates(side, cell)
            assert len({json.dumps(c) for c in found}) == len(found) >= 2
    assert not [c for c in settings.candidates("trl", "sft") if c["packing"] and c["sampler"] != "random"]


def test_the_chosen_settings_are_the_sweep_s(tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    assert settings.chosen("trl", "dpo", file) == settings.candidates("trl", "dpo")[0]
    file.write_text(json.dumps({"dpo": {"trl": {"settings": {"bf16": True, "micro": 4}}}}))
    assert settings.chosen("trl", "dpo", file) == {"bf16": True, "micro": 4}
    assert settings.chosen("whet", "dpo", file) == settings.candidates("whet", "dpo")[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    workload.model(folder, steps=0)
    return folder


def test_the_model_is_as_large_as_the_issue_s(folder: Path) -> None:
    policy = base.load(workload.model(folder, steps=0), style="plain")
    assert 2.4e6 <= policy.size() <= 2.6e6
    assert policy.model.config.vocab_size == workload.VOCABULARY
    assert workload.model(folder, steps=0) == folder / "model-512-random"  # made once


def test_files_are_functions_of_their_arguments(folder: Path) -> None:
    first = workload.demonstrations(folder, 50).read_text()
    assert workload.demonstrations(folder, 50).read_text() == first
    assert workload.demonstrations(folder, 50, seed=1).read_text() != first
    lengths = [len(r["answer"].split()) for r in workload.rows_of(workload.demonstrations(folder, 50))]
    assert max(lengths) > 4 * min(lengths)


def test_prompts_have_the_length_that_was_asked_for(folder: Path) -> None:
    policy = ours.policy(workload.model(folder, steps=0), "float32")
    for tokens in (4, 20, 400):
        file = workload.questions(folder, 6, tokens, policy.tokenizer)
        asked = ours.requests(policy, workload.rows_of(file), 8, seed=0)
        assert all(abs(len(r.segments[0].ids) - tokens) <= 4 for r in asked)


def test_full_rows_fill_the_length_and_no_more(folder: Path) -> None:
    policy = ours.policy(workload.model(folder, steps=0), "float32")
    problems = ours.task(workload.full(folder, 6, 128, policy.tokenizer)).problems("train")
    lengths = [len(policy.format.demonstration(p)) for p in problems]
    assert len(lengths) == 6 and all(120 <= n <= 130 for n in lengths)


def test_whet_learns_from_every_row_of_the_file(folder: Path) -> None:
    for file in (workload.demonstrations(folder, 40), workload.preferences(folder, 40)):
        assert len(ours.task(file).problems("train")) == 40


def test_both_sides_learn_the_same_tokens(folder: Path) -> None:
    pytest.importorskip("trl")
    from benchmarks import theirs

    model, file = workload.model(folder, steps=0), workload.demonstrations(folder, 12)
    made = theirs.trainer("sft", model, file, {"micro": 4}, steps=1)
    policy = ours.policy(model, "float32")
    mine = [policy.format.demonstration(p) for p in ours.task(file).problems("train")]
    wanted = sorted((s.ids, sum(len(g.ids) for g in s.segments if g.learn)) for s in mine)
    rows: list[dict[str, Any]] = [made.train_dataset[i] for i in range(12)]
    assert sorted((list(r["input_ids"]), sum(x != -100 for x in r["labels"])) for r in rows) == wanted


def test_a_cell_is_measured_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path, threads=1, quick=True)
    calls: list[int] = []

    def measure() -> dict[str, Any]:
        calls.append(1)
        return {"ratio": {"median": 2.0, "low": 1.5, "high": 2.5}}

    first, second = bench.once("sft", measure), bench.once("sft", measure)
    assert first == second and len(calls) == 1
    assert summary(first) == "Whet / TRL 2.00 [1.50, 2.50]"


@pytest.mark.slow
def test_the_benchmark_runs(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    out = tmp_path / "result.json"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    subprocess.run([sys.executable, "-m", "benchmarks.throughput", "--json", str(out), "--quick"], check=True, env=env)
    found = json.loads(out.read_text())
    for cell in CELLS:
        assert found[cell]["ratio"]["low"] <= found[cell]["ratio"]["median"] <= found[cell]["ratio"]["high"]
        assert {"whet", "trl"} <= set(found[cell])
    assert {"memory", "flops", "growth", "machine"} <= set(found)


def test_what_a_long_prompt_adds_to_a_sample_by_arithmetic() -> None:
    shape = {"hidden": 8, "heads": 2, "kv_heads": 1, "inner": 16}
    weights = 8 * 8 + 8 * 4 + 8 * 4 + 8 * 8 + 3 * 8 * 16  # q, k, v, o and the feed-forward's three
    assert growth.arithmetic(shape, 400) == pytest.approx((2 * weights + 4 * 416 * 8) / (2 * weights + 4 * 20 * 8))
    assert growth.arithmetic(shape, 4) == 1.0
    by_width = [growth.arithmetic(shape, 400) for shape in growth.SIZES.values()]
    assert by_width == sorted(by_width, reverse=True)
