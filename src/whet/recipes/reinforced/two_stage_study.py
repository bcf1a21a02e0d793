"""Accuracy by many epochs of demonstrations, then brevity by a little reinforcement: searches that show one or two dead ends.

All arms start from the shipped base, which answers such questions with and without searches. The demonstrations are 128, with one
trace each; sft sees them once, or ten times at two rates. Equal compute is not asked here: the claim is of stages that are added.
The paper's base is verbose and its traces are others' shortest ones; here the traces are the task's own.

    whet reproduce two-stage
"""

from __future__ import annotations

from whet.evaluation.scores import Scores
from whet.evaluation.statistics import difference
from whet.study import Judgement, above, best, every, judged, study

SFT = "sft:limit=128,batch=32"
BRIEF = "rows=128,sft_batch=32,batch=4,steps=40"


@study(
    paper="two-stage",
    claim="Ten epochs of supervised fine-tuning raise accuracy where one does not, and a short phase of GRPO with rewards for "
    "brevity then shortens the answers at no loss of accuracy.",
    arms={
        "rl": f"two-stage:{BRIEF},sft_epochs=0",
        "sft 1": f"{SFT},steps=4",
        "sft 10": f"{SFT},steps=40",
        "sft 10 high": f"{SFT},steps=40,lr=1e-3",
        "two-stage": f"two-stage:{BRIEF}",
    },
    controls=["rl", "sft 10 high"],
    task="countdown:level=2:trace=search",
    budget=None,
    metrics=["accuracy", "tokens_per_answer", "ended", "unparseable", "forgetting"],
    settings={"test_n": 384, "k": 0, "validation_n": 64, "others_n": 64, "evaluations": 4, "keep": "last"},
    quick={"budget": "steps:6", "test_n": 16, "validation_n": 8, "others_n": 4, "evaluations": 1},
    full={"seeds": 5, "test_n": 2048},
)
def two_stage(scores: Scores) -> Judgement:
    """Reproduced if greedy test accuracy is higher after ten epochs than after one, two-stage's answers have at most 0.85 times
    the tokens of those after ten epochs, and its accuracy is at most 2 points below that after ten epochs (at the rate with the
    better validation accuracy), each with the whole 95 % interval of the difference; not reproduced if one of these intervals lies
    on the other side; else inconclusive. Reinforcement without the first stage is reported and decides nothing."""
    long, short = (scores.values("tokens_per_answer", arm) for arm in ("sft 10", "two-stage"))
    return every(
        above(scores, "accuracy", "sft 10", "sft 1"),
        judged("0.85 tokens after sft 10 - tokens after two-stage", difference([0.85 * n for n in long], short)),
        above(scores, "accuracy", "two-stage", best(scores, "sft 10", "sft 10 high"), by=-0.02),
    )
