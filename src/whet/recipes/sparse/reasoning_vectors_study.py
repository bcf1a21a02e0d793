"""What reinforcement added to one fine-tuned model, added to another and taken away from it, beside vectors that know nothing.

The base knows chains of sums but mostly answers at once. The donor learns 20 batches of them, half with their rationales, and goes on with GRPO;
the recipient learns a mixture in which such chains are few, half of it without rationales too, so that it reasons now and then.
Both begin with the base. Each run makes all of its models, and measures the recipient with every share of its vector in sampled
accuracy: greedy answers flip all at once where a model is about to reason or not. `recipient` is it without a donor. `more sft` has a donor of as many
further steps of SFT at two rates, of which validation chooses; `unrelated` has a recipient that never saw such chains.

A recipient of another pretraining is not trained here. What stands for it is the vector with rows and columns in another order: its
own numbers and singular values, in a basis that is not the recipient's.

    whet reproduce reasoning-vectors
"""

from __future__ import annotations

from whet.evaluation.scores import Scores
from whet.evaluation.statistics import over_seeds
from whet.study import Judgement, best, every, judged, study

OTHERS = "word-problem:level=2#192;lists:level=3#192"
MODELS = "rationales=0.5,recipient_steps=40,sft_steps=20"
MIXED = f"reasoning-vectors:{MODELS},recipient=chain-sum:level=3#96;{OTHERS}"
STILL = 0.05  # more than this share of answers is no longer nothing


@study(
    paper="reasoning-vectors",
    claim="The difference between a model before and after reinforcement makes another fine-tuned model of the same base reason "
    "better when it is added, and worse when it is subtracted; random vectors of its size do nothing.",
    arms={
        "recipient": f"{MIXED},scale=0",
        "vector": MIXED,
        "more sft": f"{MIXED},donor=sft",
        "more sft low": f"{MIXED},donor=sft,sft_lr=1e-4",
        "unrelated": f"reasoning-vectors:{MODELS},recipient={OTHERS}",
    },
    controls=["recipient", "more sft", "more sft low", "unrelated"],
    task="chain-sum:level=3",
    budget=None,
    metrics=["accuracy", "forgetting", "tokens_per_answer", "vector/-1", "vector/0", "vector/0.25", "vector/0.5", "vector/0.75",
             "vector/1", "vector/1.5", "vector/whole", "vector/random", "vector/shuffled", "vector/before", "vector/after",
             "vector/barrier", "vector/cosine"],
    settings={"test_n": 256, "k": 0, "validation_n": 128, "others_n": 64, "evaluations": 4, "keep": "last"},
    quick={"budget": "steps:9", "test_n": 16, "others_n": 4, "validation_n": 16, "evaluations": 1},
    full={"seeds": 5, "test_n": 1024, "others_n": 256},
)  # fmt: skip
def reasoning_vectors(scores: Scores) -> Judgement:
    """Reproduced if the recipient's sampled accuracy rises with the vector, and falls with its negative; it rises more than with
    the random and with the shuffled vector, and more than with the vector of further SFT (at the rate with the better validation
    accuracy of its donor); and the random vector changes it by less than 5 points. Each with the whole 95 % interval over seeds;
    not reproduced if one of these intervals lies on the other side; else inconclusive. The recipient that never saw such chains,
    the other scales, the whole vector, the loss barrier and forgetting are reported and decide nothing."""
    sft = best(scores, "more sft", "more sft low")
    further = zip(gains(scores, "1"), gains(scores, "1", sft), strict=True)
    return every(
        judged("the gain with v", over_seeds(gains(scores, "1"))),
        judged("the loss with -v", over_seeds([-g for g in gains(scores, "-1")])),
        *(judged(f"the gain with v - that with the {name} one", over_seeds(gains(scores, "1", over=name)))
          for name in ("random", "shuffled")),
        judged(f"{STILL} - the change with the random one", over_seeds([STILL - abs(g) for g in gains(scores, "random")])),
        judged(f"the gain with v - that of {sft}", over_seeds([ours - theirs for ours, theirs in further])),
    )  # fmt: skip


def gains(scores: Scores, name: str, arm: str = "vector", over: str = "0") -> list[float]:
    """For each seed the accuracy with a vector less that with another; 0 is the recipient alone."""
    ours, theirs = (scores.values(f"vector/{of}", arm) for of in (name, over))
    return [a - b for a, b in zip(ours, theirs, strict=True)]
