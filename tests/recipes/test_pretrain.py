"""pretrain: a mixture from the command line, and a new model that learns from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tiny import tiny_tokenizer
from trained import Parity
from whet.errors import WhetError
from whet.models import base
from whet.recipes.recipe import get_recipe
from whet.runs import RunFolder
from whet.sources import Mixture, Part
from whet.tasks import get_task
from whet.training.fit import Fit, Options


def test_a_mixture_is_read_from_text() -> None:
    (stage,) = get_recipe("pretrain")(mixture="parity:level=2*3~0.35;parity").stages
    assert isinstance(stage.problems, Mixture)
    first, second = stage.problems.parts
    assert isinstance(first.task, Parity) and first.task.chosen == (2,)
    assert (first.share, first.worked, first.reliability) == (3.0, 0.35, 1.0)
    assert (second.share, second.worked) == (1.0, 1.0)
    with pytest.raises(WhetError, match="unknown task 'pairity'"):
        get_recipe("pretrain")(mixture="pairity")


def test_a_new_model_learns_the_mixture(tmp_path: Path) -> None:
    """Documents are learnt whole; the prompt's tokens weigh a tenth but count."""
    policy = base.create(tiny_tokenizer("tags"), hidden=32, layers=2, heads=4, kv_heads=2, inner=64, seed=1)
    again = base.create(tiny_tokenizer("tags"), hidden=32, layers=2, heads=4, kv_heads=2, inner=64, seed=1)
    ours, theirs = policy.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)
    recipe = get_recipe("pretrain")(parts=[Part(get_task("parity"), worked=0.5)], steps=25, batch=16, lr=1e-2)
    folder = RunFolder(tmp_path)
    Fit(policy, recipe.stages, get_task("parity"), options=Options(seed=1, keep="last"), folder=folder).run()
    losses = [json.loads(line)["loss/nll"] for line in folder.metrics.read_text().splitlines()]
    assert losses[0] > 2 and losses[-1] < 0.5 * losses[0]
    policy.save(tmp_path / "model")
    loaded = base.load(tmp_path / "model")
    assert loaded.format.style == "tags" and type(loaded.model).__name__ == "Qwen3ForCausalLM"
    probe = torch.arange(2, 20)[None]
    assert torch.equal(loaded.logits(probe), policy.logits(probe))
