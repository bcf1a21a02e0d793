"""OPT-R (2305.12001): do explanations help, in fine-tuning or in the prompt, and for which skills?

A grid of {no fine-tuning, R: prompt -> answer, RE: prompt -> explanation and answer} x {no examples, examples, explained
examples}, judged on held-out tasks. R and RE see the same prompts in the same order for as many updates; only the targets
differ, so RE learns more tokens (`learnt_tokens` of the summary). Every cell is generated and then parsed; an answer whose
mark is missing is wrong, and counted as unparseable beside that.

The recipe is one fine-tuning of the grid; the grid itself is `whet reproduce opt-r`.

    whet run opt-r
    whet run opt-r target=R
"""

from __future__ import annotations

from typing import Any

from whet.errors import WhetError, unknown
from whet.recipes.recipe import Recipe, recipe
from whet.recipes.supervised.sft import sft
from whet.sources import Demonstrations

TARGETS = ("R", "RE")
ORDERS = ("explanation_first", "answer_first")


@recipe(paper="opt-r", parent="sft")
def opt_r(target: str = "RE", order: str = "explanation_first", **training: Any) -> Recipe:
    """Fine-tune on answers (R), or on explanations and answers (RE).

    Args:
        target: R or RE.
        order: of RE's target: explanation_first, or answer_first, where the explanation cannot influence the answer.
    """
    if target not in TARGETS:
        raise unknown("target of opt-r", target, TARGETS)
    if order not in ORDERS:
        raise unknown("order of opt-r", order, ORDERS)
    if target == "R" and order == "answer_first":
        raise WhetError("opt-r: R has no explanation to put behind the answer; leave out order")
    if not training.get("rationale", True):
        raise WhetError("opt-r: target=R is what rationale=false would say; leave out rationale")
    made = sft(**training)
    made.stages[0].collect = Demonstrations(target == "RE", answer_first=order == "answer_first")
    made.stages[0].name = target
    return made
