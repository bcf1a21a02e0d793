"""Seven kinds of questions that the base half knows, and one, interest on loans, that it has never seen: it fails all of them.

All arms take 60 steps; those with reinforcement see 8 questions x 8 answers in each. `rl` is ReLIFT whose buffer never fills.
`all` learns the demonstrations of all questions in each step beside the answers, `random` those of as many questions as
failed. The hard bucket is interest, the easy one sums of a column, each on 128 test questions of its own; where the paper names
buckets by pass rate, here they are kinds of questions whose pass rate the base's data sheet tells.

    whet reproduce relift
"""

from __future__ import annotations

from whet.evaluation.scores import ON, Scores
from whet.evaluation.statistics import over_seeds
from whet.study import Judgement, above, best, every, judged, study

HARD, EASY = (f"finance:level=2,subtask={name}" for name in ("interest", "sum"))
RELIFT = "relift:steps=60,minibatches=1,threshold=4,sft_lr=3e-4"


@study(
    paper="relift",
    claim="Reinforcement improves what a model can do and leaves the hardest questions where they are; interleaved with supervised "
    "steps on the demonstrations of just those, it solves them too and forgets nothing, with few of the demonstrations.",
    arms={
        "relift": RELIFT,
        "rl": RELIFT.replace("threshold=4", "threshold=Infinity"),
        "sft": "sft:steps=60",
        "sft-low": "sft:steps=60,lr=1e-4",
        "sft-rl": "sft-grpo:warm=30,steps=30,ratio=none",
        "all": RELIFT.replace("threshold=4", "threshold=8") + ",select=all",
        "random": f"{RELIFT},select=random",
    },
    controls=["sft", "sft-low", "random"],
    task="finance:level=2",
    budget=None,
    metrics=["accuracy", ON + HARD, ON + EASY, "demonstrations_used", "mean@4", "tokens_per_answer"],
    settings={"test_n": 256, "k": 4, "others": [HARD, EASY], "others_n": 128, "others_look_n": 0, "validation_n": 96,
              "evaluations": 4, "keep": "last"},
    quick={"test_n": 48, "others_n": 24, "validation_n": 24, "evaluations": 1, "budget": "steps:8"},
    full={"seeds": 5, "test_n": 1024, "others_n": 512},
)  # fmt: skip
def relift(scores: Scores) -> Judgement:
    """Reproduced if relift's greedy accuracy on interest is above 0.2 and above rl's by more than 0.1, its accuracy on sums is at
    most 2 points below rl's, it has learnt the demonstrations of less than 40 % of the questions, and its accuracy on all kinds
    is above that of the better of sft and sft-low (by validation), each with the whole 95 % interval; not reproduced if one of
    these intervals lies on the other side; else inconclusive. The other arms are reported and decide nothing."""
    left = [1.0 - used for used in scores.values("demonstrations_used", "relift")]
    return every(
        judged("accuracy of relift on interest", scores.interval(ON + HARD, "relift"), 0.2),
        above(scores, ON + HARD, "relift", "rl", by=0.1),
        above(scores, ON + EASY, "relift", "rl", by=-0.02),
        judged("share of the questions whose demonstration relift left", over_seeds(left), 0.6),
        above(scores, "accuracy", "relift", best(scores, "sft", "sft-low")),
    )
