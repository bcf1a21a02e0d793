"""OPT-R's card: its tests by number (3 and 4 are in tasks/test_shots.py too)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from trained import trained_folder, trained_policy
from whet.errors import WhetError
from whet.evaluation.scores import ON, START, Cell, Scores
from whet.launch import run
from whet.recipes.recipe import get_recipe
from whet.recipes.studies.grid import PROMPTS, accuracy, by_tag, effect, points, prompted, specs
from whet.recipes.studies.opt_r_study import SKILLS
from whet.records import Row, Sample
from whet.sources import Scope
from whet.tasks import get_task


def rows(task: str = "parity", **arguments: Any) -> list[Row]:
    (stage,) = get_recipe("opt-r")(**arguments).stages
    stage.problems.bind(get_task(task), 3)
    return stage.collect.rows(stage.problems, 12, trained_policy(), Scope(get_task(task), 0))


# -- 1 ---------------------------------------------------------------------------------------------------------------
def test_1_the_grid_has_27_cells_and_6156_rows() -> None:
    axes = {"size": ["s", "m", "l"], "finetune": ["none", "R", "RE"], "prompt": list(PROMPTS)}
    found = points(axes, [f"task {n}" for n in range(57)], repeats=4)
    assert len({p.cell for p in found}) == 27 and len(found) == 6156 == len(set(found))
    with pytest.raises(WhetError, match="axis 'size' needs one or more different values, not s, s"):
        points({"size": ["s", "s"]}, ["t"])


# -- 2 ---------------------------------------------------------------------------------------------------------------
def test_2_the_two_fine_tunings_differ_in_their_targets_alone() -> None:
    answers, explained = rows(target="R"), rows(target="RE")
    for a, b in zip(answers, explained, strict=True):
        one, two = a["response"], b["response"]
        assert one.problem_id == two.problem_id
        assert [s.ids for s in one.segments if not s.learn] == [s.ids for s in two.segments if not s.learn]
        assert [s.kind for s in one.segments if s.learn] == ["answer", "eos"]
        assert [s.kind for s in two.segments if s.learn] == ["rationale", "answer", "eos"]
        assert one.segments[-2].ids == two.segments[-2].ids
    (r,), (re,) = get_recipe("opt-r")(target="R").stages, get_recipe("opt-r")().stages
    assert (r.steps, r.batch) == (re.steps, re.batch)


@pytest.mark.parametrize(("target", "rationale"), [("RE", True), ("R", False)])
def test_each_target_is_sft_with_or_without_rationales(target: str, rationale: bool) -> None:
    settings: dict[str, Any] = {"task": "parity", "model": trained_folder(), "steps": 2, "batch": 4, "test_n": 4,
                                "validation_n": 4, "k": 0, "others": [], "eval_every": 0}  # fmt: skip
    ours = run("opt-r", target=target, **settings).policy.model.state_dict()
    theirs = run("sft", rationale=rationale, **settings).policy.model.state_dict()
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)


# -- 3, 4 ------------------------------------------------------------------------------------------------------------
def test_3_both_kinds_of_examples_have_the_same_ids_in_the_same_repeat() -> None:
    for repeat in (0, 1):
        plain, explained = (get_task(prompted("parity", p, 2, repeat)).problems("test", 10) for p in PROMPTS[1:])
        assert [p.data["examples"] for p in plain] == [p.data["examples"] for p in explained]
    assert specs(["parity"], repeats=2) == [
        "parity", "shots:n=2:explain=0:draw=0|parity", "shots:n=2:explain=0:draw=1|parity",
        "shots:n=2:explain=1:draw=0|parity", "shots:n=2:explain=1:draw=1|parity",
    ]  # fmt: skip
    with pytest.raises(WhetError, match="a prompt is one of"):
        prompted("parity", "manyshot")


def test_4_no_held_out_task_is_in_the_corpus() -> None:
    from whet.recipes.studies.opt_r_study import CORPUS
    from whet.sources import Part

    corpus = {p.prompt for part in Part.read(CORPUS) for p in part.task.problems("train", part.rows)}
    for spec in SKILLS:
        assert not corpus & {p.prompt for p in get_task(spec).problems("test", 256)}, spec


# -- 5, 6 ------------------------------------------------------------------------------------------------------------
def test_5_a_task_counts_once_for_each_of_its_skills() -> None:
    assert by_tag({"x": 1.0, "y": 0.0}, {"x": ("A", "B"), "y": ("A",)}) == {"A": 0.5, "B": 1.0}
    assert by_tag({"x": 1.0, "y": 0.0}, {"x": ("A", "A"), "y": ("A",)}) == {"A": 0.5}


def test_6_identical_scores_have_no_effect() -> None:
    scores = {f"t{i}": i / 10 for i in range(8)}
    found = effect(scores, scores)
    assert (found.value, found.tasks) == (0.0, 8) and found.low <= 0 <= found.high
    above = effect({t: s + 0.1 + 0.01 * i for i, (t, s) in enumerate(scores.items())}, scores)
    assert above.value == pytest.approx(0.135) and 0.1 < above.low < above.value < above.high < 0.18
    with pytest.raises(WhetError, match="share no task"):
        effect({"a": 1.0}, {"b": 1.0})


# -- 7 ---------------------------------------------------------------------------------------------------------------
def test_7_the_answer_is_read_after_its_mark_and_a_missing_mark_is_counted_apart() -> None:
    policy, task = trained_policy(), get_task("parity")
    sample: Sample = rows(target="RE")[0]["response"]
    problem = next(p for p in task.problems("train", 12, seed=3) if p.id == sample.problem_id)
    read = policy.format.read(sample)
    assert (read.answer, read.rationale) == (problem.answer, problem.rationale)
    assert task.verify(problem, read).value == 1.0
    bare = Sample([s for s in sample.segments if s.kind != "answer"], sample.problem_id)
    verdict = task.verify(problem, policy.format.read(bare))
    assert (verdict.value, verdict.status) == (0.0, "unparseable")


def test_7_an_answer_before_its_explanation_is_read_too() -> None:
    policy = trained_policy()
    for a, b in zip(rows(order="answer_first"), rows(), strict=True):
        assert [s.kind for s in a["response"].segments if s.learn] == ["answer", "rationale", "eos"]
        first, second = policy.format.read(a["response"]), policy.format.read(b["response"])
        assert (first.answer, first.rationale) == (second.answer, second.rationale)
    (stage,) = get_recipe("opt-r")(order="answer_first").stages
    stage.problems.bind(get_task("parity"), 0)
    with pytest.raises(WhetError, match="cannot be read again in the style 'plain'"):
        stage.collect.rows(stage.problems, 1, trained_policy(style="plain"), Scope(get_task("parity"), 0))


# -- the grid on scores, refusals -----------------------------------------------------------------------------------------
def cell(arm: str, seed: int | None, others: dict[str, float]) -> Cell:
    spread = {spec: {"before": 0.0, "after": value} for spec, value in others.items()}
    return Cell(
        arm, seed, "k", {}, "d", "t", {"hash": "h"}, {"accuracy": 0.5}, {"greedy": "01", "k": 0, "sampled": ""}, spread
    )


def test_cells_of_the_grid_are_read_from_the_other_tasks_of_a_study() -> None:
    def at(draw: int) -> str:
        return prompted("parity", "fewshot-e", draw=draw)

    cells = [cell("R", s, {"parity": 0.1, at(0): 0.2 + s / 10, at(1): 0.4}) for s in (0, 1)]
    scores = Scores([cell(START, None, {"parity": 0.3, at(0): 0.5, at(1): 0.7}), *cells])
    assert accuracy(scores, "R", "parity", "zeroshot") == pytest.approx(0.1)
    assert accuracy(scores, "R", "parity", "fewshot-e", repeats=2) == pytest.approx((0.2 + 0.3 + 0.4 + 0.4) / 4)
    assert accuracy(scores, START, "parity", "fewshot-e", repeats=2) == pytest.approx(0.6)
    assert scores.having(ON + "parity") == ["R"] and scores.having(ON + "sort") == []
    with pytest.raises(WhetError, match="unknown metric 'on:sort'"):
        scores.values(ON + "sort", "R")


def test_what_makes_no_sense_is_refused() -> None:
    for arguments, told in (({"target": "ER"}, "unknown target"), ({"order": "no"}, "unknown order"),
                            ({"target": "R", "order": "answer_first"}, "leave out order"),
                            ({"rationale": False}, "leave out rationale")):  # fmt: skip
        with pytest.raises(WhetError, match=told):
            get_recipe("opt-r")(**arguments)
