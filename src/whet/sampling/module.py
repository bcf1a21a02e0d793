"""Running the Hugging Face module itself over a key-value cache: prompts for every engine, and whole answers for the
architectures whose layers cannot be read."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from whet.models.meter import autocast

if TYPE_CHECKING:
    from whet.models.policy import Policy


def unsupported(policy: Policy) -> str | None:
    """Why this architecture cannot be decoded here, or None: its layers must be plain or sliding attention."""
    config = policy.model.config
    if getattr(config, "is_encoder_decoder", False):
        return "it is an encoder-decoder"
    if not {"cache", "past_key_values"} & _parameters(_module(policy)).keys():
        return "its forward takes no key-value cache"
    other = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    return f"it has layers of type {', '.join(sorted(other))}" if other else None


def prefill(policy: Policy, prompts: Sequence[tuple[int, ...]]) -> tuple[Tensor, Cache, list[int]]:
    """Run each distinct prompt once.

    Prompts are padded on the right, where causal attention needs no mask and no row is without a key.

    Returns:
        (n, V) logits after each prompt; a cache of `Layer`s with a row for each distinct prompt, in order; and for each
        prompt its row.
    """
    distinct = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    source = [distinct[p] for p in prompts]
    width = max(len(p) for p in prompts)
    ids = torch.tensor([[*p] + [0] * (width - len(p)) for p in distinct], device=policy.device)
    pads = torch.tensor([width - len(p) for p in distinct], device=policy.device)
    positions = torch.arange(width, device=policy.device).expand_as(ids)
    cache = Cache(layer_class_to_replicate=Layer)
    last = (torch.arange(len(ids), device=policy.device), -1 - pads)
    keep = 1 + width - min(len(p) for p in prompts)
    logits = forward(policy, cache, ids, positions, None, last, keep)
    return logits[torch.tensor(source, device=policy.device)], cache, source


def forward(
    policy: Policy, cache: Cache, ids: Tensor, positions: Tensor, mask: Tensor | None, last: tuple[Any, Any], keep: int,
    answers: int = 0,
) -> Tensor:  # fmt: skip
    """(R, V) logits at the position `last` of each row, which is among the `keep` last ones. The meter counts it for so
    many `answers`, where they are not the rows."""
    module = _module(policy)
    known = _parameters(module)
    inputs: dict[str, Any] = {"cache" if "cache" in known else "past_key_values": cache}
    if "position_ids" in known:
        inputs["position_ids"] = positions
    if not policy.chunked and "logits_to_keep" in known:
        inputs["logits_to_keep"] = keep
    seen = cache.get_seq_length() + ids.shape[1]
    counted = answers or len(ids)
    policy.meter.flops += policy.shapes.forward(counted * ids.shape[1], seen, counted)
    with autocast(policy.device, policy.mixed):
        out = module(input_ids=ids, use_cache=True, attention_mask=mask, **inputs)
    return policy.head(out.last_hidden_state[last]) if policy.chunked else out.logits[last]


class ModuleEngine:
    """Decodes rows with the policy's own module; see `native.Engine`. Rows leave and none joins.

    After the prompts each row of the cache is turned to the right end, so that all rows write the same column.
    """

    joins = False
    slack = 1 / 4  # removing rows copies the others

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.pads = self.positions = torch.empty(0)
        self.cache = Cache(layer_class_to_replicate=Layer)
        self.width = 0

    def __len__(self) -> int:
        return len(self.pads)

    @property
    def tokens(self) -> int:
        return 0  # it is asked when it is empty

    def admit(self, prompts: Sequence[tuple[int, ...]]) -> Tensor:
        logits, self.cache, source = prefill(self.policy, prompts)
        width = max(len(p) for p in prompts)
        self.width = self.cache.get_seq_length()  # virtual tokens among it
        pads = torch.tensor([width - len(p) for p in dict.fromkeys(prompts)], device=logits.device)
        if bool(pads.any()):
            for layer in cast(list[Layer], self.cache.layers):
                layer.turn(pads)
        self.pads, self.positions = pads, width - 1 - pads[:, None]
        self.ragged = bool(pads.any())
        self.keep(source)
        return logits

    def keep(self, order: Sequence[int]) -> None:
        if list(order) == list(range(len(self))):
            return
        rows = torch.tensor(order, dtype=torch.long, device=self.pads.device)
        self.cache.batch_select_indices(rows)
        self.pads, self.positions = self.pads[rows], self.positions[rows]

    def step(self, token: Tensor, answers: int = 0) -> Tensor:
        # rows that are finished run on, but not past the model's last position
        self.positions = (self.positions + 1).clamp(max=self.policy.max_length - 1)
        self.width += 1
        mask = torch.arange(self.width, device=token.device) >= self.pads[:, None] if self.ragged else None
        return forward(self.policy, self.cache, token[:, None], self.positions, mask, (slice(None), -1), 1, answers)


class Layer(DynamicLayer):
    """Keys and values of one layer in a buffer that grows by blocks, where Hugging Face's concatenates at every token.

    It serves sliding-window layers too: it keeps what lies outside the window and leaves the window to the mask.
    """

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        start = self.get_seq_length()
        stop = start + key_states.shape[-2]
        if not self.is_initialized or stop > self._key_buffer.shape[-2]:
            room = stop + (max(64, stop // 4) if start else 0)
            self._key_buffer = self._grown(self.keys, key_states, room)
            self._value_buffer = self._grown(self.values, value_states, room)
            self.is_initialized = True
        self._key_buffer[:, :, start:stop] = key_states
        self._value_buffer[:, :, start:stop] = value_states
        self.keys, self.values = self._key_buffer[:, :, :stop], self._value_buffer[:, :, :stop]
        return self.keys, self.values

    def turn(self, pads: Tensor) -> None:
        """Move what each row holds to the right by its number of pads, which come round to the left end."""
        length = self.get_seq_length()
        columns = (torch.arange(length, device=pads.device) - pads[:, None]) % length
        for buffer in (self._key_buffer, self._value_buffer):
            held = buffer[:, :, :length]
            held.copy_(held.gather(2, columns[:, None, :, None].expand_as(held)))

    def batch_select_indices(self, indices: Tensor) -> None:
        length = self.get_seq_length()
        self._key_buffer = self._key_buffer[:, :, :length].index_select(0, indices)
        self._value_buffer = self._value_buffer[:, :, :length].index_select(0, indices)
        self.keys, self.values = self._key_buffer, self._value_buffer

    @staticmethod
    def _grown(held: Tensor | None, like: Tensor, room: int) -> Tensor:
        buffer = like.new_empty(*like.shape[:2], room, like.shape[-1])
        if held is not None:
            buffer[:, :, : held.shape[-2]] = held
        return buffer


def _module(policy: Policy) -> Any:
    """What is run: the decoder where the head can be applied to its last state alone."""
    return policy.decoder if policy.chunked else policy.model


def _parameters(module: Any) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(module.forward).parameters)
