"""Calibration: what a model's layers see on some rows, streamed: second moments, activations, Fisher information.

Padding never counts: each sequence is cut to its own tokens before anything is summed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from whet.errors import WhetError
from whet.models.hooks import spliced
from whet.models.packing import Batch
from whet.models.policy import Policy
from whet.records import Row, Sample

Scale = Callable[[Tensor], Tensor]
TOKENS = 4096  # run at once


def activations(
    policy: Policy, rows: Sequence[Row], names: Sequence[str], *, inputs: bool = True
) -> Iterator[dict[str, Tensor]]:
    """For each sequence, module name -> (tokens, width) of what the module is given, or gives on. Forwards are without gradient.

    Args:
        names: modules (`model.layers.0.mlp.down_proj`).
        inputs: what they are given; else what they give on.

    Raises:
        WhetError: there is no such module, or no row.
    """
    seen: dict[str, Tensor] = {}
    taps = {name: _reader(seen, name) for name in names}
    training = policy.model.training
    policy.model.eval()
    try:
        for batch in _batches(policy, rows):
            with torch.no_grad(), spliced(policy, None if inputs else taps, taps if inputs else None):
                policy.hidden(batch.ids)
            for place in range(len(batch.samples)):
                yield {name: seen[name][place][batch.mask[place]] for name in names}
    finally:
        policy.model.train(training)


def second_moments(
    policy: Policy, rows: Sequence[Row], names: Sequence[str], scale: Scale | None = None, *, per_sequence: bool = False
) -> dict[str, Tensor]:
    """Module name -> (n, n) mean of x x^T over all tokens of the module's inputs x, in fp32 and uncentred.

    Args:
        scale: changes the (tokens, n) inputs of one sequence first; CorDA divides them by their largest entry.
        per_sequence: the sum over the tokens of a sequence, its mean over sequences, instead.
    """
    sums: dict[str, Tensor] = {}
    count = 0
    for found in activations(policy, rows, names):
        for name, x in found.items():
            x = x.float()
            x = x if scale is None else scale(x)
            sums[name] = x.T @ x + sums.get(name, 0.0)
        count += 1 if per_sequence else len(next(iter(found.values())))
    return {name: total / count for name, total in sums.items()}


def fisher(policy: Policy, rows: Sequence[Row], names: Sequence[str]) -> dict[str, Tensor]:
    """Parameter name -> the mean over sequences of (d log p(learnt tokens) / d theta)^2: the empirical diagonal, in fp32."""
    own = dict(policy.model.named_parameters())
    parameters = [own[name] for name in names]
    before = [p.requires_grad for p in parameters]
    sums = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in zip(names, parameters, strict=True)}
    samples = _samples(rows)
    try:
        for p in parameters:
            p.requires_grad_(True)
        with torch.enable_grad():
            for sample in samples:
                gradients = torch.autograd.grad(_log_likelihood(policy, sample), parameters, allow_unused=True)
                for name, gradient in zip(names, gradients, strict=True):
                    if gradient is not None:
                        sums[name] += gradient.float().square()
    finally:
        for p, moved in zip(parameters, before, strict=True):
            p.requires_grad_(moved)
    return {name: total / len(samples) for name, total in sums.items()}


# -- parts ---------------------------------------------------------------------------------------------------------------
def _reader(seen: dict[str, Tensor], name: str) -> Callable[[Tensor], None]:
    def read(x: Tensor) -> None:
        seen[name] = x.detach()

    return read


def _samples(rows: Sequence[Row]) -> list[Sample]:
    found = [s for row in rows for s in row.all()]
    if not found:
        raise WhetError("there is no row to calibrate on")
    return found


def _batches(policy: Policy, rows: Sequence[Row]) -> Iterator[Batch]:
    held: list[Sample] = []
    for sample in sorted(_samples(rows), key=len):
        if held and len(sample) * (len(held) + 1) > TOKENS:
            yield Batch.of(held, policy.device)
            held = []
        held.append(sample)
    yield Batch.of(held, policy.device)


def _log_likelihood(policy: Policy, sample: Sample) -> Tensor:
    batch = Batch.of([sample], policy.device)
    if policy.chunked:
        logits = policy.head(policy.hidden(batch.ids)[batch.sequence, batch.position - 1])
    else:
        logits = policy.logits(batch.ids)[batch.sequence, batch.position - 1]
    return logits.float().log_softmax(-1).gather(1, batch.targets[:, None]).sum()
