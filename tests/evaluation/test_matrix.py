"""Evaluations: the same problems before and after, answers that depend on nothing else, and no budget spent."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from trained import Parity, trained_policy
from whet.evaluation.evaluate import Evaluator, Plan, sample_rows
from whet.evaluation.matrix import Matrix, evaluate, vote
from whet.models.policy import Policy
from whet.tasks import Problem, Response, Verdict, get_task

TASK = "parity:level=1-2"


def texts(found: Matrix) -> list[list[str]]:
    return [[c.text for c in row] for row in found.cells]


def test_a_matrix_is_problems_by_samples() -> None:
    policy, task = trained_policy(), get_task(TASK)
    problems = task.problems("test", 6)
    greedy = evaluate(policy, task, problems)
    sampled = evaluate(policy, task, problems, k=5, temperature=1.0, seed=3)
    assert (greedy.n, greedy.k, sampled.n, sampled.k) == (6, 1, 6, 5)
    assert Matrix([]).n == Matrix([]).k == 0
    for found in (greedy, sampled):
        for problem, row in zip(problems, found.cells, strict=True):
            for c in row:
                verdict = task.verify(problem, Response(c.text, c.label, ended=c.ended))
                assert (c.value, c.status) == (verdict.value, verdict.status) and 0 < c.tokens <= 14
    assert len({c.text for row in sampled.cells for c in row}) > 6


def test_an_answer_depends_on_its_problem_and_number_alone() -> None:
    """Not on how many problems or samples are asked, nor on the order; so before and after are paired."""
    policy, task = trained_policy("gpt2", "plain", dtype=torch.float64), get_task(TASK)
    problems = task.problems("test", 8)
    whole = dict(zip([p.id for p in problems], texts(evaluate(policy, task, problems, k=4, temperature=1.0, seed=3)),
                     strict=True))  # fmt: skip
    for some, k in ((problems[5:], 4), (problems[::-1], 4), (problems, 2)):
        found = texts(evaluate(policy, task, some, k=k, temperature=1.0, seed=3))
        for problem, row in zip(some, found, strict=True):
            assert row == whole[problem.id][:k]
    assert texts(evaluate(policy, task, problems, k=4, temperature=1.0, seed=4)) != list(whole.values())


def test_before_and_after_ask_the_same_problems_of_their_splits() -> None:
    evaluator = Evaluator(get_task(TASK), Plan(n=5, k=2, validation=4, others=("sort:level=1",), n_others=3))
    first, second = (evaluator.matrices(policy) for policy in (trained_policy(), trained_policy(steps=20)))
    for a, b in zip(first, second, strict=True):
        assert a is not None and b is not None
        assert [p.id for p in a.problems] == [p.id for p in b.problems]
        assert all("/test/" in p.id for p in a.problems)
    assert texts(first[0]) != texts(second[0])
    again = evaluator.matrices(trained_policy())
    assert texts(first[0]) == texts(again[0]) and texts(first[1]) == texts(again[1])  # type: ignore[arg-type]
    asked: list[str] = []
    verify = evaluator.task.verify
    evaluator.task.verify = lambda p, r: (asked.append(p.id), verify(p, r))[1]  # type: ignore[method-assign]
    found = evaluator.validation(trained_policy())
    assert len(asked) == 4 and all("/validation/" in i for i in asked)
    assert set(found) == {"accuracy", "error", "tokens", "ended", "unparseable"} and 0 <= found["accuracy"] <= 1
    assert found["error"] == pytest.approx(math.sqrt(found["accuracy"] * (1 - found["accuracy"]) / 4))
    forgotten = evaluator.forgetting(trained_policy())
    assert list(forgotten) == ["sort:level=1"] and forgotten["sort:level=1"]["n"] == 3


@pytest.mark.parametrize(
    ("task", "gold", "same", "other"),
    [("chain-sum", "4", ["4", "4.0", " 4\n", "+4", "8/2", "It is 4."], ["5", "40"]),
     ("sort", "1 2 3", ["1 2 3", "1, 2, 3", "1,2,3"], ["2 1 3"]),
     ("lists", "1 2", ["1 2", "1, 2"], ["2 1", "empty"]),
     ("boxes", "key coin", ["key coin", "coin and key", "coin, key"], ["key"])],
)  # fmt: skip
def test_answers_that_mean_the_same_vote_together(task: str, gold: str, same: list[str], other: list[str]) -> None:
    problem = replace(get_task(task).problems("test", 1)[0], answer=gold)
    votes = {text: vote(get_task(task).verify(problem, Response(text, text)), text) for text in [*same, *other]}
    assert len({votes[text] for text in same}) == 1 and None not in votes.values()
    assert all(votes[text] != votes[same[0]] for text in other)


def test_what_votes_where_the_verifier_has_no_label_or_cannot_read_the_answer() -> None:
    assert vote(Verdict(1.0, "ok"), "a  b\n") == "a b"
    assert vote(Verdict(0.0, "unparseable", label="7"), "7 or 8") is None
    assert vote(Verdict(0.0, "wrong"), None) is None
    assert vote(Verdict(math.nan, "timeout"), "x") == "x"


def test_without_k_nothing_is_sampled() -> None:
    greedy, sampled = Evaluator(get_task(TASK), Plan(n=2, k=0)).matrices(trained_policy())
    assert greedy.n == 2 and sampled is None


def test_evaluation_spends_nothing_and_changes_nothing() -> None:
    policy = trained_policy()
    before = {n: p.clone() for n, p in policy.model.named_parameters()}
    policy.model.train()
    Evaluator(get_task(TASK), Plan(n=2, k=2)).test(policy)
    assert policy.meter.flops == 0 and policy.meter.sampled_tokens == 0 and policy.meter.verifier_calls == 0
    assert policy.model.training
    assert all(torch.equal(before[n], p) for n, p in policy.model.named_parameters())


class Moody(Parity):
    """A verifier that fails on odd numbers."""

    def verify(self, problem: Problem, response: Response) -> Verdict:
        if problem.answer == "1":
            return Verdict(math.nan, "timeout")
        return super().verify(problem, response)


def test_what_could_not_be_judged_is_left_out_and_counted() -> None:
    summary, matrix = Evaluator(Moody(), Plan(n=20, k=3)).test(trained_policy())
    odd = sum(p.answer == "1" for p in matrix.problems)
    accuracy: Any = summary["accuracy"]
    sampled: Any = summary["sampled_accuracy"]
    assert 0 < odd < 20 and accuracy["n"] == sampled["n"] == 20 - odd
    assert summary["failed"] == odd / 20


class Unverified(Parity):
    """As a preference file: nothing to judge by."""

    def provides(self) -> set[str]:
        return {"preferences", "unlimited"}

    def verify(self, problem: Problem, response: Response) -> Verdict:
        raise AssertionError("it must not be asked")


def test_a_task_without_a_verifier_still_shows_lengths() -> None:
    summary, _ = Evaluator(Unverified(), Plan(n=3, k=2)).test(trained_policy())
    accuracy: Any = summary["accuracy"]
    assert accuracy["value"] is None and accuracy["n"] == 0
    assert summary["tokens_per_answer"] > 0 and summary["ended"] is not None


def test_sample_rows_show_what_was_asked_and_answered() -> None:
    policy: Policy = trained_policy()
    _, matrix = Evaluator(get_task(TASK), Plan(n=5, k=0)).test(policy)
    rows = sample_rows(matrix, "before", n=3)
    assert len(rows) == 3
    first, problem, c = rows[0], matrix.problems[0], matrix.cells[0][0]
    assert first == {"when": "before", "problem": problem.id, "prompt": problem.prompt, "gold": problem.answer,
                     "answer": c.text, "correct": c.value == 1.0, "status": c.status, "tokens": c.tokens}  # fmt: skip


@pytest.mark.parametrize("field", ["value", "status", "tokens", "ended", "label"])
def test_a_matrix_keeps_what_every_metric_needs(field: str) -> None:
    policy, task = trained_policy(), get_task(TASK)
    found = evaluate(policy, task, task.problems("test", 2), k=2, temperature=1.0)
    table = found.as_dict()
    assert table[field] == [[getattr(c, field) for c in row] for row in found.cells]
    assert table["problem"] == [p.id for p in found.problems]
