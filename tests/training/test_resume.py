"""k + k steps with a resume between are 2k steps, bit for bit: weights, metrics and everything that is counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from trained import trained_folder, trained_policy
from whet.advantages import generalized_advantage, group_std
from whet.errors import WhetError
from whet.evaluation.evaluate import Evaluator
from whet.launch import resume, run
from whet.models.policy import Policy
from whet.objectives import kl_to_reference, nll, policy_gradient, value_head, value_loss
from whet.rewards import accuracy
from whet.runs import RunFolder
from whet.sources import Demonstrations, Rollouts
from whet.tasks import get_task
from whet.training import checkpoint
from whet.training.fit import Fit, Options
from whet.training.learner import Learner
from whet.training.optimizer import AdamW
from whet.training.stage import Stage, Update
from whet.weights import Lora

QUICK: dict[str, Any] = {"task": "parity", "test_n": 4, "validation_n": 6, "k": 0, "others": [], "eval_every": 0}
RL = {"steps": 4, "batch": 4, "group": 4}
CASES: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "sft": ("sft", {"steps": 4, "batch": 4}, (2,)),
    "sft lora": ("sft", {"steps": 4, "batch": 4, "weights": "lora:rank=4"}, (2,)),
    "sft lisa": ("sft", {"steps": 6, "batch": 4, "weights": "lisa:blocks=1,period=2"}, (1, 2, 3)),
    "sft best": ("sft", {"steps": 5, "batch": 4, "eval_every": 1}, (1, 4)),
    "grpo": ("grpo", RL, (2,)),
    "grpo kl": ("grpo", {**RL, "kl": 0.1}, (1,)),
    "grpo kl lora": ("grpo", {**RL, "kl": 0.1, "weights": "dora:rank=4"}, (2,)),
    "grpo minibatches": ("grpo", {**RL, "minibatches": 2, "epochs": 2, "kl": 0.1}, (2,)),
    "grpo lisa": ("grpo", {**RL, "minibatches": 2, "kl": 0.1, "weights": "lisa:blocks=1,period=3"}, (2,)),
    "dapo": ("dapo", {**RL, "overlong_buffer": 4, "max_new_tokens": 9}, (2,)),
    "ppo": ("ppo", {**RL, "kl": 0.05, "kl_target": 0.01}, (2,)),
    "ppo lora": ("ppo", {**RL, "weights": "lora:rank=4"}, (2,)),
    "dpo": ("dpo", {"steps": 6, "batch": 4, "problems": 12, "samples": 4, "cap": 1}, (2, 5)),
    "dpo lora": ("dpo", {"steps": 4, "batch": 4, "problems": 8, "samples": 4, "weights": "lora:rank=4"}, (2,)),
    "star": ("star", {"number": 3, "steps": 2, "growth": 1.0, "questions": 16, "batch": 4}, (2, 3, 4, 5)),
    "star lora last": ("star", {"number": 2, "steps": 2, "growth": 1.0, "questions": 16, "batch": 4, "restart": "last",
                                "weights": "lora:rank=4"}, (2,)),
    "pretrain": ("pretrain", {"steps": 4, "batch": 4, "mixture": "parity:level=1*2~0.5;parity:level=2*1~1"}, (1, 2)),
}  # fmt: skip


def after(steps: int) -> Callable[[], bool]:
    """Tells a run to stop once it has made so many steps."""
    count = iter(range(1, 1000))
    return lambda: next(count) >= steps


def metrics(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in rows]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = (folder / "model").glob("*.safetensors")
    return load_file(file)


def assert_same_run(a: Path, b: Path) -> None:
    assert metrics(a) == metrics(b)
    assert (a / "samples.jsonl").read_text() == (b / "samples.jsonl").read_text()
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (a, b)]
    for summary in summaries:
        summary["compute"].pop("seconds")
    assert summaries[0] == summaries[1]
    assert_equal(weights(a), weights(b))


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_is_the_run_that_was_not_stopped(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best_at(3, monkeypatch)
    recipe, settings, stops = CASES[case]
    settings = {**QUICK, "model": trained_folder(), **settings}
    whole = run(recipe, out=tmp_path / "whole", **settings)
    assert whole.progress.finished and whole.summary
    start = {n: p.clone() for n, p in trained_policy().model.named_parameters()}
    if "weights" not in settings:
        moved = weights(tmp_path / "whole")
        assert any(not torch.equal(moved[n], start[n]) for n in moved), "nothing was learnt, so that nothing is shown"
    if case == "dapo":
        drawn = [line["answers"] for line in metrics(tmp_path / "whole") if "answers" in line]
        assert max(drawn) > RL["batch"] * RL["group"], "no batch was refilled"
    if "best" in case:
        assert stops[0] < whole.progress.best_step == 3 < stops[1], "the best weights pass through a checkpoint"
    for stop in stops:
        out = tmp_path / f"stopped-{stop}"
        halted = run(recipe, out=out, stop=after(stop), **settings)
        assert not halted.progress.finished and halted.progress.total == stop and not halted.summary
        assert not (out / "summary.json").exists()
        done = resume(out)
        assert done.progress == whole.progress
        assert_same_run(tmp_path / "whole", out)


def test_a_run_may_be_stopped_at_every_step(tmp_path: Path) -> None:
    settings = {**QUICK, "model": trained_folder(), **RL, "eval_every": 2}
    run("grpo", out=tmp_path / "whole", **settings)
    run("grpo", out=tmp_path / "steps", stop=lambda: True, **settings)
    for _ in range(3):
        resume(tmp_path / "steps", stop=lambda: True)
    resume(tmp_path / "steps")
    assert_same_run(tmp_path / "whole", tmp_path / "steps")


class Crash(Exception):
    pass


def best_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let validation find the policy best after so many optimizer steps, whatever it answers."""
    monkeypatch.setattr(
        Evaluator, "validation", lambda _, policy: {"accuracy": 1 / (1 + abs(policy.meter.optimizer_steps - step))}
    )


