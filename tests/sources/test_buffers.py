"""The buffer of demonstrations: which questions enter it, when it hands over, and that it is state."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from trained import trained_policy
from whet.errors import WhetError
from whet.models.policy import Policy
from whet.records import Row, Sample, Segment
from whet.sources import Demonstrated, Scope
from whet.tasks import get_task
from whet.training import checkpoint

TASK = get_task("parity")
FAIL, MIXED, RIGHT = (0.0, 0.0), (0.0, 1.0), (1.0, 1.0)


@pytest.fixture(scope="module")
def policy() -> Policy:
    return trained_policy()


def step(*groups: tuple[float, ...], start: int = 0, budget: int = 14) -> tuple[list[Row], Scope]:
    """The scored rows of a step; question number `start + i` has the accuracies of group i. The reward is shaped."""
    problems = TASK.problems("train", len(groups), seed=3, start=start)
    scope = Scope(TASK, start)
    scope.remember(problems)
    rows = []
    for problem, group in zip(problems, groups, strict=True):
        for accuracy in group:
            segments = [Segment("question", [2]), Segment("answer", [3], learn=True, sampled=True)]
            sample = Sample(segments, problem.id, problem.id, settings={"max_new_tokens": budget})
            rows.append(Row({"response": sample}, {"accuracy": accuracy, "reward": accuracy + 0.3}))
    return rows, scope


def add(buffer: Demonstrated, policy: Policy, *groups: tuple[float, ...], **how: Any) -> None:
    rows, scope = step(*groups, **how)
    buffer.add(rows, policy, scope)


def ids(start: int, *places: int) -> list[str]:
    problems = TASK.problems("train", 8, seed=3, start=start)
    return [problems[p].id for p in places]


@pytest.mark.parametrize("n", [1, 4])
def test_each_question_that_all_answers_failed_enters_once(policy: Policy, n: int) -> None:
    buffer = Demonstrated(8)
    add(buffer, policy, *(g * n for g in (FAIL, MIXED, RIGHT, FAIL)))
    assert [row.problem_id for row in buffer.held] == ids(0, 0, 3)
    assert dict(buffer.counts) == {"waiting": 2, "questions": 4, "used": 0, "dropped": 0}


def test_an_answer_that_could_not_be_judged_has_not_failed(policy: Policy) -> None:
    buffer = Demonstrated(8)
    add(buffer, policy, (0.0, math.nan), (0.0, 0.5), FAIL)
    assert [row.problem_id for row in buffer.held] == ids(0, 2)


def test_it_hands_over_the_newest_once_it_is_full(policy: Policy) -> None:
    """M = 3 and 2, 2, 0 failures in three steps: an update in the second only, one of the first step left."""
    buffer = Demonstrated(3)
    add(buffer, policy, FAIL, FAIL)
    assert buffer.take() is None
    add(buffer, policy, FAIL, FAIL, start=10)
    taken = buffer.take()
    assert taken is not None and [row.problem_id for row in taken] == [*ids(10, 0, 1), *ids(0, 0)]
    add(buffer, policy, MIXED, start=20)
    assert buffer.take() is None and [row.problem_id for row in buffer.held] == ids(0, 1)
    assert buffer.counts["used"] == 3


def test_at_most_one_batch_is_taken_at_a_time(policy: Policy) -> None:
    buffer = Demonstrated(1)
    add(buffer, policy, FAIL, FAIL, FAIL)
    taken = buffer.take()
    assert taken is not None and len(taken) == 1 and len(buffer.held) == 2


def test_the_demonstration_is_learnt_to_its_end(policy: Policy) -> None:
    buffer = Demonstrated(1)
    add(buffer, policy, FAIL)
    (row,) = buffer.held
    sample = row["response"]
    (problem,) = TASK.problems("train", 1, seed=3)
    assert sample.segments == policy.format.demonstration(problem).segments
    n = sample.prompt_length
    assert not sample.learn_mask[:n].any() and sample.learn_mask[n:].all() and sample.ids[-1] == policy.format.eos_id
    assert sample.per_token == {} and row.numbers == {}


def test_one_that_is_longer_than_the_budget_is_dropped_and_counted(policy: Policy) -> None:
    buffer = Demonstrated(1)
    (problem,) = TASK.problems("train", 1, seed=3)
    n = policy.format.demonstration(problem).count_learnt()
    add(buffer, policy, FAIL, budget=n - 1)
    assert (buffer.held, buffer.dropped) == ([], 1)
    add(buffer, policy, FAIL, budget=n)
    assert (len(buffer.held), buffer.dropped) == (1, 1)


def test_other_questions(policy: Policy) -> None:
    """`random` takes as many as failed, from the whole step; `all` takes all."""
    groups = (FAIL, RIGHT, RIGHT, RIGHT, FAIL, RIGHT)
    entered = set()
    for start in range(0, 60, 6):
        buffer = Demonstrated(9, "random")
        add(buffer, policy, *groups, start=start)
        assert len({row.problem_id for row in buffer.held}) == 2
        entered |= {ids(start, *range(6)).index(row.problem_id) for row in buffer.held}
    assert entered > {0, 4}
    buffer = Demonstrated(9, "all")
    add(buffer, policy, *groups)
    assert len(buffer.held) == 6


def test_infinity_keeps_nothing(policy: Policy) -> None:
    buffer = Demonstrated(math.inf)
    add(buffer, policy, FAIL, FAIL)
    assert buffer.take() is None and buffer.held == []


def test_its_state_goes_through_a_checkpoint_bit_for_bit(policy: Policy, tmp_path: Any) -> None:
    buffer = Demonstrated(3)
    add(buffer, policy, FAIL, RIGHT, FAIL)
    add(buffer, policy, FAIL, FAIL, start=10)
    buffer.take()
    add(buffer, policy, FAIL, start=20, budget=2)
    checkpoint.save(tmp_path, 1, {"w": torch.zeros(1)}, {"parts": buffer.state_dict()})
    other = Demonstrated(3)
    (path,) = checkpoint.found(tmp_path)
    other.load_state_dict(checkpoint.load(path)[1]["parts"])
    assert [row.state() for row in other.held] == [row.state() for row in buffer.held]
    assert dict(other.counts) == dict(buffer.counts) == {"waiting": 1, "questions": 6, "used": 3, "dropped": 1}


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(WhetError, match="at least 1 entry"):
        Demonstrated(0)
    with pytest.raises(WhetError, match="did you mean 'hardest'"):
        Demonstrated(1, "hardset")
