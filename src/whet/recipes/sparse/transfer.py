"""What came of adding a reasoning vector (2509.01363): the sum itself, and the probe that measures it beside its controls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from whet.evaluation.matrix import Matrix, evaluate
from whet.evaluation.metrics import accuracy
from whet.evaluation.probes import Probe
from whet.models.meter import Meter
from whet.models.policy import Policy
from whet.probes.connectivity import along, barrier, mean_nll
from whet.records import Row
from whet.sources.collector import trim
from whet.tasks import Task
from whet.weights.controls import cosine, random_like, shuffled
from whet.weights.delta import WeightDelta
from whet.weights.snapshot import Snapshots, copy_weights, write_weights

CONTROLS: dict[str, Callable[[WeightDelta, int], WeightDelta]] = {"random": random_like, "shuffled": shuffled}
VECTORS = ("donor", "whole", *CONTROLS)


def between(models: Snapshots, vector: str = "donor", seed: int = 0) -> WeightDelta:
    """One of `VECTORS`."""
    if vector == "whole":
        return WeightDelta.between(models["after"], models["base"])
    found = WeightDelta.between(models["after"], models["before"])
    return CONTROLS[vector](found, seed) if vector in CONTROLS else found


def transfer(policy: Policy, models: Snapshots, delta: WeightDelta) -> None:
    """Make the policy the recipient plus a difference."""
    write_weights(policy, models["recipient"])
    delta.add_to(policy)


class Transferred(Probe):
    """The recipient with so much of the vector, and with its controls; how the donors lie. Measured once they are all there."""

    looks = False

    def __init__(self, models: Snapshots, scales: Sequence[float], n: int = 64) -> None:
        self.models, self.scales, self.n = models, scales, n

    def bind(self, policy: Policy, task: Task, seed: int) -> None:
        self.task, self.seed = task, seed
        shown = [policy.format.demonstration(p) for p in task.problems("validation", self.n, seed=seed)]
        self.rows = [Row({"response": trim(sample, policy.max_length)}) for sample in shown]

    @torch.no_grad()
    def measure(self, policy: Policy, greedy: Matrix) -> Mapping[str, float]:
        models = self.models
        if "after" not in models:
            return {}
        found, kept = dict[str, float](), copy_weights(policy, moving=False)
        changes = {f"{scale:g}": scale * between(models) for scale in self.scales}
        changes |= {name: between(models, name, self.seed) for name in VECTORS[1:]}
        for name, change in changes.items():
            transfer(policy, models, change)
            found[f"vector/{name}"] = self._accuracy(policy, greedy)
        for name in ("before", "after"):
            write_weights(policy, models[name])
            found[f"vector/{name}"] = self._accuracy(policy, greedy)
        line = along(policy, models["before"], models["after"], lambda at: mean_nll(at, self.rows))
        learnt = WeightDelta.between(models["before"], models["base"])
        found |= {"vector/barrier": barrier(line), "vector/cosine": cosine(between(models), learnt)}
        write_weights(policy, kept)
        return found

    def _accuracy(self, policy: Policy, greedy: Matrix) -> float:
        with policy.metered(Meter()):
            answered = evaluate(policy, self.task, greedy.problems, temperature=1.0, seed=self.seed)
        return float(accuracy(answered)["value"])
