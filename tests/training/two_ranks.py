"""What `test_ranks.py` looks at: run by torchrun in two processes, it does everything alone and then shared, and writes what
came of it to `FOLDER/rank-<rank>.json`.

    PYTHONPATH=src:tests torchrun --standalone --nproc-per-node 2 tests/training/two_ranks.py FOLDER
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from test_learner import OBJECTIVES, distance, gradient, setup

from trained import trained_policy
from whet.advantages import generalized_advantage, group_std
from whet.cli import main
from whet.errors import WhetError
from whet.launch import resume, run
from whet.models.policy import Policy
from whet.objectives import dpo, kl_to_reference, nll, policy_gradient, value_head, value_loss
from whet.objectives.forward import Context
from whet.objectives.objective import Term, as_objective
from whet.ranks import Ranks
from whet.rewards import accuracy
from whet.sources import Demonstrations, DropDead, Pairs, Rollouts
from whet.tasks import get_task
from whet.training.fit import Fit, Options
from whet.training.learner import Learner
from whet.training.optimizer import AdamW
from whet.training.stage import Stage, Update
from whet.weights import Lora

ONE_GROUP = {"sft": 1, "grpo": 4}  # so many rows make one group: the other rank then has no row at all


class Anchor(Term):
    """A parameter-space term: it must be counted once, not once a rank."""

    name = "anchor"
    normalise = "none"
    scope = "parameters"

    def total(self, ctx: Context) -> torch.Tensor:
        return sum((p**2).sum() for p in ctx.policy.trainable_parameters().values())  # type: ignore[return-value]


class Whole(Term):
    """Squares a sum over the batch, which must therefore stay together."""

    name = "whole"
    couples = "batch"

    def total(self, ctx: Context) -> torch.Tensor:
        ctx.log("seen", torch.tensor([float(len(ctx.rows))]))
        return ctx.forward("response").logprobs.sum() ** 2


def on(learner: Learner, ranks: Ranks) -> Learner:
    learner.ranks = learner.policy.ranks = ranks
    return learner


def gradients(ranks: Ranks) -> dict[str, Any]:
    """For each objective: how far the shared gradient is from that of one process, the metrics of both, and own rows."""
    found: dict[str, Any] = {}

    def compare(name: str, learner: Learner, rows: list[Any]) -> None:
        alone, metrics = gradient(on(learner, Ranks()), rows)
        shared, reduced = gradient(on(learner, ranks), rows)
        found[name] = {"distance": distance(alone, shared), "norm": float(alone.norm()), "alone": metrics,
                       "shared": reduced, "rows": len(learner._share(rows)), "all": len(rows)}  # fmt: skip

    for name in OBJECTIVES:
        learner, rows = setup(name, torch.float64)
        compare(name, learner, rows)
        if name in ONE_GROUP:
            compare(f"{name}, one group", learner, rows[: ONE_GROUP[name]])
    for name, term in (("anchored", as_objective(nll()) + 0.1 * Anchor()), ("whole batch", Whole())):
        learner, rows = setup("sft", torch.float64)
        learner.update = Update(term)
        compare(name, learner, rows)
    compare("sft lora", *setup("sft", torch.float64, Lora(4)))
    learner, rows = setup("sft", torch.float64)  # a parameter without any gradient stays without one
    frozen = next(iter(learner.parameters.values()))
    learner.parameters["spare"] = torch.nn.Parameter(torch.zeros(3, dtype=frozen.dtype))
    gradient(on(learner, ranks), rows)
    found["spare"] = learner.parameters["spare"].grad is None
    return found


def stages(kind: str) -> list[Stage]:
    update = Update(policy_gradient(), optimizer=AdamW(lr=1e-3))
    rollouts = {"collect": Rollouts(4), "steps": 3, "batch": 3, "reward": accuracy(), "advantage": group_std()}
    if kind == "sft":
        return [Stage(Demonstrations(), [Update(nll(), optimizer=AdamW(lr=1e-3))], steps=3, batch=5)]
    if kind == "grpo":
        return [Stage(updates=[update], **rollouts)]
    if kind == "dapo":
        token = Update(policy_gradient(normalise="token") + 0.1 * kl_to_reference(), optimizer=AdamW(lr=1e-3), epochs=2)
        return [Stage(updates=[token], gate=DropDead(), **rollouts)]
    if kind == "ppo":
        update = Update(policy_gradient() + 0.1 * value_loss(), optimizer=AdamW(lr=1e-3), epochs=2, minibatches=2)
        return [Stage(updates=[update], modules={"value": value_head},
                      **{**rollouts, "advantage": generalized_advantage()})]  # fmt: skip
    return [Stage(Pairs(16, 4, cap=1), [Update(dpo(), optimizer=AdamW(lr=1e-3))], steps=3, batch=4)]


def steps(ranks: Ranks) -> dict[str, Any]:
    """The same few steps alone and shared: weights, counts and the last line of metrics."""
    found: dict[str, Any] = {}
    for kind in ("sft", "grpo", "dapo", "ppo", "dpo"):
        policies: dict[str, Policy] = {}
        lines: dict[str, list[dict[str, Any]]] = {"alone": [], "shared": []}
        for how, who in (("alone", Ranks()), ("shared", ranks)):
            policy = policies[how] = trained_policy("gpt2", dtype=torch.float64)
            policy.ranks = who
            fit = Fit(policy, stages(kind), get_task("parity"), options=Options(seed=1))
            fit._note = lines[how].append  # type: ignore[assignment,method-assign]
            fit.run()
        ours, theirs = (torch.cat([p.detach().flatten() for _, p in policies[how].named_parameters()])
                        for how in ("alone", "shared"))  # fmt: skip
        start = torch.cat(
            [p.detach().flatten() for p in trained_policy("gpt2", dtype=torch.float64).model.parameters()]
        )
        moved = (ours[: len(start)] - start).norm()
        found[kind] = {"distance": float((ours - theirs).norm() / moved), **lines,
                       "meters": [policies[how].meter.as_dict() for how in ("alone", "shared")]}  # fmt: skip
    return found


def after(steps: int) -> Callable[[], bool]:
    count = iter(range(1, 1000))
    return lambda: next(count) >= steps


def runs(ranks: Ranks, folder: Path) -> None:
    """One run whole, one stopped and resumed; the model folder is the first rank's."""
    if ranks.first:
        trained_policy().save(folder / "start")
    ranks.broadcast(None)
    settings: dict[str, Any] = {"task": "parity", "model": str(folder / "start"), "test_n": 6, "validation_n": 6, "k": 2,
                                "others": [], "eval_every": 2, "steps": 4, "batch": 3, "group": 4}  # fmt: skip
    run("grpo", out=folder / "whole", **settings)
    # only one rank is told to stop, as by a signal
    run("grpo", out=folder / "halted", stop=after(2) if ranks.first else lambda: False, **settings)
    resume(folder / "halted")


