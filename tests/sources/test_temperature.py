"""Temperatures that an entropy asks for, numbers that follow what is measured, and budgets that are shares of the task's."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from trained import trained_policy
from whet.errors import WhetError
from whet.objectives.schedule import Follow
from whet.records import Segment
from whet.sampling.answers import Answer, Draw
from whet.sampling.sampler import Request, SamplingSettings
from whet.sources import EntropyTarget, Rollouts, Scope, Uniform
from whet.sources.temperature import mean_entropy, settle
from whet.tasks import get_task


def drawn_entropy(logits: list[float], temperature: float) -> float:
    """What the sampler reports for one token."""
    request = Request([Segment("question", [5])], [0], SamplingSettings(1, temperature))
    draw = Draw([Answer(0, request, 0, (5,), 1)], torch.device("cpu"))
    return float(draw(torch.tensor([logits]), torch.tensor([0]))[2])


def test_the_entropy_is_that_of_the_tempered_distribution() -> None:
    for temperature in (0.2, 1.0, 3.0):
        assert drawn_entropy([0.0, 0.0], temperature) == pytest.approx(math.log(2), abs=1e-5)
    assert drawn_entropy([math.log(3), 0.0], 1.0) == pytest.approx(0.5623, abs=5e-5)
    assert drawn_entropy([math.log(3), 0.0], 0.5) == pytest.approx(0.3251, abs=5e-5)
    curve = [drawn_entropy([1.0, 0.3, -2.0], t / 10) for t in range(1, 40)]
    assert curve == sorted(curve)


@pytest.mark.parametrize("target", [0.05, 0.3, 0.6])
def test_settling(target: float) -> None:
    tried: list[float] = []

    def measure(temperature: float) -> float:
        tried.append(temperature)
        return temperature**2 / 3

    found = settle(measure, target, low=0.1, high=3.0)
    assert abs(measure(found) - target) <= 0.05 * target and len(tried) <= 9 and tried[0] == 1.0


def test_a_target_out_of_reach_ends_at_a_bound() -> None:
    assert settle(lambda t: 0.01 * t, 0.3, low=0.5, high=1.7) == 1.7
    assert settle(lambda t: 5.0, 0.3, low=0.5, high=1.7) in (0.5, 1.0)
    assert settle(lambda t: 5.0 * t, 0.3, low=0.5, high=1.7) == 0.5


def test_a_number_follows_what_is_measured() -> None:
    follow = Follow(target=0.3, value=1.0, gain=0.5, low=0.4, high=1.5)
    follow.observe(0.3)
    assert follow.value == 1.0
    follow.observe(0.45)
    assert follow.value == pytest.approx(math.exp(-0.25))
    follow.observe(90.0)  # one step is bounded
    assert follow.value == pytest.approx(math.exp(-0.75))
    for _ in range(9):
        follow.observe(0.0)
    assert follow.value == 1.5
    still = Follow(target=0.3, value=1.0, gain=0.0)
    still.observe(9.0)
    assert still.value == 1.0
    near = Follow(target=0.3, value=1.4, gain=0.3)
    for _ in range(40):
        near.observe(0.5 * near.value**2)
    assert 0.5 * near.value**2 == pytest.approx(0.3, rel=1e-3)


def rollouts(aim: EntropyTarget, **more: Any) -> tuple[Rollouts, Uniform, Any, Scope]:
    task = get_task("parity")
    collect, problems = Rollouts(4, temperature=aim, **more), Uniform()
    problems.bind(task, 0)
    collect.bind(task)
    return collect, problems, trained_policy(), Scope(task, 5)


def test_rollouts_have_the_entropy_that_was_asked_for() -> None:
    temperatures = []
    for target in (0.2, 0.5):
        collect, problems, policy, scope = rollouts(EntropyTarget(target))
        collect.prepare(problems, policy, scope)
        rows = collect.rows(problems, 32, policy, Scope(scope.task, 5))
        assert mean_entropy(row["response"] for row in rows) == pytest.approx(target, rel=0.4)
        assert {row["response"].settings["temperature"] for row in rows} == {collect.temperature}
        assert collect.report() == {"temperature": collect.temperature}
        assert rows[0].problem_id == get_task("parity").problems("train", 1)[0].id, "measuring uses no problem up"
        temperatures.append(collect.temperature)
    assert temperatures == sorted(temperatures) and len(set(temperatures)) == 2


def test_a_temperature_that_follows_does_so_between_steps() -> None:
    collect, problems, policy, scope = rollouts(EntropyTarget(0.05, low=0.2, follow=1.0))
    first = collect.rows(problems, 8, policy, scope)
    assert collect.temperature == 1.0, "the rows of a step are learnt at the temperature that they were drawn at"
    assert mean_entropy(row["response"] for row in first) > 0.2
    again, *_ = rollouts(EntropyTarget(0.05, low=0.2, follow=1.0))
    again.load_state_dict(collect.state_dict())
    for own in (collect, again):
        rows = own.rows(problems, 8, policy, scope)
        assert rows[0]["response"].settings["temperature"] == own.temperature == pytest.approx(math.exp(-1.0))
    fixed, problems, policy, scope = rollouts(EntropyTarget(0.05, low=0.2))
    for _ in range(2):
        fixed.rows(problems, 8, policy, scope)
    assert fixed.temperature == 1.0


def test_a_plain_temperature_reports_and_remembers_nothing() -> None:
    collect = Rollouts(4, temperature=0.7)
    assert collect.report() == {} and collect.state_dict() == {} and collect.temperature == 0.7


def test_budgets_as_shares_of_the_tasks() -> None:
    task = get_task("parity")  # 14 tokens
    for given, budget in ((0, 14), (0.5, 7), (0.01, 1), (9, 9), (1, 1)):
        collect = Rollouts(4, given)
        for _ in range(2):
            collect.bind(task)
            assert collect.budget == budget
    for wrong in (1.5, -1):
        with pytest.raises(WhetError, match="max_new_tokens"):
            Rollouts(4, wrong)


def test_targets_that_cannot_be() -> None:
    for arguments in ({"target": 0.0}, {"low": 0.0}, {"low": 2.0, "high": 1.0}, {"problems": 0}, {"follow": -1.0}):
        with pytest.raises(WhetError, match="entropy target"):
            EntropyTarget(**arguments)
