"""asft and dft: what they add to sft, and the methods that they contain."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from test_sft import QUICK, my_file

from trained import trained_folder
from whet.errors import WhetError
from whet.launch import run
from whet.recipes.recipe import get_recipe


def weights(name: str, **more) -> dict[str, torch.Tensor]:
    settings = {**QUICK, "model": trained_folder(), "task": "parity", "steps": 3, "batch": 4, **more}
    return run(name, **settings).policy.model.state_dict()


def same(a: dict, b: dict) -> bool:
    return all(torch.equal(a[n], b[n]) for n in a)


def test_what_each_contains() -> None:
    sft, dft = weights("sft"), weights("dft")
    assert same(weights("asft", kl_weight=0), dft)
    assert same(weights("dft", power=0), sft)
    assert same(weights("asft", kl_weight=0, reweight=False), sft)
    assert not same(weights("asft", kl_weight=5.0), dft)
    assert not same(dft, sft)


def test_the_anchor_holds_the_start() -> None:
    start = weights("sft", steps=1, lr=0.0)

    def drift(**more) -> float:
        found = weights("asft", steps=12, lr=3e-3, warmup=0, **more)
        return float(sum((found[n] - start[n]).square().sum() for n in start))

    assert drift(kl_weight=50.0) < drift(kl_weight=0)


@pytest.mark.parametrize("chosen", ["full", "lora"])
def test_a_file_of_the_users(chosen: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run("asft", task=my_file(tmp_path), verifier="number", model=trained_folder("qwen2", "plain"), weights=chosen, out=out,
        steps=3, batch=16, warmup=0, lr=3e-3, **QUICK)  # fmt: skip
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["loss/forward_kl"] == pytest.approx(0, abs=1e-6)  # it starts at its reference
    assert rows[-1]["loss/forward_kl"] > 1e-4
    assert all(row["nll"] > row["loss/dft"] > 0 for row in rows)  # the plain likelihood is logged beside it


def test_arguments() -> None:
    entry = get_recipe("asft")
    (stage,) = entry(steps="7", normalise="sequence").stages
    assert stage.steps == 7 and stage.wants() == {"reference"}
    assert stage.updates[0].loss.describe() == "1 dft [sequence] + 0.05 forward_kl [sequence]"
    assert not entry(kl_weight=0).stages[0].wants() and not get_recipe("dft")().stages[0].wants()
    assert entry(reweight="false").stages[0].updates[0].loss.describe() == "1 nll [token] + 0.05 forward_kl [token]"
    with pytest.raises(WhetError, match="push away"):
        entry(kl_weight=-1.0)
    assert entry.paper == get_recipe("dft").paper == "asft"
