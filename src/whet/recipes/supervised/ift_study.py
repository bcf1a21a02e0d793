"""Reading one's own guesses, where several continuations are right: ways over a frozen lake, of which the text shows one.

The four of the 2 x 2 are `sft` (neither), `mix` (the residual alone), `propagation` (the weights alone) and `ift` (both); all weigh
sequences alike. sft runs at three rates. All arms have the same 1024 maps and take equally many steps; a step of ift and of mix
costs one forward more. The claim at this scale is about free running: the greedy answer is played, and any safe way is right.

The paper's own lake (the error of a small policy's transition matrix against the optimal one) is not built.

    whet reproduce ift
"""

from __future__ import annotations

from whet.evaluation.scores import Scores
from whet.study import Judgement, above, every, study

RUN = "limit=1024,steps=200,batch=16,lr=1e-3"


@study(
    paper="ift",
    claim="Mixing the model's own predictions into its input, and weighing tokens by the losses that follow, raises the accuracy of "
    "free-running answers above that of fine-tuning on the same demonstrations.",
    arms={
        "sft": f"sft:{RUN},normalise=sequence",
        "sft-low": "sft:limit=1024,steps=200,batch=16,lr=5e-4,normalise=sequence",
        "sft-high": "sft:limit=1024,steps=200,batch=16,lr=2e-3,normalise=sequence",
        "mix": f"ift:{RUN},gamma=0",
        "propagation": f"ift:{RUN},mix=0",
        "ift": f"ift:{RUN}",
    },
    controls=["sft", "sft-low", "sft-high"],
    task="frozen-lake:level=1",
    budget=None,
    metrics=["accuracy", "mean@4", "pass@4", "unparseable", "forgetting"],
    settings={"test_n": 384, "k": 4, "others_n": 128, "validation_n": 128, "evaluations": 4},
    quick={"budget": "steps:10", "test_n": 64, "others_n": 32, "validation_n": 32, "evaluations": 2},
    full={"seeds": 5, "test_n": 1024, "task": "frozen-lake:level=2"},
)
def ift(scores: Scores) -> Judgement:
    """Reproduced if ift's greedy test accuracy is above sft's at each of its three rates, each with the whole 95 % interval of the
    difference; not reproduced if one of these intervals lies on the other side; else inconclusive. mix and propagation, each alone,
    are reported and decide nothing."""
    return every(*(above(scores, "accuracy", "ift", other) for other in ("sft", "sft-low", "sft-high")))
