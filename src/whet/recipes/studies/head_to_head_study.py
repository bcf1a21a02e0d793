"""Learning from demonstrations, from one's own answers, and from both, where the base solves one problem in ten in sixteen tries.

Sums of six to eight terms, `chain-sum:level=5`: the base's pass@16 there is 0.088 (guesses have 0.005), as one sampled answer in two
hundred is right. A group of 8 is then dead 24 times in 25.
All arms spend the same floating-point operations, sampling included, on problems without end, each with one worked solution that
every arm but grpo and dapo may read. A cheap step is taken more often: sft at two rates, of which validation chooses. The
warm-up of reft is a third of its run. No paper makes this comparison, so there is no claim of a paper to reproduce.

    whet reproduce head-to-head
"""

from __future__ import annotations

from whet.evaluation.scores import Scores
from whet.study import Judgement, above, best, every, study

HYBRIDS = ("reft", "relift", "prefix-rft")


@study(
    slug="head-to-head",
    claim="Where the base solves one problem in ten in sixteen tries, reinforcement with demonstrations inside (reft, relift, "
    "prefix-rft) beats both supervised fine-tuning and reinforcement alone.",
    arms={
        "sft": "sft",
        "sft low": "sft:lr=1e-4",
        "grpo": "grpo",
        "dapo": "dapo",
        "reft": "reft:limit=0,warm=30,steps=60",
        "relift": "relift:minibatches=1,sft_lr=3e-4",
        "prefix-rft": "prefix-rft",
    },
    controls=["sft low"],
    task="chain-sum:level=5",
    budget="flops:2.5e12",
    metrics=["accuracy", "pass@16", "mean@16", "tokens_per_answer"],
    settings={"test_n": 160, "k": 16, "others": [], "validation_n": 96, "evaluations": 4, "keep": "last"},
    quick={"budget": "flops:1e11", "test_n": 16, "validation_n": 8, "evaluations": 1},
    full={"seeds": 5, "budget": "flops:2.5e13", "test_n": 1024},
)
def head_to_head(scores: Scores) -> Judgement:
    """Reproduced if the greedy accuracy of each of reft, relift and prefix-rft is above that of sft (at the rate with the better
    validation accuracy) and above grpo's, each with the whole 95 % interval of the difference; not reproduced if one of these
    intervals lies at or below 0; else inconclusive. dapo, pass@16 and the tokens are reported and decide nothing."""
    baseline = best(scores, "sft", "sft low")
    return every(*(above(scores, "accuracy", arm, rival) for arm in HYBRIDS for rival in (baseline, "grpo")))
