"""WeightDelta: what training did to weights, as a thing to scale, add, mask, apply and save.

    v = WeightDelta.between(Stored(after), Stored(before))      # v = after - before, tensor by tensor
    model = apply(Stored(target), 0.5 * v)                      # target + v / 2

A delta is lazy: it knows names and shapes, and computes a tensor's part when that is asked for, in fp32, cast once when it is
applied. So any expression over models runs in the memory of a few tensors. A part is `Dense`, `Sparse`, `LowRank` (an
adapter), or `Absolute`: the value itself, of a head that the base has not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from whet.errors import WhetError
from whet.models import trust
from whet.models.base import resolve
from whet.models.policy import Policy
from whet.weights.files import Match, Shapes, Shards, Stored, canonical, match
from whet.weights.selectors import Selection, as_mask

NOTE = "whet-delta"


@dataclass(frozen=True)
class Dense:
    values: Tensor


@dataclass(frozen=True)
class Sparse:
    """`values` (k,) at flat `places` (k,), in order and each once."""

    places: Tensor
    values: Tensor


@dataclass(frozen=True)
class LowRank:
    """up (m, r) @ down (r, n)."""

    up: Tensor
    down: Tensor


@dataclass(frozen=True)
class Absolute:
    """The value itself."""

    values: Tensor


Part = Dense | Sparse | LowRank | Absolute


class WeightDelta:
    """A difference of weights.

    Args:
        shapes: of each tensor that it changes.
        read: name -> its part.
    """

    def __init__(self, shapes: Shapes, read: Callable[[str], Part]) -> None:
        self.shapes = dict(shapes)
        self.read = read

    def __getitem__(self, name: str) -> Part:
        if name not in self.shapes:
            raise KeyError(name)
        return self.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def dense(self, name: str) -> Tensor:
        """A tensor's difference in full."""
        part = self[name]
        if isinstance(part, Absolute):
            raise WhetError(f"'{name}' is an absolute value and no difference")
        return _dense(part, self.shapes[name])

    # -- where it comes from --------------------------------------------------------------------------------------------
    @classmethod
    def of(cls, parts: Mapping[str, Part], shapes: Shapes) -> WeightDelta:
        return cls({n: tuple(shapes[n]) for n in parts}, parts.__getitem__)

    @classmethod
    def between(cls, after: Mapping[str, Tensor], before: Mapping[str, Tensor], *, heads: bool = False) -> WeightDelta:
        """after - before, by the names of `before`; integers and buffers of other types are left out.

        Args:
            heads: take what only `after` has as absolute values; else it is refused.

        Raises:
            WhetError: the models are not of one kind.
        """
        found = match(_shapes(before), _shapes(after))
        own = found.theirs if heads else []
        pairs = Match(found.pairs, found.ours, [n for n in found.theirs if n not in own], found.shapes).check(
            _called(before), _called(after)
        )
        floats = {n: m for n, m in pairs.items() if before[n].is_floating_point()}

        def read(name: str) -> Part:
            if name in floats:
                return Dense(_wide(after[floats[name]]) - _wide(before[name]).to(after[floats[name]].device))
            return Absolute(after[name])

        return cls({n: tuple(before[n].shape) for n in floats} | {n: tuple(after[n].shape) for n in own}, read)

    @classmethod
    def load(cls, folder: str | Path) -> WeightDelta:
        """A saved delta, or a PEFT adapter folder of plain LoRA.

        Raises:
            WhetError: it is neither.
        """
        if (Path(folder) / "adapter_config.json").exists():
            from whet.weights.adapters import read_adapter

            return read_adapter(folder)
        stored = Stored(folder)  # a run's folder stands for its model, which may be adapters
        if (stored.folder / "adapter_config.json").exists():
            return cls.load(stored.folder)
        if NOTE not in stored.metadata:
            raise WhetError(f"'{folder}' is a model and no delta; `whet merge subtract AFTER BEFORE` makes one")
        try:
            shapes = {n: tuple(map(int, s)) for n, s in json.loads(stored.metadata[NOTE]).items()}
        except (ValueError, TypeError, AttributeError, RecursionError) as problem:
            raise WhetError(
                f"'{folder}' is no difference of weights: its note cannot be read ({problem}); make it again"
            ) from None

        def read(name: str) -> Part:
            have = {kind: f"{name}/{kind}" for kind in ("values", "places", "up", "down", "absolute")}
            if have["absolute"] in stored:
                return Absolute(stored[have["absolute"]])
            if have["up"] in stored:
                return LowRank(stored[have["up"]], stored[have["down"]])
            values = stored[have["values"]]
            return Sparse(stored[have["places"]], values) if have["places"] in stored else Dense(values)

        return cls(shapes, read)

    def save(self, folder: str | Path) -> None:
        """Write it as safetensors, a shard at a time."""
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        shards = Shards(place, "delta", metadata={NOTE: json.dumps(self.shapes)})
        for name in self:
            part = self[name]
            for kind, tensor in vars(part).items():
                shards.add(f"{name}/{'absolute' if isinstance(part, Absolute) else kind}", tensor)
        shards.close()

    # -- arithmetic -----------------------------------------------------------------------------------------------------
    def __mul__(self, factor: float) -> WeightDelta:
        return WeightDelta(self.shapes, lambda name: _times(self[name], factor, name))

    __rmul__ = __mul__

    def __neg__(self) -> WeightDelta:
        return self * -1.0

    def __add__(self, other: WeightDelta) -> WeightDelta:
        """The sum by name; where only one of them changes a tensor, that change."""
        for name in self.shapes.keys() & other.shapes.keys():
            if self.shapes[name] != other.shapes[name]:
                raise WhetError(
                    f"'{name}' is {list(self.shapes[name])} in one delta and {list(other.shapes[name])} in the other"
                )
        shapes = {**self.shapes, **other.shapes}

        def read(name: str) -> Part:
            if name not in other.shapes:
                return self[name]
            return other[name] if name not in self.shapes else _plus(self[name], other[name], shapes[name], name)

        return WeightDelta(shapes, read)

    def __sub__(self, other: WeightDelta) -> WeightDelta:
        return self + -other

    def masked(self, selection: Selection) -> WeightDelta:
        """Only the entries that a selection holds; tensors that it leaves out are not changed."""
        kept = {n: s for n, s in self.shapes.items() if selection.get(n, False) is not False}

        def read(name: str) -> Part:
            chosen = selection[name]
            if chosen is True:
                return self[name]
            values = self.dense(name)
            return _sparse(values, as_mask(chosen, values))

        return WeightDelta(kept, read)

    def sparse(self, tolerance: float = 0.0) -> WeightDelta:
        """The same with only the entries above `tolerance` in magnitude kept."""

        def read(name: str) -> Part:
            part = self[name]
            if isinstance(part, Absolute):
                return part
            values = _dense(part, self.shapes[name])
            return _sparse(values, values.abs() > tolerance)

        return WeightDelta(self.shapes, read)

    def compact(self, tolerance: float = 0.0) -> WeightDelta:
        """Each tensor in the smaller of both forms: sparse where few entries are above `tolerance` in magnitude."""
        thin = self.sparse(tolerance)

        def read(name: str) -> Part:
            part, full = thin[name], self[name]
            small = isinstance(full, Dense) and isinstance(part, Sparse) and 3 * len(part.places) < full.values.numel()
            return part if small else full

        return WeightDelta(self.shapes, read)

    def low_rank(self, rank: int) -> WeightDelta:
        """The best approximation of each matrix by one of so low a rank. Vectors are left out."""

        def read(name: str) -> Part:
            u, s, v = torch.linalg.svd(self.dense(name), full_matrices=False)
            return LowRank(u[:, :rank] * s[:rank], v[:rank])

        return WeightDelta({n: s for n, s in self.shapes.items() if len(s) == 2}, read)

    def relative(self) -> WeightDelta:
        """Without absolute values: the heads that it brings are left out."""
        return WeightDelta({n: s for n, s in self.shapes.items() if not isinstance(self[n], Absolute)}, self.read)

    def norm(self) -> float:
        """The L2 norm of all differences."""
        return sum(float(self.dense(n).double().square().sum()) for n in self) ** 0.5

    # -- to a model -----------------------------------------------------------------------------------------------------
    def match(self, weights: Mapping[str, Tensor]) -> Match:
        """Which of a model's tensors it changes; `ours` has what it cannot find there."""
        found = match(self.shapes, _shapes(weights))
        return Match(found.pairs, found.ours, [], found.shapes)

    def check(self, weights: Mapping[str, Tensor]) -> dict[str, str]:
        """Its names -> the model's.

        Raises:
            WhetError: the model has not all that it changes.
        """
        found = self.match(weights)
        absolute = [n for n in found.ours if isinstance(self[n], Absolute)]
        return Match(found.pairs, [n for n in found.ours if n not in absolute], [], found.shapes).check(
            "the delta", _called(weights)
        )

    @torch.no_grad()
    def add_to(self, policy: Policy) -> None:
        """Change a policy's parameters in place, tied ones once."""
        own = dict(policy.model.named_parameters())
        for name, target in self.check(own).items():
            own[target].copy_(_added(own[target], self[name], self.shapes[name]))


