"""sft: what is learnt, on every kind of model, from a user's own file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM

from tiny import KINDS
from trained import trained_folder, trained_policy
from whet.launch import run
from whet.models.base import load
from whet.recipes.recipe import get_recipe
from whet.sources import Scope, Uniform
from whet.tasks import get_task
from whet.training.learner import Learner
from whet.training.optimizer import Rate
from whet.weights import Weights

STYLES = {"llama": "chat", "qwen2": "plain", "qwen3": "tags", "mistral": "chat", "gemma2": "plain", "gpt2": "plain"}
QUICK: dict[str, Any] = {"test_n": 3, "validation_n": 3, "k": 0, "others": [], "eval_every": 0}


def my_file(folder: Path) -> str:
    """A user's file: a question, a number, for some rows a rationale."""
    rows = [{"prompt": f"What is {n} + {n}?", "answer": 2 * n, **({"rationale": f"{n}+{n}={2 * n}"} if n % 2 else {})}
            for n in range(60)]  # fmt: skip
    path = folder / "my.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("weights", ["full", "lora"])
@pytest.mark.parametrize("kind", KINDS)
def test_any_model_folder_learns_a_file(kind: str, weights: str, tmp_path: Path) -> None:
    """`whet run sft --task my.jsonl --verifier number --model FOLDER`"""
    out, source = tmp_path / "run", trained_folder(kind, STYLES[kind])
    done = run("sft", task=my_file(tmp_path), verifier="number", model=source, weights=weights, out=out, steps=4,
               batch=48, warmup=0, lr=3e-3, **QUICK)  # fmt: skip
    losses = [json.loads(line)["loss/nll"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 4 and losses[-1] < losses[0]
    assert done.policy.format.style == STYLES[kind]
    probe = torch.arange(2, 60)[None]
    plain: Any = AutoModelForCausalLM if weights == "full" else AutoPeftModelForCausalLM
    with torch.no_grad():
        ours = done.policy.logits(probe)
        theirs = plain.from_pretrained(out / "model")(input_ids=probe).logits
        assert torch.equal(ours, theirs) and not torch.equal(ours, load(source).logits(probe))
    assert done.summary["before"]["accuracy"]["n"] == 3 and set(done.summary) == {
        "recipe", "task", "model", "seed", "steps", "best_step", "before", "after", "others", "suite", "compute"
    }  # fmt: skip


def test_the_loss_is_the_mean_over_all_learnt_tokens_of_the_batch() -> None:
    """Against a plain full forward of each sequence on its own."""
    policy = trained_policy()
    (stage,) = get_recipe("sft")().stages
    task, source = get_task("parity:level=1-2"), Uniform()
    source.bind(task, 1)
    rows = stage.collect.rows(source, 5, policy, Scope(task, 0))
    weights = Weights()
    weights.attach(policy, 0)
    learner = Learner(stage.updates[0], {"policy": policy}, weights, steps=1, token_budget=30)
    found = learner.accumulate(rows, 0)
    total = count = 0.0
    with torch.no_grad():
        for row in rows:
            sample = row["response"]
            ids = torch.tensor(sample.ids)
            logprobs = policy.logits(ids[None])[0].log_softmax(-1)
            start = sample.prompt_length
            total -= float(logprobs[start - 1 : -1].gather(-1, ids[start:, None]).sum())
            count += len(ids) - start
    assert found["loss/nll"] == pytest.approx(total / count, rel=1e-5)
    assert found["learnt_tokens"] == count


def test_defaults() -> None:
    entry = get_recipe("sft")
    (stage,) = entry(schedule="linear", warmup="3", weight_decay=0.1).stages
    optimizer = stage.updates[0].optimizer
    assert optimizer.lr == Rate(small=5e-4, paper=1e-5)
    assert (optimizer.rate(2_000_000), optimizer.rate(600_000_000)) == (5e-4, 1e-5)
    assert (optimizer.schedule, optimizer.warmup, optimizer.weight_decay) == ("linear", 3.0, 0.1)
    assert stage.updates[0].loss.describe() == "1 nll [token]"
    assert stage.needs() == {"demonstrations"} and not stage.wants()
    assert optimizer.scale(0, 10) == pytest.approx(0.25) and optimizer.scale(2, 10) == pytest.approx(0.75)
