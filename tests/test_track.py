"""Tracking: what is sent where, and that a run never suffers from it."""

from __future__ import annotations

import json
import math
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from whet import track
from whet.config import RunConfig
from whet.errors import WhetError

CONFIG = RunConfig(recipe="grpo", arguments={"steps": 2}, seed=3)
ROW = {"step": 1, "stage": "grpo", "reward": 0.5, "entropy": math.nan, "tokens_right": None, "seconds/sample": 2.0}
SUMMARY = {"recipe": "grpo", "before": {"accuracy": {"value": 0.1, "n": 8}}, "after": {"pass@4": {"value": 0.7}},
           "others": {"sort:level=1": {"after": {"value": 1.0}}}, "compute": {"flops": 2e9}}  # fmt: skip


class Calls(list):
    """Remembers calls by name, and answers with what it was told to."""

    def named(self, name: str) -> list[tuple[tuple, dict[str, Any]]]:
        return [(args, options) for called, args, options in self if called == name]

    def function(self, name: str, answer: Any = None):
        def call(*args: Any, **options: Any) -> Any:
            self.append((name, args, options))
            return answer

        return call


class Watching:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def __getattr__(self, name: str):
        return lambda *_: self.heard.append(name)


@pytest.fixture
def calls() -> Calls:
    return Calls()


@pytest.fixture
def wandb(calls, monkeypatch) -> Calls:
    run = SimpleNamespace(id="id7", log=calls.function("log"), finish=calls.function("finish"),
                          summary=SimpleNamespace(update=calls.function("summary")))  # fmt: skip
    return install(monkeypatch, calls, "wandb", init=calls.function("init", run))


def install(monkeypatch: pytest.MonkeyPatch, calls: Calls, name: str, **members: Any) -> Calls:
    module = ModuleType(name)
    vars(module).update(members)
    monkeypatch.setitem(sys.modules, name, module)
    return calls


def a_run(tracked: track.Tracked, summary: Any = SUMMARY) -> None:
    with tracked:
        tracked.start(CONFIG, None, None, [])
        tracked.phase("evaluating")
        tracked.stage(0, None, [])
        tracked.step(ROW)
        tracked.evaluated({"step": 1, "validation/accuracy": 0.6})
        if summary:
            tracked.summary(summary)


def test_the_other_watcher_hears_everything(wandb):
    watching: Any = Watching()
    a_run(track.tracked(watching, "wandb", CONFIG))
    assert watching.heard == ["start", "phase", "stage", "step", "evaluated"]


def test_only_finite_numbers_are_sent():
    assert track.numbers(ROW | {"flag": True, "a": {"b": 1}}) == {
        "step": 1,
        "reward": 0.5,
        "seconds/sample": 2.0,
        "a/b": 1,
    }


def test_wandb(wandb, tmp_path):
    a_run(track.tracked(None, "wandb", CONFIG, tmp_path))
    ((_, asked),) = wandb.named("init")
    assert (asked["project"], asked["name"], asked["config"]["arguments"]) == ("whet", tmp_path.name, {"steps": 2})
    assert "id" not in asked
    assert wandb.named("log") == [
        (({"reward": 0.5, "seconds/sample": 2.0},), {"step": 1}),
        (({"validation/accuracy": 0.6},), {"step": 1}),
    ]
    assert wandb.named("summary")[0][0][0]["others/sort:level=1/after/value"] == 1.0
    assert wandb.named("finish") == [((), {"exit_code": 0})]


def test_a_resumed_run_goes_on_in_the_same_place(wandb, tmp_path):
    a_run(track.tracked(None, "wandb", CONFIG, tmp_path), summary=None)
    assert json.loads((tmp_path / "track.json").read_text()) == {"wandb": "id7"}
    a_run(track.tracked(None, "wandb", CONFIG, tmp_path))
    assert (wandb.named("init")[1][1]["id"], wandb.named("init")[1][1]["resume"]) == ("id7", "allow")


def test_a_run_that_failed_is_marked_so(wandb):
    tracked = track.tracked(None, "wandb", CONFIG)
    with pytest.raises(ZeroDivisionError), tracked:
        tracked.start(CONFIG, None, None, [])
        raise ZeroDivisionError
    assert wandb.named("finish") == [((), {"exit_code": 1})]


