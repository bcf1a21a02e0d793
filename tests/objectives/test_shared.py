"""Packed rows and shared prompts change how much is computed, and nothing of what is learnt.

The reference is the model's own forward over each row alone: unpacked, unshared, its head applied at once.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tiny import tiny_policy
from whet.models.meter import Meter
from whet.models.packing import Batch
from whet.models.policy import Policy
from whet.objectives import Clean, Context, Noise, dpo, kl_to_reference, nll, policy_gradient
from whet.objectives import forward as forwards
from whet.objectives.forward import run
from whet.objectives.objective import Objective, as_objective
from whet.records import Row, Sample, Segment
from whet.training.learner import Learner
from whet.training.stage import Update
from whet.weights import get_weights

KINDS = ("qwen3", "llama", "gpt2", "gemma2", "mistral")
WEIGHTS = ("full", "lora:rank=4")
OBJECTIVES: dict[str, Objective] = {
    "grpo": policy_gradient() + 0.1 * kl_to_reference(),
    "dpo": dpo() + 0.5 * nll(role="chosen", name="sft"),
    "sft": as_objective(nll()),
}


def answer(draw: random.Random, prompt: list[int], group: str, place: int, length: int) -> Sample:
    body = [draw.randrange(2, 300) for _ in range(length)]
    segments = [Segment("question", prompt), Segment("answer", body, learn=True, sampled=True)]
    one = Sample([*segments, Segment("eos", [1], learn=True, sampled=True)], group, group, place)
    noise = torch.Generator().manual_seed(place)
    for name in ("old_logprob", "reference_logprob"):
        one.per_token[name] = -3 + torch.randn(len(one), generator=noise, dtype=torch.float64)
    one.per_token["advantage"] = torch.full((len(one),), draw.uniform(-1, 1), dtype=torch.float64)
    return one


def rows_of(name: str, groups: int = 3, size: int = 4, prompt: int = 12, longest: int = 9) -> list[Row]:
    """Ragged answers to prompts that are longer than the tiny models' windows; shuffled, a group of one among them."""
    draw = random.Random(0)
    rows = []
    for g in range(groups):
        ids = [draw.randrange(2, 300) for _ in range(prompt + g)]
        made = [answer(draw, ids, f"p{g}", 10 * g + i, draw.randint(0, longest)) for i in range(1 if g == 2 else size)]
        if name == "dpo":
            rows += [Row({"chosen": a, "rejected": b}) for a, b in zip(made, made[1:] + made[:1], strict=True)]
        else:
            rows += [Row({"response": one}, {"reward": 1.0}) for one in made]
    draw.shuffle(rows)
    return rows


def learner_of(name: str, kind: str, weights: str, dtype: torch.dtype) -> Learner:
    policy = tiny_policy(kind, dtype=dtype)
    chosen = get_weights(weights)
    chosen.attach(policy, 0)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():  # adapters begin at zero, where half of them has no gradient
        for p in policy.trainable_parameters().values():
            p += 0.05 * torch.randn(p.shape, generator=draw, dtype=p.dtype)
    return Learner(Update(OBJECTIVES[name]), {"policy": policy}, chosen, steps=1, token_budget=100_000)


