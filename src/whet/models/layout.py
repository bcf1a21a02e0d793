"""Layout: which tokens of some sequences go through the layers, side by side in one row, and who attends to whom.

What sequences begin with alike is a *trunk* and is run once; what each goes on with is a *branch*, which attends to its
trunk and to itself. Norms and matrix products see only real tokens; attention is cut into a few calls over rows of like
length. Nothing after a sequence's last wanted position is run.

    plain padding                         layout
    q q q q a a a .                       q q q q | a a a | b b b b b | c c
    q q q q b b b b b      three rows     trunk     three branches
    q q q q c c . . .
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

SHORTEST = 4  # tokens: a shorter common beginning is no trunk
SHARE = 1 / 8  # nor is one below this share of its sequences: masked attention costs about what it saves
ALIKE = 0.7  # rows down to this share of the longest one are padded to it: another call costs about as much
# A trunk's keys are copied for each row of branches. Branches in one row save copies and cost products with each other,
# which are masked: measured on a CPU, up to the trunk's length together they are never dearer than a row each.
BESIDE = 2 / 3


Span = tuple[int, int]  # of tokens in the row: the first, and the one after the last


@dataclass
class Index:
    """Places (M,) and the tokens that stand there. Going back, what came of a token is summed in a fixed order: PyTorch's
    own backward sums in the order of threads, so that a run would not be repeated to the bit.

    Attributes:
        tokens: (M,) the token at each place.
        turns: for k = 0, 1 ... the tokens that stand in more than k places, and their k-th place.
    """

    tokens: Tensor
    turns: list[tuple[Tensor, Tensor]]

    @classmethod
    def of(cls, tokens: Tensor, real: Tensor | None = None) -> Index:
        """The index of `tokens` (any shape); places that are not `real` have no gradient."""
        tokens = tokens.flatten()
        places = torch.arange(len(tokens), device=tokens.device) if real is None else real.flatten().nonzero()[:, 0]
        order = places[tokens[places].argsort(stable=True)]
        _, counts = tokens[order].unique_consecutive(return_counts=True)
        first = (counts.cumsum(0) - counts).repeat_interleave(counts)
        turn = torch.arange(len(order), device=tokens.device) - first
        most = int(counts.max()) if len(counts) else 0
        return cls(tokens, [(tokens[own], own) for own in (order[turn == k] for k in range(most))])

    def gather(self, values: Tensor) -> Tensor:
        """(M, ...) of (N, ...)."""
        return _Gather.apply(values, self)

    def to(self, device: torch.device | str) -> Index:
        return Index(self.tokens.to(device), [(t.to(device), p.to(device)) for t, p in self.turns])


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, index: Index) -> Tensor:
        ctx.index, ctx.size = index, len(values)
        return values.index_select(0, index.tokens)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (tokens, places), *more = ctx.index.turns or [(ctx.index.tokens[:0], ctx.index.tokens[:0])]
        found = grad.index_select(0, places)
        if len(tokens) < ctx.size:
            found = grad.new_zeros(ctx.size, *grad.shape[1:]).index_copy_(0, tokens, found)
        for tokens, places in more:
            found = found.index_add(0, tokens, grad.index_select(0, places))
        return found, None


@dataclass
class Part:
    """One call of attention: R rows of Q queries and K keys.

    Attributes:
        queries, keys: (R, Q), (R, K) tokens of the layout; a row that is shorter repeats its last one.
        real: (R, K) bool, False on such keys.
        causal: whether keys are the queries, in order, so that causal attention needs no mask.
    """

    queries: Tensor
    keys: Tensor
    real: Tensor
    causal: bool


@dataclass
class Layout:
    """N tokens in one row.

    Attributes:
        ids, positions: (N,) token ids, and their positions in their sequences.
        segments: (N,) the trunk or branch that a token belongs to; `parents`: (N,) a branch token's trunk, else its own.
        parts: the calls of attention.
        queries, keys: those of all parts, one after another: gathered at once, a token's gradient is added up once.
        place: of each token: where its output stands among those of all parts, one after another.
        starts, offsets: (sequences,) where a sequence's trunk starts, and where its branch does less the trunk's length.
        lengths: (sequences,) its trunk's length.
    """

    ids: Tensor
    positions: Tensor
    segments: Tensor
    parents: Tensor
    parts: list[Part]
    queries: Index
    keys: Index
    place: Index
    starts: Tensor
    offsets: Tensor
    lengths: Tensor
    _masks: dict[tuple[int, int | None, torch.dtype], Tensor | None] = field(default_factory=dict)
    _blocks: dict[int | None, BlockMask] = field(default_factory=dict)

    @classmethod
    def of(
        cls, sequences: Sequence[Sequence[int]], device: torch.device | str = "cpu", *, share: bool = True
    ) -> Layout:
        """The layout of token sequences.

        Args:
            sequences: token ids of each as far as they are wanted; may be empty.
            share: run common beginnings once.
        """
        tables = [np.asarray(s, dtype=np.int64) for s in sequences]
        groups = common(tables) if share else [([i], 0) for i, s in enumerate(tables) if len(s)]
        writer = _Writer(tables)
        for members, trunk in groups:
            writer.write(members, trunk)
        return writer.layout(device)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def pairs(self) -> int:
        """Products of a query and a key that attention computes, padding included."""
        return sum(p.queries.numel() * p.keys.shape[1] for p in self.parts)

    def find(self, sequence: Tensor, position: Tensor) -> Tensor:
        """Where the tokens at these positions of these sequences are in the row."""
        inside = position < self.lengths[sequence]
        return position + torch.where(inside, self.starts[sequence], self.offsets[sequence])

    def mask(self, index: int, window: int | None = None) -> Tensor | None:
        """(R, 1, Q, K) bool, True where a query of a part may attend to a key; None for plain causal attention.

        Args:
            window: how far back a token sees, itself included; None all the way.
        """
        part = self.parts[index]
        if part.causal and (window is None or window >= part.keys.shape[1]):
            return None
        key = (index, window, torch.bool)
        if key not in self._masks:
            query, seen = part.queries[:, :, None], part.keys[:, None, :]
            distance = self.positions[query] - self.positions[seen]
            segment = self.segments[seen]
            allowed = (segment == self.segments[query]) | (segment == self.parents[query])
            allowed &= (distance >= 0) & part.real[:, None, :]
            if window is not None:
                allowed &= distance < window
            self._masks[key] = allowed[:, None]
        return self._masks[key]

    def blocks(self, window: int | None = None) -> BlockMask:
        """The same for all tokens at once, as FlexAttention takes it: which blocks of the N x N products there are."""
        if window not in self._blocks:
            segments, parents, positions = self.segments, self.parents, self.positions

            def allowed(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
                own = (segments[key] == segments[query]) | (segments[key] == parents[query])
                distance = positions[query] - positions[key]
                return own & (distance >= 0) & ((distance < window) if window is not None else True)

            n = len(self)
            self._blocks[window] = create_block_mask(allowed, None, None, n, n, device=self.ids.device)
        return self._blocks[window]

    def bias(self, index: int, window: int | None, dtype: torch.dtype) -> Tensor:
        """The same as a number that is added to scores: 0 or the lowest of `dtype`."""
        key = (index, window, dtype)
        if key not in self._masks:
            part = self.parts[index]
            allowed = self.mask(index, window)
            if allowed is None:
                rows, width = part.queries.shape
                allowed = torch.ones(width, width, dtype=torch.bool, device=self.ids.device).tril()
                allowed = allowed.expand(rows, 1, -1, -1)
            self._masks[key] = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(
                ~allowed, torch.finfo(dtype).min
            )
        bias = self._masks[key]
        assert bias is not None
        return bias


def common(sequences: Sequence[np.ndarray]) -> list[tuple[list[int], int]]:
    """Groups of sequences and how many tokens each group begins with alike, so that the most tokens are saved.

    Sequences with a like beginning are neighbours in sorted order, so the best grouping is a best cut of that order. A
    trunk worth less than `SHORTEST` and `SHARE` is none; empty sequences are left out.
    """
    order = sorted((i for i, s in enumerate(sequences) if len(s)), key=lambda i: sequences[i].tolist())
    lengths = np.array([len(sequences[i]) for i in order])
    ordered = [sequences[i] for i in order]
    alike = np.array([_alike(a, b) for a, b in itertools.pairwise(ordered)], dtype=np.int64)
    saved = np.zeros(len(order) + 1)
    cuts = np.zeros(len(order) + 1, dtype=np.int64)
    total = np.concatenate([[0], np.cumsum(lengths)])
    for stop in range(1, len(order) + 1):
        # groups [start, stop) of two and more, the shortest first
        starts = np.arange(stop - 2, -1, -1)
        trunks = np.minimum.accumulate(alike[: stop - 1][::-1])
        ends = np.flatnonzero(trunks < SHORTEST)
        starts, trunks = (x[: ends[0]] if len(ends) else x for x in (starts, trunks))
        members = stop - starts
        worth = trunks * members >= SHARE * (total[stop] - total[starts])
        gains = np.where(worth, saved[starts] + (members - 1) * trunks, -1)
        best = int(gains.argmax()) if len(gains) else 0
        if len(gains) and gains[best] > saved[stop - 1]:
            saved[stop], cuts[stop] = gains[best], starts[best]
        else:
            saved[stop], cuts[stop] = saved[stop - 1], stop - 1
    groups: list[tuple[list[int], int]] = []
    stop = len(order)
    while stop:
        start = int(cuts[stop])
        groups.append((sorted(order[start:stop]), int(alike[start : stop - 1].min()) if stop - start > 1 else 0))
        stop = start
    return groups[::-1]


def _alike(a: np.ndarray, b: np.ndarray) -> int:
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if len(differ) else n


class _Writer:
    """Writes groups into the row, then cuts it into parts."""

    def __init__(self, sequences: Sequence[np.ndarray]) -> None:
        self.sequences = sequences
        self.size = 0
        self.ids: list[np.ndarray] = []
        self.positions: list[np.ndarray] = []
        self.segments: list[tuple[int, int]] = []  # length and parent of each
        self.whole: list[Span] = []  # spans [start, stop) that attend to themselves
        self.rows: list[tuple[Span, Span]] = []  # spans of branches, and of their trunk
        self.starts, self.offsets, self.lengths = (np.zeros(len(sequences), dtype=np.int64) for _ in range(3))

    def write(self, members: list[int], trunk: int) -> None:
        """One group: its trunk, then each member's branch; without a trunk the one member is written whole."""
        first = self.sequences[members[0]]
        if not trunk:
            (only,) = members
            self.starts[only] = self.size
            self.lengths[only] = len(first)
            self.whole.append(self._segment(first, 0, None))
            return
        parent = len(self.segments)
        stem = self._segment(first[:trunk], 0, None)
        self.whole.append(stem)
        spans = []
        for member in members:
            self.starts[member], self.lengths[member] = stem[0], trunk
            self.offsets[member] = self.size - trunk
            if len(self.sequences[member]) > trunk:
                spans.append(self._segment(self.sequences[member][trunk:], trunk, parent))
        if spans:
            beside = max(1, int(BESIDE * trunk * len(spans) / sum(stop - start for start, stop in spans)))
            for at in range(0, len(spans), beside):
                row = spans[at : at + beside]
                self.rows.append(((row[0][0], row[-1][1]), stem))

    def _segment(self, ids: np.ndarray, position: int, parent: int | None) -> Span:
        start, self.size = self.size, self.size + len(ids)
        self.ids.append(ids)
        self.positions.append(np.arange(position, position + len(ids)))
        self.segments.append((len(ids), len(self.segments) if parent is None else parent))
        return start, self.size

    def layout(self, device: torch.device | str) -> Layout:
        cut: list[
            tuple[Tensor, Tensor, Tensor, Tensor, bool]
        ] = []  # queries, which are real, keys, which are real, causal
        place = np.zeros(self.size, dtype=np.int64)
        done = 0
        rows = [(span, span, True) for span in self.whole] + [(span, stem, False) for span, stem in self.rows]
        for causal in (True, False):
            for part in _like([(q, k) for q, k, c in rows if c == causal], causal):
                queries, real_queries = _indices([[q] for q, _ in part])
                keys, real = _indices([[q] if causal else [k, q] for q, k in part])
                for row, ((start, stop), _) in enumerate(part):
                    place[start:stop] = done + row * queries.shape[1] + np.arange(stop - start)
                done += queries.size
                q, real_q, k, real_k = (torch.from_numpy(x) for x in (queries, real_queries, keys, real))
                cut.append((q, real_q, k, real_k, causal))
        sizes = [n for n, _ in self.segments]
        tables = [
            np.concatenate([np.zeros(0, np.int64), *self.ids]),
            np.concatenate([np.zeros(0, np.int64), *self.positions]),
            np.repeat(np.arange(len(sizes)), sizes),
            np.repeat(np.array([p for _, p in self.segments], dtype=np.int64), sizes),
        ]
        ids, positions, segments, parents = (torch.from_numpy(x).to(device) for x in tables)
        starts, offsets, lengths = (torch.from_numpy(x).to(device) for x in (self.starts, self.offsets, self.lengths))
        parts = [Part(q.to(device), k.to(device), real.to(device), causal) for q, _, k, real, causal in cut]
        queries = _index([(q, real) for q, real, _, _, _ in cut])
        keys = queries if all(causal for *_, causal in cut) else _index([(k, real) for _, _, k, real, _ in cut])
        queries, keys, where = (x.to(device) for x in (queries, keys, Index.of(torch.from_numpy(place))))
        return Layout(ids, positions, segments, parents, parts, queries, keys, where, starts, offsets, lengths)


