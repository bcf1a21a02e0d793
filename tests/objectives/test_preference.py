"""The numbers of the DPO card, and its identities through real models."""

from __future__ import annotations

import math

import pytest
import torch
from objective_tools import distance, exact, gradient, loss_of, pairs, sample

from whet.errors import WhetError
from whet.objectives import Context, dpo, nll
from whet.objectives.preference import VARIANTS, Scores, log1mexp, log_odds
from whet.records import Row

SUM = Scores(*(torch.tensor([v], dtype=torch.float64) for v in (-12.0, -10.0, -13.0, -9.0)))
MEAN = Scores(*(torch.tensor([v], dtype=torch.float64) for v in (-12 / 4, -10 / 5, -13 / 4, -9 / 5)))
FREE = Scores(SUM.chosen, SUM.rejected, torch.zeros(1), torch.zeros(1))


@pytest.mark.parametrize(
    ("loss", "scores", "settings", "expected"),
    [
        ("sigmoid", SUM, {}, 0.598139),
        ("cdpo", SUM, {"smoothing": 0.1}, 0.618139),
        ("robust", SUM, {"flip": 0.1}, 0.573139),
        ("hinge", SUM, {}, 0.8),
        ("sigmoid", FREE, {}, 0.798139),
        ("ipo", SUM, {"tau": 0.1}, 9.0),
        ("ipo", MEAN, {"tau": 0.1}, 20.7025),
        ("sigmoid_norm", MEAN, {}, 0.670900),
        ("simpo", MEAN, {"beta": 2.0, "gamma": 1.0}, 3.048587),
        ("orpo", MEAN, {"lam": 0.1}, 3.0 + 0.138310),
        ("dpop", SUM, {"lam": 5.0}, 0.598139),  # the chosen log-prob did not fall
    ],
)
def test_card_numbers(loss, scores, settings, expected):
    assert VARIANTS[loss].loss(scores, **settings).item() == pytest.approx(expected, abs=1e-6)


def test_delta_and_log_odds():
    assert SUM.delta.item() == 2.0
    assert MEAN.delta.item() == pytest.approx(0.45 - 0.0)
    assert log_odds(MEAN.chosen, MEAN.rejected).item() == pytest.approx(-1.094344, abs=1e-6)


def test_dpop_punishes_a_falling_chosen_side():
    fallen = Scores(SUM.chosen - 3, SUM.rejected - 3, SUM.reference_chosen, SUM.reference_rejected)
    assert fallen.delta.item() == 2.0
    assert VARIANTS["dpop"].loss(fallen, lam=5.0).item() == pytest.approx(math.log1p(math.exp(-0.1 * (2 - 5 * 2))))


@pytest.fixture(scope="module")
def policies():
    return {"policy": exact(), "reference": exact(9)}


@pytest.mark.parametrize(
    ("loss", "expected"),
    [("sigmoid", math.log(2)), ("cdpo", math.log(2)), ("robust", math.log(2)), ("sigmoid_norm", math.log(2)),
     ("hinge", 1.0), ("ipo", 25.0), ("dpop", math.log(2))],
)  # fmt: skip
def test_at_the_reference(policies, loss, expected):
    same = {"policy": policies["policy"], "reference": exact()}
    assert loss_of(dpo(loss), pairs(), same).item() == pytest.approx(expected, rel=1e-12)
    assert gradient(dpo(loss), pairs(), same).norm() > 1e-3