def apply(
    weights: Mapping[str, Tensor], delta: WeightDelta, dtype: torch.dtype | None = None
) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of weights + delta, one at a time: fp32 arithmetic, cast once. What the delta leaves alone is copied.

    Args:
        dtype: of what floats; None is each tensor's own.
    """
    changed = {m: n for n, m in delta.check(weights).items()}
    for name in weights:
        tensor = weights[name]
        if name in changed:
            tensor = _added(tensor, delta[changed[name]], tuple(tensor.shape))
        yield name, tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor
    known = {canonical(n) for n in weights}
    for name in delta:
        if name not in changed.values() and canonical(name) not in known:
            yield name, vars(delta[name])["values"]


class Applied(Mapping[str, Tensor]):
    """weights + delta as a model of its own, computed a tensor at a time when one is asked for."""

    def __init__(self, weights: Stored, delta: WeightDelta) -> None:
        self.weights, self.delta = weights, delta
        self.changed = {m: n for n, m in delta.check(weights).items()}
        self.source, self.folder, self.config, self.shapes = (
            weights.source,
            weights.folder,
            weights.config,
            weights.shapes,
        )

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.weights[name]
        return _added(tensor, self.delta[self.changed[name]], tuple(tensor.shape)) if name in self.changed else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)


def is_delta(source: str | Path) -> bool:
    """Whether a folder holds a difference (or adapters) and no model."""
    return any(
        (Path(source) / name).exists()
        for name in ("adapter_config.json", "delta.safetensors", "delta.safetensors.index.json")
    )


def open_model(source: str | Path) -> Stored | Applied:
    """The weights of a model, of a run, or of a base under an adapter folder."""
    place = Path(resolve(source))
    if (place / "adapter_config.json").exists():
        held = trust.adapter_base(place / "adapter_config.json")
        return Applied(Stored(held), WeightDelta.load(place))
    if is_delta(place):
        raise WhetError(f"'{source}' is a difference of weights and no model")
    return Stored(source)


# -- parts ---------------------------------------------------------------------------------------------------------------
def _wide(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))


def _dense(part: Part, shape: tuple[int, ...]) -> Tensor:
    if isinstance(part, LowRank):
        return _wide(part.up) @ _wide(part.down)
    if isinstance(part, Sparse):
        dense = torch.zeros(shape, dtype=part.values.dtype, device=part.values.device)
        dense.view(-1)[part.places.long()] = part.values
        return dense
    return _wide(part.values)


def _sparse(values: Tensor, mask: Tensor) -> Sparse:
    places = mask.flatten().nonzero().squeeze(1)
    return Sparse(places, values.flatten()[places])


def _times(part: Part, factor: float, name: str) -> Part:
    if isinstance(part, Absolute):
        if factor == 1.0:
            return part
        raise WhetError(
            f"'{name}' is an absolute value, which cannot be scaled by {factor:g}; take the delta's `relative()`"
        )
    if isinstance(part, LowRank):
        return LowRank(factor * _wide(part.up), part.down)
    if isinstance(part, Sparse):
        return Sparse(part.places, factor * part.values)
    return Dense(factor * part.values)


def _plus(a: Part, b: Part, shape: tuple[int, ...], name: str) -> Part:
    if isinstance(a, Absolute) or isinstance(b, Absolute):
        raise WhetError(
            f"'{name}' is an absolute value in one delta, so that they cannot be added; take its `relative()`"
        )
    if isinstance(a, LowRank) and isinstance(b, LowRank):
        return LowRank(torch.cat([_wide(a.up), _wide(b.up)], 1), torch.cat([_wide(a.down), _wide(b.down)], 0))
    if isinstance(a, Sparse) and isinstance(b, Sparse):
        places, at = torch.cat([a.places, b.places]).unique(return_inverse=True)
        values = torch.zeros(len(places), dtype=a.values.dtype).index_add_(0, at, torch.cat([a.values, b.values]))
        return Sparse(places, values)
    return Dense(_dense(a, shape) + _dense(b, shape))


def _added(tensor: Tensor, part: Part, shape: tuple[int, ...]) -> Tensor:
    if isinstance(part, Absolute):
        return part.values.to(tensor)
    return (_wide(tensor) + _dense(part, shape).to(tensor.device)).to(tensor.dtype)


def _shapes(weights: Mapping[str, Tensor]) -> Shapes:
    return weights.shapes if isinstance(weights, Stored | Applied) else {n: tuple(t.shape) for n, t in weights.items()}


def _called(weights: Mapping[str, Tensor]) -> str:
    return weights.source if isinstance(weights, Stored | Applied) else "the model"