def failure(ranks: Ranks, folder: Path) -> dict[str, Any]:
    """The command, with a verifier that fails on the second rank alone."""
    if ranks.first:
        rows = [{"prompt": f"{i}+1", "answer": str(i + 1)} for i in range(60)]
        (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        (folder / "bad.py").write_text(
            "import os\nfrom whet.errors import WhetError\nseen = []\n"
            "def verify(problem, response):\n    seen.append(1)\n"
            "    if os.environ['RANK'] == '1' and len(seen) > 64:\n        raise WhetError('the judge is out')\n"
            "    return response.answer == problem.answer\n")  # fmt: skip
    ranks.broadcast(None)
    said = io.StringIO()
    code: Any = 0
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            main(["run", "grpo", "steps=1", "batch=2", "--task", str(folder / "rows.jsonl"), "--model",
                  str(folder / "start"), "--verifier", f"{folder / 'bad.py'}:verify", "--test-n", "6", "--k", "0",
                  "--others", "none", "--out", str(folder / "failed")])  # fmt: skip
        except SystemExit as end:
            code = end.code
    return {"code": code, "said": said.getvalue()}


def apart(ranks: Ranks) -> str:
    """Ranks that no longer learn from the same rows are told so."""
    learner, rows = setup("sft", torch.float32)
    try:
        on(learner, ranks).step(rows[: 3 + ranks.rank], 0, "here")
    except WhetError as problem:
        return str(problem)
    return ""


if __name__ == "__main__":
    torch.set_num_threads(1)
    place = Path(sys.argv[1])
    os.environ["WHET_HOME"] = str(place / "home")
    here = Ranks.here()
    report: dict[str, Any] = {"gradients": gradients(here), "steps": steps(here), "apart": apart(here)}
    runs(here, place)
    report["failure"] = failure(here, place)
    (place / f"rank-{here.rank}.json").write_text(json.dumps(report))
