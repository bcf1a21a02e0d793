"""masked-thought: sft with holes in its input, in training alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from test_asft import same, weights
from test_sft import QUICK

from trained import trained_folder, trained_policy
from whet.errors import WhetError
from whet.launch import resume, run
from whet.objectives.masking import NOISES, Masked, mask_id
from whet.recipes.recipe import get_recipe


def my_file(folder: Path) -> str:
    """A user's file in which every row has a rationale."""
    path = folder / "mine.jsonl"
    rows = [{"prompt": f"What is {n} + {n}?", "answer": 2 * n, "rationale": f"{n}+{n}={2 * n}"} for n in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_no_holes_is_sft_bit_for_bit() -> None:
    sft = weights("sft")
    assert same(weights("masked-thought", p=0), sft)
    assert not same(weights("masked-thought", p=0.5, ramp=0), sft)
    late, plain = weights("masked-thought", steps=1, p=0.9), weights("sft", steps=1)  # the ratio starts at 0
    assert all(torch.allclose(late[n], plain[n], atol=1e-6) for n in plain)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("chosen", ["full", "lora"])
def test_every_noise_learns_a_file_of_the_users(noise: str, chosen: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run("masked-thought", task=my_file(tmp_path), verifier="number", model=trained_folder("qwen2", "plain"), weights=chosen,
        out=out, steps=4, batch=48, warmup=0, lr=3e-3, noise=noise, p=0.2, **QUICK)  # fmt: skip
    losses = [json.loads(line)["loss/nll"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]


def test_evaluation_and_sampling_see_no_holes(monkeypatch) -> None:
    """Holes are made as often as there are micro-batches with a ratio above 0, and never else."""
    made = []
    see = Masked.see
    monkeypatch.setattr(Masked, "see", lambda self, *a: made.append(self.p) or see(self, *a))
    weights("masked-thought", steps=4, p=0.5, ramp=0.5, eval_every=1)
    assert made == pytest.approx([0.5 / 3, 1 / 3, 0.5])


def test_a_resumed_run_has_the_same_holes(tmp_path: Path) -> None:
    settings = {**QUICK, "model": trained_folder(), "task": "parity", "steps": 6, "batch": 4, "p": 0.5}
    whole = run("masked-thought", out=tmp_path / "whole", **settings).policy.model.state_dict()
    count = iter(range(1, 100))
    run("masked-thought", out=tmp_path / "cut", stop=lambda: next(count) >= 3, **settings)
    assert same(resume(tmp_path / "cut").policy.model.state_dict(), whole)


def test_a_budget_is_the_schedules_clock() -> None:
    assert not same(weights("masked-thought", p=0.9, budget="steps:3"), weights("sft", budget="steps:3"))


def test_refusals(tmp_path: Path, monkeypatch) -> None:
    entry = get_recipe("masked-thought")
    for wrong, said in (
        ({"p": 1.5}, "probability"), ({"ramp": 2.0}, "share of the steps"), ({"rationale": False}, "no thought"),
        ({"temperature": 1.0}, "noise=sample"), ({"noise": "sample", "temperature": 0.0}, "above 0"),
        ({"noise": "masks"}, "did you mean 'mask'"),
    ):  # fmt: skip
        with pytest.raises(WhetError, match=said):
            entry(**wrong)
    path = tmp_path / "bare.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{n}?", "answer": n}) + "\n" for n in range(60)))
    with pytest.raises(WhetError, match=r"needs rationales and task .* provide rows with a `rationale`"):
        run("masked-thought", task=str(path), verifier="number", model=trained_folder(), **QUICK)
    monkeypatch.setattr("whet.objectives.masking.mask_id", lambda policy: (_ for _ in ()).throw(WhetError("no token")))
    with pytest.raises(WhetError, match="no token"):  # before anything is trained or written
        run("masked-thought", task="parity", model=trained_folder(), out=tmp_path / "run", **QUICK)
    assert not (tmp_path / "run").exists()


def test_the_hole_of_the_shipped_base() -> None:
    from whet.models.base import load

    base = load()
    assert base.tokenizer.convert_ids_to_tokens(mask_id(base)) == "<mask>"
    assert mask_id(trained_policy()) == 0
