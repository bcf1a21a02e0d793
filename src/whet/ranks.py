"""Ranks: the processes of one run, each of which does a share of the work.

    torchrun --nproc-per-node 2 -m whet run grpo --out runs/first

Every rank holds the whole model and all rows of a step. What takes time is dealt out: a rank samples, verifies, scores and
learns from its share, and what comes of it is gathered; gradients are summed once an optimizer step. Everything that decides
(draws, gates, buffers, bandits, the objective's counts) then sees the same rows on each rank and decides the same, so that
no other part needs to know of ranks, and a gradient is that of one process up to rounding.

Each rank says to the store, once a second, what it does: who waits for long, or loses the others, can name the one that is missing.

So all ranks must call the collective methods (`map`, `sum`, `gather`, `broadcast`, `sum_gradients`) in the same order: call
none of them where only some ranks come by.
"""

from __future__ import annotations

import atexit
import contextlib
import heapq
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from whet.errors import WhetError, first_line

T = TypeVar("T")
R = TypeVar("R")

log = logging.getLogger("whet.ranks")

PATIENCE = 60.0  # seconds after which a rank says that it waits
BEAT = 1.0  # seconds between two signs of life
LIMIT = timedelta(hours=24)  # a rank that died is noticed at once; one that works may take its time
BUCKET = 1 << 24  # gradient entries that are summed at once
FAILED = "whet/failed"
SIGN = "whet/beat/"
LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def _leave() -> None:
    """Before the interpreter takes things apart: a process group that is still there then aborts the process now and then."""
    if dist.is_initialized():
        dist.destroy_process_group()


