"""What PEFT puts into a model beside LoRA: of each member the settings, the layers that it goes to, and how many entries it trains.

    additive            ia3       (l * x) W, or l * (x W): a factor for each key, value and inner unit
    reparameterisation  vera      W + diag(b) B diag(d) A          A, B random, shared and frozen
                        loha      W + (B1 A1) * (B2 A2) s          * entry by entry
                        lokr      W + C (x) (B A) s                (x) Kronecker
                        oft       R W, hra (I - 2 u u^T) ... W R orthogonal, of blocks; reflections
                        fourierft W + s F^-1(c)                    a few random frequencies
                        tinylora, miss

Each begins as the identity. The native sampler reads what a layer merges into, and packed rows need nothing more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from whet.errors import WhetError, first_line
from whet.models.policy import Policy
from whet.seeds import seed_for
from whet.weights.menu import choice
from whet.weights.selectors import is_norm, matrices
from whet.weights.weights import Cost, Lora, Weights, check_loaded

REPARAMETERISED = "reparameterisation"
KEYS_AND_VALUES, INNER = ("k_proj", "v_proj"), ("down_proj",)
Targets = Callable[[Any], list[str]]
Size = Callable[[int, int, Any], int]  # (outputs, inputs, settings) of a layer -> entries


class Injected(Weights):
    """Adapters by PEFT.

    Args:
        name: as on the menu.
        config: PEFT's configuration, by its name in `peft`.
        settings: of it.
        given: those of the settings that a user asked for: loaded adapters that have others are refused.
        size: entries of a layer, from its shape.
        targets: the layers; by default the linear ones but the head.
    """

    injects = True

    def __init__(
        self, name: str, config: str, settings: Mapping[str, Any], given: Mapping[str, Any], size: Size,
        targets: Targets | None = None,
    ) -> None:  # fmt: skip
        self.name, self.config = name, config
        self.given = {k: v for k, v in given.items() if v is not None}
        self.settings = {**settings, **self.given}
        self.size, self.targets = size, targets or linear_layers
        for key, value in self.given.items():
            if not value > 0:
                raise WhetError(f"{name}: {key} must be above 0, not {value}")

    def attach(self, policy: Policy, seed: int) -> None:
        """Put them in; a model that was loaded with them goes on with those.

        Raises:
            WhetError: PEFT has none for layers of this kind or shape, or the model has other adapters.
        """
        import peft

        if policy.peft is None:
            torch.manual_seed(seed_for(seed, "adapter"))
            try:
                config = getattr(peft, self.config)(task_type="CAUSAL_LM", **self.made(policy.model))
                policy.peft = peft.get_peft_model(policy.model, config)
            except (TypeError, ValueError) as problem:
                raise WhetError(
                    f"weights {self.name}: PEFT has none for {type(policy.model).__name__}: {first_line(problem)}"
                ) from None
            policy.fresh_adapters = True
        check_loaded(policy, self.name, self.given)
        policy.refresh()

    def made(self, model: Any) -> dict[str, Any]:
        """The settings for a model."""
        return {**self.settings, "target_modules": self.targets(model)}

    def cost(self, model: nn.Module) -> Cost:
        chosen = self.targets(model)
        layers = [model.get_submodule(name) for name in chosen]
        size = sum(
            self.size(*_sides(layer), {**self.settings, "name": n}) for n, layer in zip(chosen, layers, strict=True)
        )
        return Cost(size, size)


def linear_layers(model: Any) -> list[str]:
    """Names of the linear layers but the head."""
    return [name.removesuffix(".weight") for name in matrices(model)]


def scaled_layers(model: Any, inner: bool = False) -> list[str]:
    """Where IA3 scales: the layers that make keys and values, and those that are given the MLP's inner units; the latter alone where
    `inner`."""
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING as FED
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as KNOWN

    names, kind = linear_layers(model), model.config.model_type
    found = [n for n in names if n.endswith(INNER if inner else KEYS_AND_VALUES + INNER)]
    if not all(any(n.endswith(end) for n in names) for end in KEYS_AND_VALUES + INNER):  # other names: PEFT's list
        ends = (FED if inner else KNOWN).get(kind, ())
        found = [n for n in names if any(n.endswith(end) for end in ends)]
    if not found:
        raise WhetError(
            f"weights ia3: which layers of {type(model).__name__} make keys, values and inner units is not known"
        )
    return found


class Ia3(Injected):
    """Learnt factors; where a layer is given inner units its inputs are scaled, elsewhere its outputs."""

    def __init__(self) -> None:
        super().__init__("ia3", "IA3Config", {}, {}, lambda out, into, s: 0, scaled_layers)

    def made(self, model: Any) -> dict[str, Any]:
        return {"target_modules": scaled_layers(model), "feedforward_modules": scaled_layers(model, inner=True)}

    def cost(self, model: nn.Module) -> Cost:
        fed = set(scaled_layers(model, inner=True))
        size = sum(_sides(model.get_submodule(n))[n in fed] for n in scaled_layers(model))
        return Cost(size, size)


class LoraFa(Lora):
    """LoRA of which A stays as it was drawn (2308.03303): the activations that its gradient needs are not kept."""

    def __init__(self, rank: int | None, alpha: float | None) -> None:
        super().__init__(rank, alpha)
        self.name = "lora-fa"

    def moves(self, name: str) -> bool:
        return "lora_B" in name

    def cost(self, model: nn.Module) -> Cost:
        size = sum(self.rank * _sides(model.get_submodule(n))[0] for n in linear_layers(model))
        return Cost(size, size)


class LoraNorms(Lora):
    """LoRA on the linear layers, and the norms trained whole."""

    def __init__(self, rank: int | None, alpha: float | None) -> None:
        super().__init__(rank, alpha)
        self.name = self.kind = "lora-norms"

    def more(self, model: nn.Module) -> dict[str, Any]:
        return {"modules_to_save": [name for name, module in model.named_modules() if is_norm(module)]}

    def moves(self, name: str) -> bool:
        return "lora_" in name or ".modules_to_save." in name

    def cost(self, model: nn.Module) -> Cost:
        norms = sum(p.numel() for m in model.modules() if is_norm(m) for p in m.parameters(recurse=False))
        size = super().cost(model).moving + norms
        return Cost(size, size)


# -- sizes ---------------------------------------------------------------------------------------------------------------
def kronecker(out: int, into: int, settings: Mapping[str, Any]) -> int:
    """Entries of LoKr: C (a, c), and B A of the other factors (b, d) where the rank is small enough to save."""
    from peft.tuners.lokr.layer import factorization

    (a, b), (c, d), r = factorization(out), factorization(into), settings["r"]
    return a * c + (r * (b + d) if r < max(b, d) / 2 else b * d)


def rotated(out: int, into: int, settings: Mapping[str, Any]) -> int:
    """Entries of OFT: of each block the part above the diagonal."""
    size = settings["oft_block_size"]
    return (into // size) * size * (size - 1) // 2


def _sides(layer: nn.Module) -> tuple[int, int]:
    """(outputs, inputs) of a linear layer."""
    first, second = layer.weight.shape  # type: ignore[misc]
    return (int(first), int(second)) if isinstance(layer, nn.Linear) else (int(second), int(first))


# -- the menu ------------------------------------------------------------------------------------------------------------
@choice("ia3", family="additive")
def ia3() -> Weights:
    """A factor for each key, value and inner unit (IA3, 2205.05638)."""
    return Ia3()


@choice("lora-fa", family=REPARAMETERISED)
def lora_fa(rank: int | None = None, alpha: float | None = None) -> Weights:
    """LoRA of which the first matrix is frozen (2308.03303)."""
    return LoraFa(rank, alpha)


@choice("vera", family=REPARAMETERISED)
def vera(rank: int | None = None) -> Weights:
    """Two vectors around shared random matrices (2310.11454)."""
    return Injected("vera", "VeraConfig", {"r": 64}, {"r": rank}, lambda out, into, s: out + s["r"])


@choice("loha", family=REPARAMETERISED)
def loha(rank: int | None = None, alpha: float | None = None) -> Weights:
    """Products of two low-rank matrices, entry by entry (2108.06098)."""
    settings = {"r": 8, "alpha": 2.0 * (rank or 8)}
    return Injected(
        "loha", "LoHaConfig", settings, {"r": rank, "alpha": alpha}, lambda out, into, s: 2 * s["r"] * (out + into)
    )


@choice("lokr", family=REPARAMETERISED)
def lokr(rank: int | None = None, alpha: float | None = None) -> Weights:
    """Kronecker products (2309.14859)."""
    settings = {"r": 8, "alpha": 2.0 * (rank or 8)}
    return Injected("lokr", "LoKrConfig", settings, {"r": rank, "alpha": alpha}, kronecker)


@choice("oft", family=REPARAMETERISED)
def oft(block: int | None = None) -> Weights:
    """Rotations of blocks of each layer's inputs (2306.07280)."""
    return Injected("oft", "OFTConfig", {"oft_block_size": 8}, {"oft_block_size": block}, rotated)


