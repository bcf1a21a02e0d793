"""Feedback-aware fine-tuning: its card's tests 4 to 6, by number; the checks and the metrics are in tests/tasks, the refiner
in tests/decoding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tiny import tiny_policy
from trained import trained_folder, trained_policy
from whet.errors import WhetError
from whet.launch import run
from whet.models.base import load
from whet.recipes.recipe import get_recipe
from whet.recipes.supervised.faft import wanted
from whet.sources import Scope, feedback_text
from whet.tasks import Response, get_task
from whet.tasks.travel import COMMON, Travel
from whet.training.fit import Fit, Options

SUCCESS = "\n".join(f"{name}: success" for name in COMMON)


def prepared(task: Any = None, policy: Any = None, **arguments: Any) -> tuple[Any, Any]:
    (stage,) = get_recipe("faft")(**{"limit": 8, "samples": 6, **arguments}).stages
    policy = policy or tiny_policy(style="plain", max_position_embeddings=4096)
    task = task or Travel()
    stage.problems.bind(task, 1)
    stage.collect.bind(task)
    stage.collect.prepare(stage.problems, policy, Scope(task, 2))
    return stage.collect, policy


def test_4_the_gold_plans_feedback_is_the_inference_string_byte_for_byte() -> None:
    for level in (1, 2, 3, 4):
        task = Travel(level)
        for problem in task.problems("train", 20):
            checks = task.check(problem, Response(problem.answer or "", problem.answer))
            assert feedback_text(task.judged, checks).encode() == wanted(task, "").encode() == SUCCESS.encode()


def test_5_reference_query_feedback_plan_in_this_order_and_only_the_plan_is_learnt() -> None:
    collect, policy = prepared()
    told = 0
    for row in collect.stored:
        question, feedback, *plan = row["response"].segments
        assert (question.kind, feedback.kind, question.learn, feedback.learn) == ("question", "condition", False, False)
        assert all(s.learn for s in plan) and plan[-1].kind == "eos"
        text, lines = policy.format.decode(question.ids), policy.format.decode(feedback.ids).splitlines()
        assert text.index("hotels") < text.index("plan 2 days")
        assert [line.partition(":")[0] for line in lines] == list(COMMON)
        answer = policy.format.read(row["response"]).answer
        assert answer and answer not in text and answer not in "\n".join(lines)
        told += "\n".join(lines) == SUCCESS
        if row.numbers["right"]:
            assert "\n".join(lines) == SUCCESS
    assert collect.counts["announced as wanted"] == told >= 8
    assert collect.counts["rows"] == 8 * 7


def test_6_inference_calls_no_checker(monkeypatch: pytest.MonkeyPatch) -> None:
    collect, policy = prepared()
    policy.format.condition = collect.condition

    def never(*args: Any) -> Any:
        raise AssertionError("the checker was asked")

    monkeypatch.setattr(Travel, "check", never)
    monkeypatch.setattr(Travel, "verify", never)
    problem = Travel().problem("test", 0)
    prompt = policy.format.prompt(problem)
    assert policy.format.decode(prompt[1].ids) == SUCCESS + "\n"


def test_reasons_may_be_left_out_and_one_failure_may_be_asked_for() -> None:
    collect, policy = prepared(reasons=False, fail="restaurants")
    assert collect.condition == SUCCESS.replace("restaurants: success", "restaurants: fail")
    texts = [policy.format.decode(r["response"].segments[1].ids) for r in collect.stored]
    assert {line.partition(": ")[2] for t in texts for line in t.splitlines()} == {"success", "fail"}
    with_reasons, policy = prepared()
    assert any(", " in policy.format.decode(r["response"].segments[1].ids) for r in with_reasons.stored)
    with pytest.raises(WhetError, match="unknown check of task 'travel' 'restaurant': did you mean 'restaurants'"):
        prepared(fail="restaurant")


def test_passing_attempts_alone_and_unread_ones_never() -> None:
    collect, _ = prepared(learn="passing", feedback=False)
    assert collect.counts["rows"] == collect.counts["right rows"] == 8 and collect.condition == ""

    class Cryptic(Travel):
        def corrupt(self, problem: Any, rng: Any) -> Any:
            wrong = super().corrupt(problem, rng)
            return type(wrong)((), wrong.answer.replace(",", ";"), wrong.label, 0)

    collect, _ = prepared(task=Cryptic())
    assert collect.counts["attempts"] == 8 * 7 and collect.counts["rows"] == 8


def weights(name: str, **arguments: Any) -> dict[str, torch.Tensor]:
    recipe = get_recipe(name)(**{"steps": 3, "batch": 24, "limit": 24, "lr": 1e-3, **arguments})
    fit = Fit(trained_policy(), recipe.stages, get_task("parity"), options=Options(seed=0))
    fit.run()
    return fit.policy.model.state_dict()


def test_without_samples_and_feedback_it_is_sft() -> None:
    ours, theirs = weights("faft", samples=0, feedback=False), weights("sft")
    start = trained_policy().model.state_dict()
    moved = max(float((theirs[n] - start[n]).abs().max()) for n in start)
    assert max(float((ours[n] - theirs[n]).abs().max()) for n in start) < 0.02 * moved


def test_a_users_file_with_own_answers(tmp_path: Path) -> None:
    rows = [{"prompt": f"parity {n}", "answer": str(n % 2), "rationale": str(n % 10)} for n in range(100, 160)]
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    quick: dict[str, Any] = {"test_n": 4, "validation_n": 4, "k": 0, "others": [], "eval_every": 0, "steps": 2}
    for name, arguments in (("faft", {}), ("mistake-tuning", {}), ("cft", {"samples": 6, "limit": 4})):
        model = trained_folder(max_position_embeddings=512)
        done = run(name, task=str(file), model=model, weights="lora:rank=4", out=tmp_path / name, **quick, **arguments)
        assert done.progress.finished
        told = {"faft": "answer: success", "mistake-tuning": "[CORRECT RATIONALE]", "cft": ""}[name]
        assert load(tmp_path / name / "model").format.condition == told
    with pytest.raises(WhetError, match="needs corruptions and task 'mine' has none: provide a task with a corruptor"):
        run("faft", task=str(file), model=trained_folder(), source="corruptor", **quick)


def test_refusals() -> None:
    for arguments, message in (
        ({"learn": "pasing"}, "did you mean 'passing'"),
        ({"feedback": False, "fail": "budget"}, "no failure to ask for"),
        ({"feedback": False, "reasons": False}, "no reason to leave out"),
        ({"warm": 5}, "source=policy or mixed"),
    ):
        with pytest.raises(WhetError, match=message):
            get_recipe("faft")(**arguments)
