"""The command: what it takes, what it prints, how it refuses."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from trained import trained_folder
from whet import __version__, cli
from whet.config import RunConfig
from whet.models import base
from whet.papers import papers
from whet.recipes.recipe import recipes
from whet.sampling import SamplingSettings
from whet.sources import ask
from whet.study import studies
from whet.tasks import Problem
from whet.terminal.progress import Display

SMALL = ("--test-n", "8", "--validation-n", "4", "--k", "2", "--others", "none", "--threads", "1")


@dataclass
class Ran:
    code: int
    out: str
    err: str


@pytest.fixture
def whet(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Ran]]:
    """Run the command in this process, as into a pipe."""
    monkeypatch.delenv("COLUMNS", raising=False)  # parallel test processes set it

    def run(*words: object) -> Ran:
        with pytest.raises(SystemExit) as end:
            cli.main([str(word) for word in words])
        out, err = capsys.readouterr()
        return Ran(int(end.value.code or 0), out, err)

    trained_folder()  # made here, so that what saving it prints is not the command's
    capsys.readouterr()
    log = logging.getLogger("whet")
    handlers = list(log.handlers)
    yield run
    log.handlers[:] = handlers
    torch.set_num_threads(1)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sums(n: int = 60, **more: Any) -> list[Any]:
    return [{"prompt": f"{i} + {i + 1} =", "answer": str(2 * i + 1), **more} for i in range(n)]


# -- what it takes -----------------------------------------------------------------------------------------------------
def test_options_are_the_settings_of_a_run() -> None:
    fields = {k: f for k, f in RunConfig.model_fields.items() if k not in ("recipe", "arguments")}
    assert set(cli.SETTINGS) == set(fields)
    for name, (_, _, text, default) in cli.SETTINGS.items():
        assert (text, default) == (fields[name].description, fields[name].default), name


def test_help_loads_nothing_heavy() -> None:
    heavy = ["torch", "transformers", "pydantic", "yaml", "tokenizers", "whet.launch", "whet.tasks"]
    script = f"""
import sys
from whet.cli import main
try:
    main(["--help"])
except SystemExit as end:
    assert end.code == 0
