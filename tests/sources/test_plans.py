"""Group plans: free members and members with a prefix, in one group."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from trained import trained_policy
from whet.errors import WhetError
from whet.models.policy import Policy
from whet.records import Row, Sample, Segment
from whet.sampling.sampler import SamplingSettings
from whet.sources import Member, Plan, PrefixLength, Rollouts, Scope, Uniform, WithDemonstration, ask, ask_members
from whet.tasks import Problem, get_task

TASK = get_task("parity")
PROBLEMS = TASK.problems("train", 3, seed=1)
SETTINGS = SamplingSettings(14)


@pytest.fixture(scope="module")
def policy() -> Policy:
    return trained_policy()


def response(problem: Problem, policy: Policy) -> list[Segment]:
    return [s for s in policy.format.demonstration(problem).segments if s.learn]


def prefix(problem: Problem, policy: Policy, n: int) -> Member:
    ids = [i for s in response(problem, policy) for i in s.ids][:n]
    return Member((Segment("prefix", ids, learn=True),))


def same(a: Sample, b: Sample) -> bool:
    tables = a.per_token.keys() == b.per_token.keys() and all(
        torch.equal(a.per_token[k], b.per_token[k]) for k in a.per_token
    )
    return tables and {**a.state(), "per_token": 0} == {**b.state(), "per_token": 0}


# -- asking ----------------------------------------------------------------------------------------------------------
def test_free_members_are_what_ask_draws(policy: Policy) -> None:
    """Bit for bit; also where a problem comes twice."""
    drawn = [*PROBLEMS, PROBLEMS[0]]
    plain = ask(policy, drawn, SETTINGS, 4, 7)
    planned = ask_members(policy, drawn, [[Member()] * 4 for _ in drawn], SETTINGS, 7)
    first, again = ([s.ids for s in planned[place]] for place in (0, 3))
    assert first != again
    for ours, theirs in zip(planned, plain, strict=True):
        assert len(ours) == 4 and all(same(a, b) for a, b in zip(ours, theirs, strict=True)), "rollout ids too"


def test_a_prefix_does_not_change_the_other_members(policy: Policy) -> None:
    members = [[Member(), prefix(p, policy, 3), Member(), Member()] for p in PROBLEMS]
    plain = ask(policy, PROBLEMS, SETTINGS, 4, 7)
    for ours, theirs in zip(ask_members(policy, PROBLEMS, members, SETTINGS, 7), plain, strict=True):
        assert [s.rollout_id for s in ours] == [0, 1, 2, 3]
        assert all(ours[i].ids == theirs[i].ids for i in (0, 2, 3))


def test_a_prefix_is_response_for_the_loss_and_prompt_for_generation(policy: Policy) -> None:
    problem = PROBLEMS[0]
    given = [i for s in response(problem, policy) for i in s.ids][:4]
    before = policy.meter.sampled_tokens
    ((sample,),) = ask_members(policy, [problem], [[prefix(problem, policy, 4)]], SETTINGS, 3)
    question = [i for s in policy.format.prompt(problem) for i in s.ids]
    n = len(question)
    assert sample.ids[: n + 4] == question + given
    assert sample.prompt_length == n and not sample.learn_mask[:n].any() and sample.learn_mask[n:].all()
    assert sample.span_mask("prefix").nonzero()[:, 0].tolist() == [n, n + 1, n + 2, n + 3]
    assert policy.meter.sampled_tokens - before == len(sample) - n - 4, "given tokens were not sampled"
    assert (
        not sample.per_token["sampler_logprob"][: n + 4].any()
        and (sample.per_token["sampler_logprob"][n + 4 :] < 0).all()
    )
    assert len(sample) - n <= SETTINGS.max_new_tokens, "the budget counts the prefix"
    assert sample.settings is not None and sample.settings["max_new_tokens"] == SETTINGS.max_new_tokens - 4
    read = policy.format.read(sample)
    assert read.text == policy.format.decode(sample.ids[n:]), "prefix and continuation are judged as one"


def test_the_continuation_is_what_follows_such_a_prompt(policy: Policy) -> None:
    """Members with one prefix share a request, each with the seed of its place."""
    problem = PROBLEMS[1]
    member = prefix(problem, policy, 2)
    ((_, second, third),) = ask_members(policy, [problem], [[Member(), member, member]], SETTINGS, 3)
    ((alone,),) = ask_members(policy, [problem], [[member]], SETTINGS, 3)
    ((_, other),) = ask_members(policy, [problem], [[Member(), member]], SETTINGS, 3)
    assert second.ids == other.ids
    assert alone.rollout_id == 0 and (second.rollout_id, third.rollout_id) == (1, 2)


def test_a_whole_answer_is_taken_as_it_is(policy: Policy) -> None:
    problem = PROBLEMS[0]
    before = policy.meter.sampled_tokens
    ((sample,),) = ask_members(policy, [problem], [[Member(tuple(response(problem, policy)))]], SETTINGS, 3)
    assert policy.meter.sampled_tokens == before
    assert sample.segments == policy.format.demonstration(problem).segments and sample.ended
    assert TASK.verify(problem, policy.format.read(sample)).value == 1.0
    assert not sample.per_token["sampler_logprob"].any()


def test_a_prefix_that_leaves_no_room_is_refused(policy: Policy) -> None:
    with pytest.raises(WhetError, match="a prefix of 4 tokens does not fit the generation budget of 4"):
        ask_members(policy, PROBLEMS[:1], [[prefix(PROBLEMS[0], policy, 4)]], SamplingSettings(4), 3)
    with pytest.raises(WhetError, match="group must be at least 1"):
        Plan(0)


# -- lengths ---------------------------------------------------------------------------------------------------------
def test_the_cards_lengths() -> None:
    """S = 100: low at 0, 25, 50 and 100 steps; L of a demonstration of 40 tokens."""
    length = PrefixLength()
    assert [round(length.low(s / 100), 4) for s in (0, 25, 50, 100)] == [0.95, 0.8182, 0.5, 0.05]
    assert [length.tokens(share, 40) for share in (0.95, 0.5, 0.01, 1.0)] == [38, 20, 0, 39]
    assert PrefixLength(least=3).tokens(0.01, 40) == 3 and PrefixLength(least=50).tokens(0.01, 40) == 39
    assert PrefixLength(end=0.95).low(0.9) == 0.95, "the constant one"
    drawn = [length.draw(random.Random(seed), 0.5) for seed in range(500)]
    assert 0.5 <= min(drawn) < 0.51 and 0.94 < max(drawn) <= 0.95
    wrongs: list[dict[str, Any]] = [{"high": 0.5, "end": 0.6}, {"high": 1.1}, {"least": -1}]
    for wrong in wrongs:
        with pytest.raises(WhetError, match="share of a demonstration"):
            PrefixLength(**wrong)


def rows(policy: Policy, plan: Plan, share: float = 0.0, budget: int = 14) -> list[Row]:
    problems = Uniform()
    problems.bind(TASK, 1)
    return Rollouts(plan=plan, max_new_tokens=budget).rows(problems, 12, policy, Scope(TASK, 5, share=share))


def test_the_last_of_a_group_begins_with_its_demonstration(policy: Policy) -> None:
    found = rows(policy, WithDemonstration(3, PrefixLength()), share=0.2)
    for i, row in enumerate(found):
        given = int(row["response"].span_mask("prefix").sum())
        assert row.numbers.get("given_tokens", 0.0) == given and (given > 0) == (i % 3 == 2)
        if given:
            problem = next(p for p in TASK.problems("train", 12, seed=1) if p.id == row.problem_id)
            gold = [i for s in response(problem, policy) for i in s.ids]
            n = row["response"].prompt_length
            assert row["response"].ids[n : n + given] == gold[:given] and given < len(gold)
            assert int(PrefixLength().low(0.2) * len(gold)) <= given <= int(0.95 * len(gold))
    assert [len({r.group_id for r in found[i : i + 3]}) for i in range(0, 36, 3)] == [1] * 12


def test_length_zero_is_a_free_group(policy: Policy) -> None:
    ours = rows(policy, WithDemonstration(3, PrefixLength(high=0.0, end=0.0)))
    free = rows(policy, Plan(3))
    assert all(same(a["response"], b["response"]) and a.numbers == b.numbers for a, b in zip(ours, free, strict=True))


def test_only_a_share_of_the_problems_shows_its_demonstration(policy: Policy) -> None:
    found = rows(policy, WithDemonstration(2, PrefixLength(), shown=0.5))
    with_one = [row.problem_id for row in found if row.numbers.get("given_tokens")]
    assert 2 <= len(with_one) <= 10
    again = rows(policy, WithDemonstration(2, PrefixLength(), shown=0.5), share=0.7)
    assert {r.problem_id for r in again if r.numbers.get("given_tokens")} <= set(with_one), "told by the problem alone"
    assert not any(r.numbers for r in rows(policy, WithDemonstration(2, PrefixLength(), shown=0.0)))
    with pytest.raises(WhetError, match="within 0 and 1"):
        WithDemonstration(2, None, shown=1.5)


def test_a_demonstration_that_does_not_fit_is_cut_or_left_out(policy: Policy) -> None:
    pieces = [r.numbers["given_tokens"] for r in rows(policy, WithDemonstration(2, PrefixLength()), budget=4)[1::2]]
    assert set(pieces) == {3.0}, "one token is left to draw"
    assert not any(r.numbers for r in rows(policy, WithDemonstration(2, None), budget=4))
    whole = rows(policy, WithDemonstration(2, None))[1::2]
    assert all(r.numbers["given_tokens"] == r["response"].count_learnt() for r in whole)