@pytest.mark.parametrize(("crash_at", "resumed_from"), [(0, 0), (1, 0), (3, 2), (5, 4)])
def test_a_crash_between_checkpoints_costs_only_the_steps_since(
    crash_at: int, resumed_from: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The growing files are cut back to the checkpoint, or to nothing where there is none yet."""
    settings = {**QUICK, "model": trained_folder(), **RL, "steps": 6, "save_every": 2, "eval_every": 3}
    run("grpo", out=tmp_path / "whole", **settings)
    real, calls = Learner.step, []

    def step(self: Learner, *args: Any) -> Any:
        if len(calls) == crash_at:
            raise Crash
        calls.append(1)
        return real(self, *args)

    monkeypatch.setattr(Learner, "step", step)
    with pytest.raises(Crash):
        run("grpo", out=tmp_path / "crashed", **settings)
    monkeypatch.setattr(Learner, "step", real)
    kept = checkpoint.found(tmp_path / "crashed" / "checkpoints")
    assert [p.name for p in kept[-1:]] == ([f"step-{resumed_from:08d}"] if resumed_from else [])
    resume(tmp_path / "crashed")
    assert_same_run(tmp_path / "whole", tmp_path / "crashed")


@pytest.mark.parametrize("patience", [0, 1])
def test_a_run_that_ended_but_was_not_saved_is_only_saved(
    patience: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It must not train on, in particular not after early stopping, and it must end with its best weights."""
    best_at(2, monkeypatch)
    settings = {**QUICK, "model": trained_folder(), "steps": 5, "batch": 4, "eval_every": 1, "patience": patience}
    whole = run("sft", out=tmp_path / "whole", **settings)
    assert whole.progress.stopped_early == bool(patience)
    assert whole.progress.best_step == 2 and whole.progress.total == (3 if patience else 5)
    real = Policy.save
    monkeypatch.setattr(Policy, "save", lambda *_: (_ for _ in ()).throw(Crash))
    with pytest.raises(Crash):
        run("sft", out=tmp_path / "crashed", **settings)
    monkeypatch.setattr(Policy, "save", real)
    resume(tmp_path / "crashed")
    assert_same_run(tmp_path / "whole", tmp_path / "crashed")


def test_a_crash_at_the_very_end_keeps_the_best_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    best_at(2, monkeypatch)
    settings = {**QUICK, "model": trained_folder(), "steps": 5, "batch": 4, "eval_every": 1, "patience": 1}
    run("sft", out=tmp_path / "whole", **settings)
    real = Fit._end
    monkeypatch.setattr(Fit, "_end", lambda *_: (_ for _ in ()).throw(Crash))
    with pytest.raises(Crash):
        run("sft", out=tmp_path / "crashed", **settings)
    monkeypatch.setattr(Fit, "_end", real)
    resume(tmp_path / "crashed")
    assert_same_run(tmp_path / "whole", tmp_path / "crashed")


def test_what_cannot_be_resumed_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"parity {n}", "answer": n % 2}) + "\n" for n in range(60)))
    model = tmp_path / "model"
    trained_policy().save(model)
    settings = {**QUICK, "model": str(model), "task": str(data), "steps": 2, "batch": 2}
    run("sft", out=tmp_path / "done", **settings)
    with pytest.raises(WhetError, match="is finished"):
        resume(tmp_path / "done")
    with pytest.raises(WhetError, match="already holds a run"):
        run("sft", out=tmp_path / "done", **settings)
    with pytest.raises(WhetError, match=r"not a run folder"):
        resume(tmp_path / "nowhere")
    run("sft", out=tmp_path / "halted", stop=after(1), **settings)
    before = data.read_text()
    data.write_text(before.replace("parity 7", "parity 9"))
    with pytest.raises(WhetError, match=r"rows.jsonl' has changed since"):
        resume(tmp_path / "halted")
    data.write_text(before)
    trained_policy(steps=3).save(model)
    with pytest.raises(WhetError, match="model' has changed since"):
        resume(tmp_path / "halted")


