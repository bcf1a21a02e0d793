"""Does a model that learns only to plan, with another one to carry out its plans, need fewer rows than one that learns all?

All arms start from a base that was pretrained to follow given steps, and answers at once where it is given none. `sft`
learns worked solutions of ten times as many questions, at two rates of which validation chooses. `plans given`
is the responder with the task's own plans: what perfect guidance is worth.

    whet reproduce sgft
"""

from __future__ import annotations

from whet.evaluation.scores import Scores
from whet.study import Judgement, above, best, every, study

ROWS = (1000, 3000)
SFT = {
    f"sft {n}{label}": f"sft:limit={n},steps=200{rate}"
    for n in ROWS
    for label, rate in (("", ""), (" high", ",lr=2e-3"))
}


@study(
    paper="sgft",
    claim="A guide that learnt plans of a few questions, with an untouched responder, answers better than a model that learnt "
    "worked solutions of ten times as many.",
    arms={
        **SFT,
        **{f"sgft {n}": f"sgft:limit={n},steps=200" for n in (100, 300)},
        "plans given": "sgft:limit=100,steps=1,guide=task",
    },
    controls=[*SFT, "plans given"],
    task="word-problem:level=3",
    model="planner.yaml",
    budget=None,
    metrics=["accuracy", "plans_leak", "plans_exact", "tokens_per_answer", "forgetting"],
    settings={"test_n": 512, "k": 0, "evaluations": 3, "validation_n": 128, "others_n": 128},
    quick={"test_n": 64, "validation_n": 32, "others_n": 32},
    full={"seeds": 5, "test_n": 2048},
)  # fmt: skip
def sgft(scores: Scores) -> Judgement:
    """Reproduced if sgft with 100 questions is more accurate than sft with 1,000, and with 300 than sft with 3,000 (each sft
    at the rate with the better validation accuracy), each with the whole 95 % interval of the difference; not reproduced if
    one of these intervals lies on the other side; else inconclusive. The cost of two generations is in tokens_per_answer."""
    return every(*(
        above(scores, "accuracy", f"sgft {n}", best(scores, f"sft {10 * n}", f"sft {10 * n} high")) for n in (100, 300)
    ))  # fmt: skip
