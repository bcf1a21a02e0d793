"""Mistakes that are announced, against mistakes that are not and against none.

All arms learn from the same 1,024 problems and take equally many updates; a mistake is the corruptor's, of a labelled type.
`sft` (three rates, the best of which counts) sees each right rationale as often again as mistake tuning does, and `sft-half`,
with half the batch, as often as it: the two ways to be fair. `unmarked` learns the same rows without prefixes, and `incorrect`
is the policy of `mistakes` asked behind the other prefix, which proves that the prefix is obeyed. Self-rethinking needs a model
that follows instructions; its loop is tested, not studied, here.

    whet reproduce mistake-tuning
"""

from __future__ import annotations

from whet.evaluation.scores import Scores
from whet.study import Judgement, above, every, study


@study(
    paper="mistake-tuning",
    claim="Learning right and wrong rationales, each announced by a prefix, makes answers behind the right one's prefix better "
    "than learning the right ones alone.",
    arms={
        "sft": "sft:limit=1024,lr=5e-4",
        "sft-high": "sft:limit=1024,lr=1e-3",
        "sft-low": "sft:limit=1024,lr=2e-4",
        "sft-half": "sft:limit=1024,lr=5e-4,batch=16",
        "mistakes": "mistake-tuning:lr=5e-4",
        "unmarked": "mistake-tuning:lr=5e-4,marked=false",
        "incorrect": "mistake-tuning:lr=5e-4,ask=incorrect",
    },
    controls=["sft", "sft-high", "sft-low", "sft-half", "unmarked", "incorrect"],
    task="mod-chain:level=2",
    budget="steps:120",
    metrics=["accuracy", "forgetting", "tokens_per_answer", "unparseable"],
    settings={"test_n": 512, "k": 0, "others_n": 96, "validation_n": 128, "evaluations": 4},
    quick={"budget": "steps:20", "test_n": 96, "others_n": 48, "validation_n": 48, "evaluations": 2},
    full={"seeds": 8, "budget": "steps:400", "test_n": 2048},
)
def mistake_tuning(scores: Scores) -> Judgement:
    """Reproduced if the greedy test accuracy of mistakes is above that of sft at each of its three rates, above unmarked's by
    more than 5 points, and above incorrect's by more than 20, each with the whole 95 % interval of the difference; not
    reproduced if one of these intervals lies on the other side; else inconclusive. sft-half is reported and decides nothing."""
    return every(
        *(above(scores, "accuracy", "mistakes", other) for other in ("sft", "sft-high", "sft-low")),
        above(scores, "accuracy", "mistakes", "unmarked", by=0.05),
        above(scores, "accuracy", "mistakes", "incorrect", by=0.20),
    )
