"""Mistake tuning (2403.20046): learn right and wrong rationales, each behind a prefix that says which it is.

    p = Q + S + R      S: [CORRECT RATIONALE] before a right R, [INCORRECT RATIONALE] before a wrong one
    L = - sum_t log p(p_t | p_<t)      over R here; over S and R with loss_on=condition, over all of p with loss_on=all

The trained policy is asked behind [CORRECT RATIONALE], which the saved model remembers. Of each problem the gold rationale is
learnt, and `wrong` wrong ones: answers that could not be read, or that lack a rationale, are wrong in format only and are left
out, and so is what reaches the right answer. Where the wrong ones come from is `source`; the paper takes another, larger
model's, and neither a corruptor's nor its own are that.

Departures: the prefix stands in the response's place, as in a decoder it must; the paper's Flan-T5 reads the question in an
encoder. Printed over all of p, the loss here is on the rationale, which is what an encoder-decoder learns. With wrong=0 it is
sft behind a prefix, with marked=false besides it is sft. For self-rethinking, the paper's other half, see `whet.decoding`.

    whet run mistake-tuning
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from whet.errors import WhetError, unknown
from whet.recipes.recipe import Recipe, recipe
from whet.recipes.supervised.sft import sft_on
from whet.sources import Attempt, Attempts, Conditioned
from whet.training.optimizer import Rate

PREFIX = {"correct": "[CORRECT RATIONALE]", "incorrect": "[INCORRECT RATIONALE]", "nothing": ""}


class Mistakes(Conditioned):
    """`Conditioned`, on a task with rationales."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.needs = self.needs | {"rationales"}


def told(attempt: Attempt) -> str:
    """What is announced before an attempt."""
    return PREFIX["correct" if attempt.right else "incorrect"]


def choose(attempts: Sequence[Attempt], wrong: int) -> list[Attempt]:
    """The gold attempt of a problem and at most `wrong` wrong ones that are comparable with it."""
    gold = [a for a in attempts if a.origin == "gold" and a.right]
    bad = [a for a in attempts if a.verdict.status == "wrong" and a.response.rationale.strip()]
    return [*gold, *bad[:wrong]]


@recipe(paper="mistake-tuning", parent="sft")
def mistake_tuning(
    wrong: int = 1,
    source: str = "auto",
    samples: int = 4,
    temperature: float = 1.0,
    marked: bool = True,
    ask: str = "correct",
    loss_on: str = "response",
    drop: float = 0.0,
    warm: int = 0,
    limit: int = 1024,
    lr: float | Rate = Rate(small=5e-4, paper=1e-4),
    **training: Any,
) -> Recipe:
    """Mistake tuning: right and wrong rationales, each announced by a prefix; answers behind the right one's.

    Args:
        wrong: wrong rationales of a problem, at most.
        source: of them: policy, corruptor, mixed, or auto (the task's corruptor where it has one, else the policy).
        samples: attempts a problem that they are chosen from.
        temperature: of sampled ones.
        marked: whether rationales are announced; false is the control that learns both kinds unmarked.
        ask: what the trained policy is asked behind: correct, incorrect or nothing.
        loss_on: response, condition (the prefix too) or all (the question too).
        drop: share of rows without their prefix.
        warm: steps of sft before the policy's own mistakes are sampled; training then starts from the base again.
        limit: problems.
        lr: learning rate; by default 5e-4 below 50 M parameters and 1e-4 above.
    """
    if wrong < 0:
        raise WhetError(f"mistake-tuning: wrong must be at least 0, not {wrong}")
    if ask not in PREFIX:
        raise unknown("kind of rationale to ask for", ask, PREFIX)
    if not marked and (ask != "correct" or drop or loss_on == "condition"):
        raise WhetError("mistake-tuning: without marks there is no prefix to ask behind, to drop or to learn")
    if ask == "nothing" and not drop:
        raise WhetError("mistake-tuning: a policy that never saw a response without a prefix cannot be asked without one: "
                        "drop=0.1")  # fmt: skip
    if warm and source not in ("policy", "mixed"):
        raise WhetError("mistake-tuning: warm is for mistakes that the policy makes: source=policy or mixed")
    collect = Mistakes(
        Attempts(source, max(samples, wrong) if wrong else 0, temperature), limit,
        announce=lambda task, attempt: told(attempt) if marked else "",
        wanted=lambda task: PREFIX[ask] if marked else "",
        choose=lambda attempts: choose(attempts, wrong), loss_on=loss_on, drop=drop,
    )  # fmt: skip
    return sft_on(collect, warm=warm, limit=limit, lr=lr, **training)
