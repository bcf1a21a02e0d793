"""sec: with one category it is grpo, bit for bit; its bandit hears every group; and a resumed run is the same run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from trained import trained_folder, trained_policy
from whet.errors import WhetError
from whet.launch import resume, run
from whet.recipes.recipe import get_recipe
from whet.runs import RunFolder
from whet.sources import Bandit, Ordered, Uniform
from whet.tasks import get_task
from whet.training.fit import Fit, Options
from whet.training.stage import Stage

SMALL: dict[str, Any] = {"steps": 3, "batch": 4, "group": 4, "lr": 1e-3, "warmup": 0}
QUICK: dict[str, Any] = {"test_n": 4, "validation_n": 4, "k": 0, "others": [], "eval_every": 0}


def stage_of(name: str, **arguments: Any) -> Stage:
    (stage,) = get_recipe(name)(**{**SMALL, **arguments}).stages
    return stage


def trained(stage: Stage, task: str, folder: Path | None = None) -> dict[str, torch.Tensor]:
    policy = trained_policy()
    Fit(policy, [stage], get_task(task), options=Options(), folder=RunFolder(folder) if folder else None).run()
    return policy.model.state_dict()


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_one_category_and_the_random_order_are_grpo(limit: int = 10) -> None:
    plain = trained(stage_of("grpo", problems=Uniform(limit=limit)), "parity")
    assert equal(trained(stage_of("sec", limit=limit), "parity"), plain)
    assert not equal(trained(stage_of("sec", limit=limit, by="n"), "parity"), plain), "a category for each number"
    assert equal(trained(stage_of("sec", limit=limit, order="random"), "parity"), plain)


def test_the_orders() -> None:
    assert type(stage_of("sec").problems) is Bandit and type(stage_of("sec", order="random").problems) is Uniform
    for order, hardest in (("easy-to-hard", False), ("hard-to-easy", True)):
        problems = stage_of("sec", order=order).problems
        assert isinstance(problems, Ordered) and problems.hardest == hardest and problems.total == 12
    (stage,) = get_recipe("sec")().stages
    bandit = stage.problems
    assert isinstance(bandit, Bandit)
    assert (bandit.rate, bandit.temperature, bandit.rule, bandit.signal, bandit.decay_unvisited) == (
        0.5, 1.0, "softmax", "advantage", False)  # fmt: skip


def test_the_bandit_hears_groups_that_the_gate_drops(tmp_path: Path) -> None:
    """Every group of a step is told, dead ones with |A| = 0, or each category would look equally good."""
    heard: list[int] = []
    stage = stage_of("sec", dynamic=True, by="level", steps=2)
    assert isinstance(stage.problems, Bandit)
    observe = stage.problems.observe
    stage.problems.observe = lambda rows: (heard.append(len(rows)), observe(rows))[1]  # type: ignore[method-assign]
    trained(stage, "parity:level=1-2", tmp_path)
    rows = [line for line in RunFolder(tmp_path).read_metrics() if "answers" in line]
    assert sum(heard) == sum(line["answers"] for line in rows) > 2 * 16
    assert any(line["dead_groups"] > 0 for line in rows)
    last = rows[-1]
    assert last["problems/share/level-1"] + last["problems/share/level-2"] == pytest.approx(1.0)
    assert 1 < last["problems/level"] < 2 and last["problems/value/level-1"] > 0


def test_a_resumed_run_is_the_run_that_was_not_stopped(tmp_path: Path) -> None:
    settings = {**QUICK, **SMALL, "model": trained_folder(), "task": "parity:level=1-2", "by": "level", "tau": 0.2}
    whole = run("sec", out=tmp_path / "whole", **settings)
    run("sec", out=tmp_path / "halted", stop=lambda: True, **settings)
    resume(tmp_path / "halted", stop=lambda: True)
    done = resume(tmp_path / "halted")
    assert done.progress == whole.progress and equal(done.policy.model.state_dict(), whole.policy.model.state_dict())

    def lines(name: str) -> list[dict[str, Any]]:
        return [{k: v for k, v in line.items() if not k.startswith("seconds")}
                for line in RunFolder(tmp_path / name).read_metrics()]  # fmt: skip

    assert lines("halted") == lines("whole")


def test_what_cannot_be_is_refused() -> None:
    for arguments, says in (
        ({"order": "easy-first"}, "order"),
        ({"order": "random", "tau": 0.3}, "tau is the bandit's"),
        ({"order": "easy-to-hard", "by": "level", "rate": 0.1}, "by, rate is the bandit's"),
        ({"advantage": "batch-whiten"}, "use signal=accuracy"),
        ({"limit": 4, "problems": Uniform()}, "give one"),
        ({"tua": 1}, "did you mean 'tau'"),
    ):
        with pytest.raises(WhetError, match=says):
            stage_of("sec", **arguments)
    assert stage_of("sec", advantage="batch-whiten", signal="accuracy")
