"""AdaLoRA (2303.10512): low-rank adapters that give up their less useful directions while they train.

    W + s P diag(E) Q          E (r) = 0 at the start;  P, Q held near orthogonal by  o (|P^T P - I| + |Q Q^T - I|)

All matrices begin with `start` directions. From a fifth of `steps` to four fifths of them those of the lowest sensitivity, averaged
over steps, are masked (their E is 0), until the mean over matrices is `rank`; then the ranks stay. The allocation is PEFT's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from whet.errors import WhetError
from whet.models.policy import Policy
from whet.weights.injected import Injected
from whet.weights.menu import choice
from whet.weights.weights import Parameters, Weights

SENSITIVITY = ("ipt", "exp_avg_ipt", "exp_avg_unc")


class AdaLora(Injected):
    """PEFT's AdaLoRA.

    Args:
        rank: directions of a matrix at the end, on average; 8 where nothing is said.
        start: at the start; half as many more than `rank`.
        steps: optimizer steps over which they are given up.
        orthogonality: o.
    """

    every = 1

    def __init__(self, rank: int | None, start: int | None, steps: int, orthogonality: float) -> None:
        last = rank or 8
        first = start or last + max(1, last // 2)
        if first < last or steps < 5 or orthogonality < 0:
            raise WhetError(f"adalora: start is at least rank, steps at least 5 and orthogonality at least 0, not {first}, {steps} "
                            f"and {orthogonality:g}")  # fmt: skip
        settings = {"target_r": last, "init_r": first, "lora_alpha": 2.0 * last, "tinit": steps // 5, "tfinal": steps // 5,
                    "total_step": steps, "orth_reg_weight": orthogonality}  # fmt: skip
        super().__init__("adalora", "AdaLoraConfig", settings, {"target_r": rank, "init_r": start},
                         lambda out, into, s: s["init_r"] * (out + into + 1))  # fmt: skip
        self.orthogonality = orthogonality
        self.taken = 0

    def attach(self, policy: Policy, seed: int) -> None:
        if policy.peft is not None:
            raise WhetError("weights adalora: directions that were given up do not come back, so that loaded adapters are not trained "
                            "on; merge them first (--weights full does)")  # fmt: skip
        super().attach(policy, seed)
        peft: Any = policy.peft
        self.model = peft.base_model

    def after_grads(self, parameters: Parameters) -> None:
        """Add the gradient of the distance from orthogonality."""
        sides = {n: p for n, p in parameters.items() if "lora_A" in n or "lora_B" in n}
        if not self.orthogonality or any(p.grad is None for p in sides.values()):
            return
        with torch.enable_grad():
            gaps = [_gap(p if "lora_A" in n else p.T) for n, p in sides.items()]
            found = torch.autograd.grad(self.orthogonality * torch.stack(gaps).mean(), list(sides.values()))
        for parameter, gradient in zip(sides.values(), found, strict=True):
            assert parameter.grad is not None
            parameter.grad += gradient

    def every_n_steps(self, policy: Policy, step: int) -> None:
        self.taken += 1
        if all(p.grad is not None for n, p in policy.model.named_parameters() if p.requires_grad and "lora_" in n):
            self.model.update_and_allocate(self.taken)

    def at_stage_end(self, policy: Policy) -> None:
        """What is saved are the directions of the weights that are kept, and these may be earlier ones."""
        kept = {n: (p != 0).flatten().tolist() for n, p in policy.model.named_parameters() if "lora_E" in n}
        self.model.peft_config["default"].rank_pattern = kept

    def state_dict(self) -> dict[str, Any]:
        held = {name: dict(getattr(self.model.rankallocator, name)) for name in SENSITIVITY}
        return {"taken": self.taken, "pattern": self.model.peft_config["default"].rank_pattern, **held}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.taken = int(state["taken"])
        self.model.peft_config["default"].rank_pattern = state["pattern"]
        for name in SENSITIVITY:
            setattr(self.model.rankallocator, name, dict(state[name]))


def _gap(rows: nn.Parameter | torch.Tensor) -> torch.Tensor:
    return torch.linalg.matrix_norm(rows @ rows.T - torch.eye(len(rows), dtype=rows.dtype, device=rows.device))


@choice("adalora", family="reparameterisation")
def adalora(rank: int | None = None, start: int | None = None, steps: int = 100, orthogonality: float = 0.5) -> Weights:
    """Low-rank adapters that give up their less useful directions (2303.10512)."""
    return AdaLora(rank, start, steps, orthogonality)
