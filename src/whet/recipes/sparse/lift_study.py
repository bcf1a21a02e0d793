"""Sparse fine-tuning against full fine-tuning: how much of what the base knew is kept at the same accuracy on the new task.

All arms learn the same rows in equally many steps; full fine-tuning at three rates. The masks move 5 % of each linear layer's
entries at lift's rate, chosen anew as often, lora a rank of about as many. That the sparse arms forget less than the full one is
the claim at this size, on the small `micro` base, which forgets the most; which selector is best is an open measurement: where the spectrum of the weights is flat, the principal
entries are little else than the large ones.

    whet reproduce lift
"""

from __future__ import annotations

from whet.evaluation.scores import Scores
from whet.study import Judgement, above, every, keeps, study

SPARSE = "sft:lr=3e-3,weights="


@study(
    paper="lift",
    claim="Fine-tuning the principal weights alone, 5 % of them, keeps more of what the base knew than full fine-tuning that is "
    "equally accurate on the new task.",
    arms={
        "full": "sft",
        "full-low": "sft:lr=2e-4",
        "full-least": "sft:lr=1e-4",
        "lift": "lift:lr=3e-3",
        "magnitude": f"{SPARSE}magnitude:refresh=50",
        "random": f"{SPARSE}random:refresh=50",
        "low-magnitude": f"{SPARSE}low-magnitude:refresh=50",
        "lora": "sft:lr=3e-3,weights=lora:rank=4",
    },
    controls=["full-low", "full-least", "magnitude", "random", "low-magnitude", "lora"],
    task="chain-sum:level=3",
    model="micro",
    budget="steps:150",
    seeds=5,
    metrics=["accuracy", "forgetting", "mean@4", "tokens_per_answer"],
    settings={
        "test_n": 256,
        "k": 4,
        "validation_n": 128,
        "others_n": 128,
        "others_look_n": 64,
        "evaluations": 8,
        "keep": "last",
    },
    quick={
        "budget": "steps:10",
        "test_n": 64,
        "others_n": 32,
        "others_look_n": 16,
        "validation_n": 32,
        "evaluations": 2,
    },
    full={"seeds": 8, "budget": "steps:600", "model": None, "test_n": 1024},
)
def lift(scores: Scores) -> Judgement:
    """Reproduced if lift loses less accuracy on the other tasks than full fine-tuning at each of its three rates, where both are
    equally accurate on validation, and its greedy test accuracy at the end is at most 3 points below that of full; each with the
    whole 95 % interval; not reproduced if one of these intervals lies on the other side; else inconclusive. The other selectors
    and lora are reported and decide nothing."""
    return every(
        *(keeps(scores, "lift", full) for full in ("full", "full-low", "full-least")),
        above(scores, "accuracy", "lift", "full", by=-0.03),
    )
