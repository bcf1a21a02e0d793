"""FLOPs are counted from shapes; PyTorch's own counter agrees."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tiny import tiny_policy
from whet.models.meter import Meter, Shapes
from whet.models.policy import Policy
from whet.objectives import nll
from whet.records import Segment
from whet.sampling.sampler import Request, SamplingSettings
from whet.sources import Demonstrations, Scope, Uniform
from whet.tasks import get_task
from whet.training.learner import Learner
from whet.training.stage import Update
from whet.weights import get_weights

KINDS = ("qwen3", "gpt2", "gemma2")
WEIGHTS = ("full", "lora:rank=4")


def policy_of(kind: str, weights: str = "full") -> Policy:
    """With attention written out: the counter knows no kernel of the CPU's. Of several layers: that the first one has no
    gradient to pass on where the embeddings are frozen is not counted."""
    policy = tiny_policy(kind, hidden_size=64, num_hidden_layers=4)
    policy.model.set_attn_implementation("eager")
    get_weights(weights).attach(policy, 0)
    return policy


def both(policy: Policy, grad: bool, width: int = 48) -> float:
    """Ours over PyTorch's, for a forward (and a backward) with the head on 40 tokens."""
    ids = torch.randint(2, 300, (4, width), generator=torch.Generator().manual_seed(0))
    policy.meter = Meter()
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(grad):
        hidden = policy.hidden(ids)
        policy.count_head(40)
        logits = policy.head(hidden.reshape(-1, hidden.shape[-1])[:40])
        if grad:
            logits.float().logsumexp(-1).sum().backward()
    return policy.meter.flops / counter.get_total_flops()


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [16, 100])
def test_a_forward_and_its_backward_are_counted_within_five_percent(kind: str, weights: str, width: int) -> None:
    policy = policy_of(kind, weights)
    assert both(policy, grad=False, width=width) == pytest.approx(1.0, abs=0.001)
    assert both(policy, grad=True, width=width) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_the_models_own_logits_are_counted(kind: str) -> None:
    policy = policy_of(kind)
    policy.meter = Meter()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        policy.logits(torch.randint(2, 300, (3, 20)))
    assert policy.meter.flops == pytest.approx(counter.get_total_flops(), rel=0.001)


@pytest.mark.parametrize("kind", ["qwen3", "gpt2"])
def test_sampling_is_counted_within_five_percent(kind: str) -> None:
    policy = policy_of(kind)
    settings = SamplingSettings(max_new_tokens=12, temperature=1.0)
    requests = [Request([Segment("question", list(range(2, 22)))], [1, 2, 3], settings)]
    policy.sample(requests)  # chooses the sampler
    policy.meter = Meter()
    with FlopCounterMode(display=False) as counter:
        policy.sample(requests)
    assert policy.meter.flops == pytest.approx(counter.get_total_flops(), rel=0.05)
    assert policy.meter.sampled_tokens > 0


@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_step_of_sft_is_counted_within_five_percent(weights: str) -> None:
    """Of the whole step: rows packed into micro-batches, the head on learnt tokens alone, its chunks recomputed."""
    policy, task = policy_of("qwen3", weights), get_task("chain-sum:level=1-2")
    problems = Uniform()
    problems.bind(task, 0)
    rows = Demonstrations().rows(problems, 8, policy, Scope(task, 0))
    moving = get_weights(weights)
    learner = Learner(Update(nll()), {"policy": policy}, moving, steps=1, token_budget=300)
    assert policy.packs  # checked by running it, once
    policy.meter = Meter()
    with FlopCounterMode(display=False) as counter:
        learner.step(rows, 0, "the test")
    assert policy.meter.flops == pytest.approx(counter.get_total_flops(), rel=0.05)
    assert policy.meter.learnt_tokens == sum(
        len(s.ids) for row in rows for x in row.all() for s in x.segments if s.learn
    )


def test_checkpointed_layers_are_counted_twice_forward() -> None:
    policy = policy_of("qwen3")
    policy.model.gradient_checkpointing_enable({"use_reentrant": False})
    policy.model.train()
    policy.checkpointing = True
    assert both(policy, grad=True) == pytest.approx(1.0, abs=0.05)


def test_an_adapters_layer_is_not_counted_twice() -> None:
    full, lora = (Shapes.of(policy_of("qwen3", w).model) for w in WEIGHTS)
    added = lora.body - full.body
    assert 0 < added == lora.trainable < 0.3 * full.body
    assert full.trainable == full.body and full.head_trainable == full.head
    assert lora.head == full.head and lora.head_trainable == 0


def test_a_meter_comes_back_from_a_checkpoint() -> None:
    meter = Meter(flops=1.5, learnt_tokens=3)
    other = Meter()
    other.load(meter.as_dict())
    assert other == meter


def test_evaluation_counts_elsewhere() -> None:
    policy = policy_of("qwen3")
    own = policy.meter
    with policy.metered(Meter()) as other:
        policy.logits(torch.tensor([[2, 3]]))
    assert policy.meter is own and own.flops == 0 and other.flops > 0
