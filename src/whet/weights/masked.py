"""Masked weights: only chosen entries move, and the optimizer keeps state for those alone.

What is masked is the UPDATE. Masking the gradient alone would let momentum and weight decay move what is frozen: here an
entry outside the mask is never read or written by the optimizer.

    theta[M] <- theta[M] - lr * update(g[M])        the optimizer sees vectors of |M| entries
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from whet.errors import WhetError
from whet.models.policy import Policy
from whet.models.sharded import joined, local, place, span
from whet.seeds import seed_for
from whet.weights.selectors import Facts, Selection, Selector
from whet.weights.weights import Build, Cost, Parameters, Weights

LARGEST_INT = 2**31


class Masked(Weights):
    """Weights of which a selector says what moves.

    It chooses when a stage starts, and again after each `refresh` optimizer steps: then the moments of entries that stay are
    carried over, those of new entries start at zero, and entries that leave keep the value that they have come to. The
    optimizer's step count goes on.

    Args:
        select: chooses.
        refresh: optimizer steps between two choices; 0 chooses once a stage.
        seed: of random choices; None is the run's.
        once: keep the first choice in all stages.
        name: as the logs call it.
    """

    redraws = shards = True

    def __init__(
        self, select: Selector, *, refresh: int = 0, seed: int | None = None, once: bool = False, name: str = "masked"
    ) -> None:  # fmt: skip
        if refresh < 0:
            raise WhetError(f"refresh is a number of optimizer steps, not {refresh}")
        self.select, self.every, self.seed, self.once, self.name = select, refresh, seed, once, name
        self.places: dict[str, Tensor] = {}
        self.whole: list[str] = []
        self.drawn = 0
        self.optimizers: list[Packed] = []

    def attach(self, policy: Policy, seed: int) -> None:
        super().attach(policy, seed)
        self.policy = policy
        self.root = seed if self.seed is None else self.seed

    def at_stage_start(self, policy: Policy) -> None:
        self.optimizers = []
        self._set(*((self.places, self.whole) if self.once and self.drawn else self._choose(policy)))

    def every_n_steps(self, policy: Policy, step: int) -> None:
        places, whole = self._choose(policy)
        if whole != self.whole or list(places) != list(self.places):
            raise WhetError(f"weights {self.name}: a refresh within a stage chooses other entries of the same tensors, not "
                            "others; choose once a stage (refresh=0)")  # fmt: skip
        self.places = places
        for optimizer in self.optimizers:
            optimizer.move(places)

    def optimizer(self, build: Build, parameters: Parameters) -> torch.optim.Optimizer:
        if not self.places and not self.whole:
            raise WhetError(f"weights {self.name}: nothing was chosen before an optimizer was made")
        made = Packed(build, parameters, self.places)
        self.optimizers.append(made)
        return made  # type: ignore[return-value]

    def mask(self, parameters: Parameters) -> None:
        """Zero the gradients outside, so that the norm that is clipped is that of what moves."""
        zero_outside(parameters, self.places)

    def cost(self, model: nn.Module) -> Cost:
        return self.select.cost(model, _draw_seed(self.seed or 0, 0))

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self.drawn, "whole": self.whole, "places": {n: p.cpu() for n, p in self.places.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.drawn = int(state["drawn"])
        self.optimizers = []
        device = self.policy.device
        self._set({n: p.to(device) for n, p in state["places"].items()}, list(state["whole"]))

    # -- choosing -------------------------------------------------------------------------------------------------------
    def facts(self, policy: Policy) -> Facts:
        """What the scores are told."""
        values: Mapping[str, Tensor] = {}
        if self.select.rows:
            if self.rows is None:
                raise WhetError(f"weights {self.name} calibrate on data, and nothing was bound that makes rows")
            values = self.select.calibrate(policy, self.rows(self.select.rows, self.select.task))
        return Facts(_draw_seed(self.root, self.drawn), values)

    @torch.no_grad()
    def _choose(self, policy: Policy) -> tuple[dict[str, Tensor], list[str]]:
        with torch.enable_grad():
            facts = self.facts(policy)
        selection = self.select(policy.model, facts)
        self.drawn += 1
        places = {n: _places(m).cpu() for n, m in selection.items() if isinstance(m, Tensor)}
        places, whole = policy.ranks.broadcast((places, [n for n, m in selection.items() if m is True]))
        device = policy.device
        return {n: p.to(device) for n, p in places.items()}, whole

    def _set(self, places: dict[str, Tensor], whole: list[str]) -> None:
        if not whole and not any(p.numel() for p in places.values()):
            raise WhetError(f"weights {self.name}: no entry was chosen, so that nothing could be learnt")
        self.places, self.whole = places, whole
        for name, parameter in self.policy.model.named_parameters():
            parameter.requires_grad_(name in places or name in whole)
        self.policy.refresh()

    @property
    def selection(self) -> Selection:
        """What moves now, as a selector says it."""
        shapes = dict(self.policy.model.named_parameters())
        masks: dict[str, Tensor | bool] = dict.fromkeys(self.whole, True)
        for name, places in self.places.items():
            mask = torch.zeros(shapes[name].numel(), dtype=torch.bool, device=places.device)
            mask[places.long()] = True
            masks[name] = mask.view(shapes[name].shape)
        return masks


class Packed:
    """An optimizer of the chosen entries of some parameters: vectors of as many entries as were chosen, and its moments too.

    Entries and gradients are gathered for a step and written back after it; in between only the moments are held. Of a parameter that is
    cut among ranks each has the chosen entries of its rows, and what is saved are the vectors of the whole.

    Args:
        build: makes the optimizer inside.
        parameters: those not in `places` are handed on as they are.
        places: name -> flat places (k,) of chosen entries, ascending.

    Attributes:
        places: those of them that this rank holds, within its part of the tensor.
    """

    def __init__(self, build: Build, parameters: Parameters, places: Mapping[str, Tensor]) -> None:
        self.parameters = {n: parameters[n] for n in places if n in parameters}
        self.places = {n: _here(places[n], p) for n, p in self.parameters.items()}
        self.everything = dict(parameters)
        self.packed = {n: nn.Parameter(_empty(p)) for n, p in self.parameters.items()}
        self.inside = build({n: self.packed.get(n, p) for n, p in parameters.items()})

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.inside.param_groups

    def zero_grad(self, set_to_none: bool = True) -> None:
        for parameter in self.everything.values():
            if set_to_none:
                parameter.grad = None
            elif parameter.grad is not None:
                parameter.grad.zero_()

    @torch.no_grad()
    def step(self) -> None:
        for name, packed in self.packed.items():
            parameter, at = self.parameters[name], self.places[name].long()
            packed.data = _flat(parameter)[at]
            packed.grad = None if parameter.grad is None else _flat(parameter.grad)[at]
        self.inside.step()
        for name, packed in self.packed.items():
            if packed.grad is not None:
                _flat(self.parameters[name])[self.places[name].long()] = packed.data
            packed.data, packed.grad = _empty(packed), None

    def move(self, places: Mapping[str, Tensor]) -> None:
        """Other entries of the same tensors: the moments of those that stay go along."""
        for name, packed in self.packed.items():
            state = self.inside.state.get(packed, {})
            parameter = self.parameters[name]
            now = _here(places[name], parameter)
            for key, value in state.items():
                if isinstance(value, Tensor) and value.dim():
                    state[key] = _remapped(value, self.places[name], now, local(parameter).numel())
            self.places[name] = now

    def carry(self, before: Packed) -> None:
        """Go on with the moments of an earlier optimizer of the same tensors, where its entries are these too."""
        held, own = before.inside.state_dict(), self.inside.state_dict()
        self.inside.load_state_dict({"state": held["state"], "param_groups": own["param_groups"]})
        now, self.places = self.places, dict(before.places)
        for name, parameter in self.parameters.items():
            now[name] = now[name] + span(parameter)[0]
        self.move(now)

    def state_dict(self) -> dict[str, Any]:
        return self._each(self.inside.state_dict(), lambda value, name: joined(value, self.parameters[name]))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.inside.load_state_dict(self._each(state, self._own))

    def _own(self, value: Tensor, name: str) -> Tensor:
        """This rank's entries of a vector of the whole: those after the entries that the ranks before it hold."""
        held = joined(torch.tensor([len(self.places[name])]), self.parameters[name]).tolist()
        first = sum(held[: place(self.parameters[name])])
        return value[first : first + len(self.places[name])]

    def _each(self, saved: Mapping[str, Any], do: Callable[[Tensor, str], Tensor]) -> dict[str, Any]:
        """A saved state with the vectors of chosen entries changed."""
        names = {id(p): name for name, p in self.packed.items()}
        order = [names.get(id(p)) for group in self.inside.param_groups for p in group["params"]]
        states = {
            i: {k: do(v, order[i]) if order[i] and isinstance(v, Tensor) and v.dim() else v for k, v in state.items()}
            for i, state in saved["state"].items()
        }
        return {**saved, "state": states}


