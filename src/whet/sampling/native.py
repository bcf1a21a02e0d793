"""NativeSampler: cached decoding with the Hugging Face module itself, many answers at a time.

What it does beyond `generate`: a prompt is run once however many answers it has; the cache is a buffer that grows by
blocks; finished answers leave the batch; each answer has its own settings and its own random numbers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from whet.models.meter import autocast
from whet.records import Sample
from whet.sampling.answers import Answer, Draw, answers_of, stopped
from whet.sampling.sampler import Request

if TYPE_CHECKING:
    from whet.models.policy import Policy

KEEP = 0.75  # the batch is compacted when no more than this share of its rows still runs


class NativeSampler:
    """Draws answers with a key-value cache.

    Args:
        batch_size: most answers decoded together.
        cache_bytes: most memory of their keys and values, estimated from prompt and budget; None: 4 GiB on a CPU, a
            third of the memory that is free on a GPU.
    """

    name = "native"

    def __init__(self, batch_size: int = 512, cache_bytes: int | None = None) -> None:
        self.batch_size = batch_size
        self.cache_bytes = cache_bytes

    def sample(
        self, policy: Policy, requests: Sequence[Request], on_token: Callable[[int, int], None] | None = None
    ) -> list[list[Sample]]:
        units = answers_of(policy, requests)
        drawn: dict[int, Sample] = {}
        for chunk in self._chunks(policy, units):
            drawn.update(_decode(policy, chunk, on_token))
        return [[drawn[a.index] for a in unit] for unit in units]

    def _chunks(self, policy: Policy, units: list[list[Answer]]) -> Iterator[list[Answer]]:
        """Answers that are decoded together: prompts of like length, the answers of a request in one chunk where they
        fit."""
        tokens = (self.cache_bytes or _free_bytes(policy.device)) // _token_bytes(policy)
        chunk: list[Answer] = []
        width = 0
        for unit in sorted(filter(None, units), key=lambda u: (len(u[0].prompt), u[0].prompt)):
            length = len(unit[0].prompt) + unit[0].limit
            room = max(1, min(self.batch_size, tokens // max(width, length)))
            if chunk and len(chunk) + len(unit) > room:
                yield chunk
                chunk, width = [], 0
                room = max(1, min(self.batch_size, tokens // length))
            width = max(width, length)
            chunk = chunk + unit
            while len(chunk) > room:
                yield chunk[:room]
                chunk = chunk[room:]
        if chunk:
            yield chunk


def unsupported(policy: Policy) -> str | None:
    """Why this architecture cannot be decoded here, or None: its layers must be plain or sliding attention."""
    config = policy.model.config
    if getattr(config, "is_encoder_decoder", False):
        return "it is an encoder-decoder"
    if not {"cache", "past_key_values"} & _parameters(_module(policy)).keys():
        return "its forward takes no key-value cache"
    other = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    return f"it has layers of type {', '.join(sorted(other))}" if other else None


def _decode(
    policy: Policy, answers: list[Answer], on_token: Callable[[int, int], None] | None
) -> Iterator[tuple[int, Sample]]:
    device = policy.device
    draw = Draw(answers, device)
    model = _Cached(policy, [a.prompt for a in answers])
    ends = torch.tensor(sorted(policy.format.end_ids), device=device)
    limits = torch.tensor([a.limit for a in answers], device=device)
    stopping = any(a.settings.stop for a in answers)
    shape = (len(answers), int(limits.max()))
    ids = torch.zeros(shape, dtype=torch.long, device=device)
    logprobs, entropies = torch.zeros(shape, device=device), torch.zeros(shape, device=device)
    lengths = torch.zeros_like(limits)
    every = 1 if device.type == "cpu" or on_token else 8  # asking a GPU how many rows still run makes it wait

    rows = torch.arange(len(answers), device=device)
    live = torch.ones_like(rows, dtype=torch.bool)  # False: finished, not yet removed; what it draws is not kept
    logits = model.prefill()
    for step in range(shape[1]):
        token, logprob, entropy = draw(logits, rows, step)
        ids[rows, step], logprobs[rows, step], entropies[rows, step] = token, logprob.float(), entropy.float()
        lengths[rows] += live
        if on_token:
            for row, running, t in zip(rows.tolist(), live.tolist(), token.tolist(), strict=True):
                if running:
                    on_token(answers[row].index, t)
        live = live & (token[:, None] != ends).all(-1) & (limits[rows] > step + 1)
        if stopping:
            live &= ~_stopped_rows(policy, answers, rows, live, ids[:, : step + 1])
        if (step + 1) % every == 0:
            running = int(live.sum())
            if not running:
                break
            if running <= KEEP * len(rows):
                kept = live.nonzero()[:, 0]
                rows, token, live = rows[kept], token[kept], live[kept]
                model.select(kept)
        if step + 1 < shape[1]:
            logits = model.step(token, live)
    count = lengths.tolist()
    policy.meter.sampled_tokens += sum(count)
    ids, logprobs, entropies = ids.tolist(), logprobs.cpu(), entropies.cpu()
    for row, (answer, n) in enumerate(zip(answers, count, strict=True)):
        yield answer.index, answer.sample(policy, ids[row][:n], logprobs[row, :n], entropies[row, :n])


def _stopped_rows(policy: Policy, answers: list[Answer], rows: Tensor, live: Tensor, ids: Tensor) -> Tensor:
    """(R,) bool: running rows whose answer has just reached one of its stop strings."""
    hit = torch.zeros(len(rows), dtype=torch.bool)
    for at in live.nonzero()[:, 0].tolist():
        stop = answers[int(rows[at])].settings.stop
        hit[at] = bool(stop) and stopped(policy, ids[rows[at]].tolist(), stop)
    return hit.to(live.device)


class _Cached:
    """The policy's module over a cache that belongs to one chunk of answers.

    Prompts are run padded on the right, where causal attention needs no mask and no row is without a key; then each
    row of the cache is turned to the right end, so that from there on all rows write the same column.

    Args:
        prompts: token ids of each answer; equal prompts are run once.
    """

    def __init__(self, policy: Policy, prompts: Sequence[tuple[int, ...]]) -> None:
        self.policy = policy
        self.module = _module(policy)
        self.cache = Cache(layer_class_to_replicate=_Layer)
        distinct = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
        self.source = torch.tensor([distinct[p] for p in prompts], device=policy.device)
        self.width = max(len(p) for p in prompts)
        self.prompts = torch.tensor([[*p] + [0] * (self.width - len(p)) for p in distinct], device=policy.device)
        self.pads = torch.tensor([self.width - len(p) for p in distinct], device=policy.device)
        self.positions = torch.arange(self.width, device=policy.device).expand_as(self.prompts)
        self.deepest = self.width - min(len(p) for p in prompts)
        known = _parameters(self.module)
        self.cache_name = "cache" if "cache" in known else "past_key_values"
        self.takes_positions = "position_ids" in known
        self.takes_keep = not policy.chunked and "logits_to_keep" in known

    def prefill(self) -> Tensor:
        """(R, V) logits after the prompts, a row an answer."""
        rows = torch.arange(len(self.prompts), device=self.prompts.device)
        logits = self._forward(self.prompts, None, (rows, -1 - self.pads), self.deepest + 1)
        if self.deepest:
            for layer in cast(list[_Layer], self.cache.layers):
                layer.turn(self.pads)
        self.positions = self.positions[:, -1:] - self.pads[:, None]
        if len(self.source) > len(rows):
            self.select(self.source)
            logits = logits[self.source]
        return logits

    def step(self, token: Tensor, live: Tensor) -> Tensor:
        """(R, V) logits after one more token a row. Rows that are not live stay where they are: nobody reads them, and
        they must not run past the model's last position."""
        self.positions = self.positions + live[:, None]
        self.width += 1
        mask = torch.arange(self.width, device=token.device) >= self.pads[:, None] if self.deepest else None
        return self._forward(token[:, None], mask, (slice(None), -1), 1)

    def select(self, rows: Tensor) -> None:
        """Keep, repeat or reorder rows."""
        self.cache.batch_select_indices(rows)
        self.pads, self.positions = self.pads[rows], self.positions[rows]

    def _forward(self, ids: Tensor, mask: Tensor | None, last: tuple[Any, Any], keep: int) -> Tensor:
        """Logits at the position `last` of each row, which is among the `keep` last ones."""
        policy = self.policy
        inputs: dict[str, Any] = {self.cache_name: self.cache, "use_cache": True, "attention_mask": mask}
        if self.takes_positions:
            inputs["position_ids"] = self.positions
        if self.takes_keep:
            inputs["logits_to_keep"] = keep
        policy.meter.flops += policy.shapes.forward(ids.numel(), self.width, len(ids))
        with autocast(policy.device, policy.mixed):
            out = self.module(input_ids=ids, **inputs)
        return policy.head(out.last_hidden_state[last]) if policy.chunked else out.logits[last]


