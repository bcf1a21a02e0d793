"""Sharded: a policy that learns with its parameters, gradients and moments cut among the ranks (FSDP2).

The policy itself stays whole, so that sampling, scoring, evaluation, probes, selectors, snapshots and saving need to know nothing
of shards. What learns is its twin, the same modules cut by `fully_shard`, block by block. While the twin learns the whole
parameters are given up, and an all-gather fills them again after the optimizer's step:

    held by each of N ranks     learning                                      everything else
    whole parameters            one block at a time, embeddings and head      all
    master parameters           1/N                                           1/N
    gradients                   1/N                                           none
    moments                     1/N                                           1/N

Forwards and backwards of the twin are collective: each rank runs as many micro-batches, of the same kinds (`Sharded.rounds`).
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from whet.errors import WhetError
from whet.models.hooks import blocks_of
from whet.models.meter import Meter
from whet.models.policy import Policy
from whet.records import Row

T = TypeVar("T")


# -- shards of a tensor ----------------------------------------------------------------------------------------------
def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor, sharing its memory; a tensor that is not cut is all here."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def span(tensor: Tensor) -> tuple[int, int]:
    """From which flat place of the whole tensor to which this rank holds it. Shards are runs of rows."""
    if not isinstance(tensor, DTensor):
        return 0, tensor.numel()
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    row = tensor.numel() // max(1, tensor.shape[0])
    start = min(offset[0], tensor.shape[0]) * row
    return start, start + shape[0] * row


def place(tensor: Tensor) -> int:
    """Which of its parts this rank holds."""
    return tensor.device_mesh.get_local_rank() if isinstance(tensor, DTensor) else 0


def cut(whole: Tensor, like: Tensor) -> Tensor:
    """This rank's part of a tensor, as `like` is cut; the tensor may be cut so already."""
    if isinstance(whole, DTensor):
        return whole.to_local()
    start, stop = span(like)
    return whole.reshape(-1)[start:stop].view(local(like).shape)


def joined(part: Tensor, like: Tensor) -> Tensor:
    """Vectors of entries of a cut tensor, a rank's after another's: the vector of the whole. All ranks must call it."""
    if not isinstance(like, DTensor):
        return part
    parts: list[Any] = [None] * like.device_mesh.size()
    dist.all_gather_object(parts, part.cpu(), group=like.device_mesh.get_group())
    return torch.cat(parts).to(part.device)


@torch.no_grad()
def clip_(gradients: Sequence[Tensor], limit: float) -> float:
    """Scale gradients, of which some are cut, down to an L2 norm of `limit`; returns the norm that they had. All ranks call it."""
    cuts = [g for g in gradients if isinstance(g, DTensor)]
    whole = [g for g in gradients if not isinstance(g, DTensor)]
    square = nn.utils.get_total_norm([local(g) for g in cuts]).square()
    if cuts:
        dist.all_reduce(square, group=cuts[0].device_mesh.get_group())
    norm = (square + nn.utils.get_total_norm(whole).square()).sqrt() if whole else square.sqrt()
    factor = torch.clamp(limit / (norm + 1e-6), max=1.0)
    for gradient in gradients:
        local(gradient).mul_(factor)
    return float(norm)


