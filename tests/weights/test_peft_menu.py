"""Every member of the menu that puts something into a model: what it is at the start, what it costs, how it is sampled, trained, saved."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from torch import nn

from tiny import PROBE, logits, stir, tiny_policy
from whet.errors import WhetError
from whet.models import base
from whet.models.packing import Batch
from whet.models.policy import Policy
from whet.objectives.forward import Context
from whet.records import Row, Segment
from whet.sampling import HuggingFaceSampler
from whet.sampling.sampler import Request, SamplingSettings
from whet.weights import Weights, get_weights, menu
from whet.weights.adapters import read_adapter
from whet.weights.delta import apply
from whet.weights.files import Stored
from whet.weights.injected import Injected

EVERYWHERE = ["lora:rank=3", "rslora:rank=3", "dora:rank=3", "lora-fa:rank=3", "ia3", "vera:rank=6", "adalora:rank=2", "tinylora",
              "fourierft:frequencies=20,scaling=3", "lora-norms:rank=3"]  # fmt: skip
LINEAR_ONLY = [
    "loha:rank=2",
    "lokr:rank=2",
    "oft:block=4",
    "hra:rank=4",
    "miss:rank=4",
]  # PEFT has none on GPT-2's layers
BESIDE = ["prompt:tokens=5", "prefix:tokens=5", "p-tuning:tokens=5,hidden=24", "bottleneck:size=6"]
KINDS = [
    *((kind, spec) for kind in ("qwen3", "gpt2") for spec in EVERYWHERE),
    *(("qwen3", spec) for spec in LINEAR_ONLY),
]
ALL = [*KINDS, *((kind, spec) for kind in ("qwen3", "gpt2") for spec in BESIDE)]
SOME = [(kind, spec) for kind, spec in ALL if kind == "qwen3" or spec.startswith(("ia3", "prefix", "lora-norms"))]
MODULES = ("menu", "injected", "adalora", "prompts")
DRAWN = ("prompt", "prefix", "p-tuning")  # which do not begin as the identity


def adapted(spec: str, kind: str = "qwen3", *, stirred: bool = True, policy: Policy | None = None) -> Policy:
    policy = policy or tiny_policy(kind)
    get_weights(spec).attach(policy, 0)
    if stirred:
        stir(policy)
    return policy


def requests() -> list[Request]:
    settings = SamplingSettings(max_new_tokens=8, temperature=1.0)
    prompts = [[(7 * i + n) % 300 + 2 for i in range(n)] for n in (3, 9, 5)]
    return [Request([Segment("question", ids)], [2 * n, 2 * n + 1], settings) for n, ids in enumerate(prompts)]


def test_the_lists_here_have_all_that_inject() -> None:
    own = {name for name, choice in menu().items() if choice.make.__module__.removeprefix("whet.weights.") in MODULES}
    assert {spec.partition(":")[0] for spec in (*EVERYWHERE, *LINEAR_ONLY, *BESIDE)} == own - {"full"}


@pytest.mark.parametrize(("kind", "spec"), ALL)
def test_it_begins_as_the_base_and_costs_what_is_said(kind: str, spec: str) -> None:
    policy, plain = adapted(spec, kind, stirred=False), tiny_policy(kind)
    same = torch.allclose(logits(policy), logits(plain), atol=2e-5)
    assert same != spec.startswith(DRAWN)
    trained = sum(p.numel() for p in policy.trainable_parameters().values())
    assert get_weights(spec).cost(plain.model).moving == trained > 0
    stir(policy)
    assert not torch.allclose(logits(policy), logits(plain), atol=1e-3)
    with policy.adapters_off():
        assert torch.equal(logits(policy), logits(plain)), "the base is still there"
    own = dict(policy.model.named_parameters())
    for name, before in plain.model.named_parameters():
        held = (
            name if name in own else name.replace(".weight", ".base_layer.weight").replace(".bias", ".base_layer.bias")
        )
        held = held if held in own else name.rpartition(".")[0] + ".original_module." + name.rpartition(".")[2]
        assert torch.equal(own[held], before), f"{name} is frozen"


@pytest.mark.parametrize(("kind", "spec"), ALL)
def test_it_merges_into_the_live_model_or_refuses(kind: str, spec: str) -> None:
    policy = adapted(spec, kind)
    live = logits(policy)
    if (kind, spec) not in KINDS:
        with pytest.raises(WhetError, match="cannot be merged"):
            Weights().attach(policy, 0)
        return
    Weights().attach(policy, 0)
    assert policy.peft is None and not any(
        "modules_to_save" in n or "base_layer" in n for n, _ in policy.model.named_parameters()
    )
    torch.testing.assert_close(logits(policy), live, atol=1e-4, rtol=0)


def test_a_hybrid_is_a_difference_with_whole_tensors(tmp_path: Path) -> None:
    """What `whet merge add BASE ADAPTERS` writes: the low-rank parts added, the norms put in their place."""
    tiny_policy().save(tmp_path / "base")
    policy = adapted("lora-norms:rank=3", policy=base.load(tmp_path / "base"))
    policy.save(tmp_path / "adapters")
    added = dict(apply(Stored(tmp_path / "base"), read_adapter(tmp_path / "adapters")))
    merged = tiny_policy()
    merged.model.load_state_dict(added, strict=False)
    torch.testing.assert_close(logits(merged), logits(policy), atol=1e-4, rtol=0)
    adapted("ia3", policy=base.load(tmp_path / "base")).save(tmp_path / "ia3")
    with pytest.raises(WhetError, match="are IA3, which is no difference of weights"):
        read_adapter(tmp_path / "ia3")


@pytest.mark.parametrize(("kind", "spec"), SOME)
def test_what_is_saved_loads_here_and_in_plain_peft(kind: str, spec: str, tmp_path: Path) -> None:
    tiny_policy(kind).save(tmp_path / "base")
    policy = adapted(spec, kind, policy=base.load(tmp_path / "base"))
    live = logits(policy)
    policy.save(tmp_path / "adapters")
    loaded = base.load(tmp_path / "adapters")
    torch.testing.assert_close(logits(loaded), live, atol=1e-5, rtol=0)
    if spec.startswith("bottleneck"):
        with pytest.raises(KeyError, match="BOTTLENECK"):
            AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapters")
    else:
        with torch.no_grad():
            plain = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapters").eval()(PROBE).logits
        torch.testing.assert_close(
            plain[:, -PROBE.shape[1] :], live, atol=1e-4, rtol=0
        )  # PEFT gives a prompt's own logits too
    if spec.startswith(("adalora", "p-tuning")):
        with pytest.raises(WhetError, match="trained on"):
            get_weights(spec).attach(loaded, 0)
        return
    get_weights(spec.partition(":")[0]).attach(loaded, 0)  # it goes on
    assert set(loaded.trainable_parameters()) == set(policy.trainable_parameters())
    torch.testing.assert_close(logits(loaded), live, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("kind", "spec"), SOME)
def test_it_is_sampled_as_it_is_run(kind: str, spec: str, caplog: pytest.LogCaptureFixture) -> None:
    """By the fused engine where it merges, by the module where not; and `generate` draws the same answers."""
    policy = adapted(spec, kind)
    with caplog.at_level(logging.INFO, "whet"):
        drawn = policy.sample(requests())
    assert "sampler: native" in caplog.text
    assert ("fused" if (kind, spec) in KINDS else "module, because a hook") in caplog.text
    for sample in (s for answers in drawn for s in answers):
        ids = torch.tensor([sample.ids])
        with torch.no_grad():
            logprobs = policy.logits(ids)[0, :-1].double().log_softmax(-1)
        run = logprobs.gather(-1, ids[0, 1:, None])[sample.prompt_length - 1 :, 0]
        torch.testing.assert_close(
            sample.per_token["sampler_logprob"][sample.prompt_length :].double(), run, atol=1e-4, rtol=0
        )
    policy.sampler = HuggingFaceSampler()
    assert [[s.ids for s in answers] for answers in policy.sample(requests())] == [
        [s.ids for s in answers] for answers in drawn
    ]


@pytest.mark.parametrize("spec", [*BESIDE, "ia3", "lora-norms", "oft:block=4"])
def test_a_batch_gives_the_gradient_of_its_rows_alone(spec: str, caplog: pytest.LogCaptureFixture) -> None:
    """Packed or padded: virtual tokens are padded, and the log says so."""
    policy = adapted(spec)
    samples = [s for answers in policy.sample(requests()) for s in answers]
    assert policy.packs != spec.startswith(DRAWN)

    def gradient(rows: list[Row], view: Any = None) -> list[torch.Tensor]:
        found = [torch.zeros_like(p) for p in policy.trainable_parameters().values()]
        for micro in [rows] if view is None else [[row] for row in rows]:
            ctx = Context(micro, {"policy": policy})
            loss = -ctx.forward("response").logprobs.sum()
            grads = torch.autograd.grad(loss, list(policy.trainable_parameters().values()), allow_unused=True)
            found = [a if g is None else a + g for a, g in zip(found, grads, strict=True)]
        return found

    rows = [Row({"response": s}) for s in samples]
    together, alone = gradient(rows), gradient(rows, "alone")
    assert any(float(g.abs().max()) > 0 for g in together)
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=2e-3)


@pytest.mark.parametrize("kind", ["qwen3", "gpt2"])
def test_virtual_tokens_are_those_of_pefts_own_forward(kind: str) -> None:
    ids, mask = torch.arange(2, 32).view(2, 15), torch.ones(2, 15, dtype=torch.bool)
    for spec in BESIDE[:3]:
        policy = adapted(spec, kind)
        with torch.no_grad():
            ours, hidden, masked = policy.logits(ids), policy.hidden(ids), policy.logits(ids, mask)
            peft = policy.peft
            assert hidden.shape == (2, 15, 32) and policy.max_length == 128 - 5
            torch.testing.assert_close(policy.head(hidden), ours, atol=1e-5, rtol=0)
            torch.testing.assert_close(masked, ours, atol=1e-5, rtol=0)
            with policy.adapters_off():  # its own wrapper instead of the hooks
                peft._adapters_disabled = False
            policy.decoder._forward_pre_hooks.clear()
            policy.decoder._forward_hooks.clear()
            theirs = type(peft).forward(peft, input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        torch.testing.assert_close(theirs[:, -15:], ours, atol=1e-4, rtol=0)


@pytest.mark.parametrize("spec", BESIDE)
def test_a_frozen_copy_keeps_its_own(spec: str) -> None:
    policy = adapted(spec)
    before, copied = logits(policy), policy.frozen()
    stir(policy)
    assert torch.equal(logits(copied), before) and not torch.allclose(logits(policy), before, atol=1e-4)


def test_virtual_tokens_are_counted() -> None:
    plain, prompt, prefix = tiny_policy(), adapted("prompt:tokens=5"), adapted("prefix:tokens=5")
    for policy in (plain, prompt, prefix):
        logits(policy)
    n, shapes = PROBE.numel(), plain.shapes
    assert plain.meter.flops == shapes.forward(n, n, n)
    assert prompt.meter.flops == shapes.forward(n + 5, n + 5, n) and prefix.meter.flops == shapes.forward(n, n + 5, n)


def test_sizes_are_those_of_the_formulas() -> None:
    """Of one layer with 64 outputs and 32 inputs."""

    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.k_proj = nn.Linear(32, 64, bias=False)

    def size(spec: str) -> int:
        made: Any = get_weights(spec)
        return made.cost(One()).moving

    assert size("lora:rank=4") == size("rslora:rank=4") == 4 * (64 + 32) == 384
    assert size("dora:rank=4") == 384 + 64 and size("lora-fa:rank=4") == 4 * 64
    assert size("vera:rank=6") == 64 + 6 and size("adalora:rank=2,start=3") == 3 * (64 + 32 + 1)
    assert size("loha:rank=2") == 2 * 2 * 96 and size("hra:rank=4") == 4 * 32 and size("miss:rank=4") == 4 * 64
    assert size("lokr:rank=2") == 8 * 4 + 2 * (8 + 8) and size("lokr:rank=8") == 8 * 4 + 8 * 8
    assert size("oft:block=4") == 8 * 6
    assert size("fourierft:frequencies=20") == 20 and size("tinylora:numbers=7") == 7


def test_ia3_scales_outputs_but_where_inner_units_come_in() -> None:
    """A layer of 64 outputs and 32 inputs: 64 factors, or 32 where it is given the MLP's inner units."""
    policy = adapted(
        "ia3",
        stirred=False,
        policy=tiny_policy(hidden_size=64, intermediate_size=32, num_key_value_heads=4, head_dim=16),
    )
    sizes = {n.rpartition(".ia3_l")[0].rpartition(".")[2]: p.numel() for n, p in policy.trainable_parameters().items()}
    assert sizes == {"k_proj": 64, "v_proj": 64, "down_proj": 32}


