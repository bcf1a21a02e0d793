"""Where reinforcement and fine-tuning move the weights of one base, and reinforcement of chosen weights alone.

All arms take equally many steps on one task from the shipped base; sft at two rates, of which `sft-low` is grpo's. Geometry is of
the weights as bf16 stores them, and once more of the fifth of each matrix that moved most, where precision decides nothing: small
weights have small steps in bf16, so that they change visibly whatever the method (of Gaussian noise of a real update's size, 0.16 of
the visible changes are among the principal fifth, and 0.20 of the largest). A longer way turns more, so drift and rotation are judged
over |dW|, against the sft arm whose |dW| is nearest. The base's spectrum has principal directions: an eighth of them holds
62 % of a matrix's sum of squares, where it is 31 % of random numbers (`energy` of `whet probe geometry`).

The masks are the paper's: the principal half, the other half (`non-principal`), `safe` (the other half and the small weights, 70 %
of this base) and as many at random. principal and non-principal have one size; safe is larger, and `random` says what size does.

    whet reproduce off-principals
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from whet.evaluation.probes import DENSITY
from whet.evaluation.scores import Scores
from whet.evaluation.statistics import over_seeds
from whet.probes.agreement import sketched_jaccard
from whet.study import Judgement, below, every, judged, study

SFT = ("sft", "sft-low")


@study(
    paper="off-principals",
    claim="Reinforcement moves weights off the principal directions of a model and keeps its spectrum, where fine-tuning does not; "
    "its runs change the same weights; and without the principal weights it learns as the whole model does.",
    arms={
        "sft": "sft",
        "sft-low": "sft:lr=1e-4",
        "grpo": "grpo",
        "principal": "grpo:weights=principal",
        "random": "grpo:weights=random:density=0.7",
        "non-principal": "grpo:weights=non-principal",
        "safe": "grpo:weights=safe",
    },
    controls=["sft", "sft-low", "principal", "random"],
    task="chain-sum:level=3",
    budget="steps:50",
    metrics=["accuracy", "forgetting", "sampled_kl", "geometry/change", "geometry/sparsity", "geometry/drift_by_change",
             "geometry/angle_by_change", "geometry/principal", "geometry/low", "geometry/top_principal", "geometry/top_low"],
    settings={"test_n": 256, "k": 0, "validation_n": 128, "others_n": 64, "evaluations": 4, "keep": "last",
              "probes": ["sampled-drift", "geometry"]},
    quick={"budget": "steps:4", "test_n": 16, "others_n": 4, "validation_n": 16, "evaluations": 2},
    full={"seeds": 5, "budget": "steps:300", "test_n": 1024},
)  # fmt: skip
def off_principals(scores: Scores) -> Judgement:
    """Reproduced if, against the sft arm of the nearest |dW|, grpo's drift and rotation over |dW| are lower and of the weights that
    moved most fewer are principal; of grpo's changed weights fewer are principal than by chance; its runs' changed weights have a
    Jaccard index above chance, and so have those that moved most; and the validation accuracy and the KL of non-principal and of safe
    stay nearer to grpo's, over the run, than principal's do. Each with the whole 95 % interval; not reproduced if one of these
    intervals lies on the other side; else inconclusive. random is reported and decides nothing."""
    sft = min(SFT, key=lambda arm: abs(_mean(scores, arm) - _mean(scores, "grpo")))
    fewer = [DENSITY - value for value in scores.values("geometry/principal", "grpo")]
    return every(
        *(below(scores, f"geometry/{name}", "grpo", sft) for name in ("drift_by_change", "angle_by_change", "top_principal")),
        judged("chance - geometry/principal of grpo", over_seeds(fewer)),
        *(judged(f"Jaccard of grpo's runs ({what}) - chance", over_seeds(agreement(scores, "grpo", what)))
          for what in ("changed", "moved most")),
        *(judged(f"distance of {name} to grpo, principal - {arm}", over_seeds(
            [far - near for far, near in zip(distance(scores, "principal", key), distance(scores, arm, key), strict=True)]))
          for arm in ("non-principal", "safe") for key, name in (("accuracy", "accuracy"), ("sampled_kl", "KL"))),
    )  # fmt: skip


def agreement(scores: Scores, arm: str, what: str) -> list[float]:
    """The Jaccard index less chance of every two runs of an arm."""
    texts = [cell.sketches[what] for cell in scores.cells[arm]]
    return [found - chance for a, b in combinations(texts, 2) for found, chance in [sketched_jaccard(a, b)]]


def distance(scores: Scores, arm: str, key: str, to: str = "grpo") -> list[float]:
    """For each seed the mean distance of an arm's curve to another's, over the looks."""
    return [_apart([p[key] for p in one.curve], [p[key] for p in other.curve])
            for one, other in zip(scores.cells[arm], scores.cells[to], strict=True)]  # fmt: skip


def _apart(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(abs(x - y) for x, y in zip(a, b, strict=True)) / len(a)


def _mean(scores: Scores, arm: str) -> float:
    return scores.interval("geometry/change", arm).value
