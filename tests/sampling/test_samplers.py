"""Samplers: greedy equality with `generate`, independence of the batch, log-probs, lengths, and the draw itself."""

from __future__ import annotations

import logging
import random
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import MambaConfig, MambaForCausalLM
from transformers.generation import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from tiny import KINDS, MORE_KINDS, tiny_model, tiny_policy, tiny_tokenizer
from whet.errors import WhetError
from whet.models.packing import Batch
from whet.models.policy import Policy
from whet.objectives.forward import run
from whet.objectives.views import Clean
from whet.records import Sample, Segment
from whet.sampling import (
    HuggingFaceSampler,
    NativeSampler,
    Request,
    Sampler,
    SamplingSettings,
    choose_sampler,
    fused,
    stream,
)
from whet.sampling.answers import Draw, answers_of

LENGTHS = (3, 17, 9, 9, 1, 12)  # shorter and longer than the sliding window of 8


def prompt(length: int, seed: int = 0) -> list[int]:
    draw = random.Random(f"{length}/{seed}")
    return [draw.randrange(2, 300) for _ in range(length)]


def request(length: int, seeds: Any = (0,), seed: int = 0, **settings: Any) -> Request:
    return Request([Segment("question", prompt(length, seed))], list(seeds), SamplingSettings(**settings), f"p{length}")


def sample(policy: Policy, requests: list[Request], sampler: Sampler | None = None, **more: Any) -> list[list[Sample]]:
    policy.sampler = sampler or NativeSampler()
    return policy.sample(requests, **more)


def new(answer: Sample) -> list[int]:
    return answer.ids[answer.prompt_length :]


def flat(units: list[list[Any]]) -> list[Any]:
    return [one for unit in units for one in unit]


def never_ends(policy: Policy) -> Policy:
    policy.format.end_ids = {-1}
    return policy


def generated(policy: Policy, ids: list[int], tokens: int) -> list[int]:
    """What Hugging Face generates greedily for a prompt alone, the end token included."""
    inputs = torch.tensor([ids])
    out = policy.model.generate(
        inputs, attention_mask=torch.ones_like(inputs), do_sample=False, max_new_tokens=tokens, pad_token_id=0
    )
    return out[0, len(ids) :].tolist()


def rows_run(policy: Policy) -> list[tuple[int, int]]:
    """Shapes of the ids of every forward of the decoder from now on."""
    shapes: list[tuple[int, int]] = []
    policy.decoder.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    return shapes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", (*KINDS, *MORE_KINDS))
def test_greedy_equals_generate(kind: str, dtype: torch.dtype) -> None:
    policy, sampler = tiny_policy(kind, dtype), NativeSampler()
    answers = sample(policy, [request(n, max_new_tokens=24, temperature=0.0) for n in LENGTHS], sampler)
    assert sampler.engine == "fused"
    for length, (answer,) in zip(LENGTHS, answers, strict=True):
        assert new(answer) == generated(policy, prompt(length), 24)


def test_greedy_equals_generate_with_lora_and_its_end_token() -> None:
    model = tiny_model("qwen2")
    before = tiny_policy("qwen2")
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    peft = get_peft_model(model, config)
    policy = Policy(peft.get_base_model(), tiny_tokenizer())
    policy.peft = peft
    requests = [request(n, max_new_tokens=24, temperature=0.0) for n in LENGTHS]
    ours, plain = sample(policy, requests), sample(before, requests)
    assert [new(a) for (a,) in ours] == [generated(policy, prompt(n), 24) for n in LENGTHS]
    assert [new(a) for (a,) in ours] != [new(a) for (a,) in plain]  # the adapter took part
    # with the 5th greedy token of one prompt as a further end token, both stop there
    end = new(ours[1][0])[4]
    policy.format.end_ids = {policy.format.eos_id, end}
    policy.model.generation_config.eos_token_id = [policy.format.eos_id, end]
    (cut,) = sample(policy, requests)[1]
    assert new(cut) == generated(policy, prompt(LENGTHS[1]), 24)
    assert cut.ended and cut.segments[-1].ids == [end] and len(new(cut)) <= 5


