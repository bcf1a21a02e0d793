"""Is a small curated set in two languages better than a large noisy one in one, and do its traces need translation?

The task is asked in English and, away, in French, of which the base has seen only stories. `facts` shows what of its
knowledge is lost. The noisy set is ten times as large, English, as it was drawn, with three wrong traces in ten.

    whet reproduce pensez
"""

from __future__ import annotations

from whet.evaluation.scores import ON, Scores
from whet.study import Judgement, above, every, study

FRENCH, FACTS = "logic:level=1-3:lang=fr", "facts:form=closed,level=1"


@study(
    paper="pensez",
    claim="A few hundred curated rows in two languages, with traces in one, teach reasoning in both at a smaller loss of "
    "knowledge than many uncurated rows in one.",
    arms={
        "sft": "sft:limit=400,steps=65",
        "sft low": "sft:limit=400,steps=65,lr=1.5e-4",
        "sft high": "sft:limit=400,steps=65,lr=1.5e-3",
        "pensez": "pensez:rows=400",
        "small": "pensez:rows=50,epochs=33",
        "english only": "pensez:rows=400,bilingual=0",
        "translated traces": "pensez:rows=400,traces=translated",
        "large noisy": "pensez:rows=4000,bilingual=0,noise=0.3,curate=false,epochs=1",
    },
    controls=["sft", "sft low", "sft high", "english only"],
    task="logic:level=1-3",
    budget=None,
    metrics=["accuracy", ON + FRENCH, ON + FACTS, "tokens_per_answer"],
    settings={"test_n": 512, "k": 0, "others": [FRENCH, FACTS], "others_n": 256, "evaluations": 5, "validation_n": 128,
              "keep": "last"},
    quick={"test_n": 64, "others_n": 32, "validation_n": 32},
    full={"seeds": 5, "test_n": 2048, "others_n": 1024},
)  # fmt: skip
def pensez(scores: Scores) -> Judgement:
    """Reproduced if pensez is above the large noisy set in French accuracy and in the recall of facts, above English-only in
    French accuracy, and not below translated traces by 5 points or more, each with the whole 95 % interval of the
    difference; not reproduced if one of these intervals lies on the other side; else inconclusive. sft is reported and
    decides nothing."""
    return every(
        above(scores, ON + FRENCH, "pensez", "large noisy"),
        above(scores, ON + FACTS, "pensez", "large noisy"),
        above(scores, ON + FRENCH, "pensez", "english only"),
        above(scores, ON + FRENCH, "pensez", "translated traces", by=-0.05),
    )
