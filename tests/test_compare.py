"""Arms, the cells of a comparison, sweeps, the tables, and a comparison that is killed in the middle."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from rich.console import Console
from safetensors.torch import load_file
from typer.testing import CliRunner

from trained import trained_folder
from whet import cells, sweep
from whet.arms import Arm, parse_arms, parse_sweep, split_words
from whet.compare import LOOKS, Comparison, compare
from whet.errors import WhetError
from whet.evaluation import statistics
from whet.evaluation.scores import Cell, Scores
from whet.launch import Run
from whet.runs import RunFolder
from whet.terminal.compare import add_commands, show_comparison

SMALL: dict[str, Any] = {
    "task": "parity", "test_n": 12, "k": 2, "validation_n": 6, "others": ["sort:level=1"], "others_n": 2,
    "others_look_n": 2, "threads": 1, "evaluations": 2, "keep": "last",
}  # fmt: skip
SFT, GRPO = "sft:batch=4", "grpo:batch=2,group=2"


def run(out: Path, *arms: str, **changes: Any) -> Comparison:
    settings = {**SMALL, "model": trained_folder(), "budget": "steps:3", "seeds": 2, **changes}
    return compare(arms or (SFT, GRPO), out=out, **settings)


def numbers(found: Any) -> Any:
    """Results without what a clock measured."""
    if isinstance(found, dict):
        return {k: numbers(v) for k, v in found.items() if k not in ("minutes", "seconds")}
    return [numbers(v) for v in found] if isinstance(found, list) else found


# -- arms ----------------------------------------------------------------------------------------------------------------
def test_arms_are_read_as_they_are_written() -> None:
    arm = Arm.parse("grpo:lr=1e-4,group=16,clip=[0.2,0.28],weights=lora,advantage=rloo")
    assert (arm.recipe, arm.label) == ("grpo", "grpo:lr=1e-4,group=16,clip=[0.2,0.28],weights=lora,advantage=rloo")
    assert arm.settings == {"lr": 1e-4, "group": 16, "clip": [0.2, 0.28], "weights": "lora", "advantage": "rloo"}
    config = arm.config("chain-sum", 3, {"budget": "steps:1"})
    assert (config.weights, config.seed, config.arguments["clip"]) == ("lora", 3, [0.2, 0.28])
    assert arm.slug == "grpo_lr=1e-4_group=16_clip=_0.2_0.28_weights=lora_advantage=rloo"
    assert Arm.parse("grpo", "mine").label == "mine"


@pytest.mark.parametrize(
    ("arm", "says"),
    [("grop", "did you mean 'grpo'"), ("grpo:seed=3", "all arms share it"), ("grpo:k=2", "may not set k"),
     ("sft:lr", "'lr' is not KEY=VALUE"), ("sft:rat=3", "unknown argument of recipe 'sft' 'rat'")],
)  # fmt: skip
def test_arms_that_cannot_be(arm: str, says: str) -> None:
    with pytest.raises(WhetError, match=says):
        Arm.parse(arm).config("chain-sum", 0, {})


def test_labels_differ() -> None:
    with pytest.raises(WhetError, match="two arms are called 'sft'"):
        parse_arms(["sft", "sft"])
    with pytest.raises(WhetError, match="the model that all arms start from"):
        parse_arms({"start": "sft"})
    assert [a.label for a in parse_arms({"a": "sft", "b": "sft:lr=1"})] == ["a", "b"]


def test_the_words_of_the_command() -> None:
    arms, settings = split_words(
        ["sft", "grpo:lr=1e-4,group=4", "test_n=64", 'others=["sort:level=1"]', "weights=lora"]
    )
    assert arms == ["sft", "grpo:lr=1e-4,group=4"]
    assert settings == {"test_n": 64, "others": ["sort:level=1"], "weights": "lora"}
    assert parse_sweep(["lr=1e-4,3e-4", "advantage=rloo,raw"]) == {"lr": [1e-4, 3e-4], "advantage": ["rloo", "raw"]}
    with pytest.raises(WhetError, match="at least two values"):
        parse_sweep(["lr=1e-4"])


def test_candidates_are_the_grid_over_what_an_arm_takes_and_has_not_fixed() -> None:
    grid = {"lr": [1, 2], "group": [4, 8]}
    assert [dict(a.settings) for a in Arm.parse("grpo").candidates(grid)] == [
        {"lr": 1, "group": 4}, {"lr": 1, "group": 8}, {"lr": 2, "group": 4}, {"lr": 2, "group": 8}]  # fmt: skip
    assert [dict(a.settings) for a in Arm.parse("sft").candidates(grid)] == [{"lr": 1}, {"lr": 2}]
    assert Arm.parse("sft:lr=3").candidates(grid) == [Arm.parse("sft:lr=3")]


# -- a comparison --------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Comparison]:
    out = tmp_path_factory.mktemp("compared") / "out"
    return out, run(out)


def test_what_a_comparison_holds(done: tuple[Path, Comparison]) -> None:
    out, found = done
    results = json.loads((out / "results.json").read_text())
    assert results == json.loads(json.dumps(found.as_dict()))
    assert results["equal"] == "steps" and {a["arm"] for a in results["arms"]} == {SFT, GRPO}
    for row in results["arms"]:
        assert row["spent"] == [1.0, 1.0] and row["compute"]["optimizer_steps"] + row["compute"]["idle_steps"] == 3
        assert set(row["metrics"]) >= {"accuracy", "mean@2", "pass@2", "majority@2", "forgetting", "tokens_per_answer"}
        accuracy = row["metrics"]["accuracy"]
        assert accuracy["value"] == pytest.approx(sum(accuracy["by_seed"]) / 2)
        assert (accuracy["seeds"], accuracy["problems"]) == (2, 12) and accuracy["low"] <= accuracy["value"]
        assert [round(point["share"], 3) for point in row["curves"][0]] == [0.0, 0.667, 1.0]
    (difference,) = results["differences"]["accuracy"]
    assert difference["p_corrected"] == difference["p"]  # one pair: nothing to correct
    assert results["start"]["accuracy"]["seeds"] == 1
    forgot = results["forgetting"]
    assert (forgot["suite"], forgot["tasks"], forgot["n"], forgot["look_n"]) == (None, ["sort:level=1"], 2, 2)
    assert forgot["at_steps"]["steps"] == 3 and set(forgot["at_steps"]["arms"]) == {SFT, GRPO}
    points = [point for row in results["arms"] for curve in row["curves"] for point in curve]
    assert all(set(point) == {"step", "share", "flops", "accuracy", "others"} for point in points)


def test_a_comparison_measures_the_suite_of_its_day_and_says_which() -> None:
    config = Arm.parse(SFT).config("parity", 0, {**LOOKS, "budget": "steps:3"})
    assert (config.others, config.others_n, config.others_look_n) == (["forgetting/1"], 256, 64)
    assert Run(config).plan.others == ("chain-sum:level=1", "word-problem:level=1", "sort:level=1", "lists:level=1")


def test_all_start_alike_and_answer_the_same_problems(done: tuple[Path, Comparison]) -> None:
    out, found = done
    before = {(f.parent / "before.json").read_text() for f in (out / "runs").glob("*/summary.json")}
    asked = {tuple(json.loads(f.read_text())["greedy"]["problem"]) for f in (out / "runs").glob("*/matrix-after.json")}
    assert len(before) == len(asked) == 1
    assert len({c.model["hash"] for c in found.cells}) == 1
    assert not list((out / "runs").glob("*/checkpoints"))


def test_a_cells_metrics_are_those_of_its_run(done: tuple[Path, Comparison]) -> None:
    out, found = done
    for cell in found.cells[1:]:
        (folder,) = (out / "runs").glob(f"[!.]*-{cell.key}")
        after = json.loads((folder / "summary.json").read_text())["after"]
        assert cell.metrics["accuracy"] == pytest.approx(after["accuracy"]["value"])
        assert cell.metrics["pass@2"] == pytest.approx(after["pass@2"]["value"])
        assert cell.metrics["majority@2"] == pytest.approx(after["majority@2"]["value"])
        assert len(cell.answers["greedy"]) == 12 and len(cell.answers["sampled"]) == 24


def test_nothing_is_run_twice_and_more_can_be_asked(
    done: tuple[Path, Comparison], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, found = done
    runs: list[tuple[str, int]] = []
    go = Run.go
    monkeypatch.setattr(Run, "go", lambda self: runs.append((self.config.recipe, self.config.seed)) or go(self))
    again = run(out)
    assert not runs and again.as_dict() == found.as_dict()
    more = run(out, SFT, seeds=3)
    assert runs == [("sft", 2)] and more.scores.values("accuracy", SFT)[:2] == found.scores.values("accuracy", SFT)
    run(out, SFT, seeds=1, budget="steps:2")  # another question in the same folder is another run
    assert runs[1:] == [("sft", 0)]
    back = run(out)  # and the first one's runs are still there
    assert len(runs) == 2 and numbers(back.as_dict()) == numbers(found.as_dict())


def test_everything_is_checked_before_the_first_run(tmp_path: Path) -> None:
    for arms, changes, says in (
        ((SFT, "dpo:pairs=given"), {}, "needs preferences"),
        ((SFT, GRPO), {"budget": "flop:3"}, "did you mean 'flops'"),
        ((SFT,), {"seeds": [1, 1]}, "no two alike"),
        ((SFT, GRPO), {"group": 3}, "unknown argument of recipe 'sft' 'group'"),
        ((SFT,), {"sweep": {"group": [1, 2]}}, "unknown setting to sweep 'group'"),
        ((SFT,), {"sweep": {"lr": [1, 2]}, "budget": None}, "give one, as in --budget"),
    ):  # fmt: skip
        with pytest.raises(WhetError, match=says):
            run(tmp_path / "out", *arms, **changes)
    assert not (tmp_path / "out" / "runs").exists()


def test_a_cell_answers_its_question_when_there_are_new_settings_and_not_when_a_default_has_changed(
    tmp_path: Path,
) -> None:
    values = {"budget": "steps:3", "arguments": {"lr": 1e-3, "group": 8}}
    file = tmp_path / "cell.json"
    file.write_text(replace(cell("a", 0, "10"), config=values).text())
    asked = cells.Question(values, "h", "parity/1")
    assert asked.answered(file) == Cell.read(file)
    new = {"budget": "steps:3", "dropout": 0.0, "arguments": {"lr": 1e-3, "group": 8, "entropy": 0.0}}
    assert replace(asked, values=new).answered(file) and replace(asked, values=new).key != asked.key
    for other in ({"values": {**values, "budget": "steps:4"}}, {"values": {**values, "arguments": {"lr": 1e-3, "group": 4}}},
                  {"values": {"budget": "steps:3"}}, {"start": "other"}, {"data": "parity/2"}):  # fmt: skip
        assert replace(asked, **other).answered(file) is None
    assert asked.answered(tmp_path / "none.json") is None


def test_a_broken_cell_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(WhetError, match=r"x\.json' is not a cell"):
        Cell.read(tmp_path / "x.json")


# -- sweeps --------------------------------------------------------------------------------------------------------------
def test_halving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four rates: two are dropped at half of the budget, the best of the others is chosen; test is not looked at."""
    told: list[str] = []
    rates = [1e-5, 1e-2, 1e-3, 1e-1]
    out = tmp_path / "out"
    found = run(out, SFT, GRPO + ",lr=1e-4", budget="steps:4", seeds=1, sweep={"lr": rates}, watch=told.append)
    tried = found.tried[SFT]
    assert list(found.tried) == [SFT] and sorted(c.settings["lr"] for c in tried) == sorted(rates)
    assert [c.end is None for c in tried] == [False, False, True, True]
    assert min(c.half.score for c in tried[:2]) >= max(c.half.score for c in tried[2:])
    assert tried[0].end and tried[1].end and tried[0].end.score >= tried[1].end.score
    assert tried[2].half.flops < 0.6 * tried[0].last.flops
    assert found.arms[0].settings["lr"] == tried[0].settings["lr"] and found.arms[1].settings["lr"] == 1e-4
    swept = list((out / "runs").glob(f"[!.]*-{sweep.SEED}-*"))
    assert len(swept) == 4 and not any((f / "summary.json").exists() for f in swept)
    assert sum("at 50% of the budget" in t for t in told) == 4 and sum("at 100% of the budget" in t for t in told) == 2

    monkeypatch.setattr(Run, "go", lambda self: pytest.fail("what is there is not run again"))
    assert run(out, SFT, GRPO + ",lr=1e-4", budget="steps:4", seeds=1, sweep={"lr": rates}).as_dict() == found.as_dict()


