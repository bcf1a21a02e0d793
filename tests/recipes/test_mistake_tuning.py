"""Mistake tuning: its card's tests 1 to 4 and 6, by number; the loop of test 5 is in tests/decoding."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tiny import tiny_policy
from trained import Parity, trained_policy
from whet.errors import WhetError
from whet.recipes.recipe import get_recipe
from whet.recipes.supervised.mistake_tuning import choose
from whet.sources import Attempts, Scope, Uniform
from whet.tasks import Response, Verdict, get_task
from whet.training.fit import Fit, Options
from whet.training.stage import Stage

CORRECT, INCORRECT = "[CORRECT RATIONALE]", "[INCORRECT RATIONALE]"
SPEC = "chain-sum:level=3"


def stages(**arguments: Any) -> list[Stage]:
    return get_recipe("mistake-tuning")(**{"steps": 3, "batch": 4, "limit": 24, **arguments}).stages


def rows_of(spec: str = SPEC, policy: Any = None, **arguments: Any) -> tuple[list[Any], Any]:
    (stage,) = stages(**arguments)
    policy = policy or tiny_policy(style="tags", max_position_embeddings=2048)
    task = get_task(spec)
    stage.problems.bind(task, 1)
    stage.collect.bind(task)
    stage.collect.prepare(stage.problems, policy, Scope(task, 2))
    return stage.collect.stored, policy  # type: ignore[attr-defined]


def test_1_a_right_and_two_wrong_rationales_give_three_rows() -> None:
    rows, policy = rows_of(limit=1, wrong=2)
    (problem,) = get_task(SPEC).problems("train", 1, seed=1)
    found = []
    for row in rows:
        told = policy.format.decode(row["response"].segments[1].ids)
        found.append((told, policy.format.read(row["response"])))
    assert [told for told, _ in found] == [CORRECT, INCORRECT, INCORRECT]
    assert found[0][1].answer == problem.answer and found[0][1].rationale == problem.rationale
    assert all(read.answer != problem.answer and read.rationale for _, read in found[1:])
    assert found[1][1] != found[2][1]


def test_1_wrong_in_format_only_and_right_by_luck_are_left_out() -> None:
    class Odd(Parity):
        """The corruptor's answers: none to read, right by luck, no rationale, wrong."""

        def verify(self, problem: Any, response: Response) -> Verdict:
            if response.answer == "?":
                return Verdict(0.0, "unparseable")
            return super().verify(problem, response)

    task = Odd()
    (problem,) = task.problems("train", 1)
    from whet.sources.attempts import _given, _judged

    other = str(1 - int(problem.answer or 0))
    attempts = [_judged(task, problem, _given(problem.rationale, problem.answer or ""), "gold")]
    attempts += [
        _judged(task, problem, _given(steps, answer), "corruptor")
        for steps, answer in (("9", "?"), ("9", problem.answer or ""), ("", other), ("9", other))
    ]
    assert choose(attempts, 3) == [attempts[0], attempts[4]]
    assert choose(attempts, 0) == attempts[:1]


@pytest.mark.parametrize("style", ["tags", "chat", "plain"])
def test_2_the_prefix_is_one_fixed_token_sequence_directly_before_the_rationale(style: str) -> None:
    rows, _ = rows_of(policy=tiny_policy(style=style, max_position_embeddings=2048), limit=6)
    seen = {}
    for row in rows:
        kinds = [s.kind for s in row["response"].segments]
        assert kinds == ["question", "condition", "rationale", "answer", "eos"]
        seen.setdefault(row.numbers["right"], set()).add(tuple(row["response"].segments[1].ids))
        assert row["response"].count_learnt() == sum(len(s.ids) for s in row["response"].segments[2:])
    assert {right: len(ids) for right, ids in seen.items()} == {1.0: 1, 0.0: 1} and seen[1.0] != seen[0.0]


@pytest.mark.parametrize(("loss_on", "more"), [("condition", ("condition",)), ("all", ("condition", "question"))])
def test_2_the_loss_may_take_in_prefix_and_question(loss_on: str, more: tuple[str, ...]) -> None:
    rows, _ = rows_of(limit=4, loss_on=loss_on)
    for row in rows:
        learnt = {s.kind for s in row["response"].segments if s.learn}
        assert learnt == {"rationale", "answer", "eos", *more}
        assert row["response"].segments[0].learn is False  # the first token at least


def weights(name: str, **arguments: Any) -> dict[str, torch.Tensor]:
    recipe = get_recipe(name)(**{"steps": 3, "batch": 24, "limit": 24, **arguments})
    fit = Fit(trained_policy(), recipe.stages, get_task("parity"), options=Options(seed=0))
    fit.run()
    return fit.policy.model.state_dict()


def test_3_without_wrong_rows_and_prefix_it_is_sft() -> None:
    """With a batch of all 24 problems both see the same rows in every step, in another order: equal up to rounding."""
    ours, theirs = weights("mistake-tuning", wrong=0, marked=False, lr=1e-3), weights("sft", lr=1e-3)
    start = trained_policy().model.state_dict()
    moved = max(float((theirs[n] - start[n]).abs().max()) for n in start)
    assert moved > 1e-4
    assert max(float((ours[n] - theirs[n]).abs().max()) for n in start) < 0.02 * moved


def test_3_wrong_rows_and_the_prefix_each_change_it() -> None:
    base = weights("mistake-tuning", wrong=0, marked=False)
    for other in (weights("mistake-tuning", wrong=0), weights("mistake-tuning", marked=False)):
        assert any(not torch.equal(base[n], other[n]) for n in base)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [({}, CORRECT), ({"ask": "incorrect"}, INCORRECT), ({"ask": "nothing", "drop": 0.2}, ""), ({"marked": False}, "")],
)
def test_4_what_it_is_asked_behind(arguments: dict[str, Any], told: str) -> None:
    fit = Fit(trained_policy(), stages(**arguments), get_task("parity"), options=Options(seed=0))
    fit.run()
    prompt = fit.policy.format.prompt(get_task("parity").problem("test", 0))
    assert fit.policy.format.decode([i for s in prompt[1:] for i in s.ids]) == told


def test_6_error_types_of_own_mistakes_come_from_the_checks() -> None:
    task = get_task("parity")
    problems = Uniform(limit=24)
    problems.bind(task, 0)
    pool = Attempts("policy", samples=6).make(problems.draw(24), trained_policy(), Scope(task, 0))
    assert {a.label for at in pool for a in at if a.verdict.status == "wrong"} == {"answer"}


def test_refusals() -> None:
    for arguments, message in (
        ({"wrong": -1}, "wrong must be at least 0"),
        ({"ask": "corect"}, "did you mean 'correct'"),
        ({"marked": False, "ask": "incorrect"}, "without marks there is no prefix"),
        ({"ask": "nothing"}, "drop=0.1"),
        ({"warm": 5}, "source=policy or mixed"),
        ({"limit": 0}, "at least 1"),
    ):
        with pytest.raises(WhetError, match=message):
            stages(**arguments)
    recipe = get_recipe("mistake-tuning")()
    with pytest.raises(WhetError, match="needs rationales and task 'travel' has none: provide rows with a `rationale`"):
        recipe.check(get_task("travel"))
