"""Supervised fine-tuning on demonstrations: the parent of the supervised family and the baseline of every study.

    L = - sum_t log p(y_t | x, y_<t) / (number of learnt tokens in the optimizer batch)

Only the response is learnt (rationale, answer, end token); the prompt is masked by its segment, not by a search. The
average is over the tokens of the whole optimizer batch, whatever the micro-batches.

    whet run sft --task my.jsonl --verifier number
"""

from __future__ import annotations

from whet.objectives import Objective, Term, nll
from whet.recipes.recipe import Recipe, recipe
from whet.sources import Demonstrations
from whet.training.optimizer import AdamW, Rate
from whet.training.stage import Stage, Update


@recipe()
def sft(
    objective: Objective | Term | None = None,
    steps: int = 200,
    batch: int = 32,
    lr: float | Rate = Rate(small=5e-4, paper=1e-5),
    warmup: float = 0.05,
    schedule: str = "cosine",
    weight_decay: float = 0.0,
    rationale: bool = True,
    normalise: str = "token",
) -> Recipe:
    """Supervised fine-tuning on demonstrations.

    Args:
        objective: from Python, another objective on the same rows.
        steps: optimizer steps.
        batch: demonstrations a step.
        lr: peak learning rate; by default 5e-4 below 50 M parameters and 1e-5 above.
        warmup: steps of linear warm-up, or a share of all steps below 1.
        schedule: constant, linear or cosine after the warm-up.
        weight_decay: AdamW's, on matrices.
        rationale: whether the gold rationale stands before the answer.
        normalise: token, sequence, sequence-sum, constant, row or none.
    """
    optimizer = AdamW(lr=lr, warmup=warmup, schedule=schedule, weight_decay=weight_decay)
    loss = objective if objective is not None else nll(normalise=normalise)
    return Recipe([
        Stage(collect=Demonstrations(rationale), updates=[Update(loss, optimizer=optimizer)], steps=steps, batch=batch,
              name="sft")
    ])  # fmt: skip
