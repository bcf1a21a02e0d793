"""A stream of tasks: one task is a plain run, each stage is about its own task, all are measured after each, and it resumes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from trained import trained_folder, trained_policy
from whet.errors import WhetError
from whet.evaluation.evaluate import Evaluator, Plan
from whet.launch import resume, run
from whet.models.policy import Policy
from whet.recipes.recipe import get_recipe
from whet.sources import Filtered, Uniform
from whet.tasks import Task, get_task
from whet.training.fit import Fit, Options
from whet.training.sequence import read_tasks, sequence
from whet.training.stage import Stage

TASKS = "parity;parity:level=2"
RL: dict[str, Any] = {"steps": 2, "batch": 3, "group": 4, "pool": 16, "samples": 2}
QUICK: dict[str, Any] = {
    "task": "parity",
    "test_n": 6,
    "validation_n": 4,
    "k": 0,
    "others": [],
    "others_n": 5,
    "eval_every": 0,
}


def after(steps: int) -> Callable[[], bool]:
    count = iter(range(1, 1000))
    return lambda: next(count) >= steps


def trained(stages: list[Stage], **more: Any) -> Policy:
    policy = trained_policy()
    Fit(policy, stages, get_task("parity"), **more).run()
    return policy


def equal(a: Policy, b: Policy) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.model.parameters(), b.model.parameters(), strict=True))


# -- one task --------------------------------------------------------------------------------------------------------
def test_one_task_is_a_plain_run() -> None:
    """Test 4: bit for bit, reinforced and supervised."""
    plain = {"steps": 3, "batch": 3}
    grpo = trained(get_recipe("grpo")(**plain, group=4, kl=0.1).stages)
    assert equal(
        grpo, trained(get_recipe("rif-rft")(tasks="parity", filter="none", pool=0, group=4, kl=0.1, **plain).stages)
    )
    assert equal(
        trained(get_recipe("sft")(**plain).stages), trained(get_recipe("continual-sft")(tasks="parity", **plain).stages)
    )
    assert not equal(
        grpo,
        trained(get_recipe("rif-rft")(tasks="parity:level=2", filter="none", pool=0, group=4, kl=0.1, **plain).stages),
    )


def test_one_task_in_a_run(tmp_path: Path) -> None:
    done = run("rif-rft", out=tmp_path / "run", model=trained_folder(), tasks="parity", **QUICK, **RL)
    found = done.summary["after"]
    assert found["fm_max"] == found["fm_diag"] == 0.0
    assert found["average_accuracy"] == found["new_accuracy"] == found["P[1,1]"] and found["moved"] > 0
    assert done.summary["stream"] == ["parity"]


# -- several ---------------------------------------------------------------------------------------------------------
def test_the_stages() -> None:
    stages = get_recipe("rif-rft")(tasks="parity; parity:level=2;", until=0.5, **RL).stages
    assert [stage.task.spec() for stage in stages if stage.task] == ["parity", "parity:level=2"]
    assert [stage.name for stage in stages] == ["grpo 1: parity", "grpo 2: parity:level=2"]
    assert all(stage.until == 0.5 and stage.start == "last" and stage.reference == "start" for stage in stages)
    assert all(isinstance(stage.problems, Filtered) and stage.problems.pool == 16 for stage in stages)
    assert not any(stage.wants() for stage in stages), "test 6: without kl there is no reference"
    assert all(stage.wants() == {"reference_logprob"} for stage in get_recipe("rif-rft")(tasks=TASKS, kl=0.1).stages)
    assert (
        stages[0].problems is not stages[1].problems
        and stages[0].updates[0].optimizer is not stages[1].updates[0].optimizer
    )
    unfiltered = get_recipe("rif-rft")(tasks=TASKS, filter="none", pool=9).stages
    assert all(isinstance(s.problems, Uniform) and s.problems.limit == 9 for s in unfiltered)


def test_no_reference_is_loaded_without_kl_and_the_entry_policy_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Test 6, and the reference of a task is the policy that entered it."""
    made: list[Policy] = []
    real = Policy.frozen
    monkeypatch.setattr(Policy, "frozen", lambda self: [made.append(real(self)), made[-1]][1])
    few = {**RL, "tasks": TASKS, "filter": "none", "lr": 1e-2}
    trained(get_recipe("rif-rft")(**few).stages)
    assert not made
    fit = Fit(trained_policy(), get_recipe("rif-rft")(**few, kl=0.1).stages, get_task("parity"))
    fit.run()
    first, second = (p.model.state_dict() for p in made)
    start, end = trained_policy().model.state_dict(), fit.policy.model.state_dict()
    assert all(torch.equal(first[n], start[n]) for n in start)
    assert any(not torch.equal(second[n], start[n]) and not torch.equal(second[n], end[n]) for n in start)


