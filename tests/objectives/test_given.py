"""Given tokens in a policy gradient: which of them are learnt, and how."""

from __future__ import annotations

import pytest
import torch
from objective_tools import distance, exact, gradient, rollouts, with_old

from whet.errors import WhetError
from whet.objectives import Context, policy_gradient
from whet.objectives.forward import Forward
from whet.objectives.given import Given
from whet.records import Row, Sample, Segment


def begun(given: int = 5, drawn: int = 3, advantage: float = 0.75, seed: int = 0) -> Row:
    """A response of `given` prefix tokens, then drawn ones."""
    ids = torch.randint(2, 300, (2 + given + drawn,), generator=torch.Generator().manual_seed(seed)).tolist()
    segments = [Segment("question", ids[:2]), *([Segment("prefix", ids[2 : 2 + given], learn=True)] if given else []),
                Segment("response", ids[2 + given :], learn=True, sampled=True)]  # fmt: skip
    sample = Sample(segments, f"p{seed}", f"g{seed}")
    sample.per_token["advantage"] = advantage * sample.learn_mask
    return Row({"response": sample})


class Fixed(Forward):
    """A forward whose entropies are written beforehand."""

    entropy = torch.tensor([])  # type: ignore[assignment]


def kept(entropies: list[float], drawn: int, top: float) -> list[float]:
    row = begun(len(entropies), drawn)
    ctx = Context([row], {"policy": exact()})
    real = ctx.forward("response")
    forward = Fixed(real.policy, real.batch, real._hidden, real._logits)
    forward.entropy = torch.tensor([*entropies, *[0.0] * drawn])  # type: ignore[misc]
    return Given(top).keep(ctx, forward, forward.values("advantage"), forward.batch.given).tolist()


def test_the_cards_example() -> None:
    assert kept([0.1, 0.9, 0.5, 0.3, 0.7], 3, 0.2) == [0, 0.75, 0, 0, 0, 0.75, 0.75, 0.75]


@pytest.mark.parametrize(("n", "masked"), [(1, 0), (4, 3), (5, 4), (6, 4), (10, 8)])
def test_how_many_are_masked(n: int, masked: int) -> None:
    """The lowest floor(.8 n); of equal ones the earlier is kept; what was drawn is untouched."""
    found = kept([0.5] * n, 2, 0.2)
    assert found == [0.75] * (n - masked) + [0.0] * masked + [0.75] * 2


def test_tokens_are_ranked_within_their_own_answer() -> None:
    """So that the gradient depends neither on micro-batches nor on the order of rows."""
    policy = exact()
    rows = [begun(given, drawn, 1.0 - 0.4 * i, i) for i, (given, drawn) in enumerate([(5, 3), (9, 2), (0, 4), (6, 1)])]
    term = policy_gradient(normalise="constant", given=Given(0.4))
    whole = gradient(term, rows, policy)
    assert distance(whole, gradient(term, rows[::-1], policy, tokens=12)) < 1e-12
    assert distance(whole, gradient(policy_gradient(normalise="constant"), rows, policy)) > 0.05


def test_left_out_tokens_have_no_gradient_and_the_others_their_own() -> None:
    policy = exact()
    row = begun(5, 3)
    ctx = Context([row], {"policy": policy})
    forward = ctx.forward("response")
    order = forward.entropy[:5].argsort(descending=True)[:1].tolist()
    weights = torch.zeros(8, dtype=torch.float64)
    weights[[*order, 5, 6, 7]] = 0.75
    parameters = list(policy.trainable_parameters().values())
    expected = torch.autograd.grad(-(weights * forward.logprobs).sum() / 16, parameters, allow_unused=True)
    flat = torch.cat([(torch.zeros_like(p) if g is None else g).flatten()
                      for g, p in zip(expected, parameters, strict=True)])  # fmt: skip
    assert distance(flat, gradient(policy_gradient(normalise="constant", given=Given(0.2)), [row], policy)) < 1e-10


def test_without_given_tokens_nothing_changes() -> None:
    policy, rows = exact(), rollouts()
    plain = gradient(policy_gradient(), rows, policy)
    assert torch.equal(plain, gradient(policy_gradient(given=Given(0.2)), rows, policy))
    assert torch.equal(plain, gradient(policy_gradient(given=Given(shape=0.1)), rows, policy))


def test_the_ratio_is_one_on_the_first_update() -> None:
    """The behaviour policy of a prefix is the policy itself; the clip is inert, and the mismatch speaks of drawn tokens."""
    row = begun()
    sample = row["response"]
    sample.per_token["sampler_logprob"] = torch.zeros(len(sample))
    policy = exact()
    with torch.no_grad():
        logprobs = Context([row], {"policy": policy}).forward("response").logprobs
    sample.per_token["sampler_logprob"][-3:] = logprobs[-3:].float()
    ctx = Context([row], {"policy": policy})
    policy_gradient(normalise="constant", given=Given(0.2)).total(ctx)
    assert float(torch.cat(ctx.logs["ratio_max"])) == 1.0 and not torch.cat(ctx.logs["clip_fraction"]).any()
    mismatch = torch.cat(ctx.logs["mismatch"])
    assert len(mismatch) == 3 and float(mismatch.max()) < 1e-6, (
        "a demonstrator's probabilities are no log-probs of a sampler"
    )
    corrected = policy_gradient(normalise="constant", correction="tis")
    assert (
        distance(gradient(corrected, [row], policy), gradient(policy_gradient(normalise="constant"), [row], policy))
        < 1e-6
    )


def test_the_old_log_probs_of_a_prefix_are_the_policys_and_not_a_demonstrators() -> None:
    """Recomputed by the policy, the ratio is 1 at every token; with those of somebody else it is not, and clips."""
    policy, row = exact(), begun()
    with_old([row], policy, scale=0.0)
    for demonstrator in (False, True):
        if demonstrator:
            row["response"].per_token["old_logprob"][row["response"].span_mask("prefix")] = -12.0
        ctx = Context([row], {"policy": policy})
        policy_gradient(normalise="constant", given=Given(0.2)).total(ctx)
        assert (float(torch.cat(ctx.logs["ratio_max"])) == pytest.approx(1.0)) == (not demonstrator)
        assert bool(torch.cat(ctx.logs["clip_fraction"]).any()) == demonstrator


def test_shaped_tokens_are_luffys() -> None:
    """-A p / (p + .1) at given tokens, whatever the old log-probs; the ratio and its clip at the others."""
    policy = exact()
    row = begun(advantage=0.6)
    with_old([row], policy)
    ctx = Context([row], {"policy": policy}, budget=16)
    forward = ctx.forward("response")
    p, old = forward.logprobs.exp(), forward.values("old_logprob").exp()
    ratio = p / old
    clipped = torch.minimum(0.6 * ratio, 0.6 * ratio.clamp(0.8, 1.2))
    expected = -(0.6 * p / (p + 0.1))[:5].sum() - clipped[5:].sum()
    found = policy_gradient(normalise="constant", given=Given(shape=0.1)).total(ctx)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("wrong", [{"top": 0.0}, {"top": 1.2}, {"shape": -1.0}])
def test_what_cannot_work_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(WhetError, match=r"must be in|or more"):
        Given(**wrong)
