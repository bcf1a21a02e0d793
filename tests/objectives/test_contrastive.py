"""Contrast of chains: pooling, the loss by hand, what has a gradient, shared tokens, and batches that are cut."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from objective_tools import exact, rollouts
from torch import Tensor

from whet.errors import WhetError
from whet.models.policy import Policy
from whet.objectives import Context, nll, value_head
from whet.objectives.contrastive import (
    CHAIN,
    OWN,
    REST,
    SHARED,
    Contrast,
    contrast,
    embed,
    embedded_places,
    embeddings,
    info_nce,
    mark_shared,
    pool,
)
from whet.objectives.objective import Objective, as_objective
from whet.objectives.value import values
from whet.records import Row, Sample, Segment
from whet.training.learner import Learner
from whet.training.stage import Update
from whet.weights import Weights

WIDTH = 6


@pytest.fixture
def policy() -> Policy:
    made = exact()
    torch.manual_seed(0)
    made.modules["value"] = value_head(made, WIDTH)
    return made


def share(row: Row, shared: Tensor) -> None:
    row["response"].per_token |= {SHARED: shared, OWN: ~shared}


def rows_of(n: int = 5, accuracy: tuple[float, ...] = (1, 0, 1, 0, 1)) -> list[Row]:
    """Rows of ragged answers with a z1 each; of each, tokens are shared by turns."""
    rows = rollouts([(3, 4), (5, 6), (2, 6), (4, 5), (3, 3)][:n])
    draw = torch.Generator().manual_seed(3)
    for row, value in zip(rows, accuracy, strict=False):
        row.numbers["accuracy"] = float(value)
        row.vectors = {name: torch.randn(WIDTH, generator=draw, dtype=torch.float64) for name in (CHAIN, REST)}
        share(row, torch.arange(len(row["response"])) % 2 == 0)
    return rows


def totals(term: Contrast, states: Any, accuracy: tuple[float, ...], z1: Tensor) -> Tensor:
    """The term's mean for given embeddings."""
    rows = rows_of(len(accuracy), accuracy)
    for row, z in zip(rows, z1, strict=True):
        row.vectors = {CHAIN: z, REST: z}
    return term.losses(states, rows).sum() / (term.count(rows) or 1.0)


# -- card test 2 -------------------------------------------------------------------------------------------------------
def test_2_pooling_is_weighted_by_the_softmax_of_the_values() -> None:
    u, v = torch.eye(2, dtype=torch.float64), torch.tensor([0.0, math.log(3)], dtype=torch.float64)
    one = torch.zeros(2, dtype=torch.long)
    torch.testing.assert_close(pool(u, v, one, 1), torch.tensor([[0.25, 0.75]], dtype=torch.float64))
    torch.testing.assert_close(pool(u, torch.full((2,), 7.0).double(), one, 1), pool(u, None, one, 1))
    torch.testing.assert_close(pool(u, None, one, 1), torch.full((1, 2), 0.5).double())
    both = pool(u, v, torch.tensor([0, 2]), 3)  # a token each, and a sequence without any
    torch.testing.assert_close(both, torch.tensor([[1, 0], [0, 0], [0, 1]]).double())
    assert torch.isfinite(pool(u, 1e4 * v, one, 1)).all()


def test_2_only_the_chains_own_tokens_enter(policy: Policy) -> None:
    """By its definition, from the states of one unpadded sequence: those at the answer's tokens, not at the prompt's."""
    rows = rows_of()
    found = embed(Context(rows, {"policy": policy}).forward("response"))
    head = policy.modules["value"]
    for row, z in zip(rows, found, strict=True):
        sample = row["response"]
        start = sample.prompt_length
        hidden = policy.hidden(torch.tensor([sample.ids]))[
            0, start : len(sample) - 1
        ]  # the end token's state is unknown
        u = head[0](hidden)
        weights = head[2](u.relu())[:, 0].softmax(0)
        torch.testing.assert_close(z, (weights[:, None] * u).sum(0), rtol=1e-10, atol=1e-12)
        assert embedded_places(sample).tolist() == list(range(start, len(sample) - 1))