@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("kind", ["mistral", "gemma2", "gpt2"])
def test_an_answer_does_not_depend_on_its_batch(kind: str, hooked: bool) -> None:
    policy = tiny_policy(kind, torch.float64)
    if hooked:
        rows_run(policy)  # with a hook attached it is the module that runs
    policy.format.end_ids = set(range(40))  # answers end early and leave the batch
    own = request(11, [5, 6], max_new_tokens=20, temperature=0.7, top_p=0.9, top_k=20)
    others = [request(n, [n], seed=1, max_new_tokens=5 + n, temperature=n / 10) for n in (2, 30, 11, 7, 4, 15, 1)]
    (alone,) = sample(policy, [own])
    *_, last = sample(policy, [*others, own])
    first, *_ = sample(policy, [own, *reversed(others)])
    (reversed_,) = sample(policy, [Request(own.segments, [6, 5], own.settings)])
    (apart,) = sample(policy, [own], NativeSampler(batch_size=1))
    assert alone[0].ids != alone[1].ids
    for answers in (last, first, reversed_[::-1], apart):
        assert [a.ids for a in answers] == [a.ids for a in alone]
        for a, b in zip(answers, alone, strict=True):
            torch.testing.assert_close(a.per_token["sampler_logprob"], b.per_token["sampler_logprob"])


def test_a_longer_budget_continues_the_same_answer() -> None:
    policy = never_ends(tiny_policy(dtype=torch.float64))
    (short,), (long,) = sample(policy, [request(5, [3], max_new_tokens=n) for n in (6, 40)])
    assert new(long)[:6] == new(short) and len(new(long)) == 40


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("kind", KINDS)
def test_logprobs_and_entropies_are_those_of_a_full_forward(kind: str, temperature: float) -> None:
    policy = tiny_policy(kind)
    requests = [request(n, [1, 2, 3], max_new_tokens=20, temperature=temperature) for n in LENGTHS]
    answers = flat(sample(policy, requests))
    batch = Batch.of(answers)
    with torch.no_grad():
        forward = run(policy, batch, Clean(), 0, temperature)
    torch.testing.assert_close(batch.values("sampler_logprob"), forward.logprobs, atol=1e-4, rtol=0)
    torch.testing.assert_close(batch.values("entropy"), forward.entropy, atol=1e-4, rtol=0)


def test_a_greedy_answer_reports_the_model_s_own_distribution() -> None:
    policy = tiny_policy()
    ((answer,),) = sample(policy, [request(6, max_new_tokens=8, temperature=0.0, top_k=3, top_p=0.5)])
    batch = Batch.of([answer])
    with torch.no_grad():
        forward = run(policy, batch, Clean(), 0, 1.0)
    torch.testing.assert_close(batch.values("sampler_logprob"), forward.logprobs, atol=1e-5, rtol=0)
    torch.testing.assert_close(batch.values("entropy"), forward.entropy, atol=1e-5, rtol=0)


def test_mixed_precision_logprobs_follow_the_mixed_forward() -> None:
    policy = Policy(tiny_model("qwen3"), tiny_tokenizer(), mixed=True)
    answers = flat(sample(policy, [request(n, [1, 2], max_new_tokens=12) for n in (4, 9)]))
    batch = Batch.of(answers)
    with torch.no_grad():
        forward = run(policy, batch, Clean(), 0, 1.0)
    torch.testing.assert_close(batch.values("sampler_logprob"), forward.logprobs, atol=0.15, rtol=0)


def test_what_a_sample_carries() -> None:
    policy = never_ends(tiny_policy())
    given = [Segment("question", prompt(4)), Segment("prefix", prompt(2))]
    settings = SamplingSettings(max_new_tokens=5, top_k=7, stop=("zzz",))
    ((first, second),) = sample(policy, [Request(given, [8, 9], settings, "problem", "group")])
    assert (first.problem_id, first.group_id, first.rollout_id, second.rollout_id) == ("problem", "group", 0, 1)
    assert first.settings == settings.as_dict()
    assert first.segments[:2] == given and first.segments[0] is not given[0]
    assert [(s.kind, s.learn, s.sampled) for s in first.segments[2:]] == [("response", True, True)]
    for name in ("sampler_logprob", "entropy"):
        values = first.per_token[name]
        assert values.dtype == torch.float32 and values.shape == (11,)
        assert not values[:6].any() and bool(values[6:].all())


