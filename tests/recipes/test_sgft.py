"""SGFT's card: its tests by number. (Test 6 is LISA's, which is not built: any weights train the guide.)"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from trained import trained_folder, trained_policy
from whet.errors import WhetError
from whet.evaluation.matrix import evaluate
from whet.launch import run
from whet.recipes.recipe import get_recipe
from whet.records import Sample
from whet.sampling.sampler import SamplingSettings
from whet.sources import Guidances, Guided, Procedural, Question, Scope, Uniform, ask
from whet.sources.guided import FOLLOW, fault, guide_prompt, guided_prompt, steps_of
from whet.tasks import Problem, get_task

GREEDY = SamplingSettings(max_new_tokens=14, temperature=0.0)
SHOP = Problem("x", "A pen costs 5 and a book costs 7. What do both cost?", "12")


# -- 1 ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("guidance", "why"),
    [
        ("Add the two prices\nSay the sum", ""),
        ("1. Find both prices.\n2) Add the two prices.", ""),
        ("Take the 5 of the pen\nAdd the price of the book", ""),
        ("Find the prices\nCompute 3*4=12", "computes"),
        ("Find the prices\n5 + 7", "computes"),
        ("Find the prices\nThe sum = 12", "computes"),
        ("Find the prices\nThe answer is 12", "a number that is not in the question"),
        ("Find the prices\nAdd 8 to it", "a number that is not in the question"),
        ("Add the two prices", "not 2 to 6 steps"),
        ("\n".join(["Go on"] * 7), "not 2 to 6 steps"),
        ("\n".join(["Go on"] * 6), ""),
    ],
)
def test_1_what_computes_is_no_guidance(guidance: str, why: str) -> None:
    assert fault(guidance, SHOP) == why


def test_1_an_answer_in_words_must_not_stand_in_it_unless_the_question_names_it() -> None:
    asked = Problem("x", "Who is taller, Mia or Tom?", "Mia")
    assert fault("Compare them\nTake Mia", asked) == ""
    assert fault("Find the colour\nIt is red", Problem("x", "Which colour?", "red")) == "the answer"
    assert fault("Find the colour\nIt is predicted", Problem("x", "Which colour?", "red")) == ""
    assert steps_of("1. a\n\n- b\nStep 3: c") == ["a", "b", "c"]


# -- 2, 3 ------------------------------------------------------------------------------------------------------------
def built(task: str, n: int = 60, teacher: Any = None) -> tuple[list[Sample], Guidances, Any]:
    policy, made = trained_policy(max_position_embeddings=512), Guidances(n, teacher)
    problems = Uniform()
    problems.bind(get_task(task), 3)
    rows = made.build(problems, policy, Scope(get_task(task), 0))
    return [r["response"] for r in rows], made, policy


def test_2_and_3_kept_rows_hold_no_answer_and_learn_the_guidance_alone() -> None:
    samples, made, policy = built("word-problem:level=1-5", 80)
    assert made.counts == {"questions": 80, "kept": 80}
    known = {p.id: p for p in get_task("word-problem:level=1-5").problems("train", 80, seed=3)}
    for sample in samples:
        problem, text = known[sample.problem_id], policy.format.read(sample).rationale
        assert text == problem.plan and not fault(text, problem)
        if f" {problem.answer} " not in problem.prompt:
            assert str(problem.answer) not in text.split()
        assert [s.kind for s in sample.segments if s.learn] == ["plan", "eos"]
        prompt = policy.format.prompt(guide_prompt(problem))
        assert [s.ids for s in sample.segments if not s.learn] == [s.ids for s in prompt]


def test_a_teacher_writes_and_what_computes_is_dropped_and_counted() -> None:
    def write(question: Question) -> str:
        assert str(question.problem.answer) not in question.messages[0]["content"].split()[-1:]
        return "1. Look at the end\n2. Say if it is odd" if int(question.problem.data["n"]) % 2 else "It is 4 = 4\nso"

    samples, made, _ = built("parity", 40, Procedural(write))
    odd = sum(p.data["n"] % 2 for p in get_task("parity").problems("train", 40, seed=3))
    assert made.counts == {"questions": 40, "kept": odd, "dropped: computes": 40 - odd} and len(samples) == odd
    with pytest.raises(WhetError, match=r"Guidances found nothing .*dropped: not 2 to 6 steps 20"):
        problems = Uniform()
        problems.bind(get_task("chain-sum"), 0)
        Guidances(20).prepare(problems, trained_policy(), Scope(get_task("chain-sum"), 0))


# -- 4, 5 ------------------------------------------------------------------------------------------------------------
def test_4_the_responder_stays_bit_equal(tmp_path: Path) -> None:
    source = trained_folder()
    done = run("sgft", task="parity", model=source, steps=3, batch=4, limit=20, out=tmp_path / "r",
               test_n=4, validation_n=4, k=0, others=[], eval_every=2)  # fmt: skip
    assert {"plans_leak", "plans_exact"} <= set(done.summary["after"])
    made = get_recipe("sgft")(steps=2, batch=4, limit=20)
    policy = trained_policy()
    made.answering.bind(policy)
    responder = made.answering.responder  # type: ignore[attr-defined]
    before = {n: p.clone() for n, p in responder.model.named_parameters()}
    from whet.training.fit import Fit, Options

    Fit(policy, made.stages, get_task("parity"), options=Options(seed=1)).run()
    assert all(torch.equal(p, before[n]) for n, p in responder.model.named_parameters())
    assert any(not torch.equal(p, before[n]) for n, p in policy.model.named_parameters())


def test_5_an_oracle_gives_plan_following_and_an_empty_guidance_the_untuned_model() -> None:
    task = get_task("parity")
    problems = task.problems("test", 24)
    policy, other = trained_policy(), trained_policy(steps=25)
    plain = evaluate(policy, task, problems)

    empty = Guided(guide="none")
    empty.bind(policy)
    found = evaluate(other, task, problems, answering=empty)
    assert [[c.text for c in row] for row in found.cells] == [[c.text for c in row] for row in plain.cells]
    assert guided_prompt(problems[0], "") == problems[0]

    oracle = Guided(guide="task")
    oracle.bind(policy)
    guided = evaluate(other, task, problems, answering=oracle)
    following = evaluate(policy, task, [replace(p, prompt=f"{p.prompt}\n{FOLLOW}\n{p.plan}") for p in problems])
    assert [[c.value for c in row] for row in guided.cells] == [[c.value for c in row] for row in following.cells]
    assert [[c.text for c in row] for row in guided.cells] != [[c.text for c in row] for row in plain.cells]


def test_another_model_answers_and_both_generations_are_counted() -> None:
    guide, responder, task = trained_policy(), trained_policy("llama", "plain"), get_task("parity")
    guided = Guided(lambda: responder, budget=6)
    guided.bind(guide)
    problems = task.problems("test", 3)
    answers = guided.ask(guide, problems, GREEDY, 1, 0)
    for problem, (sample,) in zip(problems, answers, strict=True):
        (spent,) = [s for s in sample.segments if s.kind == "spent"]
        text = guided.guidances(guide, [problem], GREEDY, 1, 0)[0][0][0]
        (expected,) = ask(responder, [guided_prompt(problem, text)], GREEDY, 1, 0)[0]
        assert guided.read(guide, sample) == responder.format.read(expected)
        tokens = sum(len(s.ids) for s in sample.segments if s.sampled)
        assert 0 < len(spent.ids) <= 6 and tokens == len(spent.ids) + sum(
            len(s.ids) for s in expected.segments if s.sampled
        )
    twice = guided.ask(guide, problems[:1], replace(GREEDY, temperature=1.0), 3, 0)
    assert [len(row) for row in twice] == [3] and [s.rollout_id for s in twice[0]] == [0, 1, 2]


# -- a user's file, refusals -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("weights", ["full", "lora:rank=4"])
def test_it_learns_the_plans_of_a_file(weights: str, tmp_path: Path) -> None:
    path = tmp_path / "my.jsonl"
    made = [
        {"prompt": f"What is {n} + {n}?", "answer": 2 * n, "plan": "Take the number\nAdd it to itself"}
        for n in range(60)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    done = run("sgft", task=str(path), model=trained_folder("qwen3", "plain"), weights=weights, steps=2, batch=4, limit=0,
               guide_tokens=8, test_n=3, validation_n=3, k=0, others=[], eval_every=0)  # fmt: skip
    assert done.progress.finished and "plans_leak" in done.summary["after"]


def test_what_cannot_work_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "my.jsonl"
    path.write_text('{"prompt": "1 + 1?", "answer": 2}\n')
    with pytest.raises(WhetError, match=r"needs plans and task .* has none: provide rows with a `plan`"):
        get_recipe("sgft")().check(get_task(str(path)))
    with pytest.raises(WhetError, match="unknown guide 'polcy': did you mean 'policy'"):
        get_recipe("sgft")(guide="polcy")
    with pytest.raises(WhetError, match="leave out rationale"):
        get_recipe("sgft")(rationale=False)