def test_each_stage_draws_filters_and_validates_its_own_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Test 3: the filter asks once a task, with the policy of that moment, and then stays."""
    entered: list[tuple[str, float]] = []
    real = Filtered.prepare

    def prepare(self: Filtered, policy: Policy, scope: Any) -> None:
        entered.append((scope.task.spec(), sum(float(p.detach().double().sum()) for p in policy.model.parameters())))
        real(self, policy, scope)

    monkeypatch.setattr(Filtered, "prepare", prepare)
    looked: list[str] = []

    def evaluate(policy: Policy, task: Task | None = None) -> dict[str, float]:
        looked.append(task.spec() if task else "run's")
        return {"accuracy": 0.0}

    stages = get_recipe("rif-rft")(tasks=TASKS, **RL).stages
    levels: list[set[int]] = [set(), set()]
    for stage, seen in zip(stages, levels, strict=True):
        draw = stage.problems.draw
        stage.problems.draw = lambda n, draw=draw, seen=seen: [[seen.add(p.level), p][1] for p in draw(n)]  # type: ignore[method-assign]
    trained(stages, evaluate=evaluate, options=Options(eval_every=1))
    assert [spec for spec, _ in entered] == ["parity", "parity:level=2"] and entered[0][1] != entered[1][1]
    assert looked == ["parity"] * 3 + ["parity:level=2"] * 2
    assert levels == [{1}, {2}]


def test_the_best_weights_are_those_of_the_last_task() -> None:
    """What was best at an earlier task is no choice for a later one."""
    scores = iter([0.1, 0.9, 0.9, 0.3, 0.2, 0.1])
    fit = Fit(trained_policy(), get_recipe("rif-rft")(tasks=TASKS, filter="none", **{**RL, "steps": 2}).stages, get_task("parity"),
              evaluate=lambda policy, task: {"accuracy": next(scores)}, options=Options(eval_every=1))  # fmt: skip
    assert fit.run().best_step == 3


def test_a_task_ends_at_its_accuracy() -> None:
    scores = iter([0.0, 0.5, 0.5, 0.7, 0.8])
    stages = get_recipe("continual-sft")(tasks=TASKS, steps=5, batch=4, until=0.7).stages
    fit = Fit(trained_policy(), stages, get_task("parity"), evaluate=lambda policy, task: {"accuracy": next(scores)},
              options=Options(eval_every=1), measure=lambda policy: {"flops": policy.meter.flops})  # fmt: skip
    progress = fit.run()
    assert progress.finished and progress.total == 4, "three steps of the first task, one of the second"
    spent = [row["flops"] for row in progress.measured]
    assert len(spent) == 3 and spent == sorted(set(spent))
    with pytest.raises(WhetError, match="set eval_every"):
        Fit(trained_policy(), stages, get_task("parity"))


# -- the run ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("recipe", "more", "stops"), [("rif-rft", RL, (1, 2)), ("continual-sft", {"steps": 2, "batch": 4}, (4,))]
)
def test_it_measures_all_tasks_after_each_and_resumes(
    recipe: str, more: dict[str, Any], stops: tuple[int, ...], tmp_path: Path
) -> None:
    settings = {**QUICK, **more, "model": trained_folder(), "tasks": TASKS, "lr": 3e-3}
    whole = run(recipe, out=tmp_path / "whole", **settings)
    found = whole.summary["after"]
    table = [[found[f"P[{t},{j}]"] for j in (1, 2)] for t in range(3)]
    assert len(whole.progress.measured) == 3
    assert found["fm_diag"] == pytest.approx(table[2][0] - table[1][0])
    assert found["fm_max"] == pytest.approx(
        ((table[2][0] - max(table[1][0], table[2][0])) + (table[2][1] - max(table[1][1], table[2][1]))) / 2
    )
    assert whole.progress.measured[0]["moved"] == 0.0 < whole.progress.measured[1]["moved"]
    # the last row is of the policy that is handed over
    plan = Evaluator(get_task("parity"), Plan(others=tuple(TASKS.split(";")), n_others=5)).forgetting(whole.policy)
    assert [plan[spec]["value"] for spec in TASKS.split(";")] == table[2]
    for stop in stops:  # within a task, and where one ends
        out = tmp_path / f"stopped-{stop}"
        run(recipe, out=out, stop=after(stop), **settings)
        done = resume(out)
        assert done.progress == whole.progress and equal(done.policy, whole.policy)
        assert done.summary["after"] == found
        assert _metrics(out) == _metrics(tmp_path / "whole")


def _metrics(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in rows]


def test_what_cannot_work_is_refused() -> None:
    for given, message in (
        ({"tasks": " ; "}, "at least one task"),
        ({"tasks": "parity;party"}, "did you mean 'parity'"),
        ({"filter": "hard"}, "unknown filter of rif-rft 'hard'"),
        ({"problems": Uniform()}, "leave out problems"),
        ({"until": 2.0}, "until is an accuracy"),
    ):
        with pytest.raises(WhetError, match=message):
            get_recipe("rif-rft")(**{"tasks": TASKS, **given}).check(get_task("parity"))  # type: ignore[dict-item]
    with pytest.raises(WhetError, match="leave out problems and mixture"):
        get_recipe("continual-sft")(mixture="parity#9")
    assert [t.spec() for t in read_tasks("parity ;parity:level=1")] == ["parity", "parity:level=1"]
    assert sequence([], lambda: get_recipe("sft")().stages[0]) == []


def test_a_task_without_a_verifier_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = get_recipe("rif-rft")(tasks=TASKS, **RL)
    task = stages.stages[1].task
    monkeypatch.setattr(task, "provides", lambda: {"unlimited"})
    with pytest.raises(WhetError, match="stage 'grpo 2: parity:level=2' needs verifier"):
        stages.check(get_task("parity"))
