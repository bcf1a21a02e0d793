"""Does an episodic memory of successes help a small model whose own rewards are sparse?

The base solves a fifth of these problems when it samples and one in fifty greedily, so that many groups of 8 have no right answer
or one. All arms spend equal compute; what the memory's encoder costs is counted. `letters` is Memory-R with embeddings that see
letters only: the control that says whether the hidden states of the policy matter. sft learns worked solutions, at two rates.

    whet reproduce memory-rl
"""

from __future__ import annotations

import statistics

from whet.evaluation.scores import Scores
from whet.study import Judgement, above, best, every, study


@study(
    paper="memory-rl",
    claim="Rewards for being like remembered successes (and unlike remembered failures) raise a small model's accuracy above that of "
    "GRPO on outcomes alone, and make it vary less with the seed.",
    arms={
        "sft": "sft",
        "sft low": "sft:lr=1.5e-4",
        "outcome": "grpo",
        "memory-r": "memory-rl:explore=0",
        "memory-r+": "memory-rl",
        "letters": "memory-rl:explore=0,encoder=ngrams",
    },
    controls=["sft", "sft low", "letters"],
    task="chain-sum:level=4",
    budget="flops:1.6e12",
    seeds=4,
    metrics=["accuracy", "mean@4", "pass@4", "tokens_per_answer", "forgetting"],
    settings={"test_n": 256, "k": 4, "others_n": 64, "others_look_n": 0, "validation_n": 64, "evaluations": 4, "keep": "last"},
    quick={"budget": "flops:1e11", "test_n": 16, "others_n": 4, "validation_n": 16, "evaluations": 1},
    full={"seeds": 8, "budget": "flops:1.6e13", "test_n": 1024},
)  # fmt: skip
def memory_rl(scores: Scores) -> Judgement:
    """Of Memory-R and Memory-R+ the one with the better accuracy on validation is compared with outcomes alone, at the end of
    training. Reproduced if its greedy accuracy is higher, with the whole 95 % interval of the difference above 0, and the standard
    deviation of its sampled accuracy over seeds is lower; not reproduced if that interval lies below 0, or the deviation is twice as
    high; else inconclusive. sft, letters and all other numbers are reported and decide nothing."""
    memory = best(scores, "memory-r", "memory-r+")
    return every(above(scores, "accuracy", memory, "outcome"), steadier(scores, "mean@4", memory, "outcome"))


def steadier(scores: Scores, metric: str, a: str, b: str) -> Judgement:
    """Whether a metric of arm a varies less with the seed than arm b's. A few seeds cannot say how sure that is."""
    ours, theirs = (statistics.stdev(scores.values(metric, arm)) for arm in (a, b))
    told = f"the deviation of {metric} over seeds is {ours:.3f} for {a} and {theirs:.3f} for {b}"
    if ours < theirs:
        return Judgement("reproduced", told)
    return Judgement("not reproduced" if ours > 2 * theirs else "inconclusive", told)
