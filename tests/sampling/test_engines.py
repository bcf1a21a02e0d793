"""The engines of the native sampler: rows that join and leave, shared prompts, the cache's limits, what is read, bf16."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tiny import tiny_model, tiny_policy, tiny_tokenizer
from whet.models.packing import Batch
from whet.models.policy import Policy
from whet.objectives.forward import run
from whet.objectives.views import Clean
from whet.records import Sample, Segment
from whet.sampling import NativeSampler, Request, SamplingSettings, fused, native
from whet.sampling.answers import Draw, answers_of
from whet.sampling.fused import FusedEngine
from whet.sampling.layers import Unreadable, dense, read
from whet.sampling.module import ModuleEngine
from whet.sampling.native import branches

FEW = ("qwen3", "mistral", "gemma2", "gpt2", "gpt_neox")


def request(length: int, n: int = 1, **settings: Any) -> Request:
    ids = [(11 * i + 7 * length) % 290 + 5 for i in range(length)]
    seeds = [100 * length + i for i in range(n)]
    return Request([Segment("question", ids)], seeds, SamplingSettings(**settings), f"p{length}")


def sample(policy: Policy, requests: list[Request], sampler: NativeSampler | None = None) -> list[Sample]:
    policy.sampler = sampler or NativeSampler()
    return [answer for unit in policy.sample(requests) for answer in unit]


def watched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """(what, rows before, rows of it) of each admission and removal, and (step, rows, prompts kept) of each step."""
    events: list[tuple[str, int, int]] = []
    admit, keep, step = FusedEngine.admit, FusedEngine.keep, FusedEngine.step

    def on_admit(self: FusedEngine, prompts: Any) -> Any:
        events.append(("admit", len(self), len(prompts)))
        return admit(self, prompts)

    def on_keep(self: FusedEngine, order: Any) -> None:
        events.append(("keep", len(self), len(order)))
        keep(self, order)

    def on_step(self: FusedEngine, token: Any, answers: int = 0) -> Any:
        events.append(("step", len(self), len(self.prompt_lengths)))
        return step(self, token, answers)

    for name, fn in (("admit", on_admit), ("keep", on_keep), ("step", on_step)):
        monkeypatch.setattr(FusedEngine, name, fn)
    return events


def same(ours: list[Sample], theirs: list[Sample], tolerance: float = 1e-9) -> None:
    assert [a.ids for a in ours] == [a.ids for a in theirs]
    for a, b in zip(ours, theirs, strict=True):
        for name in ("sampler_logprob", "entropy"):
            torch.testing.assert_close(a.per_token[name], b.per_token[name], atol=max(tolerance, 1e-6), rtol=0)


@pytest.mark.parametrize("shared", [0, 10**6])
@pytest.mark.parametrize("kind", FEW)
def test_an_answer_that_joins_is_the_one_drawn_alone(kind: str, shared: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "SHARED", shared)
    policy = tiny_policy(kind, torch.float64)
    policy.format.end_ids = set(range(25))
    requests = [
        request(n, 3, max_new_tokens=30, temperature=0.5 + n / 20, top_p=0.95) for n in (3, 21, 9, 14, 5, 1, 30)
    ]
    alone = [a for r in requests for a in sample(policy, [r])]
    events = watched(monkeypatch)
    together = sample(policy, requests, NativeSampler(batch_size=6))
    same(together, alone)
    joined = [e for e in events if e[0] == "admit" and e[1] > 0]
    assert len(joined) >= 2 and max(before + new for _, before, new in joined) <= 6
    assert len({len(a.ids) - a.prompt_length for a in together}) > 3


@pytest.mark.parametrize("kind", FEW)
def test_shared_prompts_give_the_same_as_copied_ones(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy(kind, torch.float64)
    policy.format.end_ids = set(range(12))
    requests = [request(40, 5, max_new_tokens=30), request(12, 2, max_new_tokens=9), request(25, 3, max_new_tokens=30)]
    monkeypatch.setattr(native, "SHARED", 10**6)
    copied = sample(policy, requests)
    monkeypatch.setattr(native, "SHARED", 0)
    events = watched(monkeypatch)
    same(sample(policy, requests), copied)
    prompts = [count for what, _, count in events if what == "step"]
    assert prompts[0] == 3 and prompts[-1] < 3  # a prompt that nobody answers any more is dropped


@pytest.mark.parametrize("shared", [0, 10**6])
@pytest.mark.parametrize("kind", ["qwen3", "gemma3", "phi3", "gpt_neox"])
def test_logprobs_are_those_of_the_trainer_s_forward(kind: str, shared: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "SHARED", shared)
    policy = tiny_policy(kind)
    answers = sample(policy, [request(n, 4, max_new_tokens=20) for n in (30, 6)], NativeSampler(batch_size=5))
    batch = Batch.of(answers)
    with torch.no_grad():
        forward = run(policy, batch, Clean(), 0, 1.0)
    torch.testing.assert_close(batch.values("sampler_logprob"), forward.logprobs, atol=1e-4, rtol=0)
    torch.testing.assert_close(batch.values("entropy"), forward.entropy, atol=1e-4, rtol=0)


@pytest.mark.parametrize("shared", [0, 10**6])
def test_a_soft_cap_that_bites(shared: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "SHARED", shared)
    policy = tiny_policy("gemma2", attn_logit_softcapping=0.5)
    answers = sample(policy, [request(n, 2, max_new_tokens=12) for n in (12, 5)])
    batch = Batch.of(answers)
    with torch.no_grad():
        forward = run(policy, batch, Clean(), 0, 1.0)
    torch.testing.assert_close(batch.values("sampler_logprob"), forward.logprobs, atol=1e-4, rtol=0)


def test_the_cache_does_not_grow_with_the_number_of_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns that no row sees any more are given up, however long rows keep joining."""
    policy = tiny_policy()
    policy.format.end_ids = set(range(40))
    widest = 0
    step = FusedEngine.step

    def on_step(self: FusedEngine, token: Any, answers: int = 0) -> Any:
        nonlocal widest
        out = step(self, token, answers)
        widest = max(widest, self.keys[0].shape[2])
        assert self.column - self.first <= 10 + 40 + 1
        return out

    monkeypatch.setattr(FusedEngine, "step", on_step)
    answers = sample(policy, [request(n, 10, max_new_tokens=40) for n in range(1, 11)], NativeSampler(batch_size=4))
    assert len(answers) == 100 and sum(len(a.ids) - a.prompt_length for a in answers) > 4 * 60
    assert widest <= 10 + 40 + 1 + 40


