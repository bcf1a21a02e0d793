"""Is more learnt from the same questions by reinforcement on one's own answers than by more epochs of the one gold chain of each?

All arms start from the micro base, which has seen such sums mostly answered at once, have 512 questions with a gold chain each,
and spend the same floating-point operations, sampling included. sft sees every chain about thirty times, on the schedule whose
beginning is the warm-up of reft, and at twice its rate. The warm-up is an eighth of reft's run, and the first of eight looks at
validation comes at its end.

Not here: the re-ranker; and the paper's multiple choice, where guesses are rewarded for wrong chains.

    whet reproduce reft
"""

from __future__ import annotations

from whet.evaluation.scores import Scores
from whet.evaluation.statistics import over_seeds
from whet.study import Judgement, above, best, every, judged, study

QUESTIONS = "limit=512"
SFT = f"sft:{QUESTIONS},batch=48,warmup=0.1,schedule=linear"
REFT = f"reft:{QUESTIONS},warm=8,steps=60"


@study(
    paper="reft",
    claim="After a short warm-up, PPO on the same questions generalises better than supervised fine-tuning on their gold chains, "
    "in greedy and in voted answers.",
    arms={
        "sft": SFT,
        "sft high": f"{SFT},lr=1e-3",
        "offline": f"offline-self-training:{QUESTIONS},warm=8,steps=60,samples=8",
        "online": f"online-self-training:{QUESTIONS},warm=8,steps=60",
        "reft": REFT,
        "reft, no partial": f"{REFT},partial=0",
    },
    controls=["sft", "sft high", "reft, no partial"],
    task="chain-sum:level=3",
    model="micro",
    budget="flops:1.2e12",
    metrics=["accuracy", "majority@16", "mean@16", "pass@16", "unparseable", "forgetting", "tokens_per_answer"],
    settings={"test_n": 256, "k": 16, "validation_n": 128, "others_n": 64, "evaluations": 8, "keep": "last"},
    quick={"budget": "flops:4e11", "test_n": 32, "validation_n": 16, "others_n": 4, "evaluations": 2},
    full={"seeds": 5, "budget": "flops:2e13", "model": None, "task": "chain-sum:level=4", "test_n": 1024},
)
def reft(scores: Scores) -> Judgement:
    """Reproduced if reft's greedy test accuracy is above that of sft (at the rate with the better validation accuracy) by more than
    3 points, its majority of 16 above sft's by any margin, and its validation accuracy at the end above that at its first look
    after the start, where the warm-up ends, each with the whole 95 % interval of the difference; not reproduced if one of these intervals lies on the
    other side; else inconclusive. The self-trainings, and reft without partial reward, are reported and decide nothing."""
    baseline = best(scores, "sft", "sft high")
    curves = [[look for look in cell.curve if look["share"] > 0] for cell in scores.cells["reft"]]
    gains = [curve[-1]["accuracy"] - curve[0]["accuracy"] for curve in curves]
    return every(
        above(scores, "accuracy", "reft", baseline, by=0.03),
        above(scores, "majority@16", "reft", baseline),
        judged("validation accuracy of reft - of its warm-up", over_seeds(gains)),
    )
