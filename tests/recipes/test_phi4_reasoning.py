"""phi-4-reasoning: totals of its reward, the form, teachable prompts, a stronger model's traces, and its stages."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from trained import Scripted, trained_folder, trained_policy
from whet.advantages import group_std
from whet.arms import parse_arms
from whet.errors import WhetError
from whet.launch import run
from whet.recipes.recipe import get_recipe
from whet.recipes.reinforced.phi4_reasoning import length_accuracy, thinks
from whet.records import Row, Sample, Segment
from whet.rewards import Attempt, Reward, accuracy, total
from whet.rewards.repetition import repetition
from whet.sources import Scope
from whet.sources.curation import Agreed, Curated, Difficulty
from whet.study import get_study
from whet.tasks import Problem, Response, Verdict, get_task
from whet.training.fit import Fit, Options

M = 31_744
GOOD = "<think>5+7=12</think><answer>12</answer>"
QUICK: dict[str, Any] = {"test_n": 4, "validation_n": 4, "k": 0, "others": [], "eval_every": 0}


def attempt(
    value: float, tokens: int, text: str = GOOD, ended: bool = True, ids: list[int] | None = None, **parts: float
) -> Attempt:
    sample = Sample(
        [Segment("question", [2]), Segment("rationale", ids or [5, 6, 7], learn=True, sampled=True)], "p", "p"
    )
    response = Response(text, "12", "5+7=12" if "</think>" in text else "", ended)
    verdict = Verdict(value, "ok" if value == 1.0 else "wrong", parts)
    return Attempt(Problem("p", "?", "12"), response, verdict, tokens, not ended, M, Row({"response": sample}))


def reward(**arguments: Any) -> Reward:
    found = get_recipe("phi-4-reasoning")(sft_steps=0, **arguments).stages[0].reward
    assert found is not None
    return found


# -- card tests 2, 5, 6 --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("one", "value"),
    [
        (attempt(1.0, 100), 0.61538),
        (attempt(0.0, 9000), -0.30769),
        (attempt(0.0, M, "<think>5+7", ended=False), -0.30769),
        (attempt(1.0, 100, "<answer>12</answer>"), -0.61538),
        (attempt(1.0, 100, ids=[9] * 20), 8 / 13 - 1 / 13),
    ],
)
def test_2_totals(one: Attempt, value: float) -> None:
    (parts,) = reward()([one])
    assert set(parts) == {"length", "repetition"} and total(parts) == pytest.approx(value, abs=1e-5)


def test_6_a_cut_off_right_answer_is_not_right() -> None:
    (parts,) = length_accuracy()([attempt(1.0, M, GOOD, ended=False)])
    assert parts == {"length": -0.5}


def test_5_only_the_ratio_of_the_weights_matters() -> None:
    group = [attempt(v, n) for v, n in ((1.0, 100), (1.0, 30_000), (0.0, 50), (0.0, 5000))]
    found = []
    for scored in (reward(repetition_share=0)(group), length_accuracy()(group)):
        rows = [
            Row({"response": a.row["response"].copy()}, {"reward": total(p)})
            for a, p in zip(group, scored, strict=True)
            if a.row
        ]
        group_std()(rows)
        found.append([row.numbers["advantage"] for row in rows])
    assert found[0] == pytest.approx(found[1], abs=1e-5) and max(found[0]) > 0.5
    both = reward()(group)
    assert [p["repetition"] for p in both] == [0.0] * 4
    assert [p["length"] for p in both] == [pytest.approx(8 / 13 * p["length"]) for p in length_accuracy()(group)]


@pytest.mark.parametrize(
    ("text", "rationale", "ended", "formed"),
    [
        (GOOD, "x", True, True),
        ("\n" + GOOD, "x", True, True),
        ("<answer>12</answer>", "", True, False),
        ("12 <think>a</think>12", "a", True, False),
        ("<think>a<think>b</think>12", "b", True, False),
        ("<think>a</think><think>b</think>12", "b", True, False),
        ("<think>never closed", "", True, False),
        ("</think>12", "", True, False),
        ("<think>cut off here", "", False, True),
        ("12</think>cut off here", "", False, False),
        ("2+2 is 4\nAnswer: 4", "2+2 is 4", True, True),  # a format without tags
        ("4", "", True, False),
    ],
)
def test_form(text: str, rationale: str, ended: bool, formed: bool) -> None:
    assert thinks(Response(text, "12", rationale, ended)) is formed


def test_a_task_may_judge_its_own_form() -> None:
    (bad,), (good,) = (
        length_accuracy()([attempt(1.0, 5, text, format=form)]) for text, form in ((GOOD, 0.0), ("12", 1.0))
    )
    assert bad == {"length": -1.0} and good == {"length": 1.0}


def test_accuracy_of_1_or_0_is_the_control() -> None:
    scored = reward(shaped=False, repetition_share=0)([attempt(1.0, M), attempt(0.0, 3, "<answer>")])
    assert [total(p) for p in scored] == pytest.approx([8 / 13, 0])
    assert repetition()([attempt(1.0, 3)]) == [{"repetition": 0.0}]


def test_without_its_reward_kl_entropy_and_first_stage_it_is_grpo() -> None:
    """Bit for bit, beside a reward of 8/13 of the accuracy."""
    small: dict[str, Any] = {"steps": 2, "batch": 4, "group": 4, "lr": 1e-3}
    ours = get_recipe("phi-4-reasoning")(sft_steps=0, shaped=False, repetition_share=0, kl=0, entropy=0, **small)
    plain = get_recipe("grpo")(reward=8 / 13 * accuracy(), warmup=10, **small)
    shaped = get_recipe("phi-4-reasoning")(sft_steps=0, repetition_share=0, kl=0, entropy=0, **small)
    found = []
    for made in (ours, plain, shaped):
        policy = trained_policy()
        Fit(policy, made.stages, get_task("parity"), options=Options(seed=2)).run()
        found.append(policy.model.state_dict())
    assert all(torch.equal(found[0][n], found[1][n]) for n in found[0])
    assert any(not torch.equal(found[0][n], found[2][n]) for n in found[0])


# -- teachable prompts ---------------------------------------------------------------------------------------------------
def taught(low: float, high: float, rows: int = 6) -> Curated:
    (stage,) = get_recipe("phi-4-reasoning")(steps=0, rows=rows, low=low, high=high, samples=4, over=10).stages
    task = get_task("parity")
    stage.problems.bind(task, 3)
    stage.collect.prepare(stage.problems, trained_policy(), Scope(task, 3))
    assert isinstance(stage.collect, Curated)
    return stage.collect


def test_a_band_of_difficulty_is_kept_and_the_rest_counted() -> None:
    bands = {band: taught(*band) for band in ((0, 0.3), (0.3, 0.8), (0.8, 1.0))}
    kept = {band: {r["response"].problem_id for r in found.stored} for band, found in bands.items()}
    assert not kept[0, 0.3] & kept[0.8, 1.0]
    for found in bands.values():
        counts = found.counts
        assert counts["teachable: drawn"] == 60 and counts["teachable: dropped, difficulty"] > 0
        assert counts["teachable: kept"] == len(found.stored) <= 6
    assert "teachable: dropped, difficulty" not in taught(0, 1).counts


def test_a_stronger_models_plurality_and_its_traces() -> None:
    """Right and in agreement: kept, with its trace. In disagreement, wrong or unfinished: dropped. Without a gold answer its
    plurality is the truth."""
    task = get_task("parity")
    problems = task.problems("train", 5)
    problems[4] = replace(problems[4], answer=None)
    gold = [p.answer or "" for p in problems]
    bad = [str(1 - int(g or 0)) for g in gold]
    answers = {
        problems[0].id: [f"why 1|{gold[0]}", f"why 2|{gold[0]}", f"no|{bad[0]}", f"why 3|{gold[0]}"],
        problems[1].id: [f"a|{bad[1]}"] * 3 + [f"b|{gold[1]}"],
        problems[2].id: [f"a|{gold[2]}", f"a|{gold[2]}…", f"a|{gold[2]}…", "b|7"],
        problems[3].id: ["cut…"] * 4,
        problems[4].id: ["no|0", "so|1", "thus|1", "hence|1"],
    }
    strong: Any = Scripted(lambda problem, prompt: answers[problem])
    kept = Agreed(strong, samples=4, share=0.5).keep(problems, trained_policy(), Scope(task, 0))
    assert [(p.id, p.answer, p.rationale) for p in kept] == [
        (problems[0].id, gold[0], "why 1"), (problems[4].id, "1", "so")
    ]  # fmt: skip


def test_a_stronger_model_by_name() -> None:
    done = run("phi-4-reasoning", task="parity", model=trained_folder(), strong=trained_folder(), agreement=0.4, steps=0, sft_steps=1,
               rows=8, low=0.0, high=1.0, sft_batch=4, **QUICK)  # fmt: skip
    assert done.progress.finished


# -- the whole --------------------------------------------------------------------------------------------------------------
def test_stages() -> None:
    first, second = get_recipe("phi-4-reasoning")().stages
    assert (first.name, second.name, second.steps, second.collect.group) == ("teachable", "grpo", 60, 8)
    (filtering,) = [f for f in first.collect.subsets[0].filters if isinstance(f, Difficulty)]  # type: ignore[attr-defined]
    assert (filtering.low, filtering.high, filtering.samples) == (0.1, 0.6, 8)
    assert second.updates[0].loss.describe().count("0.001") == 2 and second.wants() >= {"reference_logprob"}
    assert first.needs() == {"demonstrations", "verifier"}
    (only,) = get_recipe("phi-4-reasoning")(sft_steps=0, kl=0.0).stages
    assert only.name == "grpo" and "reference_logprob" not in only.wants()


def test_lengths_are_measured() -> None:
    done = run(
        "phi-4-reasoning",
        task="parity",
        model=trained_folder(),
        sft_steps=1,
        steps=1,
        rows=8,
        batch=2,
        group=4,
        **QUICK,
    )
    assert done.progress.finished and done.summary["after"]["sampled_tokens"] > 0


def test_what_cannot_work_is_refused() -> None:
    for arguments, told in (({"low": 0.7}, "low <= high"), ({"steps": 0, "sft_steps": 0}, "nothing is learnt"),
                            ({"reward": "a.py:f"}, "use grpo for another")):  # fmt: skip
        with pytest.raises(WhetError, match=told):
            get_recipe("phi-4-reasoning")(**arguments)


@pytest.mark.parametrize("slug", ["phi-4-reasoning", "teachable"])
def test_the_studies_arms_can_run(slug: str) -> None:
    found = get_study(slug)
    for arm in parse_arms(found.arms):
        config = arm.config(found.task, 0, found.settings)
        get_recipe(config.recipe)(**config.arguments).check(get_task(found.task))
