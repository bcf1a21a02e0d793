"""NativeSampler: cached decoding, many answers at a time.

What it does beyond `generate`: what the answers to a prompt begin with alike is run once, up to the token where each goes
its own way, and a long prompt is kept once too; a step of a known architecture costs little beyond its matrix products
(`fused.FusedEngine`; `module.ModuleEngine` runs the Hugging Face module for the others); finished answers leave the batch
and waiting ones take their places; each answer has its own settings and its own random numbers.

A *row* is what the engine runs, an *answer* what is drawn: answers that have been the same so far read one row. On a GPU,
where more rows cost next to nothing and asking which tokens were drawn makes it wait, each answer has a row from its first
token on.

Decoding is done in the policy's own precision: `dtype=mixed` runs sampling *and* learning in bf16, so that the two agree.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from whet.records import Sample
from whet.sampling.answers import Answer, Draw, answers_of, stopped
from whet.sampling.fused import FusedEngine
from whet.sampling.layers import Layers, Unreadable, read
from whet.sampling.module import ModuleEngine
from whet.sampling.sampler import Request

if TYPE_CHECKING:
    from whet.models.policy import Policy

log = logging.getLogger("whet")

ALIKE = ("cpu",)  # devices where answers that are the same so far read one row
SHARED = 64  # prompts of groups are kept once, not copied, from so many tokens on


class Engine(Protocol):
    """Rows over a key-value cache.

    Attributes:
        joins: whether rows can be admitted while others run.
        slack: finished rows are removed when they are at least this share.
        tokens: keys and values that it holds for prompts, in tokens.
    """

    joins: bool
    slack: float

    @property
    def tokens(self) -> int: ...
    def __len__(self) -> int: ...
    def admit(self, prompts: Sequence[tuple[int, ...]]) -> Tensor:
        """(n, V) logits after the prompts, whose rows stand behind the others from now on."""
        ...

    def step(self, token: Tensor, answers: int = 0) -> Tensor:
        """(R, V) logits after one more token a row; the meter counts it for `answers`, which the rows are run for."""
        ...

    def keep(self, order: Sequence[int]) -> None:
        """Row i goes on from the row that was `order[i]`; one may go on in several, and the others leave."""
        ...


class NativeSampler:
    """Draws answers with a key-value cache.

    Args:
        batch_size: most answers decoded together.
        cache_bytes: most memory of their keys and values, estimated from prompt and budget; None: 4 GiB on a CPU, a
            third of the memory that is free on a GPU.
        graphs: on a GPU, capture the decoding step in CUDA graphs. Off until it has been measured on one.

    Attributes:
        engine: how the last call decoded: `fused` or `module`, and why.
    """

    name = "native"

    def __init__(self, batch_size: int = 512, cache_bytes: int | None = None, graphs: bool = False) -> None:
        self.batch_size = batch_size
        self.cache_bytes = cache_bytes
        self.graphs = graphs
        self.engine = ""

    def sample(
        self, policy: Policy, requests: Sequence[Request], on_token: Callable[[int, int], None] | None = None
    ) -> list[list[Sample]]:
        units = answers_of(policy, requests)
        waiting = [unit for unit in units if unit]
        if not waiting:
            return [[] for _ in units]
        layers = self._layers(policy)
        queue = Queue(
            waiting, self.batch_size, (self.cache_bytes or _free_bytes(policy.device)) // _token_bytes(policy)
        )
        engine: Engine
        if layers is None:
            engine = ModuleEngine(policy)
        else:
            graphs = self.graphs and policy.device.type == "cuda"
            engine = FusedEngine(
                policy, layers, queue.longest, queue.limit, shared=queue.grouped >= SHARED, graphs=graphs,
                most=min(queue.most, queue.tokens // (queue.longest + queue.limit)),
            )  # fmt: skip
        drawn = dict(_decode(policy, engine, queue, on_token))
        return [[drawn[a.index] for a in unit] for unit in units]

    def _layers(self, policy: Policy) -> Layers | None:
        """What the fused engine runs, or None; the log says once what is used and why."""
        try:
            layers, how = read(policy), "fused"
        except Unreadable as reason:
            layers, how = None, f"module, because {reason}"
        if how != self.engine:
            self.engine = how
            precision = "bfloat16" if policy.mixed else str(policy.dtype).removeprefix("torch.")
            log.info("native decoding of %s in %s: %s", type(policy.model).__name__, precision, how)
        return layers


class Queue:
    """Answers that wait, longest prompts first: those that join later then fit in the columns of those that ran before.

    Args:
        units: the answers of each request.
        most: answers that may run at once.
        tokens: keys and values that may be held at once.

    Attributes:
        longest, limit: most tokens of a prompt and of an answer.
        grouped: prompt tokens that an average row would share with another one.
    """

    def __init__(self, units: Sequence[Sequence[Answer]], most: int, tokens: int) -> None:
        ordered = sorted(units, key=lambda u: (-len(u[0].prompt), u[0].prompt))
        self.units = deque(list(u) for u in ordered)
        self.most, self.tokens = most, tokens
        self.longest = len(ordered[0][0].prompt)
        self.limit = max(u[0].limit for u in ordered)
        rows = sum(len(u) for u in ordered)
        once = sum(len(p) for p in {u[0].prompt for u in ordered})
        self.grouped = (sum(len(u) * len(u[0].prompt) for u in ordered) - once) / rows

    def take(self, engine: Engine, rows: int) -> list[Answer]:
        """The answers to start now, beside the `rows` that run, so that those of a request start together where they can.
        There is room for each of them to go its own way."""
        if not self.units or (rows and not engine.joins):
            return []
        shared = getattr(engine, "shared", False)
        width = len(self.units[0][0].prompt) if not rows else self.longest
        fits = min(
            self.most, max(1, (self.tokens - width) // self.limit if shared else self.tokens // (width + self.limit))
        )
        if rows and fits - rows < fits / 4:  # running prompts for few new rows costs more than waiting
            return []
        taken: list[Answer] = []
        prompts = engine.tokens if shared else 0
        while self.units:
            unit = self.units[0]
            width = max(width, len(unit[0].prompt))
            if shared:
                left = (self.tokens - prompts - width) // self.limit - rows - len(taken)
            else:
                left = self.tokens // (width + self.limit) - rows - len(taken)
            left = min(left, self.most - rows - len(taken))
            if not rows and not taken:
                left = max(1, left)
            if len(unit) <= left:
                taken += self.units.popleft()
                prompts += width
            elif len(unit) > fits and left >= max(1, fits // 4):  # too large for any batch
                taken += unit[:left]
                self.units[0] = unit[left:]
                break
            else:
                break
        return taken


class _Table:
    """What has been drawn by each running answer.

    Attributes:
        rows: (A,) the engine's row that an answer reads.
        speaker: for each row of the engine an answer that says its next token.
        stops: whether any answer has stop strings.
    """

    def __init__(self, device: torch.device, limit: int) -> None:
        self.answers: list[Answer] = []
        self.device = device
        self.width = width = (
            limit + 1
        )  # the last column is for what is drawn behind an answer that has reached its limit
        self.ids = torch.zeros(0, width, dtype=torch.long, device=device)
        self.logprobs, self.entropies = (torch.zeros(0, width, device=device) for _ in range(2))
        self.lengths = torch.zeros(0, dtype=torch.long, device=device)
        self.limits, self.live = self.lengths, torch.zeros(0, dtype=torch.bool, device=device)
        self.rows, self.speaker, self.stops = self.lengths, self.lengths, False
        self.draw = Draw([], device)

    def __len__(self) -> int:
        return len(self.answers)

    def extend(self, answers: list[Answer], rows: list[int]) -> None:
        self.answers = self.answers + answers
        n = len(answers)
        for name in ("ids", "logprobs", "entropies"):
            held = getattr(self, name)
            setattr(self, name, torch.cat([held, held.new_zeros(n, self.width)]))
        limits = torch.tensor([a.limit for a in answers], device=self.device)
        self.lengths = torch.cat([self.lengths, torch.zeros_like(limits)])
        self.limits = torch.cat([self.limits, limits])
        self.live = torch.cat([self.live, torch.ones_like(limits, dtype=torch.bool)])
        self.rows = torch.cat([self.rows, torch.tensor(rows, device=self.device)])
        self.stops = any(a.settings.stop for a in self.answers)
        self.draw.extend(answers)

    def keep(self, order: list[int]) -> None:
        self.answers = [self.answers[o] for o in order]
        rows = torch.tensor(order, dtype=torch.long, device=self.device)
        for name in ("ids", "logprobs", "entropies", "lengths", "limits", "live", "rows"):
            setattr(self, name, getattr(self, name)[rows])
        self.draw.keep(order)

    def write(self, logits: Tensor) -> Tensor:
        """Draw and note the next token of every answer from its row's logits; what a finished one draws is not kept."""
        logits = logits[self.rows]
        at = self.lengths[:, None]
        token, logprob, entropy = self.draw(logits, torch.minimum(self.lengths, self.limits - 1))
        for held, new in ((self.ids, token), (self.logprobs, logprob), (self.entropies, entropy)):
            held.scatter_(1, at, new[:, None].to(held.dtype))
        self.lengths = self.lengths + self.live
        return token