def test_two_members_on_one_model_are_refused() -> None:
    for first, second in (("lora", "ia3"), ("ia3", "lora"), ("vera", "oft"), ("prompt", "lora"), ("bottleneck", "prompt"),
                          ("lora-norms", "lora"), ("oft", "bottleneck"), ("lora", "adalora")):  # fmt: skip
        policy = adapted(first)
        with pytest.raises(WhetError, match=f"{first} adapters|trained on"):
            get_weights(second).attach(policy, 0)


def test_what_cannot_be_is_said_in_one_line(tmp_path: Path) -> None:
    for spec in (
        "vera:rank=0",
        "bottleneck:size=0",
        "prompt:tokens=-1",
        "adalora:rank=8,start=4",
        "fourierft:scaling=0",
    ):
        with pytest.raises(WhetError, match=spec.partition(":")[0]):
            get_weights(spec)
    with pytest.raises(WhetError, match="weights loha: PEFT has none for GPT2LMHeadModel"):
        adapted("loha", "gpt2")
    policy = tiny_policy()
    policy.checkpointing = True
    with pytest.raises(WhetError, match="activation checkpointing drops"):
        get_weights("prefix").attach(policy, 0)
    tiny_policy().save(tmp_path / "base")
    adapted("vera:rank=6", policy=base.load(tmp_path / "base")).save(tmp_path / "vera")
    with pytest.raises(WhetError, match="use --weights vera"):
        get_weights("vera:rank=7").attach(base.load(tmp_path / "vera"), 0)
    adapted("bottleneck:size=6", policy=base.load(tmp_path / "base")).save(tmp_path / "adapters")
    tiny_policy(num_hidden_layers=3).save(tmp_path / "base")
    with pytest.raises(WhetError, match="not those of Qwen3"):
        base.load(tmp_path / "adapters")
    assert isinstance(get_weights("oft"), Injected)


def test_padding_cannot_change_what_virtual_tokens_do() -> None:
    policy = adapted("prefix:tokens=5")
    short, long = [3, 4, 5, 6], list(range(2, 20))
    batch = Batch.of([s for (s,) in policy.sample([Request([Segment("question", ids)], [0], SamplingSettings(max_new_tokens=4)) for ids in
                                                   (short, long)])], policy.device)  # fmt: skip
    with torch.no_grad():
        both = policy.logits(batch.ids)
        for row, n in enumerate(batch.lengths.tolist()):
            torch.testing.assert_close(both[row, :n], policy.logits(batch.ids[row, None, :n])[0], atol=1e-4, rtol=0)
