"""Two pipelines of the same editing, and one matrix against all: what holds after all edits, and what else is lost.

A hundred facts that the base knows (drawn anew for the study) are edited in one wording each. `depth` takes at most 8 steps on each request before the next, `one`
at most 8 epochs of single requests, 800 steps like it: they differ in the order alone. `breadth`, by 25, takes at most 400 and may stop
before; each of its steps sees more, and the metric `updates` says how many were taken. `whole` is breadth of all weights, `sft` plain
fine-tuning on the same requests, `early` and `late` are other blocks. What the claim is about is there at two rates.

    whet reproduce locft-bf
"""

from __future__ import annotations

from whet.evaluation.scores import Scores
from whet.evaluation.statistics import over_seeds
from whet.study import Judgement, above, best, every, judged, study

BREADTH, ONE, DEPTH = ("locft-bf:epochs=100", "locft-bf:batch=1,epochs=8", "locft-bf:order=depth,batch=1,epochs=8")
WHOLE, SFT = f"{BREADTH},module=all", "sft:limit=100,batch=25,steps=200"


@study(
    paper="locft-bf",
    claim="Fine-tuning edits a model where epochs over all requests take the place of one request after another, mini-batches that of "
    "single requests, and one matrix that of all weights: more edits hold after all of them, and more unedited facts are kept.",
    arms={
        "breadth": f"{BREADTH},lr=1e-3",
        "breadth high": f"{BREADTH},lr=3e-3",
        "one": f"{ONE},lr=1e-3",
        "one high": f"{ONE},lr=3e-3",
        "depth": f"{DEPTH},lr=1e-3",
        "depth high": f"{DEPTH},lr=3e-3",
        "whole": f"{WHOLE},lr=3e-4",
        "whole high": f"{WHOLE},lr=1e-3",
        "sft": f"{SFT},lr=3e-4",
        "sft high": f"{SFT},lr=1e-3",
        "early": f"{BREADTH},layer=0,lr=1e-3",
        "late": f"{BREADTH},layer=-1,lr=1e-3",
    },
    controls=["one", "one high", "depth", "depth high", "whole", "whole high", "sft", "sft high"],
    task="edits:draw=1",
    budget=None,
    metrics=["reliability", "accuracy", "locality", "forgetting", "reliability_early", "reliability_late", "updates"],
    settings={"test_n": 100, "k": 0, "validation_n": 50, "others_n": 48, "others_look_n": 0, "evaluations": 3, "keep": "last"},
    quick={"budget": "steps:6", "test_n": 16, "validation_n": 8, "others_n": 4, "evaluations": 1},
    full={"seeds": 8, "test_n": 200, "others_n": 256},
)  # fmt: skip
def locft_bf(scores: Scores) -> Judgement:
    """Reproduced if, each at the rate that generalisation on validation chooses, after all edits (1) breadth-first by single requests
    answers more of the requests than depth-first, by more than 10 points; (2) depth-first answers more of the last quarter of its
    requests than of the first; (3) breadth-first by 25 keeps more of the unedited facts than by 1, and (4) more than all weights do,
    sft among them, of which it answers at most 3 points fewer requests; each with the whole 95 % interval; not reproduced if one of
    these intervals lies on the other side; else inconclusive. Other blocks and the base's other tasks are reported and decide nothing."""
    breadth, one, depth = (best(scores, arm, f"{arm} high") for arm in ("breadth", "one", "depth"))
    whole = best(scores, "whole", "whole high", "sft", "sft high")
    early, late = (scores.values(f"reliability_{part}", depth) for part in ("early", "late"))
    return every(
        above(scores, "reliability", one, depth, by=0.1),
        judged(
            f"reliability of {depth}, last - first quarter",
            over_seeds([b - a for a, b in zip(early, late, strict=True)]),
        ),
        above(scores, "locality", breadth, one),
        above(scores, "locality", breadth, whole),
        above(scores, "reliability", breadth, whole, by=-0.03),
    )
