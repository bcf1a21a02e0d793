"""Does reinforcement forget less than supervised fine-tuning when tasks are learnt one after the other?

Three tasks in turn, each until the same accuracy on its validation, or at most so many steps: what is compared is forgetting at
comparable accuracy on the new task, not at equal steps. The base answers these tasks at once; sft learns worked solutions, which
are of another style, at two rates, and `answers` the bare answers, as in the paper. Steps end at the accuracy, so that there is no
budget; learnt tokens and how far the weights moved are in the cells, with the whole matrix of tasks.

    whet reproduce rif-rft
"""

from __future__ import annotations

from whet.evaluation.scores import Scores
from whet.evaluation.statistics import over_seeds
from whet.study import Judgement, above, every, judged, study

RL = "rif-rft:until=0.8,steps=40,pool=128"
SFT = "continual-sft:until=0.8,steps=40"


@study(
    paper="rif-rft",
    claim="On a stream of tasks, reinforcement forgets far less than supervised fine-tuning, also without a KL term; leaving out what "
    "the policy never solves keeps that, and learns from fewer answers.",
    arms={
        "sft": f"{SFT},lr=1.5e-4",
        "sft high": SFT,
        "answers": f"{SFT},rationale=false",
        "grpo": f"{RL},filter=none",
        "grpo, kl": f"{RL},filter=none,kl=0.05",
        "rif": RL,
    },
    controls=["sft high", "answers", "grpo, kl"],
    task="chain-sum",
    budget=None,
    seeds=4,
    metrics=["fm_max", "fm_diag", "average_accuracy", "new_accuracy", "moved", "steps", "forgetting"],
    settings={"test_n": 128, "k": 0, "others_n": 128, "others_look_n": 0, "validation_n": 64, "evaluations": 0, "eval_every": 5,
              "keep": "last"},
    quick={"budget": "steps:6", "test_n": 16, "others_n": 4, "validation_n": 16, "eval_every": 2},
    full={"seeds": 8, "test_n": 512, "others_n": 512},
)  # fmt: skip
def rif_rft(scores: Scores) -> Judgement:
    """Reproduced if, seed by seed, the forgetting measure (max) of grpo without KL is closer to 0 than half of that of sft at either
    rate, at an accuracy on new tasks at most 5 points below; and rif's average accuracy is at most 1 point below grpo's, with fewer
    answers learnt; each with the whole 95 % interval over seeds; not reproduced if one of these intervals lies on the other side;
    else inconclusive. Bare answers and the arm with KL are reported and decide nothing."""
    return every(
        *(half(scores, "grpo", arm) for arm in ("sft", "sft high")),
        *(above(scores, "new_accuracy", "grpo", arm, by=-0.05) for arm in ("sft", "sft high")),
        above(scores, "average_accuracy", "rif", "grpo", by=-0.01),
        fewer(scores, "rif", "grpo"),
    )


def half(scores: Scores, a: str, b: str) -> Judgement:
    """Whether a's forgetting measure is at least twice as close to 0 as b's."""
    pairs = zip(scores.values("fm_max", a), scores.values("fm_max", b), strict=True)
    gaps = over_seeds([ours - theirs / 2 for ours, theirs in pairs])
    return judged(f"forgetting measure of {a} - half of {b}'s", gaps)


def fewer(scores: Scores, a: str, b: str) -> Judgement:
    """Whether a learnt from fewer tokens than b, as a share of b's."""
    pairs = zip(scores.cells[a], scores.cells[b], strict=True)
    saved = [1 - ours.compute["learnt_tokens"] / theirs.compute["learnt_tokens"] for ours, theirs in pairs]
    return judged(f"share of learnt tokens that {a} saves over {b}", over_seeds(saved))
