"""Length under reinforcement: a search whose length is free, in a window that a fifth of the answers do not end in.

All arms start from the shipped base, which has learnt such searches (with dead ends, that it likes to repeat), and spend equal
compute. The window is 80 tokens; the base's answers have about 45. Lengths and repetition (6-grams) are of two sampled answers to
each test problem in that window, accuracy is greedy. sft learns the task's shortest solutions, at two rates.

    whet reproduce long-cot
"""

from __future__ import annotations

from whet.evaluation.scores import Scores
from whet.study import Judgement, above, below, every, study

PPO = "long-cot:sft_steps=0,steps=100,batch=8,epochs=1,max_new_tokens=80"


@study(
    paper="long-cot",
    claim="A cosine reward of length keeps answers within the window where a plain reward does not, at no loss of accuracy; a "
    "reward that pays for length makes right answers longer; a penalty on repeated n-grams removes what is won by repeating; a "
    "discount of the outcome shortens answers.",
    arms={
        "classic": f"{PPO},curve=classic,repetition=none",
        "cosine": f"{PPO},repetition=none",
        "cosine, penalty": PPO,
        "A": f"{PPO},curve=A,repetition=none",
        "discounted": f"{PPO},repetition=none,gamma=0.95",
        "sft": "sft",
        "sft low": "sft:lr=1.5e-4",
    },
    controls=["classic", "sft", "sft low"],
    task="countdown:level=2",
    budget="flops:3e12",
    metrics=["accuracy", "cut_off", "sampled_tokens", "tokens_right", "tokens_wrong", "repetition", "reflections",
             "tokens_per_answer", "forgetting"],
    settings={"test_n": 256, "k": 0, "validation_n": 64, "others_n": 64, "evaluations": 4, "keep": "last"},
    quick={"budget": "flops:1e11", "test_n": 16, "validation_n": 16, "others_n": 4, "evaluations": 1},
    full={"seeds": 5, "budget": "flops:3e13", "test_n": 1024},
)  # fmt: skip
def long_cot(scores: Scores) -> Judgement:
    """Reproduced if fewer answers are cut off under the cosine reward than under the classic one, with a greedy accuracy at most
    3 points lower; right answers are longer under A than under cosine; fewer 6-grams are repeated with the penalty than without;
    and answers are shorter with the outcome discounted by 0.95 a token than without, each with the whole 95 % interval of the
    difference; not reproduced if one of these intervals lies on the other side; else inconclusive. sft is reported and decides
    nothing."""
    return every(
        below(scores, "cut_off", "cosine", "classic"),
        above(scores, "accuracy", "cosine", "classic", by=-0.03),
        above(scores, "tokens_right", "A", "cosine"),
        below(scores, "repetition", "cosine, penalty", "cosine"),
        below(scores, "sampled_tokens", "discounted", "cosine"),
    )
