"""What layers see: against a forward by hand, padding left out, and Fisher information against one gradient at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tiny import KINDS, tiny_policy
from trained import trained_policy
from whet.errors import WhetError
from whet.models.hooks import spliced, without_gradient
from whet.models.policy import Policy
from whet.records import Row, Sample, Segment
from whet.sources import calibration_rows
from whet.tasks import get_task
from whet.weights import get_weights
from whet.weights.calibration import activations, fisher, second_moments
from whet.weights.selectors import matrices

LENGTHS = (3, 9, 5)
IDS = torch.arange(2, 12)[None]


def rows() -> list[Row]:
    found = []
    for i, n in enumerate(LENGTHS):
        answer = Segment("answer", list(range(20 + i, 20 + i + n)), learn=True)
        found.append(Row({"response": Sample([Segment("question", [5 + i, 6, 7]), answer])}))
    return found


def module(policy: Policy, end: str) -> str:
    return next(n for n, _ in policy.model.named_modules() if n.endswith(end))


@pytest.mark.parametrize("kind", ["qwen3", "gpt2"])
def test_activations_are_those_of_each_sequence_alone(kind: str) -> None:
    policy = tiny_policy(kind)
    name = module(policy, "1.mlp.down_proj" if kind == "qwen3" else "1.mlp.c_proj")
    by_length = sorted(rows(), key=lambda r: len(r["response"]))
    for found, row in zip(activations(policy, rows(), [name]), by_length, strict=True):
        alone: list[Tensor] = []
        with torch.no_grad(), spliced(policy, inputs={name: lambda x, alone=alone: alone.append(x)}):
            policy.hidden(torch.tensor([row["response"].ids]))
        assert found[name].shape == (len(row["response"]), alone[0].shape[-1])
        torch.testing.assert_close(found[name], alone[0][0], rtol=1e-5, atol=1e-5)


def test_second_moments_leave_padding_out() -> None:
    policy = tiny_policy()
    name = module(policy, "0.self_attn.q_proj")
    x = torch.cat([found[name] for found in activations(policy, rows(), [name])])
    assert len(x) == sum(LENGTHS) + 3 * len(LENGTHS)
    moments = second_moments(policy, rows(), [name])[name]
    torch.testing.assert_close(moments, x.T @ x / len(x), rtol=1e-5, atol=1e-6)
    # padding changes nothing: each row by itself
    alone = sum(len(r["response"]) * second_moments(policy, [r], [name])[name] for r in rows()) / len(x)
    torch.testing.assert_close(moments, alone, rtol=1e-5, atol=1e-6)
    doubled = second_moments(policy, rows(), [name], scale=lambda x: 2 * x)[name]
    torch.testing.assert_close(doubled, 4 * moments)
    scaled = second_moments(policy, rows(), [name], scale=lambda x: x / x.max().abs())[name]
    assert not torch.allclose(scaled / scaled.trace(), moments / moments.trace(), rtol=1e-4, atol=0), (
        "it weighs sequences otherwise"
    )


def test_outputs_are_read_too() -> None:
    policy = tiny_policy()
    name = module(policy, "0.mlp")
    (found,) = activations(policy, rows()[:1], [name], inputs=False)
    assert found[name].shape == (6, 32)


def test_fisher_is_the_mean_square_of_each_sequences_gradient() -> None:
    policy = tiny_policy(dtype=torch.float64)
    names = list(matrices(policy.model))[:3]
    policy.model.requires_grad_(False)
    found = fisher(policy, rows(), names)
    assert not any(p.requires_grad for p in policy.model.parameters()), "as it was"
    own = dict(policy.model.named_parameters())
    for name in names:
        own[name].requires_grad_(True)
        total = torch.zeros_like(own[name])
        for row in rows():
            ids = torch.tensor([row["response"].ids])
            logprobs = policy.logits(ids)[0, 2:-1].log_softmax(-1)
            (gradient,) = torch.autograd.grad(logprobs.gather(1, ids[0, 3:, None]).sum(), own[name])
            total += gradient.square()
        torch.testing.assert_close(found[name].double(), total / len(LENGTHS), rtol=1e-4, atol=1e-9)
        own[name].requires_grad_(False)


def test_weights_calibrate_on_demonstrations() -> None:
    policy = trained_policy()
    weights = get_weights("fisher:density=0.1,rows=4")
    weights.bind(lambda n, task: calibration_rows(policy, get_task("parity"), 0, n, task))
    weights.attach(policy, 0)
    weights.at_stage_start(policy)
    values = fisher(policy, calibration_rows(policy, get_task("parity"), 0, 4), list(matrices(policy.model)))
    for name, mask in weights.selection.items():  # type: ignore[attr-defined]
        assert float(values[name][mask].min()) >= float(values[name][~mask].max())
    unbound = get_weights("fisher")
    unbound.attach(policy, 0)
    with pytest.raises(WhetError, match="nothing was bound that makes rows"):
        unbound.at_stage_start(policy)


# -- taps and splices ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_named_modules_are_read_and_replaced(kind: str) -> None:
    policy = tiny_policy(kind)
    name = next(n for n, _ in policy.model.named_modules() if n.endswith(("mlp",)))
    plain = policy.logits(IDS)
    seen: list[Tensor] = []
    with spliced(policy, {name: lambda h: seen.append(h)}, inputs={name: lambda h: seen.append(h)}):
        assert torch.equal(policy.logits(IDS), plain)
    assert [s.shape for s in seen] == [(1, 10, 32)] * 2
    with spliced(policy, {name: lambda h: 0 * h}):
        zeroed = policy.logits(IDS)
    with spliced(policy, inputs={name: lambda h: h + 1}):
        shifted = policy.logits(IDS)
    assert not torch.equal(zeroed, plain) and not torch.equal(shifted, plain) and not torch.equal(shifted, zeroed)
    assert torch.equal(policy.logits(IDS), plain), "nothing is left behind"


def test_no_gradient_goes_through_a_constant() -> None:
    policy = tiny_policy("gpt2")
    for wrap, passes in ((lambda s: s, True), (without_gradient, False)):
        policy.model.zero_grad()
        with spliced(policy, {0: wrap(lambda h: 2 * h)}):
            policy.logits(IDS).square().sum().backward()
        first, second = (policy.model.transformer.h[i].mlp.c_fc.weight.grad for i in (0, 1))
        assert (first is not None and bool(first.any())) == passes and bool(second.any())
    with (
        pytest.raises(WhetError, match=r"unknown module of GPT2LMHeadModel 'transformer.h.0.mpl': did you mean"),
        spliced(policy, {"transformer.h.0.mpl": lambda h: h}),
    ):
        pass


def test_nothing_to_calibrate_on_is_refused() -> None:
    policy = tiny_policy()
    with pytest.raises(WhetError, match="no row to calibrate on"):
        second_moments(policy, [], ["model.layers.0.mlp"])
