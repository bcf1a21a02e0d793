"""Critique fine-tuning: its card's six tests, by number."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tiny import tiny_policy
from trained import trained_policy
from whet.errors import WhetError
from whet.models.base import load
from whet.recipes.recipe import get_recipe
from whet.recipes.supervised.cft import WORDINGS, Critiques, critic, fault_of
from whet.records import Row
from whet.sources import Attempt, Attempts, Procedural, Question, Scope, Uniform, error_type, user
from whet.tasks import Problem, Response, get_task

SPEC = "chain-sum:level=3"


def attempt_of(problem: Problem, rationale: str, answer: str, task: Any) -> Attempt:
    response = Response(f"{rationale}\n{answer}", answer, rationale)
    checks = tuple(task.check(problem, response))
    return Attempt(problem, response, task.verify(problem, response), checks, "corruptor", error_type(checks))


def asked(attempt: Attempt, seed: int = 0) -> Question:
    return Question(user(""), attempt.problem, attempt, seed=seed)


def built(
    task: str = SPEC, n: int = 1, samples: int = 100, policy: Any = None, teacher: Any = None, **more: Any
) -> Critiques:
    collect = Critiques(Attempts("corruptor", samples), n, teacher or Procedural(critic), **more)
    problems = Uniform(limit=n)
    problems.bind(get_task(task), 5)
    policy = policy or tiny_policy(style="tags", max_position_embeddings=2048)
    collect.prepare(problems, policy, Scope(get_task(task), 7))
    return collect


def critique_of(row: Row, policy: Any) -> str:
    (segment,) = [s for s in row["response"].segments if s.kind == "critique"]
    return policy.format.decode(segment.ids)


@pytest.fixture(scope="module")
def one_shot() -> Critiques:
    return built()


@pytest.mark.parametrize("style", ["tags", "chat", "plain"])
def test_1_the_critique_is_learnt_and_nothing_else(style: str) -> None:
    policy = tiny_policy(style=style, max_position_embeddings=2048)
    for row in built(samples=3, policy=policy).stored:
        sample = row["response"]
        question, critique, eos = sample.segments
        assert (question.learn, critique.kind, critique.learn, eos.learn) == (False, "critique", True, True)
        assert sample.count_learnt() == len(critique.ids) + 1
        text = policy.format.decode(question.ids)
        assert "Question:\n" in text and "Student's Solution:\n" in text
        assert "Conclusion" not in text and "boxed" not in text  # neither verdict nor correction


@pytest.mark.parametrize("seed", range(len(WORDINGS)))
def test_2_the_critic_cites_the_first_wrong_step_and_corrects_it(seed: int) -> None:
    task = get_task(SPEC)
    for number, problem in enumerate(task.problems("train", 12)):
        wrong = task.corrupt(problem, random.Random(number))
        bad = attempt_of(problem, wrong.rationale, wrong.answer, task)
        text = critic(asked(bad, seed))
        negative = WORDINGS[seed][1].partition("{")[0] or WORDINGS[seed][1].partition("}")[2].partition("{")[0]
        (named,) = [line for line in text.splitlines() if f"Step {wrong.step + 1} (" in line]
        assert negative.strip(" :") in named
        assert f"Step {wrong.step + 2} (" not in text
        assert f"\\boxed{{{problem.answer}}}" in text and text.endswith("Conclusion: wrong")
        good = attempt_of(problem, problem.rationale, problem.answer or "", task)
        text = critic(asked(good, seed))
        assert text.endswith("Conclusion: right") and "boxed" not in text and WORDINGS[seed][3] not in text
        for attempt in (good, bad):
            assert fault_of(critic(asked(attempt, seed)), attempt, task) == ""


def test_3_the_filter() -> None:
    task = get_task(SPEC)
    problem = task.problem("train", 0)
    wrong = task.corrupt(problem, random.Random(0))
    good, bad = (attempt_of(problem, r, a or "", task)
                 for r, a in ((problem.rationale, problem.answer), (wrong.rationale, wrong.answer)))  # fmt: skip
    boxed = f"so \\boxed{{{problem.answer}}}"
    assert fault_of("fine.\nConclusion: right", good, task) == ""
    assert fault_of("fine.\n**Conclusion: right.**", good, task) == ""
    assert fault_of("fine.\nConclusion: wrong", good, task) == "with a wrong verdict"
    assert fault_of(f"{boxed}\nConclusion: right", bad, task) == "with a wrong verdict"
    assert fault_of(f"{boxed}\nConclusion: wrong", bad, task) == ""
    assert fault_of("so \\boxed{-1}\nConclusion: wrong", bad, task) == "with a wrong correction"
    assert fault_of(f"first \\boxed{{1}}, {boxed}\nConclusion: wrong", bad, task) == ""
    for text in ("it is right", "Conclusion: maybe", "Conclusion: right\nor is it?"):
        assert fault_of(text, good, task) == "without a conclusion"


def test_3_hundred_candidates_and_seven_wordings_are_sampled_to_600_by_the_seed(one_shot: Critiques) -> None:
    counts = one_shot.counts
    assert counts["attempts"] == 101 and counts["critiques that pass"] == 707 and counts["rows"] == 600
    again = built()
    assert [r.state() for r in again.stored] == [r.state() for r in one_shot.stored]
    assert built(most=700).counts["rows"] == 700 and built(most=9999).counts["rows"] == 707


def test_3_bad_critiques_are_dropped_and_counted() -> None:
    def careless(question: Question) -> str:
        text = critic(question)
        return text if question.seed % 7 else text.replace("Conclusion: wrong", "Conclusion: right")

    collect = built(samples=10, teacher=Procedural(careless))
    assert collect.counts["critiques with a wrong verdict"] == 10 and collect.counts["rows"] == 11 * 7 - 10
    lazy = built(samples=10, teacher=Procedural(lambda q: critic(asked(q.attempt)) + " [END]"))  # type: ignore[arg-type]
    assert lazy.counts["critiques repeated"] == 11 * 6 and lazy.counts["rows"] == 11
    with pytest.raises(WhetError, match=r"found nothing to learn from .*critiques without a conclusion 11"):
        built(samples=10, teacher=Procedural(lambda q: "hm"))


def test_4_one_question_and_at_least_90_candidates(one_shot: Critiques) -> None:
    policy = tiny_policy(style="tags")
    prompts = [policy.format.decode(r["response"].segments[0].ids) for r in one_shot.stored]
    questions, candidates = zip(*(p.split("Student's Solution:\n") for p in prompts), strict=True)
    assert len(set(questions)) == 1 and len(set(candidates)) >= 90
    assert {r.problem_id for r in one_shot.stored} == {one_shot.stored[0].problem_id}


def test_4_no_critique_text_holds_the_end_marker(one_shot: Critiques) -> None:
    policy = tiny_policy(style="tags")
    texts = [critique_of(r, policy) for r in one_shot.stored]
    assert all("[END]" not in t and "Conclusion: " in t for t in texts)


def test_5_evaluation_is_solving(one_shot: Critiques) -> None:
    assert one_shot.condition is None
    policy = load()
    text = policy.format.decode(policy.format.prompt(get_task(SPEC).problem("test", 0))[0].ids)
    assert text.startswith("<bos>") is False or "ritique" not in text
    assert "Solution" not in text and "Conclusion" not in text


def test_6_rows_that_are_too_long_are_removed_whole() -> None:
    long = built(samples=10)
    lengths = sorted(len(r["response"]) for r in long.stored)
    limit = lengths[len(lengths) // 2]
    policy = tiny_policy(style="tags", max_position_embeddings=limit)
    short = built(samples=10, policy=policy)
    assert short.counts["critiques too long"] == sum(n > limit for n in lengths)
    assert short.counts["rows"] == sum(n <= limit for n in lengths)
    assert all("Conclusion: " in critique_of(r, policy) and r["response"].ended for r in short.stored)


def test_right_candidates_may_be_repeated_up_to_a_share() -> None:
    assert built(samples=10).counts["right rows"] == 7
    counts = built(samples=10, right=0.3).counts
    assert 0.3 <= counts["right rows"] / counts["rows"] < 0.31 and counts["rows"] - counts["right rows"] == 70


def test_many_problems_and_own_answers_on_any_task() -> None:
    (stage,) = get_recipe("cft")(limit=6, samples=4, source="policy", steps=2).stages
    problems = Uniform(limit=6)
    problems.bind(get_task("parity"), 0)
    stage.collect.prepare(problems, trained_policy(max_position_embeddings=512), Scope(get_task("parity"), 1))
    assert len({r.problem_id for r in stage.collect.stored}) >= 5  # type: ignore[attr-defined]


def test_a_conversation_keeps_its_earlier_turns() -> None:
    from whet.recipes.supervised.cft import instead

    turns = ({"role": "system", "content": "be brief"}, {"role": "user", "content": "1+1?"})
    asked_ = instead(Problem("a", "1+1?", "2", messages=turns), "new")
    assert asked_.messages == (turns[0], {"role": "user", "content": "new"}) and asked_.prompt == "new"


def test_refusals() -> None:
    for arguments, message in (
        ({"limit": 0}, "at least 1"), ({"teacher": "gpt"}, "procedural, model:NAME"), ({"right": 1.0}, "share of rows"),
        ({"source": "x"}, "unknown source of attempts"), ({"rationale": False}, "rationale=false"),
    ):  # fmt: skip
        with pytest.raises(WhetError, match=message):
            get_recipe("cft")(**arguments)
