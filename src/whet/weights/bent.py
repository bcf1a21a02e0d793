"""Gradients that are bent towards another model: DRIFT (2510.15050 section 3.3).

For each matched tensor, with gradient g and direction D = W_expert - W (or W_expert - W_origin), norms of that tensor alone:

    absolute     g~ = g - alpha D
    grad-norm    g~ = g - alpha |g| D/|D|
    adaptive     g~ = g - alpha (1 + cos(g, D))/2 |g| D/|D|

Descent goes along -g~, so that the weights move towards the expert. Of `adaptive`: where -g points along D nothing is added, where
g is orthogonal to D half of |g|, and where -g points straight away from the expert the whole gradient is cancelled. (The paper
writes g + alpha ... with alpha = -1.) D is taken once, when the stage starts, and is held on the CPU.

It is done once an optimizer step, on the accumulated and reduced gradient, before masks and clipping; the release does it in each
backward, which is the same where a step is one micro-batch (`micro`). AdamW then scales each entry: what was added does not keep
its direction, as published.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from whet.errors import WhetError, unknown
from whet.models.policy import Policy
from whet.weights.around import Around
from whet.weights.controls import random_like
from whet.weights.delta import Dense, WeightDelta, open_model
from whet.weights.files import Match, match
from whet.weights.halves import units
from whet.weights.menu import choice, get_weights
from whet.weights.selectors import is_norm
from whet.weights.weights import Parameters, Weights

MODES = ("absolute", "grad-norm", "adaptive")
DIRECTIONS = ("expert", "reverse", "random")
VISION = ("visual", "vision")  # parts of a name that is no language model's
FLOOR = 1e-12  # of norms

Model = Callable[[], Mapping[str, Tensor]]


def bend(gradient: Tensor, direction: Tensor, alpha: float = 1.0, mode: str = "adaptive") -> Tensor:
    """A tensor's gradient, bent; in the gradient's type, by fp32 arithmetic at least.

    g = [3, 4], D = [1, 0]: absolute [2, 4]; grad-norm [-2, 4]; adaptive [-1, 4], as cos is 0.6.
    """
    wide = torch.promote_types(gradient.dtype, torch.float32)
    g, d = gradient.to(wide), direction.to(gradient.device, wide)
    if mode == "absolute":
        return (g - alpha * d).to(gradient.dtype)
    size, length = g.norm(), d.norm().clamp_min(FLOOR)
    share = torch.ones_like(size)
    if mode == "adaptive":
        cosine = (g.flatten() @ d.flatten()) / (size.clamp_min(FLOOR) * length)
        share = (1 + cosine.clamp(-1, 1)) / 2
    return (g - (alpha * share * size / length) * d).to(gradient.dtype)


class Bent(Around):
    """Weights whose gradients are bent.

    Tensors that the expert has not, or in another shape, and those of a vision tower keep their gradients.

    Args:
        expert: gives the weights of the expert, asked for when a stage starts.
        origin: what D is taken from; None is the policy when the stage starts.
        alpha: strength, 0 or more.
        mode: one of `MODES`.
        modules: whose tensors; see `strengths`.
        rescale: D is given the norm of W, tensor by tensor; without effect but for `absolute`.
        direction: D, or as controls -D or a random one of D's norm in each tensor.
        merge: so much of D (not rescaled) is added to the weights when the stage starts: task arithmetic.
        micro: bend the gradient of each micro-batch, on each rank, and not that of the step.
        inside: what moves; its masks come after.
    """

    def __init__(
        self, expert: Model, origin: Model | None = None, *, alpha: float = 1.0, mode: str = "adaptive",
        modules: str = "attn;mlp", rescale: bool = True, direction: str = "expert", merge: float = 0.0, micro: bool = False,
        inside: Weights | None = None,
    ) -> None:  # fmt: skip
        super().__init__(inside)
        if mode not in MODES:
            raise unknown("mode of drift", mode, MODES)
        if direction not in DIRECTIONS:
            raise unknown("direction of drift", direction, DIRECTIONS)
        if alpha < 0:
            raise WhetError(f"drift: alpha is 0 or more, not {alpha:g}; away from the expert is direction=reverse")
        if not rescale and mode != "absolute":
            raise WhetError(f"drift: the norm of the direction does not matter in mode {mode}; leave rescale=false out")
        if self.injects:
            raise WhetError(f"drift bends the gradients of the model's own weights, which {self.inside.name} does not train; "
                            "move them (full, or a mask)")  # fmt: skip
        if micro and self.every:
            raise WhetError(
                f"drift: micro=true bends what moves at the stage's start, and {self.inside.name} moves others later"
            )
        self.name = "drift" if self.inside.name == "full" else f"drift, {self.inside.name}"
        self.expert, self.origin, self.mode, self.alpha, self.modules = expert, origin, mode, alpha, modules
        self.rescale, self.towards, self.merge, self.micro = rescale, direction, merge, micro
        self.directions: dict[str, Tensor] = {}
        self.strengths: dict[str, float] = {}
        self.hooks: list[Any] = []

    def attach(self, policy: Policy, seed: int) -> None:
        super().attach(policy, seed)
        self.policy, self.seed = policy, seed
        self.strengths = {n: self.alpha * factor for n, factor in strengths(policy.model, self.modules).items()}

    def at_stage_start(self, policy: Policy) -> None:
        delta = self._difference(policy)
        self.directions = dict(self._taken(delta, policy))
        if self.merge:
            (self.merge * delta).add_to(policy)
        super().at_stage_start(policy)
        self._hook()

    def after_grads(self, parameters: Parameters) -> None:
        if not self.micro:
            for name, parameter in parameters.items():
                if parameter.grad is not None and self._bends(name):
                    parameter.grad.copy_(self._bend(name, parameter.grad))
        super().after_grads(parameters)

    def at_stage_end(self, policy: Policy) -> None:
        self._unhook()
        super().at_stage_end(policy)

    def state_dict(self) -> dict[str, Any]:
        """With the direction: the weights that it was taken from may be gone."""
        return {**super().state_dict(), "directions": self.directions}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.directions = dict(state["directions"])
        self._hook()

    # -- the direction --------------------------------------------------------------------------------------------------
    def _difference(self, policy: Policy) -> WeightDelta:
        own = {n: p.detach() for n, p in policy.model.named_parameters() if n in self.strengths}
        delta = difference(own, self.expert(), self.origin() if self.origin else None)
        if self.towards == "reverse":
            return -delta
        return random_like(delta, self.seed) if self.towards == "random" else delta

    def _taken(self, delta: WeightDelta, policy: Policy) -> Iterator[tuple[str, Tensor]]:
        own = dict(policy.model.named_parameters())
        moves = False
        for name in delta:
            d = delta.dense(name)
            moves = moves or bool(d.any())
            if self.rescale:
                d = d * (own[name].detach().float().norm().to(d) / d.norm().clamp_min(FLOOR))
            yield name, d.to("cpu", own[name].dtype)
        if not moves:
            raise WhetError("drift: the expert's weights are those that it is compared with, so that there is no direction; give "
                            "another expert")  # fmt: skip

    # -- the gradients --------------------------------------------------------------------------------------------------
    def _bends(self, name: str) -> bool:
        return name in self.directions and self.strengths[name] > 0  # 0 is to be the plain gradient, to the bit

    def _bend(self, name: str, gradient: Tensor) -> Tensor:
        return bend(gradient, self.directions[name], self.strengths[name], self.mode)

    def _hook(self) -> None:
        self._unhook()
        for name, parameter in self.policy.model.named_parameters() if self.micro else ():
            if parameter.requires_grad and self._bends(name):
                self.hooks.append(parameter.register_hook(lambda g, name=name: self._bend(name, g)))

    def _unhook(self) -> None:
        for hook in self.hooks:
            hook.remove()
        self.hooks = []


def difference(
    own: Mapping[str, Tensor], expert: Mapping[str, Tensor], origin: Mapping[str, Tensor] | None = None
) -> WeightDelta:
    """expert - origin by the names of `own`, lazily; expert - own without an origin.

    Names are matched through prefixes and wrappers (`files.match`). Tensors that do not match in shape are left out; a bias that one
    of the models lacks, beside a weight that it has, counts as 0 there.

    Raises:
        WhetError: nothing matches.
    """
    sides = {"expert": expert, **({} if origin is None else {"origin": origin})}
    shapes = {n: tuple(t.shape) for n, t in own.items()}
    found = {side: match(shapes, _shapes(w)) for side, w in sides.items()}
    for side, pairs in found.items():
        if not pairs.pairs:
            raise WhetError(f"drift: nothing in the {side} matches the model: {'; '.join(pairs.problems())}")
    names = [n for n in own if own[n].is_floating_point() and all(_has(m, n) for m in found.values())]

    def read(name: str) -> Dense:
        here = own[name].float()
        values = {s: _value(weights, found[s].pairs.get(name), here) for s, weights in sides.items()}
        return Dense(values["expert"] - values.get("origin", here))

    return WeightDelta({n: shapes[n] for n in names}, read)


def strengths(model: nn.Module, modules: str) -> dict[str, float]:
    """Parameter name -> its factor on alpha.

    Args:
        modules: separated by `;`, each a preset (attn, mlp, norm, embed, head, full) or a regular expression that finds names,
            and a factor where it is not 1: `attn=0.5;mlp`, `layers[.][4-7][.]`. A later one replaces an earlier one.

    Raises:
        WhetError: one of them finds nothing.
    """
    found: dict[str, float] = {}
    for part in filter(None, (p.strip() for p in modules.split(";"))):
        which, _, factor = part.rpartition("=")
        try:
            names, strength = _named(model, which or part), float(factor) if which else 1.0
        except (ValueError, re.error):
            raise WhetError(f"drift modules '{part}': a preset or a regular expression, and =number") from None
        names = [n for n in names if not any(word in n for word in VISION)]
        if not names or strength < 0:
            raise WhetError(f"drift modules '{part}': " + ("a factor is 0 or more" if names else "the model has none"))
        found |= dict.fromkeys(names, strength)
    if not found:
        raise WhetError("drift: name the modules whose gradients are bent, as in modules='attn;mlp'")
    return found


def _named(model: Any, which: str) -> list[str]:
    names = {id(p): n for n, p in model.named_parameters()}  # tied ones once
    categories = {"attn": "attention", "mlp": "feed-forward"}
    if which in categories:
        return [n for block in units(model) for unit in block.get(categories[which], []) for n in unit]
    if which == "norm":
        return [names[id(p)] for m in model.modules() if is_norm(m) for p in m.parameters(recurse=False)]
    if which in ("embed", "head"):
        end = model.get_input_embeddings() if which == "embed" else model.get_output_embeddings()
        return [] if end is None else [names[id(p)] for p in end.parameters() if id(p) in names]
    return [n for n in names.values() if which == "full" or re.search(which, n)]


def _has(found: Match, name: str) -> bool:
    return name in found.pairs or (
        name.endswith(".bias")
        and name in found.ours  # there is none, rather than one of another shape
        and name.removesuffix("bias") + "weight" in found.pairs
    )


def _value(weights: Mapping[str, Tensor], name: str | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if name is None else weights[name].to(like)


def _shapes(weights: Mapping[str, Tensor]) -> Mapping[str, tuple[int, ...]]:
    known = getattr(weights, "shapes", None)  # of a file, without reading it
    return known if known is not None else {n: tuple(t.shape) for n, t in weights.items()}


def stored(source: str) -> Model:
    """A model, run or adapters on disk, looked for now and read when it is asked for.

    Raises:
        WhetError: there is none.
    """
    weights = open_model(source)
    return lambda: weights


@choice("drift", family="full", paper="drift")
def drift(
    expert: str = "", origin: str = "", alpha: float = 1.0, mode: str = "adaptive", modules: str = "attn;mlp",
    rescale: bool = True, direction: str = "expert", micro: bool = False, inside: str = "full",
) -> Weights:  # fmt: skip
    """All parameters, their gradients bent towards an expert model (2510.15050)."""
    if not expert:
        raise WhetError("drift bends gradients towards a model; name it, as in drift:expert=FOLDER")
    return Bent(stored(expert), stored(origin) if origin else None, alpha=alpha, mode=mode, modules=modules, rescale=rescale,
                direction=direction, micro=micro, inside=get_weights(inside))  # fmt: skip
