"""Around another choice of weights: what a method does to gradients or at a stage's ends, whatever moves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from whet.models.policy import Policy
from whet.weights.weights import Build, Cost, Parameters, Rows, Weights


class Around(Weights):
    """Another choice of weights, with all of its hooks; a subclass adds to some.

    Args:
        inside: what moves; by default everything.
    """

    shards = True  # if those inside do

    def __init__(self, inside: Weights | None = None) -> None:
        self.inside = Weights() if inside is None else inside
        self.name, self.injects, self.every = self.inside.name, self.inside.injects, self.inside.every
        self.redraws = self.inside.redraws

    def bind(self, rows: Rows) -> None:
        self.inside.bind(rows)

    def attach(self, policy: Policy, seed: int) -> None:
        self.inside.attach(policy, seed)

    def before_rewind(self, policy: Policy, base: Mapping[str, torch.Tensor]) -> None:
        self.inside.before_rewind(policy, base)

    def at_stage_start(self, policy: Policy) -> None:
        self.inside.at_stage_start(policy)

    def optimizer(self, build: Build, parameters: Parameters) -> torch.optim.Optimizer:
        return self.inside.optimizer(build, parameters)

    def after_grads(self, parameters: Parameters) -> None:
        self.inside.after_grads(parameters)

    def mask(self, parameters: Parameters) -> None:
        self.inside.mask(parameters)

    def after_step(self, parameters: Parameters) -> None:
        self.inside.after_step(parameters)

    def every_n_steps(self, policy: Policy, step: int) -> None:
        self.inside.every_n_steps(policy, step)

    def at_stage_end(self, policy: Policy) -> None:
        self.inside.at_stage_end(policy)

    def cost(self, model: nn.Module) -> Cost:
        return self.inside.cost(model)

    def state_dict(self) -> dict[str, Any]:
        return {"inside": self.inside.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.inside.load_state_dict(state["inside"])
