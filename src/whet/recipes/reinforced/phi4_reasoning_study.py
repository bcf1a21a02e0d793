"""The two halves of Phi-4-reasoning, each alone.

`phi-4-reasoning` is the reinforcement: GRPO on a search whose length is free, paid by length or 1 and 0, with and without the
term against repetition. Lengths and repetition (5-grams) are of two sampled answers to each test problem, accuracy is greedy.

`teachable` is the choice of prompts: equally many worked problems of six levels, of four answers of the base all right (easy), some
(middle) or none (hopeless), or as they come (random), learnt in equally many steps. What counts is a level that the base solves one
time in six.

    whet reproduce phi-4-reasoning
    whet reproduce teachable
"""

from __future__ import annotations

from whet.evaluation.scores import ON, Scores
from whet.study import Judgement, above, below, best, every, study

GRPO = "phi-4-reasoning:sft_steps=0,steps=90,batch=4"
SET = "phi-4-reasoning:steps=0,rows=96,sft_steps=60,samples=4,over=5"
HARD = "lists:level=4"


@study(
    paper="phi-4-reasoning",
    claim="A reward of correctness and length makes wrong answers longer without more of them being cut off and without loss of "
    "accuracy, beside a reward of 1 and 0; a term against repetition makes answers repeat themselves less.",
    arms={
        "1 or 0": f"{GRPO},shaped=false,repetition_share=0",
        "length": f"{GRPO},repetition_share=0",
        "length, repetition": GRPO,
        "sft": "sft",
        "sft low": "sft:lr=1.5e-4",
    },
    controls=["1 or 0", "sft", "sft low"],
    task="countdown:level=2",
    budget="flops:3e12",
    metrics=["accuracy", "tokens_wrong", "tokens_right", "cut_off", "repetition", "reflections", "tokens_per_answer",
             "forgetting"],
    settings={"test_n": 256, "k": 0, "validation_n": 64, "others_n": 64, "evaluations": 4, "keep": "last"},
    quick={"budget": "flops:1e11", "test_n": 16, "validation_n": 16, "others_n": 4, "evaluations": 1},
    full={"seeds": 5, "budget": "flops:3e13", "test_n": 1024},
)  # fmt: skip
def phi4_reasoning(scores: Scores) -> Judgement:
    """Reproduced if wrong answers are longer under `length` than under `1 or 0`, the share that is cut off is at most 3 points
    higher and the greedy accuracy at most 3 points lower, and fewer 5-grams are repeated with the term against repetition than
    without, each with the whole 95 % interval of the difference; not reproduced if one of these intervals lies on the other side;
    else inconclusive. sft is reported and decides nothing."""
    return every(
        above(scores, "tokens_wrong", "length", "1 or 0"),
        below(scores, "cut_off", "length", "1 or 0", by=-0.03),
        above(scores, "accuracy", "length", "1 or 0", by=-0.03),
        below(scores, "repetition", "length, repetition", "length"),
    )


@study(
    paper="phi-4-reasoning",
    slug="teachable",
    claim="Worked problems that the model solves now and then teach it more, for harder problems, than those that it mostly solves, "
    "and no less than problems as they come.",
    arms={
        "random": "sft:limit=96,steps=60",
        "random, low": "sft:limit=96,steps=60,lr=1.5e-4",
        "easy": f"{SET},low=0.9,high=1",
        "middle": f"{SET},low=0.1,high=0.9",
        "hopeless": f"{SET},low=0,high=0",
    },
    controls=["random", "random, low"],
    task="lists:level=1-6",
    budget=None,
    metrics=[ON + HARD, "accuracy", "tokens_per_answer"],
    settings={
        "test_n": 256,
        "k": 0,
        "validation_n": 128,
        "others": [HARD],
        "others_n": 384,
        "evaluations": 4,
        "keep": "last",
    },
    quick={"budget": "steps:3", "test_n": 16, "validation_n": 16, "others_n": 16, "evaluations": 1},
    full={"seeds": 5, "test_n": 1024, "others_n": 1024},
)
def teachable(scores: Scores) -> Judgement:
    """Reproduced if the accuracy on the hard level after `middle` is at most 2 points below that after `random` at its better rate
    (by validation), and that after `random` at this rate is above that after `easy`, each with the whole 95 % interval of the
    difference; not reproduced if one of these intervals lies on the other side; else inconclusive. `hopeless` is reported and
    decides nothing."""
    random = best(scores, "random", "random, low")
    return every(
        above(scores, ON + HARD, "middle", random, by=-0.02),
        above(scores, ON + HARD, random, "easy"),
    )
