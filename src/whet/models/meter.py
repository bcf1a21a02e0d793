"""Compute, counted from the model's real shapes: what equal-budget comparisons are made of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from whet.ranks import Ranks

TAUGHT = ("teacher_replies", "teacher_prompt_tokens", "teacher_completion_tokens")
DEALT = ("flops", "sampled_tokens", "scored_tokens", "verifier_calls", *TAUGHT)  # of these each rank does a share


@dataclass
class Meter:
    """Counts of one run (evaluation has a meter of its own).

    Attributes:
        flops: forward and backward floating-point operations executed, padding included. In sampling each answer's own tokens
            count, though what answers begin with alike is run once: a budget does not depend on how alike they are.
        sampled_tokens: tokens produced by samplers.
        scored_tokens: tokens run forward without a gradient (references, old log-probs, values).
        learnt_tokens: tokens that entered a loss.
        optimizer_steps, verifier_calls: counts.
        idle_steps: batches that gave no term a gradient.
        seconds: wall-clock time of training.
        trained: entries that the largest optimizer step moved.
        optimizer_bytes, gradient_bytes: the most that optimizers held between steps (moments, and the places of chosen entries)
            and that gradients took, measured.
        teacher_replies, teacher_prompt_tokens, teacher_completion_tokens: what teachers were asked anew, and the tokens that they
            read and wrote, where they say it. No budget counts them.
    """

    flops: float = 0.0
    sampled_tokens: int = 0
    scored_tokens: int = 0
    learnt_tokens: int = 0
    optimizer_steps: int = 0
    idle_steps: int = 0
    verifier_calls: int = 0
    seconds: float = 0.0
    trained: int = 0
    optimizer_bytes: int = 0
    gradient_bytes: int = 0
    teacher_replies: int = 0
    teacher_prompt_tokens: int = 0
    teacher_completion_tokens: int = 0

    def __post_init__(self) -> None:
        self._summed = self.as_dict()

    def saw(self, trained: int, optimizer_bytes: int, gradient_bytes: int) -> None:
        """An optimizer step that held so much."""
        self.trained = max(self.trained, trained)
        self.optimizer_bytes = max(self.optimizer_bytes, optimizer_bytes)
        self.gradient_bytes = max(self.gradient_bytes, gradient_bytes)

    def taught(self, usage: Mapping[str, int]) -> None:
        """Replies of a teacher that took so much."""
        for what, n in usage.items():
            setattr(self, f"teacher_{what}", getattr(self, f"teacher_{what}") + n)

    def sum(self, ranks: Ranks) -> None:
        """Add what the other ranks did since the last time, so that the counts are the run's; its clock is the first
        rank's."""
        if ranks.size == 1:
            return
        own = {name: getattr(self, name) - self._summed[name] for name in DEALT}
        own["seconds"] = self.seconds - self._summed["seconds"] if ranks.first else 0.0
        for name, done in ranks.sum(own).items():
            before = self._summed[name]
            setattr(self, name, type(before)(before + done))
        self._summed = self.as_dict()

    def as_dict(self) -> dict[str, float]:
        return asdict(self)

    def load(self, state: dict[str, float]) -> None:
        for key, value in state.items():
            setattr(self, key, value)
        self._summed = self.as_dict()


@dataclass(frozen=True)
class Shapes:
    """What a forward costs.

    Attributes:
        body: matrix parameters used once a token (embedding look-ups cost nothing, the head apart).
        head: parameters of the vocabulary projection.
        attention: layers x heads x head size: the width of the score products.
        trainable: how many of the body's parameters receive a gradient.
        head_trainable: the same of the head's.
    """

    body: int
    head: int
    attention: int
    trainable: int
    head_trainable: int

    @classmethod
    def of(cls, model: Any) -> Shapes:
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        head_size = head.weight.numel() if head is not None else 0
        head_trainable = head_size if head is not None and head.weight.requires_grad else 0
        total = trainable = 0
        for module in model.modules():
            weight = module._parameters.get("weight")  # not `.weight`: an adapter's layer shows its base layer's
            if module is head or isinstance(module, nn.Embedding) or weight is None or weight.dim() != 2:
                continue
            total += entries(weight)
            trainable += entries(weight) if weight.requires_grad else 0
        config = getattr(model, "config", None)
        layers = getattr(config, "num_hidden_layers", 0) or 0
        heads = getattr(config, "num_attention_heads", 0) or 0
        width = getattr(config, "head_dim", None) or (getattr(config, "hidden_size", 0) or 0) // max(heads, 1)
        return cls(total, head_size, layers * heads * width, trainable, head_trainable)

    def forward(self, tokens: int, keys: float, head_tokens: int = 0) -> float:
        """Operations of a forward.

        Args:
            tokens: positions run through the layers.
            keys: positions that each of them attends to, on average, as executed (a full square counts fully).
            head_tokens: positions projected onto the vocabulary.
        """
        return 2.0 * self.body * tokens + 4.0 * self.attention * keys * tokens + 2.0 * self.head * head_tokens

    def backward(self, tokens: int, keys: float, head_tokens: int = 0) -> float:
        """Operations of the backward of that forward: its activations once, and weights once where they are trained; both
        sides of a score product are activations."""
        weights = 2.0 * self.trainable * tokens + 2.0 * self.head_trainable * head_tokens
        return self.forward(tokens, 2.0 * keys, head_tokens) + weights


def entries(parameter: Any) -> int:
    """How many numbers a parameter stands for; bitsandbytes packs two of 4 bits into a byte, and keeps their shape."""
    packed = getattr(parameter, "quant_state", None)
    return parameter.numel() if packed is None else math.prod(packed.shape)


def autocast(device: torch.device, mixed: bool) -> torch.autocast:
    """bf16 autocast where asked for; otherwise a context that does nothing."""
    return torch.autocast(device_type=device.type, dtype=torch.bfloat16, enabled=mixed)