def test_finished_answers_leave_the_batch_and_carry_their_end() -> None:
    policy = tiny_policy()
    policy.format.end_ids = set(range(60))
    shapes = rows_run(policy)
    (answers,) = sample(policy, [request(5, range(32), max_new_tokens=12)])
    assert shapes[0] == (1, 5)
    rows = [rows for rows, width in shapes[1:]]
    for step, ran in enumerate(rows, 1):  # one for all that are the same so far; less than a quarter may be idle
        needed = len({tuple(new(a)[:step]) for a in answers if len(new(a)) > step})
        assert needed <= ran and ran - needed < 0.25 * ran
    assert max(rows) < 32 and rows[-1] < 16
    ended = [a for a in answers if a.ended]
    assert 0 < len(ended) < 32
    for answer in answers:
        assert not set(new(answer)[:-1]) & policy.format.end_ids
        assert answer.ended == (answer.ids[-1] in policy.format.end_ids)
        assert answer.ended or len(new(answer)) == 12
        assert [s.kind for s in answer.segments].count("eos") == answer.ended
    assert policy.meter.sampled_tokens == sum(len(new(a)) for a in answers)


def test_a_prompt_is_run_once_and_counted_so() -> None:
    policy = never_ends(tiny_policy())
    shapes = rows_run(policy)
    twice = [request(5, [1, 2, 3], max_new_tokens=3), request(5, [4], max_new_tokens=3)]
    sample(policy, twice)
    assert shapes == [(1, 5), (4, 1), (4, 1)]
    cost = policy.shapes.forward
    assert policy.meter.flops == cost(5, 5, 1) + cost(4, 6, 4) + cost(4, 7, 4)
    assert policy.meter.sampled_tokens == 12


def test_chunks_keep_a_request_together_and_respect_the_memory() -> None:
    policy = never_ends(tiny_policy())
    requests = [request(n, range(3), max_new_tokens=2) for n in (9, 4, 5)] + [request(4, range(9), 1, max_new_tokens=2)]
    shapes = rows_run(policy)
    whole = sample(policy, requests)
    assert shapes == [(4, 9), (18, 1)]
    shapes.clear()
    parts = sample(policy, requests, NativeSampler(batch_size=6))
    assert [rows for rows, width in shapes if width == 1] == [6, 6, 6]  # a request of 9 is split
    assert max(rows for rows, width in shapes) == 6
    assert [[a.ids for a in unit] for unit in parts] == [[a.ids for a in unit] for unit in whole]
    shapes.clear()
    per_token = 2 * 2 * 2 * 8 * 4  # keys and values, layers, key heads, head size, bytes
    sample(policy, requests, NativeSampler(cache_bytes=22 * per_token))  # two answers of 9 + 2 tokens
    decoded = [rows for rows, width in shapes if width == 1]
    assert decoded[0] == 2 and max(decoded) == 3 and sum(decoded) == 18  # three of 4 + 2 or 5 + 2 tokens


