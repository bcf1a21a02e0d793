"""carft: reft with another head where nothing is contrasted, what it holds fixed for a batch, the reward, its study."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from trained import trained_policy
from whet.arms import parse_arms
from whet.cells import FOLLOWED
from whet.errors import WhetError
from whet.evaluation.scores import Cell, Scores
from whet.models.policy import Policy
from whet.objectives.contrastive import CHAIN, OWN, REST, SHARED, Contrast, embed, embedded_places
from whet.objectives.forward import Context
from whet.objectives.value import value_head
from whet.recipes.recipe import Recipe, get_recipe
from whet.recipes.reinforced.carft import Annotated, near_credit
from whet.recipes.reinforced.carft_study import NEAR, collapsed, falls, nearness
from whet.records import Row
from whet.rewards import Attempt
from whet.sources import Rollouts, Scope, Uniform
from whet.study import get_study
from whet.tasks import get_task
from whet.tasks.problem import Problem, Response, Verdict
from whet.training.fit import Fit, Options
from whet.training.learner import Learner

SMALL: dict[str, Any] = {"warm": 2, "steps": 2, "batch": 8, "limit": 24}


def made(name: str = "carft", **arguments: Any) -> Recipe:
    return get_recipe(name)(**{**SMALL, **arguments})


def fit(recipe: Recipe) -> Policy:
    policy = trained_policy()
    Fit(policy, recipe.stages, get_task("parity"), options=Options(seed=3)).run()
    return policy


def collected(**how: Any) -> tuple[Policy, list[Row], Scope]:
    policy, task = trained_policy(), get_task("parity")
    policy.modules["value"] = value_head(policy, 8)
    problems, collect = Uniform(), Annotated(2, 12, 1.5, **how)
    problems.bind(task, 1)
    collect.bind(task)
    scope = Scope(task, 5)
    return policy, collect.rows(problems, 4, policy, scope), scope


# -- card test 1 -------------------------------------------------------------------------------------------------------
def test_1_weight_zero_is_reft_with_the_same_head() -> None:
    parent, ours = made("reft", value_width=64), made(weight=0)
    assert type(ours.stages[1].collect) is Rollouts, "nothing is embedded"
    policies = [fit(recipe) for recipe in (parent, ours, made(weight=0.5))]
    ours_, theirs, more = ({n: p.detach() for n, p in policy.named_parameters()} for policy in policies)
    assert ours_.keys() == theirs.keys() and all(torch.equal(ours_[n], theirs[n]) for n in ours_)
    assert any(not torch.equal(ours_[n], more[n]) for n in ours_)
    assert policies[0].meter.flops == policies[1].meter.flops < policies[2].meter.flops


# -- what a batch holds ------------------------------------------------------------------------------------------------
def test_z1_is_of_the_annotation_under_the_policy_that_sampled() -> None:
    policy, rows, scope = collected()
    for row in rows:
        problem = scope.known[row.problem_id]
        demonstration = Row({"response": policy.format.demonstration(problem)})
        (expected,) = embed(Context([demonstration], {"policy": policy}).forward("response"))
        torch.testing.assert_close(row.vectors[CHAIN], expected.detach(), rtol=1e-4, atol=1e-6)
    assert torch.equal(rows[0].vectors[CHAIN], rows[1].vectors[CHAIN]), "of one question"


def test_z1_stays_while_the_policy_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[list[torch.Tensor]] = []
    step = Learner.step

    def spy(self: Learner, rows: list[Row], *args: Any) -> dict[str, float]:
        held.append([row.vectors[CHAIN].clone() for row in rows if row.vectors])
        return step(self, rows, *args)

    monkeypatch.setattr(Learner, "step", spy)
    fit(made(epochs=3, steps=1, lr=1e-2))
    *_, first, second, third = held
    assert len(first) == 8
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(first, second, third, strict=True))


def test_the_negative_signal_marks_what_is_shared() -> None:
    _, rows, _ = collected(rest=True, near=True)
    for row in rows:
        sample = row["response"]
        shared, own = sample.per_token[SHARED], sample.per_token[OWN]
        assert not bool((shared & own).any()) and torch.equal((shared | own).nonzero()[:, 0], embedded_places(sample))
        assert shared.shape == (len(sample),) and not bool(shared[: sample.prompt_length].any())
        assert row.vectors.keys() == {CHAIN, REST} and -1 <= row.numbers["near"] <= 1
    whole = [r for r in rows if not r.vectors[REST].any()]  # the annotation itself was sampled
    for row in whole:
        assert not bool(row["response"].per_token[OWN].any())
        assert row.numbers["near"] == pytest.approx(1.0, abs=1e-5)


def test_near_partial_pays_wrong_answers_between_a_tenth_and_three() -> None:
    problem = Problem("p", "?", "1")

    def attempt(value: float, status: Any, near: float) -> Attempt:
        row = Row({}, {"near": near})
        return Attempt(problem, Response("0", "0", "", True), Verdict(value, status), 1, False, 8, row)

    group = [
        attempt(0.0, "wrong", 1.0),
        attempt(0.0, "wrong", -1.0),
        attempt(1.0, "ok", 1.0),
        attempt(0.0, "unparseable", 1.0),
    ]
    assert [sum(parts.values()) for parts in near_credit()(group)] == pytest.approx([0.3, 0.1, 1.0, 0.0])


# -- what it is made of ------------------------------------------------------------------------------------------------
def test_terms_and_stages() -> None:
    warm, stage = made().stages
    assert (warm.name, stage.name) == ("warm-up", "carft")
    terms = {t.name: w for w, t in stage.updates[0].loss.terms}
    assert terms == {"policy_gradient": 1.0, "value": 5.0, "contrast_positive": 0.1}
    assert stage.collect.needs >= {"verifier", "rationales"} and stage.updates[0].epochs == 2
    assert (
        made(max_new_tokens=0.5).stages[1].collect.share
        == made("reft", max_new_tokens=0.5).stages[1].collect.share
        == 0.5
    )
    both = {t.name: w for w, t in made(signal="both", weight=0.4).stages[1].updates[0].loss.terms}
    assert (both["contrast_positive"], both["contrast_negative"]) == (0.2, 0.2)
    term = made(drop=0.1, pooling="mean", detach_negatives=True).stages[1].updates[0].loss.terms[-1][1]
    assert isinstance(term, Contrast) and (term.drop, term.pooling, term.detach_negatives) == (0.1, "mean", True)


@pytest.mark.parametrize("signal", ["positive", "negative", "both"])
def test_every_signal_learns(signal: str) -> None:
    policy = fit(made(signal=signal, weight=1.0, drop=0.1, near_partial=True, lr=1e-3))
    assert policy.meter.optimizer_steps > 2


def test_refusals() -> None:
    with pytest.raises(WhetError, match="signal"):
        made(signal="all")
    with pytest.raises(WhetError, match="told apart"):
        made(batch=4, minibatches=4)
    with pytest.raises(WhetError, match="near_partial"):
        made(near_partial=True, partial=0.1)
    with pytest.raises(WhetError, match="mask_broadcast"):
        made(signal="both", mask_broadcast=True)


# -- its study ---------------------------------------------------------------------------------------------------------
def scores(carft: float, fall: float) -> Scores:
    """Cells in which carft has a greedy accuracy and falls by so much, reft has 0.6 and falls by 0.3."""

    def cell(arm: str, seed: int, accuracy: float, fall: float) -> Cell:
        looks = [accuracy + fall + seed / 1000, accuracy]
        near = {NEAR: 0.25} if arm == "carft" else {}
        curve = [{"step": i, "share": i, "flops": 1.0, "accuracy": a, **{k: v + i / 2 for k, v in near.items()}}
                 for i, a in enumerate(looks)]  # fmt: skip
        marks = "".join("1" if i < round(400 * accuracy) else "0" for i in range(400))
        answers = {"greedy": marks, "k": 0, "sampled": ""}
        return Cell(arm, seed, "k", {}, "d", "t", {"hash": "h"}, {"accuracy": accuracy}, answers, curve=curve)

    own = {"carft": (carft, fall)}
    return Scores([cell(arm, seed, *own.get(arm, (0.6, 0.3))) for arm in get_study("carft").arms for seed in range(4)])


@pytest.mark.parametrize(
    ("given", "outcome"),
    [((0.6, 0.1), "reproduced"), ((0.6, 0.3), "inconclusive"), ((0.6, 0.4), "not reproduced"), ((0.4, 0.1), "not reproduced")],
)  # fmt: skip
def test_the_studys_verdict(given: tuple[float, float], outcome: str) -> None:
    assert get_study("carft").judge(scores(*given)).outcome == outcome


def test_what_the_study_tells() -> None:
    found = scores(0.2, 0.3)
    assert collapsed(found.cells["carft"]) == 4 and collapsed(found.cells["reft"]) == 0
    assert falls(found.cells["carft"]) == pytest.approx([0.3, 0.301, 0.302, 0.303])
    told = get_study("carft").judge(found).why
    assert "collapsed: sft 0 of 4" in told and "carft 4 of 4 with a worst seed of 0.200" in told
    assert told.endswith("carft's cosine from 0.250 to 0.750")
    assert nearness(found.cells["reft"]) == "was not looked at"


def test_the_studys_arms_can_run() -> None:
    study = get_study("carft")
    for arm in parse_arms(study.arms):
        config = arm.config(study.task, 0, study.settings)
        get_recipe(config.recipe)(**config.arguments).check(get_task(study.task))
    assert NEAR in FOLLOWED and study.seeds >= 4
