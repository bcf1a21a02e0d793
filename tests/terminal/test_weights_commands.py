"""`whet weights`, `whet merge` and `whet probe geometry`, as a person runs them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tiny import tiny_policy
from whet import cli
from whet.errors import WhetError
from whet.models import base
from whet.models.policy import Policy
from whet.terminal.geometry import geometry
from whet.terminal.merge import merge
from whet.weights import get_weights, menu
from whet.weights.delta import WeightDelta
from whet.weights.files import Stored

PROBE = torch.arange(2, 40)[None]


def logits(policy: Policy) -> torch.Tensor:
    with torch.no_grad():
        return policy.logits(PROBE)


def stir(policy: Policy, seed: int, scale: float = 0.02) -> None:
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in policy.trainable_parameters().values():
            p += scale * torch.randn(p.shape, generator=draw)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders start, a, b (trained from it), adapter and dora (on it), other (of another kind)."""
    here = tmp_path_factory.mktemp("models")
    tiny_policy().save(here / "start")
    for seed, name in ((1, "a"), (2, "b")):
        policy = tiny_policy()
        stir(policy, seed)
        policy.save(here / name)
    for name, spec in (("adapter", "lora:rank=2"), ("dora", "dora:rank=2")):
        policy = base.load(here / "start")
        get_weights(spec).attach(policy, 0)
        stir(policy, 3, 0.05)
        policy.save(here / name)
    tiny_policy("gpt2").save(here / "other")
    return here


def test_a_vector_is_subtracted_scaled_and_added(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    s = {n: str(models / n) for n in ("start", "a", "b")}
    merge("subtract", [s["a"], s["start"]], out=tmp_path / "vector")
    merge("scale", [str(tmp_path / "vector")], out=tmp_path / "half", scale=0.5)
    merge("compose", [str(tmp_path / "half"), str(tmp_path / "half")], out=tmp_path / "again")
    torch.testing.assert_close(WeightDelta.load(tmp_path / "again").dense("model.norm.weight"),
                               WeightDelta.load(tmp_path / "vector").dense("model.norm.weight"))  # fmt: skip
    merge("add", [s["start"], str(tmp_path / "again")], out=tmp_path / "same")
    for name, tensor in Stored(models / "a").items():
        torch.testing.assert_close(Stored(tmp_path / "same")[name], tensor, rtol=1e-6, atol=1e-6)
    merge("add", [s["b"], str(tmp_path / "vector")], out=tmp_path / "moved", scale=-1.0)
    merge("add", [str(tmp_path / "moved"), str(tmp_path / "vector")], out=tmp_path / "back")
    for name, tensor in Stored(models / "b").items():
        torch.testing.assert_close(Stored(tmp_path / "back")[name], tensor, rtol=1e-6, atol=1e-6)
    assert "differ by at most" in capsys.readouterr().out


def test_a_merged_model_loads_in_plain_transformers(models: Path, tmp_path: Path) -> None:
    merge("interpolate", [str(models / "a"), str(models / "b")], out=tmp_path / "mid", scale=0.25)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "mid")
    AutoTokenizer.from_pretrained(tmp_path / "mid")
    a, b = Stored(models / "a"), Stored(models / "b")
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(parameter.detach(), 0.75 * a[name] + 0.25 * b[name], rtol=1e-5, atol=1e-6)


def test_an_adapter_is_merged_and_agrees_with_the_live_one(models: Path, tmp_path: Path) -> None:
    merge("add", [str(models / "start"), str(models / "adapter")], out=tmp_path / "merged")
    live, merged = base.load(models / "adapter"), base.load(tmp_path / "merged")
    torch.testing.assert_close(logits(live), logits(merged), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(live), logits(base.load(models / "start")), atol=1e-2)
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    merge("subtract", [str(models / "adapter"), str(models / "adapter")], out=tmp_path / "nothing")
    assert WeightDelta.load(tmp_path / "nothing").norm() < 1e-5


def test_a_merge_that_is_not_the_live_model_is_not_left_there(models: Path, tmp_path: Path) -> None:
    """In bf16 the written weights are others."""
    with pytest.raises(WhetError, match="differ from the live model's by"):
        merge("add", [str(models / "start"), str(models / "adapter")], out=tmp_path / "merged", dtype="bfloat16")
    assert not (tmp_path / "merged").exists()
    merge(
        "add",
        [str(models / "start"), str(models / "adapter")],
        out=tmp_path / "merged",
        dtype="bfloat16",
        tolerance=10.0,
    )
    assert {t.dtype for t in Stored(tmp_path / "merged").values()} == {torch.bfloat16}


