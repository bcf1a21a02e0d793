"""CorDA (2406.05223): SFT of low-rank adapters that begin as a part of each matrix, chosen by what its layer is given on a sample.

    W C~ = U S V^T        C~ the damped second moment of the layer's inputs on the sample
    B0 A0 = U_r U_r^T W   r directions: the largest (`ipm`) or the smallest (`kpm`); B and A are trained from there

`ipm` (instruction-previewed) calibrates on the task that is learnt, and learns faster; `kpm` (knowledge-preserved) on what is to be
kept, and moves what that uses least. `weights/corda.py` has the equations, and says how the base is kept as it is: the run's folder
holds plain LoRA of rank 2r.

The paper's: r = 128 of widths 4096, 256 samples of 2048 tokens, rate 2e-5, warm-up 3 %; kpm on questions of TriviaQA or NQ-open. PEFT
asks for (width / tokens of a sample) x 128 samples; with too few the damping decides. Not built: another model for the
calibration, and covariances in a file.

`sft --weights pissa` is the control without a sample, `sft --weights lora` that without a decomposition.

    whet run corda --task my.jsonl --verifier number
    whet run corda mode=kpm calibrate="chain-sum:level=1;sort:level=1" --task lists:level=3
    whet run grpo --weights corda:rank=8
"""

from __future__ import annotations

from typing import Any

from whet.recipes.recipe import Recipe, recipe
from whet.recipes.supervised.sft import sft
from whet.training.optimizer import Rate
from whet.weights.corda import Corda


@recipe(paper="corda", parent="sft")
def corda(
    mode: str = "ipm", rank: int = 16, alpha: float = 0.0, rows: int = 256, calibrate: str = "", peak: str = "signed",
    lr: float | Rate = Rate(small=1e-3, paper=2e-5), **training: Any,
) -> Recipe:  # fmt: skip
    """CorDA (2406.05223): SFT of adapters that begin as the directions a sample uses most, or least.

    Args:
        mode: ipm (the largest directions, to learn faster) or kpm (the smallest, to forget less).
        rank: directions of each matrix that are trained.
        alpha: the adapters are scaled by alpha / rank; 0 is the rank.
        rows: demonstrations in the sample; 0 decomposes the weights alone (PiSSA, and its smallest directions).
        calibrate: tasks of the sample, separated by `;`; by default the run's own, and for kpm to be said.
        peak: inputs of a sequence are divided by their largest entry, signed (as released) or absolute.
        lr: peak learning rate; by default 1e-3 below 50 M parameters and 2e-5 above.
    """
    return sft(lr=lr, **training).moving(Corda(mode, rank, alpha, rows, calibrate, peak))