def _index(tables: list[tuple[Tensor, Tensor]]) -> Index:
    """The index of some tables of tokens, one after another."""
    tokens, real = (torch.cat([x.flatten() for x in column]) for column in zip(*tables, strict=True))
    return Index.of(tokens, real)


def _like(rows: list[tuple[Span, Span]], causal: bool) -> list[list[tuple[Span, Span]]]:
    """Rows in parts of like length, the longest first."""

    def size(row: tuple[Span, Span]) -> int:
        return sum(stop - start for start, stop in (row[:1] if causal else row))

    parts: list[list[tuple[Span, Span]]] = []
    for row in sorted(rows, key=size, reverse=True):
        if not parts or size(row) < ALIKE * size(parts[-1][0]):
            parts.append([])
        parts[-1].append(row)
    return parts


def _indices(rows: list[list[Span]]) -> tuple[np.ndarray, np.ndarray]:
    """(R, W) the tokens of each row's spans, a shorter row filled up with its last one; and which are real."""
    listed = [np.concatenate([np.arange(*span) for span in row]) for row in rows]
    sizes = np.array([len(row) for row in listed])
    columns = np.arange(sizes.max())
    return np.stack([row[np.minimum(columns, len(row) - 1)] for row in listed]), columns < sizes[:, None]