class Ranks:
    """Who does which share. `Ranks()` is one process alone, for which everything here does nothing.

    Attributes:
        rank, size: which of how many processes this is.
        at: what this process is doing, for messages.
    """

    _at = "the start"  # of the process

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank = rank
        self.size = size

    @property
    def at(self) -> str:
        return Ranks._at

    @at.setter
    def at(self, what: str) -> None:
        Ranks._at = what

    @classmethod
    def here(cls) -> Ranks:
        """The ranks that torchrun started, joined on the first call; without torchrun this process alone."""
        if not dist.is_available():
            return cls()
        if not dist.is_initialized():
            if not all(name in os.environ for name in LAUNCHED) or os.environ["WORLD_SIZE"] == "1":
                return cls()
            if torch.cuda.is_available():
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
            dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=LIMIT)
            atexit.register(_leave)
            threading.Thread(target=_beat, args=(dist.get_rank(), _store().clone()), daemon=True).start()
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def first(self) -> bool:
        """Whether this rank writes files and reports."""
        return self.rank == 0

    # -- shares -----------------------------------------------------------------------------------------------------
    def share(self, items: Sequence[T], cost: Callable[[T], float] = lambda item: 1.0) -> list[T]:
        """This rank's items, in order; every item is some rank's, and the ranks' costs are nearly equal."""
        return [items[i] for i in self._deal(items, cost)[self.rank]]

    def map(
        self, function: Callable[[Sequence[T]], Sequence[R]], items: Sequence[T],
        cost: Callable[[T], float] = lambda item: 1.0,
    ) -> list[R]:  # fmt: skip
        """`function(items)`, one result an item and in order, of which each rank computes its share."""
        if self.size == 1:
            return list(function(items)) if items else []
        dealt = self._deal(items, cost)
        own = [items[i] for i in dealt[self.rank]]
        found: dict[int, R] = {}
        for places, results in zip(dealt, self.gather(list(function(own)) if own else []), strict=True):
            found.update(zip(places, results, strict=True))
        return [found[i] for i in range(len(items))]

    def _deal(self, items: Sequence[T], cost: Callable[[T], float]) -> list[list[int]]:
        """Places of each rank's items: the costliest first, each to the rank that has least so far."""
        if self.size == 1:
            return [list(range(len(items)))]
        costs = [cost(item) for item in items]
        load = [(0.0, rank) for rank in range(self.size)]
        dealt: list[list[int]] = [[] for _ in load]
        for place in sorted(range(len(items)), key=lambda i: -costs[i]):  # stable, so the same on each rank
            least, rank = load[0]
            dealt[rank].append(place)
            heapq.heapreplace(load, (least + costs[place], rank))
        return [sorted(places) for places in dealt]

    # -- collectives ------------------------------------------------------------------------------------------------
    def sum(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """The sum over ranks of each number; the names must be the same on each rank."""
        if self.size == 1:
            return dict(numbers)
        values = torch.tensor(list(numbers.values()), dtype=torch.float64)
        self._call("sum", lambda: dist.all_reduce(values))
        return dict(zip(numbers, values.tolist(), strict=True))

    def gather(self, value: T) -> list[T]:
        """Each rank's value, in the order of ranks. It must be picklable, its tensors on the CPU."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        self._call("gather", lambda: dist.all_gather_object(found, value))
        return found

    def broadcast(self, value: T) -> T:
        """The first rank's value. For what need not be the same on each rank: a clock, a file, a server's answer."""
        if self.size == 1:
            return value
        held: list[Any] = [value if self.first else None]
        self._call("broadcast", lambda: dist.broadcast_object_list(held, src=0))
        return held[0]

    def agree(self, what: str, value: Any) -> None:
        """Raise where `value` is not the same on each rank."""
        if any(other != value for other in self.gather(value)):
            raise WhetError(f"{self.at}: the ranks have come apart in {what}; a part of the recipe draws without a seed, "
                            "reads a clock, or does something on one rank only")  # fmt: skip

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum `grad` over ranks, in place. A parameter that has no gradient on any rank stays without."""
        if self.size == 1:
            return
        everyone = list(parameters)
        has = torch.tensor([float(p.grad is not None) for p in everyone])
        self._call("sum of gradients", lambda: dist.all_reduce(has))
        for p in (p for p, n in zip(everyone, has.tolist(), strict=True) if n and p.grad is None):
            p.grad = torch.zeros_like(p)
        for bucket in _buckets([p.grad for p in everyone if p.grad is not None]):
            wide = torch.float32 if bucket[0].dtype.itemsize < 4 else bucket[0].dtype
            flat = torch.cat([g.reshape(-1).to(wide) for g in bucket])
            self._call("sum of gradients", lambda flat=flat: dist.all_reduce(flat))
            for gradient, total in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                gradient.copy_(total.view_as(gradient))

    # -- failures ---------------------------------------------------------------------------------------------------
    def _call(self, what: str, function: Callable[[], Any]) -> None:
        late = threading.Timer(PATIENCE, self._complain, (what,))
        late.daemon = True
        late.start()
        try:
            function()
        except RuntimeError as problem:
            raise Left(self._why(problem)) from problem
        finally:
            late.cancel()

    def _complain(self, what: str) -> None:
        signs = _signs(self.size)
        others = "; ".join(f"rank {r} is at {signs[r][1]}" if r in signs else f"rank {r} has given no sign"
                           for r in range(self.size) if r != self.rank)  # fmt: skip
        log.warning(
            "rank %d has waited %.0f s for the others at %s (%s): %s", self.rank, PATIENCE, self.at, what, others
        )

    def _why(self, problem: BaseException) -> str:
        """What the failed rank said, where it still could; else which rank it is that gives no sign any more."""
        with contextlib.suppress(RuntimeError):
            if _store().check([FAILED]):
                return _store().get(FAILED).decode()
        before = _signs(self.size)
        time.sleep(3 * BEAT)
        after = _signs(self.size)
        gone = [
            f"rank {r} has stopped, at {sign[1]}"
            for r, sign in before.items()
            if r != self.rank and after.get(r) == sign
        ]
        return f"{', and '.join(gone) or 'another rank has stopped'}; go on from the last checkpoint by --resume ({first_line(problem)})"


def _beat(rank: int, store: Any) -> None:
    """Say what this rank does, again and again, until the process ends."""
    count = 0
    with contextlib.suppress(RuntimeError):  # the store is gone, and so is whoever would ask
        while True:
            store.set(f"{SIGN}{rank}", json.dumps([count, Ranks._at]))
            count += 1
            time.sleep(BEAT)


def _signs(size: int) -> dict[int, list[Any]]:
    """By rank, the last sign that it gave: a counter and what it did."""
    with contextlib.suppress(RuntimeError):
        given = [r for r in range(size) if _store().check([f"{SIGN}{r}"])]
        return {r: json.loads(_store().get(f"{SIGN}{r}")) for r in given}
    return {}


class Left(WhetError):
    """Another rank has failed or gone; nothing is wrong here."""


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Inside (or in a function that it decorates), a failure of this rank is made known to the others, whose next
    collective then raises it."""
    try:
        yield
    except BaseException as failure:
        ranks = Ranks.here()
        if ranks.size > 1 and _broken(failure):
            raise Left(ranks._why(failure)) from failure
        if ranks.size > 1 and not isinstance(failure, Left):
            text = str(failure) if isinstance(failure, WhetError) else f"{type(failure).__name__}: {failure}"
            with contextlib.suppress(RuntimeError):  # the store went with the first rank: nobody is left to be told
                _store().set(FAILED, f"rank {ranks.rank} failed: {text}")
        raise


def _broken(failure: BaseException) -> bool:
    """Whether a collective that is not one of `Ranks` (of FSDP2, of a checkpoint) has lost a peer."""
    if isinstance(failure, dist.DistBackendError | dist.DistNetworkError):
        return True
    return isinstance(failure, RuntimeError) and ("gloo" in str(failure) or "Connection closed" in str(failure))


def accelerated(environment: Mapping[str, str]) -> dict[str, Any]:
    """The settings of a run that `accelerate launch`, or its config file, asks for; what the command itself says goes before.

    Raises:
        WhetError: it asks for what is not there.
    """
    if "ACCELERATE_MIXED_PRECISION" not in environment:
        return {}
    if "MASTER_ADDR" in environment and "RANK" not in environment:
        raise WhetError("accelerate has started one process of several: on CPUs it leaves that to mpirun; say `distributed_type: "
                        "MULTI_GPU` in its config file, or --multi_gpu, by which it starts them itself, or use torchrun")  # fmt: skip
    found: dict[str, Any] = {}
    precision = environment["ACCELERATE_MIXED_PRECISION"]
    if precision not in ("no", "bf16"):
        raise WhetError(f"accelerate asks for mixed_precision {precision}, which has no place here: use bf16 or no")
    if environment.get("ACCELERATE_USE_DEEPSPEED") == "true" or environment.get("ACCELERATE_USE_MEGATRON_LM") == "true":
        raise WhetError(
            "accelerate asks for DeepSpeed or Megatron-LM: parameters are cut by FSDP here; use `distributed_type: FSDP`"
        )
    if environment.get("ACCELERATE_DYNAMO_BACKEND", "NO").lower() != "no":
        raise WhetError(
            "accelerate asks for a dynamo backend, and models are not compiled here: use `dynamo_backend: no`"
        )
    if precision == "bf16":
        found["dtype"] = "mixed"
    if environment.get("ACCELERATE_USE_CPU", "").lower() == "true":
        found["device"] = "cpu"
    if environment.get("ACCELERATE_USE_FSDP") == "true":
        if environment.get("FSDP_OFFLOAD_PARAMS") == "true":
            raise WhetError(
                "accelerate asks for parameters on the CPU (fsdp_offload_params), which is not there; say false"
            )
        found["shard"] = True
        if environment.get("FSDP_ACTIVATION_CHECKPOINTING") == "true":
            found["activation_checkpointing"] = True
    return found


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Runs of tensors of one dtype and device, of about `BUCKET` entries."""
    held: list[Tensor] = []
    size = 0
    for tensor in tensors:
        alike = held and (held[0].dtype, held[0].device) == (tensor.dtype, tensor.device)
        if held and (not alike or size + tensor.numel() > BUCKET):
            yield held
            held, size = [], 0
        held.append(tensor)
        size += tensor.numel()
    if held:
        yield held
