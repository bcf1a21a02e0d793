"""Weights: which parameters move, and how.

A Weights object is attached to a policy when a stage starts; the loop calls its hooks in this order at each optimizer
step: accumulate -> reduce -> after_grads -> mask -> clip -> optimizer -> after_step -> every_n_steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from whet.errors import WhetError
from whet.models.policy import Policy
from whet.records import Row
from whet.seeds import seed_for

Parameters = Mapping[str, nn.Parameter]
Build = Callable[[Parameters], torch.optim.Optimizer]
MENU_NAMES = {"PROMPT_TUNING": "prompt", "PREFIX_TUNING": "prefix", "P_TUNING": "p-tuning"}
Rows = Callable[[int, str], Sequence[Row]]


@dataclass(frozen=True)
class Cost:
    """What a choice of weights asks for, in entries, known from the model's shapes.

    Attributes:
        moving: entries that the optimizer moves, each with its moments; at most so many, where it depends on the values.
        gradients: entries of all tensors that get a gradient.
        places: entries whose place is kept (4 bytes each).
    """

    moving: int
    gradients: int
    places: int = 0

    def optimizer(self, size: int = 4) -> int:
        """Bytes of AdamW's two moments, of `size` bytes an entry, and of the places."""
        return 2 * size * self.moving + 4 * self.places


class Weights:
    """Full fine-tuning, and the base of every other choice. Hooks do nothing by default."""

    name = "full"
    injects: bool = False  # whether it puts parameters of its own beside the model's (adapters)
    shards: bool = (
        True  # whether the step's hooks know parameters that are cut among ranks; each class that has one says it
    )
    every: int = 0  # call `every_n_steps` after each so many optimizer steps; 0 never
    redraws: bool = False  # whether each stage moves others: checkpoints of several stages then hold all parameters
    rows: Rows | None = None

    def bind(self, rows: Rows) -> None:
        """Called before `attach`: `rows(n, task)` makes n demonstrations to calibrate on, of a named task or of the stage's."""
        self.rows = rows

    def attach(self, policy: Policy, seed: int) -> None:
        """Set `requires_grad` (and inject what must be injected). Called once, before the first stage it serves.

        Full weights under loaded adapters would be lost by a PEFT folder, so the adapters are merged first.
        """
        if policy.peft is not None:
            policy.model, policy.peft = policy.peft.merge_and_unload(), None
        for parameter in policy.model.parameters():
            parameter.requires_grad_(True)
        policy.refresh()

    def before_rewind(self, policy: Policy, base: Mapping[str, torch.Tensor]) -> None:
        """A stage goes back to `base`, the run's first weights: the last look at those that the stage before left."""

    def at_stage_start(self, policy: Policy) -> None:
        """The stage's first weights are there; a resumed stage gets `load_state_dict` instead."""

    def optimizer(self, build: Build, parameters: Parameters) -> torch.optim.Optimizer:
        """The optimizer of an update; `build` makes it for the parameters that it is given."""
        return build(parameters)

    def after_grads(self, parameters: Parameters) -> None:
        """Change reduced gradients, before masking and clipping."""

    def mask(self, parameters: Parameters) -> None:
        """Zero the gradients of entries that must not move."""

    def after_step(self, parameters: Parameters) -> None: ...

    def every_n_steps(self, policy: Policy, step: int) -> None: ...

    def at_stage_end(self, policy: Policy) -> None:
        """The stage is over; at the end of a run its best weights are back. It may be called again by a resumed run."""

    def cost(self, model: nn.Module) -> Cost:
        """Its cost on a model, whose parameters may lie on the meta device."""
        size = sum(p.numel() for p in model.parameters())
        return Cost(size, size)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Lora(Weights):
    """PEFT's low-rank adapters on every linear layer but the head.

    A model that was loaded with adapters goes on with those; other settings than theirs are refused.

    Args:
        rank: r; 16 where nothing is said.
        alpha: scale of the update is alpha / r (alpha / sqrt(r) for `rslora`); 2 r where nothing is said.
        variant: `lora`, `rslora` (2312.03732), `dora` (2402.09353).

    Attributes:
        kind: what its adapters are in a folder; see `kind_of`.
    """

    injects = True

    def __init__(self, rank: int | None = None, alpha: float | None = None, variant: str = "lora") -> None:
        self.name = self.kind = variant
        self.given = {k: v for k, v in (("r", rank), ("lora_alpha", alpha)) if v is not None}
        self.rank = 16 if rank is None else int(rank)
        self.alpha = 2.0 * self.rank if alpha is None else float(alpha)
        if self.rank < 1 or self.alpha <= 0:
            raise WhetError(f"{variant}: rank must be at least 1 and alpha above 0, not {rank} and {alpha}")

    def attach(self, policy: Policy, seed: int) -> None:
        from peft import LoraConfig, get_peft_model

        if policy.peft is None:
            config = LoraConfig(
                r=self.rank, lora_alpha=self.alpha, target_modules="all-linear", lora_dropout=0.0,  # type: ignore[arg-type]
                use_rslora=self.kind == "rslora", use_dora=self.kind == "dora", task_type="CAUSAL_LM",
                **self.more(policy.model),
            )  # fmt: skip
            torch.manual_seed(seed_for(seed, "adapter"))
            policy.peft = get_peft_model(policy.model, config)
            policy.fresh_adapters = True
        check_loaded(policy, self.kind, self.given)
        for name, parameter in policy.model.named_parameters():
            parameter.requires_grad_(self.moves(name))
        policy.refresh()

    def more(self, model: nn.Module) -> dict[str, Any]:
        """Further settings of PEFT's."""
        return {}

    def moves(self, name: str) -> bool:
        """Whether a parameter of this name is trained."""
        return "lora_" in name

    def cost(self, model: nn.Module) -> Cost:
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
        layers: list[Any] = [m for m in model.modules() if linear(m) and m is not head]
        size = sum(self.rank * sum(m.weight.shape) for m in layers)
        if self.kind == "dora":  # a length for each output
            size += sum(m.weight.shape[isinstance(m, _conv1d())] for m in layers)
        return Cost(size, size)


def kind_of(peft: Any) -> str:
    """What adapters are, by the name that they have on the menu."""
    found = peft.peft_config[peft.active_adapter]
    kind = str(getattr(found.peft_type, "value", found.peft_type))
    if kind == "LORA":
        whole = "lora-norms" if found.modules_to_save else "lora"
        return "dora" if found.use_dora else "rslora" if found.use_rslora else whole
    return MENU_NAMES.get(kind, kind.lower())


def check_loaded(policy: Policy, kind: str, given: Mapping[str, Any]) -> None:
    """Refuse a policy whose adapters are of another kind, or were made with other settings than those given."""
    found, own = policy.peft.peft_config[policy.peft.active_adapter], kind_of(policy.peft)
    if own == kind and all(getattr(found, k) == v for k, v in given.items()):
        return
    names = (("rank", "r"), ("alpha", "lora_alpha")) if "lora" in own or own == "dora" else ((k, k) for k in given)
    told = " and ".join(f"{name} {getattr(found, k):g}" for name, k in names if hasattr(found, k))
    raise WhetError(f"the model was loaded with {own} adapters{f' of {told}' if told else ''}; "
                    f"use --weights {own} to go on with them, or --weights full to merge them")  # fmt: skip


def linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer: torch's, or GPT-2's, whose weight is (in, out)."""
    return isinstance(module, nn.Linear | _conv1d())


def _conv1d() -> type[nn.Module]:
    from transformers.pytorch_utils import Conv1D

    return Conv1D
