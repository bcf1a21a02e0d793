"""Hooks: read or replace what a block or a named module gives on or is given, inside a context and never outside it.

with spliced(policy, {3: read}): ...                                        # the output of block 3
with spliced(policy, {"model.layers.3.mlp": add}): ...                      # of a module, by its name
with spliced(policy, inputs={"model.layers.3.mlp.down_proj": read}): ...    # what a module is given
with spliced(policy, {3: without_gradient(replace)}): ...                   # a constant, for the backward
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from whet.errors import WhetError, unknown
from whet.models.policy import Policy

Splice = Callable[[Tensor], Tensor | None]


def blocks(policy: Policy) -> list[nn.Module]:
    """The decoder's blocks in order.

    Raises:
        WhetError: they were not found.
    """
    return blocks_of(policy.model, policy.decoder)


def blocks_of(model: Any, decoder: nn.Module | None = None) -> list[nn.Module]:
    """The same of a bare model: the outermost list of as many modules as the configuration has layers."""
    wanted = getattr(model.config, "num_hidden_layers", None)
    for module in (decoder or model).modules():  # outermost first
        if isinstance(module, nn.ModuleList) and len(module) == wanted:
            return list(module)
    raise WhetError(f"the blocks of {type(model).__name__} were not found: its decoder has no list of {wanted}")


@contextlib.contextmanager
def spliced(
    policy: Policy, splices: Mapping[int, Splice] | Mapping[str, Splice] | Mapping[int | str, Splice] | None = None,
    inputs: Mapping[str, Splice] | None = None,
) -> Iterator[None]:  # fmt: skip
    """Inside the context, block or module i gives on `splices[i](output)` (..., H), or its output where that is None (a read).

    Adapters and gradients pass through. A hooked block keeps its activations even under activation checkpointing: some versions of
    transformers would run its hooks again in the backward, when they are gone.

    Args:
        splices: by a block's place, or a module's name.
        inputs: by a module's name, the same for the first thing that it is given.

    Raises:
        WhetError: there is no such module.
    """
    found = blocks(policy)
    with contextlib.ExitStack() as stack:
        for site, splice in (splices or {}).items():
            module = found[site] if isinstance(site, int) else _module(policy, site)
            stack.callback(module.register_forward_hook(_hook(splice)).remove)
        for site, splice in (inputs or {}).items():
            stack.callback(_module(policy, site).register_forward_pre_hook(_pre_hook(splice)).remove)
        named = bool(inputs) or any(isinstance(site, str) for site in splices or {})
        for index, block in enumerate(found):
            held: Any = block
            if (named or index in (splices or {})) and getattr(held, "gradient_checkpointing", False):
                held.gradient_checkpointing = False
                stack.callback(setattr, held, "gradient_checkpointing", True)
        yield


def without_gradient(splice: Splice) -> Splice:
    """The same splice as a constant: no gradient goes through what it replaces."""

    def constant(hidden: Tensor) -> Tensor | None:
        with torch.no_grad():
            changed = splice(hidden)
        return None if changed is None else changed.detach()

    return constant


def _module(policy: Policy, name: str) -> nn.Module:
    try:
        return policy.model.get_submodule(name)
    except AttributeError:
        raise unknown(f"module of {type(policy.model).__name__}", name, dict(policy.model.named_modules())) from None


def _hook(splice: Splice) -> Callable[..., Any]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output  # which of both depends on the library's version
        changed = splice(hidden)
        if changed is None:
            return None
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    return hook


def _pre_hook(splice: Splice) -> Callable[..., Any]:
    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> Any:
        changed = splice(inputs[0])
        return None if changed is None else (changed, *inputs[1:])

    return hook
