"""ReMax: the baseline is the reward of the greedy answer, which is sampled and scored, and not learnt."""

from __future__ import annotations

import math

import pytest

from trained import trained_policy
from whet.advantages import remax
from whet.errors import WhetError
from whet.recipes.recipe import get_recipe
from whet.records import Row, Sample, Segment
from whet.sources import Scope, Uniform, WithGreedy, groups_of
from whet.tasks import get_task
from whet.training import metrics
from whet.training.fit import Fit


def row(group: str, reward: float, greedy: bool = False) -> Row:
    sample = Sample([Segment("question", [1]), Segment("answer", [2, 3], learn=True)], group, group)
    return Row({"response": sample}, {"reward": reward, **({"greedy": 1.0} if greedy else {})})


def test_reward_minus_that_of_the_greedy_answer() -> None:
    """Groups of any size, also of one; no mean and no deviation of the group."""
    rows = [row("a", 1.0), row("a", 0.0), row("a", math.nan), row("a", 0.25, True), row("b", 0.5), row("b", 1.0, True)]
    remax()(rows)
    assert [r.numbers["advantage"] for r in rows] == [0.75, -0.25, 0.0, 0.0, -0.5, 0.0]
    assert rows[0]["response"].per_token["advantage"].tolist() == [0.0, 0.75, 0.75]
    assert [r["response"].count_learnt() for r in rows] == [2, 2, 2, 0, 2, 0]


def test_a_greedy_answer_that_could_not_be_judged_is_no_baseline() -> None:
    rows = [row("a", 1.0), row("a", math.nan, True)]
    remax()(rows)
    assert [r.numbers["advantage"] for r in rows] == [0.0, 0.0]


def test_it_needs_one_greedy_answer_a_group() -> None:
    with pytest.raises(WhetError, match="has 0 greedy answers"):
        remax()([row("a", 1.0), row("a", 0.0)])


def test_the_collector_adds_the_greedy_answer() -> None:
    policy, task, problems = trained_policy(), get_task("parity"), Uniform()
    problems.bind(task, 0)
    collect = WithGreedy(3)
    collect.bind(task)
    rows = collect.rows(problems, 4, policy, Scope(task, 5))
    groups = groups_of(rows)
    assert [[bool(r.numbers.get("greedy")) for r in group] for group in groups] == [[False, False, False, True]] * 4
    assert [[r["response"].rollout_id for r in group] for group in groups] == [[0, 1, 2, 3]] * 4
    for group in groups:
        settings = [r["response"].settings for r in group]
        assert [s and s["temperature"] for s in settings] == [1.0, 1.0, 1.0, 0.0]
    for r in rows:
        r.numbers |= {
            "accuracy": float(bool(r.numbers.get("greedy"))),
            "tokens": 1.0,
            "ended": 1.0,
            "unparseable": 0.0,
            "failed": 0.0,
        }
    assert metrics.of_rows(rows, rows)["accuracy"] == 0.0, "the log is about the answers that are learnt"


def test_the_recipe() -> None:
    (stage,) = get_recipe("remax")(steps=2, batch=4, group=1).stages
    learnt: list[Row] = []
    stage.transforms = [learnt.extend]
    fit = Fit(trained_policy(), [stage], get_task("parity"))
    fit.run()
    assert isinstance(stage.collect, WithGreedy) and len(learnt) == 16
    for answer, greedy in zip(learnt[::2], learnt[1::2], strict=True):
        assert answer.numbers["advantage"] == answer.numbers["reward"] - greedy.numbers["reward"]
        assert greedy["response"].count_learnt() == 0
