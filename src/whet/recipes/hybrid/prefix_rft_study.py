"""Sums that the base answers at once and mostly wrongly; worked solutions of about 50 and 80 tokens are at hand for all of them.

Half of the problems are of level 4 (one sampled answer in five is right) and half of level 5 (one in two hundred). All arms but
sft's take 60 steps of 8 problems x 8 answers; `rft` is Dr.GRPO, `sft-rft` 30 steps of either kind, `luffy` has the whole solution as
one of the 8 answers. `tenth` sees the solutions of a tenth of the problems; in `constant` the prefix stays nearly whole to the end.
sft takes 60 steps of 32 solutions at two rates, the better of which by validation counts.

    whet reproduce prefix-rft
"""

from __future__ import annotations

from whet.evaluation.scores import ON, Scores
from whet.evaluation.statistics import over_seeds
from whet.study import Judgement, above, best, every, judged, study

HARD, EASY = "chain-sum:level=5", "chain-sum:level=4"


@study(
    paper="prefix-rft",
    claim="Reinforcement in which one answer of each group goes on from a piece of a demonstration, ever shorter, is above "
    "supervised fine-tuning and above reinforcement alone, most on the hardest problems, and still with few demonstrations.",
    arms={
        "prefix-rft": "prefix-rft:steps=60",
        "rft": "dr-grpo:steps=60,entropy=0.001",
        "sft": "sft:steps=60",
        "sft-low": "sft:steps=60,lr=1e-4",
        "sft-rft": "sft-grpo:warm=30,steps=30",
        "luffy": "luffy:steps=60",
        "tenth": "prefix-rft:steps=60,shown=0.1",
        "constant": "prefix-rft:steps=60,end=0.95",
    },
    controls=["sft", "sft-low", "constant"],
    task="chain-sum:level=4-5",
    budget=None,
    metrics=["accuracy", ON + HARD, ON + EASY, "mean@4", "pass@4", "tokens_per_answer"],
    settings={"test_n": 256, "k": 4, "others": [HARD, EASY], "others_n": 128, "others_look_n": 0, "validation_n": 96,
              "evaluations": 4, "keep": "last"},
    quick={"test_n": 48, "others_n": 24, "validation_n": 24, "evaluations": 1, "budget": "steps:8"},
    full={"seeds": 5, "test_n": 1024, "others_n": 512},
)  # fmt: skip
def prefix_rft(scores: Scores) -> Judgement:
    """Reproduced if prefix-rft's greedy accuracy is above rft's and above that of the better of sft and sft-low (by validation),
    its gain over rft is larger on level 5 than on level 4, and tenth's accuracy is above rft's, each with the whole 95 % interval
    of the difference above 0; not reproduced if one of these intervals lies at or below it; else inconclusive. sft-rft, luffy and
    constant are reported and decide nothing."""

    def gains(level: str) -> list[float]:
        pairs = zip(scores.values(ON + level, "prefix-rft"), scores.values(ON + level, "rft"), strict=True)
        return [ours - theirs for ours, theirs in pairs]

    more = [hard - easy for hard, easy in zip(gains(HARD), gains(EASY), strict=True)]
    return every(
        above(scores, "accuracy", "prefix-rft", "rft"),
        above(scores, "accuracy", "prefix-rft", best(scores, "sft", "sft-low")),
        judged("gain of prefix-rft over rft on level 5 less that on level 4", over_seeds(more)),
        above(scores, "accuracy", "tenth", "rft"),
    )
