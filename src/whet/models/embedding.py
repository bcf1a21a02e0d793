"""Embeddings of texts: unit vectors whose cosine says how alike two texts are, for memories and clustering.

| encoder | a text's vector |
|---|---|
| `policy` | mean of the last hidden states of a frozen copy of the policy, over the text's tokens |
| `ngrams` | hashed counts of its character n-grams: only the letters, no meaning, no model |
| any other name | a sentence model of the Hub or a folder: mean of its last hidden states |

A text without a token has the zero vector, which is like nothing. Nothing here has a gradient.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from whet.errors import WhetError
from whet.models import trust
from whet.models.policy import Policy


class Encoder(Protocol):
    """(n, d) float32 vectors of n texts, each of length 1 or 0."""

    def __call__(self, texts: Sequence[str]) -> np.ndarray: ...


class NGrams:
    """Counts of character n-grams, hashed to `size` places with signs.

    Args:
        low, high: the shortest and the longest n-grams.
    """

    def __init__(self, size: int = 256, low: int = 1, high: int = 3) -> None:
        self.size, self.low, self.high = size, low, high

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        found = np.zeros((len(texts), self.size), dtype=np.float32)
        for row, text in enumerate(texts):
            for n in range(self.low, self.high + 1):
                for start in range(len(text) - n + 1):
                    code = zlib.crc32(text[start : start + n].encode())
                    # the top bit is the sign: n-grams that meet in a place do not add up on average
                    found[row, code % self.size] += 1.0 if code >> 31 else -1.0
        return unit(found)


class MeanHidden:
    """Mean last hidden state of a frozen copy of a policy, as it is when this is made. Its compute is the policy's."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy.frozen()

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        policy = self.policy
        rows = [policy.format.encode(text)[: policy.max_length] for text in texts]
        ids, mask = padded(rows, policy.device)
        if not ids.numel():
            return np.zeros((len(texts), policy.model.get_input_embeddings().weight.shape[1]), dtype=np.float32)
        policy.meter.scored_tokens += int(mask.sum())
        return unit(mean_over(policy.hidden(ids), mask))


class Sentences:
    """A sentence encoder by name, e.g. `sentence-transformers/all-MiniLM-L6-v2`."""

    def __init__(self, name: str, device: torch.device | str = "cpu") -> None:
        from transformers import AutoModel, AutoTokenizer

        trust.check(name)
        try:
            code = {"trust_remote_code": False}  # without the answer Transformers would ask the terminal
            self.tokenizer: Any = AutoTokenizer.from_pretrained(name, **code)
            self.model: Any = AutoModel.from_pretrained(name, use_safetensors=True, **code).to(device).eval()
        except (OSError, ValueError) as problem:
            raise WhetError(f"encoder '{name}' could not be loaded ({str(problem).strip().splitlines()[0]}); give policy, ngrams, "
                            "or the name of a sentence model") from problem  # fmt: skip

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        limit = self.model.config.max_position_embeddings
        rows = [self.tokenizer.encode(text)[:limit] for text in texts]
        ids, mask = padded(rows, self.model.device)
        return unit(mean_over(self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state, mask))


def get_encoder(name: str, policy: Policy) -> Encoder:
    """An encoder by name; `policy` is frozen as it is now."""
    if name == "policy":
        return MeanHidden(policy)
    return NGrams() if name == "ngrams" else Sentences(name, policy.device)


def padded(rows: Sequence[Sequence[int]], device: torch.device | str) -> tuple[Tensor, Tensor]:
    """(n, T) right-padded token ids and their bool mask."""
    width = max(map(len, rows), default=0)
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], dtype=torch.long, device=device)
    mask = torch.tensor([[i < len(row) for i in range(width)] for row in rows], dtype=torch.bool, device=device)
    return ids, mask


def mean_over(hidden: Tensor, mask: Tensor) -> np.ndarray:
    """(n, H) float32 means over the tokens of the mask; 0 where there is none."""
    total = (hidden.float() * mask[..., None]).sum(1)
    return (total / mask.sum(1, keepdim=True).clamp(min=1)).cpu().numpy()


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors at length 1; zero vectors stay."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1.0).astype(vectors.dtype)
