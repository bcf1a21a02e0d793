"""Whether decoding in bf16 is faster on this machine, and close enough to the policy's own forward: measured, not guessed."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import torch

from whet.models.meter import Meter
from whet.sampling.fused import FusedEngine
from whet.sampling.layers import Layers, read

if TYPE_CHECKING:
    from whet.models.policy import Policy

log = logging.getLogger("whet")

ROWS, PROMPT, STEPS, REPEATS = 32, 8, 4, 3
SPEEDUP = 1.2  # less is not worth other answers
GAP = 0.02  # mean difference of log-probs, in nats, weighted by the probabilities: the size that bf16 training has


@torch.no_grad()
def measured(policy: Policy) -> torch.dtype:
    """bf16 where a decoding step is at least 1.2 times as fast in it and log-probs stay within 0.02; else the policy's."""
    own = torch.bfloat16 if policy.mixed else policy.dtype
    if own == torch.bfloat16:
        return own
    both = [read(policy, dtype) for dtype in (own, torch.bfloat16)]
    with policy.metered(Meter()):
        runs = [_steps(policy, layers) for _ in range(REPEATS) for layers in both]
    (exact, _), (coarse, _) = runs[:2]
    fast = min(t for _, t in runs[::2]) / min(t for _, t in runs[1::2])
    gap = float((exact.exp() * (exact - coarse).abs()).sum(-1).mean())
    chosen = torch.bfloat16 if fast >= SPEEDUP and gap <= GAP else own
    log.info(
        "sampling in %s: a step in bf16 is %.2f times as fast, its log-probs differ by %.2g on average",
        chosen,
        fast,
        gap,
    )
    return chosen


def _steps(policy: Policy, layers: Layers) -> tuple[torch.Tensor, float]:
    """Log-probs after the same few tokens, and the seconds of the fastest step."""
    vocabulary = policy.model.config.vocab_size
    prompts = [tuple((7 * i + 3 * j + 1) % vocabulary for j in range(PROMPT)) for i in range(ROWS)]
    engine = FusedEngine(policy, layers, PROMPT, STEPS, shared=False)
    engine.admit(prompts)
    logits, seconds = torch.empty(0), []
    for step in range(STEPS):
        token = (torch.arange(ROWS, device=policy.device) * 5 + step) % vocabulary
        began = time.perf_counter()
        logits = engine.step(token)
        if policy.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return logits.float().log_softmax(-1).cpu(), min(seconds)
