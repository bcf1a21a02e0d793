"""Facts that the base half knows, asked for in a wording that fine-tuning has not shown, most of them never fine-tuned on.

96 questions about an invented world are learnt, over and over; the test asks for all of it in one more wording. All arms take
equally many steps but `sft-3x`, which takes three times as many: noisefit's compute. sft runs at three rates. `largest` is the
first version's choice of blocks and `random` its control; `neftune` and `r-drop` are the paper's controls.

An answer is asked for five times at temperature 1, as in the paper; the paper's judge is a language model, here it is exact. How
certain wrong answers are is measured beside that (`confident_wrong`) and decides nothing: of the paper's claims, accuracy over the
five answers is tested.

    whet reproduce noisefit
"""

from __future__ import annotations

from whet.evaluation.scores import Scores
from whet.study import Judgement, above, every, study

ROWS = "limit=96,batch=16"
RUN = f"{ROWS},steps=80"


@study(
    paper="noisefit",
    claim="Fine-tuning that must agree with itself under noise in a few blocks answers known facts more often rightly, over five "
    "sampled answers, than plain fine-tuning.",
    arms={
        "sft": f"sft:{RUN}",
        "sft-low": f"sft:{RUN},lr=1e-4",
        "sft-high": f"sft:{RUN},lr=1e-3",
        "sft-3x": f"sft:{ROWS},steps=240",
        "noisefit": f"noisefit:{RUN}",
        "largest": f"noisefit:{RUN},blocks=largest,number=2",
        "random": f"noisefit:{RUN},blocks=random,number=2",
        "neftune": f"neftune:{RUN}",
        "r-drop": f"r-drop:{RUN}",
    },
    controls=["sft", "sft-low", "sft-high", "sft-3x", "random", "neftune", "r-drop"],
    task="facts:level=2",
    budget=None,
    metrics=["mean@5", "accuracy", "majority@5", "forgetting"],
    settings={
        "test_n": 384,
        "k": 5,
        "others_n": 128,
        "validation_n": 128,
        "keep": "last",
        "evaluations": 4,
        "probes": ["confident-wrong"],
    },
    quick={"budget": "steps:10", "test_n": 64, "others_n": 32, "validation_n": 32, "evaluations": 2},
    full={"seeds": 5, "test_n": 1024},
)
def noisefit(scores: Scores) -> Judgement:
    """Reproduced if noisefit's accuracy over five sampled answers is above sft's at each of its three rates and above sft-3x's
    (equal compute), and its greedy accuracy is at most 2 points below sft's, each with the whole 95 % interval of the difference;
    not reproduced if one of these intervals lies on the other side; else inconclusive. The other arms are reported and decide
    nothing."""
    return every(
        *(above(scores, "mean@5", "noisefit", other) for other in ("sft", "sft-low", "sft-high", "sft-3x")),
        above(scores, "accuracy", "noisefit", "sft", by=-0.02),
    )
