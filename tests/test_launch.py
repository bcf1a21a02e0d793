"""`whet.run`: settings, the run folder and its contract, and bad input: one clear line and nothing half-written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from trained import Parity, trained_folder, trained_policy
from whet.config import RunConfig
from whet.errors import WhetError
from whet.launch import run
from whet.objectives import nll
from whet.recipes.recipe import get_recipe
from whet.tasks import Problem, Response, Verdict

QUICK: dict[str, Any] = {"task": "parity", "test_n": 4, "validation_n": 4, "k": 2, "others": [], "eval_every": 0,
                         "steps": 2, "batch": 2}  # fmt: skip


def launch(recipe: str = "sft", **settings: Any) -> Any:
    return run(recipe, **{**QUICK, "model": trained_folder(), **settings})


# -- the folder --------------------------------------------------------------------------------------------------------
def test_the_run_folder_is_the_contract(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "run"
    done = launch(out=out, eval_every=1, others=["sort:level=1"], others_n=3, seed=5)
    summary = json.loads((out / "summary.json").read_text())
    assert summary == done.summary
    assert {"recipe", "task", "model", "seed", "before", "after", "others", "compute"} <= set(summary)
    assert (summary["recipe"], summary["task"], summary["seed"], summary["steps"]) == ("sft", "parity", 5, 2)
    for when in ("before", "after"):
        assert {"accuracy", "sampled_accuracy", "pass@2", "tokens_per_answer", "ended", "unparseable"} <= set(
            summary[when]
        )
        for metric in ("accuracy", "sampled_accuracy", "pass@2"):
            assert {"value", "low", "high", "n"} == set(summary[when][metric]) and summary[when][metric]["n"] == 4
    assert {"before", "after"} == set(summary["others"]["sort:level=1"])
    assert {"flops", "sampled_tokens", "scored_tokens", "learnt_tokens", "optimizer_steps", "seconds"} <= set(
        summary["compute"]
    )
    assert summary["compute"]["optimizer_steps"] == 2 and summary["compute"]["sampled_tokens"] == 0
    assert summary["model"]["hash"] and summary["model"]["parameters"] == done.policy.size()

    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert [s["when"] for s in samples] == ["before"] * 4 + ["after"] * 4
    assert [s["problem"] for s in samples[:4]] == [s["problem"] for s in samples[4:]]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss/nll" in line] == [1, 2]
    assert [line["step"] for line in lines if "validation/accuracy" in line] == [0, 1, 2]
    assert {"seconds/sample", "seconds/score", "seconds/learn", "lr", "grad_norm"} <= set(lines[1])
    done.save(tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (out / "model" / "model.safetensors").read_bytes()


def test_run_yaml_says_what_was_asked_and_runs_again(tmp_path: Path) -> None:
    first = launch("grpo", out=tmp_path / "a", group=2, lr="3e-4", weights="lora:rank=2", keep="last")
    config, record = RunConfig.read(tmp_path / "a" / "run.yaml")
    assert config.arguments == {"steps": 2, "batch": 2, "group": 2, "lr": "3e-4"}
    assert (config.recipe, config.task, config.weights, config.keep) == ("grpo", "parity", "lora:rank=2", "last")
    assert {"versions", "model_hash", "data_hash", "threads", "started"} <= set(record)
    assert {"torch", "transformers", "peft", "whet", "python"} <= set(record["versions"])
    values = config.model_dump(exclude_none=True)
    again = run(values.pop("recipe"), out=tmp_path / "b", **values)
    ours, theirs = dict(first.policy.named_parameters()), dict(again.policy.named_parameters())
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert launch().folder is None
    assert list(tmp_path.iterdir()) == []


# -- bad input -----------------------------------------------------------------------------------------------------------
class Unjust(Parity):
    """A verifier that does not accept its own gold answers."""

    def verify(self, problem: Problem, response: Response) -> Verdict:
        return Verdict(0.0, "wrong")


def lines(folder: Path, *rows: Any) -> str:
    file = folder / "rows.jsonl"
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(file)


GOOD = [{"prompt": f"parity {n}", "answer": n % 2} for n in range(40)]
LONG = {"prompt": "parity " + "9" * 400, "answer": 1}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"recipe": "sfft"}, "unknown recipe 'sfft': did you mean 'sft'"),
        ({"task": "pairity"}, "unknown task 'pairity': did you mean 'parity'"),
        ({"stepz": 3}, "unknown argument of recipe 'sft' 'stepz': did you mean 'steps'"),
        ({"evalevery": 3}, "'evalevery': did you mean 'eval_every'"),
        ({"steps": "many"}, "steps is .*, not 'many'"),
        ({"eval_every": -1}, "eval_every"),
        ({"keep": "all"}, "keep"),
        ({"weights": "lroa"}, "did you mean 'lora'"),
        ({"model": "./nowhere"}, "no such folder"),
        ({"others": ["srot"]}, "unknown task 'srot'"),
        ({"verifier": "number"}, "has its own verifier"),
        ({"recipe": "grpo", "group": 1}, "a group of one has no baseline"),
        ({"recipe": "dpo", "pairs": "given"}, "needs preferences and task 'parity' has none"),
        ({"task": Unjust()}, "gold|score"),
        ({"objective": nll()}, "plain values"),
    ],
    ids=lambda v: str(v)[:30],
)
def test_bad_settings_get_one_line_and_write_nothing(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    recipe = settings.pop("recipe", "sft") if "recipe" in settings else "sft"
    with pytest.raises(WhetError, match=message) as problem:
        launch(recipe, out=tmp_path / "run", **settings)
    assert "\n" not in str(problem.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("rows", "verifier", "message"),
    [
        ([*GOOD, '{"prompt": "x"'], "number", r"rows.jsonl:41: not valid JSON"),
        ([*GOOD, {"answer": 3}], "number", r"rows.jsonl:41: .*prompt"),
        ([{"prompt": "parity 1", "answer": ""}], "number", r"rows.jsonl:1: field 'answer' is empty"),
        (GOOD, "nmber", "number"),
        ([{"prompt": f"q {i}", "answer": "not one"} for i in range(40)], "number", "gold|score"),
        ([{"prompt": "q", "answer": 1}], "number", "has no (train|test|validation) problems"),
        ([*GOOD, *({**LONG, "prompt": LONG["prompt"] + str(i)} for i in range(20))], "number", "token"),
    ],
    ids=["json", "field", "empty", "verifier", "gold", "splits", "long"],
)  # fmt: skip
def test_a_bad_file_gets_one_line_and_writes_nothing(
    rows: list[Any], verifier: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(WhetError, match=message) as problem:
        launch(out=tmp_path / "run", task=lines(tmp_path, *rows), verifier=verifier)
    assert "\n" not in str(problem.value)
    assert not (tmp_path / "run").exists()


def test_a_preference_file_is_learnt_without_a_verdict(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"prompt": f"parity {n}", "chosen": f"{n % 2}", "rejected": "?"} for n in range(40)]
    done = launch("dpo", task=lines(tmp_path, *rows), pairs="given", out=tmp_path / "run", eval_every=1)
    assert done.progress.finished and done.summary["after"]["accuracy"]["value"] is None
    assert "accuracy is not measured" in caplog.text
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


def test_a_path_that_is_taken_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    for out, message in ((tmp_path / "file", "is a file"), (tmp_path / "full", "already holds")):
        with pytest.raises(WhetError, match=message):
            launch(out=out)
    assert (tmp_path / "full" / "thesis.txt").read_text() == (tmp_path / "file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    launch(out=tmp_path / "empty")


@pytest.mark.parametrize(
    ("text", "message"),
    [("recipe: sft\nrecipee: x\n", "unknown setting 'recipee': did you mean 'recipe'"), ("- a\n", "names no recipe"),
     ("recipe: [\n", "cannot be read"), ("recipe: sft\nseed: x\n", "setting 'seed'"), ("", "names no recipe")],
)  # fmt: skip
def test_a_bad_run_yaml_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(WhetError, match=message) as problem:
        RunConfig.read(tmp_path / "run.yaml")
    assert "\n" not in str(problem.value)


# -- what a run takes ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", ["mixed", "bfloat16", "float64"])
@pytest.mark.parametrize("recipe", ["sft", "ppo", "dpo"])
def test_every_precision_trains(recipe: str, dtype: str) -> None:
    small = {"problems": 16, "samples": 4} if recipe == "dpo" else {}
    done = launch(recipe, dtype=dtype, k=0, test_n=2, **small)
    assert done.progress.finished and done.policy.chunked
    assert all(bool(p.isfinite().all()) for p in done.policy.model.parameters())


@pytest.mark.parametrize("weights", ["full", "lora"])
def test_activation_checkpointing_changes_nothing_but_memory(weights: str) -> None:
    settings = {"weights": weights, "k": 0, "lr": 1e-3}
    plain, saved = (launch("grpo", activation_checkpointing=on, **settings) for on in (False, True))
    ours, theirs = dict(plain.policy.named_parameters()), dict(saved.policy.named_parameters())
    for name in ours:
        assert torch.allclose(ours[name], theirs[name], atol=1e-4), name
    assert saved.policy.meter.flops > plain.policy.meter.flops


def test_the_token_budget_changes_memory_and_not_the_gradient(tmp_path: Path) -> None:
    first = [json.loads((tmp_path / n / "metrics.jsonl").read_text().splitlines()[0])
             for n, b in (("a", 1), ("b", 9999)) if launch(out=tmp_path / n, token_budget=b, batch=6)]  # fmt: skip
    assert first[0]["loss/nll"] == pytest.approx(first[1]["loss/nll"], rel=1e-5)
    assert first[0]["grad_norm"] == pytest.approx(first[1]["grad_norm"], rel=1e-4)


def test_a_recipe_may_be_given_itself() -> None:
    assert launch(get_recipe("sft")).summary["recipe"] == "sft"  # type: ignore[arg-type]


def test_a_watcher_sees_the_run() -> None:
    class Watcher:
        def __init__(self) -> None:
            self.seen: list[str] = []

        def start(self, config: Any, policy: Any, task: Any, lines: Any) -> None:
            self.seen.append("start")

        def phase(self, text: str) -> None:
            self.seen.append(text)

        def stage(self, index: int, stage: Any, lines: list[str]) -> None:
            assert lines[0].startswith(f"{stage.name}: ")
            self.seen.append(stage.name)

        def step(self, row: Any) -> None:
            self.seen.append(f"step {row['step']}")

        def evaluated(self, row: Any) -> None:
            self.seen.append(f"evaluated {row['step']}")

    watcher = Watcher()
    launch(watcher=watcher, eval_every=1)
    assert watcher.seen == ["start", "evaluating before training", "evaluated 0", "sft", "step 1", "evaluated 1",
                            "step 2", "evaluated 2", "evaluating after training"]  # fmt: skip


def test_a_config_is_a_page_of_yaml() -> None:
    config = RunConfig.make({"recipe": "sft", "arguments": {"steps": 3}})
    values = yaml.safe_load(config.dump({"threads": 1}))
    assert values["record"] == {"threads": 1} and "model" not in values and values["arguments"] == {"steps": 3}
    values.pop("record")
    assert RunConfig.make(values) == config


def test_importing_whet_imports_no_torch() -> None:
    code = "import sys, whet; assert 'torch' not in sys.modules and 'transformers' not in sys.modules; whet.WhetError"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_trained_policy_is_returned() -> None:
    done = launch()
    start = trained_policy().model.state_dict()
    assert any(not torch.equal(start[n], p) for n, p in done.policy.model.state_dict().items())
