"""Feedback-aware fine-tuning (2408.06318): learn answers of any quality behind the checker's feedback, ask for all-success.

    reference, query / feedback / plan      L = - sum_t log p(plan_t | reference, query, feedback, plan_<t)

The feedback has a line for each check that the task judges every answer by (`Task.judged`: of travel plans the eight common-sense
checks), always in this order: `name: success`, or `name: fail, reason`. At inference every line says success; nobody checks
anything then. Answers that cannot be read are left out.

Departures: plans are learnt alone (the paper does not say), and come from the task's corruptor, or from the policy (after
`warm` steps on the gold plans), instead of a larger planner; weights are whatever `--weights` says instead of 4-bit LoRA.
With samples=0 and feedback=false it is sft. The paper's refinement loop is in `whet.decoding`.

Any task has the check `answer`; plans, the paper's task, are for a base that can write them (`--model traveller.yaml`).

    whet run faft
    whet run faft lr=1e-3 --task travel --model traveller.yaml
    whet run faft source=policy --task my.jsonl --verifier number
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from whet.errors import WhetError, unknown
from whet.recipes.recipe import Recipe, recipe
from whet.recipes.supervised.sft import sft_on
from whet.sources import Attempt, Attempts, Conditioned, feedback_text
from whet.tasks import Task
from whet.training.optimizer import Rate

LEARN = ("all", "passing")


def wanted(task: Task, fail: str) -> str:
    """The feedback that is asked for: all success, or a failure of one check (to see whether it is obeyed)."""
    if fail and fail not in task.judged:
        raise unknown(f"check of task '{task.name}'", fail, task.judged)
    return "\n".join(f"{name}: {'fail' if name == fail else 'success'}" for name in task.judged)


def choose(attempts: Sequence[Attempt], which: str) -> list[Attempt]:
    """A problem's attempts that are learnt."""
    read = [a for a in attempts if a.verdict.status != "unparseable"]
    return [a for a in read if a.right] if which == "passing" else read


@recipe(paper="faft", parent="sft")
def faft(
    samples: int = 8,
    source: str = "auto",
    temperature: float = 1.0,
    feedback: bool = True,
    reasons: bool = True,
    learn: str = "all",
    fail: str = "",
    warm: int = 0,
    limit: int = 256,
    steps: int = 120,
    batch: int = 8,
    lr: float | Rate = Rate(small=3e-4, paper=5e-5),
    **training: Any,
) -> Recipe:
    """Feedback-aware fine-tuning: answers of any quality behind the checker's feedback; asked for all-success.

    Args:
        samples: answers a problem beside the gold one, at most.
        source: of them: policy, corruptor, mixed, or auto (the task's corruptor where it has one, else the policy).
        temperature: of sampled ones.
        feedback: whether it is told; false learns the same answers without it.
        reasons: whether a failure's reason is told.
        learn: all, or passing: those that the verifier accepts (rejection sampling).
        fail: name of a check that the trained policy is asked to fail, to see whether it obeys; empty asks for success.
        warm: steps of sft on the gold answers before the policy samples; training then starts from the base again.
        limit: problems.
        steps: optimizer steps.
        batch: answers a step.
        lr: learning rate; by default 3e-4 below 50 M parameters and 5e-5 above.
    """
    if learn not in LEARN:
        raise unknown("kind of answers to learn", learn, LEARN)
    if not feedback and (fail or not reasons):
        raise WhetError("faft: without feedback there is no failure to ask for and no reason to leave out")
    if warm and source not in ("policy", "mixed"):
        raise WhetError("faft: warm is for answers that the policy samples: source=policy or mixed")
    collect = Conditioned(
        Attempts(source, samples, temperature), limit,
        announce=lambda task, attempt: feedback_text(task.judged, attempt.checks, reasons) if feedback else "",
        wanted=lambda task: wanted(task, fail) if feedback else "",
        choose=lambda attempts: choose(attempts, learn),
    )  # fmt: skip
    return sft_on(collect, warm=warm, limit=limit, steps=steps, batch=batch, lr=lr, **training)
