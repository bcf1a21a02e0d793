"""Sparse autoencoder: its code, its loss and its splice, by numbers and identities."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tiny import tiny_policy
from whet.errors import WhetError
from whet.models.autoencoder import (
    NAME,
    SparseAutoencoder,
    centre,
    coded,
    exclusive,
    fvu,
    new_autoencoder,
    outputs,
    place_of,
)
from whet.models.hooks import spliced
from whet.models.packing import Batch
from whet.models.policy import Policy
from whet.records import Row, Sample, Segment

ANSWERS = ([8], [9, 10, 11])
ROWS = [Row({"response": Sample([Segment("question", [5, 6, 7]), Segment("answer", a, learn=True)])}) for a in ANSWERS]
IDS = torch.arange(2, 12)[None]


def identity(width: int) -> SparseAutoencoder:
    """+-I in and out: x = relu(x) - relu(-x), of whose 2 d parts d are not 0."""
    sae = SparseAutoencoder(width, 2 * width, width, dtype=torch.float64)
    both = torch.cat([torch.eye(width), -torch.eye(width)]).double()
    with torch.no_grad():
        sae.encoder.copy_(both)
        sae.decoder.copy_(both)
    return sae


def random(width: int = 32, latents: int = 64, active: int = 4) -> SparseAutoencoder:
    torch.manual_seed(0)
    return SparseAutoencoder(width, latents, active, dtype=torch.float64)


def vectors(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def having(sae: SparseAutoencoder, kind: str = "gpt2") -> Policy:
    policy = tiny_policy(kind, dtype=torch.float64)
    policy.modules[NAME] = sae
    return policy


# -- the code ------------------------------------------------------------------------------------------------------------
def test_the_identity() -> None:
    x = vectors(2, 5, 8)
    assert torch.equal(identity(8)(x), x)
    assert fvu(x.flatten(0, 1), identity(8)(x).flatten(0, 1)).item() == 0.0


def test_a_code_has_at_most_so_many() -> None:
    sae = random()
    counts = (sae.codes(vectors(3, 40, 32)) != 0).sum(-1)
    assert counts.shape == (3, 40) and int(counts.max()) == 4
    narrow = SparseAutoencoder(2, 8, 8, dtype=torch.float64)
    assert int((narrow.codes(vectors(9, 2)) != 0).sum(-1).max()) < 8, "what is negative stays 0"


def test_all_latents_of_an_orthonormal_basis_are_the_relu_part() -> None:
    sae = SparseAutoencoder(8, 8, 8, dtype=torch.float64)
    basis = torch.linalg.qr(vectors(8, 8))[0]
    with torch.no_grad():
        sae.encoder.copy_(basis)
        sae.decoder.copy_(basis)
    x = vectors(7, 8)
    torch.testing.assert_close(sae(x), (x @ basis.T).relu() @ basis, rtol=1e-12, atol=1e-12)


def test_its_definition() -> None:
    sae = random()
    with torch.no_grad():
        sae.bias.copy_(vectors(32))
        sae.encoder_bias.copy_(0.1 * vectors(64))
        sae.decoder.mul_(3.0)  # the length of a direction says nothing
    x = vectors(6, 32)
    pre = ((x - sae.bias) @ sae.encoder.T + sae.encoder_bias).relu()
    z = pre * (pre >= pre.sort(-1, descending=True).values[:, 3:4])
    torch.testing.assert_close(sae.codes(x), z, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sae(x), z @ (sae.decoder / 3) + sae.bias, rtol=1e-12, atol=1e-12)


def test_it_begins_tied_with_unit_directions_that_stay_so() -> None:
    sae = random()
    assert torch.equal(sae.encoder, sae.decoder) and not sae.encoder_bias.any() and not sae.bias.any()
    assert torch.allclose(sae.decoder.norm(dim=-1), torch.ones(64).double(), rtol=1e-12)
    x = vectors(50, 32)
    (gradient,) = torch.autograd.grad(fvu(x, sae(x)), sae.decoder)
    along = (gradient * sae.decoder).sum(-1).abs().max()
    assert float(along) < 1e-12 < float(gradient.norm())


def test_precision_is_its_own_even_under_autocast() -> None:
    sae = SparseAutoencoder(32, 64, 4)
    x = vectors(5, 32).float()
    plain = sae(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(sae(x), plain)
    assert sae(x.bfloat16()).dtype == torch.bfloat16


def test_variance_unexplained() -> None:
    x = vectors(20, 6)
    assert float(fvu(x, x)) == 0.0
    assert float(fvu(x, x.mean(0).expand_as(x))) == pytest.approx(1.0, rel=1e-12)
    assert float(fvu(torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0], [1.0]]))) == 0.5


def test_latents_of_marked_tokens_alone() -> None:
    """Of four: at both marks; at both and elsewhere; at one; nowhere."""
    codes = torch.tensor([[1.0, 1.0, 1.0, 0.0], [0.0, 0.5, 0.0, 0.0], [2.0, 1.0, 0.0, 0.0]])
    marked = torch.tensor([True, False, True])
    assert exclusive(codes, marked).tolist() == [True, False, False, False]
    assert not exclusive(codes, torch.zeros(3, dtype=torch.bool)).any(), "without a mark there is none"


def test_what_cannot_be() -> None:
    for active in (0, 9):
        with pytest.raises(WhetError, match="active, not"):
            SparseAutoencoder(4, 8, active)


# -- of a policy ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["qwen3", "gpt2"])
def test_outputs_are_those_of_real_tokens(kind: str) -> None:
    policy = tiny_policy(kind, dtype=torch.float64)
    batch = Batch.of([row["response"] for row in ROWS])
    found = outputs(policy, batch, 0)
    alone = [outputs(policy, Batch.of([row["response"]]), 0) for row in ROWS]
    assert found.shape == (10, 32) and not found.requires_grad
    torch.testing.assert_close(found, torch.cat(alone), rtol=1e-10, atol=1e-10)


def test_it_begins_with_the_mean() -> None:
    policy = having(random())
    centre(policy, ROWS)
    batch = Batch.of([row["response"] for row in ROWS])
    torch.testing.assert_close(policy.modules[NAME].bias.detach(), outputs(policy, batch, 0).mean(0))


@pytest.mark.parametrize("through", [False, True])
def test_the_splice(through: bool) -> None:
    """The identity changes nothing, another one does, and afterwards nothing is left; its own weights get no gradient."""
    plain = tiny_policy("gpt2", dtype=torch.float64).logits(IDS)
    for sae, same in ((identity(32), True), (random(), False)):
        policy = having(sae)
        with spliced(policy, coded(policy, through=through)):
            changed = policy.logits(IDS)
        assert torch.allclose(changed, plain, rtol=1e-12, atol=1e-12) == same
        assert torch.equal(policy.logits(IDS), plain)
        changed.square().sum().backward()
        assert all(p.grad is None for p in sae.parameters())
        before = [p.grad for n, p in policy.model.named_parameters() if ".h.0." in n]
        after = [p.grad for n, p in policy.model.named_parameters() if ".h.1." in n]
        assert all(g is not None and g.norm() > 0 for g in after)
        assert all((g is not None and bool(g.norm() > 0)) == through for g in before)


def test_it_is_counted() -> None:
    policy = having(random())
    policy.logits(IDS)
    plain = policy.meter.flops
    with torch.no_grad(), spliced(policy, coded(policy)):
        before = policy.meter.flops
        policy.logits(IDS)
        spent = policy.meter.flops - before
    with torch.no_grad():
        before = policy.meter.flops
        policy.logits(IDS)
    assert spent - (policy.meter.flops - before) == 2 * 10 * (64 * 32 + 4 * 32)
    assert plain > 0


def test_which_block() -> None:
    policy = tiny_policy(num_hidden_layers=4)
    assert [place_of(policy, b) for b in (None, 0, 3)] == [1, 0, 3] and place_of(policy, 2, before_last=True) == 2
    assert place_of(tiny_policy(num_hidden_layers=3), None) == 1
    assert new_autoencoder(policy, 64, 4).block == 1 and new_autoencoder(policy, 64, 4, 2).decoder.shape == (64, 32)
    assert new_autoencoder(tiny_policy("gpt2", dtype=torch.float64), 8, 2).bias.dtype == torch.float64
    for block in (-1, 4):
        with pytest.raises(WhetError, match="its 4 blocks are counted from 0, so that 3 is the last one"):
            place_of(policy, block)
    with pytest.raises(WhetError, match="so that 2 is the last one with another one after it"):
        place_of(policy, 3, before_last=True)
    with pytest.raises(WhetError, match="has no sparse autoencoder"):
        coded(policy)
