"""Holes in the input against over-fitting: few demonstrations of chained assignments whose order in the question is shuffled.

All arms have the same 512 demonstrations and 200 steps of 16, about six epochs, and keep their best weights on validation, so that
sft is compared at its best epoch and not over-trained; it runs at three rates. `p=0.4` is the paper's ratio for texts with few
formulas; `random` has other noise; `near` has tokens that the policy itself predicts, which keep their meaning: the paper's
negative case. `source`, holes in the question, is not built.

    whet reproduce masked-thought
"""

from __future__ import annotations

from whet.evaluation.scores import Scores
from whet.study import Judgement, above, every, study

RUN = "limit=512,batch=16,steps=200"


@study(
    paper="masked-thought",
    claim="Masking a part of the response in the input of supervised fine-tuning raises accuracy above what fine-tuning without "
    "masks reaches at its best, if what is masked loses its meaning.",
    arms={
        "sft": f"sft:{RUN}",
        "sft-low": f"sft:{RUN},lr=2e-4",
        "sft-high": f"sft:{RUN},lr=1e-3",
        "masked": f"masked-thought:{RUN},p=0.2",
        "masked-more": f"masked-thought:{RUN},p=0.4",
        "random": f"masked-thought:{RUN},p=0.2,noise=random",
        "near": f"masked-thought:{RUN},p=0.2,noise=sample,temperature=0.1",
    },
    controls=["sft", "sft-low", "sft-high", "near"],
    task="mod-chain:level=3",
    budget=None,
    metrics=["accuracy", "mean@4", "forgetting", "unparseable"],
    settings={"test_n": 384, "k": 4, "others_n": 128, "validation_n": 128, "evaluations": 4},
    quick={"budget": "steps:10", "test_n": 64, "others_n": 32, "validation_n": 32, "evaluations": 2},
    full={"seeds": 5, "test_n": 1024},
)
def masked_thought(scores: Scores) -> Judgement:
    """Reproduced if the greedy test accuracy of masked (p = 0.2) is above sft's at each of its three rates, and above near's, each
    with the whole 95 % interval of the difference; not reproduced if one of these intervals lies on the other side; else
    inconclusive. masked-more and random are reported and decide nothing."""
    return every(*(above(scores, "accuracy", "masked", other) for other in ("sft", "sft-low", "sft-high", "near")))
