"""Plans of every quality behind the checker's words, against gold plans, passing plans, and the same plans without the words.

All arms start from a base that writes plans which can be read, and a quarter of whose sampled plans keep all rules
(`traveller.yaml`), as the paper's planner does. Its greedy plan is the one it is surest of, and mostly right; so sampled plans are
judged, four a query. 256 queries with a gold plan each; the base samples further plans of its own at temperature 1, and the corruptor fills
up to eight of different faults a query; `passing` keeps what the verifier accepts of them, `unmarked` learns all without feedback,
and `faft` all with it. That they have more rows than sft is the point of the arms `passing` and `unmarked`. `fail-restaurants` is
faft's policy asked for a plan that visits a restaurant twice. sft runs at three rates, the best of which counts.

`parts/...` are of TravelPlanner's metrics: the mean share of checks passed, and the share of plans that pass all of a kind.

    whet reproduce faft
"""

from __future__ import annotations

from whet.evaluation.scores import Scores
from whet.study import Judgement, above, below, every, study

RUN = "steps=100,batch=12,lr=1e-3"
ALL = f"faft:{RUN},source=mixed"


@study(
    paper="faft",
    claim="Fine-tuning on plans of any quality, each behind its checker's feedback, and asking for all-success makes better plans "
    "than fine-tuning on the gold plans.",
    arms={
        "sft": "sft:limit=256,batch=12,steps=100,lr=1e-3",
        "sft-high": "sft:limit=256,batch=12,steps=100,lr=2e-3",
        "sft-low": "sft:limit=256,batch=12,steps=100,lr=5e-4",
        "passing": f"{ALL},learn=passing,feedback=false",
        "unmarked": f"{ALL},feedback=false",
        "faft": ALL,
        "fail-restaurants": f"{ALL},fail=restaurants",
    },
    controls=["sft", "sft-high", "sft-low", "passing", "unmarked", "fail-restaurants"],
    task="travel:level=1",
    model="traveller.yaml",
    budget=None,
    metrics=["mean@4", "pass@4", "accuracy", "parts/commonsense macro", "parts/commonsense", "parts/hard macro", "parts/hard", "parts/restaurants",
             "parts/sandbox", "parts/delivery"],
    settings={"test_n": 192, "k": 4, "others": [], "validation_n": 48, "evaluations": 4, "keep": "last"},
    quick={"test_n": 48, "validation_n": 32, "evaluations": 2},
    full={"seeds": 5, "test_n": 1024},
)  # fmt: skip
def faft(scores: Scores) -> Judgement:
    """Reproduced if faft's share of sampled test plans that pass every check (mean@4: the final pass rate) is above sft's at each of
    its three rates and above unmarked's, and asking for a failing restaurant lowers the share of greedy plans that pass that check
    by more than 20 points, each with the whole 95 % interval of the difference; not reproduced if one of these intervals lies on
    the other side; else inconclusive. passing, and greedy plans but for that, are reported and decide nothing."""
    return every(
        *(above(scores, "mean@4", "faft", other) for other in ("sft", "sft-high", "sft-low", "unmarked")),
        below(scores, "parts/restaurants", "fail-restaurants", "faft", by=0.20),
    )
