"""Continual post-training, and RIF-RFT (2507.05386): a stream of tasks is trained one after the other, without a replay of old
ones; before each, problems that the policy never solves are left out.

    keep problem i of task t iff max_k r_ik = 1,  r_i1 ... r_iK ~ policy after task t - 1
    AvgAcc = 1/T sum_j P[T,j]        FM = 1/T sum_j (P[T,j] - max_t P[t,j])        (`evaluation/continual.py`)

`rif-rft` reinforces with GRPO on what is kept, `rif-rft filter=none` on everything; `advantage=rloo` and `advantage=remax` are the
paper's other forms. `continual-sft` is supervised fine-tuning on the same stream. All tasks are measured at the start and
after each task: the summary has the matrix P and both measures of forgetting. `kl` is to the policy when its task began;
at 0 there is no reference model. Optimizers begin anew with each task. A method that moves the weights less forgets less:
train each task until the same accuracy (`until=0.8`), and look at `moved`.

Departures: K is the group size, and the threshold is that one answer is right, by accuracy alone; neither was to be had.
Rewards are accuracy without format points. The tasks are text, not images, and held-out benchmarks are the run's `others`.
Of the paper's analysis there is how far the weights moved (`moved`) and, in every step, the share of groups whose reward does not vary
(`dead_groups`); the change weighed by a Fisher matrix of the earlier tasks is not measured.

    whet run rif-rft
    whet run continual-sft tasks="chain-sum;lists:level=3" until=0.8 eval_every=5
"""

from __future__ import annotations

from typing import Any

from whet.errors import WhetError, unknown
from whet.recipes.recipe import Recipe, recipe
from whet.recipes.reinforced.grpo import grpo
from whet.recipes.supervised.sft import sft
from whet.sources import Filtered, Problems, Uniform, solvable
from whet.training.sequence import read_tasks, sequence

TASKS = "chain-sum;word-problem:level=3;lists:level=3"
FILTERS = {"solvable": solvable(), "mixed": solvable(drop_all_correct=True), "none": None}


@recipe(paper="rif-rft", parent="grpo", task="chain-sum")
def rif_rft(
    tasks: str = TASKS,
    filter: str = "solvable",
    samples: int = 8,
    pool: int = 256,
    until: float = 0.0,
    **training: Any,
) -> Recipe:
    """Reinforce on one task after another, each without the problems that the policy never solves.

    Args:
        tasks: the stream, separated by `;` (colons between a task's options).
        filter: keeps of a task's problems the solvable ones, the mixed ones (not those that are always solved either), or none for
            all of them.
        samples: answers to each problem by which that is decided (K).
        pool: problems of each task that are looked at, and trained on again and again; 0 is all of a task that ends, and with
            filter=none no limit.
        until: accuracy on a task's validation at which the next one begins; 0 takes all steps.
    """
    if filter not in FILTERS:
        raise unknown("filter of rif-rft", filter, FILTERS)
    if training.get("problems") is not None:
        raise WhetError("rif-rft draws from its tasks: leave out problems")
    rule = FILTERS[filter]

    def problems() -> Problems:
        return Filtered(rule, samples, pool) if rule else Uniform(limit=pool)

    stream = read_tasks(tasks)
    stages = sequence(stream, lambda: grpo(problems=problems(), **training).stages[0], until)
    return Recipe(stages, stream=tuple(task.spec() for task in stream))


@recipe(paper="rif-rft", parent="sft", task="chain-sum")
def continual_sft(tasks: str = TASKS, until: float = 0.0, steps: int = 60, **training: Any) -> Recipe:
    """Supervised fine-tuning on one task after another.

    Args:
        tasks: the stream, separated by `;` (colons between a task's options).
        until: accuracy on a task's validation at which the next one begins; 0 takes all steps.
        steps: optimizer steps on each task, at most.
    """
    if training.get("problems") is not None or training.get("mixture"):
        raise WhetError("continual-sft draws from its tasks: leave out problems and mixture")
    stream = read_tasks(tasks)
    stages = sequence(stream, lambda: sft(steps=steps, **training).stages[0], until)
    return Recipe(stages, stream=tuple(task.spec() for task in stream))