def test_the_memory_holds_shared_prompts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "SHARED", 0)
    policy = tiny_policy()
    policy.format.end_ids = {-1}
    per_token = 2 * 2 * 2 * 8 * 4
    events = watched(monkeypatch)
    requests = [request(50 + n, 4, max_new_tokens=5) for n in range(4)]
    sample(policy, requests, NativeSampler(cache_bytes=(2 * 53 + 8 * 5) * per_token))
    assert [(b, n) for what, b, n in events if what == "admit"] == [(0, 2), (0, 2)]
    assert max(n for what, _, n in events if what == "keep") == 8
    events.clear()
    monkeypatch.setattr(native, "SHARED", 10**6)  # copied, the same memory holds two answers
    sample(policy, requests, NativeSampler(cache_bytes=(2 * 53 + 8 * 5) * per_token))
    assert max(n for what, _, n in events if what == "keep") == 2


@pytest.mark.parametrize("module", [False, True])
def test_answers_that_are_the_same_so_far_are_run_once(module: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy(dtype=torch.float64)
    policy.format.end_ids = {-1}
    if module:  # a hook keeps its layers from being read
        policy.model.model.layers[0].register_forward_hook(lambda *_: None)
    rows = []
    for engine in (FusedEngine, ModuleEngine):
        step = engine.step

        def on_step(self: Any, token: Any, answers: int = 0, step: Any = step) -> Any:
            rows.append((len(self), answers))
            return step(self, token, answers)

        monkeypatch.setattr(engine, "step", on_step)
    sample(policy, [request(6, 5, max_new_tokens=4, temperature=0.0)])
    assert rows == [(1, 5)] * 3
    cost = policy.shapes.forward  # a budget does not depend on how alike answers are
    assert policy.meter.flops == pytest.approx(cost(6, 6, 1) + sum(cost(5, 6 + i, 5) for i in (1, 2, 3)))
    rows.clear()
    asked = request(6, 8, max_new_tokens=12, temperature=0.15)
    together = sample(policy, [asked])
    prefixes = [len({tuple(a.ids[: 6 + step]) for a in together}) for step in range(1, 12)]
    assert [ran for ran, _ in rows] == prefixes and 1 < prefixes[0] <= prefixes[-1] and sum(prefixes) < 8 * 11
    alone = [Request(asked.segments, [seed], asked.settings) for seed in asked.seeds]
    same(together, [a for r in alone for a in sample(policy, [r])])


def test_an_answer_at_its_limit_keeps_its_last_token_while_others_run() -> None:
    policy = tiny_policy(dtype=torch.float64)
    policy.format.end_ids = set(range(25))
    requests = [request(n, 1, max_new_tokens=8) for n in range(1, 41)]
    alone = [a for r in requests for a in sample(policy, [r])]
    together = sample(policy, requests, NativeSampler(batch_size=16))
    same(together, alone)
    assert 10 < sum(not a.ended for a in together) < 40


def test_rows_go_on_where_they_are_and_branches_fill_the_gaps() -> None:
    draw = random.Random(0)
    for _ in range(300):
        count = draw.randint(1, 9)
        rows = [*range(count), *(draw.randrange(count) for _ in range(draw.randint(0, 9)))]
        tokens = [draw.randrange(3) for _ in rows]
        running = [draw.random() < 0.7 for _ in rows]
        slack = draw.choice([0.0, 0.25])
        order, following, speaker = branches(rows, tokens, running, count, slack)
        going = [i for i, runs in enumerate(running) if runs]
        for i in going:
            assert order[following[i]] == rows[i] and tokens[speaker[following[i]]] == tokens[i]
            assert rows[speaker[following[i]]] == rows[i] and running[speaker[following[i]]]
        read = {following[i] for i in going}
        assert len(read) == len({(rows[i], tokens[i]) for i in going}) and len(order) == len(speaker)
        idle = len(order) - len(read)
        assert not order if not read else idle == 0 or idle < slack * len(order)
        assert {rows[i] for i in going} <= {r for r, o in enumerate(order) if r == o} | set(range(len(order), count))
    assert branches([0, 1, 2], [5, 5, 5], [True, False, True], 3, 0.5) == ([0, 1, 2], [0, 0, 2], [0, 0, 2])
    assert branches([0, 1, 2], [5, 5, 5], [True, False, True], 3, 0.25) == ([0, 2], [0, 0, 1], [0, 2])
    assert branches([0, 0, 1], [5, 6, 5], [True, True, False], 2, 0.25) == ([0, 0], [0, 1, 0], [0, 1])


def test_many_prompts_are_run_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy(dtype=torch.float64)
    requests = [request(n, 2, max_new_tokens=6) for n in (20, 7, 18, 3)]
    for shared in (0, 10**6):
        monkeypatch.setattr(native, "SHARED", shared)
        monkeypatch.setattr(fused, "PREFILL", 10**6)
        whole = sample(policy, requests)
        monkeypatch.setattr(fused, "PREFILL", 40)
        same(sample(policy, requests), whole)
    prompts = [(1,) * 20] * 3 + [(2,) * 18] * 2 + [(3,) * 7] + [(4,) * 50] * 2
    assert [len(part) for part in fused._parts(prompts)] == [5, 1, 2]


def lora(**options: Any) -> Policy:
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False, **options)
    torch.manual_seed(1)
    peft = get_peft_model(tiny_model("qwen2"), config)
    policy = Policy(peft.get_base_model(), tiny_tokenizer())
    policy.peft = peft
    return policy


