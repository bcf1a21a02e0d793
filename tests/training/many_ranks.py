"""What `test_shards.py` looks at: run by torchrun in several processes. Each rank does everything alone, shared, and shared with the
model cut, and writes what came of it to `FOLDER/<size>-<rank>.json`.

    PYTHONPATH=src:tests torchrun --standalone --nproc-per-node 2 tests/training/many_ranks.py FOLDER
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from test_ranks import OWN
from two_ranks import after

from trained import trained_policy
from whet.errors import WhetError
from whet.launch import resume, run
from whet.models import norms
from whet.models.policy import Policy
from whet.models.sharded import DTensor, Sharded
from whet.objectives.forward import Context
from whet.objectives.objective import Term
from whet.ranks import Ranks
from whet.recipes.recipe import get_recipe
from whet.records import Row
from whet.sources import Demonstrations, Scope, Uniform
from whet.tasks import get_task
from whet.training.fit import Fit, Options
from whet.training.learner import Learner
from whet.training.stage import Update
from whet.weights import get_weights

ROLLOUTS = {"batch": 3, "group": 4, "steps": 3}
RECIPES: dict[str, dict[str, Any]] = {
    "sft": {"batch": 7, "steps": 3}, "dpo": {"batch": 5, "steps": 3, "problems": 16, "samples": 4},
    "grpo": {**ROLLOUTS, "kl": 0.1}, "relift": ROLLOUTS, "lift": {"batch": 7, "steps": 3},
}  # fmt: skip
RUNS = {"sft": "lora:rank=4", "grpo": "full", "ppo": "full", "lift": "full", "sft lisa": "lisa:blocks=1,period=1",
        "sft carry": "full"}  # fmt: skip
TOKENS = 60  # few enough for several micro-batches, not as many on each rank
KINDS = {"fp64": torch.float64, "fp32": torch.float32, "mixed": torch.bfloat16}
SETTINGS: dict[str, Any] = {"task": "parity", "test_n": 4, "validation_n": 4, "k": 0, "others": [], "eval_every": 2, "steps": 4,
                            "batch": 6, "dtype": "float64", "shard": True, "threads": 1}  # fmt: skip


def tiny(dtype: torch.dtype) -> Policy:
    """In bf16 it is mixed: bf16 products over fp32 weights."""
    if dtype == torch.bfloat16:
        policy = trained_policy("qwen3")
        policy.mixed = True
        norms.lighten(policy.model)
        return policy
    return trained_policy("gpt2" if dtype == torch.float64 else "qwen3", dtype=dtype)


def gradient(learner: Learner, rows: list[Row]) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """The masked gradient, whole, by name."""
    with learner.shards.learning() if learner.shards else contextlib.nullcontext():
        found = learner.accumulate(rows, 0, "here")
        learner.weights.mask(learner.parameters)
        grads = {n: p.grad for n, p in learner.parameters.items() if p.grad is not None}
        whole = {n: (g.full_tensor() if isinstance(g, DTensor) else g).double() for n, g in grads.items()}
    return whole, found


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys(), one.keys() ^ other.keys()
    a, b = (torch.cat([found[n].flatten() for n in one]) for found in (one, other))
    assert a.norm() > 1e-4
    return float((a - b).norm() / a.norm())


def gradients(ranks: Ranks, recipe: str, dtype: torch.dtype) -> dict[str, Any]:
    """Of the rows of a recipe's first step, for each of its updates: how far the shared and the cut gradient are from the lone one."""
    policy, task = tiny(dtype), get_task("parity:level=1-2")
    fit = Fit(policy, get_recipe(recipe)(**RECIPES[recipe]).stages, task)
    recorded = fit.first_rows()
    for i, row in enumerate(recorded):  # or most groups are dead, and one rank has all of the gradient
        for sample in row.all():
            if "advantage" in sample.per_token:
                sample.per_token["advantage"] = sample.per_token["advantage"] + (-1) ** i * (1 + i % 3) / 3
    problems = Uniform()
    problems.bind(task, 0)
    demonstrations = Demonstrations().rows(problems, 5, policy, Scope(task, 0))
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():  # away from the policy that made the rows
        for p in policy.model.parameters():
            p += 0.02 * torch.randn(p.shape, generator=draw, dtype=p.dtype)
    weights, found = fit._stage_weights(fit.stages[0]), {}
    policy.ranks = ranks
    shards = Sharded(policy)
    for update, learner in zip(fit.stages[0].updates, fit.learners, strict=True):
        rows = recorded if update.rows == "rows" else demonstrations
        learner.token_budget, policy.ranks, learner.ranks = TOKENS, Ranks(), Ranks()
        alone, losses = gradient(learner, rows)
        policy.ranks = learner.ranks = ranks
        shared, both = gradient(learner, rows)
        cut = Learner(update, fit.policies, weights, steps=10, token_budget=TOKENS, temperature=learner.temperature,
                      budget=learner.budget, shards=shards)  # fmt: skip
        parts, three = gradient(cut, rows)
        named = [k for k in losses if k.startswith("loss/")]
        near = all(abs(losses[k] - other[k]) < 1e-5 * (1 + abs(losses[k])) for other in (both, three) for k in named)
        found[update.rows] = {"shared": distance(alone, shared), "cut": distance(alone, parts), "losses": near,
                              "micros": len(policy.micro_batches(learner._share(rows), TOKENS))}  # fmt: skip
    return found


