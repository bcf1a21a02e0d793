"""The loop of revisions, self-rethinking (mistake tuning's card, test 5) and refinement (FAFT's card, test 7)."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tiny import tiny_policy
from whet.decoding import Rethinking, changes, error_set, oracle, random_feedback, refine, revise
from whet.decoding.rethinking import suspects
from whet.errors import WhetError
from whet.sources import Attempts, Procedural, Question, Scope, Teacher
from whet.tasks import Response, get_task


class Speaker(Teacher):
    """Answers `A`, judges as it is told, and rewrites to `B1`, `B2` ..."""

    def __init__(self, verdict: str) -> None:
        self.verdict, self.asked, self.rewrites = verdict, [], 0

    def reply(self, questions: Sequence[Question]) -> list[str]:
        return [self._one(q.messages[-1]["content"]) for q in questions]

    def _one(self, text: str) -> str:
        self.asked.append(text)
        if "Does my rationale make a similar mistake?" in text:
            return self.verdict
        if "Avoid the mistake" in text:
            self.rewrites += 1
            return f"B{self.rewrites}"
        return "A"


def mistakes(spec: str = "chain-sum", n: int = 12, teacher: Teacher | None = None):
    task = get_task(spec)
    pool = Attempts("corruptor", samples=2).make(task.problems("train", n), tiny_policy(style="tags"), Scope(task, 1))
    return error_set(pool, teacher)


PROBLEMS = get_task("chain-sum").problems("test", 1)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_5_always_yes_takes_1_plus_2k_calls_and_ends_with_the_last_answer(k: int) -> None:
    speaker = Speaker("Yes, it does.")
    loop = Rethinking(speaker, mistakes(), rounds=k)
    (trail,) = loop.answer(PROBLEMS)
    assert loop.calls == len(speaker.asked) == 1 + 2 * k
    assert trail == ["A", *(f"B{i}" for i in range(1, k + 1))]


def test_5_always_no_takes_2_calls_and_leaves_the_answer_unchanged() -> None:
    speaker = Speaker("No.")
    loop = Rethinking(speaker, mistakes(), rounds=9)
    assert loop.answer(PROBLEMS) == [["A"]] and loop.calls == len(speaker.asked) == 2


def test_the_judge_sees_types_an_example_and_the_answer_and_the_seed_draws_the_example() -> None:
    past = mistakes()
    speaker = Speaker("yes")
    Rethinking(speaker, past).answer(PROBLEMS, seed=1)
    judged = speaker.asked[1]
    assert ", ".join(sorted({m.type for m in past})) in judged and PROBLEMS[0].prompt in judged and "\nA\n" in judged
    (shown,) = [m for m in past if m.incorrect in judged]
    assert shown.correct in judged and shown.cause in judged and shown.question in judged
    drawn = set()
    for seed in range(8):
        other = Speaker("no")
        Rethinking(other, past).answer(PROBLEMS, seed=seed)
        drawn.add(other.asked[1])
    assert len(drawn) > 1
    with pytest.raises(WhetError, match="was given none"):
        Rethinking(speaker, [])


def test_the_error_set_has_pairs_and_causes() -> None:
    task = get_task("chain-sum")
    for mistake in mistakes():
        assert mistake.correct != mistake.incorrect and mistake.type and mistake.cause.startswith(("step", "answer"))
        problem = next(p for p in task.problems("train", 12) if p.prompt == mistake.question)
        assert (
            f"Answer: {problem.answer}" in mistake.correct
            and f"Answer: {problem.answer}" != mistake.incorrect.split("\n")[-1]
        )
    seen: list[str] = []
    teacher = Procedural(lambda q: seen.append(q.messages[0]["content"]) or "a slip")  # type: ignore[func-returns-value]
    found = mistakes(n=2, teacher=teacher)
    assert {m.cause for m in found} == {"a slip"} and len(seen) == len(found) == 4
    assert all(m.correct in text and m.incorrect in text for m, text in zip(found, seen, strict=True))


def test_yes_and_no() -> None:
    assert suspects("Yes.") and suspects("well, YES") and not suspects("No, yes would be wrong")
    assert not suspects("I do not know") and not suspects("yesterday")


def test_only_what_is_wrong_is_revised_and_all_of_a_round_together() -> None:
    rounds: list[list[int]] = []

    def judge(places: Sequence[int], answers: Sequence[int]) -> list[str]:
        rounds.append(list(places))
        return ["low" if answer < 3 else "" for answer in answers]

    def rewrite(places: Sequence[int], answers: Sequence[int], faults: Sequence[str]) -> list[int]:
        assert set(faults) == {"low"}
        return [answer + 1 for answer in answers]

    assert revise([3, 1, 2], judge, rewrite, 5) == [[3], [1, 2, 3], [2, 3]]
    assert rounds == [[0, 1, 2], [1, 2], [1]]
    assert revise([0], judge, rewrite, 0) == [[0]]
    with pytest.raises(WhetError, match="at least 0"):
        revise([0], judge, rewrite, -1)


def test_7_a_critic_that_is_content_makes_no_refinement() -> None:
    task = get_task("travel")
    problems = task.problems("validation", 3)
    gold = [p.answer or "" for p in problems]

    def never(question: Question) -> str:
        raise AssertionError("a plan was refined")

    assert refine(Procedural(never), problems, ["x", "y", "z"], lambda problem, plan: "") == [["x"], ["y"], ["z"]]
    assert refine(Procedural(never), problems, gold, oracle(task)) == [[plan] for plan in gold]


def test_the_oracle_says_what_fails_and_a_mended_plan_is_left_alone() -> None:
    task = get_task("travel")
    problems = task.problems("validation", 2)
    gold = {p.id: p.answer or "" for p in problems}
    drafts = [gold[p.id].rpartition("\n")[0] for p in problems]  # the last day is missing
    asked: list[str] = []

    def mend(question: Question) -> str:
        asked.append(question.messages[-1]["content"])
        return gold[question.problem.id]

    trails = refine(Procedural(mend), problems, drafts, oracle(task))
    assert trails == [[draft, gold[p.id]] for draft, p in zip(drafts, problems, strict=True)]
    assert all(
        "complete: fail, 1 days of 2" in text and draft in text for text, draft in zip(asked, drafts, strict=True)
    )
    scores = [
        [task.verify(p, Response(plan, plan)).value for plan in trail]
        for p, trail in zip(problems, trails, strict=True)
    ]
    assert changes([s[0] for s in scores], [s[-1] for s in scores]) == {"flat": 0.0, "up": 1.0, "down": 0.0}


def test_random_feedback_is_valid_in_form_and_blind() -> None:
    task = get_task("travel")
    problem = task.problem("validation", 0)
    critic = random_feedback(task, seed=1, fails=0.5)
    told = critic(problem, problem.answer or "")
    assert [line.partition(":")[0] for line in told.splitlines()] == list(task.judged) and ": fail" in told
    assert told == critic(problem, problem.answer or "")
    assert random_feedback(task, fails=0.0)(problem, "nonsense") == ""
    trails = refine(
        Procedural(lambda q: "nonsense"), [problem], ["nonsense"], random_feedback(task, fails=1.0), rounds=4
    )
    assert trails == [["nonsense"] * 5]


def test_7_changes_sum_to_one() -> None:
    found = changes([0.0, 0.5, 1.0, 1.0], [1.0, 0.5, 0.0, 1.0])
    assert found == {"flat": 0.5, "up": 0.25, "down": 0.25} and sum(found.values()) == 1.0
    assert changes([], []) == {"flat": 0.0, "up": 0.0, "down": 0.0}
