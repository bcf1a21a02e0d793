"""Pretrain a new small base on a mixture of tasks. It is how the shipped base was made (`whet.recipes.bases`).

The base is weak but latent, by style rather than by noise: most of its documents answer at once, which it cannot do
well; some show worked steps, which it does mostly right. Reinforcement's first lesson is then to think first.
"""

from __future__ import annotations

from whet.objectives import nll
from whet.recipes.recipe import Recipe, recipe
from whet.sources import Documents, Mixture, Part
from whet.training.optimizer import AdamW
from whet.training.stage import Stage, Update


@recipe()
def pretrain(
    mixture: str | None = None,
    parts: list | None = None,
    steps: int = 2000,
    batch: int = 128,
    lr: float = 2e-3,
    prompt_weight: float = 0.1,
) -> Recipe:
    """Learn documents of a mixture of tasks, token by token.

    Args:
        mixture: parts as `task*share~worked#rows`, separated by `;`, e.g. `chain-sum:level=3*2~0.35;sort*1~1`.
        parts: the same as a list of `Part`, from Python.
        steps: optimizer steps.
        batch: documents a step.
        lr: peak learning rate; cosine to a tenth.
        prompt_weight: weight of prompt tokens in the loss.
    """
    chosen = parts or Part.read(mixture or "chain-sum")
    optimizer = AdamW(lr=lr, betas=(0.9, 0.95), weight_decay=0.1, warmup=0.02, schedule="cosine")
    return Recipe([
        Stage(
            problems=Mixture(chosen), collect=Documents(prompt_weight), batch=batch, steps=steps,
            updates=[Update(nll(), optimizer=optimizer)], name="pretrain",
        )
    ])  # fmt: skip
