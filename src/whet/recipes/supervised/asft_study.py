"""DFT with its anchor on a task that the base half knows, and DFT alone on facts that it cannot know.

All arms take equally many steps on the same rows; asft's cost one forward more. sft runs at three rates. `sft+kl` has the anchor
without the weights: in the paper both parts are needed. Drift is judged as accuracy lost on other tasks; as a KL to the start on
held-out rows (`drift_kl`) it is followed beside that and decides nothing. The paper's demonstrations are natural text; here they
are clean, so that the weights have no noise to leave out.

`dft-facts` is the negative control of the weights: an invented world, of which the base knows nothing, asked for in a wording that
training has not shown.

    whet reproduce asft
    whet reproduce dft-facts
"""

from __future__ import annotations

from whet.evaluation.scores import Scores
from whet.study import Judgement, above, below, every, study


@study(
    paper="asft",
    claim="A forward KL to the start keeps probability-weighted fine-tuning (DFT) from drifting: other skills are kept better than "
    "by DFT and by plain fine-tuning, and the task is learnt as well.",
    arms={
        "sft": "sft",
        "sft-low": "sft:lr=1e-4",
        "sft-high": "sft:lr=1e-3",
        "sft+kl": "asft:reweight=false",
        "dft": "dft",
        "asft": "asft",
    },
    controls=["sft", "sft-low", "sft-high", "sft+kl"],
    task="mod-chain:level=2",
    budget="steps:100",
    metrics=["accuracy", "forgetting", "mean@4", "tokens_per_answer"],
    settings={"test_n": 384, "k": 4, "validation_n": 128, "keep": "last", "evaluations": 4, "probes": ["drift"]},
    quick={"budget": "steps:10", "test_n": 64, "others_n": 32, "validation_n": 32, "evaluations": 2},
    full={"seeds": 5, "budget": "steps:600", "test_n": 1024},
)
def asft(scores: Scores) -> Judgement:
    """Reproduced if asft forgets less than dft and than sft at the same rate (accuracy lost on the other tasks), and its greedy
    test accuracy is at most 3 points below sft's at each of its three rates, each with the whole 95 % interval of the difference;
    not reproduced if one of these intervals lies on the other side; else inconclusive. sft+kl is reported and decides nothing."""
    return every(
        below(scores, "forgetting", "asft", "dft"),
        below(scores, "forgetting", "asft", "sft"),
        *(above(scores, "accuracy", "asft", other, by=-0.03) for other in ("sft", "sft-low", "sft-high")),
    )


@study(
    paper="asft",
    slug="dft-facts",
    claim="What a model finds improbable it does not learn under probability weights: new facts are recalled better after plain "
    "fine-tuning than after DFT in equally many steps.",
    arms={"sft": "sft", "dft": "dft"},
    controls=["sft"],
    task="facts:kind=lookup,level=1,world=1",
    budget="steps:60",
    metrics=["accuracy", "forgetting"],
    settings={"test_n": 256, "k": 0, "validation_n": 128, "keep": "last", "evaluations": 4},
    quick={"budget": "steps:10", "test_n": 64, "others_n": 32, "validation_n": 32, "evaluations": 2},
    full={"seeds": 5, "budget": "steps:200"},
)
def dft_facts(scores: Scores) -> Judgement:
    """Reproduced if sft's recall (greedy test accuracy) is above dft's by any margin, with the whole 95 % interval of the
    difference; not reproduced if the interval lies on the other side; else inconclusive."""
    return above(scores, "accuracy", "sft", "dft")