@pytest.mark.parametrize("sampler", [NativeSampler(), HuggingFaceSampler()], ids=["native", "huggingface"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_model_s_maximum_length(kind: str, sampler: Sampler) -> None:
    policy = never_ends(tiny_policy(kind, max_position_embeddings=16))
    answers = sample(policy, [request(n, [1], max_new_tokens=50) for n in (15, 3, 10)], sampler)
    assert [len(new(a)) for (a,) in answers] == [1, 13, 6]
    assert not any(a.ended for (a,) in answers)
    with pytest.raises(WhetError, match=r"problem 'p16' has 16 tokens and the model takes 16.*shorten"):
        sample(policy, [request(16)], sampler)
    with pytest.raises(WhetError, match="empty"):
        sample(policy, [request(0)], sampler)


@pytest.mark.parametrize("sampler", [NativeSampler(), HuggingFaceSampler()], ids=["native", "huggingface"])
def test_stop_strings_end_an_answer_and_stay_in_it(sampler: Sampler) -> None:
    policy = never_ends(tiny_policy())
    decode = policy.format.decode
    (free,) = sample(policy, [request(6, range(8), max_new_tokens=30)], sampler)
    stops = ("a", decode(new(free[0])[6:8]), "e")  # single letters, and a string of two tokens
    (cut,) = sample(policy, [request(6, range(8), max_new_tokens=30, stop=stops)], sampler)
    shorter = 0
    for before, after in zip(free, cut, strict=True):
        ids = new(before)
        ends = (n for n in range(1, 31) if any(s in decode(ids[:n]) for s in stops))
        assert new(after) == ids[: next(ends, 30)]
        assert not after.ended
        shorter += len(new(after)) < 30
    assert shorter >= 4 and 2 < len(new(cut[0])) <= 8


def test_first_tokens_follow_the_softmax() -> None:
    policy = tiny_policy()
    (answers,) = sample(policy, [request(5, range(4000), max_new_tokens=1)])
    with torch.no_grad():
        expected = policy.logits(torch.tensor([prompt(5)]))[0, -1].softmax(-1).double() * 4000
    counts = torch.bincount(torch.tensor([new(a)[0] for a in answers]), minlength=len(expected)).double()
    drift = (counts - expected).cumsum(0).abs().max()
    assert float(drift) < 1.63 * 4000**0.5  # Kolmogorov, 1%
    rare = expected < 5
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    counts = torch.cat([counts[~rare], counts[rare].sum()[None]])
    freedom = len(expected) - 1
    statistic = float(((counts - expected) ** 2 / expected).sum())
    assert freedom > 50
    assert abs(statistic - freedom) < 3 * (2 * freedom) ** 0.5


def test_truncation_equals_the_warpers_of_transformers() -> None:
    choices = [(1.0, 1.0, 0), (0.5, 0.9, 0), (1.3, 0.6, 12), (0.8, 1.0, 5), (0.0, 0.3, 2), (1.0, 0.05, 0)]
    logits = torch.randn(len(choices), 64, generator=torch.Generator().manual_seed(0)) * 2
    logits[3, :20] = logits[3].max()  # ties at the edge of the top 5 all stay
    requests = [request(3, [i], temperature=t, top_p=p, top_k=k) for i, (t, p, k) in enumerate(choices)]
    answers = flat(answers_of(tiny_policy(), requests))
    steps = torch.zeros(len(choices), dtype=torch.long)
    token, logprob, entropy = Draw(answers, torch.device("cpu"))(logits, steps)
    for row, (temperature, top_p, top_k) in enumerate(choices):
        expected = logits[row : row + 1]
        if temperature > 0:
            expected = TemperatureLogitsWarper(temperature)(None, expected)
            expected = TopKLogitsWarper(top_k)(None, expected) if top_k else expected
            expected = TopPLogitsWarper(top_p)(None, expected) if top_p < 1 else expected
        distribution = torch.distributions.Categorical(logits=expected[0])
        torch.testing.assert_close(logprob[row], distribution.log_prob(token[row]))
        torch.testing.assert_close(entropy[row], torch.special.entr(distribution.probs).sum())
    assert token[4] == logits[4].argmax() and token[5] == logits[5].argmax()
    narrow = [answers_of(tiny_policy(), [request(3, [7], top_k=4)])[0][0]]  # ranks only the top 4
    token, logprob, _ = Draw(narrow, torch.device("cpu"))(logits[:1], steps[:1])
    torch.testing.assert_close(logprob[0], (logits[0] - logits[0].topk(4).values.logsumexp(0))[token[0]])


@pytest.mark.parametrize("kind", KINDS)
def test_huggingface_sampler_draws_the_same_answers(kind: str) -> None:
    policy = tiny_policy(kind)
    policy.format.end_ids = set(range(20))
    policy.model.generation_config.repetition_penalty = 5.0  # the model's own settings must not leak in
    settings = [(0.0, 1.0, 0), (1.0, 1.0, 0), (0.7, 0.9, 20)]
    requests = [
        request(n, [1, 2], max_new_tokens=8 + i, temperature=t, top_p=p, top_k=k)
        for n in (9, 3, 9) for i, (t, p, k) in enumerate(settings)
    ]  # fmt: skip
    ours, theirs = sample(policy, requests), sample(policy, requests, HuggingFaceSampler(batch_size=5))
    assert policy.model.generation_config.repetition_penalty == 5.0
    for a, b in zip(flat(ours), flat(theirs), strict=True):
        assert a.segments == b.segments and a.settings == b.settings and a.rollout_id == b.rollout_id
        for name in ("sampler_logprob", "entropy"):
            torch.testing.assert_close(a.per_token[name], b.per_token[name], atol=1e-4, rtol=0)


def test_huggingface_sampler_counts() -> None:
    policy = never_ends(tiny_policy())
    sample(policy, [request(5, [1, 2], max_new_tokens=3)], HuggingFaceSampler())
    cost = policy.shapes.forward
    assert policy.meter.flops == cost(10, 5, 2) + cost(2, 6, 2) + cost(2, 7, 2)
    assert policy.meter.sampled_tokens == 6


@pytest.mark.parametrize("kind", (*KINDS, *MORE_KINDS))
def test_choice_is_native_and_costs_nothing(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    policy = tiny_policy(kind)
    policy.model.train()
    with caplog.at_level(logging.INFO, "whet"):
        assert isinstance(choose_sampler(policy), NativeSampler)
    assert "native" in caplog.text and type(policy.model).__name__ in caplog.text
    assert policy.meter.flops == 0 and policy.model.training


def test_choice_falls_back_where_the_check_fails(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    step = fused.FusedEngine.step

    def late(self: fused.FusedEngine, token: torch.Tensor, answers: int = 0) -> torch.Tensor:
        self.origins = self.origins - 1  # positions are one too high
        return step(self, token, answers)

    monkeypatch.setattr(fused.FusedEngine, "step", late)
    assert isinstance(choose_sampler(tiny_policy("gpt2")), HuggingFaceSampler)
    assert "differs by" in caplog.text


def test_a_recurrent_model_is_sampled_by_huggingface(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    config = MambaConfig(
        vocab_size=320, hidden_size=16, num_hidden_layers=2, state_size=4, eos_token_id=1, pad_token_id=0,
        bos_token_id=None, initializer_range=0.3,
    )  # fmt: skip
    policy = Policy(MambaForCausalLM(config).eval(), tiny_tokenizer())
    requests = [request(n, [1, 2], max_new_tokens=6) for n in (4, 7)]
    answers = flat(policy.sample(requests))
    assert isinstance(policy.sampler, HuggingFaceSampler) and "Hugging Face" in caplog.text
    batch = Batch.of(answers)
    with torch.no_grad():
        forward = run(policy, batch, Clean(), 0, 1.0)
    torch.testing.assert_close(batch.values("sampler_logprob"), forward.logprobs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("sampler", [NativeSampler(), HuggingFaceSampler()], ids=["native", "huggingface"])
def test_tokens_are_reported_as_they_come(sampler: Sampler) -> None:
    policy = tiny_policy()
    policy.format.end_ids = set(range(30))
    seen: dict[int, list[int]] = {}
    requests = [request(n, [1, 2], max_new_tokens=15) for n in (7, 3)]
    answers = sample(policy, requests, sampler, on_token=lambda i, t: seen.setdefault(i, []).append(t))
    assert seen == {i: new(a) for i, a in enumerate(flat(answers))}


def test_stream_yields_the_text_in_pieces() -> None:
    policy = never_ends(tiny_policy())
    own = request(6, [3], max_new_tokens=25)
    ((answer,),) = sample(policy, [own])
    pieces = list(stream(policy, own))
    assert "".join(pieces) == policy.format.decode(new(answer))
    assert len(pieces) > 5
    with pytest.raises(WhetError, match="128, the answer included"):
        list(stream(policy, request(200)))
    with pytest.raises(WhetError, match="one answer"):
        list(stream(policy, request(6, [1, 2])))


def test_no_answers() -> None:
    policy = tiny_policy()
    for sampler in (NativeSampler(), HuggingFaceSampler()):
        assert sample(policy, [], sampler) == []
        assert [len(u) for u in sample(policy, [request(3, []), request(3, [1])], sampler)] == [0, 1]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("sampler", [NativeSampler(), HuggingFaceSampler()], ids=["native", "huggingface"])
def test_a_diverged_model_is_refused(sampler: Sampler, temperature: float) -> None:
    policy = tiny_policy()
    with torch.no_grad():
        policy.model.model.norm.weight.fill_(torch.nan)
    with pytest.raises(WhetError, match="problem 'p3': its weights have diverged"):
        sample(policy, [request(3, [1, 2], max_new_tokens=4, temperature=temperature)], sampler)