def steps(ranks: Ranks, kind: str) -> dict[str, Any]:
    """The same few steps alone and cut: how far the weights are from one another, and what the ranks hold."""
    recipe = kind.split()[0]
    arguments = {**(RECIPES["sft"] if recipe in ("sft", "lift") else ROLLOUTS), "lr": 1e-3}
    policies, lines, bytes_of = {}, {}, {}
    for how, who in (("alone", Ranks()), ("cut", ranks)):
        policy = policies[how] = trained_policy("gpt2", dtype=torch.float64)
        policy.ranks = who
        if recipe == "lift":
            arguments["refresh"] = 2
        stages = get_recipe(recipe)(**arguments).stages
        if kind == "sft carry":  # two stages, the second with the moments of the first
            stages.append(replace(get_recipe(recipe)(**arguments).stages[0], name="again", carry=True))
        fit = Fit(
            policy, stages, get_task("parity"), weights=get_weights(RUNS[kind]), options=Options(seed=1, shard=True)
        )
        lines[how] = []
        fit._note = lines[how].append  # type: ignore[method-assign,assignment]
        fit.run()
        bytes_of[how] = [policy.meter.optimizer_bytes, policy.meter.gradient_bytes, policy.meter.trained]
    assert fit.shards is not None and bytes_of["cut"] != bytes_of["alone"]
    every = {how: torch.cat([p.detach().flatten() for _, p in policies[how].named_parameters()]) for how in policies}
    start = torch.cat([p.detach().flatten() for p in trained_policy("gpt2", dtype=torch.float64).model.parameters()])
    adapters = len(every["alone"]) != len(start) and recipe == "sft"
    moved = every["alone"].norm() if adapters else (every["alone"][: len(start)] - start).norm()
    names = lines["alone"][-1].keys() - OWN - {"warnings"}
    apart = [n for a, b in zip(lines["alone"], lines["cut"], strict=True) for n in names
             if abs(a[n] - b[n]) > 1e-6 * (1 + abs(a[n]))]  # fmt: skip
    return {"distance": float((every["alone"] - every["cut"]).norm() / moved), "apart": apart, "bytes": bytes_of}


def runs(ranks: Ranks, folder: Path) -> None:
    """On two ranks: a run whole, one stopped and resumed, and copies of it for other numbers of ranks."""
    if ranks.first:
        trained_policy("gpt2").save(folder / "start")
    ranks.broadcast(None)
    both = {"sft": {}, "lift": {"refresh": 1}}
    for name, more in both.items():
        settings = {**SETTINGS, "model": str(folder / "start"), **more}
        run(name, out=folder / f"{name}-whole", **settings)
        run(name, out=folder / f"{name}-halted", stop=after(2), **settings)
        if ranks.first:
            for size in (1, 4):
                shutil.copytree(folder / f"{name}-halted", folder / f"{name}-on-{size}")
        ranks.broadcast(None)
        resume(folder / f"{name}-halted")


def left_out(ranks: Ranks) -> dict[str, Any]:
    """A batch of which one rank's loss is infinite is left out by all, and the whole policy is back as it was."""
    policy = trained_policy("gpt2", dtype=torch.float64)
    policy.ranks = ranks
    fit = Fit(
        policy,
        get_recipe("grpo")(**ROLLOUTS).stages,
        get_task("parity"),
        options=Options(shard=True, on_nonfinite="skip"),
    )
    rows = fit.first_rows()
    rows[0]["response"].per_token["advantage"].fill_(float("inf"))
    before = torch.cat([p.detach().flatten() for p in policy.model.parameters()])
    found = fit.learners[0].step(rows, 0, "here")
    after = torch.cat([p.detach().flatten() for p in policy.model.parameters()])
    return {"found": found, "same": torch.equal(before, after), "said": fit.learners[0].said()}


class Anchor(Term):
    name, scope, normalise = "anchor", "parameters", "none"  # type: ignore[misc]

    def total(self, ctx: Context) -> torch.Tensor:
        raise AssertionError("it was to be refused")


def refused(ranks: Ranks) -> list[str]:
    """What cannot be cut says so on each rank, before a step."""
    said = []
    policy = trained_policy("gpt2")
    policy.ranks = ranks
    hooked = policy.model.transformer.h[0].register_forward_hook(lambda *_: policy and None)  # it remembers the policy
    (stage,) = get_recipe("sft")(steps=1).stages
    anchored = get_recipe("sft")(steps=1).stages
    anchored[0].updates = [Update(stage.updates[0].loss + 0.1 * Anchor())]
    for stages, weights in ((anchored, "full"), ([stage], "adalora"), ([stage], "full")):
        try:
            Fit(policy, stages, get_task("parity"), weights=get_weights(weights), options=Options(shard=True)).run()
        except WhetError as problem:
            said.append(str(problem))
    hooked.remove()
    return said


if __name__ == "__main__":
    torch.set_num_threads(1)
    place = Path(sys.argv[1])
    os.environ["WHET_HOME"] = str(place / "home")
    here = Ranks.here()
    report: dict[str, Any] = {
        "gradients": {f"{r} {k}": gradients(here, r, dtype) for r in RECIPES for k, dtype in KINDS.items()},
        "refused": refused(here),
    }  # fmt: skip
    if here.size == 2:
        report["left out"] = left_out(here)
        report["steps"] = {kind: steps(here, kind) for kind in RUNS}
        runs(here, place)
    else:
        for name in ("sft", "lift"):
            resume(place / f"{name}-on-4")
    (place / f"{here.size}-{here.rank}.json").write_text(json.dumps(report))
