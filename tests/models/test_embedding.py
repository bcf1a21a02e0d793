"""Embeddings: unit vectors, of a policy that is frozen as it was, of letters, or of a sentence model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from tiny import tiny_policy, tiny_tokenizer
from whet.errors import WhetError
from whet.models.embedding import MeanHidden, NGrams, get_encoder

TEXTS = ["12 + 3 = 15", "", "12 + 3 = 16", "a much longer text about something else"]


def test_vectors_have_length_one_or_none() -> None:
    policy = tiny_policy()
    for encode in (get_encoder("policy", policy), get_encoder("ngrams", policy)):
        found = encode(TEXTS)
        assert found.dtype == np.float32 and found.shape[0] == 4
        assert np.linalg.norm(found, axis=1) == pytest.approx([1, 0, 1, 1], abs=1e-6)
        near, far = float(found[0] @ found[2]), float(found[0] @ found[3])
        assert near > far
        assert not encode([""]).any()


def test_the_mean_of_the_last_hidden_states() -> None:
    policy = tiny_policy()
    ids = torch.tensor([policy.format.encode(TEXTS[0])])
    mean = policy.hidden(ids)[0].mean(0)
    expected = (mean / mean.norm()).detach().numpy()
    assert MeanHidden(policy)(TEXTS)[0] == pytest.approx(expected, abs=1e-5), "padding is no part of it"


def test_it_stays_as_the_policy_was_and_costs_the_policy() -> None:
    policy = tiny_policy()
    encode = get_encoder("policy", policy)
    before, spent = encode(TEXTS), policy.meter.flops
    assert spent > 0 and policy.meter.scored_tokens == sum(len(policy.format.encode(t)) for t in TEXTS)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(0.1)
    assert np.array_equal(encode(TEXTS), before)
    assert not np.allclose(get_encoder("policy", policy)(TEXTS), before)


def test_n_grams() -> None:
    found = NGrams(size=64, low=1, high=1)(["aab", "baa", "aa"])
    assert np.array_equal(found[0], found[1]) and not np.array_equal(found[0], found[2])
    assert abs(found[2]).max() == pytest.approx(1.0), "one letter, one place"


def test_a_sentence_model_by_name(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    config = BertConfig(
        vocab_size=320, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    model = BertModel(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    found = get_encoder(str(tmp_path), tiny_policy())(TEXTS)
    with torch.no_grad():
        mean = model(torch.tensor([tokenizer.encode(TEXTS[0])])).last_hidden_state[0].mean(0)
    assert found[0] == pytest.approx((mean / mean.norm()).numpy(), abs=1e-5)
    with pytest.raises(WhetError, match="encoder 'nowhere/at-all'"):
        get_encoder("nowhere/at-all", tiny_policy())
