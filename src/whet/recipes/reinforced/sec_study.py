"""Does it help to let a bandit choose how hard the next problems are?

Four levels of word problems: the base has mastered the first, solves a half and a third of the next two when it samples, and
hardly any of the fourth; level 5 is in no arm's training. All arms of reinforcement take equally many steps of equally many
roll-outs, and differ only in which levels these are of. `hard-to-easy` is a control that must do badly where an order matters.
`sft` is given the worked solutions, at two rates of which validation chooses; it decides nothing.

    whet reproduce sec
"""

from __future__ import annotations

from whet.errors import WhetError
from whet.evaluation.scores import ON, Scores
from whet.evaluation.statistics import over_seeds
from whet.study import Judgement, above, every, judged, study

HARDEST, BEYOND = "word-problem:level=4", "word-problem:level=5"
RL = "steps=60,by=level"


@study(
    paper="sec",
    claim="A bandit that chooses the difficulty of training problems by the size of their advantages moves from easy to hard, and "
    "reaches at least the accuracy of a random order on hard and unseen levels, and more than an order from hard to easy.",
    arms={
        "sft": "sft:steps=100",
        "sft high": "sft:steps=100,lr=1.5e-3",
        "random": "sec:steps=60,order=random",
        "easy-to-hard": "sec:steps=60,order=easy-to-hard",
        "hard-to-easy": "sec:steps=60,order=hard-to-easy",
        "sec": f"sec:{RL},tau=0.3",
    },
    controls=["sft", "sft high", "hard-to-easy"],
    task="word-problem:level=1-4",
    budget=None,
    metrics=["accuracy", ON + HARDEST, ON + BEYOND, "mean@4", "tokens_per_answer"],
    settings={"test_n": 256, "k": 4, "others": [HARDEST, BEYOND], "others_n": 256, "evaluations": 4, "validation_n": 96,
              "keep": "last"},
    quick={"test_n": 32, "others_n": 32, "validation_n": 16},
    full={"seeds": 5, "test_n": 1024, "others_n": 1024},
)  # fmt: skip
def sec(scores: Scores) -> Judgement:
    """Reproduced if, at the end, sec's accuracy on the hardest level that was trained is not below that of the random order by 3
    points or more, and above that of hard-to-easy, and the mean level that sec draws is higher at the last look than at the first
    one of training, each with the whole 95 % interval over seeds; not reproduced if one of these intervals lies on the other side;
    else inconclusive. Level 5, easy-to-hard and sft are reported and decide nothing."""
    return every(
        above(scores, ON + HARDEST, "sec", "random", by=-0.03),
        above(scores, ON + HARDEST, "sec", "hard-to-easy"),
        judged("mean level drawn by sec, last look - first", over_seeds(moved(scores, "sec")), 0.0),
    )


def moved(scores: Scores, arm: str) -> list[float]:
    """By how much the mean level of the draws rose while an arm was trained, a number a seed."""
    found = []
    for cell in scores.cells[arm]:
        levels = [point["problems/level"] for point in cell.curve if "problems/level" in point]
        if len(levels) < 2:
            raise WhetError(f"arm '{arm}' was looked at {len(levels)} times while it was trained; two are needed")
        found.append(levels[-1] - levels[0])
    return found
