"""The forgetting suite: what is fixed under its name, and where arms are compared."""

from __future__ import annotations

from typing import Any

import pytest

from whet.compare import LOOKS
from whet.config import RunConfig
from whet.errors import WhetError
from whet.evaluation.evaluate import Plan
from whet.evaluation.forgetting import CURRENT, SUITES, forgetting, suite_of, tasks_of
from whet.evaluation.scores import Cell, Scores
from whet.evaluation.statistics import over_seeds
from whet.tasks import get_task


def test_a_suite_does_not_change_under_its_name() -> None:
    """Whoever changes one makes every result that names it false: add a suite of a new number instead."""
    suite = SUITES["forgetting/1"]
    assert suite.tasks == ("chain-sum:level=1", "word-problem:level=1", "sort:level=1", "lists:level=1")
    assert (suite.n, suite.look_n, suite.seed) == (256, 64, 0)
    assert {spec: get_task(spec).version for spec in suite.tasks} == {
        "chain-sum:level=1": 1, "word-problem:level=1": 1, "sort:level=1": 1, "lists:level=1": 1}  # fmt: skip
    first = {get_task(spec).problems("test", 1, seed=0)[0].prompt for spec in suite.tasks}
    assert len(first) == 4 and all(name == suite.name for name, suite in SUITES.items())


def test_the_defaults_are_those_of_the_current_suite() -> None:
    assert RunConfig.model_fields["others_n"].default == CURRENT.n and Plan().seed == CURRENT.seed
    assert f"none: {CURRENT.name}" in str(RunConfig.model_fields["others"].description)
    assert LOOKS["others"] == [CURRENT.name] and LOOKS["others_look_n"] == CURRENT.look_n


def test_a_suite_stands_for_its_tasks_of_other_families() -> None:
    kept = ("word-problem:level=1", "sort:level=1", "lists:level=1")
    assert tasks_of(None, get_task("chain-sum:level=3")) == tasks_of(["forgetting/1"], get_task("chain-sum")) == kept
    assert tasks_of(None, get_task("logic")) == CURRENT.tasks
    assert tasks_of([], get_task("sort")) == ()
    both = tasks_of(["forgetting/1", "sort:level=1", "sort:level=2"], get_task("chain-sum"))
    assert both == (*kept, "sort:level=2")
    assert tasks_of(["sort:level=1", "sort:level=2"], get_task("sort:level=2")) == ("sort:level=1",)
    with pytest.raises(WhetError, match="unknown forgetting suite 'forgetting/9'"):
        tasks_of(["forgetting/9"], get_task("sort"))


def test_only_the_whole_suite_has_its_name() -> None:
    assert suite_of(None, 256) == suite_of(["forgetting/1"], 256, 64) == "forgetting/1"
    assert suite_of(["forgetting/1"], 64) is suite_of(["forgetting/1"], 256, 8) is suite_of(["sort"], 256) is None
    assert suite_of([], 256) is suite_of(["forgetting/1", "sort"], 256) is None


def cell(arm: str, seed: int, *points: tuple[int, float, float], config: Any = None) -> Cell:
    """A cell by its looks: (step, validation accuracy, accuracy on others)."""
    curve = [{"step": s, "share": 0.0, "flops": 10.0 * s, "accuracy": a, "others": o} for s, a, o in points]
    config = {"others": ["forgetting/1"], "others_n": 256, "others_look_n": 64} if config is None else config
    return Cell(arm, seed, "k", config, "d", "t", {}, {"accuracy": 0.5}, {"greedy": "10", "k": 0, "sampled": ""},
                others={"sort:level=1": {"before": 1.0, "after": 0.9}}, curve=curve)  # fmt: skip


START = (0, 0.1, 1.0)


def test_at_equal_steps_and_at_equal_accuracy() -> None:
    """`fast` gets to 0.5 half-way between 0.3 and 0.7; `slow` ends there. By steps, `slow` has gone half as far."""
    found = forgetting(Scores([
        cell("fast", 0, START, (10, 0.3, 0.9), (20, 0.7, 0.5), (40, 0.9, 0.4)), cell("fast", 1, START, (20, 0.5, 0.9), (40, 0.9, 0.2)),
        cell("slow", 0, START, (10, 0.3, 1.0), (30, 0.5, 0.8)), cell("slow", 1, START, (15, 0.6, 0.9), (30, 0.55, 0.6)),
    ]))  # fmt: skip
    assert found["suite"] == "forgetting/1" and found["tasks"] == ["sort:level=1"] and found["why"] == ""
    steps = found["at_steps"]
    assert steps["steps"] == 30
    assert steps["arms"]["fast"]["by_seed"] == pytest.approx([1 - 0.45, 1 - 0.55])
    assert steps["arms"]["slow"]["by_seed"] == pytest.approx([0.2, 0.4])
    target = found["at_accuracy"]
    assert target["accuracy"] == 0.5 and target["missed"] == {}
    fast, slow = target["arms"]["fast"], target["arms"]["slow"]
    assert fast["by_seed"] == pytest.approx([1 - 0.7, 1 - 0.9]) and slow["by_seed"] == pytest.approx([0.2, 0.08])
    assert fast["step"] == pytest.approx((15 + 20) / 2) and fast["flops"] == pytest.approx(10 * fast["step"])
    assert slow["step"] == pytest.approx((30 + 12) / 2)
    interval = over_seeds([0.3, 0.1])
    assert (fast["value"], fast["low"], fast["high"], fast["seeds"]) == pytest.approx(
        (interval.value, interval.low, interval.high, 2)
    )


def test_it_is_the_first_time_that_counts() -> None:
    found = forgetting(Scores([cell("a", 0, START, (1, 0.5, 0.9), (2, 0.2, 0.3), (3, 0.5, 0.1))]))
    assert found["at_accuracy"]["accuracy"] == 0.5 and found["at_accuracy"]["arms"]["a"]["value"] == pytest.approx(0.1)


def test_an_arm_that_does_not_learn_has_no_number_and_sets_no_target() -> None:
    good, flat = (START, (9, 0.6, 0.7)), (START, (9, 0.12, 0.95))
    found = forgetting(
        Scores([cell("good", 0, *good), cell("good", 1, *good), cell("bad", 0, *good), cell("bad", 1, *flat)])
    )
    assert found["at_accuracy"]["accuracy"] == 0.6 and list(found["at_accuracy"]["arms"]) == ["good"]
    assert found["at_accuracy"]["missed"] == {"bad": "1 of 2 seeds never come 5 points above the start"}
    assert set(found["at_steps"]["arms"]) == {"good", "bad"}
    found = forgetting(Scores([cell("bad", 0, *flat), cell("worse", 0, START, (9, 0.0, 0.2))]))
    assert found["at_accuracy"] is None and found["why"].startswith("no arm rises above the start")
    assert found["at_steps"]["arms"]["worse"]["value"] == pytest.approx(0.8)


def test_what_was_not_looked_at_is_said() -> None:
    made = cell("a", 0, START, (9, 0.6, 0.7), config={})
    for point in made.curve:
        del point["others"]  # type: ignore[attr-defined]
    found = forgetting(Scores([made]))
    assert (found["suite"], found["at_steps"], found["at_accuracy"]) == (None, None, None)
    assert found["why"] == "other tasks were not looked at during training"
