"""A model far from its reasoning expert: gradients bent towards the expert, and what merging and other directions do instead.

The text version of the paper's setting. Each run begins with the micro base and makes two models of it: the expert works out chains
of sums, and the other one learns stories and lists at a high rate and answers alone, so that it stands far away. That one then
learns 256 stories with their rationales, in 60 steps. `untrained` is it before that, `merge 0.3` is it with so
much of the difference to the expert, untrained too. `random` bends towards a direction of the same norm, `reverse` away from the
expert. sft, adaptive and random at two rates, of which validation chooses. Forgetting is of stories of one operation and of lists,
which the other model has learnt, against the base.

    whet reproduce drift
"""

from __future__ import annotations

from whet.evaluation.scores import Scores
from whet.study import Judgement, above, below, best, every, study

MODELS = "expert_steps=80,first=word-problem:level=1-2;lists:level=1-2,first_steps=90,first_lr=3e-3"
TRAINED = f"drift:{MODELS},limit=256,steps=60"
STILL = f"{TRAINED},alpha=0,lr=0"
HIGH = "lr=1.5e-3"


@study(
    paper="drift",
    claim="Where a reasoning expert is far away, bending gradients towards it learns at least as well as plain fine-tuning and "
    "better than a random direction, and merging it into the weights does harm.",
    arms={
        "untrained": STILL,
        "merge 0.3": f"{STILL},merge=0.3",
        "merge, sft": f"{TRAINED},alpha=0,merge=0.3",
        "sft": f"{TRAINED},alpha=0",
        "sft high": f"{TRAINED},alpha=0,{HIGH}",
        "adaptive": TRAINED,
        "adaptive high": f"{TRAINED},{HIGH}",
        "grad-norm": f"{TRAINED},mode=grad-norm",
        "absolute": f"{TRAINED},mode=absolute",
        "random": f"{TRAINED},direction=random",
        "random high": f"{TRAINED},direction=random,{HIGH}",
        "reverse": f"{TRAINED},direction=reverse",
    },
    controls=["untrained", "random", "random high", "reverse"],
    task="word-problem:level=2",
    model="micro",
    budget=None,
    metrics=["accuracy", "forgetting", "tokens_per_answer", "unparseable"],
    settings={
        "test_n": 384, "k": 0, "validation_n": 128, "others": ["word-problem:level=1", "lists:level=1", "lists:level=2"],
        "others_n": 64, "others_look_n": 0, "evaluations": 8, "keep": "last",
    },
    quick={"budget": "steps:8", "test_n": 32, "validation_n": 16, "others_n": 4, "evaluations": 1},
    full={"seeds": 5, "test_n": 2048, "others_n": 512},
)  # fmt: skip
def drift(scores: Scores) -> Judgement:
    """Reproduced if the greedy test accuracy of adaptive is at most 2 points below sft's and above random's, each of the three at
    the rate with the better validation accuracy, and that of merging is below untrained's; each with the whole 95 % interval of
    the difference; not reproduced if one of these intervals lies on the other side; else inconclusive. The other arms and forgetting
    are reported and decide nothing."""
    adaptive, sft, random = (best(scores, arm, f"{arm} high") for arm in ("adaptive", "sft", "random"))
    return every(
        above(scores, "accuracy", adaptive, sft, by=-0.02),
        above(scores, "accuracy", adaptive, random),
        below(scores, "accuracy", "merge 0.3", "untrained"),
    )