def test_2_a_masked_answer_contributes_nothing(policy: Policy) -> None:
    rows = rows_of()
    rows[0]["response"].per_token["mask"] = torch.zeros(len(rows[0]["response"]), dtype=torch.bool)
    found = embed(Context(rows, {"policy": policy}).forward("response"))
    assert not found[0].any() and found[1:].any(1).all()
    assert not contrast().chosen(rows[0]) and contrast().chosen(rows[2])


def test_the_head_is_the_value_head(policy: Policy) -> None:
    head = policy.modules["value"]
    forward = Context(rows_of(), {"policy": policy}).forward("response")
    expected = head[2](torch.relu(head[0](forward.hidden)))[:, 0]
    torch.testing.assert_close(values(forward), expected)
    assert float(values(forward).detach().abs().max()) < 0.5, "near 0 at the start"
    policy.modules["value"] = value_head(policy)
    with pytest.raises(WhetError, match="a value head with a hidden layer"):
        embed(forward)


# -- card tests 3, 4, 5 ------------------------------------------------------------------------------------------------
E2 = torch.eye(2, dtype=torch.float64)


@pytest.mark.parametrize("accuracy", [(1.0, 1.0), (1.0, 0.0)])
def test_3_two_pairs_by_hand(accuracy: tuple[float, ...]) -> None:
    expected = -math.log(math.exp(4.5) / (math.exp(5) + 1))
    assert round(expected, 5) == 0.50672
    assert float(totals(contrast(), E2, accuracy, E2)) == pytest.approx(expected, rel=1e-12)


def test_3_the_released_code_sums_over_all_wherever_one_is_right() -> None:
    one = -math.log(math.exp(4.5) / (math.exp(5) + 1))
    released = contrast(mask_broadcast=True)
    assert float(totals(released, E2, (1.0, 0.0), E2)) == pytest.approx(2 * one, rel=1e-12)
    assert float(totals(released, E2, (0.0, 0.0), E2)) == 0.0


def test_4_above_the_cap_only_the_denominator_pulls() -> None:
    near = torch.tensor([[1.0, 0.1], [0.2, 1.0]], dtype=torch.float64, requires_grad=True)
    far = torch.tensor([[1.0, 0.9], [0.2, 1.0]], dtype=torch.float64, requires_grad=True)
    assert torch.cosine_similarity(near[0], E2[0], dim=0) > 0.9 > torch.cosine_similarity(far[0], E2[0], dim=0)

    def pull(z: Tensor, detach: bool) -> Tensor:
        loss = totals(contrast(detach_negatives=detach), z, (1.0, 0.0), E2)
        return torch.autograd.grad(loss, z)[0]

    assert pull(near, False).any(), "through the denominator"
    assert not pull(near, True).any(), "the numerator is capped"
    assert pull(far, True)[0].any() and not pull(far, True)[1].any()
    assert pull(far, False)[1].any(), "the other row is pushed"


def test_5_no_gradient_reaches_the_annotation() -> None:
    z1 = E2.clone().requires_grad_()
    z2 = E2.clone().requires_grad_()
    totals(contrast(), z2, (1.0, 1.0), z1.detach()).backward()
    assert z1.grad is None and z2.grad is not None and z2.grad.any()


@pytest.mark.parametrize("signal", ["positive", "negative"])
def test_5_nothing_to_learn_is_zero_with_a_graph(signal: str, policy: Policy) -> None:
    term = contrast(signal)
    rows = rows_of(accuracy=(0.0,) * 5 if signal == "positive" else (1.0,) * 5)
    assert term.count(rows) == 0 and not term.active(rows)
    total = term.total(Context(rows, {"policy": policy}))
    (gradient,) = torch.autograd.grad(total, [policy.modules["value"][0].weight])
    assert float(total.detach()) == 0.0 and torch.isfinite(gradient).all() and not gradient.any()


def test_what_is_not_chosen() -> None:
    rows = rows_of()
    assert [contrast().chosen(r) for r in rows] == [True, False, True, False, True]
    assert [contrast("negative").chosen(r) for r in rows] == [False, True, False, True, False]
    assert contrast().count(rows[:1]) == 0, "a lone row has nothing to be told apart from"
    rows[0].numbers["accuracy"] = rows[1].numbers["accuracy"] = math.nan  # could not be judged
    assert not contrast().chosen(rows[0]) and not contrast("negative").chosen(rows[1])
    rows[2].vectors = {}
    assert not contrast().chosen(rows[2])
    share(rows[3], torch.ones(len(rows[3]["response"]), dtype=torch.bool))  # nothing of its own
    assert not contrast("negative").chosen(rows[3])