print([name for name in {heavy} if name in sys.modules])
"""
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-1] == "[]"
    for command in ("run", "eval", "ask", "show-batch", "audit-reward", "doctor", "tasks", "recipes", "show", "papers"):
        assert f"{command} " in shown


def test_help_of_run_names_every_setting_and_its_default(whet: Callable[..., Ran], monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown = whet("run", "--help").out
    for name, (_, _, text, default) in cli.SETTINGS.items():
        assert f"--{name.replace('_', '-')} " in shown
        assert text in shown
        if default is not None and default is not False:
            assert f"{text} ({default})" in shown


def test_version(whet: Callable[..., Ran]) -> None:
    assert whet("--version").out == f"whet {__version__}\n"


def test_module_is_the_command() -> None:
    asked = [sys.executable, "-m", "whet", "--version"]
    assert subprocess.run(asked, capture_output=True, text=True, check=True).stdout == f"whet {__version__}\n"


# -- bad input -------------------------------------------------------------------------------------------------------
BAD = {
    "unknown recipe": (["grop"], "unknown recipe 'grop': did you mean 'grpo'?"),
    "unknown task": (["grpo", "--task", "chain-sun"], "unknown task 'chain-sun': did you mean 'chain-sum'?"),
    "unknown argument": (["grpo", "grop=4"], "unknown argument of recipe 'grpo' 'grop': did you mean 'group'?"),
    "not a pair": (["grpo", "group"], "'group' is not of the form key=value"),
    "setting as argument": (["grpo", "seed=3"], "'seed' is an option and no argument of recipe 'grpo': write --seed 3"),
    "wrong type": (["grpo", "group=many"], "recipe 'grpo': group is a whole number, not 'many'"),
    "from Python only": (["sft", "objective=nll"], "recipe 'sft': objective is an object, given from Python only"),
    "no recipe": ([], "name a recipe"),
    "group of one": (["grpo", "group=1"], "a group of one has no baseline"),
    "steps below one": (["sft", "steps=0"], "steps and batch must be at least 1"),
    "not JSON": (["sft", "--task", "broken.jsonl"], "broken.jsonl:2: not valid JSON at column 12"),
    "a field is missing": (["sft", "--task", "fields.jsonl"], "fields.jsonl:2: field 'prompt' is missing"),
    "a field is of another kind": (["sft", "--task", "kinds.jsonl"], "kinds.jsonl:2: field 'answer' must be a text"),
    "gold does not score": (["sft", "--task", "words.jsonl", "--verifier", "number"], "gives the gold answer 'one'"),
    "unknown verifier": (["sft", "--task", "sums.jsonl", "--verifier", "numbre"], "did you mean 'number'?"),
    "verifier of a generated task": (["sft", "--task", "parity", "--verifier", "exact"], "has its own verifier"),
    "too long to learn": (["sft", "--task", "long.jsonl"], "has no learnt token"),
    "too long to answer": (["grpo", "--task", "long.jsonl"], "the answer included"),
    "nothing to learn from": (["sft", "--task", "questions.jsonl"], "needs demonstrations"),
    "no preferences": (["dpo", "pairs=given", "--task", "parity"], "needs preferences"),
    "no such file": (["sft", "--task", "nowhere.jsonl"], "'nowhere.jsonl' is not there"),
    "a folder holds a run": (["sft", "--out", "old"], "output 'old' already holds a run"),
    "a folder holds files": (["sft", "--out", "full"], "output 'full' already holds other files"),
    "out is a file": (["sft", "--out", "sums.jsonl"], "output 'sums.jsonl' is a file"),
    "not a model": (["sft", "--model", "full"], "'full' is not a model folder"),
    "no such model": (["sft", "--model", "./nowhere"], "model './nowhere': no such folder"),
    "an unfinished run as model": (["sft", "--model", "old"], "the run in 'old' has no model yet"),
    "unknown weights": (["sft", "--weights", "lorra"], "unknown weights 'lorra': did you mean 'lora'?"),
    "unknown dtype": (["sft", "--dtype", "float8"], "dtype 'float8'"),
    "no such device": (["sft", "--device", "warp"], "device 'warp' cannot be used"),
    "setting out of range": (["sft", "--test-n", "0"], "setting 'test_n'"),
    "unknown budget": (["sft", "--budget", "flop:3"], "unknown budget 'flop': did you mean 'flops'?"),
    "no such run": (["--resume", "nowhere"], "'nowhere' is not a run folder"),
    "resume and more": (["sft", "--resume", "old"], "give --resume and nothing else"),
    "no such run.yaml": (["nowhere.yaml"], "'nowhere.yaml' cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(name: str, whet: Callable[..., Ran], here: Path) -> None:
    (here / "broken.jsonl").write_text('{"prompt": "1 + 1 =", "answer": "2"}\n{"prompt": x}\n')
    write_rows(here / "fields.jsonl", [*sums(1), {"question": "2 + 2 =", "answer": "4"}])
    write_rows(here / "kinds.jsonl", [*sums(1), {"prompt": "2 + 2 =", "answer": {}}])
    write_rows(here / "sums.jsonl", sums())
    write_rows(here / "words.jsonl", [{"prompt": f"number {i}", "answer": "one"} for i in range(60)])
    write_rows(here / "questions.jsonl", [{"prompt": f"number {i}"} for i in range(60)])
    # the split of a row hangs on a hash of its prompt: several, so that some of them are learnt
    write_rows(here / "long.jsonl", sums() + [{"prompt": "so " * 200 + str(i), "answer": "1"} for i in range(15)])
    for folder, file in (("old", "run.yaml"), ("full", "notes.txt")):
        (here / folder).mkdir()
        (here / folder / file).write_text("recipe: sft\n")
    words, expected = BAD[name]
    given = [*words]
    if "--resume" not in words:
        given += [] if "--model" in words else ["--model", trained_folder()]
        given += [] if "--out" in words else ["--out", "new"]
    before = sorted(here.rglob("*"))
    ran = whet("run", *given)
    assert ran.code == 2
    assert expected in ran.err
    assert [line for line in ran.err.splitlines() if not line.startswith("whet: note: ")] == [ran.err.splitlines()[-1]]
    assert ran.err.splitlines()[-1].startswith("whet: error: ")
    assert sorted(here.rglob("*")) == before


def test_unknown_option_offers_the_nearest(whet: Callable[..., Ran]) -> None:
    ran = whet("run", "grpo", "--taks", "sort")
    assert ran.code == 2
    assert "--task" in ran.err


def test_other_commands_refuse_in_one_line_too(whet: Callable[..., Ran], here: Path) -> None:
    for words, expected in (
        (["show", "grop"], "did you mean 'grpo'?"),
        (["tasks", "show", "sorted"], "did you mean 'sort'?"),
        (["eval", "nowhere"], "no such folder"),
        (["ask", "nowhere", "1 + 1"], "no such folder"),
        (["papers", "--family", "other"], "no family is called 'other'"),
        (["show-batch", "sft", "stps=2"], "did you mean 'steps'?"),
        (["audit-reward", "--task", "nowhere.jsonl"], "is not there"),
        (["doctor", "--model", str(here)], "is not a model folder"),
    ):
        ran = whet(*words)
        assert ran.code == 2
        assert expected in ran.err
        assert ran.err.count("\n") == 1


def test_an_unexpected_failure_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("whet.terminal.inspect.list_recipes", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["recipes"])


# -- whet run --------------------------------------------------------------------------------------------------------
def test_a_run_leaves_its_folder_and_shows_before_and_after(whet: Callable[..., Ran], here: Path) -> None:
    more = ("--others", "parity:level=2,sort:level=1", "--others-n", "4")
    run = whet("run", "grpo", "steps=3", "batch=2", "group=4", "--task", "parity", "--model", trained_folder(),
               "--out", "first", "--eval-every", "2", *SMALL[:6], *more, "--threads", "1")  # fmt: skip
    assert run.code == 0, run.err
    files = {"run.yaml", "metrics.jsonl", "samples.jsonl", "summary.json", "model", "checkpoints"}
    assert files <= {p.name for p in (here / "first").iterdir()}
    summary = json.loads((here / "first/summary.json").read_text())
    assert {"recipe", "task", "model", "seed", "before", "after", "others", "compute"} <= set(summary)
    assert set(summary["others"]) == {"parity:level=2", "sort:level=1"}  # another level of the task may be asked for
    lines = run.out.splitlines()
    assert lines[0] == "grpo on parity"
    assert any(line.startswith("step 3 of 3  ") and "validation accuracy" not in line for line in lines)
    assert sum("validation accuracy" in line for line in lines) == 3  # before, after steps 2 and 3
    row = next(line.split() for line in lines if line.startswith("accuracy "))
    after = summary["after"]["accuracy"]
    assert row[1] == f"{summary['before']['accuracy']['value']:.3f}"
    assert row[5:9] == [f"{after['value']:.3f}", f"{after['low']:.3f}", "to", f"{after['high']:.3f}"]
    assert row[-1] == "8"
    for name in ("sampled accuracy", "pass@2", "tokens per answer", "ended", "unparseable", "sort:level=1"):
        assert any(line.startswith(name) for line in lines), name
    assert any(line.endswith("first/model") for line in lines)
    assert any("whet ask first 'parity " in line for line in lines)
    config = RunConfig.read(here / "first/run.yaml")[0]
    assert config.arguments == {"steps": 3, "batch": 2, "group": 4}  # with their types

    again = whet("run", "first/run.yaml", "--out", "second", "--quiet", "steps=2")
    assert again.code == 0, again.err
    config = RunConfig.read(here / "second/run.yaml")[0]
    assert (config.arguments["steps"], config.test_n, config.others) == (2, 8, ["parity:level=2", "sort:level=1"])
    assert "validation accuracy" not in again.out

    assert whet("run", "--resume", "first").err.startswith("whet: error: the run in 'first' is finished")
    asked = whet("ask", "first", "parity 12", "--max-new-tokens", "14")
    assert asked.code == 0
    assert asked.out.strip()


def test_without_out_nothing_is_kept_and_it_says_so(whet: Callable[..., Ran], here: Path) -> None:
    ran = whet("run", "sft", "steps=2", "batch=4", "--task", "parity", "--model", trained_folder(), *SMALL)
    assert ran.code == 0, ran.err
    assert "nothing was kept" in ran.out
    assert "rows/s" in ran.out
    assert list(here.iterdir()) == []


def test_dry_run_checks_everything_and_writes_nothing(whet: Callable[..., Ran], here: Path) -> None:
    asked = ("run", "ppo", "--task", "parity", "--model", trained_folder(), "--dry-run", "--threads", "1")
    ran = whet(*asked, "--out", "new")
    assert ran.code == 0, ran.err
    assert "150 steps of 16 problems x 4 answers" in ran.out
    for what in ("weights", "optimizer", "activations", "logits", "sampler's cache", "together"):
        assert any(line.startswith(what) for line in ran.out.splitlines()), what
    assert list(here.iterdir()) == []
    (here / "old").mkdir()
    (here / "old/run.yaml").write_text("recipe: sft\n")
    assert whet(*asked, "--out", "old").code == 2


def interrupt_at(step: int, times: int, monkeypatch: pytest.MonkeyPatch, number: int = signal.SIGINT) -> None:
    shown = Display.step

    def report(self: Display, row: Any) -> None:
        shown(self, row)
        if row["step"] == step:
            for _ in range(times):
                os.kill(os.getpid(), number)

    monkeypatch.setattr(Display, "step", report)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_its_step_and_it_goes_on(
    number: int, whet: Callable[..., Ran], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("run", "grpo", "steps=4", "batch=2", "group=4", "--task", "parity", "--model", trained_folder(),
             "--eval-every", "0", *SMALL)  # fmt: skip
    assert whet(*asked, "--out", "whole").code == 0
    with monkeypatch.context() as patch:
        interrupt_at(2, 1, patch, number)
        ran = whet(*asked, "--out", "cut")
    assert ran.code == 0, ran.err
    assert ran.out.splitlines()[-1] == "stopped at step 2 of 4; go on with it:  whet run --resume cut"
    assert not (here / "cut/model").exists()
    ran = whet("run", "--resume", "cut")
    assert ran.code == 0, ran.err
    whole, cut = (load_file(here / name / "model/model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_a_second_signal_aborts(whet: Callable[..., Ran], here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_at(2, 2, monkeypatch)
    before = signal.getsignal(signal.SIGINT)
    ran = whet(
        "run", "sft", "steps=4", "batch=2", "--task", "parity", "--model", trained_folder(), "--out", "cut", *SMALL
    )
    assert ran.code == 130
    assert "whet run --resume cut" in ran.out
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_without_out_says_that_nothing_was_kept(
    whet: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_at(1, 1, monkeypatch)
    ran = whet("run", "sft", "steps=4", "batch=2", "--task", "parity", "--model", trained_folder(), *SMALL)
    assert ran.code == 0
    assert ran.out.splitlines()[-1] == "stopped at step 1 of 4; nothing was kept, since no --out was given"


def test_a_signal_before_the_first_step_stops_at_once(
    whet: Callable[..., Ran], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Display, "phase", lambda self, text: os.kill(os.getpid(), signal.SIGINT))
        ran = whet(
            "run", "sft", "steps=2", "batch=2", "--task", "parity", "--model", trained_folder(), "--out", "cut", *SMALL
        )
    assert ran.code == 0
    assert "stopped before the first step; go on with it:  whet run --resume cut" in ran.out
    assert not (here / "cut/before.json").exists()
    assert whet("run", "--resume", "cut").code == 0
    assert (here / "cut/summary.json").exists()


# -- a model is measured and asked -------------------------------------------------------------------------------------
def test_eval_shows_prompts_the_extraction_and_the_table(whet: Callable[..., Ran]) -> None:
    asked = ("eval", trained_folder(), "--task", "parity", "--n", "8", "--k", "2", "--threads", "1")
    ran = whet(*asked)
    assert ran.code == 0, ran.err
    prompts = [line for line in ran.out.splitlines() if line.startswith("prompt ")]
    assert len(prompts) == 3
    assert all("<user>parity " in line and line.endswith("<assistant>") for line in prompts)
    assert "no answer found in" in ran.out
    found = json.loads(whet(*asked, "--json").out)
    assert found["task"] == "parity"
    assert found["test"]["accuracy"]["n"] == 8
    row = next(line.split() for line in ran.out.splitlines() if line.startswith("accuracy"))
    assert row[1] == f"{found['test']['accuracy']['value']:.3f}"


def test_ask_streams_the_greedy_answer(whet: Callable[..., Ran]) -> None:
    policy = base.load(trained_folder(), device="cpu")
    problem = Problem("", "parity 123")
    ((sample,),) = ask(policy, [problem], SamplingSettings(14, 0.0), 1, 0)
    ran = whet("ask", trained_folder(), "parity 123", "--max-new-tokens", "14")
    assert ran.code == 0, ran.err
    assert ran.out.split() == policy.format.decode(sample.response).replace("</think>", "</think>\n").split()


# -- what there is, and what would be learnt -------------------------------------------------------------------------
def test_tasks(whet: Callable[..., Ran]) -> None:
    shown = whet("tasks").out
    assert any(line.split()[:3] == ["chain-sum", "1-6", "(3)"] for line in shown.splitlines())
    shown = whet("tasks", "show", "chain-sum:level=2").out
    assert sum(line.startswith("problem ") for line in shown.splitlines()) == 3
    assert sum(line.startswith("corrupted ") for line in shown.splitlines()) == 3
    assert shown.count("<- ") == 3  # the first wrong step carries the label
    verdicts = [
        line.split()[1] + " " + line.split("  ")[-1] for line in shown.splitlines() if line.startswith("verdict")
    ]
    assert len(verdicts) == 9
    assert shown.count(" 1 ok") == 3
    assert shown.count(" 0 wrong") == 3
    assert shown.count(" 0 unparseable") == 3


def test_every_recipe_is_listed_and_shown_with_all_its_arguments(whet: Callable[..., Ran]) -> None:
    listed = whet("recipes").out
    for name, entry in recipes().items():
        assert f"\n{name} " in listed
        ran = whet("show", name)
        assert ran.code == 0, ran.err
        for argument in entry.arguments:
            assert f"  {argument} " in ran.out, (name, argument)


def test_show_tells_own_from_inherited(whet: Callable[..., Ran]) -> None:
    shown = whet("show", "dapo").out
    assert "parent  grpo with clip=[0.2, 0.28], normalise=token, dynamic=true" in shown
    assert "(arXiv 2402.03300)" in shown
    assert "A_i = (r_i - mean_j r_j) / (std_j r_j + eps)" in shown
    assert any(line.split()[:3] == ["normalise", "str", "token*"] for line in shown.splitlines())
    assert any(line.split()[:3] == ["group", "int", "8"] for line in shown.splitlines())
    assert "needs   verifier: rows with an `answer` that a --verifier can check" in shown


def test_show_batch_counts_what_is_learnt(whet: Callable[..., Ran]) -> None:
    ran = whet("show-batch", "sft", "batch=4", "--task", "parity", "--model", trained_folder(), "-n", "2")
    assert ran.code == 0, ran.err
    rows = [line.split() for line in ran.out.splitlines()]
    assert sum(row[:1] == ["question"] for row in rows) == 2
    assert all(row[1].startswith("0/") for row in rows if row[:1] == ["question"])
    assert all(len(set(row[1].split("/"))) == 1 for row in rows if row[:1] in (["answer"], ["rationale"]))
    assert sum(row[:4] == ["eos", "1/1", "1", "<eos>"] for row in rows) == 2
    ran = whet("show-batch", "grpo", "batch=2", "group=4", "--task", "parity", "--model", trained_folder(), "-n", "1")
    assert "8 rows in the first step" in ran.out
    assert "advantage" in ran.out


def test_audit_reward_leaves_with_one_where_something_scores(whet: Callable[..., Ran], here: Path) -> None:
    assert whet("audit-reward", "--task", "chain-sum", "-n", "16").code == 0
    write_rows(here / "sums.jsonl", sums())
    (here / "soft.py").write_text("def inside(problem, response):\n    return problem.answer in response.text\n")
    ran = whet("audit-reward", "--task", "sums.jsonl", "--verifier", "soft.py:inside", "-n", "16")
    assert ran.code == 1
    assert "gold or another" in ran.out.splitlines()[-1]
    (here / "hard.py").write_text("def never(problem, response):\n    return 0.0\n")
    ran = whet("audit-reward", "--task", "sums.jsonl", "--verifier", "hard.py:never", "-n", "16")
    assert ran.code == 1
    assert "a gold answer does not score 1" in ran.out


def test_doctor(whet: Callable[..., Ran]) -> None:
    ran = whet("doctor", "--model", trained_folder(), "--recipe", "sft", "--task", "parity")
    assert ran.code == 0, ran.err
    assert f"torch           {torch.__version__}"[:16] in ran.out
    assert "B·L·V = 1024 x 320" in ran.out
    assert "whet[scale]" in ran.out or "ray" in ran.out


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (("sft", "--weights", "biases"), "biases"),
        (("lt-sft",), "lt-sft dense, then lt-sft"),
        (("drift",), "full, then drift"),
    ],
)
def test_doctor_says_what_moves(whet: Callable[..., Ran], asked: tuple[str, ...], told: str) -> None:
    """Also where it is the recipe that says so, stage by stage."""
    ran = whet("doctor", "--model", trained_folder("gpt2"), "--task", "parity", "--recipe", *asked)
    assert f"weights {told}, float32" in ran.out


def test_papers_are_implemented_where_a_recipe_or_a_study_names_them(
    whet: Callable[..., Ran], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    (here / "results/dpo").mkdir(parents=True)
    (here / "results/dpo/verdict.json").write_text('{"verdict": "holds"}')
    shown = whet("papers").out
    named = {entry.paper for entry in recipes().values()} | {study.paper for study in studies().values()}
    for paper in papers():
        line = next(line for line in shown.splitlines() if line.split()[1:2] == [paper.slug])
        assert ("implemented" in line) == (paper.slug in named), paper.slug
        assert line.split()[-1] == ("holds" if paper.slug == "dpo" else "-")
    assert f"{len(papers())} papers" in shown.splitlines()[-1]
    only = whet("papers", "--family", "preference").out
    assert "\nsupervised" not in only


def test_base_build_is_handed_on(whet: Callable[..., Ran], here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("whet.bases.build", lambda name, out, **more: asked.append((name, out, more["steps"])))
    assert whet("base", "build", "base", "--out", "made", "--steps", "3").code == 0
    assert asked == [("base", Path("made"), 3)]
    assert "did you mean 'base'" in whet("base", "build", "bass", "--out", "made").err
