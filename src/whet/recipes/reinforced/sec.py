"""Self-evolving curriculum (2505.14970): a bandit chooses which category of problems to train on, by the mean |advantage|.

    p = softmax(Q / tau);   r(c) = mean |A| of the answers to problems of category c;   Q_c <- (1 - rate) Q_c + rate r(c)

With a binary reward and a success rate p, |A| standardised in groups is on average 2 sqrt(p (1 - p)): greatest where half of the
answers are right, 0 where all or none are. So the bandit leaves what is solved and what is out of reach, and nothing has to be
measured beforehand. It sees all groups, before any of them is dropped. Everything else is grpo; with one category, or
`order=random`, it is grpo in every bit.

Departures: the released code lets the value of a category that was not drawn decay (`decay_unvisited=true`); the formula, and
the default here, does not. tau is 1 in the paper's Countdown, 0.4 in MATH and 0.2 for pairs of task and difficulty.

    whet run sec by=level --task word-problem:level=1-4
    whet run sec by=category tau=0.2 --task my.jsonl        # rows with a "category"
"""

from __future__ import annotations

from typing import Any

from whet.errors import WhetError, unknown
from whet.recipes.recipe import Recipe, recipe
from whet.recipes.reinforced.grpo import grpo
from whet.sources import Bandit, Ordered, Problems, Uniform

ORDERS = ("bandit", "random", "easy-to-hard", "hard-to-easy")
WHITENED = ("batch-whiten", "reinforce++")  # their |A| no longer tells one category from another
BANDIT: dict[str, Any] = {"by": "category", "rate": 0.5, "tau": 1.0, "rule": "softmax", "signal": "advantage",
                          "decay_unvisited": False}  # fmt: skip


@recipe(paper="sec", parent="grpo", task="word-problem:level=1-4")
def sec(
    order: str = "bandit",
    by: str = "category",
    rate: float = 0.5,
    tau: float = 1.0,
    rule: str = "softmax",
    signal: str = "advantage",
    decay_unvisited: bool = False,
    limit: int = 0,
    steps: int = 60,
    batch: int = 8,
    problems: Problems | None = None,
    **training: Any,
) -> Recipe:
    """Let a bandit choose the category of each problem, by how large the advantages of its answers were.

    Args:
        order: bandit, or a control: random, easy-to-hard or hard-to-easy (by level, through all steps).
        by: category (a problem without one has its level), level, task, a column of the rows, or several, as task+level.
        rate: of the running mean of a category's value (alpha); 0.1 in the released config.
        tau: temperature of the choice.
        rule: softmax, proportional (to the values) or greedy (a tenth explores).
        signal: advantage (|A|), accuracy (|A| of accuracy alone, without points for the format) or progress (of accuracy).
        decay_unvisited: whether the value of a category that was not drawn falls.
        limit: use the first so many problems only, again and again; 0 for all.
        steps: steps.
        batch: problems a step.
        problems: from Python, the source that is put in order.
    """
    if order not in ORDERS:
        raise unknown("order", order, ORDERS)
    if limit and problems is not None:
        raise WhetError("limit and problems both say where problems come from; give one")
    own = {"by": by, "rate": rate, "tau": tau, "rule": rule, "signal": signal, "decay_unvisited": decay_unvisited}
    given = [name for name, value in own.items() if value != BANDIT[name]]
    if order != "bandit" and given:
        raise WhetError(f"sec: {', '.join(given)} is the bandit's, and order is {order}")
    if order == "bandit" and signal == "advantage" and training.get("advantage") in WHITENED:
        raise WhetError(f"sec: advantage={training['advantage']} whitens over the batch, after which |A| says little about a "
                        "category; use signal=accuracy")  # fmt: skip
    over = problems or Uniform(limit=limit)
    if order == "bandit":
        over = Bandit(over, by, rate, tau, rule, signal, decay_unvisited)
    elif order != "random":
        over = Ordered(steps * batch, hardest=order == "hard-to-easy", over=over)
    return grpo(problems=over, steps=steps, batch=batch, **training)
