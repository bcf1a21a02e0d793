"""CorDA's start: against PEFT's own, by its identities, and as weights of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import preprocess_corda
from torch import Tensor

from tiny import tiny_policy
from trained import trained_folder, trained_policy
from whet.errors import WhetError
from whet.launch import resume, run
from whet.models import base
from whet.models.meter import Meter
from whet.models.policy import Policy
from whet.records import Row, Sample, Segment
from whet.sources import calibration_rows
from whet.tasks import get_task
from whet.weights import Lora, Packed, get_weights
from whet.weights.adapters import read_adapter
from whet.weights.calibration import second_moments
from whet.weights.corda import Corda, decompose, divided
from whet.weights.selectors import matrices

PROBE = torch.arange(2, 40)[None]


def rows(scale: int = 7) -> list[Row]:
    draw = torch.Generator().manual_seed(1)
    lengths = (9, 14, 5, 11, 8, 13) * 3
    ids = [torch.randint(2, 300, (scale + n,), generator=draw).tolist() for n in lengths]
    return [Row({"response": Sample([Segment("question", i[:3]), Segment("answer", i[3:], learn=True)])}) for i in ids]


def attached(policy: Policy, weights: Any) -> Corda:
    weights.bind(lambda n, task: rows())
    weights.attach(policy, 0)
    return weights


def logits(policy: Policy) -> Tensor:
    with torch.no_grad():
        return policy.logits(PROBE)


def moment(n: int, seed: int = 0) -> Tensor:
    x = torch.randn(4 * n, n, generator=torch.Generator().manual_seed(seed)) * torch.logspace(-0.5, 0.5, n)
    return x.T @ x


# -- the decomposition ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(24, 16), (16, 24), (16, 16)])
def test_the_parts_make_the_weight(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    u, sizes, v = decompose(weight, moment(shape[1]))
    assert u.shape == (shape[0], 16) and v.shape == (16, shape[1])
    assert bool((sizes[:-1] >= sizes[1:]).all())
    assert float(((u * sizes) @ v - weight).abs().max()) < 1e-4 * float(weight.abs().max())
    # what any directions hold is the projection on their left vectors
    torch.testing.assert_close((u[:, :3] * sizes[:3]) @ v[:3], u[:, :3] @ u[:, :3].T @ weight, rtol=1e-3, atol=1e-3)


def test_white_inputs_are_pissa() -> None:
    weight = torch.randn(12, 8, generator=torch.Generator().manual_seed(3))
    u, sizes, v = decompose(weight, 5 * torch.eye(8))
    plain = decompose(weight)
    torch.testing.assert_close((u[:, :2] * sizes[:2]) @ v[:2], (plain[0][:, :2] * plain[1][:2]) @ plain[2][:2])
    torch.testing.assert_close(u.abs(), plain[0].abs(), rtol=1e-4, atol=1e-5)


def test_what_the_smallest_directions_hold_matters_less_than_by_plain_svd() -> None:
    """On inputs of a few large directions; the released toy has 291 against 4528."""
    draw = torch.Generator().manual_seed(4)
    weight, x = torch.randn(12, 10, generator=draw), torch.randn(400, 10, generator=draw) * torch.logspace(2, -1, 10)
    for dropped in (1, 3, 5, 8):
        errors = []
        for c in (x.T @ x / len(x), None):
            u, sizes, v = decompose(weight, c)
            errors.append(float((x @ ((u[:, -dropped:] * sizes[-dropped:]) @ v[-dropped:]).T).norm()))
        assert errors[0] < 0.9 * errors[1], dropped


def test_a_singular_moment_is_damped_and_an_empty_one_refused() -> None:
    weight, one = torch.randn(6, 8, generator=torch.Generator().manual_seed(5)), torch.randn(1, 8)
    u, sizes, v = decompose(weight, one.T @ one)
    torch.testing.assert_close((u * sizes) @ v, weight, rtol=1e-3, atol=1e-3)
    for bad in (torch.zeros(8, 8), torch.full((8, 8), float("nan"))):
        with pytest.raises(WhetError, match="inputs are all zero, or cannot be divided"):
            decompose(weight, bad)


def test_inputs_are_divided_by_their_largest_entry() -> None:
    x = torch.tensor([[1.0, -4.0], [2.0, 0.5]])
    assert divided(x).tolist() == (x / 2).tolist() and divided(x, "absolute").tolist() == (x / 4).tolist()
    torch.testing.assert_close(divided(10 * x), divided(x))
    below = -x.abs() - 1  # |max x|, not max |x|
    assert float(divided(below).min()) == pytest.approx(-5 / 1.5)


# -- the start -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["qwen3", "gpt2"])
@pytest.mark.parametrize("mode", ["ipm", "kpm"])
def test_it_begins_as_pefts_own(mode: Any, kind: str) -> None:
    policy, theirs, rank, alpha = tiny_policy(kind), tiny_policy(kind), 3, 6.0
    attached(policy, Corda(mode, rank, alpha, calibrate="parity"))
    names = [n.removesuffix(".weight") for n in matrices(theirs.model)]
    config = LoraConfig(r=rank, lora_alpha=int(alpha), target_modules=names, init_lora_weights="corda", task_type="CAUSAL_LM",
                        fan_in_fan_out=kind == "gpt2", corda_config=CordaConfig(corda_method=mode))  # fmt: skip

    def calibrate() -> None:
        for row in rows():
            theirs.hidden(torch.tensor([row["response"].ids]))

    preprocess_corda(theirs.model, config, run_model=calibrate)
    get_peft_model(theirs.model, config)
    ours, wanted = dict(policy.model.named_parameters()), dict(theirs.model.named_parameters())
    untouched = dict(tiny_policy(kind).model.named_parameters())
    for name in names:
        a, b = ours[f"{name}.lora_A.default.weight"], ours[f"{name}.lora_B.default.weight"]
        assert torch.equal(a[:rank], a[rank:]) and torch.equal(b[:, :rank], -b[:, rank:])
        for own, other in ((a[:rank], "A"), (b[:, :rank], "B")):
            found = wanted[f"{name}.lora_{other}.default.weight"].detach()
            torch.testing.assert_close(own.abs(), found.abs(), rtol=2e-2, atol=1e-3 * float(found.abs().max()))
        start = alpha / rank * b[:, :rank] @ a[:rank]
        residual = untouched[f"{name}.weight"] - (start.T if kind == "gpt2" else start)
        torch.testing.assert_close(residual, wanted[f"{name}.base_layer.weight"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["qwen3", "gpt2"])
@pytest.mark.parametrize(
    "spec", ["corda:rank=3", "corda:mode=kpm,rank=4,alpha=9,calibrate=parity", "pissa:rank=5", "corda:rank=16"]
)
def test_it_begins_as_the_base_and_the_base_stays(spec: str, kind: str) -> None:
    policy, plain = tiny_policy(kind), tiny_policy(kind)
    attached(policy, get_weights(spec))
    torch.testing.assert_close(logits(policy), logits(plain), rtol=0, atol=1e-5)
    with policy.adapters_off():
        assert torch.equal(logits(policy), logits(plain)), "a reference needs no copy"


def test_pissa_is_pefts_own() -> None:
    policy, theirs = tiny_policy(), tiny_policy()
    attached(policy, get_weights("pissa:rank=3"))
    names = [n.removesuffix(".weight") for n in matrices(theirs.model)]
    get_peft_model(theirs.model, LoraConfig(r=3, lora_alpha=3, target_modules=names, init_lora_weights="pissa"))
    ours, wanted = dict(policy.model.named_parameters()), dict(theirs.model.named_parameters())
    for name in names:
        for part, own in (("A", lambda p: p[:3]), ("B", lambda p: p[:, :3])):
            key = f"{name}.lora_{part}.default.weight"
            torch.testing.assert_close(own(ours[key]).abs(), wanted[key].abs(), rtol=1e-3, atol=1e-4)


def test_neither_the_inputs_size_nor_alpha_changes_the_start() -> None:
    policy = tiny_policy()
    found = {alpha: attached(tiny_policy(), Corda(rank=3, alpha=alpha)).starts(policy) for alpha in (3.0, 12.0)}
    for name, (a, b) in found[3.0].items():
        c, d = found[12.0][name]
        torch.testing.assert_close(b @ a, 4 * (d @ c), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(a, 2 * c)
    # a model whose embeddings are ten times as large gives its first norm, and so its layers, what it gave before; one layer by hand
    weight, x = torch.randn(6, 8), torch.randn(40, 8)
    once, tenfold = (divided(scale * x) for scale in (1.0, 10.0))
    for a, b in zip(decompose(weight, once.T @ once), decompose(weight, tenfold.T @ tenfold), strict=True):
        torch.testing.assert_close(a.abs(), b.abs(), rtol=1e-3, atol=1e-4)


def test_all_directions_are_the_whole_weight() -> None:
    """The residual is then nothing, in both modes."""
    policy = tiny_policy()
    name = "model.layers.0.self_attn.k_proj"
    for mode in ("ipm", "kpm"):
        a, b = attached(tiny_policy(), Corda(mode, 16, calibrate="parity")).starts(policy)[name]
        torch.testing.assert_close(b @ a, policy.model.get_submodule(name).weight.detach(), rtol=1e-3, atol=1e-4)


def test_modes_take_other_ends() -> None:
    policy = tiny_policy()
    sizes = {}
    for mode in ("ipm", "kpm"):
        starts = attached(tiny_policy(), Corda(mode, 2, calibrate="parity")).starts(policy)
        sizes[mode] = {name: float((b @ a).norm()) for name, (a, b) in starts.items()}
    assert all(sizes["ipm"][name] > sizes["kpm"][name] for name in sizes["ipm"])


# -- training ------------------------------------------------------------------------------------------------------------
def test_only_the_first_half_moves() -> None:
    policy = tiny_policy()
    weights = attached(policy, get_weights("corda:rank=2"))
    moving = policy.trainable_parameters()
    assert all("lora_" in name for name in moving) and set(moving) == set(weights.places)
    before = {n: p.detach().clone() for n, p in policy.model.named_parameters()}
    optimizer: Any = weights.optimizer(
        lambda chosen: torch.optim.AdamW(list(chosen.values()), lr=0.1, weight_decay=0.5), moving
    )
    assert isinstance(optimizer, Packed)
    policy.logits(PROBE).square().sum().backward()
    weights.mask(moving)
    for name, p in moving.items():
        gradient = p.grad if "lora_A" in name else p.grad.T
        assert bool((gradient[:2] != 0).any()) and not bool(gradient[2:].any())
    optimizer.step()
    for name, p in policy.model.named_parameters():
        if "lora_" not in name:
            assert torch.equal(p, before[name])
            continue
        now, then = (p, before[name]) if "lora_A" in name else (p.T, before[name].T)
        assert torch.equal(now[2:], then[2:]) and not bool((now[:2] == then[:2]).all())


def test_its_gradients_are_those_of_adapters_over_the_residual() -> None:
    """dL/dB = s G A^T and dL/dA = s B^T G, whatever stands beside them."""
    policy, theirs = tiny_policy(), tiny_policy()
    attached(policy, get_weights("pissa:rank=3,alpha=6"))
    names = [n.removesuffix(".weight") for n in matrices(theirs.model)]
    config = LoraConfig(r=3, lora_alpha=6, target_modules=names, init_lora_weights="pissa")
    get_peft_model(theirs.model, config)
    for p in (policy, theirs):
        p.logits(PROBE).square().mean().backward()
    ours, wanted = dict(policy.model.named_parameters()), dict(theirs.model.named_parameters())
    for key in (f"{name}.lora_A.default.weight" for name in names):
        found, other = ours[key].grad[:3].abs(), wanted[key].grad.abs()
        torch.testing.assert_close(found, other, rtol=1e-2, atol=1e-2 * float(other.max()))


def test_cost_is_that_of_lora_of_its_rank_in_what_moves() -> None:
    policy = tiny_policy()
    weights, lora = get_weights("corda:rank=4"), Lora(4).cost(policy.model)
    cost = weights.cost(policy.model)
    assert (cost.moving, cost.gradients) == (lora.moving, 2 * lora.moving)
    attached(policy, weights)
    assert cost.moving == sum(len(p) for p in weights.places.values())  # type: ignore[attr-defined]


def test_it_calibrates_on_the_tasks_that_it_is_told() -> None:
    policy, asked = trained_policy(), []
    weights = Corda("kpm", 2, count=6, calibrate="parity; parity:level=2")

    def draw(n: int, task: str) -> list[Row]:
        asked.append((n, task))
        return calibration_rows(policy, get_task("parity"), 0, n, task)

    weights.bind(draw)
    weights.attach(policy, 0)
    assert asked == [(3, "parity"), (3, "parity:level=2")]


def test_moments_are_summed_over_a_sequence_as_pefts_are() -> None:
    policy = tiny_policy()
    name = "model.layers.0.self_attn.q_proj"
    per_token, per_sequence = (second_moments(policy, rows(), [name], per_sequence=p)[name] for p in (False, True))
    lengths = [len(row["response"]) for row in rows()]
    torch.testing.assert_close(per_sequence, per_token * sum(lengths) / len(lengths))


@pytest.mark.parametrize(
    ("spec", "message"),
    [("corda:mode=kmp", "mode is ipm or kpm"), ("corda:mode=kpm", "kpm keeps what its sample shows"),
     ("corda:rank=0", "rank is at least 1"), ("corda:rows=1,calibrate=sort;lists", "at least one of each task"),
     ("corda:peak=largest", "peak is signed or absolute"), ("pissa:rank=0", "rank is at least 1")],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(spec: str, message: str) -> None:
    with pytest.raises(WhetError, match=message):
        get_weights(spec)


def test_a_model_that_does_not_suit_is_refused() -> None:
    with pytest.raises(
        WhetError, match=r"rank 17 is more than the 16 directions of 'model[.]layers[.]0[.]self_attn[.]k_proj'"
    ):
        attached(tiny_policy(), get_weights("corda:rank=17"))
    policy = tiny_policy()
    Lora(4).attach(policy, 0)
    with pytest.raises(WhetError, match="the model has adapters: go on with those by --weights lora"):
        attached(policy, get_weights("corda"))
    with pytest.raises(WhetError, match="nothing was bound that makes rows"):
        get_weights("corda").attach(tiny_policy(), 0)


# -- runs ----------------------------------------------------------------------------------------------------------------
QUICK: dict[str, Any] = {"test_n": 4, "validation_n": 4, "k": 0, "others": [], "eval_every": 0, "threads": 1, "task": "parity",
                         "steps": 2, "batch": 4}  # fmt: skip


def test_other_recipes_take_it_and_the_folder_is_lora_on_the_base(tmp_path: Path) -> None:
    done = run("grpo", out=tmp_path / "run", weights="corda:rank=4,rows=8", model=trained_folder(), group=4, kl=0.1, lr=1e-2,
               **QUICK)  # fmt: skip
    assert done.progress.finished
    delta = read_adapter(tmp_path / "run" / "model")
    live = done.policy.frozen()
    policy = base.load(trained_folder())
    delta.add_to(policy)
    torch.testing.assert_close(logits(policy), logits(live), rtol=0, atol=1e-4)
    with torch.no_grad():
        assert float((logits(policy) - logits(base.load(trained_folder()))).abs().max()) > 1e-3, "and it has learnt"


def test_a_resumed_run_counts_its_calibration_once(tmp_path: Path) -> None:
    settings = {**QUICK, "weights": "corda:rank=4,rows=8", "model": trained_folder()}
    whole = run("sft", out=tmp_path / "whole", **settings)
    step = iter(range(1, 100))
    run("sft", out=tmp_path / "halted", stop=lambda: next(step) >= 1, **settings)
    resumed = resume(tmp_path / "halted")
    ours, theirs = dict(whole.policy.named_parameters()), dict(resumed.policy.named_parameters())
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)
    assert whole.policy.meter.flops == resumed.policy.meter.flops
    policy = trained_policy()
    with policy.metered(Meter()) as meter:
        attached(policy, Corda(rank=4))
    assert meter.flops > 0


def test_rounds_begin_where_the_run_did() -> None:
    """star's rounds go back to the base: the adapters to their start, which rests in all of them."""
    settings = {**QUICK, "weights": "corda:rank=4,rows=8", "model": trained_folder()}
    rounds, once = (
        run(name, **settings, **own) for name, own in (("star", {"questions": 24, "number": 2}), ("sft", {}))
    )
    ours, theirs = (dict(done.policy.model.named_parameters()) for done in (rounds, once))
    names = [name for name in ours if "lora_A" in name]
    assert names and all(torch.equal(ours[n][4:], theirs[n][4:]) and ours[n].shape[0] == 8 for n in names)
    assert any(not torch.equal(ours[n][:4], ours[n][4:]) for n in names)
