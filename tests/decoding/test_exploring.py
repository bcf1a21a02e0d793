"""Explore, then execute: E2C's card, tests 4 and 5, clusters and what is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from trained import trained_policy
from whet.decoding import Explore, Following
from whet.decoding.exploring import draw_plans, embed, representatives, weighted_vote
from whet.errors import WhetError
from whet.evaluation.matrix import evaluate
from whet.models.embedding import get_encoder
from whet.models.meter import Meter
from whet.models.policy import Policy
from whet.recipes.recipe import get_recipe
from whet.records import Sample, Segment
from whet.sampling.sampler import SamplingSettings
from whet.sources import Member, ask
from whet.tasks import get_task
from whet.training.fit import Fit, Options

GREEDY = SamplingSettings(24, temperature=0.0)


@cache
def _weights() -> dict[str, torch.Tensor]:
    policy = trained_policy("gpt2", max_position_embeddings=512)
    recipe = get_recipe("e2c")(warm=30, warm_batch=16, warm_lr=1e-2, steps=0)
    Fit(policy, recipe.stages, get_task("parity"), options=Options(seed=1)).run()
    return policy.model.state_dict()


def planner() -> Policy:
    """A tiny policy that plans."""
    policy = trained_policy("gpt2", steps=1, max_position_embeddings=512)
    policy.model.load_state_dict(_weights())
    return policy


# -- 4 -----------------------------------------------------------------------------------------------------------------
def test_4_a_cluster_votes_with_its_size() -> None:
    assert weighted_vote(["A", "B", "B"], [5, 2, 1]) == 0
    assert weighted_vote(["A", "B", "B"], [1, 1, 1]) == 1, "unweighted, B would have it"
    assert weighted_vote(["A", "B", "B"], [4, 1, 3]) == 0, "of equal ones the first"
    assert weighted_vote(["A", "B", "B"], [3, 1, 3]) == 2, "its heaviest answer stands for a label"
    assert weighted_vote([None, "B", None], [5, 1, 3]) == 1 and weighted_vote([None, None], [1, 2]) == 1


# -- 5 -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("clusters", [0, 2])
def test_5_plan_tokens_of_all_and_execution_tokens_of_those_carried_out(clusters: int) -> None:
    policy, task = planner(), get_task("parity")
    problems = task.problems("test", 4)
    settings = replace(GREEDY, max_new_tokens=40)
    how = Explore(5, clusters, temperature=1.0, budget=24)
    with policy.metered(Meter()) as meter:
        answers = how.ask(policy, problems, settings, 1, 3)
    with policy.metered(Meter()) as plans:
        draw_plans(policy, problems, 5, SamplingSettings(24, 1.0), 3)
    counted = [sum(len(s.ids) for s in sample.segments if s.sampled) for (sample,) in answers]
    assert sum(counted) == meter.sampled_tokens, "what is reported is what the sampler drew"
    found = how.measure(policy, task, problems)
    assert found["plan_tokens"] == plans.sampled_tokens / 4, "of all five"
    assert found["execution_tokens"] == (sum(counted) - plans.sampled_tokens) / 4 > 0
    assert all([s.kind for s in sample.segments][:2] == ["question", "spent"] for (sample,) in answers)
    fresh = Explore(5, clusters, temperature=1.0, budget=24)
    assert fresh.measure(policy, task, problems)["plan_tokens"] > 0, "it asks where nothing was asked"


def test_the_answer_is_the_winners_and_reads_as_if_it_were_alone() -> None:
    policy, task = planner(), get_task("parity")
    problems = task.problems("test", 6)
    how = Explore(5, 0, temperature=1.0, budget=24)
    answers = how.ask(policy, problems, GREEDY, 1, 3)
    for problem, (sample,) in zip(problems, answers, strict=True):
        read = how.read(policy, sample)
        assert read.answer in ("0", "1") and read.text.count("<plan>") == 1
        greedy = list(how.ask(policy, [problem], GREEDY, 1, 3)[0])
        assert how.read(policy, greedy[0]) == read, "it does not depend on what else is asked"
    twice = how.ask(policy, problems[:1], replace(GREEDY, temperature=1.0), 3, 3)
    assert [s.rollout_id for s in twice[0]] == [0, 1, 2]
    found = evaluate(policy, task, problems, answering=how)
    assert all(row[0].status in ("ok", "wrong") for row in found.cells)


def test_one_plan_is_the_policy_with_a_greedy_execution() -> None:
    policy, task = planner(), get_task("parity")
    problems = task.problems("test", 4)
    cold = Explore(1, 0, temperature=0.0, budget=24).ask(policy, problems, GREEDY, 1, 0)
    plain = ask(policy, problems, replace(GREEDY, max_new_tokens=48), 1, 0)
    assert [row[0].ids for row in cold] == [row[0].ids for row in plain]
    hot = Explore(8, 0, temperature=1.0, execution_temperature=1.0, budget=24).ask(policy, problems, GREEDY, 1, 0)
    assert hot[0][0].segments != cold[0][0].segments


# -- clusters ----------------------------------------------------------------------------------------------------------
def test_k_means_finds_what_is_apart() -> None:
    draw = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]], dtype=torch.float64)
    sizes = (5, 2, 1)
    points = torch.cat(
        [c + 0.1 * torch.randn(n, 2, generator=draw, dtype=torch.float64) for c, n in zip(centres, sizes, strict=True)]
    )
    picks = representatives(points, 3)
    assert sorted(picks.values(), reverse=True) == [5, 2, 1] and list(picks) == sorted(picks)
    first = points[:5]
    nearest = int((first - first.mean(0)).square().sum(-1).argmin())
    assert picks[nearest] == 5, "the plan nearest the centre stands for its cluster"
    assert representatives(points[:1].expand(4, 2), 3) == {0: 4}, "equal plans are one cluster"
    assert sum(representatives(points, 8).values()) == 8 == len(representatives(points, 8))
    assert representatives(points, 1) and sum(representatives(points, 1).values()) == 8


def test_equal_plans_are_one_point() -> None:
    policy = planner()
    said = [
        Member((Segment("plan", policy.format.encode(plan), sampled=True),))
        for plan in ("b+\nc*", "b+", "b+\nc*", "c*\nb+")
    ]
    for name in ("policy", "ngrams"):
        units = embed(get_encoder(name, policy), policy, said)
        assert torch.allclose(units.norm(dim=1), torch.ones(4, dtype=torch.float64), atol=1e-5)
        assert torch.equal(units[0], units[2]) and not torch.equal(units[0], units[3])
        assert representatives(units, 3) == {0: 2, 1: 1, 3: 1}


# -- following ---------------------------------------------------------------------------------------------------------
class Fixed:
    """A policy that carries out the plan before it, or the problem's own whatever stands there."""

    def __init__(self, obedient: bool) -> None:
        self.policy, self.obedient = trained_policy("gpt2", steps=1, max_position_embeddings=512), obedient
        self.known = {p.id: p for p in get_task("mod-chain:level=2").problems("test", 5)}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.policy, name)

    def sample(self, requests: Sequence[Any], on_token: Any = None) -> list[list[Any]]:
        found = []
        for request in requests:
            problem = self.known[request.problem_id]
            lines = problem.rationale.splitlines()
            steps = [*lines[1:], lines[0]] if self.obedient else lines
            made = self.policy.format.planned("", "\n".join(steps), problem.answer or "")[1:]
            drawn = [replace(s, sampled=True) for s in made]
            found.append([Sample([*request.segments, *drawn], problem.id, problem.id)])
        return found


@pytest.mark.parametrize(("obedient", "adherence"), [(True, 1.0), (False, 0.0)])
def test_who_follows_a_replaced_plan_and_who_does_not(obedient: bool, adherence: float) -> None:
    task = get_task("mod-chain:level=2")
    found = Following().measure(Fixed(obedient), task, task.problems("test", 5))  # type: ignore[arg-type]
    assert found == {"adherence": adherence, "habit": 1 - adherence, "accuracy_replaced": 1.0}
    assert Following().measure(planner(), get_task("parity"), get_task("parity").problems("test", 3)) == {}


def test_what_cannot_work_is_refused() -> None:
    for arguments in ((0,), (4, -1), (4, 3, 1.0, 0.0, 0)):
        with pytest.raises(WhetError, match="must be at least 1"):
            Explore(*arguments)
