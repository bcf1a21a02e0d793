"""Does a contrast with the annotated chains keep PPO steady where it is pushed too hard?

The setting of the reft study, at five times its learning rate and a fifth of its KL: PPO then loses in some runs what it had
gained. `reft` has the same two-layer value head and no contrast, `calm` the study's own rate and KL. All spend the same
floating-point operations, the pass over the annotated chains included. sft has its better rate of two, by validation.

A run falls by its best validation accuracy less its last one, and has collapsed where it ends below half its best. The weights
of the last step are judged, not the best ones.

    whet reproduce carft
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from whet.evaluation.scores import Cell, Scores
from whet.evaluation.statistics import difference
from whet.study import Judgement, above, best, every, judged, study

QUESTIONS = "limit=512"
SFT = f"sft:{QUESTIONS},batch=48,warmup=0.1,schedule=linear"
START = f"{QUESTIONS},warm=8,steps=60"
HARD = "lr=5e-4,kl=0.01"
NEAR = "contrast_positive/cosine"


@study(
    paper="carft",
    claim="A contrastive loss between annotated and sampled chains keeps reinforced fine-tuning from collapsing, at no loss of "
    "accuracy.",
    arms={
        "sft": SFT,
        "sft high": f"{SFT},lr=1e-3",
        "calm": f"carft:{START},weight=0",
        "reft": f"carft:{START},{HARD},weight=0",
        "carft": f"carft:{START},{HARD}",
        "as released": f"carft:{START},{HARD},detach_negatives=true,mask_broadcast=true",
    },
    controls=["sft", "sft high", "calm", "as released"],
    task="chain-sum:level=3",
    model="micro",
    budget="flops:1.2e12",
    seeds=4,
    metrics=["accuracy", "mean@4", "unparseable", "forgetting", "tokens_per_answer"],
    settings={"test_n": 256, "k": 4, "validation_n": 128, "others_n": 64, "evaluations": 8, "keep": "last"},
    quick={"budget": "flops:4e11", "test_n": 32, "validation_n": 16, "others_n": 4, "evaluations": 2},
    full={"seeds": 8, "budget": "flops:2e13", "model": None, "task": "chain-sum:level=4", "test_n": 1024},
)
def carft(scores: Scores) -> Judgement:
    """Reproduced if carft's greedy test accuracy is not more than 3 points below reft's and its fall is smaller than reft's by any
    margin, each with the whole 95 % interval of the difference; not reproduced if one of these intervals lies on the other side;
    else inconclusive. Collapsed runs, the worst seed and the cosine of right answers to their annotation are told, and sft at the
    rate with the better validation accuracy, calm and the released form beside them; they decide nothing."""
    arms = (best(scores, "sft", "sft high"), "calm", "reft", "carft", "as released")
    told = ", ".join(f"{a} {collapsed(scores.cells[a])} of {len(scores.cells[a])} with a worst seed of "
                     f"{min(scores.values('accuracy', a)):.3f}" for a in arms)  # fmt: skip
    found = every(
        above(scores, "accuracy", "carft", "reft", by=-0.03),
        judged("fall of reft - carft", difference(falls(scores.cells["reft"]), falls(scores.cells["carft"]))),
    )
    return Judgement(found.outcome, f"{found.why}; collapsed: {told}; carft's cosine {nearness(scores.cells['carft'])}")


def falls(cells: Sequence[Cell]) -> list[float]:
    """By run, the best validation accuracy less the last one."""
    curves = [[look["accuracy"] for look in cell.curve] for cell in cells]
    return [max(curve) - curve[-1] for curve in curves]


def collapsed(cells: Sequence[Cell]) -> int:
    """Runs that end below half of their best."""
    curves = [[look["accuracy"] for look in cell.curve] for cell in cells]
    return sum(curve[-1] < max(curve) / 2 for curve in curves)


def nearness(cells: Sequence[Cell]) -> str:
    """The mean cosine over runs, at the first look that has one and at the last."""
    curves = [[look[NEAR] for look in cell.curve if look.get(NEAR) is not None] for cell in cells]
    ends = [(curve[0], curve[-1]) for curve in curves if curve]
    if not ends:
        return "was not looked at"
    first, last = (fmean(side) for side in zip(*ends, strict=True))
    return f"from {first:.3f} to {last:.3f}"