def test_trackio(calls, monkeypatch, tmp_path):
    run = SimpleNamespace(name="first", log=calls.function("log"), finish=calls.function("finish"))
    install(monkeypatch, calls, "trackio", init=calls.function("init", run))
    for resume in ("never", "allow"):
        calls.clear()
        a_run(track.tracked(None, "trackio", CONFIG, tmp_path))
        assert calls.named("init")[0][1]["resume"] == resume
    assert calls.named("init")[0][1]["name"] == "first"
    assert calls.named("log")[-1][0][0]["summary/after/pass@4/value"] == 0.7
    assert [name for name, *_ in calls] == ["init", "log", "log", "log", "finish"]


def test_mlflow(calls, monkeypatch, tmp_path):
    run = SimpleNamespace(info=SimpleNamespace(run_id="r1"))
    members = {name: calls.function(name) for name in ("set_experiment", "log_params", "log_metrics", "end_run")}
    install(monkeypatch, calls, "mlflow", start_run=calls.function("start_run", run), **members)
    a_run(track.tracked(None, "mlflow", CONFIG, tmp_path))
    assert calls.named("start_run") == [((), {"run_name": tmp_path.name})]
    params = calls.named("log_params")[0][0][0]
    assert (params["recipe"], params["steps"], "arguments" in params) == ("grpo", 2, False)
    sent = [key for (metrics,), _ in calls.named("log_metrics") for key in metrics]
    assert "summary/after/pass_4/value" in sent and "summary/others/sort_level_1/after/value" in sent
    assert calls.named("end_run") == [(("FINISHED",), {})]
    calls.clear()
    a_run(track.tracked(None, "mlflow", CONFIG, tmp_path))
    assert calls.named("start_run") == [((), {"run_id": "r1"})]
    assert not calls.named("log_params")  # they are there, and it refuses other values


def test_tensorboard_by_its_own_reader(tmp_path):
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed"
    )
    a_run(track.tracked(None, "tensorboard", CONFIG, tmp_path))
    found = reader.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    scalars = {tag: [(e.step, round(e.value, 6)) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}
    assert scalars["reward"] == [(1, 0.5)]
    assert scalars["validation/accuracy"] == [(1, 0.6)]
    assert scalars["summary/after/pass@4/value"] == [(1, 0.7)]
    assert "config/text_summary" in found.Tags()["tensors"]


def test_tensorboard_needs_a_folder(monkeypatch):
    """It is refused when the run starts: a rehearsal has no folder."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", ModuleType("fake"))
    tracked = track.tracked(None, "tensorboard", CONFIG)
    with pytest.raises(WhetError, match="name one with --out"):
        a_run(tracked)


def test_an_unknown_tracker_offers_the_nearest():
    with pytest.raises(WhetError, match="did you mean 'wandb'"):
        track.tracked(None, "wand", CONFIG)


@pytest.mark.parametrize("kind", ["tensorboard", "wandb", "trackio", "mlflow"])
def test_a_missing_library_names_the_extra(kind, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, track.MODULES[kind], None)
    with pytest.raises(WhetError, match=rf"pip install 'whet\[{kind}\]'"):
        track.tracked(None, kind, CONFIG, tmp_path)


def test_a_tracker_that_cannot_begin_stops_the_run_before_it_trains(calls, monkeypatch):
    def init(**_: Any) -> Any:
        raise RuntimeError("not\nlogged in")

    install(monkeypatch, calls, "wandb", init=init)
    with pytest.raises(WhetError, match="--track wandb could not begin: not logged in"):
        a_run(track.tracked(None, "wandb", CONFIG))


def test_a_tracker_that_fails_later_is_let_go_of_once(wandb, monkeypatch, caplog):
    tracked = track.tracked(None, "wandb", CONFIG)
    with tracked:
        tracked.start(CONFIG, None, None, [])
        assert tracked.tracker is not None

        def fail(*_: Any) -> None:
            raise ConnectionError("gone")

        monkeypatch.setattr(tracked.tracker, "log", fail)
        tracked.step(ROW)
        tracked.step(ROW)
    assert [r.getMessage() for r in caplog.records] == [
        "--track wandb stopped working (ConnectionError: gone); the run goes on, and metrics.jsonl has everything"
    ]
    assert not wandb.named("finish")
