"""The bases: their files, building on demand, and the one that ships."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import whet
from whet.bases import cached, describe, parts
from whet.errors import WhetError
from whet.models.base import load, shipped
from whet.sheet import kind, measure
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
    with pytest.raises(WhetError, match="no shipped base"):
        describe("nowhere")


def test_the_shipped_base_is_small_and_its_tags_survive_plain_decoding() -> None:
    assert sum(f.stat().st_size for f in shipped().iterdir()) < 12e6
    policy = load()
    assert 2e6 < policy.size() < 5e6 and policy.format.style == "tags"
    problem = get_task("chain-sum").problems("test", 1)[0]
    sample = policy.format.demonstration(problem)
    text = policy.tokenizer.decode(sample.ids, skip_special_tokens=True)
    assert text.endswith(f"</think><answer>{problem.answer}</answer>")


def test_a_data_sheet_is_measured_once_and_says_what_a_level_is_for(tmp_path: Path) -> None:
    policy = load()
    cells = measure(policy, tmp_path, names=["sort"], n=4, k=2)
    assert [c["task"] for c in cells] == [f"sort:level={i}" for i in (1, 2, 3, 4)]
    table = (tmp_path / "sheet.md").read_text()
    for file in tmp_path.glob("*.json"):
        file.write_text(file.read_text().replace('"ended": 1.0', '"ended": 0.123'))
    assert "0.123" in measure(policy, tmp_path, names=["sort"], n=4, k=2)[0].__repr__()
    assert table.count("sort:level") == 4

    def cell(accuracy: float, reach: float) -> dict[str, object]:
        return {"accuracy": {"value": accuracy}, "pass@16": {"value": reach}, "k": 16}

    assert (
        kind(cell(0.9, 1.0)) == "mastered" and kind(cell(0.2, 0.6)) == "headroom" and kind(cell(0.0, 0.05)) == "beyond"
    )
