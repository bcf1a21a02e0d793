"""Bottleneck adapters (1902.00751): a small network behind each block, in series with it.

    h <- h + W_up gelu(W_down h)            W_down (m, H), W_up (H, m) = 0 at the start

Whoever runs a block runs its adapter. PEFT has no such member; what is saved is a folder of the same form, which plain PEFT refuses to
load by its type.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.utils import PushToHubMixin  # type: ignore[attr-defined]

from whet.errors import WhetError
from whet.models.hooks import blocks_of
from whet.models.trust import read_json

KIND = "BOTTLENECK"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


class Bottleneck(nn.Module):
    """(..., H) -> (..., H): the identity as long as `up` is zero."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, size), nn.Linear(size, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self.off = False

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden if self.off else hidden + self.up(nn.functional.gelu(self.down(hidden)))


class Bottlenecks(PushToHubMixin):
    """The adapters of a model, with what Whet asks of a PEFT model.

    Args:
        model: a causal LM; its other parameters are frozen.
        size: m.
    """

    active_adapter = "default"

    def __init__(self, model: Any, size: int) -> None:
        self.model = model
        first = next(model.parameters())
        model.requires_grad_(False)
        self.adapters: list[Bottleneck] = []
        for block in blocks_of(model):
            made = Bottleneck(model.config.get_text_config().hidden_size, size).to(first.device, first.dtype)
            block.bottleneck = made  # type: ignore[assignment]
            block.register_forward_hook(_through)
            self.adapters.append(made)
        self.peft_config = {self.active_adapter: SimpleNamespace(peft_type=KIND, size=size, is_prompt_learning=False)}

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        before = [adapter.off for adapter in self.adapters]
        try:
            for adapter in self.adapters:
                adapter.off = True
            yield
        finally:
            for adapter, off in zip(self.adapters, before, strict=True):
                adapter.off = off

    def merge_and_unload(self) -> NoReturn:
        raise WhetError("bottleneck adapters are not linear and cannot be merged into the weights: go on with --weights bottleneck, or "
                        "begin at their base")  # fmt: skip

    def save_pretrained(self, folder: str | Path, **_: Any) -> None:
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        size = self.peft_config[self.active_adapter].size
        config = {"peft_type": KIND, "size": size, "base_model_name_or_path": self.model.name_or_path}
        (place / CONFIG).write_text(json.dumps(config, indent=1))
        tensors = {
            f"{i}.{name}": p.detach().cpu().contiguous()
            for i, a in enumerate(self.adapters)
            for name, p in a.named_parameters()
        }
        save_file(tensors, place / WEIGHTS, {"format": "pt"})

    @classmethod
    def load(cls, model: Any, folder: str | Path) -> Bottlenecks:
        """The adapters of a folder, in their base.

        Raises:
            ValueError: they are those of another model.
        """
        made = cls(model, int(read_json(Path(folder) / CONFIG)["size"]))
        own = {f"{i}.{name}": p for i, a in enumerate(made.adapters) for name, p in a.named_parameters()}
        stored = load_file(Path(folder) / WEIGHTS)
        if {n: p.shape for n, p in own.items()} != {n: t.shape for n, t in stored.items()}:
            raise ValueError(
                f"its bottleneck adapters are not those of {type(model).__name__}: other blocks, or another width"
            )
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(stored[name])
        return made


def _through(block: Any, inputs: Any, output: Any) -> Any:
    """A hook that reads the adapter from its block, so that it is right in a copy of the model too."""
    if isinstance(output, tuple):  # in some versions of transformers
        return (block.bottleneck(output[0]), *output[1:])
    return block.bottleneck(output)