@pytest.mark.parametrize("dora", [False, True])
def test_adapters_are_read_as_what_they_merge_into(dora: bool) -> None:
    requests = [request(n, 2, max_new_tokens=12) for n in (9, 4)]
    policy, sampler = lora(use_dora=dora), NativeSampler()
    answers = sample(policy, requests, sampler)
    assert sampler.engine == "fused"
    batch = Batch.of(answers)
    with torch.no_grad():
        forward = run(policy, batch, Clean(), 0, 1.0)
        torch.testing.assert_close(batch.values("sampler_logprob"), forward.logprobs, atol=1e-4, rtol=0)
        layer = policy.model.model.layers[0].self_attn.q_proj
        with policy.adapters_off():
            assert dense(layer)[0] is layer.get_base_layer().weight
        assert not torch.equal(dense(layer)[0], layer.get_base_layer().weight)


def test_what_is_attached_to_a_module_is_not_passed_over() -> None:
    policy = tiny_policy()
    handle = policy.model.model.layers[1].mlp.register_forward_hook(lambda *_: None)
    with pytest.raises(Unreadable, match=r"hook is attached to 'model.layers.1.mlp'"):
        read(policy)
    handle.remove()
    torch.nn.utils.parametrizations.weight_norm(policy.model.model.layers[0].mlp.up_proj)
    with pytest.raises(Unreadable, match="ParametrizedLinear"):
        read(policy)
    dynamic = tiny_policy(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})
    with pytest.raises(Unreadable, match="rotary embedding is of type 'dynamic'"):
        read(dynamic)


def test_weights_are_read_anew_at_each_call() -> None:
    policy = tiny_policy()
    before = sample(policy, [request(6, 3, max_new_tokens=10)])
    with torch.no_grad():
        policy.model.model.layers[0].self_attn.q_proj.weight.mul_(-1.5)
    after = sample(policy, [request(6, 3, max_new_tokens=10)], policy.sampler)  # type: ignore[arg-type]
    assert [a.ids for a in before] != [a.ids for a in after]


