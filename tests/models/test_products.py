"""Attention by products and the lighter norms: the numbers of what they stand for, and their gradients."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn

from tiny import tiny_model
from whet.models import norms, products
from whet.models.meter import autocast
from whet.models.policy import Policy


def states(heads: int, groups: int, width: int, keys: int, dtype: torch.dtype) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    shapes = ((3, heads, width, 8), (3, groups, keys, 8), (3, groups, keys, 8))
    return [torch.randn(s, generator=draw).to(dtype).requires_grad_() for s in shapes]


def fused(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    return nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=True
    )


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("masked", [False, True])
def test_products_are_attention(heads: int, groups: int, scale: float | None, masked: bool) -> None:
    width, keys = (5, 9) if masked else (7, 7)
    mask = (torch.arange(keys) <= torch.arange(width)[:, None] + 2).expand(3, 1, -1, -1).clone() if masked else None
    if mask is not None:
        mask[1, :, :, 0] = False
    exact = states(heads, groups, width, keys, torch.float64)
    expected = fused(*exact, mask, scale)
    cotangent = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    slopes = torch.autograd.grad(expected, exact, cotangent)
    for dtype, tolerance in ((torch.float64, 1e-6), (torch.bfloat16, 2e-2)):
        given = states(heads, groups, width, keys, dtype)
        found = products.attend(*given, mask, scale)
        assert found.dtype == dtype
        pairs = zip((found, *torch.autograd.grad(found, given, cotangent.to(dtype))), (expected, *slopes), strict=True)
        for ours, theirs in pairs:
            assert float((ours.double() - theirs).norm() / theirs.norm()) < tolerance


def test_products_are_for_short_rows_in_bf16_on_a_cpu() -> None:
    full, half = torch.zeros(1, 2, 4, 8), torch.zeros(1, 2, 4, 8, dtype=torch.bfloat16)
    assert products.suits(half, half, half, 0.0)
    assert not products.suits(half, half, half[..., :4], 0.0)
    assert not products.suits(full, full, full, 0.0)
    assert not products.suits(half, half, half, 0.1)
    long = torch.zeros(1, 2, products.LONGEST + 1, 8, dtype=torch.bfloat16)
    assert not products.suits(half, long, long, 0.0)
    with autocast(torch.device("cpu"), True):
        assert products.suits(full, full, full, 0.0)


@pytest.mark.parametrize("kind", ["qwen3", "llama", "phi3", "gemma3"])
def test_lighter_norms_give_the_numbers_of_the_model_s_own(kind: str) -> None:
    own = tiny_model(kind)
    lighter = copy.deepcopy(own)
    norms.lighten(lighter)
    changed = [n for n, m in lighter.named_modules() if "forward" in vars(m)]
    assert bool(changed) == (kind != "gemma3")  # 1 + weight: another form, left alone
    assert not any(name.endswith("model.norm") for name in changed)
    ids = torch.randint(2, 200, (2, 12), generator=torch.Generator().manual_seed(0))
    plain = [m(input_ids=ids).logits for m in (own, lighter)]
    assert torch.equal(*plain)  # outside autocast they are the model's own
    slopes = []
    for model in (own, lighter):
        with autocast(torch.device("cpu"), True):
            logits = model(input_ids=ids).logits.float()
        slopes.append(torch.autograd.grad(logits.logsumexp(-1).sum() + logits[..., 3].sum(), list(model.parameters())))
    for ours, theirs in zip(*slopes, strict=True):
        assert float((ours - theirs).norm()) <= 0.05 * float(theirs.norm()) + 1e-6


def test_the_norm_s_gradient_is_that_of_its_formula() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(3, 5, 8, dtype=torch.float64, generator=draw).requires_grad_()
    weight = torch.randn(8, dtype=torch.float64, generator=draw).requires_grad_()
    cotangent = torch.randn(3, 5, 8, dtype=torch.float64, generator=draw)
    expected = nn.functional.rms_norm(x, (8,), weight, 1e-3)
    slopes = torch.autograd.grad(expected, (x, weight), cotangent)
    narrow = [t.detach().float().requires_grad_() for t in (x, weight)]
    found = norms._RMSNorm.apply(*narrow, 1e-3, torch.float32)
    pairs = zip((found, *torch.autograd.grad(found, narrow, cotangent.float())), (expected, *slopes), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-6)


def test_copies_of_a_model_have_norms_of_their_own() -> None:
    model = tiny_model("llama")
    norms.lighten(model)
    twin = copy.deepcopy(model)
    pairs = zip(model.modules(), twin.modules(), strict=True)
    for mine, other in itertools.islice((p for p in pairs if "forward" in vars(p[0])), 3):
        assert other.forward.__self__ is other and mine.forward.__self__ is mine


def test_only_a_mixed_policy_has_them() -> None:
    from tiny import tiny_policy

    policy: Policy = tiny_policy("llama")
    assert not any("forward" in vars(m) for m in policy.model.modules())