def _decode(
    policy: Policy, engine: Engine, queue: Queue, on_token: Callable[[int, int], None] | None
) -> Iterator[tuple[int, Sample]]:
    device = policy.device
    ends = torch.tensor(sorted(policy.format.end_ids), device=device)
    alike = device.type in ALIKE
    every = 1 if alike or on_token else 8  # asking a GPU how many answers still run makes it wait
    table = _Table(device, queue.limit)
    token = torch.zeros(0, dtype=torch.long, device=device)
    steps = 0
    while True:
        logits = [engine.step(token[table.speaker], len(table))] if len(engine) else []
        new = queue.take(engine, len(table))
        if new:
            distinct = {prompt: len(engine) + i for i, prompt in enumerate(dict.fromkeys(a.prompt for a in new))}
            logits.append(engine.admit(list(distinct)))
            table.extend(new, [distinct[a.prompt] for a in new])
        if not logits:
            return
        live = table.live
        token = table.write(logits[0] if len(logits) == 1 else torch.cat(logits))
        if on_token:
            for answer, running, t in zip(table.answers, live.tolist(), token.tolist(), strict=True):
                if running:
                    on_token(answer.index, t)
        live = live & (token[:, None] != ends).all(-1) & (table.lengths < table.limits)
        if table.stops:
            live &= ~_stopped_rows(policy, table, live)
        table.live = live
        steps += 1
        if steps % every and not new:
            continue
        running = live.tolist()
        left = sum(running)
        if not left or len(running) - left >= engine.slack * len(running):
            yield from _finished(policy, table, running)
            order = [i for i, runs in enumerate(running) if runs]
            table.keep(order)
            token, running = token[torch.tensor(order, dtype=torch.long, device=device)], [True] * left
        own = token.tolist() if alike else range(len(running))
        order, rows, speaker = branches(table.rows.tolist(), own, running, len(engine), engine.slack)
        if order != list(range(len(engine))):
            engine.keep(order)
        table.rows, table.speaker = (torch.tensor(part, dtype=torch.long, device=device) for part in (rows, speaker))