def test_a_candidate_that_cannot_learn_loses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go = Run.go

    def fails(self: Run) -> Any:
        if self.config.arguments["lr"] == 0.5:
            raise WhetError("the gradient norm is nan")
        return go(self)

    monkeypatch.setattr(Run, "go", fails)
    found = run(tmp_path / "out", SFT, seeds=1, sweep={"lr": [0.5, 1e-3]})
    assert found.arms[0].settings["lr"] == 1e-3
    assert found.tried[SFT][1].last.failed == "the gradient norm is nan" and found.tried[SFT][1].half.score == -math.inf
    with pytest.raises(WhetError, match="every point of its sweep failed; one says: the gradient norm is nan"):
        run(tmp_path / "out", SFT, seeds=1, sweep={"lr": [0.5, 0.5]})


# -- killed --------------------------------------------------------------------------------------------------------------
SCRIPT = """
if __name__ == "__main__":
    import json, sys
    from whet import compare
    compare.compare(**json.loads(sys.argv[1]), jobs=2)
"""


def test_killed_in_the_middle_it_ends_with_the_same_numbers(tmp_path: Path) -> None:
    """SIGKILL while two processes are at work, then once more, with one: the results are those of a run in peace."""
    asked = {**SMALL, "recipes": ["sft:batch=4", "sft:batch=2,schedule=linear"], "task": "chain-sum:level=1", "seeds": 2,
             "model": trained_folder(), "budget": "steps:16", "save_every": 2, "test_n": 4, "others": []}  # fmt: skip
    whole = compare(**asked, out=tmp_path / "whole")
    out = tmp_path / "killed"
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), json.dumps({**asked, "out": str(out)})]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while not list(out.glob("runs/*/checkpoints/step-*")):
            assert process.poll() is None, process.stderr and process.stderr.read()
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert not (out / "results.json").exists()
    found = compare(**asked, out=out)
    assert numbers(found.as_dict()) == numbers(whole.as_dict())
    for made in found.cells[1:]:
        ours, theirs = (next((tmp_path / name / "runs").glob(f"[!.]*-{made.key}")) for name in ("killed", "whole"))
        a, b = (load_file(folder / "model" / "model.safetensors") for folder in (ours, theirs))
        assert all(torch.equal(a[name], b[name]) for name in b)
        steps = [[row["step"] for row in RunFolder(folder).read_metrics()] for folder in (ours, theirs)]
        assert steps[0] == steps[1]


