"""What a forward sees."""

from __future__ import annotations

import pytest
import torch
from objective_tools import rollouts, sample

from tiny import tiny_policy
from whet.objectives import Clean, Context, Corrupt, Embeds, Hide, Noise
from whet.records import Row, Sample, Segment


@pytest.fixture(scope="module", params=["qwen3", "gpt2"])
def policy(request):
    policy = tiny_policy(request.param, dtype=torch.float64)
    policy.packs = False  # what is clean is padded too, to be compared with views bit for bit
    return policy


def logprobs(policy, view, rows=None, seed=0):
    with torch.no_grad():
        return Context(rows or rollouts(), {"policy": policy}, seed=seed).forward("response", view).logprobs


def test_nothing_done_is_clean(policy):
    clean = logprobs(policy, Clean())
    assert torch.equal(logprobs(policy, Corrupt(0.0, 5)), clean)
    torch.testing.assert_close(logprobs(policy, Noise(0.0)), clean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(logprobs(policy, Embeds(lambda e, _: e)), clean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(logprobs(policy, Hide(("image",))), clean, rtol=1e-10, atol=1e-10)


def test_corruption_changes_the_input_and_never_the_labels(policy):
    rows = rollouts()
    ctx = Context(rows, {"policy": policy})
    seen = Corrupt(1.0, 5).see(policy, ctx.batch("response"), 0)
    for row, ids in zip(rows, seen.ids.tolist(), strict=True):
        one = row["response"]
        expected = [5 if hit else i for i, hit in zip(one.ids, one.span_mask("rationale").tolist(), strict=True)]
        assert ids[: len(one)] == expected
    targets = [i for r in rows for i, m in zip(r["response"].ids, r["response"].learn_mask, strict=True) if m]
    assert ctx.forward("response", Corrupt(1.0, 5)).batch.targets.tolist() == targets
    assert not torch.equal(ctx.forward("response", Corrupt(1.0, 5)).logprobs, ctx.forward("response").logprobs)


@pytest.mark.parametrize("view", [Corrupt(0.5, 5), Noise(0.1)], ids=["corrupt", "noise"])
def test_drawn_by_the_step_seed_and_the_sample_alone(policy, view):
    first = logprobs(policy, view, seed=1)
    assert torch.equal(first, logprobs(policy, view, seed=1))
    assert not torch.equal(first, logprobs(policy, view, seed=2))
    # the neighbours in the batch, and the padding that they bring, do not enter the draw
    alone = logprobs(policy, view, rollouts()[2:3], seed=1)
    torch.testing.assert_close(first[5:11], alone, rtol=1e-10, atol=1e-10)


def test_hidden_tokens_are_felt_only_after_them(policy):
    one = Sample(
        [Segment("question", [7, 8, 9], learn=False), Segment("plan", [10, 11], learn=True),
         Segment("rationale", [12, 13, 14], learn=True), Segment("answer", [15, 16], learn=True)]
    )  # fmt: skip
    rows = [Row({"response": one}), Row({"response": sample(4, 12, 3)})]
    clean, hidden = logprobs(policy, Clean(), rows), logprobs(policy, Hide(("rationale",)), rows)
    # plan and the first rationale token are predicted from what stands before it
    torch.testing.assert_close(hidden[:3], clean[:3], rtol=1e-10, atol=1e-10)
    assert (hidden[6:7] - clean[6:7]).abs().min() > 1e-6  # the second answer token no longer sees the rationale


def test_hidden_tokens_leave_no_trace(policy):
    """What a hidden span says does not matter to a later token."""

    def build(ids):
        spans = [("question", [7, 8], False), ("plan", ids, False), ("answer", [15, 16], True)]
        return [Row({"response": Sample([Segment(k, i, learn=learn) for k, i, learn in spans])})]

    view = Hide(("plan",))
    a, b = logprobs(policy, view, build([20, 21, 22])), logprobs(policy, view, build([30, 31, 32]))
    torch.testing.assert_close(a[1], b[1], rtol=1e-10, atol=1e-10)
    assert not torch.allclose(*(logprobs(policy, Clean(), build(ids))[1] for ids in ([20, 21, 22], [30, 31, 32])))


def test_hiding_the_start_stays_finite(policy):
    assert logprobs(policy, Hide(("question",))).isfinite().all()


def test_equal_views_share_a_forward(policy):
    ctx = Context(rollouts(), {"policy": policy})
    assert ctx.forward("response", Noise(0.1)) is ctx.forward("response", Noise(0.1))
    assert ctx.forward("response", Noise(0.1)) is not ctx.forward("response", Noise(0.2))
