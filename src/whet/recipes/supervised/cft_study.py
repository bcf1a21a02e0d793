"""Critiques of one problem against solutions of one problem, on a base in which working step by step is latent.

The base answers these sums at once and mostly wrongly, though it has seen worked ones. All arms take equally many updates.
`sft-1` learns the solution of the one problem whose candidates `cft-1` learns to criticise, at three rates, the best of which
counts; `cft-own` has candidates of the policy alone, and `cft-slips` of the corruptor alone. `cft-many` and `sft-many` are
told of 100 problems. The second family (stories) is in the column of forgetting: below 0 it was gained.

    whet reproduce cft
"""

from __future__ import annotations

from whet.evaluation.scores import Scores
from whet.study import Judgement, above, every, study

ONE = "cft:rows=600,right=0.25"


@study(
    paper="cft",
    claim="Learning critiques of many candidate solutions of a single problem raises a model's accuracy in solving others, above "
    "what learning that problem's solution gives, and more so with candidates from different sources.",
    arms={
        "sft-1": "sft:limit=1,lr=5e-4",
        "sft-1-low": "sft:limit=1,lr=1e-4",
        "sft-1-least": "sft:limit=1,lr=2e-5",
        "cft-1": ONE,
        "cft-own": f"{ONE},source=policy",
        "cft-slips": f"{ONE},source=corruptor",
        "cft-many": "cft:limit=100,samples=3,wordings=3,rows=1200",
        "sft-many": "sft:limit=100,lr=5e-4",
    },
    controls=["sft-1", "sft-1-low", "sft-1-least", "sft-many"],
    task="chain-sum:level=3",
    budget="steps:80",
    metrics=["accuracy", "forgetting", "tokens_per_answer", "unparseable"],
    settings={
        "test_n": 384,
        "k": 0,
        "others": ["word-problem:level=3"],
        "others_n": 192,
        "validation_n": 128,
        "evaluations": 4,
    },
    quick={"budget": "steps:20", "test_n": 96, "others_n": 48, "validation_n": 48, "evaluations": 2},
    full={"seeds": 5, "budget": "steps:200", "test_n": 1024},
)
def cft(scores: Scores) -> Judgement:
    """Reproduced if cft-1's greedy test accuracy is above the start's, above sft-1's at each of its three rates, and above
    cft-own's and cft-slips', each with the whole 95 % interval of the difference; not reproduced if one of these intervals lies
    on the other side; else inconclusive. cft-many, sft-many and the second family are reported and decide nothing."""
    others = ("start", "sft-1", "sft-1-low", "sft-1-least", "cft-own", "cft-slips")
    return every(*(above(scores, "accuracy", "cft-1", other) for other in others))
