"""Two stages (2507.08267): supervised fine-tuning far beyond one epoch for accuracy, then a little GRPO for length.

Stage 1 learns one trace of each problem, the shortest correct one, for ten epochs. Stage 2 pays three parts, added before the
group's standardisation, with a KL to the checkpoint of stage 1 (k3, 0.04):

    F = 1 where the answer stands where it is looked for, else 0
    C = b + (a - b) (1 + cos pi p) / 2,  p = min(L / M, 1):  right from a = 1 to b = 0.1, wrong from a = -1 to b = -0.1
    K = 1/2 - (L - L_min) / (L_max - L_min) within the group;  wrong answers at most 0

A file may hold several traces of one problem, a row each: wrong ones are dropped and the shortest is kept. `hard=[0.5,0.75]`
keeps problems that the model solves in such a share of 4 answers.

Departures: L and M are tokens and the generation budget (the release: characters and 30,000, as `length_unit=char
length_budget=30000`); K is of a problem's own group; a problem that cannot be judged is left out, not called right; answers are
sampled from the whole distribution, not cut by top-p and min-p, which the ratios would not know. Rows that are packed do not
see each other. `span=2` leaves stage 1 while its rate is still high, as the release does. The decoder with a predicted budget
is not here.

    whet run two-stage
    whet run two-stage --task countdown:trace=search
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from typing import Any

from whet.errors import WhetError, unknown
from whet.recipes.recipe import Recipe, recipe
from whet.recipes.reinforced.grpo import grpo
from whet.recipes.supervised.sft import sft
from whet.rewards import Reward, boxed_in_thought, format_bonus, relative_length
from whet.rewards.length import Bend, LengthCurve, length
from whet.sources import Curated
from whet.sources.curation import Correct, Difficulty, Length, Shortest, Subset
from whet.training.optimizer import Rate

COSINE = LengthCurve(right=Bend(1.0, 0.1), wrong=Bend(-1.0, -0.1))
FORMS = {"answer": format_bonus, "boxed": boxed_in_thought}
GRPO: dict[str, Any] = {"batch": 16, "steps": 50, "lr": Rate(small=1e-4, paper=4e-6), "warmup": 0, "kl": 0.04,
                        "normalise": "token"}  # fmt: skip


def shaped(form: str = "answer", unit: str = "token", budget: int = 0) -> Reward:
    """F + C + K, each of weight 1."""
    if form not in FORMS:
        raise unknown("form of an answer", form, FORMS)
    return FORMS[form]() + length(COSINE, budget=budget, unit=unit, name="cosine") + relative_length(unit)


@recipe(paper="two-stage", parent="grpo", defaults=GRPO, task="word-problem:level=3")
def two_stage(
    rows: int = 384,
    sft_epochs: float = 10.0,
    sft_batch: int = 64,
    sft_lr: float | Rate = Rate(small=5e-4, paper=1e-5),
    span: float = 1.0,
    hard: list | None = None,
    carry: bool = False,
    form: str = "answer",
    length_unit: str = "token",
    length_budget: int = 0,
    **training: Any,
) -> Recipe:
    """Long supervised fine-tuning on shortest correct traces, then short GRPO with rewards for brevity.

    Args:
        rows: problems of stage 1, one trace each; a file that has fewer gives what it has.
        sft_epochs: passes over so many rows; 0 leaves stage 1 out.
        sft_batch: traces a step.
        sft_lr: peak rate of stage 1; by default 5e-4 below 50 M parameters and 1e-5 above.
        span: length of stage 1's schedule over its own: 2 stops half-way down.
        hard: [low, high], keep problems that the model solves in such a share of 4 answers.
        carry: whether stage 2 goes on with the moments of stage 1's optimizer, or begins a fresh one.
        form: where F looks for the answer: in its own tag or after its mark (answer), or boxed within the thought (boxed).
        length_unit: token or char.
        length_budget: M, the length at which C ends; 0 is the generation budget.
    """
    if hard is not None and (len(hard) != 2 or not 0 <= hard[0] <= hard[1] <= 1):
        raise WhetError(f"two-stage: hard is [low, high], two shares from 0 to 1, not {hard}")
    if training.get("reward") and (form, length_unit, length_budget) != ("answer", "token", 0):
        raise WhetError(
            "two-stage: a reward of your own replaces F + C + K; leave form, length_unit and length_budget away"
        )
    reward = training.pop("reward", None) or shaped(form, length_unit, length_budget)
    (brief,) = grpo(**{**GRPO, **training, "reward": reward}).stages
    (update,) = brief.updates
    brief.updates = [replace(update, optimizer=replace(update.optimizer, schedule="cosine"))]
    brief.name, brief.carry = "brevity", carry
    if sft_epochs == 0:
        return Recipe([brief])
    (stage,) = sft(steps=ceil(sft_epochs * rows / sft_batch), batch=sft_batch, lr=sft_lr, span=span).stages
    filters = [Length(), Correct(), Shortest(), *([Difficulty(*hard)] if hard else [])]
    stage.collect, stage.name = Curated([Subset("traces", rows, filters)]), "long sft"
    return Recipe([stage, brief])
