"""Hooks on decoder blocks: read or replace what a block gives on, inside a context and never outside it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from whet.errors import WhetError
from whet.models.policy import Policy

Splice = Callable[[Tensor], Tensor | None]


def blocks(policy: Policy) -> list[nn.Module]:
    """The decoder's blocks in order: its outermost list of as many modules as the configuration has layers.

    Raises:
        WhetError: there is no such list.
    """
    wanted = getattr(policy.model.config, "num_hidden_layers", None)
    for module in policy.decoder.modules():  # outermost first
        if isinstance(module, nn.ModuleList) and len(module) == wanted:
            return list(module)
    raise WhetError(f"the blocks of {type(policy.model).__name__} were not found: its decoder has no list of {wanted}")


@contextlib.contextmanager
def spliced(policy: Policy, splices: Mapping[int, Splice]) -> Iterator[None]:
    """Inside the context, block i gives on `splices[i](output)` (..., H), or its output where that is None (a read).

    Adapters and gradients pass through. A hooked block keeps its activations even under activation checkpointing: some versions of
    transformers would run its hooks again in the backward, when they are gone.
    """
    found = blocks(policy)
    with contextlib.ExitStack() as stack:
        for index, splice in splices.items():
            block: Any = found[index]
            handle = block.register_forward_hook(_hook(splice))
            stack.callback(handle.remove)
            if getattr(block, "gradient_checkpointing", False):
                block.gradient_checkpointing = False
                stack.callback(setattr, block, "gradient_checkpointing", True)
        yield


def _hook(splice: Splice) -> Callable[..., Any]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output  # which of both depends on the library's version
        changed = splice(hidden)
        if changed is None:
            return None
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    return hook
