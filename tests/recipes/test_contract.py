"""What every registered recipe must do; a new one gets these tests by being registered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from trained import trained_folder
from whet.config import RunConfig
from whet.errors import WhetError
from whet.launch import Result, resume, run
from whet.models.base import load
from whet.models.policy import Policy
from whet.recipes.recipe import get_recipe, recipes
from whet.sampling.sampler import SamplingSettings
from whet.sources import ask
from whet.tasks import get_task

RECIPES = [name for name in recipes() if name != "pretrain"]  # which makes a base; pinned by its own file
# (weights, architecture, style of the format)
MODELS = (("full", "qwen3", "tags"), ("lora:rank=4", "gpt2", "plain"))
ROOM: dict[str, Any] = {"max_position_embeddings": 512}  # for rows that hold a solution and what is said about it
QUICK: dict[str, Any] = {"test_n": 4, "validation_n": 4, "k": 0, "others": [], "eval_every": 0}
# an argument of one of these names is made small, whatever the recipe
SMALL: dict[str, Any] = {
    "steps": 2, "batch": 4, "group": 4, "number": 2, "growth": 1.0, "questions": 24, "problems": 24, "samples": 4,
    "temperature": 1.0, "minibatches": 2, "epochs": 1, "limit": 24, "rows": 12, "sae_steps": 2,
    "recipient_steps": 2, "recipient_rows": 12, "sft_steps": 2,
    "sets": "parity;parity:level=2", "tasks": "parity;parity:level=2", "pool": 24,
}  # fmt: skip


def arguments(name: str) -> dict[str, Any]:
    known = get_recipe(name).arguments
    own = {k: v for k, v in SMALL.items() if k in known and isinstance(known[k].default, int | float | str)}
    if "warm" in known and known["warm"].default:
        own["warm"] = 2
    if own.get("group") and known["group"].default == 1:
        own["group"], own["batch"] = 1, 8
    return own


def suited(name: str) -> str:
    """A task that has what the recipe needs."""
    needs = set().union(*(stage.needs() for stage in get_recipe(name)(**arguments(name)).stages))
    missing = needs - get_task("parity").provides()
    assert not missing, f"recipe '{name}' needs {sorted(missing)}: extend the task of these tests"
    return "parity"


def launch(name: str, out: Path, weights: str, kind: str, style: str, **more: Any) -> Result:
    settings = {**QUICK, "model": trained_folder(kind, style, **ROOM), "weights": weights, "task": suited(name)}
    return run(name, out=out, **settings, **arguments(name), **more)


def numbers(folder: Path) -> list[dict[str, Any]]:
    """What was told of the steps, clocks aside."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in rows]


def own_answers(policy: Policy, n: int = 6) -> list[list[int]]:
    """Token ids of greedy answers, prompt included, as Whet samples them."""
    problems = get_task("parity").problems("test", n, seed=9)
    settings = SamplingSettings(max_new_tokens=12, temperature=0.0)
    return [samples[0].ids for samples in ask(policy, problems, settings, 1, 0)]


def plain_answers(model: Any, policy: Policy, n: int = 6) -> list[list[int]]:
    """The same by `generate` of a model that plain transformers (or PEFT) loaded."""
    found = []
    for problem in get_task("parity").problems("test", n, seed=9):
        ids = torch.tensor([[i for s in policy.format.prompt(problem) for i in s.ids]])
        eos = policy.format.eos_id
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False,
                             eos_token_id=eos, pad_token_id=eos)  # fmt: skip
        found.append(out[0].tolist())
    return found