def test_a_task_object_is_given_again(tmp_path: Path) -> None:
    task = get_task("parity")
    settings = {**QUICK, "model": trained_folder(), "steps": 2, "batch": 2, "task": task}
    run("sft", out=tmp_path / "whole", **settings)
    run("sft", out=tmp_path / "halted", stop=after(1), **settings)
    resume(tmp_path / "halted", task=task)
    assert_same_run(tmp_path / "whole", tmp_path / "halted")


# -- stages that no recipe makes yet ---------------------------------------------------------------------------------
def several(kind: str) -> list[Stage]:
    """Two stages whose parameters differ: adapters come in, or a value head stays behind; or whose reference is what the
    first one left."""
    sft = Stage(Demonstrations(), [Update(nll(), optimizer=AdamW(lr=1e-2))], steps=2, batch=4, name="sft")
    if kind == "adapters":
        second = Stage(Demonstrations(), [Update(nll(), optimizer=AdamW(lr=1e-2))], steps=2, batch=4, weights=Lora(4))
        return [sft, second]
    if kind == "reference":
        anchored = Update(policy_gradient() + 0.5 * kl_to_reference(), optimizer=AdamW(lr=1e-2))
        return [sft, Stage(Rollouts(4), [anchored], steps=2, batch=2, reward=accuracy(), advantage=group_std())]
    objective = policy_gradient() + 0.1 * value_loss()
    ppo = Stage(Rollouts(4), [Update(objective, epochs=2)], steps=2, batch=2, reward=accuracy(),
                advantage=generalized_advantage(), modules={"value": value_head}, name="ppo")  # fmt: skip
    return [ppo, sft]


def fit_of(kind: str, out: Path, stop: Callable[[], bool] | None = None, keep: str = "last") -> Fit:
    evaluate = (lambda policy: {"accuracy": 0.0}) if keep == "best" else None
    folder = RunFolder(out)
    out.mkdir(exist_ok=True)
    options = Options(seed=3, stop=stop, keep=keep, eval_every=1 if evaluate else 0)
    return Fit(trained_policy(), several(kind), get_task("parity"), options=options, folder=folder, evaluate=evaluate)


@pytest.mark.parametrize("kind", ["adapters", "value head", "reference"])
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_runs_of_different_stages_resume(kind: str, stop: int, tmp_path: Path) -> None:
    whole = fit_of(kind, tmp_path / "whole")
    assert whole.run().finished
    fit_of(kind, tmp_path / "halted", after(stop)).run()
    resumed = fit_of(kind, tmp_path / "halted")
    assert resumed.run(resume=True).finished
    assert_equal(dict(whole.policy.named_parameters()), dict(resumed.policy.named_parameters()))
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "halted")


def test_the_best_weights_are_those_of_the_last_choice_of_weights(tmp_path: Path) -> None:
    """The best of a stage of full weights cannot be put back under adapters that were trained since."""
    whole = fit_of("adapters", tmp_path / "whole", keep="best")
    progress = whole.run()
    assert progress.finished and progress.best_step == 3, "the first evaluation of the second stage"
    assert any("lora_B" in name and bool(p.any()) for name, p in whole.policy.named_parameters())


def test_a_fit_without_a_folder_cannot_be_resumed() -> None:
    fit = Fit(trained_policy(), several("adapters"), get_task("parity"))
    with pytest.raises(WhetError, match="without a folder"):
        fit.run(resume=True)
