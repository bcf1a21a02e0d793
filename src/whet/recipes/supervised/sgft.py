"""SGFT (2412.09906): a small model learns to write the steps of a solution; another, untouched one carries them out.

    L = - sum_t log p(g_t | question, g_<t) / (number of learnt tokens)         answer = responder(question, g)

A guidance g is two to six steps without a computation and without the answer; rows that break this are dropped, and the
share of such guidances on test is reported. The responder is the start model or another one, and is never trained. Its
prompt is one fixed form, which without a guidance is the plain question.

Departures: the paper trains by LISA, and here any weights move: `--weights lisa` are the paper's, of how many blocks for how long
it does not say. Learning rate, epochs and prompts are ours: no code was published.

    whet run sgft --weights lisa
    whet run sgft responder=runs/other/model --task word-problem:level=3
"""

from __future__ import annotations

from functools import partial
from typing import Any

from whet.errors import WhetError
from whet.models.base import load
from whet.recipes.recipe import Recipe, recipe
from whet.recipes.supervised.sft import sft
from whet.sources import Guidances, Guided
from whet.sources.teachers import get_teacher


@recipe(paper="sgft", parent="sft", task="word-problem")
def sgft(
    limit: int = 1000,
    teacher: str = "task",
    responder: str = "start",
    guide: str = "policy",
    guide_tokens: int = 128,
    **training: Any,
) -> Recipe:
    """Learn to write the steps of a solution, for another model to carry out.

    Args:
        limit: questions whose guidances are learnt; 0 for all of a file.
        teacher: who writes the guidances: task (its plans), model:NAME, or http://HOST:PORT/v1#NAME.
        responder: who answers with them: start (the model before training), or a model's folder or name.
        guide: who writes them when answers are evaluated: policy, task (its plans, as an upper bound) or none.
        guide_tokens: most tokens of a written guidance.
    """
    if not training.get("rationale", True):
        raise WhetError("sgft learns guidances and no demonstrations: leave out rationale")
    made = sft(**training)
    made.stages[0].collect = Guidances(limit, None if teacher == "task" else get_teacher(teacher))
    made.stages[0].name = "guide"
    made.answering = Guided(None if responder == "start" else partial(load, responder), guide, guide_tokens)
    return made
