"""What a report's tables and curves say, by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from report_folders import make_comparison, make_run

from whet.errors import WhetError
from whet.report import commands, tables
from whet.report.curves import aligned, mean_curve, over_steps
from whet.report.read import ComparisonData, Group, RunData, grouped, read
from whet.report.samples import pairs


def run_of(path: Path) -> RunData:
    found = read(path)
    assert isinstance(found, RunData)
    return found


def comparison_of(path: Path) -> ComparisonData:
    found = read(path)
    assert isinstance(found, ComparisonData)
    return found


def test_the_change_of_one_run_is_paired_by_problem(tmp_path):
    """0010 -> 1110: changes 1, 1, 0, 0; mean 0.5, sd 1/sqrt(3), t(3) = 3.1824: 0.5 -+ 3.1824 x 0.28868."""
    run = run_of(make_run(tmp_path / "a"))
    before, after, change = tables.measured([run], "accuracy")
    assert (before["value"], after["value"]) == (0.25, 0.75)
    half = 3.182446 * math.sqrt(1 / 3 / 4)
    assert change == pytest.approx({"value": 0.5, "low": 0.5 - half, "high": 0.5 + half}, abs=1e-5)


def test_a_metric_that_is_not_one_of_problems_has_an_interval_over_seeds(tmp_path):
    """Two seeds, both from 6 to 43.5 tokens."""
    runs = [run_of(make_run(tmp_path / str(seed), seed=seed)) for seed in range(2)]
    before, after, change = tables.measured(runs, "tokens_per_answer")
    assert (before, after) == ({"value": 6.0}, {"value": 43.5})
    assert change == {"value": 37.5, "low": 37.5, "high": 37.5}


def test_other_problems_are_not_paired(tmp_path):
    runs = [run_of(make_run(tmp_path / "a")), run_of(make_run(tmp_path / "b", seed=1, before="00100", after="11100"))]
    _, after, _ = tables.measured(runs, "accuracy")
    assert after["value"] == pytest.approx((0.75 + 0.6) / 2)


def test_problems_that_could_not_be_judged_are_left_out(tmp_path):
    """Of 0010 -> 1110 the first problem: changes 1, 0, 0 are left."""
    path = make_run(tmp_path / "a")
    matrix = json.loads((path / "matrix-after.json").read_text())
    matrix["greedy"]["value"][0] = [None]
    (path / "matrix-after.json").write_text(json.dumps(matrix))
    assert tables.measured([run_of(path)], "accuracy")[2]["value"] == pytest.approx(1 / 3)


def test_seeds_are_one_group_and_labels_say_what_differs(tmp_path):
    make_run(tmp_path / "a", seed=1, threads=2)
    make_run(tmp_path / "b", seed=0)
    make_run(tmp_path / "c", arguments={"steps": 4, "group": 16})
    make_run(tmp_path / "d", arguments={"steps": 4, "group": 16}, eval_every=3)
    groups = grouped([run_of(tmp_path / name) for name in "abc"])
    assert [(g.label, [r.seed for r in g.runs]) for g in groups] == [("grpo", [0, 1]), ("grpo (group=16)", [0])]
    labels = [g.label for g in grouped([run_of(tmp_path / name) for name in "cd"])]
    assert labels == ["grpo", "grpo (eval_every=3)"]


def test_before_after_has_every_metric_and_the_other_tasks(tmp_path):
    made = tables.before_after(Group("grpo", [run_of(make_run(tmp_path / "a"))]))
    rows = {row[0].text: row for row in made.rows}
    assert list(rows) == ["accuracy", "pass@2", "tokens per answer", "ended", "unparseable", "accuracy on other tasks",
                          "sort:level=1"]  # fmt: skip
    assert [cell.text for cell in rows["accuracy"]] == ["accuracy", "0.250", "0.750", "+0.500", "4"]
    assert rows["accuracy"][1].more == "0.050 to 0.450"
    assert (rows["sort:level=1"][3].text, rows["sort:level=1"][3].tone) == ("-0.250", "bad")
    assert rows["ended"][3].tone == ""


def test_differences_name_the_better_arm_first(tmp_path):
    made = tables.differences(comparison_of(make_comparison(tmp_path / "c")))
    (row,) = made.rows
    assert [cell.text for cell in row] == ["grpo – sft", "+0.500", "< 0.001", "0.001"]
    assert row[1].more == "+0.200 to +0.800"


def test_forgetting_at_equal_steps_and_accuracy(tmp_path):
    results = comparison_of(make_comparison(tmp_path / "c")).results
    made = tables.forgotten(results["forgetting"], ["grpo", "sft"])
    assert made is not None and made.heads[1:3] == ["at 16 steps", "at accuracy 0.450"]
    assert [[cell.text for cell in row] for row in made.rows] == [
        ["grpo", "+0.100", "+0.070", "12", "1.2e12"], ["sft", "+0.000", "–", "–", "–"]]  # fmt: skip
    notes = tables.forgetting_notes(results["forgetting"])
    assert notes[0].startswith(
        "Forgetting is the accuracy lost on sort:level=1, lists:level=1 (forgetting/1): 256 problems"
    )
    assert notes[1].startswith("sft does not come to the accuracy")
    nothing = {
        "suite": None,
        "tasks": ["sort"],
        "n": 8,
        "look_n": 0,
        "at_steps": None,
        "at_accuracy": None,
        "why": "no looks",
    }
    assert tables.forgotten(nothing, ["grpo"]) is tables.forgotten(None, ["grpo"]) is None
    assert tables.forgetting_notes(nothing)[1] == "At equal steps and accuracy: no looks."
    assert tables.forgetting_notes(None) == []


def test_ranked_has_the_start_and_every_arm(tmp_path):
    made = tables.ranked(comparison_of(make_comparison(tmp_path / "c")))
    assert made.heads == [
        "arm",
        "accuracy",
        "pass@2",
        "forgetting",
        "tokens per answer",
        "steps",
        "FLOPs",
        "tokens",
        "training",
    ]
    assert [row[0].text for row in made.rows] == ["start", "1. grpo", "2. sft"]
    assert [cell.text for cell in made.rows[1]][3:] == ["+0.050", "43.0", "4", "2e12", "8 k", "1:15"]
    assert all(len(row) == len(made.heads) for row in made.rows)


def test_a_curve_is_the_mean_over_seeds_with_a_t_interval():
    """0.2 and 0.4: mean 0.3, standard error 0.1, t(1) = 12.7062."""
    first, second = mean_curve([[(1, 0.2), (2, 0.5)], [(1, 0.4), (2, None)]])
    assert (first.x, first.value, first.seeds) == (1, 0.3, 2)
    assert (first.low, first.high) == pytest.approx((0.3 - 1.27062, 0.3 + 1.27062), abs=1e-3)
    assert (second.value, second.low, second.seeds) == (0.5, None, 1)


def test_a_long_curve_is_thinned_by_means_of_equal_spans():
    curve = mean_curve([[(float(x), float(x)) for x in range(1000)]], most=10)
    assert len(curve) == 10
    assert [p.value for p in curve[:2]] == [49.5, 149.5]
    assert curve[0].x == 49.5


def test_evaluations_at_equal_shares_belong_together():
    curves = [[{"flops": 1.0, "accuracy": 0.1}, {"flops": 2.0, "accuracy": 0.3}], [{"flops": 1.2, "accuracy": 0.3}]]
    (point,) = aligned(curves, "flops", "accuracy")
    assert (point.x, point.value, point.seeds) == (1.1, 0.2, 2)


def test_truncated_is_what_has_not_ended(tmp_path):
    group = Group("", [run_of(make_run(tmp_path / "a"))])
    assert [p.value for p in over_steps(group, "truncated")] == [0.25] * 4


def test_changes_of_answers(tmp_path):
    run = run_of(make_run(tmp_path / "a", before="0011", after="0101"))
    assert [p.change for p in pairs(run, 0)] == ["still wrong", "fixed", "broken", "still right"]
    assert [p.change for p in pairs(run_of(make_run(tmp_path / "b", finished=False)), 0)] == [""] * 4


def test_commands_run_the_same_again():
    asked = {"recipe": "grpo", "arguments": {"lr": 1e-4, "clip": [0.2, 0.28], "dynamic": True}, "task": "a b.jsonl",
             "weights": "full", "seed": 3, "k": 4, "others": [], "activation_checkpointing": True}  # fmt: skip
    assert commands.of_run(asked) == (
        "whet run grpo lr=0.0001 'clip=[0.2,0.28]' dynamic=true --task 'a b.jsonl' --seed 3 --k 4 --others none "
        "--activation-checkpointing --out NEW"
    )
    asked = {"arms": {"sft": {"recipe": "sft"}, "x": {"recipe": "grpo", "group": 4}}, "task": "sort", "model": "m",
             "budget": "steps:5", "seeds": [0, 1], "sweep": {"lr": [1e-4, 3e-4]}, "settings": {"test_n": 64}}  # fmt: skip
    assert commands.of_comparison(asked) == (
        "whet compare sft grpo:group=4 test_n=64 --task sort --model m --budget steps:5 --seeds 2 "
        "--sweep lr=0.0001,0.0003 --out NEW"
    )


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(WhetError, match="neither a run's folder"):
        read(tmp_path)
    path = make_run(tmp_path / "a")
    (path / "summary.json").write_text("{")
    with pytest.raises(WhetError, match=r"'.*a' cannot be read, it seems damaged \(JSONDecodeError"):
        read(path)


def test_sweeps_show_the_chosen_first_and_failures(tmp_path):
    path = make_comparison(tmp_path / "c")
    assert tables.sweeps(comparison_of(path)) is None
    found = json.loads((path / "results.json").read_text())
    found["sweep"] = {"sft": [{"settings": {"lr": 3e-4}, "half": 0.5, "end": 0.6, "flops": 1e12, "failed": ""},
                              {"settings": {"lr": 1.0}, "half": None, "end": None, "flops": 1e9, "failed": "NaN"}]}  # fmt: skip
    (path / "results.json").write_text(json.dumps(found))
    made = tables.sweeps(comparison_of(path))
    assert made is not None
    assert [[cell.text for cell in row] for row in made.rows] == [
        ["sft", "lr=0.0003 (chosen)", "0.500", "0.600", "1e12"],
        ["sft", "lr=1.0", "–", "NaN", "1e9"],
    ]


def test_the_interval_of_a_share_over_seeds_stays_a_share() -> None:
    from whet.report.tables import _pooled

    shares = [{"value": v, "low": v, "high": v} for v in (1.0, 0.8, 1.0)]
    pooled = _pooled(shares)
    assert 0 < pooled["low"] < pooled["value"] < pooled["high"] < 1
    assert _pooled([1.0, 0.8, 1.0])["high"] > 1.0  # tokens, say, have no such bound