# -- card test 6 (the subsequence itself is in tasks/test_alignment.py) ------------------------------------------------
def test_6_samples_are_marked_by_decoded_tokens(policy: Policy) -> None:
    def said(prompt: str, text: str) -> Sample:
        words = [Segment("rationale", policy.format.encode(word), learn=True) for word in text.split()]
        return Sample([Segment("question", policy.format.encode(prompt)), *words, Segment("eos", [1], learn=True)])

    def words(sample: Sample, shared: bool) -> str:
        assert not bool(sample.per_token[SHARED][-1]) and not bool(sample.per_token[OWN][-1]), "it has no embedding"
        marked = sample.per_token[SHARED if shared else OWN].nonzero()[:, 0]
        return policy.format.decode([sample.ids[p] for p in marked.tolist()])

    answer, chain = said("q", "a x c y"), said("q", "a b c d")
    mark_shared(answer, chain, policy)
    assert [words(s, shared) for s in (answer, chain) for shared in (True, False)] == ["ac", "xy", "ac", "bd"]
    alone = said("q", "z")
    mark_shared(alone, said("q", "a b"), policy)
    row = Row({"response": alone}, {"accuracy": 0.0}, {REST: torch.ones(WIDTH)})
    assert not contrast("negative").chosen(row), "nothing is shared"


def test_6_the_negative_signal_by_its_definition() -> None:
    draw = torch.Generator().manual_seed(1)
    z1, z2, z3 = torch.randn(3, 3, 4, generator=draw, dtype=torch.float64)
    rows = rows_of(3, (0.0, 0.0, 1.0))
    for row, z in zip(rows, z1, strict=True):
        row.vectors = {REST: z}
    found = contrast("negative").losses(torch.cat([z2, z3], 1), rows)

    def power(a: Tensor, b: Tensor) -> Tensor:
        return (torch.cosine_similarity(a, b, dim=0) / 0.2).exp()

    for i in range(2):
        nearer = (torch.cosine_similarity(z1[i], z2[i], dim=0).clamp(max=0.9) / 0.2).exp()
        below = sum(power(z2[i], z2[j]) + power(z2[i], z3[j]) for j in range(2))  # of the chosen rows
        assert float(found[i]) == pytest.approx(float(-(nearer / below).log()), rel=1e-12)
    assert float(found[2]) == 0.0


# -- batches that are cut ----------------------------------------------------------------------------------------------
CUTS: dict[str, Objective] = {
    "positive": as_objective(contrast()),
    "negative": as_objective(contrast("negative")),
    "both, dropped": 0.5 * contrast(drop=0.3) + 0.5 * contrast("negative", drop=0.3, pooling="mean"),
    "released": as_objective(contrast(detach_negatives=True, mask_broadcast=True)),
    "beside likelihood": nll() + 0.3 * contrast(),
}


def gradient(objective: Objective, rows: list[Row], policy: Policy, tokens: int) -> tuple[Tensor, dict[str, float]]:
    weights = Weights()
    weights.attach(policy, 0)
    learner = Learner(Update(objective), {"policy": policy}, weights, steps=1, token_budget=tokens)
    found = learner.accumulate(rows, 7)
    return torch.cat([p.grad.flatten() for p in learner.parameters.values() if p.grad is not None]), found


@pytest.mark.parametrize("name", CUTS)
def test_the_gradient_does_not_depend_on_micro_batches_or_order(name: str, policy: Policy) -> None:
    """Though every row meets every other one: in fp64, one micro-batch, a row each, something between."""
    rows = rows_of()
    whole, losses = gradient(CUTS[name], rows, policy, 10_000)
    assert float(whole.norm()) > 1e-4
    for order, tokens in ((rows, 1), (rows, 17), (rows[::-1], 10_000), (rows[::-1], 1)):
        other, found = gradient(CUTS[name], order, policy, tokens)
        assert float((whole - other).norm() / whole.norm()) < 1e-10
        assert found == pytest.approx(losses, rel=1e-6)


