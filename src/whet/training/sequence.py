"""Sequences: the same training on one task after another, each from the weights that the one before left.

A sequence is a list of stages with tasks of their own, and needs no loop. Optimizers begin anew with each task, a
reference model is the policy when its task begins, validation looks at the task that is being trained, and nothing of an
earlier task is seen again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from whet.errors import WhetError
from whet.tasks import Task, get_task
from whet.training.stage import Stage


def read_tasks(text: str) -> list[Task]:
    """Tasks from text, separated by `;`, with colons between a task's options: `sort:level=3;finance:level=1:subtask=sum`."""
    found = [get_task(spec.strip()) for spec in text.split(";") if spec.strip()]
    if not found:
        raise WhetError("a sequence needs at least one task, as in tasks='chain-sum;lists:level=3'")
    return found


def sequence(tasks: Sequence[Task], make: Callable[[], Stage], until: float = 0.0) -> list[Stage]:
    """A stage of `make()` for each task.

    Args:
        until: each ends once accuracy on its own task's validation comes to this; 0 takes all of its steps.
    """
    stages = []
    for number, task in enumerate(tasks, 1):
        stage = make()
        stage.task, stage.until = task, until
        stage.name = f"{stage.name} {number}: {task.spec()}"
        stages.append(stage)
    return stages
