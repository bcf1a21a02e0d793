"""Weights: which parameters move, and how.

A Weights object is attached to a policy when a stage starts; the loop calls its hooks in this order at each optimizer
step: accumulate -> reduce -> after_grads -> mask -> clip -> optimizer -> after_step -> every_n_steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from whet.errors import WhetError, unknown
from whet.models.policy import Policy
from whet.seeds import seed_for

Parameters = Mapping[str, nn.Parameter]


class Weights:
    """Full fine-tuning, and the base of every other choice. Hooks do nothing by default."""

    name = "full"
    injects: bool = False  # whether it puts parameters of its own beside the model's (adapters)
    every: int = 0  # call `every_n_steps` after each so many optimizer steps; 0 never

    def attach(self, policy: Policy, seed: int) -> None:
        """Set `requires_grad` (and inject what must be injected). Called once, before the first stage it serves.

        Full weights under loaded adapters would be lost by a PEFT folder, so the adapters are merged first.
        """
        if policy.peft is not None:
            policy.model, policy.peft = policy.peft.merge_and_unload(), None
        for parameter in policy.model.parameters():
            parameter.requires_grad_(True)
        policy.refresh()

    def at_stage_start(self, policy: Policy) -> None: ...

    def after_grads(self, parameters: Parameters) -> None:
        """Change reduced gradients, before masking and clipping."""

    def mask(self, parameters: Parameters) -> None:
        """Zero the gradients of entries that must not move."""

    def after_step(self, parameters: Parameters) -> None: ...

    def every_n_steps(self, policy: Policy, step: int) -> None: ...

    def at_stage_end(self, policy: Policy) -> None: ...

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
    """

    injects = True

    def __init__(self, rank: int | None = None, alpha: float | None = None, variant: str = "lora") -> None:
        self.name = variant
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
                use_rslora=self.name == "rslora", use_dora=self.name == "dora", task_type="CAUSAL_LM",
            )  # fmt: skip
            torch.manual_seed(seed_for(seed, "adapter"))
            policy.peft = get_peft_model(policy.model, config)
            policy.fresh_adapters = True
        self._check(policy)
        for name, parameter in policy.model.named_parameters():
            parameter.requires_grad_("lora_" in name)
        policy.refresh()

    def _check(self, policy: Policy) -> None:
        found = policy.peft.peft_config[policy.peft.active_adapter]
        kind = "dora" if found.use_dora else "rslora" if found.use_rslora else "lora"
        if kind != self.name or any(getattr(found, k) != v for k, v in self.given.items()):
            raise WhetError(f"the model was loaded with {kind} adapters of rank {found.r} and alpha {found.lora_alpha:g}; "
                            f"use --weights {kind} to go on with them, or --weights full to merge them")  # fmt: skip


_KINDS: dict[str, Callable[..., Weights]] = {
    "full": Weights,
    "lora": lambda **k: Lora(**k),
    "rslora": lambda **k: Lora(**k, variant="rslora"),
    "dora": lambda **k: Lora(**k, variant="dora"),
}


def get_weights(spec: str | Weights) -> Weights:
    """Weights from a spec: `full`, `lora`, `lora:rank=8,alpha=16` ..."""
    if isinstance(spec, Weights):
        return spec
    name, _, rest = spec.partition(":")
    if name not in _KINDS:
        raise unknown("weights", name, _KINDS)
    pairs = {key: value for key, _, value in (part.partition("=") for part in rest.split(",") if part)}
    try:
        return _KINDS[name](**{k: float(v) for k, v in pairs.items()})
    except (TypeError, ValueError) as problem:
        raise WhetError(f"weights '{spec}': {problem}") from None