def test_ipo_stops_where_the_margin_is_reached():
    delta = torch.tensor([5.0, 4.0], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(2, dtype=torch.float64)
    for loss, settings in (("ipo", {"tau": 0.1}), ("sigmoid", {})):
        value = VARIANTS[loss].loss(Scores(delta, zero, zero, zero), **settings)
        slope = torch.autograd.grad(value.sum(), delta)[0]
        assert slope[1] < 0
        assert (slope[0] == 0) == (loss == "ipo")


def swapped(s):
    return Scores(s.rejected, s.chosen, s.reference_rejected, s.reference_chosen)


def test_swaps(policies):
    assert swapped(SUM).delta.item() == -2.0
    half = VARIANTS["cdpo"].loss
    assert half(SUM, smoothing=0.5).item() == pytest.approx(half(swapped(SUM), smoothing=0.5).item(), rel=1e-14)
    assert half(SUM, smoothing=0.0).item() == VARIANTS["sigmoid"].loss(SUM).item()
    assert VARIANTS["robust"].loss(SUM, flip=0.0).item() == VARIANTS["sigmoid"].loss(SUM).item()
    other = [Row({"chosen": r["rejected"], "rejected": r["chosen"]}) for r in pairs()]
    loss = dpo("cdpo", smoothing=0.5)
    torch.testing.assert_close(loss_of(loss, pairs(), policies), loss_of(loss, other, policies))


def test_sum_and_mean_scores(policies):
    """`sigmoid` on mean scores is `sigmoid_norm`, and differs from the sum."""
    norm = loss_of(dpo("sigmoid_norm"), pairs(), policies)
    torch.testing.assert_close(loss_of(dpo(scores="mean"), pairs(), policies), norm)
    assert (norm - loss_of(dpo(), pairs(), policies)).detach().abs() > 1e-3
    sums = {name for name in VARIANTS if dpo(name).scores == "sum"}
    assert sums == {"sigmoid", "cdpo", "robust", "hinge", "dpop"}


def test_padding_prompt_labels_and_order_change_nothing(policies):
    rows = pairs()
    whole = loss_of(dpo(), rows, policies)
    for changed in (rows[::-1], rows[2:] + rows[:2]):
        torch.testing.assert_close(loss_of(dpo(), changed, policies), whole, rtol=1e-12, atol=0)
    torch.testing.assert_close(loss_of(dpo(), rows, policies, tokens=1), whole, rtol=1e-12, atol=0)
    # a prompt has no labels: what it says is read but not scored, so no per-token number of it enters
    for row in rows:
        for one in row.all():
            one.per_token["reference_logprob"] = torch.full((len(one),), torch.nan, dtype=torch.float64)
            ctx = Context([Row({"response": one})], {"policy": policies["reference"]})
            with torch.no_grad():
                one.per_token["reference_logprob"][one.learn_mask] = ctx.forward("response").logprobs
    torch.testing.assert_close(loss_of(dpo(), rows, policies), whole, rtol=1e-12, atol=0)


def test_sft_term_is_completion_only_likelihood(policies):
    chosen_only = [Row({"response": r["chosen"]}) for r in pairs()]
    alone = gradient(nll(), chosen_only, policies)
    assert distance(gradient(nll(role="chosen"), pairs(), policies), alone) < 1e-12
    both = gradient(dpo() + 0.7 * nll(role="chosen"), pairs(), policies)
    assert distance(both - gradient(dpo(), pairs(), policies), 0.7 * alone) < 1e-10


def test_reference_free_losses_ask_for_no_reference(policies):
    for term in (dpo("simpo"), dpo("orpo"), dpo(reference_free=True)):
        assert term.needs == frozenset()
        assert loss_of(term, pairs(), policies["policy"]).isfinite()
    assert dpo().needs == {"reference_logprob"}


def test_pair_weights_multiply_and_never_divide(policies):
    rows = pairs(2)
    each = [loss_of(dpo(), [row], policies) for row in rows]
    rows[0].numbers["weight"] = 3.0
    torch.testing.assert_close(loss_of(dpo(), rows, policies), (3 * each[0] + each[1]) / 2)


def test_segment_weights_enter_the_score(policies):
    rows = [Row({"chosen": sample(3, 4, 1), "rejected": sample(3, 4, 2)})]
    rows[0]["rejected"].segments[1].weight = 0.0
    ctx = Context(rows, policies)
    with torch.no_grad():
        dpo().total(ctx)
        gain = {r: ctx.forward(r).logprobs - ctx.reference_logprobs(r) for r in ("chosen", "rejected")}
    expected = 0.1 * (gain["chosen"].sum() - gain["rejected"][-1])
    assert ctx.logs["margin"][0].item() == pytest.approx(float(expected), rel=1e-5)


def test_a_side_without_an_end_is_scored_without_one(policies):
    cut = sample(3, 4, 2)
    cut.segments.pop()
    ctx = Context([Row({"chosen": sample(3, 4, 1), "rejected": cut})], policies)
    assert ctx.batch("rejected").lengths.tolist() == [3]


def test_logs(policies):
    ctx = Context(pairs(), policies)
    dpo(beta=0.2).total(ctx)
    logs = {k: torch.cat(v) for k, v in ctx.logs.items()}
    torch.testing.assert_close(logs["margin"], logs["chosen_reward"] - logs["rejected_reward"], rtol=1e-4, atol=1e-5)
    assert logs["pair_accuracy"].tolist() == (logs["margin"] > 0).float().tolist()
    expected = ctx.forward("chosen").by_sequence(ctx.forward("chosen").logprobs)
    torch.testing.assert_close(logs["chosen_logprob"], expected.float())


def test_log1mexp_is_stable():
    for dtype, tiny in ((torch.float32, 1e-6), (torch.float64, 1e-12)):
        x = torch.tensor([-tiny, -1e-3, -0.5, -1.0, -50.0, 0.0], dtype=dtype, requires_grad=True)
        out = log1mexp(x)
        assert out.isfinite().all()
        assert torch.autograd.grad(out.sum(), x)[0].isfinite().all()
        exact = [math.log(-math.expm1(v)) for v in x[:4].tolist()]
        assert out[:4].tolist() == pytest.approx(exact, rel=1e-5 if dtype == torch.float32 else 1e-12)
        assert out[4].item() == pytest.approx(-math.exp(-50), rel=1e-5)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: dpo("sigmod"), "sigmoid"),
        (lambda: dpo(label_smoothing=0.1), "label_smoothing"),
        (lambda: dpo("cdpo", flip=0.1), "flip"),
        (lambda: dpo("robust", flip=0.5), "flip < 0.5"),
        (lambda: dpo("ipo", beta=0.1), "beta"),
        (lambda: dpo(scores="average"), "average"),
        (lambda: dpo("dpop", reference_free=True), "reference_free"),
    ],
)
def test_settings_are_named_by_variant(make, match):
    with pytest.raises(WhetError, match=match):
        make()


def test_a_pair_with_several_rejected_is_refused(policies):
    row = Row({"chosen": sample(3, 2), "rejected": [sample(3, 2, 1), sample(3, 2, 2)]})
    with pytest.raises(WhetError, match="one chosen and one rejected"):
        loss_of(dpo(), [row], policies)