def test_large_models_keep_their_projections_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy(dtype=torch.float64)
    whole = sample(policy, [request(6, 3, max_new_tokens=10)])
    monkeypatch.setattr("whet.sampling.layers.COPIED", 0)
    block = read(policy).blocks[0]
    assert len(block.qkv.parts) == 3 and block.qkv.parts[0][0] is policy.model.model.layers[0].self_attn.q_proj.weight
    same(sample(policy, [request(6, 3, max_new_tokens=10)]), whole)


def test_a_step_may_be_run_over_more_columns_than_are_written() -> None:
    """What a CUDA graph replays: a fixed number of columns, of which the mask hides the rest."""
    policy = tiny_policy("mistral", torch.float64)
    logits = []
    for graphs in (False, True):  # on a CPU nothing is captured, and the same code runs
        engine = FusedEngine(policy, read(policy), 9, 20, shared=False, graphs=graphs)
        with torch.no_grad():
            engine.admit([tuple(range(5, 14)), (3, 4, 5)])
            logits.append(torch.stack([engine.step(torch.tensor([40 + i, 60 + i])) for i in range(6)]))
    torch.testing.assert_close(logits[0], logits[1], atol=1e-12, rtol=0)


def test_the_module_engine_admits_only_when_it_is_empty() -> None:
    policy = tiny_policy()
    engine = ModuleEngine(policy)
    queue = native.Queue([*answers_of(policy, [request(n, 2, max_new_tokens=3) for n in (4, 8)])], 2, 10**6)
    with torch.no_grad():
        first = queue.take(engine, 0)
        assert [len(a.prompt) for a in first] == [8, 8]
        engine.admit([a.prompt for a in first])
        assert queue.take(engine, 2) == []
        engine.keep([])
        assert [len(a.prompt) for a in queue.take(engine, 0)] == [4, 4]


def test_the_draw_by_blocks_is_the_plain_inverse() -> None:
    width, rows = 1000, 64
    answers = [a for unit in answers_of(tiny_policy(), [request(3, rows, max_new_tokens=2)]) for a in unit]
    draw = Draw(answers, torch.device("cpu"))
    logits = torch.randn(rows, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    logits[:, 130:200] = -torch.inf  # a whole block of probability 0
    logits = logits.clamp(min=-1e300)
    for step in (0, 1):
        token, logprob, entropy = draw(logits, torch.full((rows,), step))
        cumulative = logits.softmax(-1).cumsum(-1)
        point = draw.uniforms[:, step, None] * cumulative[:, -1:]
        assert torch.equal(token, torch.searchsorted(cumulative, point, right=True)[:, 0])
        torch.testing.assert_close(logprob, logits.log_softmax(-1).gather(-1, token[:, None])[:, 0])
        torch.testing.assert_close(entropy, torch.distributions.Categorical(logits=logits).entropy())


def test_rounding_never_draws_a_token_of_probability_0() -> None:
    answers = answers_of(tiny_policy(), [request(3, 1, max_new_tokens=1)])[0]
    draw = Draw(answers, torch.device("cpu"))
    probs = torch.zeros(1, 256)
    probs[0, 5:69] = 0.1 / 64 * 3  # across a block's edge, then nothing
    for u in (0.0, 1e-12, 0.9999999, 1 - 2**-40):
        token = int(draw._invert(probs, torch.tensor([[u]], dtype=torch.float64)))
        assert 5 <= token < 69


@pytest.mark.parametrize("shared", [0, 10**6])
def test_a_row_for_each_answer_gives_the_same(shared: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: answers part after their first token, and are asked every eighth step whether they still run."""
    monkeypatch.setattr(native, "SHARED", shared)
    policy = tiny_policy(dtype=torch.float64)
    policy.format.end_ids = set(range(12))
    requests = [request(n, 4, max_new_tokens=7 + n, temperature=0.3) for n in (9, 21, 5, 13)]
    together = sample(policy, requests, NativeSampler(batch_size=9))
    monkeypatch.setattr(native, "ALIKE", ())
    events = watched(monkeypatch)
    same(sample(policy, requests, NativeSampler(batch_size=9)), together)
    assert max(rows for what, rows, _ in events if what == "step") == 8


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_cuda_graphs_draw_the_same_answers() -> None:
    policy = tiny_policy()
    policy.model.to("cuda")
    requests = [request(n, 8, max_new_tokens=40) for n in (9, 30)]
    same(sample(policy, requests, NativeSampler(graphs=True)), sample(policy, requests), 1e-3)
