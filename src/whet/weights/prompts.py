"""What stands beside the weights: virtual tokens (prompt, prefix and P-tuning) and bottleneck adapters.

None of them is a change of the weights, so that none can be merged. The native sampler runs the model itself where they are, and
virtual tokens are trained on padded rows; the log says so. Prompts and prefixes do not begin as the identity.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from whet.errors import WhetError
from whet.models.bottleneck import KIND, Bottlenecks
from whet.models.hooks import blocks_of
from whet.models.policy import Policy
from whet.models.virtual import install
from whet.seeds import seed_for
from whet.weights.injected import Injected
from whet.weights.menu import choice
from whet.weights.weights import Cost, Weights, check_loaded


class Prompts(Injected):
    """Virtual tokens before every sequence, by PEFT.

    Args:
        name: `prompt` learns their embeddings (2104.08691), `p-tuning` an MLP that makes them (2103.10385), `prefix` their keys
            and values in each layer (2101.00190).
        tokens: k; 16 where nothing is said.
        hidden: width of P-tuning's MLP; that of the model where nothing is said.
    """

    CONFIGS = {"prompt": "PromptTuningConfig", "prefix": "PrefixTuningConfig", "p-tuning": "PromptEncoderConfig"}

    def __init__(self, name: str, tokens: int | None = None, hidden: int | None = None) -> None:
        given = {"num_virtual_tokens": tokens} | ({"encoder_hidden_size": hidden} if name == "p-tuning" else {})
        super().__init__(name, self.CONFIGS[name], {"num_virtual_tokens": 16}, given, lambda out, into, s: 0)

    def attach(self, policy: Policy, seed: int) -> None:
        if self.name == "prefix" and policy.checkpointing:
            raise WhetError("weights prefix: activation checkpointing drops the keys and values that a prefix is; leave "
                            "--activation-checkpointing out, or choose --weights prompt")  # fmt: skip
        fresh = policy.peft is None
        super().attach(policy, seed)
        if fresh:
            install(policy, policy.peft)
        elif policy.peft.active_peft_config.inference_mode:
            raise WhetError("weights p-tuning: of a finished run the prompt alone is saved, and not what made it: it cannot be trained "
                            "on; begin at its base")  # fmt: skip

    def made(self, model: Any) -> dict[str, Any]:
        if self.name == "p-tuning":
            return {"encoder_hidden_size": model.config.get_text_config().hidden_size, **self.settings}
        sampled = {"prompt_tuning_init": "SAMPLE_VOCAB"} if self.name == "prompt" else {}  # embeddings of random tokens
        return {**self.settings, **sampled}

    def cost(self, model: nn.Module) -> Cost:
        config: Any = model.config.get_text_config()  # type: ignore[operator, union-attr]
        tokens, width = self.settings["num_virtual_tokens"], config.hidden_size
        size = tokens * width
        if self.name == "prefix":
            heads = config.num_attention_heads
            each = (getattr(config, "num_key_value_heads", None) or heads) * (
                getattr(config, "head_dim", None) or width // heads
            )
            size = 2 * tokens * config.num_hidden_layers * each
        elif self.name == "p-tuning":
            inner = self.settings.get("encoder_hidden_size", width)
            size += (width + 1) * inner + (inner + 1) * inner + (inner + 1) * width
        return Cost(size, size)


class Serial(Weights):
    """A bottleneck adapter behind each block (1902.00751).

    Args:
        size: inner units; 16 where nothing is said.
    """

    injects = True
    name = "bottleneck"

    def __init__(self, size: int | None = None) -> None:
        if size is not None and size < 1:
            raise WhetError(f"bottleneck: size is at least 1, not {size}")
        self.size = size or 16
        self.given = {} if size is None else {"size": size}

    def attach(self, policy: Policy, seed: int) -> None:
        if policy.peft is None:
            torch.manual_seed(seed_for(seed, "adapter"))
            policy.peft = Bottlenecks(policy.model, self.size)
            policy.fresh_adapters = True
            policy.remeasure()
        check_loaded(policy, KIND.lower(), self.given)
        for adapter in policy.peft.adapters:
            adapter.requires_grad_(True)
        policy.refresh()

    def cost(self, model: nn.Module) -> Cost:
        width = model.config.get_text_config().hidden_size  # type: ignore[operator, union-attr]
        size = len(blocks_of(model)) * (2 * width * self.size + self.size + width)
        return Cost(size, size)


@choice("bottleneck", family="additive")
def bottleneck(size: int | None = None) -> Weights:
    """A small network behind each block (1902.00751)."""
    return Serial(size)


@choice("prompt", family="prompt")
def prompt(tokens: int | None = None) -> Weights:
    """Embeddings of virtual tokens before every sequence (2104.08691)."""
    return Prompts("prompt", tokens)


@choice("p-tuning", family="prompt")
def p_tuning(tokens: int | None = None, hidden: int | None = None) -> Weights:
    """Virtual tokens made by a small network (2103.10385)."""
    return Prompts("p-tuning", tokens, hidden)


@choice("prefix", family="prompt")
def prefix(tokens: int | None = None) -> Weights:
    """Keys and values of virtual tokens in each layer (2101.00190)."""
    return Prompts("prefix", tokens)
