"""Do executions follow their plans, and are many plans with few executions as good as many whole answers?

The terms of a sum may be taken in turn from any of them on; a plan is such an order, and each problem is shown in another one
at each visit. `shuffled` learns the same plans and executions, wrongly paired. The arms that explore are one model, trained alike, and
differ in how they answer: `many answers` is self-consistency over whole sampled answers, `clusters` carries out three of as many
plans. `weight 1` and `weight 2` go on with reinforcement, and differ in what the tokens of a plan weigh. `sft` learns the usual
rationales, at two rates.

    whet reproduce e2c
"""

from __future__ import annotations

from whet.evaluation.scores import Scores
from whet.evaluation.statistics import over_seeds
from whet.study import Judgement, above, every, judged, study

WARM = "warm=160,warm_batch=24,warm_lr=1e-3"
PAIRS = f"{WARM},steps=0"
MANY = f"{PAIRS},explore=16"


@study(
    paper="e2c",
    claim="Executions that were written from plans follow them, and to carry out the representatives of a few clusters of plans "
    "is as accurate as a vote over as many whole answers, for less than half of the tokens.",
    arms={
        "sft": "sft:steps=160,batch=24",
        "sft high": "sft:steps=160,batch=24,lr=1e-3",
        "shuffled": f"e2c:{PAIRS},pairs=shuffled",
        "clusters": f"e2c:{MANY},decode=cluster",
        "many answers": f"e2c:{MANY},decode=all,plan_temperature=1,execution_temperature=1",
        "weight 1": f"e2c:{WARM},steps=16,weight=1",
        "weight 2": f"e2c:{WARM},steps=16",
    },
    controls=["sft", "sft high", "shuffled"],
    task="chain-sum:level=4",
    budget=None,
    metrics=["accuracy", "adherence", "habit", "accuracy_replaced", "tokens_per_answer", "plan_tokens", "execution_tokens"],
    settings={"test_n": 256, "k": 0, "others": [], "evaluations": 2, "validation_n": 64},
    quick={"test_n": 48, "validation_n": 16},
    full={"seeds": 5, "test_n": 2048},
)  # fmt: skip
def e2c(scores: Scores) -> Judgement:
    """Reproduced if the share of replaced plans that are carried out is higher for clusters than for shuffled by more than 50
    points, the accuracy of clusters is above that of many answers minus 2 points, and clusters takes less than half of its
    tokens, each with the whole 95 % interval; not reproduced if one of these intervals lies on the other side; else
    inconclusive. What the weight of plan tokens changes is expected to be little, and decides nothing; nor does sft."""
    few, many = (scores.values("tokens_per_answer", arm) for arm in ("clusters", "many answers"))
    saved = over_seeds([1 - a / b for a, b in zip(few, many, strict=True)])
    return every(
        above(scores, "adherence", "clusters", "shuffled", by=0.5),
        above(scores, "accuracy", "clusters", "many answers", by=-0.02),
        judged("share of the tokens of many answers that clusters saves", saved, by=0.5),
    )
