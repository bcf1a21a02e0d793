"""Two skills learnt apart and added up: do sparse changes get less into each other's way than whole ones?

Each skill's change is trained alone from one start, in equally many steps, and the sum is measured on both tasks. `alone` is the
first skill's change, `joint` learns both together in as many steps as the sparse phases have, an upper bound. `random` has masks of
equal size drawn by chance; whole changes are added at two rates, since a smaller change is in the way less. The paper adds a
language's change to a task's: here the bases' second language is understood without, so that two tasks stand for them.

    whet reproduce lt-sft
"""

from __future__ import annotations

from whet.evaluation.scores import ON, Scores
from whet.evaluation.statistics import over_seeds
from whet.study import Judgement, every, judged, study

FIRST, SECOND = "chain-sum:level=3", "word-problem:level=2"
SUM = f"composed-sft:steps=60,tasks={FIRST};{SECOND}"


@study(
    paper="lt-sft",
    claim="Sparse changes of two skills, trained apart and added up, do both tasks better than one of them, than the sum of whole "
    "changes, and than sparse changes of entries drawn by chance.",
    arms={
        "lt-sft": SUM,
        "lt-sft 1%": f"{SUM},density=0.01",
        "lt-sft 20%": f"{SUM},density=0.2",
        "random": f"{SUM},random=true",
        "dense": f"{SUM},dense=true",
        "dense-low": f"{SUM},dense=true,lr=2e-4",
        "alone": "lt-sft:steps=60",
        "joint": f"sft:steps=120,mixture={FIRST}#2048;{SECOND}#2048",
    },
    controls=["random", "dense-low", "alone", "joint"],
    task=FIRST,
    model="micro",
    budget=None,
    metrics=["accuracy", ON + SECOND, ON + "sort:level=1"],
    settings={"test_n": 256, "k": 0, "others": [SECOND, "sort:level=1"], "others_n": 256, "others_look_n": 0, "validation_n": 32,
              "evaluations": 1, "keep": "last"},
    quick={"budget": "steps:4", "test_n": 16, "others_n": 8, "validation_n": 16},
    full={"seeds": 8, "model": None, "test_n": 1024, "others_n": 1024},
)  # fmt: skip
def lt_sft(scores: Scores) -> Judgement:
    """Reproduced if, by the mean of greedy test accuracy on both tasks, lt-sft is above alone, above the sum of whole changes at
    either rate, and above random masks; each with the whole 95 % interval over seeds; not reproduced if one of these intervals
    lies on the other side; else inconclusive. Other densities and joint training are reported and decide nothing."""
    return every(*(better(scores, "lt-sft", other) for other in ("alone", "dense", "dense-low", "random")))


def better(scores: Scores, a: str, b: str) -> Judgement:
    """Whether a's mean accuracy on both tasks is above b's, seed by seed."""
    ours, theirs = (both(scores, arm) for arm in (a, b))
    gaps = over_seeds([x - y for x, y in zip(ours, theirs, strict=True)])
    return judged(f"mean accuracy on both tasks of {a} - {b}", gaps)


def both(scores: Scores, arm: str) -> list[float]:
    """By seed, the mean of greedy accuracy on the two tasks."""
    return [(x + y) / 2 for x, y in zip(scores.values("accuracy", arm), scores.values(ON + SECOND, arm), strict=True)]
