"""E2C's card: its tests by number (4 and 5 are in decoding/test_exploring.py), then pairs, plans and the recipe."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from tiny import tiny_policy
from trained import trained_policy
from whet.advantages import group_std
from whet.advantages.segments import plan_weight, split
from whet.arms import parse_arms
from whet.decoding.exploring import as_plan, draw_plans
from whet.errors import WhetError
from whet.evaluation.scores import Cell, Scores
from whet.models.policy import Policy
from whet.objectives import Context, as_objective, nll
from whet.recipes.recipe import get_recipe
from whet.records import Row, Sample, Segment
from whet.rewards import Attempt
from whet.rewards.coverage import coverage, covered
from whet.sampling.sampler import SamplingSettings
from whet.sources import Procedural, Question, Scope, Uniform, ask_members
from whet.sources.planned import Distilled, Planned
from whet.study import get_study
from whet.tasks import Problem, Response, Verdict, get_task
from whet.tasks.outline import outline, rotated, title, titles
from whet.training.fit import Fit, Options

SMALL: dict[str, Any] = {"steps": 2, "batch": 4, "group": 4}


# -- 1, 6: weights -----------------------------------------------------------------------------------------------------
def answer(*segments: tuple[str, int], advantage: float = 0.5, reward: float = 0.0) -> Row:
    """A row whose response has segments of so many tokens; the question has two."""
    parts = [Segment("question", [2, 3]), *(Segment(kind, [7] * n, True, True) for kind, n in segments)]
    sample = Sample(parts, "p", "g")
    sample.per_token["advantage"] = advantage * sample.learn_mask
    return Row({"response": sample}, {"reward": reward})


def weighted(row: Row, weight: float, missing: str = "plain") -> list[float]:
    plan_weight(weight, missing)([row])
    return row["response"].per_token["advantage"][2:].tolist()


def test_1_tokens_before_the_end_of_the_plan_weigh_more() -> None:
    assert weighted(answer(("plan", 3), ("execution", 2)), 2.0) == [1.0, 1.0, 0.5, 0.5, 0.5]
    assert split(answer(("plan", 3), ("execution", 2))["response"]) == 4
    assert weighted(answer(("plan", 3), ("execution", 2)), 1.0) == [0.5] * 5
    # the plan was not closed, but the execution begins somewhere: there it ends, and that token weighs 1
    assert weighted(answer(("response", 2), ("execution", 3)), 2.0) == [1.0, 1.0, 0.5, 0.5, 0.5]
    assert weighted(answer(("response", 5)), 2.0, "whole") == [1.0] * 5
    assert weighted(answer(("response", 5)), 2.0) == [0.5] * 5
    assert weighted(answer(("rationale", 3), ("answer", 2)), 2.0) == [0.5] * 5
    with pytest.raises(WhetError, match="unknown weight of an answer without a plan 'hole': did you mean 'whole'"):
        plan_weight(2.0, "hole")


def test_6_the_weight_comes_after_the_groups_statistics() -> None:
    rows = [answer(("plan", 3), ("execution", 2), reward=r) for r in (1.0, 0.0, 0.0)]
    group_std()(rows)
    plain = [row.numbers["advantage"] for row in rows]
    plan_weight(3.0)(rows)
    assert [row.numbers["advantage"] for row in rows] == plain and sum(plain) == pytest.approx(0, abs=1e-6)
    for row, value in zip(rows, plain, strict=True):
        found = row["response"].per_token["advantage"]
        assert found.tolist() == pytest.approx([0, 0, 3 * value, 3 * value, value, value, value])


@pytest.mark.parametrize("style", ["tags", "plain", "chat"])
def test_a_plan_is_written_cut_and_read_in_every_style(style: str) -> None:
    form = tiny_policy(style=style).format
    made = form.planned("b*+\nc+", "b=3*4+2=0\nc=0+3=3", "3")
    assert [s.kind for s in made] == ["plan", "execution", "answer", "eos"] and all(s.learn for s in made)
    ids = [i for s in made for i in s.ids]
    cut = form.cut(ids)
    assert [(s.kind, s.ids) for s in cut] == [(s.kind, s.ids) for s in made]
    read = form.read(Sample([Segment("question", [5]), *cut]))
    assert (read.plan, read.execution, read.answer) == ("b*+\nc+", "b=3*4+2=0\nc=0+3=3", "3")
    assert read.rationale == f"{read.plan}\n{read.execution}" and read.ended
    # the last token of the plan's segment is the one where it ends: without it nothing has ended
    plan = made[0].ids
    assert form.decode(plan).endswith(form.plan_end) and form.plan_end not in form.decode(plan[:-1])
    assert [s.kind for s in form.cut(plan)] == ["plan"] and [s.kind for s in form.cut(plan[:-1])] == ["response"]


# -- 2: coverage -------------------------------------------------------------------------------------------------------
def test_2_coverage_of_a_plan() -> None:
    plan = "1. isolate x\n2. substitute\n3. simplify"
    assert coverage(plan, "Isolate X: 2x = 4, so x = 2\nsimplify: done") == pytest.approx(2 / 3)
    assert coverage(plan, plan) == 1 and coverage("", "isolate x") == 0 and coverage(plan, "") == 0
    # one of three words is more than 0.3 of the shorter title, one of four is not; letters are no words
    assert coverage("add the terms", "add both numbers now") == 1 and coverage("add all of it", "add b c d e") == 0
    assert coverage("b*+\nc+", "b=3*4+2=0\nd=0+3=3") == 0.5


@pytest.mark.parametrize(("value", "expected"), [(1.0, 0.5), (0.0, 0.0)])
def test_2_a_wrong_answer_is_worth_nothing_whatever_its_coverage(value: float, expected: float) -> None:
    response = Response("", "3", "", plan="b*+\nc+", execution="b=1*2+3=5")
    attempt = Attempt(Problem("p", "?"), response, Verdict(value, "ok"), 5, False)
    assert covered()([attempt]) == [{"coverage": expected}]
    bare = replace(attempt, response=Response("", "3", "7"))
    assert covered()([bare]) == [{"coverage": 0.0}], "no plan covers nothing"


# -- outlines ----------------------------------------------------------------------------------------------------------
def test_an_outline_has_the_steps_and_not_their_numbers() -> None:
    problem = get_task("mod-chain:level=3").problems("train", 1)[0]
    plan = outline(problem)
    assert len(titles(plan)) == len(problem.steps) and not any(c.isdigit() or c == "=" for c in plan)
    assert titles(plan) == plan.splitlines() == titles(problem.rationale)
    assert [t[0] for t in titles(plan)] == [s.text[0] for s in problem.steps], "what is found, in its order"
    assert title("2) Take 1,500 off: 20 - 5 = 15") == "Take off" and title("7") == "compute"
    assert titles("12+45=57\n57 - 7 = 50\n50*2=100") == ["+45", "-7", "*2"] == titles("+45\n-7\n*2")
    assert rotated("a\nb\nc") == "b\nc\na" and rotated("") == ""


def test_a_problem_with_several_solutions_is_learnt_in_each() -> None:
    task = get_task("chain-sum:level=4")
    problem = task.problems("train", 1, seed=3)[0]
    form = tiny_policy("gpt2", style="tags").format
    ways = [form.read(rows_of(Planned(), "chain-sum:level=4", 1, seed=seed)[0]["response"]) for seed in range(8)]
    assert len({w.execution for w in ways}) > 2 and len({w.plan for w in ways}) > 1
    for way in ways:
        assert way.answer == problem.answer and titles(way.execution) == way.plan.splitlines()
        assert all(int(line.rpartition("=")[2]) >= 0 for line in way.execution.splitlines())
        assert way.execution.splitlines()[-1].rpartition("=")[2] == problem.answer
    only = get_task("mod-chain:level=3")
    assert only.another_way(one := only.problems("train", 1)[0], random.Random(0)) is one


# -- 3: pairs and EF-SFT -----------------------------------------------------------------------------------------------
def rows_of(
    collect: Any, spec: str = "mod-chain:level=2", n: int = 6, policy: Policy | None = None, seed: int = 0
) -> list[Row]:
    problems = Uniform()
    problems.bind(get_task(spec), 3)
    return collect.rows(problems, n, policy or tiny_policy("gpt2", style="tags"), Scope(get_task(spec), seed))


def test_3_only_the_plan_and_the_token_that_ends_it_are_learnt() -> None:
    policy = tiny_policy("gpt2", torch.float64, style="tags")
    rows = rows_of(Planned(learn="plan"), n=3, policy=policy)
    for row in rows:
        learnt = [s for s in row["response"].segments if s.learn]
        assert [s.kind for s in learnt] == ["plan"] and policy.format.decode(learnt[0].ids).endswith("</plan>")
        assert not row["response"].learn_mask[: row["response"].prompt_length].any()
    objective = as_objective(nll())

    def gradient(made: list[Row]) -> torch.Tensor:
        total = objective.total(Context(made, {"policy": policy}, objective.counts(made)))
        loss = sum(t / c for t, c in total.values())
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(policy.model.parameters()))])

    bare = [
        Row({"response": Sample([s for s in r["response"].segments if s.kind in ("question", "plan")])}) for r in rows
    ]
    assert torch.allclose(gradient(rows), gradient(bare), rtol=0, atol=1e-12), "what follows the plan adds nothing"
    whole = rows_of(Planned(), n=3, policy=policy)
    assert not torch.allclose(gradient(whole), gradient(bare), atol=1e-3)


def test_pairs_are_the_tasks_own_or_plans_beside_other_executions() -> None:
    form = tiny_policy("gpt2", style="tags").format
    causal, shuffled = (rows_of(Planned(pairs)) for pairs in ("causal", "shuffled"))
    read = [[form.read(r["response"]) for r in rows] for rows in (causal, shuffled)]
    assert all(titles(r.plan) == titles(r.execution) for r in read[0])
    assert [r.execution for r in read[1]] == [r.execution for r in read[0]]
    assert [r.plan for r in read[1]] == [r.plan for r in read[0][1:] + read[0][:1]]
    with pytest.raises(WhetError, match="a batch of at least 2"):
        rows_of(Planned("shuffled"), n=1)
    with pytest.raises(WhetError, match="did you mean 'causal'"):
        Planned("casual")


def test_a_teacher_distils_the_plan_and_carries_it_out_without_the_solution() -> None:
    asked: list[str] = []

    def write(question: Question) -> str:
        text = question.messages[0]["content"]
        asked.append(text)
        p = question.problem
        if "Write the steps behind" in text:
            return "1. " + outline(p).replace("\n", "\n2. ")
        assert outline(p) in text and p.steps[0].text not in text.replace(p.prompt, "")
        wrong = int(p.answer or 0) % 2
        return f"{p.rationale}\nAnswer: {p.answer if not wrong else 99}"

    collect, task, policy = Distilled(12, Procedural(write)), get_task("mod-chain:level=2"), tiny_policy(style="tags")
    problems = Uniform()
    problems.bind(task, 3)
    rows = collect.build(problems, policy, Scope(task, 0))
    even = [p for p in task.problems("train", 12, seed=3) if int(p.answer or 0) % 2 == 0]
    assert collect.counts == {"questions": 12, "kept": len(even)} and len(asked) == 24
    assert [policy.format.read(r["response"]).plan for r in rows] == [outline(p) for p in even]


# -- plans that are drawn --------------------------------------------------------------------------------------------
def planner(style: str = "tags") -> Policy:
    """A tiny policy that has learnt to plan on `parity`, in a few steps."""
    policy = trained_policy("gpt2", style, max_position_embeddings=512)
    recipe = get_recipe("e2c")(warm=30, warm_batch=16, warm_lr=1e-2, steps=0)
    Fit(policy, recipe.stages, get_task("parity"), options=Options(seed=1)).run()
    return policy


@pytest.fixture(scope="module")
def policy() -> Policy:
    return planner()


def test_plans_stop_where_they_end_and_may_be_given(policy: Policy) -> None:
    task, form = get_task("parity"), policy.format
    problems = task.problems("test", 3)
    drawn = draw_plans(policy, problems, 4, SamplingSettings(24, 1.0), 0)
    assert [len(group) for group in drawn] == [4, 4, 4]
    texts = [form.decode([i for s in m.prefix for i in s.ids]) for group in drawn for m in group]
    assert sum("</plan>" in text for text in texts) > 6 and all("</plan>" not in text[:-7] for text in texts)
    twice = draw_plans(policy, [problems[0]] * 2, 4, SamplingSettings(24, 1.0), 0)
    ids = [[[s.ids for s in m.prefix] for m in group] for group in (*twice, drawn[0])]
    assert ids[0] == ids[2] != ids[1], "a problem that is asked twice gets other plans"
    member = as_plan(policy, "say it")
    ((sample,),) = ask_members(policy, problems[:1], [[member]], SamplingSettings(40, temperature=0.0), 0)
    given = sample.segments[1]
    assert (given.kind, given.sampled, given.learn) == ("plan", False, False) and form.decode(
        given.ids
    ) == "<plan>say it</plan>"
    assert all(s.sampled for s in sample.segments[2:]) and sample.segments[2:]


# -- the recipe --------------------------------------------------------------------------------------------------------
def learnt_from(name: str, policy: Policy, **arguments: Any) -> tuple[list[Row], dict[str, torch.Tensor]]:
    stages = get_recipe(name)(**{**SMALL, **arguments}).stages
    rows: list[Row] = []
    stages[-1].transforms = [*stages[-1].transforms, rows.extend]
    copy = policy.frozen()
    copy.model.requires_grad_(True)
    Fit(copy, stages, get_task("parity"), options=Options(seed=2)).run()
    return rows, {n: p.detach() for n, p in copy.model.named_parameters()}


def test_weight_one_without_coverage_is_grpo_to_the_bit(policy: Policy) -> None:
    _, ours = learnt_from("e2c", policy, warm=0, weight=1, coverage=False, temperature=1.2)
    _, plain = learnt_from("grpo", policy, temperature=1.2)
    rows, double = learnt_from("e2c", policy, warm=0, weight=2, coverage=False, temperature=1.2)
    assert all(torch.equal(ours[n], plain[n]) for n in plain)
    assert any(not torch.equal(double[n], plain[n]) for n in plain)
    for row in rows:
        found, at = row["response"].per_token["advantage"], split(row["response"])
        start = row["response"].prompt_length
        at = start if at is None else at
        assert found[start:at].tolist() == pytest.approx([2 * row.numbers["advantage"]] * (at - start))
        assert found[at:].tolist() == pytest.approx([row.numbers["advantage"]] * (len(found) - at))
    assert sum(split(row["response"]) is not None for row in rows) > len(rows) // 2


def test_stages_and_what_they_are_worth(policy: Policy) -> None:
    made = get_recipe("e2c")(warm=3, wide=2, steps=4, group=6, temperature=0.9, coverage=True, lr=2e-4)
    pairs, wide, last = made.stages
    assert (pairs.name, pairs.steps, pairs.batch, pairs.reward) == ("pairs", 3, 32, None)
    assert (wide.steps, wide.collect.group, wide.collect.temperature, list(wide.transforms)) == (2, 32, 1.3, [])
    assert (last.steps, last.collect.group, last.collect.temperature, len(last.transforms)) == (4, 6, 0.9, 1)
    assert wide.updates[0].optimizer.lr == last.updates[0].optimizer.lr == 2e-4
    rows, _ = learnt_from("e2c", policy, warm=0, temperature=1.2)
    for row in rows:
        assert row.numbers["reward"] == row.numbers["reward/coverage"] <= row.numbers["accuracy"]
    assert any(row.numbers["accuracy"] for row in rows)
    (dense,) = get_recipe("e2c")(learn="plan", steps=0).stages
    assert dense.collect.learn == "plan" and type(get_recipe("e2c")(teacher="model:x").stages[0].collect) is Distilled


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("e2c", {"decode": "clutser"}, "unknown decode 'clutser': did you mean 'cluster'"),
        ("e2c", {"warm": 0, "steps": 0}, "nothing is learnt"),
        ("e2c", {"reward": "mine.py:f"}, "set coverage=false"),
        ("e2c", {"teacher": "model:x", "learn": "plan"}, "leave out pairs and learn"),
        ("e2c", {"decode": "all", "explore": 0}, "at least 1"),
        ("e2c", {"learn": "execution"}, "unknown part to learn"),
    ],
)
def test_what_cannot_work_is_refused(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(WhetError, match=message):
        get_recipe(name)(**arguments)


# -- the study ---------------------------------------------------------------------------------------------------------
def judged(few: float, adherence: float, tokens: float) -> str:
    """The outcome where clusters has this accuracy, adherence and share of the tokens."""
    study = get_study("e2c")

    def cell(arm: str, seed: int) -> Cell:
        own = arm == "clusters"
        right = round(400 * (few if own else 0.8)) + seed
        found = {"accuracy": right / 400, "adherence": (adherence if own else 0.1) + 0.01 * seed,
                 "tokens_per_answer": (tokens if own else 1.0) * 500 + seed}  # fmt: skip
        greedy = "1" * right + "0" * (400 - right)
        return Cell(arm, seed, "k", {}, "d", study.task, {}, found, {"greedy": greedy, "k": 0, "sampled": ""})

    return study.judge(Scores([cell(arm, seed) for arm in study.arms for seed in range(3)])).outcome


def test_the_study_runs_what_it_says_and_can_fail() -> None:
    study = get_study("e2c")
    for arm in parse_arms(study.arms):
        config = arm.config(study.task, 0, study.settings)
        get_recipe(config.recipe)(**config.arguments).check(get_task(study.task))
    assert judged(0.8, 0.9, 0.4) == "reproduced"
    assert judged(0.7, 0.9, 0.4) == judged(0.8, 0.4, 0.4) == judged(0.8, 0.9, 0.6) == "not reproduced"
    assert judged(0.78, 0.9, 0.4) == "inconclusive"
