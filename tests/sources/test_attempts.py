"""The pool of attempts: origins, verdicts, what is dropped, and that it is a function of the seed."""

from __future__ import annotations

from typing import Any

import pytest

from trained import Parity, Scripted, trained_policy
from whet.errors import WhetError
from whet.sources import Attempt, Attempts, Scope, error_cause, error_type, feedback_text
from whet.tasks import Check, Problem, Task, get_task


def scope(task: Task | None = None, seed: int = 3) -> Scope:
    return Scope(task or get_task("parity"), seed)


def problems(n: int = 8, task: str = "parity") -> list[Problem]:
    return get_task(task).problems("train", n, seed=1)


def scripted(*answers: str) -> Any:
    return Scripted(lambda problem_id, prompt: answers)


def test_gold_comes_first_and_the_corruptor_fills_up_with_different_wrong_ones() -> None:
    pool = Attempts("corruptor", samples=5)
    task = get_task("chain-sum")
    for problem, attempts in zip(
        problems(8, "chain-sum"),
        pool.make(problems(8, "chain-sum"), trained_policy(), scope(task)), strict=True,
    ):  # fmt: skip
        gold, *others = attempts
        assert (gold.origin, gold.right, gold.label) == ("gold", True, "")
        assert (gold.response.rationale, gold.response.answer) == (problem.rationale, problem.answer)
        assert len(others) == 5 and all(a.origin == "corruptor" and not a.right and a.label for a in others)
        assert len({(a.response.rationale, a.response.answer) for a in attempts}) == 6
        assert all(any(c.result == "fail" for c in a.checks) for a in others)
    assert dict(pool.counts) == {"problems": 8, "gold": 8, "corruptor": 40, "right": 8, "attempts": 48}


def test_own_attempts_keep_their_token_ids_and_cut_off_ones_are_dropped() -> None:
    (problem,) = problems(1)
    digit = problem.steps[0].text
    right, wrong = f"{digit}|{problem.answer}", f"{digit}|{1 - int(problem.answer or 0)}"
    pool = Attempts("policy", samples=4, gold=False)
    policy = scripted(right, right, wrong, f"{wrong}…")
    (found,) = pool.make([problem], policy, scope())
    assert [(a.origin, a.right, a.label) for a in found] == [("policy", True, ""), ("policy", False, "answer")]
    assert pool.counts["cut off"] == 1 and pool.counts["attempts"] == 2
    segments = found[0].segments(policy)
    assert [s.ids for s in segments] == [s.ids for s in policy.format.response(digit, problem.answer)]
    assert all(s.learn for s in segments) and segments[-1].kind == "eos"
    assert found[0].text() == f"{digit}\nAnswer: {problem.answer}"


def test_auto_asks_the_policy_only_where_the_task_has_no_corruptor() -> None:
    class Plain(Parity):
        def provides(self) -> set[str]:
            return super().provides() - {"corruptions"}

    policy = scripted("1|1", "0|0")
    for task, origins in ((Parity(), {"gold", "corruptor"}), (Plain(), {"gold", "policy"})):
        policy.asked.clear()
        (found,) = Attempts("auto", samples=2).make(problems(1), policy, scope(task))
        assert {a.origin for a in found} <= origins and bool(policy.asked) == ("policy" in origins)


def test_mixed_prefers_own_attempts() -> None:
    problem = next(p for p in problems(20) if p.steps[0].text not in "01")
    (found,) = Attempts("mixed", samples=2).make([problem], scripted("1|1", "1|1"), scope())
    assert [a.origin for a in found] == ["gold", "policy", "corruptor"]


def test_a_pool_is_a_function_of_the_seed() -> None:
    pool, policy = Attempts("mixed", samples=6), trained_policy()
    first, again, other = (
        [[(a.response, a.origin) for a in at] for at in pool.make(problems(), policy, scope(seed=s))] for s in (4, 4, 5)
    )
    assert first == again != other


def test_what_it_needs_and_refuses() -> None:
    assert Attempts("corruptor").needs == {"verifier", "demonstrations", "corruptions"}
    assert Attempts("policy", gold=False).needs == {"verifier"}
    for arguments, message in (
        ({"source": "polcy"}, "did you mean 'policy'"),
        ({"samples": -1}, "samples must be at least 0"),
        ({"samples": 0, "gold": False}, "samples must be at least 1"),
        ({"source": "policy", "temperature": 0.0}, "temperature above 0"),
    ):
        with pytest.raises(WhetError, match=message):
            Attempts(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spec", "spread"), [("boxes:level=3", {"skip", "stale", "half", "copy", "lookup"}), ("travel:level=4", None)]
)
def test_error_types_are_the_corruptors_labels(spec: str, spread: set[str] | None) -> None:
    """The confusion matrix of labels and clusters is diagonal."""
    task = get_task(spec)
    pool = Attempts("corruptor", samples=4).make(task.problems("train", 40), trained_policy(), scope(task))
    pairs = {(a.label, error_type(a.checks)) for at in pool for a in at if not a.right}
    wanted = spread or {name for name, _ in pairs}
    assert {label for label, _ in pairs} == wanted
    # of a box that was left out the check may call what follows by another name; all else agrees
    assert {(label, found) for label, found in pairs if label != found} <= ({("skip", "copy")} if spread else set())


def test_error_type_and_cause_without_a_keyword() -> None:
    checks = [
        Check("step 1", "pass"),
        Check("step 2", "fail", "57-7 is 50, not 51"),
        Check("answer", "fail", "copy: x"),
    ]
    assert error_type(checks) == "step 2" and error_cause(checks) == "step 2: 57-7 is 50, not 51"
    assert error_type(checks[2:]) == "copy"
    assert error_type(checks[:1]) == error_cause(checks[:1]) == ""


def test_feedback_has_a_line_a_name_in_a_fixed_order() -> None:
    checks = [Check("b", "fail", "it is late"), Check("a", "pass"), Check("c", "n.a.")]
    assert feedback_text(["a", "b", "c"], checks) == "a: success\nb: fail, it is late\nc: success"
    assert feedback_text(["b", "d"], checks, reasons=False) == "b: fail\nd: fail"
    assert feedback_text(["d"], checks) == "d: fail, not checked"


def test_an_attempt_without_a_mark_shows_its_whole_text() -> None:
    (problem,) = problems(1)
    (found,) = Attempts("policy", samples=0).make([problem], trained_policy(), scope())
    assert isinstance(found[0], Attempt) and found[0].text() == f"{problem.rationale}\nAnswer: {problem.answer}"
