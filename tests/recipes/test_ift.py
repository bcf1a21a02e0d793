"""ift: its limits, from the command line to the trained weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_asft import same, weights
from test_sft import QUICK, my_file

from trained import trained_folder
from whet.errors import WhetError
from whet.launch import run
from whet.recipes.recipe import get_recipe


def test_at_its_limit_it_is_sft() -> None:
    limit = {"mix": 0, "gamma": 0, "train_embeddings": True}
    assert same(weights("ift", **limit), weights("sft", normalise="sequence"))
    assert same(weights("ift", **limit, normalise="token"), weights("sft"))
    for more in ({"mix": 0.5}, {"gamma": 0.9}, {"train_embeddings": False}):
        assert not same(weights("ift", **{**limit, **more}), weights("sft", normalise="sequence"))


@pytest.mark.parametrize("chosen", ["full", "lora"])
@pytest.mark.parametrize("form", ["product", "sum"])
def test_a_file_of_the_users(form: str, chosen: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run("ift", task=my_file(tmp_path), verifier="number", model=trained_folder("gemma2", "plain"), weights=chosen, out=out,
        steps=4, batch=48, warmup=0, lr=3e-3, form=form, noisy=True, ramp=0.5, **QUICK)  # fmt: skip
    losses = [json.loads(line)["nll"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]


def test_it_learns_the_lake() -> None:
    pytest.importorskip("gymnasium")
    done = run("ift", task="frozen-lake:level=1", model=trained_folder("gpt2", "plain"), steps=1, batch=4, **QUICK)
    assert done.summary["steps"] == 1


def test_arguments() -> None:
    entry = get_recipe("ift")
    assert entry().stages[0].updates[0].loss.describe() == "1 ift [sequence]"
    for wrong, said in (
        ({"mix": 1.2}, "share"), ({"ramp": -0.1}, "share of the steps"), ({"gamma": 2.0}, "between 0 and 1"),
        ({"form": "prod"}, "did you mean 'product'"), ({"mix": 0, "noisy": True}, "no effect"),
        ({"gamma": 0, "form": "sum"}, "no effect"),
    ):  # fmt: skip
        with pytest.raises(WhetError, match=said):
            entry(**wrong)