@pytest.mark.parametrize(("weights", "kind", "style"), MODELS, ids=[m[0][:4] for m in MODELS])
@pytest.mark.parametrize("name", RECIPES)
def test_it_trains_saves_loads_and_resumes(name: str, weights: str, kind: str, style: str, tmp_path: Path) -> None:
    if weights != "full" and any(stage.weights for stage in get_recipe(name)(**arguments(name)).stages):
        with pytest.raises(WhetError, match="says itself which weights move"):
            launch(name, tmp_path / "whole", weights, kind, style)
        return
    done = launch(name, tmp_path / "whole", weights, kind, style)
    assert done.progress.finished
    folder = tmp_path / "whole" / "model"
    before = load(trained_folder(kind, style, **ROOM))

    # it learnt: the parameters moved
    rows = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert any(row.get("learnt_tokens", 0) > 0 and row["grad_norm"] > 0 for row in rows), "no step learnt anything"
    policy = load(folder)
    probe = torch.arange(2, 40)[None]
    with torch.no_grad():
        moved = (policy.logits(probe) - before.logits(probe)).abs().max()
        assert torch.equal(policy.logits(probe), done.policy.logits(probe)), "what is saved is not what was trained"
    assert float(moved) > 0

    # plain libraries load the folder, and answer alike
    AutoTokenizer.from_pretrained(folder)
    adapted = done.policy.peft is not None  # where weights are full it is the recipe that says so
    plain: Any = AutoPeftModelForCausalLM if adapted else AutoModelForCausalLM
    assert (folder / "adapter_config.json").exists() == adapted and (adapted or weights == "full")
    assert own_answers(done.policy) == own_answers(policy) == plain_answers(plain.from_pretrained(folder), policy)

    # k + k steps are 2k steps, in weights and in what is told of them
    step, half = iter(range(1, 100)), max(1, done.progress.total // 2)
    halted = launch(name, tmp_path / "halted", weights, kind, style, stop=lambda: next(step) >= half)
    assert halted.progress.total == half and not halted.progress.finished
    resumed = resume(tmp_path / "halted")
    assert resumed.progress == done.progress
    assert numbers(tmp_path / "halted") == numbers(tmp_path / "whole")
    ours, theirs = dict(done.policy.named_parameters()), dict(resumed.policy.named_parameters())
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


@pytest.mark.parametrize("name", RECIPES)
def test_two_runs_with_one_seed_are_equal_and_with_another_are_not(name: str) -> None:
    settings = {**QUICK, "model": trained_folder(**ROOM), "task": suited(name), **arguments(name)}
    first, again, other = (run(name, seed=seed, **settings).policy.model.state_dict() for seed in (4, 4, 5))
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert any(not torch.equal(first[n], other[n]) for n in first)


@pytest.mark.parametrize("name", sorted(recipes()))
def test_it_refuses_what_it_does_not_know(name: str) -> None:
    entry = get_recipe(name)
    argument = next(iter(entry.arguments))
    with pytest.raises(WhetError, match=f"unknown argument of recipe '{entry.name.replace('+', '[+]')}' '{argument}x'"):
        entry(**{f"{argument}x": 1})
    for given in entry.arguments.values():
        if given.type in ("int", "float", "bool"):
            with pytest.raises(WhetError, match=f"{given.name} is "):
                entry(**{given.name: "many"})
            break


@pytest.mark.parametrize("name", sorted(recipes()))
def test_it_is_documented(name: str) -> None:
    """`whet show` prints these."""
    entry = get_recipe(name)
    assert entry.summary.endswith((".", ")"))
    undocumented = [a.name for a in entry.arguments.values() if not a.help]
    assert not undocumented
    hides = entry.arguments.keys() & RunConfig.model_fields.keys()
    assert not hides, "a setting of every run could not be given beside an argument of the same name"
    for stage in entry().stages if name != "pretrain" else ():
        stage.check()
        assert stage.describe()


@pytest.mark.parametrize("name", RECIPES)
def test_it_refuses_a_task_that_lacks_what_it_needs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = get_recipe(name)(**arguments(name))
    task = get_task("parity")
    have = task.provides() | {"preferences"}
    for need in sorted({need for stage in recipe.stages for need in stage.needs()}):
        monkeypatch.setattr(type(task), "provides", lambda self, need=need: have - {need})
        with pytest.raises(WhetError, match=f"needs {need} and task 'parity' has none: provide rows with"):
            recipe.check(task)


COMBINED = (("grpo", "lift"), ("asft", "hft"), ("relift", "lora"), ("lt-sft", "full"))


@pytest.mark.parametrize(("name", "weights"), COMBINED)
def test_methods_combine_with_weights(name: str, weights: str, tmp_path: Path) -> None:
    """Any loss with any weights: what is chosen moves, the model is loaded as any other, and LT-SFT trains sec's curriculum."""
    more: dict[str, Any] = {"method": "sec:group=4", "density": 0.1} if name == "lt-sft" else {}
    settings = {**QUICK, "model": trained_folder("qwen3", "tags", **ROOM), "weights": weights, "task": "parity"}
    done = run(name, out=tmp_path / "run", **settings, **{**arguments(name), "lr": 1e-2, **more})
    before, now = load(settings["model"]).model.state_dict(), load(tmp_path / "run" / "model").model.state_dict()
    changed = {n: now[n] != before[n] for n in before if n in now}
    share = sum(int(c.sum()) for c in changed.values()) / sum(c.numel() for c in changed.values())
    assert share > 0 if weights != "lora" else share == 0 and done.policy.peft is not None
    if weights == "lift":
        assert share <= 0.05 and not bool(changed["model.embed_tokens.weight"].any())
    if weights == "hft":
        still = [n for n, c in changed.items() if "proj" in n and not bool(c.any())]
        assert 0 < len(still) < sum("proj" in n for n in changed)
    if name == "lt-sft":
        assert share <= 0.1 and done.summary["recipe"] == "lt-sft"
