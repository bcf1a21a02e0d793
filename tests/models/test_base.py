"""Loading, creating and saving policies; what is refused; what stays off."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from tiny import KINDS, tiny_model, tiny_policy, tiny_tokenizer
from trained import trained_policy
from whet.errors import WhetError
from whet.models import base
from whet.models.policy import Policy
from whet.weights import get_weights

PROBE = torch.arange(2, 40)[None]


def logits(policy: Policy) -> torch.Tensor:
    with torch.no_grad():
        return policy.logits(PROBE)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_policy_loads_as_it_was(kind: str, tmp_path: Path) -> None:
    policy = tiny_policy(kind, style="chat")
    policy.save(tmp_path)
    loaded = base.load(tmp_path)
    assert torch.equal(logits(loaded), logits(policy)) and loaded.format.style == "chat"
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(tmp_path)(input_ids=PROBE).logits
    assert torch.equal(plain, logits(policy))
    assert loaded.chunked and loaded.size() == policy.size() and loaded.max_length == 128


def test_style_and_fallback_are_kept_and_may_be_given(tmp_path: Path) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer("tags")
    Policy(model, tokenizer, style="plain", fallback="missing").save(tmp_path)
    kept = base.load(tmp_path).format
    assert (kept.style, kept.fallback) == ("plain", "missing")
    assert base.load(tmp_path, style="tags").format.style == "tags"


def test_an_adapter_folder_loads_over_its_base(tmp_path: Path) -> None:
    trained_policy().save(tmp_path / "base")
    policy = base.load(tmp_path / "base")
    get_weights("lora:rank=4").attach(policy, 0)
    with torch.no_grad():
        for name, p in policy.model.named_parameters():
            if "lora_B" in name:
                p.fill_(0.01)
    policy.save(tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    loaded = base.load(tmp_path / "adapter")
    assert torch.equal(logits(loaded), logits(policy)) and loaded.peft is not None and not loaded.fresh_adapters
    assert all(("lora_" in n) == p.requires_grad for n, p in loaded.model.named_parameters())
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(WhetError, match="adapter' could not be loaded"):
        base.load(tmp_path / "adapter")


@pytest.mark.parametrize("broken", ["empty", "config", "weights", "no weights", "adapter", "tokenizer"])
def test_a_folder_that_is_no_model_gets_one_clear_line(broken: str, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    if broken == "empty":
        folder.mkdir()
    else:
        tiny_policy().save(folder)
    if broken == "config":
        (folder / "config.json").write_text("{")
    elif broken == "weights":
        (folder / "model.safetensors").write_bytes(b"not at all")
    elif broken == "no weights":
        (folder / "model.safetensors").unlink()
    elif broken == "adapter":
        (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    elif broken == "tokenizer":
        for file in folder.glob("tokenizer*"):
            file.unlink()
    with pytest.raises(WhetError, match=r"not a model folder|could not be loaded") as problem:
        base.load(folder)
    assert "\n" not in str(problem.value)


def test_a_tokenizer_that_is_not_the_models_is_refused(tmp_path: Path) -> None:
    """Else its ids would run past the embeddings somewhere in the middle of a run."""
    Policy(tiny_model(vocab_size=290), tiny_tokenizer("plain")).save(tmp_path)
    with pytest.raises(WhetError, match="has 300 tokens and the model 290"):
        base.load(tmp_path)


def test_a_pickled_model_is_refused(tmp_path: Path) -> None:
    tiny_policy().save(tmp_path)
    state = tiny_model().state_dict()
    (tmp_path / "model.safetensors").unlink()
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(WhetError, match="could not be loaded"):
        base.load(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"model": "./nowhere"}, "no such folder"), ({"model": "a/b/c"}, "not a Hub name"),
     ({"dtype": "float23"}, "dtype 'float23': one of float32"), ({"device": "tpu9"}, "device 'tpu9' cannot be used"),
     ({"device": "cuda:9"}, "device 'cuda:9' cannot be used")],
)  # fmt: skip
def test_what_is_not_there_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    tiny_policy().save(tmp_path)
    with pytest.raises(WhetError, match=message):
        base.load(**{"model": tmp_path, **options})


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "mixed"])
def test_the_precision_is_the_one_asked_for(dtype: str, tmp_path: Path) -> None:
    tiny_policy().save(tmp_path)
    policy = base.load(tmp_path, dtype=dtype)
    assert policy.dtype == {"mixed": torch.float32}.get(dtype, getattr(torch, dtype, None))
    assert policy.mixed == (dtype == "mixed") and policy.chunked
    close = 1e-4 if dtype.startswith("float") else 0.5
    assert float((logits(policy).double() - logits(tiny_policy()).double()).abs().max()) < close
    if dtype == "mixed":
        assert policy.head(policy.hidden(PROBE)).dtype == torch.bfloat16


def test_dropout_is_off_even_in_training_mode(tmp_path: Path) -> None:
    model = tiny_model("gpt2", resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    Policy(model, tiny_tokenizer("plain")).save(tmp_path / "base")
    policy = base.load(tmp_path / "base")
    policy.model.train()
    assert torch.equal(logits(policy), logits(policy))
    # and that of adapters which another tool trained with some
    get_weights("lora:rank=4").attach(policy, 0)
    policy.save(tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "lora_dropout": 0.5}))
    with torch.no_grad():
        for p in policy.trainable_parameters().values():
            p.fill_(0.1)
    policy.peft.save_pretrained(tmp_path / "weights")
    shutil.copy(tmp_path / "weights" / "adapter_model.safetensors", tmp_path / "adapter")
    adapted = base.load(tmp_path / "adapter")
    adapted.model.train()
    assert torch.equal(logits(adapted), logits(adapted)) and not torch.equal(logits(adapted), logits(policy) * 0)


def test_a_pad_that_is_the_end_is_no_trouble(tmp_path: Path) -> None:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer("plain").backend_tokenizer, eos_token="<eos>", pad_token="<eos>"
    )
    Policy(tiny_model(), tokenizer).save(tmp_path)
    policy = base.load(tmp_path)
    assert policy.tokenizer.pad_token_id == policy.format.eos_id


def test_a_models_own_end_tokens_end_answers(tmp_path: Path) -> None:
    model = tiny_model()
    model.generation_config.eos_token_id = [1, 5]
    assert Policy(model, tiny_tokenizer("plain")).format.end_ids == {1, 5}


def test_a_hash_is_of_the_weights_alone() -> None:
    a, b, other = tiny_model(), tiny_model(), tiny_model(seed=1)
    assert base.weights_hash(a) == base.weights_hash(b) != base.weights_hash(other)
    with torch.no_grad():
        next(b.parameters()).view(-1)[0] += 1e-3
    assert base.weights_hash(a) != base.weights_hash(b)


def test_the_shipped_base_is_the_default() -> None:
    assert base.resolve(None) == base.resolve("base") == str(base.shipped())
    assert base.resolve("somewhere") == "somewhere"
