"""What saves memory, and what it cannot be used with: it is refused before a run begins, never in the middle."""

from __future__ import annotations

from collections.abc import Sequence

from whet.errors import WhetError
from whet.models.quantized import bitsandbytes
from whet.training.stage import Stage
from whet.weights import Weights
from whet.weights.around import Around

STEP_HOOKS = ("optimizer", "after_grads", "mask", "after_step", "every_n_steps")


def check_shards(stages: Sequence[Stage], weights: Weights) -> None:
    """Raise WhetError where a part of the stages would read a rank's part of a tensor as if it were all of it.

    Args:
        weights: what moves in stages that do not say.
    """
    for stage in stages:
        own = stage.weights or weights
        if hook := stranger(own):
            raise WhetError(f"--shard: weights {own.name} look at whole tensors in a step ({hook}), and a rank has a part of them; leave "
                            "--shard out")  # fmt: skip
        for update in stage.updates:
            for _, term in update.loss.terms:
                if term.scope == "parameters":
                    raise WhetError(f"--shard: term '{term.name}' is of the parameters themselves, and a rank has a part of them; leave "
                                    "--shard out")  # fmt: skip


def check_bits(stages: Sequence[Stage], weights: Weights, *, base: bool, moments: bool, shard: bool) -> None:
    """Raise WhetError where fewer bits (`whet.models.quantized`) cannot serve these stages.

    Args:
        base: the model is held in 4 bits.
        moments: the optimizer's moments are held in 8 bits.
        shard: tensors are cut among ranks.
    """
    if not (base or moments):
        return
    if shard:
        raise WhetError("--shard cuts tensors where bitsandbytes quantizes blocks of them: use one of --shard, and --quantize or "
                        "--optimizer adamw8bit")  # fmt: skip
    for own in dict.fromkeys(stage.weights or weights for stage in stages):
        if base and not own.injects:
            raise WhetError(f"--quantize nf4: a base of 4 bits does not move, and weights {own.name} would move it; use adapters "
                            "(--weights lora)")  # fmt: skip
        if moments and not _whole(own):
            raise WhetError(
                f"--optimizer adamw8bit: weights {own.name} keep moments of chosen entries alone, which are few; leave it out"
            )
    bitsandbytes()


def _whole(weights: Weights) -> bool:
    """Whether the optimizer has moments of whole tensors."""
    inside = weights.inside if isinstance(weights, Around) else weights
    return type(inside).optimizer is Weights.optimizer


def stranger(weights: Weights) -> str:
    """The first hook of a step whose class does not itself say that it knows shards; "" where all do."""
    for hook in STEP_HOOKS:
        owner = next(c for c in type(weights).__mro__ if hook in vars(c))
        if not vars(owner).get("shards", False):
            return f"{owner.__name__}.{hook}"
    return stranger(weights.inside) if isinstance(weights, Around) else ""
