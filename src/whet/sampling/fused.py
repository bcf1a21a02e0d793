"""FusedEngine: cached decoding over weights read by `layers.read`; rows leave and join while it runs.

A row's keys and values stand in columns that all rows share: every step writes one column, whenever a row joined, and a
row's position is `column - origin`. A row that leaves gives its place to another one, and answers that part take a copy
each, so that nothing is copied but what moves.

Prompts are run once, by the model's own module, and then kept in one of two ways: `shared`, once for all rows that
answer them (attention over prompt and answer is done apart and merged), or copied before each row's own columns. Shared
prompts save memory and its traffic where they are long; copies save small operations where they are short.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from whet.sampling.layers import Block, Layers
from whet.sampling.module import prefill

if TYPE_CHECKING:
    from whet.models.policy import Policy


PREFILL = 1 << 15  # padded tokens of prompts that are run at once: their activations are much larger than their keys


class FusedEngine:
    """Decodes rows; see `native.Engine`.

    Args:
        longest: most tokens of a prompt that will come.
        limit: most tokens of an answer.
        shared: whether a prompt is kept once for all its rows.
        graphs: capture each step's kernels in a CUDA graph.
        most: rows that are expected at most; more can come.
    """

    joins = True
    slack = 1 / 8

    def __init__(
        self, policy: Policy, layers: Layers, longest: int, limit: int, *, shared: bool, graphs: bool = False,
        most: int = 0,
    ) -> None:  # fmt: skip
        self.policy, self.layers, self.shared = policy, layers, shared
        self.limit, self.most = limit, most
        self.margin = 0 if shared else longest  # columns before the first answer's, for copied prompts
        self.column = self.margin  # written next
        self.first = self.margin  # no row sees an earlier column
        self.origin: list[int] = []  # of each row
        self.start: list[int] = []  # first column that each row sees
        self.entry: list[int] = []  # each row's prompt, where prompts are shared
        self.prompt_lengths: list[int] = []
        self.last = min(longest + limit, policy.max_length) - 1  # the last position that a running row reaches
        self.tables = {name: make(self.last + 1) for name, make in layers.tables.items()}
        count, device = len(layers.blocks), policy.device
        shape = (0, layers.kv_heads, 0, layers.head_size)
        self.keys = [torch.empty(shape, dtype=layers.dtype, device=device) for _ in range(count)]
        self.values = [torch.empty(shape, dtype=layers.dtype, device=device) for _ in range(count)]
        self.prompt_keys, self.prompt_values = list(self.keys), list(self.values)
        self.at = torch.zeros((), dtype=torch.long, device=device)  # `column`, where a CUDA graph can read it
        self.replay = _Graphs() if graphs else None

    def __len__(self) -> int:
        return len(self.origin)

    @property
    def tokens(self) -> int:
        """Keys and values that are held for prompts, in tokens."""
        longest = self.prompt_keys[0].shape[2] if self.shared else self.margin
        return longest * len(self.prompt_lengths if self.shared else self.origin)

    # -- rows come and go -------------------------------------------------------------------------------------------
    def admit(self, prompts: Sequence[tuple[int, ...]]) -> Tensor:
        """(n, V) logits after the prompts, whose rows stand behind the others from now on."""
        if len(parts := _parts(prompts)) > 1:
            return torch.cat([self.admit(part) for part in parts])
        logits, cache, source = prefill(self.policy, prompts)
        old, new = len(self), len(prompts)
        lengths = [len(p) for p in prompts]
        width = max(lengths)
        self._room(old + new)
        if self.shared:
            known = len(self.prompt_lengths)
            distinct = dict.fromkeys(prompts)
            self.prompt_lengths += [len(p) for p in distinct]
            for mine, theirs in ((self.prompt_keys, "keys"), (self.prompt_values, "values")):
                for i, layer in enumerate(cache.layers):
                    mine[i] = _padded(mine[i], (known + len(distinct), max(width, mine[i].shape[2])))
                    mine[i][known:, :, :width] = getattr(layer, theirs)
            self.entry += [known + s for s in source]
        else:
            pads = torch.tensor([width - len(p) for p in dict.fromkeys(prompts)], device=self.at.device)
            rows = torch.tensor(source, device=self.at.device)
            for i, layer in enumerate(cast(list[Any], cache.layers)):
                layer.turn(pads)
                self.keys[i][old : old + new, :, self.column - width : self.column] = layer.keys[rows]
                self.values[i][old : old + new, :, self.column - width : self.column] = layer.values[rows]
        self.origin += [self.column - n for n in lengths]
        self.start += [self.column - (0 if self.shared else n) for n in lengths]
        self._refresh()
        return logits

    def keep(self, order: Sequence[int]) -> None:
        """Row i goes on from the row that was `order[i]`; one may go on in several, and the others leave."""
        moved = [(i, o) for i, o in enumerate(order) if i != o]
        self._room(len(order), ahead=False)
        if moved and self.column > self.first:
            to, source = (torch.tensor(part, device=self.at.device) for part in zip(*moved, strict=True))
            for held in (*self.keys, *self.values):
                part = held[:, :, self.first : self.column]
                part.index_copy_(0, to, part.index_select(0, source))
        for name in ("origin", "start", *(("entry",) if self.shared else ())):
            held = getattr(self, name)
            setattr(self, name, [held[o] for o in order])
        if self.shared:
            self._drop_prompts()
        if order:
            self._refresh()

    def _drop_prompts(self) -> None:
        """Prompts that nobody answers any more leave too."""
        live = sorted(set(self.entry))
        if len(live) == len(self.prompt_lengths):
            return
        self.prompt_lengths = [self.prompt_lengths[e] for e in live]
        kept = torch.tensor(live, dtype=torch.long, device=self.at.device)
        width = max(self.prompt_lengths, default=0)
        for held in (self.prompt_keys, self.prompt_values):
            held[:] = [h[kept, :, :width] for h in held]
        place = {e: i for i, e in enumerate(live)}
        self.entry = [place[e] for e in self.entry]

    def _room(self, rows: int, ahead: bool = True) -> None:
        """Room for so many rows, and for one more column if it is `ahead`; what no row sees any more is dropped."""
        held_rows, _, columns, _ = self.keys[0].shape
        if rows <= held_rows and self.column < columns + (not ahead):
            return
        if rows > held_rows:  # answers part at every step: not each time all over again
            rows = max(rows, min(2 * held_rows, self.most))
        used = self.column - self.first if self.origin else 0
        shift = self.first - max(0, self.margin - used) if self.origin else self.column - self.margin
        room = self.column - shift + min(self.limit, max(64, used // 2))
        for held in (self.keys, self.values):
            for i, before in enumerate(held):
                # zeros: what a mask hides must still be finite
                held[i] = before.new_zeros(max(rows, held_rows), before.shape[1], room, before.shape[3])
                if n := len(self):
                    held[i][:n, :, self.first - shift : self.column - shift] = before[:n, :, self.first : self.column]
        self.column -= shift
        self.first -= shift
        self.origin = [o - shift for o in self.origin]
        self.start = [s - shift for s in self.start]
        if self.origin:
            self._refresh()

    def _refresh(self) -> None:
        """The tensors of the rows, after they or their columns changed."""
        device = self.at.device
        self.first = min(self.start)
        self.origins = torch.tensor(self.origin, device=device)
        self.starts = torch.tensor(self.start, device=device)
        self.ragged = max(self.start) > self.first
        if self.replay:
            self.replay.forget()
        if not self.shared:
            return
        seen = [0] * len(self.prompt_lengths)
        places = []
        for e in self.entry:
            places.append((e, seen[e]))
            seen[e] += 1
        self.most = max(seen)  # rows of one prompt: the grouped queries are padded to it
        self.slots = torch.tensor([e * self.most + j for e, j in places], device=device)
        width = self.prompt_keys[0].shape[2]
        columns = torch.arange(width, device=device)
        lengths = torch.tensor(self.prompt_lengths, device=device)
        hidden = columns >= lengths[:, None]
        self.prompt_bias = _bias(hidden[:, None, None], self.layers.dtype) if bool(hidden.any()) else None

    # -- a step -----------------------------------------------------------------------------------------------------
    def step(self, token: Tensor, answers: int = 0) -> Tensor:
        """(R, V) logits after one more token a row; the meter counts it for `answers`, which the rows are run for."""
        self._room(len(self))
        policy, width = self.policy, self.column + 1 - self.first
        seen = width + (self.prompt_keys[0].shape[2] if self.shared else 0)
        answers = answers or len(self)
        policy.meter.flops += policy.shapes.forward(answers, seen, answers)
        self.at.fill_(self.column)
        if self.replay:
            width = min(-(-width // 64) * 64, self.keys[0].shape[2] - self.first)  # few shapes: few graphs
            logits = self.replay(lambda t: self._forward(t, width), token, (len(self), width))
        else:
            logits = self._forward(token, width)
        self.column += 1
        return logits

    def _forward(self, token: Tensor, width: int) -> Tensor:
        layers, rows = self.layers, len(token)
        position = (self.at - self.origins).clamp(max=self.last)  # rows that are finished run on
        x = layers.embed(token)
        if layers.learnt_positions is not None:
            x = x + layers.learnt_positions[position]
        turns = {name: (cos[position][:, None], sin[position][:, None]) for name, (cos, sin) in self.tables.items()}
        masks = {w: self._mask(w, width) for w in {b.window for b in layers.blocks}}
        at = self.at[None]
        heads, kv, size = layers.heads, layers.kv_heads, layers.head_size
        for i, block in enumerate(layers.blocks):
            qkv = block.qkv(block.before(x)).view(rows, heads + 2 * kv, size)
            qk, v = qkv[:, : heads + kv], qkv[:, heads + kv :]
            if block.head_norm is not None:
                weight, eps = block.head_norm
                qk = F.rms_norm(qk.to(weight.dtype), (size,), None, eps) * weight
            if turns:
                qk = _rotate(qk, *turns[block.rope])
            qk = qk.to(layers.dtype)
            q = qk[:, :heads].reshape(rows, kv, heads // kv, size)
            keys, values = self.keys[i][:rows], self.values[i][:rows]
            keys.index_copy_(2, at, qk[:, heads:, None])
            values.index_copy_(2, at, v[:, :, None].to(layers.dtype))
            keys, values = (t[:, :, self.first : self.first + width] for t in (keys, values))
            mask, prompt_mask = masks[block.window]
            if self.shared:
                out = self._merged(block, q, keys, values, mask, i, prompt_mask)
            elif block.softcap:
                out, _, total = _part(q, keys, values, mask, block)
                out = out / total
            else:
                out = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=block.scale)
            x = block.finish(x, out.reshape(rows, heads * size))
        return layers.logits(x)

    def _mask(self, window: int, width: int) -> tuple[Tensor | None, Tensor | None]:
        """(R, 1, 1, width) added to scores over the rows' own columns, and (P, 1, queries or 1, prompt width) to those
        over shared prompts; None where nothing is hidden."""
        layers = self.layers
        columns = torch.arange(self.first, self.first + width, device=self.at.device)
        own = None
        if self.ragged or window or self.replay:
            hidden = (columns < self.starts[:, None]) | (columns > self.at)
            if window:
                hidden = hidden | (columns <= self.at - window)
            own = _bias(hidden[:, None, None], layers.dtype)
        if not self.shared or not window:
            return own, self.prompt_bias if self.shared else None
        count, group = len(self.prompt_lengths), layers.heads // layers.kv_heads
        position = self.at.new_zeros(count * self.most).index_copy(0, self.slots, self.at - self.origins)
        prompt = torch.arange(self.prompt_keys[0].shape[2], device=self.at.device)
        far = (prompt <= position[:, None] - window).view(count, self.most, 1, -1)
        far = far.expand(-1, -1, group, -1).reshape(count, 1, self.most * group, -1)
        bias = _bias(far, layers.dtype)
        return own, bias if self.prompt_bias is None else torch.minimum(bias, self.prompt_bias)

    def _merged(
        self, block: Block, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, i: int, prompt_mask: Tensor | None
    ) -> Tensor:  # fmt: skip
        """Attention over a shared prompt, with the queries of all its rows at once, and over the rows' own columns."""
        _, kv, group, size = q.shape
        count = len(self.prompt_lengths)
        grouped = q.new_zeros(count * self.most, kv, group, size).index_copy_(0, self.slots, q)
        grouped = grouped.view(count, self.most, kv, group, size).transpose(1, 2).reshape(count, kv, -1, size)

        def apart(t: Tensor) -> Tensor:
            t = t.view(count, kv, self.most, group, -1).transpose(1, 2).reshape(count * self.most, kv, group, -1)
            return t[self.slots]

        theirs = map(apart, _part(grouped, self.prompt_keys[i], self.prompt_values[i], prompt_mask, block))
        mine = _part(q, keys, values, mask, block)
        (a, a_top, a_sum), (b, b_top, b_sum) = theirs, mine
        top = torch.maximum(a_top, b_top)
        a_share, b_share = (a_top - top).exp_(), (b_top - top).exp_()
        return (a * a_share + b * b_share) / (a_sum * a_share + b_sum * b_share)


