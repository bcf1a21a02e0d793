"""Checkpoints: whatever moment a process dies in, a whole one is left, and nothing in it is executed."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from whet.errors import WhetError
from whet.training import checkpoint


def save(folder: Path, step: int, value: float | None = None, keep: int = 2) -> None:
    tensors = {"w": torch.full((3,), step if value is None else value)}
    checkpoint.save(folder, step, tensors, {"step": step, "nested": {"t": torch.arange(2), "list": [1, "a"]}}, keep)


def value(folder: Path) -> float:
    """What the newest checkpoint holds."""
    weights, _ = checkpoint.load(checkpoint.found(folder)[-1])
    return float(weights["w"][0])


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    tied = torch.randn(4, 4)
    tensors = {"a": tied.t(), "b": tied.bfloat16()}
    state = {"best": -float("inf"), "none": None, "list": [{"x": torch.ones(2, dtype=torch.float64)}]}
    folder = checkpoint.save(tmp_path / "new", 7, tensors, state)
    assert folder.name == "step-00000007"
    weights, loaded = checkpoint.load(folder)
    assert torch.equal(weights["a"], tied.t()) and torch.equal(weights["b"], tied.bfloat16())
    assert loaded["best"] == -float("inf") and loaded["none"] is None
    assert torch.equal(loaded["list"][0]["x"], torch.ones(2, dtype=torch.float64))


def test_only_the_newest_are_kept_and_they_are_in_order(tmp_path: Path) -> None:
    assert checkpoint.found(tmp_path / "nowhere") == []
    for step in (9, 10, 100, 101):
        save(tmp_path, step)
    assert [p.name for p in checkpoint.found(tmp_path)] == ["step-00000100", "step-00000101"]
    assert names(tmp_path) == ["step-00000100", "step-00000101"]


class Crash(BaseException):
    """Not an Exception: nothing may catch it, as nothing catches a power cut."""


def dies(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, at: int, after: bool = False) -> None:
    """Let the `at`-th call of a function be the last thing that the process does."""
    real: Callable[..., Any] = getattr(owner, name)
    calls = iter(range(1, 1000))

    def call(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == at:
            if after:
                real(*args, **kwargs)
            raise Crash
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, call)


PLACES = [
    (checkpoint, "save_file", 1), (checkpoint.torch, "save", 1), (checkpoint, "_sync", 1), (checkpoint, "_sync", 2),
    (checkpoint, "_sync", 3), (checkpoint, "_sync", 4), (Path, "write_text", 1), (Path, "rename", 1), (Path, "rename", 2), (checkpoint.shutil, "rmtree", 1),
    (checkpoint.shutil, "rmtree", 2), (Path, "mkdir", 1), (Path, "mkdir", 2),
]  # fmt: skip


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("owner", "name", "at"), PLACES, ids=[f"{n} {at}" for _, n, at in PLACES])
@pytest.mark.parametrize("again", [False, True], ids=["new", "replaced"])
def test_a_crash_leaves_a_whole_checkpoint(
    owner: Any, name: str, at: int, after: bool, again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every call that changes the disk, before and after it, for a new step and for one that is saved again."""
    save(tmp_path, 1)
    if not again:
        save(tmp_path, 2)
    step = 1 if again else 3
    with monkeypatch.context() as patch:
        dies(patch, owner, name, at, after)
        try:
            save(tmp_path, step, value=30.0)
            crashed = False
        except Crash:
            crashed = True
    before = 1.0 if again else 2.0
    assert value(tmp_path) in ((before, 30.0) if crashed else (30.0,))
    kept = checkpoint.found(tmp_path)
    for folder in kept:
        checkpoint.load(folder)
    assert names(tmp_path) == [p.name for p in kept], "what the crash left must be swept away"
    save(tmp_path, 4)
    assert value(tmp_path) == 4.0


def test_half_written_and_half_removed_folders_are_no_checkpoints(tmp_path: Path) -> None:
    save(tmp_path, 5)
    (tmp_path / ".draft-00000006-123").mkdir()
    (tmp_path / ".draft-00000006-123" / "weights.safetensors").write_bytes(b"half")
    (tmp_path / ".retired-step-00000004").mkdir()
    assert [p.name for p in checkpoint.found(tmp_path)] == ["step-00000005"]
    assert names(tmp_path) == ["step-00000005"]


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("evil-was-here"),)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_code_in_a_checkpoint_is_not_run(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "c", 1)
    folder = tmp_path / "c" / "step-00000001"
    state = {"progress": Evil()}
    if how == "torch":
        torch.save(state, folder / "state.pt")
    else:
        (folder / "state.pt").write_bytes(pickle.dumps(state))
    checkpoint.seal(folder)  # whoever writes a file can write its digest too
    with pytest.raises(WhetError, match="step-00000001' cannot be read"):
        checkpoint.load(folder)
    assert not (tmp_path / "evil-was-here").exists()


