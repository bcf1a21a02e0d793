"""The first study: reinforcement with a group baseline against ways of learning from fixed data.

All start from one base that rarely thinks before it answers, and spend the same floating-point operations, sampling
included. `sft` is given what the others are not, the worked solutions; it is the control that says how far demonstrations
alone go. The others learn from the policy's own answers, checked by the same verifier, but from answers that are sampled
once (a round) and not from those of the policy as it is now: `star` greedily, with the answer as a hint after a failure;
`rft` is its form that the paper compares with, several answers at temperature 1 and no hints; `dpo` in pairs.

    whet reproduce grpo
"""

from __future__ import annotations

from whet.evaluation.scores import Scores
from whet.study import Judgement, above, every, study


@study(
    paper="grpo",
    claim="Reinforcement with a group baseline, on answers sampled as it learns, raises a model's accuracy, and above what "
    "rejection sampling and preference pairs reach with the same compute.",
    arms={
        "sft": "sft",
        "grpo": "grpo",
        "star": "star",
        "rft": "star:samples=4,temperature=1.0,questions=256,rationalize=false",
        "dpo": "dpo",
    },
    controls=["sft"],
    task="chain-sum",
    budget="flops:6e12",
    metrics=["accuracy", "mean@8", "pass@8", "majority@8", "forgetting", "tokens_per_answer"],
    settings={"test_n": 512, "k": 8, "others_n": 256, "validation_n": 128},
    quick={"budget": "flops:6e11", "test_n": 128, "others_n": 64, "validation_n": 64, "evaluations": 4},
    full={"budget": "flops:6e13", "seeds": 5, "test_n": 1024},
)
def grpo(scores: Scores) -> Judgement:
    """Reproduced if grpo's greedy test accuracy is above the start's by more than 5 points, and above star's, rft's and
    dpo's by any margin, each with the whole 95 % interval of the difference; not reproduced if one of these intervals lies
    on the other side; else inconclusive. sft, pass@8 and forgetting are reported and decide nothing."""
    return every(
        above(scores, "accuracy", "grpo", "start", by=0.05),
        above(scores, "accuracy", "grpo", "star"),
        above(scores, "accuracy", "grpo", "rft"),
        above(scores, "accuracy", "grpo", "dpo"),
    )
