"""Snapshots: weights set aside under a name, for rewinding, anchors, deltas and probes.

On the CPU, or on disk where a folder is given: then a snapshot outlives the run and is read a tensor at a time.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from whet.errors import WhetError, unknown
from whet.models.policy import Policy
from whet.weights.delta import WeightDelta
from whet.weights.files import Stored
from whet.weights.weights import Weights


class Snapshots(Mapping[str, Mapping[str, Tensor]]):
    """Named snapshots of one policy's weights.

    Args:
        folder: keep them there; None keeps them in memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.held: dict[str, dict[str, Tensor]] = {}

    def take(self, name: str, policy: Policy, *, moving: bool = False) -> None:
        """Set the weights of now aside; an earlier snapshot of this name is replaced.

        Args:
            moving: only what is trained.
        """
        if not re.fullmatch(r"[\w.-]+", name):
            raise WhetError(f"a snapshot's name is letters, digits, dots and dashes, not '{name}'")
        weights = copy_weights(policy, moving=moving)
        if self.folder is None:
            self.held[name] = weights
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        draft = self.folder / f".{name}.{os.getpid()}"
        save_file(weights, draft)
        draft.replace(self._file(name))

    def rewind(self, name: str, policy: Policy) -> None:
        """Put a snapshot back, exactly."""
        write_weights(policy, self[name])

    def since(self, name: str, policy: Policy) -> WeightDelta:
        """What has changed since: the policy of now minus the snapshot."""
        now = {own_name(n): p for n, p in policy.named_parameters()}
        before = self[name]
        return WeightDelta.between({n: now[n].detach().cpu() for n in before}, before)

    def drop(self, name: str) -> None:
        """Forget a snapshot."""
        if self.folder is None:
            self.held.pop(name, None)
        else:
            self._file(name).unlink(missing_ok=True)

    def __getitem__(self, name: str) -> Mapping[str, Tensor]:
        if name not in list(self):
            raise unknown("snapshot", name, self)
        return self.held[name] if self.folder is None else Stored(self._file(name))

    def __contains__(self, name: object) -> bool:
        return name in list(self)

    def __iter__(self) -> Iterator[str]:
        if self.folder is None:
            return iter(self.held)
        return iter(sorted(p.stem for p in self.folder.glob("[!.]*.safetensors")))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _file(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}.safetensors"


class Kept(Weights):
    """Full fine-tuning; the weights that its stage ends with are set aside, for a later stage of the run.

    Args:
        models: shared by the stages of a run, held in memory and saved in checkpoints.
        last: the name of what the stage ends with; empty for a stage in between, that only keeps what was set aside before.
    """

    def __init__(self, models: Snapshots, last: str = "") -> None:
        self.models, self.last = models, last

    def at_stage_end(self, policy: Policy) -> None:
        if self.last:
            self.models.take(self.last, policy)

    def state_dict(self) -> dict[str, Any]:
        return {"models": dict(self.models.held)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.models.held = dict(state["models"])


def copy_weights(policy: Policy, *, moving: bool = True) -> dict[str, Tensor]:
    """Copies on the CPU, by name (tied weights once): of what is trained, or of everything."""
    chosen = policy.trainable_parameters() if moving else dict(policy.named_parameters())
    return {own_name(n): p.detach().cpu().clone() for n, p in chosen.items()}


@torch.no_grad()
def write_weights(policy: Policy, weights: Mapping[str, Tensor]) -> None:
    """Put copies back. Raises WhetError where they are another model's."""
    own = {own_name(n): p for n, p in policy.named_parameters()}
    for name, value in weights.items():
        if name not in own or own[name].shape != value.shape:
            has = f"has shape {list(own[name].shape)}" if name in own else "is not there"
            raise WhetError(f"weights '{name}' of shape {list(value.shape)} belong to another model: in '{policy.name}' it {has}; "
                            "give the checkpoint of this one")  # fmt: skip
        own[name].copy_(value)


def own_name(name: str) -> str:
    """A parameter's name whether or not adapters have been put around its layer since."""
    return name.replace(".base_layer.", ".")
