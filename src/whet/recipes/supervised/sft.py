"""Supervised fine-tuning on demonstrations: the parent of the supervised family and the baseline of every study.

    L = - sum_t log p(y_t | x, y_<t) / (number of learnt tokens in the optimizer batch)

Only the response is learnt (rationale, answer, end token); the prompt is masked by its segment, not by a search. The
average is over the tokens of the whole optimizer batch, whatever the micro-batches.

    whet run sft --task my.jsonl --verifier number
"""

from __future__ import annotations

from typing import Any

from whet.errors import WhetError
from whet.objectives import Objective, Term, nll
from whet.recipes.recipe import Recipe, recipe
from whet.sources import Collector, Demonstrations, Mixture, Part, Problems, Uniform
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
    span: float = 1.0,
    weight_decay: float = 0.0,
    rationale: bool = True,
    normalise: str = "token",
    limit: int = 0,
    mixture: str = "",
    mixture_temperature: float = 1.0,
    problems: Problems | None = None,
) -> Recipe:
    """Supervised fine-tuning on demonstrations.

    Args:
        objective: from Python, another objective on the same rows.
        steps: optimizer steps.
        batch: demonstrations a step.
        lr: peak learning rate; by default 5e-4 below 50 M parameters and 1e-5 above.
        warmup: steps of linear warm-up, or a share of the schedule below 1.
        schedule: constant, linear or cosine after the warm-up.
        span: length of the schedule over that of the run; 20 leaves a run twenty times as long after its first twentieth.
        weight_decay: AdamW's, on matrices.
        rationale: whether the gold rationale stands before the answer.
        normalise: token, sequence, sequence-sum, constant, row or none.
        limit: learn from the first so many problems only, again and again; 0 for all.
        mixture: learn from these tasks instead of the run's own, as `task#rows`, separated by `;`.
        mixture_temperature: 1 sees every row once an epoch, more evens out the tasks' rates (inf makes them equal).
        problems: from Python, another source of problems.
    """
    optimizer = AdamW(lr=lr, warmup=warmup, schedule=schedule, weight_decay=weight_decay, span=span)
    loss = objective if objective is not None else nll(normalise=normalise)
    if bool(limit) + bool(mixture) + (problems is not None) > 1:
        raise WhetError("limit, mixture and problems each say where demonstrations come from; give one (a mixture's rows as "
                        "task#rows)")  # fmt: skip
    if mixture:
        problems = Mixture(Part.read(mixture), temperature=mixture_temperature)
    return Recipe([
        Stage(problems=problems or Uniform(limit=limit), collect=Demonstrations(rationale),
              updates=[Update(loss, optimizer=optimizer)], steps=steps, batch=batch, name="sft")
    ])  # fmt: skip


def sft_on(collect: Collector, *, warm: int = 0, **training: Any) -> Recipe:
    """The same on rows that `collect` makes, once, when its stage is entered.

    Args:
        warm: steps of plain sft on the gold responses of the same problems before that: the policy that then answers them
            knows the task, and training on its answers starts from the base again.
        training: sft's own arguments.
    """
    if not training.get("rationale", True):
        raise WhetError("rationale=false says how demonstrations are shown, and this recipe learns from other rows")
    (stage,) = sft(**training).stages
    stage.collect = collect
    if not warm:
        return Recipe([stage])
    (first,) = sft(**{**training, "steps": warm}).stages
    first.name, stage.start = "warm-up", "base"
    return Recipe([first, stage])