@choice("hra", family=REPARAMETERISED)
def hra(rank: int | None = None) -> Weights:
    """A chain of reflections (2405.17484)."""
    return Injected("hra", "HRAConfig", {"r": 8}, {"r": rank}, lambda out, into, s: s["r"] * into)


@choice("fourierft", family=REPARAMETERISED)
def fourierft(frequencies: int | None = None, scaling: float | None = None) -> Weights:
    """A few random frequencies of each matrix (2405.03003)."""
    given = {"n_frequency": frequencies, "scaling": scaling}
    settings = {"n_frequency": 500, "scaling": 150.0, "init_weights": True}
    return Injected("fourierft", "FourierFTConfig", settings, given, lambda out, into, s: s["n_frequency"])


@choice("miss", family=REPARAMETERISED)
def miss(rank: int | None = None) -> Weights:
    """One small matrix, repeated over the inputs (2409.15371)."""
    return Injected("miss", "MissConfig", {"r": 8}, {"r": rank}, lambda out, into, s: s["r"] * out)


@choice("tinylora", family=REPARAMETERISED)
def tinylora(numbers: int | None = None, rank: int | None = None) -> Weights:
    """A few numbers for each matrix, mixed at random into its largest directions."""
    return Injected(
        "tinylora", "TinyLoraConfig", {"u": 64, "r": 2}, {"u": numbers, "r": rank}, lambda out, into, s: s["u"]
    )


@choice("lora-norms", family="hybrid")
def lora_norms(rank: int | None = None, alpha: float | None = None) -> Weights:
    """LoRA, and norm layers whole."""
    return LoraNorms(rank, alpha)