def _parts(prompts: Sequence[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    """Prompts that are run together; equal neighbours, which are run once, stay together."""
    parts: list[list[tuple[int, ...]]] = []
    distinct = width = 0
    for i, prompt in enumerate(prompts):
        new = i == 0 or prompt != prompts[i - 1]
        if not parts or (new and (distinct + 1) * max(width, len(prompt)) > PREFILL):
            parts.append([])
            distinct = width = 0
        parts[-1].append(prompt)
        distinct, width = distinct + new, max(width, len(prompt))
    return parts


def _part(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, block: Block) -> tuple[Tensor, Tensor, Tensor]:
    """Attention over a part of the keys: values weighted by exp(score - top), the top score, and the sum of weights."""
    scores = torch.matmul(q * block.scale, keys.transpose(-1, -2))
    scores = scores if scores.dtype == torch.float64 else scores.float()
    if block.softcap:
        scores = torch.tanh(scores / block.softcap) * block.softcap
    if mask is not None:
        scores = scores + mask
    top = scores.amax(-1, keepdim=True)
    weights = (scores - top).exp_()
    return torch.matmul(weights.to(values.dtype), values).to(weights.dtype), top, weights.sum(-1, keepdim=True)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of (R, heads, D) with signed sines: the halves of the rotated part change places."""
    turned, size = x, cos.shape[-1]
    if size < x.shape[-1]:
        turned = x[..., :size]
    turned = torch.addcmul(turned * cos, turned.roll(size // 2, -1), sin)
    return turned if size == x.shape[-1] else torch.cat([turned, x[..., size:]], -1)


def _bias(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to scores. Its floor is finite: a row that sees nothing of its prompt (a window) has no NaN."""
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, torch.finfo(dtype).min / 4)


def _padded(held: Tensor, shape: tuple[int, int]) -> Tensor:
    """With so many rows and columns; zeros where nothing was held, since 0 x NaN would be NaN."""
    out = held.new_zeros(shape[0], held.shape[1], shape[1], held.shape[3])
    out[: held.shape[0], :, : held.shape[2]] = held
    return out


class _Graphs:
    """CUDA graphs of steps, one for each shape, until rows or columns change. Not run on a GPU yet."""

    def __init__(self) -> None:
        self.held: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}

    def forget(self) -> None:
        self.held.clear()

    def __call__(self, run: Callable[[Tensor], Tensor], token: Tensor, key: tuple[int, int]) -> Tensor:
        if token.device.type != "cuda":
            return run(token)
        if key not in self.held:
            given = token.clone()
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                run(given)  # kernels are chosen and workspaces made outside the capture
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                logits = run(given)
            self.held[key] = graph, given, logits
        graph, given, logits = self.held[key]
        given.copy_(token)
        graph.replay()
        return logits
