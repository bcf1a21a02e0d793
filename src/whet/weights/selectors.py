"""Selectors: which entries of which parameters move.

A selector maps a model to {parameter name: a bool mask of its shape, or True for the whole of it}; what it leaves out is
frozen. Scores are plain functions of a weight, so that training (`Masked`), probes and weight arithmetic share them.

    principal = Top(partial(low_rank_magnitude, rank=32), density=0.05)      # LIFT, 2506.00772
    spared = complement(principal)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from whet.errors import WhetError
from whet.models.policy import Policy
from whet.records import Row
from whet.seeds import seed_for
from whet.weights.weights import Cost, linear

Selection = Mapping[str, "Tensor | bool"]
Where = Callable[[nn.Module], dict[str, nn.Parameter]]


@dataclass(frozen=True)
class Facts:
    """What a score may know beside a weight.

    Attributes:
        seed: of this draw.
        values: by parameter name, e.g. its Fisher information, or another model's weights.
    """

    seed: int = 0
    values: Mapping[str, Tensor] = field(default_factory=dict)


Score = Callable[[Tensor, str, Facts], Tensor]
NOTHING = Facts()


# -- scores: (weight, name, facts) -> a number for each entry ------------------------------------------------------------
def magnitude(weight: Tensor, name: str = "", facts: Facts = NOTHING) -> Tensor:
    """|W|."""
    return weight.detach().float().abs()


def low_rank_magnitude(weight: Tensor, name: str = "", facts: Facts = NOTHING, *, rank: int = 0) -> Tensor:
    """|W'| of the best approximation of rank `rank` (2506.00772 section 3.2), in fp32; 0 is an eighth of the smaller side.

    W = [[3,3,0],[3,3,0],[0,0,4]] has singular values 6, 4, 0: of rank 1 remain the four 3s, and not the larger 4.
    """
    wide = weight.detach().float()
    rank = rank or max(1, min(wide.shape) // 8)
    if rank >= min(wide.shape):
        return wide.abs()
    u, s, v = torch.linalg.svd(wide, full_matrices=False)
    return ((u[:, :rank] * s[:rank]) @ v[:rank]).abs()


def movement(weight: Tensor, name: str, facts: Facts) -> Tensor:
    """|W - W0| to the weights of the same name in `facts.values` (2110.07560)."""
    return (weight.detach().float() - facts.values[name].to(weight.device, torch.float32)).abs()


def known(weight: Tensor, name: str, facts: Facts) -> Tensor:
    """What calibration found for each entry, such as its Fisher information."""
    return facts.values[name].to(weight.device, torch.float32)


def chance(weight: Tensor, name: str = "", facts: Facts = NOTHING) -> Tensor:
    """Uniform numbers, drawn from the seed and the name: the control of every score."""
    draw = torch.Generator().manual_seed(seed_for(facts.seed, "chance", name))
    return torch.rand(weight.shape, generator=draw).to(weight.device)


# -- where ---------------------------------------------------------------------------------------------------------------
def matrices(model: nn.Module) -> dict[str, nn.Parameter]:
    """Weights of the linear layers but the head (and what is tied to it)."""
    spared = {id(m.weight) for m in _ends(model)}
    names = {id(p): n for n, p in model.named_parameters()}
    found: list[Any] = [m.weight for m in model.modules() if linear(m)]
    return {names[id(p)]: p for p in found if id(p) not in spared and id(p) in names}


def without_norms(model: nn.Module) -> dict[str, nn.Parameter]:
    """All parameters but those of norm layers."""
    spared = {id(p) for m in model.modules() if is_norm(m) for p in m.parameters(recurse=False)}
    return {n: p for n, p in model.named_parameters() if id(p) not in spared}


def everything(model: nn.Module) -> dict[str, nn.Parameter]:
    """All parameters."""
    return dict(model.named_parameters())


def is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def _ends(model: Any) -> list[Any]:
    """The input embeddings and the head."""
    ends = [getattr(model, f"get_{side}_embeddings", lambda: None)() for side in ("input", "output")]
    return [end for end in ends if end is not None]


# -- selectors -----------------------------------------------------------------------------------------------------------
class Selector:
    """Chooses entries.

    Attributes:
        rows: how many demonstrations it calibrates on; 0 needs none.
        task: of which task; empty is the run's own.
    """

    rows: int = 0
    task: str = ""

    def __call__(self, model: nn.Module, facts: Facts = NOTHING) -> dict[str, Tensor | bool]:
        raise NotImplementedError

    def cost(self, model: nn.Module, seed: int = 0) -> Cost:
        """Entries that it chooses, from the shapes alone: the model may lie on the meta device."""
        raise NotImplementedError

    def calibrate(self, policy: Policy, rows: Sequence[Row]) -> dict[str, Tensor]:
        """`Facts.values` from data."""
        return {}


class Top(Selector):
    """The entries of the highest score (or the lowest).

    Args:
        score: a function as above.
        density: the chosen share of each tensor (or of all).
        budget_rank: instead, as many entries as adapters of this rank would have: min((m + n) R, m n) of each matrix.
        count: instead, so many of all tensors together.
        where: the tensors it chooses from.
        across: `matrix` chooses in each tensor, `model` has one threshold for all.
        smallest: the lowest scores instead.

    Raises:
        WhetError: the size is not said once.
    """

    def __init__(
        self, score: Score, density: float = 0.0, *, budget_rank: int = 0, count: int = 0, where: Where = matrices,
        across: str = "matrix", smallest: bool = False,
    ) -> None:  # fmt: skip
        if sum(map(bool, (density, budget_rank, count))) != 1 or not 0 <= density <= 1 or min(budget_rank, count) < 0:
            raise WhetError("say once how many entries move: density above 0 and at most 1, or a rank of 1 or more")
        if across not in ("matrix", "model"):
            raise WhetError(f"entries are chosen across 'matrix' or 'model', not '{across}'")
        self.score, self.density, self.budget_rank, self.count = score, density, budget_rank, count
        self.where, self.smallest = where, smallest
        self.across = "model" if count else across

    def __call__(self, model: nn.Module, facts: Facts = NOTHING) -> dict[str, Tensor | bool]:
        chosen = self.eligible(model)
        if self.across == "matrix":
            return {n: top_mask(self._scores(n, p, facts), self._entries(p)) for n, p in chosen.items()}
        return self._over_all(chosen, facts)

    def eligible(self, model: nn.Module) -> dict[str, nn.Parameter]:
        found = self.where(model)
        if not found:
            raise WhetError(f"{type(model).__name__} has no tensor to choose entries from")
        return found

    def cost(self, model: nn.Module, seed: int = 0) -> Cost:
        sizes = [p.numel() for p in self.eligible(model).values()]
        entries = (
            self._total(sum(sizes)) if self.across == "model" else sum(map(self._entries, self.where(model).values()))
        )
        return Cost(entries, sum(sizes), places=entries)

    def _scores(self, name: str, parameter: nn.Parameter, facts: Facts) -> Tensor:
        scores = self.score(parameter.detach(), name, facts)
        return -scores if self.smallest else scores

    def _entries(self, parameter: Tensor) -> int:
        size = parameter.numel()
        return min(
            size, self.budget_rank * sum(parameter.shape) if self.budget_rank else max(1, round(self.density * size))
        )

    def _total(self, size: int) -> int:
        if self.budget_rank:
            raise WhetError("a rank says how many entries each matrix has; across the model, give density or count")
        return min(size, self.count or max(1, round(self.density * size)))

    def _over_all(self, chosen: Mapping[str, nn.Parameter], facts: Facts) -> dict[str, Tensor | bool]:
        """Exactly the k highest of all tensors, holding k candidates at a time and not all scores."""
        total = self._total(sum(p.numel() for p in chosen.values()))
        best, owner, place = torch.empty(0), torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long)
        for number, (name, parameter) in enumerate(chosen.items()):
            values, places = self._scores(name, parameter, facts).flatten().cpu().topk(min(total, parameter.numel()))
            best, place = torch.cat([best, values]), torch.cat([place, places])
            owner = torch.cat([owner, torch.full_like(places, number)])
            best, kept = best.topk(min(total, len(best)))
            owner, place = owner[kept], place[kept]
        masks: dict[str, Tensor | bool] = {}
        for number, (name, parameter) in enumerate(chosen.items()):
            mask = torch.zeros(parameter.numel(), dtype=torch.bool)
            mask[place[owner == number]] = True
            masks[name] = mask.view(parameter.shape).to(parameter.device)
        return masks


class Named(Selector):
    """Whole tensors whose name a regular expression finds: `layers[.]2[.]` is not found in `layers.20.`."""

    def __init__(self, pattern: str, where: Where = everything) -> None:
        try:
            self.pattern = re.compile(pattern)
        except re.error as problem:
            raise WhetError(f"'{pattern}' is no regular expression: {problem}") from None
        self.where = where

    def __call__(self, model: nn.Module, facts: Facts = NOTHING) -> dict[str, Tensor | bool]:
        found: dict[str, Tensor | bool] = {n: True for n in self.where(model) if self.pattern.search(n)}
        if not found:
            names = [n for n, _ in model.named_parameters()]
            raise WhetError(
                f"no parameter's name is found by '{self.pattern.pattern}'; they read like {names[len(names) // 2]}"
            )
        return found

    def cost(self, model: nn.Module, seed: int = 0) -> Cost:
        size = sum(self.where(model)[n].numel() for n in self(model))
        return Cost(size, size)


class Rule(Selector):
    """Whole tensors by a rule over the model."""

    def __init__(self, where: Where) -> None:
        self.where = where

    def __call__(self, model: nn.Module, facts: Facts = NOTHING) -> dict[str, Tensor | bool]:
        found = self.where(model)
        if not found:
            kind = getattr(self.where, "__name__", "chosen by rule")
            raise WhetError(f"{type(model).__name__} has no parameters that are {kind}")
        return dict.fromkeys(found, True)

    def cost(self, model: nn.Module, seed: int = 0) -> Cost:
        size = sum(self.where(model)[n].numel() for n in self(model))
        return Cost(size, size)


class Joined(Selector):
    """What one of two selectors chooses (`either`), what both choose (`both`), or what the first leaves (`complement`)."""

    def __init__(self, how: str, first: Selector, second: Selector) -> None:
        self.how, self.first, self.second = how, first, second

    def __call__(self, model: nn.Module, facts: Facts = NOTHING) -> dict[str, Tensor | bool]:
        one, two = self.first(model, facts), self.second(model, facts)
        found: dict[str, Tensor | bool] = {}
        for name, parameter in model.named_parameters():
            a, b = (as_mask(s.get(name, False), parameter) for s in (one, two))
            mask = a | b if self.how == "either" else a & b if self.how == "both" else a & ~b
            if bool(mask.any()):
                found[name] = True if bool(mask.all()) else mask
        return found

    def cost(self, model: nn.Module, seed: int = 0) -> Cost:
        one, two = self.first.cost(model, seed), self.second.cost(model, seed)
        if self.how == "either":
            gradients = max(one.gradients, two.gradients)
            moving = min(gradients, one.moving + two.moving)
            return Cost(moving, gradients, places=moving)
        moving = min(one.moving, two.moving) if self.how == "both" else one.moving - two.moving
        return Cost(moving, one.gradients, places=moving)


def either(first: Selector, second: Selector) -> Selector:
    return Joined("either", first, second)


def both(first: Selector, second: Selector) -> Selector:
    return Joined("both", first, second)


def complement(selector: Top) -> Selector:
    """The other entries of the tensors that it chooses from."""
    return Joined("without", Rule(selector.where), selector)


# -- parts ---------------------------------------------------------------------------------------------------------------
def top_mask(scores: Tensor, entries: int) -> Tensor:
    """A bool mask of exactly the `entries` highest scores."""
    mask = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    mask[scores.flatten().topk(entries).indices] = True
    return mask.view(scores.shape)


def counts(selection: Selection, model: nn.Module) -> dict[str, int]:
    """Chosen entries of each tensor."""
    shapes = {n: p.numel() for n, p in model.named_parameters()}
    return {n: shapes[n] if m is True else 0 if m is False else int(m.sum()) for n, m in selection.items()}


def as_mask(chosen: Tensor | bool, like: Tensor) -> Tensor:
    """A bool mask of the tensor's shape, on its device."""
    if isinstance(chosen, bool):
        return torch.full(like.shape, chosen, dtype=torch.bool, device=like.device)
    return chosen.to(like.device)
