"""Half fine-tuning on two tasks in turn: what is left of the base's skills and of the earlier tasks.

Every arm takes equally many steps on each task, but for the last two, in which a task ends at the same validation accuracy: half
of the matrices may need more steps, so that less forgetting at equal steps can be less learning. `no-ends` rests embeddings
and head too, and `reset` is full fine-tuning of which half of the matrices goes back at the end. Each seed draws its own
masks, of which five are averaged: in four blocks the draw matters.

    whet reproduce hft
"""

from __future__ import annotations

from whet.evaluation.scores import Scores
from whet.study import Judgement, above, below, every, study

TASKS = "tasks=word-problem:level=2;mod-chain:level=2"
RUN = f"steps=40,{TASKS}"
TO = f"steps=80,until=0.8,{TASKS}"


@study(
    paper="hft",
    claim="Moving a random half of each block's matrices, drawn anew for each task, keeps more of the base's skills than full "
    "fine-tuning in as many steps, and learns the tasks as well; putting half of a fully fine-tuned model back recovers skills.",
    arms={
        "full": f"hft:{RUN},share=1",
        "hft": f"hft:{RUN}",
        "no-ends": f"hft:{RUN},ends=false",
        "reset": f"half-reset:{RUN}",
        "full, to 0.8": f"hft:{TO},share=1",
        "hft, to 0.8": f"hft:{TO}",
    },
    controls=["no-ends", "full, to 0.8", "hft, to 0.8"],
    task="word-problem:level=2",
    budget=None,
    seeds=5,
    metrics=["forgetting", "new_accuracy", "average_accuracy", "fm_max", "fm_diag", "steps", "moved"],
    settings={"test_n": 128, "k": 0, "others_n": 64, "others_look_n": 0, "validation_n": 64, "evaluations": 0, "eval_every": 10,
              "keep": "last"},
    quick={"budget": "steps:6", "test_n": 16, "others_n": 4, "validation_n": 16, "eval_every": 2},
    full={"seeds": 8, "test_n": 512, "others_n": 512},
)  # fmt: skip
def hft(scores: Scores) -> Judgement:
    """Reproduced if hft loses less accuracy on the base's other tasks than full, its accuracy on new tasks is at most 2 points below
    full's, and reset loses less than full; each with the whole 95 % interval; not reproduced if one of these intervals lies on the
    other side; else inconclusive. The arms that stop at an accuracy are the same comparison at equal accuracy; they and the other
    arms are reported and decide nothing."""
    return every(
        below(scores, "forgetting", "hft", "full"),
        above(scores, "new_accuracy", "hft", "full", by=-0.02),
        below(scores, "forgetting", "reset", "full"),
    )