def gradient(learner: Learner, rows: list[Row], *, packs: bool, tokens: int = 100_000) -> Tensor:
    learner.policy.packs, learner.token_budget = packs, tokens
    learner.accumulate(rows, 0, "here")
    return torch.cat([p.grad.flatten().double() for p in learner.parameters.values() if p.grad is not None])


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def exact(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms and softmax in fp64, where transformers goes down to fp32 and so rounds what is equal to 1e-16 apart."""
    for module in policy.model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            shift = 1.0 if type(module).__name__.startswith("Gemma") else 0.0
            eps = getattr(module, "variance_epsilon", None) or module.eps

            def norm(x: Tensor, m: Any = module, shift: float = shift, eps: float = eps) -> Tensor:
                return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * (shift + m.weight)

            monkeypatch.setattr(module, "forward", norm)
    softmax = torch.nn.functional.softmax
    monkeypatch.setattr(torch.nn.functional, "softmax", lambda x, dim, dtype=None: softmax(x, dim))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=["fp32", "fp64"])
@pytest.mark.parametrize("weights", WEIGHTS, ids=["full", "lora"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["grpo", "dpo"])
def test_gradients_are_those_of_each_row_alone(
    name: str, kind: str, weights: str, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, rows = learner_of(name, kind, weights, dtype), rows_of(name)
    assert learner.policy.packs
    if dtype == torch.float64:
        exact(learner.policy, monkeypatch)
    alone = gradient(learner, rows, packs=False, tokens=1)
    assert float(alone.norm()) > 1e-3
    calls = []
    laid_out = learner.policy.laid_out
    monkeypatch.setattr(learner.policy, "laid_out", lambda layout: calls.append(len(layout)) or laid_out(layout))
    # the head on seven tokens at a time, once more in the backward
    monkeypatch.setattr(forwards, "chunk_tokens", lambda vocabulary: 7)
    together = gradient(learner, rows, packs=True)
    whole = sum(len(s) - 1 for row in rows for s in row.all())
    assert len(calls) == 1 and calls[0] < 0.7 * whole
    assert distance(together, alone) < tolerance
    assert distance(gradient(learner, rows, packs=True, tokens=60), alone) < tolerance and len(calls) > 2


@pytest.mark.parametrize("kind", KINDS)
def test_states_and_logprobs_are_those_of_each_row_alone(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy(kind, dtype=torch.float64)
    assert policy.packs
    exact(policy, monkeypatch)
    samples = [row["response"] for row in rows_of("grpo")]
    samples[0].per_token["mask"] = torch.zeros(len(samples[0]), dtype=torch.bool)  # learns nothing at all
    with torch.no_grad():
        shared = run(policy, Batch.of(samples), Clean(), 0, 0.7)
        policy.packs = False
        alone = [run(policy, Batch.of([s]), Clean(), 0, 0.7) for s in samples[1:]]
    for part in ("hidden", "logprobs", "entropy"):
        expected = torch.cat([getattr(f, part) for f in alone])
        torch.testing.assert_close(getattr(shared, part), expected, rtol=1e-10, atol=1e-12)


def test_recomputed_layers_give_the_same_gradient() -> None:
    """The backward runs the layers once more, when the forward's contexts are gone."""
    learner, rows = learner_of("grpo", "qwen3", "full", torch.float64), rows_of("grpo")
    kept = gradient(learner, rows, packs=True)
    learner.policy.model.gradient_checkpointing_enable({"use_reentrant": False})
    learner.policy.model.train()
    assert distance(gradient(learner, rows, packs=True), kept) < 1e-12


# -- what is run -----------------------------------------------------------------------------------------------------
def test_both_sides_of_a_pair_share_a_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, rows = learner_of("dpo", "qwen3", "full", torch.float32), rows_of("dpo", groups=1, size=2)
    seen: list[Any] = []
    laid_out = learner.policy.laid_out
    monkeypatch.setattr(learner.policy, "laid_out", lambda layout: seen.append(layout) or laid_out(layout))
    gradient(learner, rows, packs=True)
    assert len(seen) == 1 and seen[0].lengths.tolist() == [12] * 4
    # alone, where a term asks without a gradient
    ctx = Context(rows, {"policy": learner.policy}, together=frozenset({"chosen", "rejected"}))
    ctx.forward("chosen", grad=False)
    assert seen[-1].lengths.tolist() == [12] * 2


def test_only_roles_that_are_learnt_as_they_are_run_together() -> None:
    objective = nll(role="response") + nll(role="rationale", view=Noise(0.1), name="noisy")
    assert objective.together == {"response"} and objective.padded
    assert not OBJECTIVES["dpo"].padded and OBJECTIVES["dpo"].together == {"chosen", "rejected"}


def test_a_view_is_padded_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    policy = tiny_policy("qwen3")
    forwards._say_padded.cache_clear()
    with caplog.at_level("INFO", "whet"):
        for _ in range(2):
            Context(rows_of("grpo"), {"policy": policy}).forward("response", Noise(0.1))
    assert caplog.text.count("plain padding under the view Noise") == 1


def test_rows_of_one_length_are_padded_where_nothing_is_shared() -> None:
    """Nothing would be saved, and rearranging has its price."""
    policy = tiny_policy("qwen3")
    draw = random.Random(0)
    alike = [[draw.randrange(2, 300) for _ in range(20)] for _ in range(4)]
    assert policy.layout(alike) is None
    assert policy.layout([[*alike[0][:15], *ids[15:]] for ids in alike]) is not None
    assert policy.layout([alike[0], alike[1][:5]]) is not None
    assert policy.layout([]) is None and policy.layout([[], []]) is None


# -- what is counted -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("kind", "weights"), [("qwen3", "lora:rank=4"), ("gpt2", "full"), ("gemma2", "full")])
@pytest.mark.parametrize(("name", "prompt"), [("grpo", 60), ("grpo", 8), ("dpo", 30), ("sft", 5)])
def test_what_is_executed_is_counted_within_five_percent(name: str, prompt: int, kind: str, weights: str) -> None:
    policy = tiny_policy(kind, hidden_size=64, num_hidden_layers=4)
    policy.model.set_attn_implementation("eager")  # the counter knows no kernel of the CPU's
    chosen = get_weights(weights)
    chosen.attach(policy, 0)
    assert policy.packs
    learner = Learner(Update(OBJECTIVES[name]), {"policy": policy}, chosen, steps=1, token_budget=10_000)
    rows = rows_of(name, groups=2, prompt=prompt, longest=30)
    policy.meter = Meter()
    with FlopCounterMode(display=False) as counter:
        learner.accumulate(rows, 0, "here")
    packed = policy.meter.flops
    assert packed == pytest.approx(counter.get_total_flops(), rel=0.05)
    policy.packs, policy.meter = False, Meter()
    learner.accumulate(rows, 0, "here")
    assert packed < (0.6 if prompt == 60 else 0.95) * policy.meter.flops
