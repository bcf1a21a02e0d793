"""Masked thought (MFT, 2403.02178): supervised fine-tuning whose input has holes in the response.

    L = - 1/M sum_t log p(y_t | x, y'_<t)       y'_i = a hole with probability p(step), else y_i
    p(step) = min(p, p step / (warmup steps + 1))

Labels are whole, also at a hole; the question is never touched; evaluation and sampling see no holes. The holes are drawn
anew at each visit from (step, problem), so they are the same after a resume. The model must then lean on the question and on
earlier steps instead of on the last few tokens.

Where the code departs: the hole is a token that the tokenizer already has (its mask token, else its pad; the authors add a
row to the vocabulary), so the saved model has the shape of the one that was loaded and adapters need no new row; the ratio
counts optimizer steps (the authors': micro-batches). Not built: the variant that hides holes from attention, and holes in the
prompt, which the paper finds to hurt.

`p=0` is `sft`, bit for bit. The paper's epochs are three times those of its baseline: compare both at their best.

    whet run masked-thought p=0.2 steps=400 --task my.jsonl --verifier number
"""

from __future__ import annotations

from typing import Any

from whet.errors import WhetError
from whet.objectives import Ramp, nll
from whet.objectives.masking import Masking
from whet.recipes.recipe import Recipe, recipe
from whet.recipes.supervised.sft import sft


@recipe(paper="masked-thought", parent="sft")
def masked_thought(
    p: float = 0.4,
    noise: str = "mask",
    ramp: float = 2 / 3,
    temperature: float | None = None,
    rationale: bool = True,
    normalise: str = "token",
    **training: Any,
) -> Recipe:
    """Masked thought (2403.02178): learn whole demonstrations from demonstrations with holes.

    Args:
        p: the largest share of response tokens that are spoilt in the input; 0.4 suits little data, 0.1 to 0.2 formulas.
        noise: mask, random (a token of the vocabulary), zero, uniform (both on embeddings), or sample (the policy's own token).
        ramp: the share of the steps in which the ratio rises to p; 0 begins with it.
        temperature: of `sample`, 1 by default; low ones are near-synonyms, which do not help.
        rationale: whether the gold rationale stands before the answer; without one there is no thought to mask.
        normalise: token, sequence, sequence-sum, constant, row or none.
    """
    if not 0 <= p <= 1:
        raise WhetError(f"masked-thought: p is a probability, not {p:g}")
    if not 0 <= ramp <= 1:
        raise WhetError(f"masked-thought: ramp is a share of the steps, between 0 and 1, not {ramp:g}")
    if not rationale:
        raise WhetError("masked-thought: rationale=false leaves no thought to mask; use sft")
    if temperature is not None and (noise != "sample" or temperature <= 0):
        raise WhetError("masked-thought: temperature is that of noise=sample, above 0")
    view = Masking(Ramp(p, over=ramp), noise, temperature or 1.0)
    made = sft(objective=nll(normalise, view=view if p else None), **training)
    for stage in made.stages:
        stage.collect.needs = stage.collect.needs | {"rationales"}
    return made
