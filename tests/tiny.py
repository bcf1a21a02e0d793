"""Tiny random models and a tokenizer built in memory, for tests: no download, a few milliseconds each."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from whet.models.policy import Policy

KINDS = ("llama", "qwen2", "qwen3", "mistral", "gemma2", "gpt2")
MORE_KINDS = ("gemma3", "phi3", "gpt_neox")  # further ones that only the samplers know apart
VOCABULARY = 320
TAGS = tuple(f"<{slash}{t}>" for t in ("think", "answer", "plan", "execute") for slash in ("", "/"))
ROLES = ("<user>", "<assistant>", "<system>")
TEXT = ["one two three four five six seven eight nine ten", "add the numbers: 1 + 2 = 3, 4 + 5 = 9", "Answer: 12"]
CHAT = (
    "{% for m in messages %}{{ '[' + m['role'] + '] ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant] ' }}{% endif %}"
)
SLIDING = 8  # the window of mistral and of every second layer of gemma2: shorter than most prompts
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128,
    "initializer_range": 0.2, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip


@cache
def tiny_tokenizer(style: str = "plain") -> Any:
    """A byte-level BPE tokenizer with <pad> = 0 and <eos> = 1.

    Args:
        style: `plain`; `chat` (with a chat template); `tags` (with a token for each tag and role).
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<eos>", *(TAGS + ROLES if style == "tags" else ())]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    if style == "chat":
        fast.chat_template = CHAT
    return fast


def tiny_model(kind: str = "qwen3", dtype: torch.dtype = torch.float32, seed: int = 0, **config: Any) -> Any:
    """A random causal LM in eval mode: 2 layers, hidden 32, 4 heads (2 of keys), 320 tokens, 128 positions.

    Weights are wide (standard deviation 0.2) so that the next-token distributions are far from uniform.

    Args:
        kind: one of `KINDS` or `MORE_KINDS`.
        config: changes to the configuration, by Hugging Face's names.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _build(kind, config)
    return model.to(dtype).eval()


def tiny_policy(
    kind: str = "qwen3", dtype: torch.dtype = torch.float32, style: str = "plain", seed: int = 0, **config: Any
) -> Policy:
    """A policy of a tiny model and tokenizer. Each call builds new weights, equal for equal arguments."""
    return Policy(tiny_model(kind, dtype, seed, **config), tiny_tokenizer(style), name=f"tiny-{kind}")


def _build(kind: str, config: dict[str, Any]) -> Any:
    if kind == "gpt2":
        known = {k: v for k, v in COMMON.items() if k not in ("num_key_value_heads", "head_dim", "intermediate_size")}
        off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return GPT2LMHeadModel(GPT2Config(**{**known, **off, **config}))
    known = dict(COMMON)
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**{**known, **config}))
    if kind == "qwen2":
        known.pop("head_dim")
        return Qwen2ForCausalLM(Qwen2Config(**{**known, **config}))
    if kind == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**{**known, **config}))
    if kind == "mistral":
        return MistralForCausalLM(MistralConfig(**{**known, "sliding_window": SLIDING, **config}))
    if kind == "gemma2":
        own = {"sliding_window": SLIDING, "query_pre_attn_scalar": 8}
        return Gemma2ForCausalLM(Gemma2Config(**{**known, **own, **config}))
    if kind == "gemma3":
        layers = ["sliding_attention", "full_attention"]
        own = {"sliding_window": SLIDING, "query_pre_attn_scalar": 8, "layer_types": layers}
        return Gemma3ForCausalLM(Gemma3TextConfig(**{**known, **own, **config}))
    if kind == "phi3":
        known.pop("head_dim")
        return Phi3ForCausalLM(Phi3Config(**{**known, "sliding_window": SLIDING, **config}))
    if kind == "gpt_neox":
        known = {k: v for k, v in known.items() if k not in ("num_key_value_heads", "head_dim")}
        rope = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.25}
        return GPTNeoXForCausalLM(GPTNeoXConfig(**{**known, "rope_parameters": rope, **config}))
    raise ValueError(f"no tiny model of kind '{kind}'; known: {', '.join(KINDS)}")


PROBE = torch.arange(2, 40)[None]


def logits(policy: Policy) -> torch.Tensor:
    """(1, 38, V) on a fixed input."""
    with torch.no_grad():
        return policy.logits(PROBE)


def stir(policy: Policy, scale: float = 0.05) -> None:
    """Move what may move."""
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in policy.trainable_parameters().values():
            p += scale * torch.randn(p.shape, generator=draw)
