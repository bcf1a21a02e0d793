"""Is there a sampling temperature of reinforcement that an entropy finds, and are lower and higher ones worse?

All arms spend the same floating-point operations, sampling and the choice of the temperature included: a little fine-tuning on
worked solutions, then GRPO from there. One factor differs, the temperature: fixed and low, fixed and high, or chosen so that
the entropy of the sampled tokens is near a target. 0.3 nats is the paper's, of a large vocabulary; a small model in a small world
is surer of its tokens (0.03 nats at temperature 1), so a lower target is tried too, and validation says which is the
rule's. Stages, filters and budgets are off, for these would change the data with the temperature. `sft` spends everything on
worked solutions, at two rates of which validation chooses; it decides nothing.

    whet reproduce acereason
"""

from __future__ import annotations

from whet.evaluation.scores import Scores
from whet.study import Judgement, above, best, every, study

RL = "acereason:sft_steps=10,steps=60,budgets=[1.0],overlong=0,keep_from=0"
TARGETS = ("entropy 0.1", "entropy 0.3")


@study(
    paper="acereason",
    claim="Reinforcement after fine-tuning does best at the sampling temperature that brings the entropy of its tokens to a middle "
    "value: lower temperatures explore too little, higher ones learn from noise.",
    arms={
        "sft": "sft",
        "sft high": "sft:lr=1.5e-3",
        "cold": f"{RL},temperature=0.5",
        TARGETS[0]: f"{RL},entropy_target=0.1",
        TARGETS[1]: f"{RL},entropy_target=0.3",
        "hot": f"{RL},temperature=1.9",
    },
    controls=["sft", "sft high", "cold", "hot"],
    task="word-problem:level=3",
    budget="flops:3e12",
    metrics=["accuracy", "mean@8", "pass@8", "tokens_per_answer", "forgetting"],
    settings={"test_n": 256, "k": 8, "others_n": 64, "evaluations": 4, "validation_n": 96},
    quick={"budget": "flops:6e11", "test_n": 32, "others_n": 16, "validation_n": 16},
    full={"budget": "flops:3e13", "seeds": 5, "test_n": 1024},
)
def acereason(scores: Scores) -> Judgement:
    """Reproduced if the target with the better validation accuracy is not below the low and not below the high temperature by
    2 points or more of greedy test accuracy, and above one of them, each with the whole 95 % interval of the difference; not
    reproduced if one of the first two intervals lies on the other side, or neither arm is below it; else inconclusive."""
    rule = best(scores, *TARGETS)
    beaten = [above(scores, "accuracy", rule, extreme) for extreme in ("cold", "hot")]
    better = next((b for b in beaten if b.outcome == "reproduced"), None)
    better = better or next((b for b in beaten if b.outcome == "inconclusive"), beaten[0])
    return every(*(above(scores, "accuracy", rule, extreme, by=-0.02) for extreme in ("cold", "hot")), better)