class LocalOptimizer:
    """An optimizer of what this rank holds of cut parameters; those that are not cut are handed on.

    AdamW looks at one entry at a time, so that a rank needs no other's. The state that it saves is that of whole tensors, cut:
    any other number of ranks can load it, and so can an optimizer of the whole.

    Args:
        build: makes the optimizer inside.
        parameters: by name.
    """

    def __init__(
        self,
        build: Callable[[Mapping[str, nn.Parameter]], torch.optim.Optimizer],
        parameters: Mapping[str, nn.Parameter],
    ) -> None:
        self.cuts = {n: p for n, p in parameters.items() if isinstance(p, DTensor)}
        self.parts = {n: nn.Parameter(local(p).detach(), requires_grad=p.requires_grad) for n, p in self.cuts.items()}
        self.everything = dict(parameters)
        self.inside = build({n: self.parts.get(n, p) for n, p in parameters.items()})
        wholes = {id(part): self.cuts[n] for n, part in self.parts.items()}
        held = [p for group in self.inside.param_groups for p in group["params"]]
        self._wholes: list[Any] = [
            wholes.get(id(p)) for p in held
        ]  # by the place that a parameter has in the saved state

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.inside.param_groups

    @property
    def state(self) -> Any:
        return self.inside.state

    def held(self, name: str) -> nn.Parameter:
        """The parameter that the optimizer inside knows by the name."""
        return self.parts.get(name, self.everything[name])

    def zero_grad(self, set_to_none: bool = True) -> None:
        for parameter in self.everything.values():
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        for name, part in self.parts.items():
            whole = self.cuts[name]
            part.data, part.grad = local(whole).detach(), None if whole.grad is None else local(whole.grad)
        self.inside.step()
        for part in self.parts.values():
            part.grad = None

    def state_dict(self) -> dict[str, Any]:
        saved = self.inside.state_dict()
        return {**saved, "state": {i: self._each(i, state, _as_cut) for i, state in saved["state"].items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Of whole tensors."""
        own = {i: self._each(i, values, cut) for i, values in state["state"].items()}
        self.inside.load_state_dict({**state, "state": own})

    def _each(self, place: int, state: Mapping[str, Any], do: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Any]:
        whole = self._wholes[place]
        return {
            k: do(v, whole) if whole is not None and isinstance(v, Tensor) and v.dim() else v for k, v in state.items()
        }


def _as_cut(part: Tensor, like: Any) -> Tensor:
    """A rank's part of a moment, as the part of a whole that it is."""
    return DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


# -- the twin --------------------------------------------------------------------------------------------------------
class Sharded:
    """The cut twin of a policy, for as long as the same modules learn. All ranks make it, and use it, together.

    Args:
        policy: its parameters are read, and filled again after each `learning`.

    Attributes:
        twin: the policy whose forwards and gradients are cut.

    Raises:
        WhetError: something in the model cannot be cut; nothing has been changed then.
    """

    def __init__(self, policy: Policy) -> None:
        for name, module in policy.model.named_modules():
            if any(map(_remembers, (*module._forward_hooks.values(), *module._forward_pre_hooks.values()))):
                raise WhetError(f"--shard: '{name or type(module).__name__}' has a hook, which would see another copy of the model; "
                                "leave --shard out")  # fmt: skip
        kinds = {p.dtype for p in policy.model.parameters()}
        if not all(kind.is_floating_point for kind in kinds) or len(kinds) > 1:
            raise WhetError(f"--shard: the parameters are of several kinds ({', '.join(sorted(map(str, kinds)))}), as those of a quantized "
                            "model are; leave --shard out")  # fmt: skip
        self.policy = policy
        self.twin = copy.copy(policy)
        self.twin.sampler = None
        vars(self.twin)["packs"] = policy.packs  # measured on the whole model
        self.twin.always_packs = True
        alias: dict[int, Any] = {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in policy.model.parameters()}
        self.twin.model, self.twin.peft = copy.deepcopy((policy.model, policy.peft), alias)
        self._cut(self.twin)
        self.pairs: list[tuple[nn.Parameter, Any]] = list(
            zip(policy.model.parameters(), self.twin.model.parameters(), strict=True)
        )
        self._check()
        with torch.no_grad():
            for own, _ in self.pairs:  # memory of its own, which can be given up and taken again
                own.data = own.detach().clone(memory_format=torch.contiguous_format)
        policy.sampler = None

    def _cut(self, twin: Policy) -> None:
        mesh = init_device_mesh(twin.device.type, (twin.ranks.size,))
        # parameters are gathered as they are: with `dtype=mixed` autocast does the products in bf16, as in the policy, and all else in
        # fp32. Gathered in bf16 the twin would be another network than the one that sampled and scored
        wide = torch.float32 if twin.dtype.itemsize < 4 else None
        how: dict[str, Any] = {"mesh": mesh, "mp_policy": MixedPrecisionPolicy(reduce_dtype=wide)}
        for block in blocks_of(twin.model, twin.decoder):
            fully_shard(block, **how)
        # embeddings, final norm and head are read before, between and after the blocks: they stay from forward to backward
        fully_shard(twin.model, reshard_after_forward=False, **how)
        for module in twin.model.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)  # a sum: the counts that divide a loss are those of all ranks
                module.set_force_sum_reduction_for_comms(True)
        twin.model.compute = _call
        register_fsdp_forward_method(twin.model, "compute")

    @torch.no_grad()
    def _check(self) -> None:
        """The twin must be the policy: the same hidden states of a few tokens."""
        ids = torch.arange(1, 9, device=self.policy.device)[None] % self.policy.model.config.vocab_size
        with self.policy.metered(Meter()) as spare, self.twin.metered(spare):
            own, other = self.policy.hidden(ids), self.compute(lambda: self.twin.hidden(ids))
        self.reshard()
        scale = max(float(own.abs().max()), 1e-6)
        close = 0.1 if self.policy.mixed or self.policy.dtype.itemsize < 4 else 1e-4
        if not float((own - other).abs().max()) <= close * scale:
            raise WhetError(
                f"--shard: cut among ranks, {type(self.policy.model).__name__} gives other hidden states; leave --shard out"
            )

    def compute(self, function: Callable[[], T]) -> T:
        """`function()`, inside of which the twin's forwards may be run; a backward of what it returns may follow."""
        return self.twin.model.compute(function)

    def reshard(self) -> None:
        """Give up what is still gathered."""
        for module in self.twin.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    @contextlib.contextmanager
    def learning(self) -> Iterator[None]:
        """Inside, the twin learns and the policy's own parameters have no memory; afterwards they are the twin's.

        After an error they stay without: the other ranks, who would have to take part, may not come by.
        """
        self.twin.resting, self.twin.shapes, self.twin.meter = (
            self.policy.resting,
            self.policy.shapes,
            self.policy.meter,
        )
        self.twin.model.train(self.policy.model.training)
        for own, shard in self.pairs:
            shard.requires_grad_(own.requires_grad)
        for own, _ in self.pairs:
            own.untyped_storage().resize_(0)
        yield
        self.reshard()
        with torch.no_grad():
            for own, shard in self.pairs:
                own.untyped_storage().resize_(own.numel() * own.element_size())
                own.copy_(shard.full_tensor())

    # -- micro-batches ----------------------------------------------------------------------------------------------
    def rounds(self, micros: Sequence[list[Row]], rows: Sequence[Row]) -> tuple[list[list[Row]], list[bool]]:
        """This rank's micro-batches and whether they count, in an order in which each rank runs as many of a kind.

        A rank that has fewer runs rows of another for nothing: each forward and backward is an all-gather of every block.
        Micro-batches are of a kind whose rows have samples of the same roles, since those decide which forwards a term runs.

        Args:
            micros: this rank's.
            rows: the whole batch.
        """
        place = {id(row): i for i, row in enumerate(rows)}
        own = [(kind(micro), [place[id(row)] for row in micro]) for micro in micros]
        everyone = self.policy.ranks.gather(own)
        made: list[list[Row]] = []
        live: list[bool] = []
        for what in sorted({k for one in everyone for k, _ in one}):
            held = [micro for micro in micros if kind(micro) == what]
            most = max(sum(k == what for k, _ in one) for one in everyone)
            cheapest = min(
                (p for one in everyone for k, p in one if k == what),
                key=lambda p: sum(len(s) for i in p for s in rows[i].all()),
            )
            made += held + [[rows[i] for i in cheapest]] * (most - len(held))
            live += [True] * len(held) + [False] * (most - len(held))
        return made, live


def kind(rows: Sequence[Row]) -> tuple[str, ...]:
    """The roles of a micro-batch's samples."""
    return tuple(sorted({role for row in rows for role in row.samples if row.get(role)}))


def _remembers(hook: Any) -> bool:
    """Whether a hook holds something, which would be another copy's. Transformers' own, for checkpointing, holds nothing."""
    return getattr(hook, "__closure__", True) is not None or hasattr(hook, "__self__")


def _call(function: Callable[[], T]) -> T:
    return function()
