"""Do rationales help most where a shortcut fails, and most if the model is taught not to trust spoilt ones?

The question carries a note that names the right choice in nine of ten training questions, and in one of ten of those that
test it; the rationales argue for the right choice in 85 of 100. Who follows the note does well at home and badly away.
`sft` learns the gold rationales and answers, which the others are not given, and has three rates to choose from.

    whet reproduce pinto
"""

from __future__ import annotations

from whet.evaluation.scores import ON, Scores
from whet.study import Judgement, above, every, study

AWAY = "clues:cue=reversed"
OWN = "limit=400,steps=120"


@study(
    paper="pinto",
    claim="Choosing from rationales, with a penalty on being sure where they are spoilt, is more accurate away from the "
    "training questions than without the penalty, and that more than without rationales.",
    arms={
        "sft": f"sft:{OWN}",
        "sft low": f"sft:{OWN},lr=1.5e-4",
        "sft high": f"sft:{OWN},lr=1.5e-3",
        "no rationale": f"pinto:{OWN},rationales=none,weight=0",
        "standard": f"pinto:{OWN},weight=0",
        "masking": f"pinto:{OWN},mask=1",
        "pinto": f"pinto:{OWN}",
    },
    controls=["sft", "sft low", "sft high"],
    task="clues",
    budget=None,
    metrics=["accuracy", ON + AWAY, ON + "clues:cue=random", "sensitivity", "confidence", "trust_masked", "accuracy_masked"],
    settings={"test_n": 384, "k": 0, "others": [AWAY, "clues:cue=random"], "others_n": 384, "evaluations": 2,
              "validation_n": 128},
    quick={"test_n": 64, "others_n": 64, "validation_n": 32},
    full={"seeds": 5, "test_n": 2048, "others_n": 2048},
)  # fmt: skip
def pinto(scores: Scores) -> Judgement:
    """Reproduced if accuracy on questions whose note is reversed is higher for pinto than for standard and higher for
    standard than without rationales, and the sensitivity to swapped rationales is higher for pinto than for standard, each
    with the whole 95 % interval of the difference; not reproduced if one of these intervals lies on the other side; else
    inconclusive. sft, masking alone, and trust in hidden rationales are reported and decide nothing."""
    return every(
        above(scores, ON + AWAY, "pinto", "standard"),
        above(scores, ON + AWAY, "standard", "no rationale"),
        above(scores, "sensitivity", "pinto", "standard"),
    )