def test_the_gradient_is_that_of_the_plain_definition(policy: Policy) -> None:
    rows = rows_of()
    found, _ = gradient(CUTS["positive"], rows, policy, 1)
    ctx = Context(rows, {"policy": policy})
    z1, z2 = torch.stack([row.vectors[CHAIN] for row in rows]), embed(ctx.forward("response"))
    cosine = torch.cosine_similarity(z1[:, None], z2[None], dim=-1) / 0.2
    losses = cosine.exp().sum(1).log() - cosine.diagonal().clamp(max=4.5)
    right = torch.tensor([row.numbers["accuracy"] for row in rows], dtype=torch.float64)
    parameters = [p for _, p in policy.named_parameters()]
    expected = torch.autograd.grad((losses * right).sum() / right.sum(), parameters, allow_unused=True)
    plain = torch.cat([g.flatten() for g in expected if g is not None])
    assert float((found - plain).norm() / plain.norm()) < 1e-10


def test_a_row_that_comes_twice_has_two_places(policy: Policy) -> None:
    rows = rows_of(3)
    twice = [*rows, rows[0]]
    copied = [*rows, Row({"response": rows[0]["response"].copy()}, dict(rows[0].numbers), dict(rows[0].vectors))]
    a, b = (gradient(CUTS["positive"], made, policy, tokens)[0] for made, tokens in ((twice, 1), (copied, 10_000)))
    assert float((a - b).norm() / b.norm()) < 1e-10


def test_one_pass_where_the_batch_fits_and_one_more_where_it_is_cut(policy: Policy) -> None:
    rows = rows_of()
    for tokens, scored in ((10_000, 0), (1, sum(len(row["response"]) for row in rows))):
        before = policy.meter.scored_tokens
        gradient(CUTS["positive"], rows, policy, tokens)
        assert policy.meter.scored_tokens - before == scored


# -- the rest ----------------------------------------------------------------------------------------------------------
def test_embeddings_without_a_gradient_are_those_of_the_forward(policy: Policy) -> None:
    rows = rows_of()
    expected = embed(Context(rows, {"policy": policy}).forward("response"))
    found = embeddings(policy, [row["response"] for row in rows], {"all": "", "some": SHARED}, token_budget=20)
    assert not found[0]["all"].requires_grad and len(found) == 5
    torch.testing.assert_close(torch.stack([z["all"] for z in found]), expected.detach(), rtol=1e-10, atol=1e-12)
    assert not torch.allclose(found[0]["all"], found[0]["some"])


def test_dropped_tokens_are_drawn_by_visit_and_never_all(policy: Policy) -> None:
    forward = Context(rows_of(), {"policy": policy}).forward("response")
    some = [embed(forward, drop=0.5, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(some[0], some[1]) and not torch.allclose(some[0], some[2])
    assert embed(forward, drop=0.99, seed=3).any(1).all()


def test_the_cosine_is_logged_for_what_is_learnt(policy: Policy) -> None:
    ctx = Context(rows_of(), {"policy": policy})
    contrast().total(ctx)
    (seen,) = ctx.logs["contrast_positive/cosine"]
    z = embed(ctx.forward("response"))
    expected = [torch.cosine_similarity(z[i], ctx.rows[i].vectors[CHAIN], dim=0).item() for i in (0, 2, 4)]
    assert seen.tolist() == pytest.approx(expected, rel=1e-5)


def test_refusals() -> None:
    for given, why in (({"signal": "both"}, "signal"), ({"pooling": "max"}, "pooling"), ({"temperature": 0.0}, "above 0"),
                       ({"drop": 1.0}, "drop"), ({"signal": "negative", "mask_broadcast": True}, "positive")):  # fmt: skip
        with pytest.raises(WhetError, match=why):
            contrast(**given)


def test_vectors_travel_with_a_stored_row() -> None:
    row = rows_of(1)[0]
    again = Row.from_state(row.state())
    assert torch.equal(again.vectors[CHAIN], row.vectors[CHAIN])
    older = {k: v for k, v in row.state().items() if k != "vectors"}
    assert Row.from_state(older).vectors == {}


def test_info_nce_leaves_out_what_is_not_among() -> None:
    draw = torch.Generator().manual_seed(2)
    a, b = torch.randn(2, 3, 4, generator=draw, dtype=torch.float64)
    some = info_nce(a, b, a, [b], torch.tensor([True, True, False]))
    torch.testing.assert_close(some[:2], info_nce(a[:2], b[:2], a[:2], [b[:2]], torch.tensor([True, True])))