def test_a_dry_run_says_what_does_not_match_and_writes_nothing(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")  # where nothing of the table may be cut, however long the paths are
    with pytest.raises(SystemExit) as left:
        cli.main(["merge", "interpolate", str(models / "a"), str(models / "other"), "--dry-run"])
    assert left.value.code == 2
    told = capsys.readouterr()
    assert "only the first has" in told.out and "whet: error: nothing in" in told.err
    merge("interpolate", [str(models / "a"), str(models / "b")], out=tmp_path / "x", dry_run=True)
    assert re.search(r"b +\d+ +0 +0 +0 +the same", capsys.readouterr().out) and not (tmp_path / "x").exists()


def test_what_cannot_be_merged_is_refused(models: Path, tmp_path: Path) -> None:
    a, out = str(models / "a"), tmp_path / "out"
    tiny_policy(style="tags").save(tmp_path / "tokens")
    full = tmp_path / "full"
    full.mkdir()
    (full / "x").write_text("")
    for arguments, message in (
        (("ad", [a, a]), "unknown operation 'ad': did you mean 'add'"),
        (("add", [a]), "add takes 2 or more sources, not 1"),
        (("add", [a, str(models / "b")]), "is a model and no delta"),
        (("add", [a, str(models / "dora")]), "are DoRA"),
        (("interpolate", [a, str(tmp_path / "tokens")]), "have other tokens"),
        (("subtract", [a, str(tmp_path / "tokens")]), "have other tokens"),
        (("interpolate", [a, "nowhere"]), "no such folder or file"),
    ):
        with pytest.raises(WhetError, match=message):
            merge(*arguments, out=out)
        assert not out.exists()
    with pytest.raises(WhetError, match="give --out DIR"):
        merge("add", [a, a], out=None)
    with pytest.raises(WhetError, match="is not empty"):
        merge("add", [a, a], out=full)
    with pytest.raises(WhetError, match="dtype 'float8'"):
        merge("add", [a, a], out=out, dtype="float8")


def test_geometry_is_printed_and_drawn(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    start, a, b, adapter = (str(models / n) for n in ("start", "a", "b", "adapter"))
    geometry(start, [a, b], plot=tmp_path / "where.html")
    told = capsys.readouterr().out
    assert "…" not in told and all(
        kind in told for kind in (" q ", " down ", "all", "chance 0.2", "Jaccard", "by layer")
    )
    assert re.search(r"^layer 1 +[+-]0[.]", told, re.M), "Jaccard less chance, layer by layer"
    drawn = (tmp_path / "where.html").read_text()
    assert all(part in drawn for part in ("sparsity", '"cosine"', "columns, layer 1"))
    geometry(start, [adapter], as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["after"][adapter]["mean"]["sparsity"] < 0.9 and len(found["after"][adapter]["matrices"]) == 14
    geometry(start, [start])
    told = capsys.readouterr().out
    assert re.search(r"[|]dW[|]/[|]W[|]( +0.0e\+00){8}", told) and re.search(r"sparsity( +1.000){8}", told)
    assert re.search(r"principal( +-){8}", told) and "Jaccard" not in told
    geometry(start, [a], sweeps=True)
    assert len(re.findall(r"^0[.]\d+ +0[.][1-5] +0[.]\d{3} ", capsys.readouterr().out, re.M)) == 15
    geometry(start, [a], beside=(b, b), as_json=True)
    assert json.loads(capsys.readouterr().out)["jaccard"] == 0.0
    with pytest.raises(WhetError, match=r"a plot is [.]svg"):
        geometry(start, [a], plot=tmp_path / "where.txt")


def test_the_same_model_by_other_weights(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["probe", "equivalent", str(models / "adapter"), "--how", "rotate", "--layer", "1"]
    cli.app([*asked, "--out", str(tmp_path / "turned")], standalone_mode=False)
    assert "the same function" in capsys.readouterr().out
    torch.testing.assert_close(
        logits(base.load(tmp_path / "turned")), logits(base.load(models / "adapter")), rtol=1e-3, atol=1e-4
    )
    geometry(str(models / "start"), [str(tmp_path / "turned")], as_json=True)
    (found,) = json.loads(capsys.readouterr().out)["after"].values()
    turned = {(p["kind"], p["layer"]) for p in found["matrices"] if p["numbers"]["change"] > 0.5}
    assert turned == {("v_proj", 1), ("o_proj", 1)}
    with pytest.raises(WhetError, match="is not empty"):
        cli.app([*asked, "--out", str(tmp_path / "turned")], standalone_mode=False)
    with pytest.raises(WhetError, match="unknown way to other weights 'rotat': did you mean 'rotate'"):
        cli.app([*asked[:4], "rotat", "--out", str(tmp_path / "new")], standalone_mode=False)


def test_the_menu_is_listed_with_its_cost(capsys: pytest.CaptureFixture[str]) -> None:
    cli.app(["weights"], standalone_mode=False)
    told = capsys.readouterr().out
    for name, choice in menu().items():
        assert re.search(rf"^{name} ", told, re.M), name
        assert choice.summary.endswith("."), f"what moves with weights '{name}' is said in one sentence"
    assert re.search(r"^full +All parameters. +2.62 M +100 % +10.0 MiB +20.0 MiB", told, re.M)