def branches(
    rows: Sequence[int], tokens: Sequence[int], running: Sequence[bool], count: int, slack: float
) -> tuple[list[int], list[int], list[int]]:
    """How the rows go on, so that answers that are still the same read one.

    Args:
        rows: the row that each answer has read.
        tokens: what it has drawn from it.
        running: whether it goes on.
        count: rows that there are.
        slack: rows that nobody reads any more are left where they are while they are fewer than this share.

    Returns:
        The order to `Engine.keep`, where few rows move; the row that each answer reads next; and for each row an answer
        that speaks for it. (For what has finished or is left over, any.)
    """
    places: dict[tuple[int, int], int] = {}
    further: list[tuple[int, int]] = []
    order, read = list(range(count)), [False] * count
    for row, token, runs in zip(rows, tokens, running, strict=True):
        if not runs or (row, token) in places:
            continue
        if read[row]:
            further.append((row, token))
        read[row], places[row, token] = True, row
    free = [i for i in range(count) if not read[i]][::-1]
    for branch in further:
        if free:
            places[branch] = free.pop()
            order[places[branch]] = branch[0]
        else:
            places[branch] = len(order)
            order.append(branch[0])
    moved: dict[int, int] = {}
    if free and (len(free) == len(order) or len(free) >= slack * len(order)):
        left, empty = len(order) - len(free), set(free)
        behind = (i for i in range(left, len(order)) if i not in empty)
        moved = {next(behind): i for i in sorted(free) if i < left}
        for source, place in moved.items():
            order[place] = order[source]
        del order[left:]
    speaker = [0] * len(order)
    following = [0] * len(rows)
    for answer, (row, token, runs) in enumerate(zip(rows, tokens, running, strict=True)):
        if runs:
            place = places[row, token]
            following[answer] = place = moved.get(place, place)
            speaker[place] = answer
    return order, following, speaker


def _finished(policy: Policy, table: _Table, running: list[bool]) -> Iterator[tuple[int, Sample]]:
    rows = [i for i, runs in enumerate(running) if not runs]
    at = torch.tensor(rows, dtype=torch.long, device=table.device)
    ids, lengths = table.ids[at].tolist(), table.lengths[at].tolist()
    logprobs, entropies = table.logprobs[at].cpu(), table.entropies[at].cpu()
    policy.meter.sampled_tokens += sum(lengths)
    for row, i, n in zip(range(len(rows)), rows, lengths, strict=True):
        answer = table.answers[i]
        yield answer.index, answer.sample(policy, ids[row][:n], logprobs[row, :n], entropies[row, :n])


def _stopped_rows(policy: Policy, table: _Table, live: Tensor) -> Tensor:
    """(R,) bool: running rows whose answer has just reached one of its stop strings."""
    hit = torch.zeros(len(live), dtype=torch.bool)
    for at in live.nonzero()[:, 0].tolist():
        stop = table.answers[at].settings.stop
        hit[at] = bool(stop) and stopped(policy, table.ids[at, : int(table.lengths[at])].tolist(), stop)
    return hit.to(live.device)


def _token_bytes(policy: Policy) -> int:
    """Memory of one token's keys and values."""
    config = policy.model.config
    heads = getattr(config, "num_attention_heads", None) or 1
    share = (getattr(config, "num_key_value_heads", None) or heads) / heads
    return max(1, int(2 * policy.shapes.attention * share * policy.dtype.itemsize))


def _free_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] // 3 if device.type == "cuda" else 4 << 30