class _Layer(DynamicLayer):
    """Keys and values of one layer in a buffer that grows by blocks, where Hugging Face's concatenates at every token.

    It serves sliding-window layers too: it keeps what lies outside the window and leaves the window to the mask.
    """

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        start = self.get_seq_length()
        stop = start + key_states.shape[-2]
        if not self.is_initialized or stop > self._key_buffer.shape[-2]:
            room = stop + max(64, stop // 4)
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
        self._key_buffer = self._key_buffer.index_select(0, indices)
        self._value_buffer = self._value_buffer.index_select(0, indices)
        self.keys, self.values = self._key_buffer[:, :, :length], self._value_buffer[:, :, :length]

    @staticmethod
    def _grown(held: Tensor | None, like: Tensor, room: int) -> Tensor:
        buffer = like.new_empty(*like.shape[:2], room, like.shape[-1])
        if held is not None:
            buffer[:, :, : held.shape[-2]] = held
        return buffer


def _module(policy: Policy) -> Any:
    """What is run at each step: the decoder where the head can be applied to its last state alone."""
    return policy.decoder if policy.chunked else policy.model


def _parameters(module: Any) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(module.forward).parameters)


def _token_bytes(policy: Policy) -> int:
    """Memory of one token's keys and values."""
    config = policy.model.config
    heads = getattr(config, "num_attention_heads", None) or 1
    share = (getattr(config, "num_key_value_heads", None) or heads) / heads
    return max(1, int(2 * policy.shapes.attention * share * policy.dtype.itemsize))


def _free_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] // 3 if device.type == "cuda" else 4 << 30