def test_a_run_that_is_held_is_waited_for(tmp_path: Path) -> None:
    with cells.locked(tmp_path / "run"), (tmp_path / ".run.lock").open("w") as other:
        import fcntl

        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


# -- scores and tables ---------------------------------------------------------------------------------------------------
def cell(arm: str, seed: int | None, greedy: str, sampled: str = "", **metrics: float) -> Cell:
    """A cell with what its answers say, on a start that forgets nothing."""
    answers = {"greedy": greedy, "k": len(sampled) // len(greedy), "sampled": sampled}
    right = [c == "1" for c in greedy if c != "?"]
    return Cell(
        arm, seed, "key", {}, "parity/1", "parity", {"name": "base", "hash": "h", "parameters": 10**6},
        {"accuracy": sum(right) / len(right), "forgetting": 0.0, "steps": 3.0, **metrics}, answers,
        compute={"flops": 1e9, "sampled_tokens": 5, "scored_tokens": 0, "learnt_tokens": 7, "seconds": 61.0},
    )  # fmt: skip


def test_metrics_by_problem() -> None:
    made = cell("a", 0, "1?0", "11" + "0?" + "??")
    assert made.by_problem("accuracy") == pytest.approx([1, math.nan, 0], nan_ok=True)
    assert made.by_problem("mean@2") == pytest.approx([1, 0, math.nan], nan_ok=True)
    assert cell("a", 0, "00", "01" + "00").by_problem("pass@2") == pytest.approx([1, 0])
    assert cell("a", 0, "00", "01" + "00").by_problem("pass@3") is None
    assert made.by_problem("forgetting") is None


def test_scores_are_the_statistics_of_their_cells() -> None:
    made = Scores([cell("start", None, "1000"), cell("b", 1, "1110", forgetting=0.1), cell("b", 0, "1100", forgetting=0.3),
                   cell("a", 0, "10?0"), cell("a", 1, "1001")])  # fmt: skip
    assert made.arms == ["b", "a"] and made.ranked("accuracy") == ["b", "a"] and made.ranked("forgetting") == ["a", "b"]
    assert made.values("accuracy", "b") == [0.5, 0.75]  # by seed
    assert made.difference("accuracy", "b", "a") == statistics.paired_difference(
        [[1, 1, 0], [1, 1, 0]], [[1, 0, 0], [1, 0, 1]]
    )
    shares = Scores(
        [cell("c", s, "10", **{"majority@2": v, "parts/format": v, "seconds": v}) for s, v in enumerate([0.8, 1.0])]
    )
    for metric in ("majority@2", "parts/format"):
        assert 0 < shares.interval(metric, "c").low < 0.9 < shares.interval(metric, "c").high < 1
    assert shares.interval("seconds", "c").high > 1
    assert made.difference("forgetting", "b", "a") == statistics.difference([0.3, 0.1], [0.0, 0.0])
    gain = statistics.paired_difference([[1, 1, 0, 0], [1, 1, 1, 0]], [1, 0, 0, 0])
    assert made.difference("accuracy", "b", "start") == gain
    with pytest.raises(WhetError, match="unknown arm 'c'"):
        made.values("accuracy", "c")
    with pytest.raises(WhetError, match="unknown metric 'acuracy': did you mean 'accuracy'"):
        made.interval("acuracy", "a")


def test_the_table() -> None:
    made = [
        cell("start", None, "1000"),
        *(cell(arm, s, text) for arm, text in (("low", "1000"), ("high", "1110")) for s in (0, 1)),
    ]
    asked = {"budget": None, "seeds": [0, 1]}
    screen = Console(record=True, width=140, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
    show_comparison(Comparison(parse_arms({"low": "sft", "high": "grpo"}), made, asked), screen)
    text = screen.export_text()
    assert "not compared: other tasks were not looked at" not in text  # there are none
    rows = [line.split() for line in text.splitlines()]
    assert [r[:3] for r in rows if r[:1] in (["1"], ["2"])] == [["1", "high", "0.750"], ["2", "low", "0.250"]]
    assert "high - low" in text and "+0.500" in text and "equal: nothing but the start" in text


@pytest.mark.parametrize("width", [80, 160])
def test_the_tables_fit_the_terminal(width: int) -> None:
    """At 80 columns scores and costs are two tables; no number is cut or broken, and a long arm is folded."""
    long = "grpo:lr=3e-4,group=16,clip=[0.2,0.28]"
    looks = [
        {"step": s, "share": s / 9, "flops": 1e12 * s, "accuracy": s / 10, "others": 1 - s / 20} for s in (0, 5, 9)
    ]
    sampled = {"mean@2": 0.25, "pass@2": 0.5, "majority@2": 0.25, "tokens_per_answer": 31.25}
    made = [cell("start", None, "1000", "00000000", **sampled), *(
        replace(cell(arm, s, text, text * 2, **sampled), curve=looks[: 2 + (arm == long)], others={"sort:level=1": {}},
                config={"others": ["sort:level=1"], "others_n": 2, "others_look_n": 2})
        for arm, text in (("star", "1000"), (long, "1110")) for s in (0, 1))]  # fmt: skip
    comparison = Comparison(parse_arms(["star", long]), made, {"budget": "flops:1e13", "seeds": [0, 1]})
    screen = Console(record=True, width=width, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
    show_comparison(comparison, screen)
    text = screen.export_text()
    lines = text.splitlines()
    assert all(len(line) <= width for line in lines) and "…" not in text
    heads = [line.split() for line in lines if "mean@2" in line or "tokens/answer" in line]
    assert len(heads) == (2 if width == 80 else 1)
    assert heads[0][:6] == ["arm", "accuracy", "95", "%", "mean@2", "pass@2"] and heads[-1][-1] == "time"
    best = next(line for line in lines if line.startswith("1 "))
    assert "0.750   0.041 to 0.995    0.750    1.000       +0.000" in best
    (forgot,) = [line.split() for line in lines if line.startswith("2") and "±" in line]
    assert forgot == ["2", "star", "+0.250", "±", "0.000", "+0.250", "±", "0.000", "5e12"]
    assert "at 5 steps" in text and "at accuracy 0.500" in text and "accuracy lost on sort:level=1" in text


def test_the_commands_say_what_they_take() -> None:
    app = typer.Typer()
    add_commands(app)
    for name, option in (("compare", "--sweep"), ("reproduce", "--quick")):
        found = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
        assert found.exit_code == 0 and option in found.output
