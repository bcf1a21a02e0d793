"""The bases: their files, building on demand, and those that ship."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import whet
from whet.bases import cached, describe, parts
from whet.errors import WhetError
from whet.models.base import SHIPPED, load, shipped, weights_hash
from whet.tasks import get_task

TINY = {
    "vocabulary": 320, "shape": {"hidden": 32, "layers": 1, "heads": 2, "kv_heads": 1, "inner": 32}, "steps": 3,
    "batch": 4, "lr": 1e-3, "seed": 0,
    "mixture": [{"task": "chain-sum:level=1", "worked": 0.5}, {"task": "sort:level=1", "form": "critique"}],
}  # fmt: skip


@pytest.mark.parametrize("name", ["base", "micro"])
def test_the_files_of_the_bases_describe_mixtures(name: str) -> None:
    described = describe(name)
    assert all(p.task.problems("train", 1) for p in parts(described)) and described["steps"] > 0


def test_a_described_base_is_made_once_and_can_be_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(TINY))
    folder = cached(str(file))
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert {"step-00000001.safetensors", "step-00000002.safetensors"} == {
        p.name for p in (folder.parent / "milestones").iterdir()
    }
    small = {"test_n": 4, "k": 0, "validation_n": 4, "others": [], "eval_every": 0}
    result = whet.run("sft", model=str(file), task="chain-sum:level=1", steps=1, batch=2, **small)
    assert result.summary["steps"] == 1 and (folder / "model.safetensors").stat().st_mtime_ns == made
    file.write_text(yaml.safe_dump({**TINY, "seed": 1}))
    assert cached(str(file)) != folder


def test_a_file_that_describes_no_base_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("vocabulary: 3\n")
    with pytest.raises(WhetError, match="lacks batch, lr"):
        describe(str(file))
    with pytest.raises(WhetError, match="no such file"):
        describe("nowhere.yaml")
    with pytest.raises(WhetError, match=r"unknown shipped base .*: known: base, micro"):
        describe("nowhere")


@pytest.mark.parametrize(("name", "fewest", "most"), [("base", 2e6, 5e6), ("micro", 4e5, 6e5)])
def test_a_shipped_base_loads_and_its_tags_survive_plain_decoding(name: str, fewest: float, most: float) -> None:
    policy = load(name)
    assert fewest < policy.size() < most and policy.format.style == "tags" and policy.format.fallback == "missing"
    problem = get_task("chain-sum").problems("test", 1)[0]
    sample = policy.format.demonstration(problem)
    text = policy.tokenizer.decode(sample.ids, skip_special_tokens=True)
    assert text.endswith(f"</think><answer>{problem.answer}</answer>")


def test_the_shipped_bases_are_whole_small_and_need_no_network() -> None:
    assert SHIPPED.keys() == {"base", "micro"} == {f.parent.name for f in shipped().parent.glob("*/config.json")}
    files = [sorted(f.name for f in shipped(name).iterdir()) for name in SHIPPED]
    assert files[0] == files[1]
    for name in SHIPPED:
        config, described = json.loads((shipped(name) / "config.json").read_text()), describe(name)
        shape = described["shape"]
        assert config["vocab_size"] == described["vocabulary"]
        assert (config["hidden_size"], config["num_hidden_layers"], config["intermediate_size"]) == (
            shape["hidden"], shape["layers"], shape["inner"],
        )  # fmt: skip
    notes = [json.loads((shipped(name) / "whet.json").read_text()) for name in SHIPPED]
    assert [note["hash"] for note in notes] == [weights_hash(load(name).model) for name in SHIPPED]
    # all of the package, since it is the wheel that must stay small
    package = shipped().parents[2]
    held = [f for f in package.rglob("*") if f.is_file() and "__pycache__" not in f.parts]
    assert sum(f.stat().st_size for f in held) < 12e6
    code = (
        "import socket\ndef refuse(*a, **k): raise OSError('the network was asked')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from whet.models.base import SHIPPED, load\nprint([load(name).size() for name in SHIPPED])"
    )
    environment = {"PATH": "", "PYTHONPATH": str(package.parent), "HF_HOME": "/nonexistent"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str([load(name).size() for name in SHIPPED])
