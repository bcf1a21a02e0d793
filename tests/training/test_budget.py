"""Budgets: where a run stops, what its schedules do, how stages share, and that a resumed run is the same run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from trained import trained_policy
from whet.errors import WhetError
from whet.models.meter import Meter
from whet.objectives import nll
from whet.recipes.recipe import get_recipe
from whet.rewards import Attempt, Reward
from whet.runs import RunFolder
from whet.sampling.sampler import SamplingSettings
from whet.sources import Demonstrations, ask
from whet.tasks import get_task
from whet.training.budget import Budget, Pace
from whet.training.fit import Fit
from whet.training.optimizer import AdamW
from whet.training.options import Options, Progress
from whet.training.stage import Stage, Update


def test_parse() -> None:
    assert Budget.parse("flops:2e13") == Budget("flops", 2e13)
    assert str(Budget.parse("tokens:1000000")) == "tokens:1e+06"
    for text, says in (("flop:1", "did you mean 'flops'"), ("steps", "say a positive number"), ("steps:0", "steps:100"),
                       ("minutes:-3", "positive"), ("tokens:many", "positive"), ("flops:nan", "positive")):  # fmt: skip
        with pytest.raises(WhetError, match=says):
            Budget.parse(text)


def test_what_each_kind_measures() -> None:
    meter = Meter(
        flops=8, sampled_tokens=1, scored_tokens=2, learnt_tokens=4, optimizer_steps=3, idle_steps=2, seconds=90
    )
    spent = {kind: Budget(kind, 10).spent(meter) for kind in ("flops", "tokens", "steps", "minutes")}
    assert spent == {"flops": 8, "tokens": 7, "steps": 5, "minutes": 1.5}
    assert Budget("tokens", 14).share(meter) == 0.5


def test_a_budget_is_shared_by_stages_as_their_steps_are() -> None:
    pace, place, meter = Pace([40, 48, 72], Budget("steps", 160)), Progress(), Meter()
    assert pace.ends == [0.25, 0.55, 1.0]
    meter.optimizer_steps = 8  # spent before the first step
    pace.enter(place, meter, "one")
    assert pace.within(place, meter) == 0.0
    meter.optimizer_steps = 24
    assert pace.within(place, meter) == pytest.approx(0.5) and not pace.over(place, meter)
    meter.optimizer_steps = 40
    assert pace.within(place, meter) == pytest.approx(1.0) and pace.over(place, meter)
    place.stage = 1
    meter.optimizer_steps = 88
    with pytest.raises(WhetError, match=r"stage 'two' has nothing left.*55%.*prepare less"):
        pace.enter(place, meter, "two")


def test_without_a_budget_steps_are_counted() -> None:
    pace, place = Pace([3, 5]), Progress(stage=0, step=2, total=2)
    assert not pace.over(place, Meter()) and pace.within(place, Meter()) is None
    assert pace.share(place, Meter()) == 0.25
    place.step = 3
    assert pace.over(place, Meter())


class Rows:
    """An observer that keeps what it hears."""

    def __init__(self) -> None:
        self.steps: list[Mapping[str, Any]] = []
        self.evaluations: list[int] = []

    def stage(self, index: int, stage: Stage, lines: object) -> None: ...

    def step(self, row: Mapping[str, Any]) -> None:
        self.steps.append(row)

    def evaluated(self, row: Mapping[str, Any]) -> None:
        self.evaluations.append(row["step"])


def stage(steps: int, name: str = "train", **optimizer: Any) -> Stage:
    update = Update(nll(), optimizer=AdamW(lr=1e-3, **optimizer))
    return Stage(collect=Demonstrations(), updates=[update], steps=steps, batch=4, name=name)


def fit(*stages: Stage, folder: RunFolder | None = None, resume: bool = False, **options: Any) -> tuple[Fit, Rows]:
    rows = Rows()
    made = Fit(trained_policy(steps=1), stages, get_task("parity"), options=Options(**options), folder=folder,
               observer=rows, evaluate=lambda policy: {"accuracy": 0.5})  # fmt: skip
    made.run(resume)
    return made, rows


def weights(made: Fit) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in made.policy.named_parameters()}


def test_the_schedule_ends_with_the_budget() -> None:
    """Four steps of a recipe of a hundred: the rates are those at 0, 25, 50 and 75 of 100."""
    optimizer = AdamW(lr=1e-3, schedule="cosine", warmup=0.1)
    made, rows = fit(stage(100, schedule="cosine", warmup=0.1), budget=Budget("steps", 4))
    assert made.progress.finished and made.progress.total == 4
    assert [r["lr"] for r in rows.steps] == pytest.approx([1e-3 * optimizer.scale(s, 100) for s in (0, 25, 50, 75)])
    assert [r["share"] for r in rows.steps] == [0.25, 0.5, 0.75, 1.0]


def test_a_budget_of_the_recipes_own_steps_changes_nothing() -> None:
    plain, _ = fit(stage(4, schedule="cosine", warmup=2))
    budgeted, _ = fit(stage(4, schedule="cosine", warmup=2), budget=Budget("steps", 4))
    for name, value in weights(plain).items():
        assert torch.equal(value, weights(budgeted)[name]), name


def test_flops_stop_at_the_first_boundary_where_they_are_spent() -> None:
    _, probe = fit(stage(3))
    budget = Budget("flops", probe.steps[1]["flops"] + 1)  # one more than two steps cost
    made, rows = fit(stage(100), budget=budget)
    assert len(rows.steps) == 3
    assert rows.steps[1]["flops"] < budget.amount <= rows.steps[2]["flops"] == made.policy.meter.flops


def test_stages_end_at_their_part_of_the_budget() -> None:
    _, rows = fit(stage(10, "one"), stage(30, "two"), budget=Budget("steps", 8))
    assert [r["stage"] for r in rows.steps] == ["one"] * 2 + ["two"] * 6


def test_evaluations_at_equal_shares() -> None:
    _, rows = fit(stage(100), budget=Budget("steps", 12), eval_every=1, evaluations=4)
    assert rows.evaluations == [0, 3, 6, 9, 12]
    _, rows = fit(stage(6), eval_every=1, evaluations=2)
    assert rows.evaluations == [0, 3, 6]


class Same(Reward):
    def __call__(self, group: Sequence[Attempt]) -> list[dict[str, float]]:
        return [{"same": 1.0} for _ in group]


def test_an_idle_batch_is_spent() -> None:
    """Every group is alike from the first step on, so nothing is learnt, and the run still ends."""
    recipe = get_recipe("grpo")(steps=9, batch=2, group=2, reward=Same())
    made = Fit(trained_policy(steps=1), recipe.stages, get_task("parity"), options=Options(budget=Budget("steps", 3)))
    assert made.run().total == 3
    assert (made.policy.meter.idle_steps, made.policy.meter.optimizer_steps) == (3, 0)


def test_a_resumed_run_is_the_run_that_was_not_stopped(tmp_path: Path) -> None:
    def stages() -> list[Stage]:
        return [stage(10, "one", schedule="linear"), stage(20, "two", schedule="cosine")]

    options: dict[str, Any] = {"budget": Budget("steps", 9), "eval_every": 1, "evaluations": 3}
    whole, rows = fit(*stages(), **options)
    taken = iter(range(1, 100))
    folder = RunFolder.create(tmp_path / "run")
    half, first = fit(*stages(), folder=folder, stop=lambda: next(taken) == 5, **options)
    assert not half.progress.over and len(first.steps) == 5
    rest, second = fit(*stages(), folder=folder, resume=True, **options)
    assert rest.progress.finished and [*first.evaluations, *second.evaluations] == rows.evaluations
    assert [r["lr"] for r in second.steps] == [r["lr"] for r in rows.steps[5:]]
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(rest)[name]), name


def test_sampling_flops_are_those_that_torch_counts() -> None:
    """Within 5 % of PyTorch's own counter; the prompt is run once for a group."""
    policy, task = trained_policy(steps=1), get_task("parity")
    problems = task.problems("train", 3)
    ask(policy, problems[:1], SamplingSettings(2), 1, 0)  # the sampler is chosen by a check that is no part of it
    policy.meter.flops = 0.0
    # the CPU's fused attention is not in the counter's table; its plain form is the same products
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        ask(policy, problems, SamplingSettings(12, temperature=1.0), 4, 0)
    assert policy.meter.flops == pytest.approx(counter.get_total_flops(), rel=0.05)