@pytest.mark.parametrize("file", ["weights.safetensors", "state.pt"])
def test_a_damaged_checkpoint_says_what_to_do(file: str, tmp_path: Path) -> None:
    save(tmp_path, 1)
    folder = tmp_path / "step-00000001"
    (folder / file).write_bytes((folder / file).read_bytes()[:20])
    with pytest.raises(WhetError, match="remove it to go on from the one before"):
        checkpoint.load(folder)


TORN = [(file, how) for file in ("weights.safetensors", "state.pt", checkpoint.MANIFEST) for how in ("a bit", "its end", "gone", "another")
        if (file, how) != (checkpoint.MANIFEST, "gone")]  # fmt: skip


@pytest.mark.parametrize(("file", "how"), TORN)
def test_a_torn_checkpoint_is_left_out_and_said(
    file: str, how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where a single bit of a tensor is wrong, which no reader would see."""
    for step in (1, 2):
        save(tmp_path, step)
    data = (tmp_path / "step-00000002" / file).read_bytes()
    if how == "gone":
        (tmp_path / "step-00000002" / file).unlink()
    else:
        torn = {"a bit": data[:-9] + bytes([data[-9] ^ 1]) + data[-8:], "its end": data[:-1],
                "another": (tmp_path / "step-00000001" / file).read_bytes()}[how]  # fmt: skip
        (tmp_path / "step-00000002" / file).write_bytes(torn)
    with pytest.raises(WhetError, match="step-00000002' cannot be read"):
        checkpoint.load(tmp_path / "step-00000002")
    with caplog.at_level("WARNING", "whet"):
        assert checkpoint.newest(tmp_path) == tmp_path / "step-00000001"
    (said,) = caplog.messages
    assert "step-00000002' is torn" in said and "the one before is taken" in said
    assert names(tmp_path) == [".torn-step-00000002", "step-00000001"]
    save(tmp_path, 2)
    assert names(tmp_path) == ["step-00000001", "step-00000002"] and value(tmp_path) == 2.0


def test_a_checkpoint_without_a_manifest_is_of_an_older_version(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1)
    (tmp_path / "step-00000001" / checkpoint.MANIFEST).unlink()
    assert checkpoint.newest(tmp_path) == tmp_path / "step-00000001" and not caplog.messages
    assert value(tmp_path) == 1.0


def test_a_disk_that_cannot_be_read_is_no_torn_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is set aside, and no metrics are lost, for an error that may pass."""
    save(tmp_path, 1)
    monkeypatch.setattr(checkpoint, "_digest", lambda file: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    with pytest.raises(WhetError, match=r"cannot be read now .*Input/output error.*nothing was set aside"):
        checkpoint.newest(tmp_path)
    assert names(tmp_path) == ["step-00000001"]


def test_where_all_are_torn_there_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert checkpoint.newest(tmp_path / "nowhere") is None and not caplog.messages
    save(tmp_path, 1)
    (tmp_path / "step-00000001" / "more").write_bytes(b"")  # a file that was not saved
    assert checkpoint.newest(tmp_path) is None
    assert "step-00000001' is torn (more is not what was saved)" in caplog.messages[0]
    assert "the run begins anew" in caplog.messages[1]


def test_what_could_not_be_written_is_not_left_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path, 2)
    assert names(tmp_path) == ["step-00000001"]


def test_a_text_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "summary.json"
    checkpoint.write_atomic(file, "one")
    with monkeypatch.context() as patch:
        dies(patch, checkpoint, "_sync", 1)
        with pytest.raises(Crash):
            checkpoint.write_atomic(file, "two")
    assert file.read_text() == "one"
    checkpoint.write_atomic(file, "two")
    assert file.read_text() == "two" and names(tmp_path) == ["summary.json"]
    (tmp_path / ".summary.json.4000000000").write_text("of a process that was killed")
    (tmp_path / f".summary.json.{os.getppid()}").write_text("of one that lives")
    checkpoint.write_atomic(file, "three")
    assert names(tmp_path) == [f".summary.json.{os.getppid()}", "summary.json"]