@torch.no_grad()
def zero_outside(parameters: Parameters, places: Mapping[str, Tensor]) -> None:
    """Zero the gradients of all but the chosen entries, in the tensors that `places` (flat, by name) speaks of."""
    for name, at in places.items():
        gradient = parameters[name].grad
        if gradient is not None:
            flat, here = _flat(gradient), _here(at, parameters[name]).long()
            kept = flat[here]
            flat.zero_()[here] = kept


def _flat(tensor: Tensor) -> Tensor:
    """The entries of a tensor that this rank holds, sharing its memory."""
    return local(tensor.detach()).view(-1)


def _here(places: Tensor, parameter: Tensor) -> Tensor:
    """Those flat places that this rank holds, within its part."""
    start, stop = span(parameter)
    if (start, stop) == (0, parameter.numel()):
        return places
    return places[(places >= start) & (places < stop)] - start


def _remapped(value: Tensor, before: Tensor, after: Tensor, size: int) -> Tensor:
    dense = torch.zeros(size, dtype=value.dtype, device=value.device)
    dense[before.long()] = value
    return dense[after.long()]


def _places(mask: Tensor) -> Tensor:
    """(k,) flat places of a mask's True entries, in the smallest type that holds them."""
    found = mask.flatten().nonzero().squeeze(1)
    return found.to(torch.int32 if mask.numel() < LARGEST_INT else torch.int64)


def _empty(like: Tensor) -> Tensor:
    return torch.empty(0, dtype=like.dtype, device=like.device)


def _draw_seed(root: int, number: int) -> int:
    return seed_for(root, "weights", number)
