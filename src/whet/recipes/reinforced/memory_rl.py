"""Memory-R and Memory-R+ (2504.02273): for models whose own rewards are sparse, an episodic memory rewards answers that are
like what succeeded before, and unlike what failed.

    R_total = R + beta_s exploit + beta_e explore;      GRPO on R_total

`exploit` is how near an answer's embedding is to the mean of remembered successes to the nearest question, `explore` how far it
is from the nearest remembered failure, both scaled to [0, 1] by the last 100 values (`rewards/memory.py` has the equations).
They count for wrong answers too, so that a group without a right answer still learns. Memory-R is `explore=0`; both weights 0
are grpo.

Departures: R is accuracy alone, not accuracy with four format terms; texts are embedded by a frozen copy of the policy, not
by all-MiniLM-L6-v2 (`encoder=sentence-transformers/all-MiniLM-L6-v2` is the paper's); explore begins after 100 failed
questions and not 500, since runs are short; every answer is looked up by its own question.

    whet run memory-rl --task chain-sum:level=4
"""

from __future__ import annotations

from typing import Any

from whet.recipes.recipe import Recipe, recipe
from whet.recipes.reinforced.grpo import grpo
from whet.rewards import accuracy, load_reward
from whet.rewards.memory import Recall


@recipe(paper="memory-rl", parent="grpo", task="chain-sum:level=4")
def memory_rl(
    exploit: float = 1.0,
    explore: float = 1.0,
    encoder: str = "policy",
    neighbours: int = 1,
    remembered: int = 100,
    window: int = 100,
    after: int = 100,
    write_first: bool = True,
    **training: Any,
) -> Recipe:
    """GRPO with rewards for being like past successes and unlike past failures.

    Args:
        exploit: weight of being near past successes (beta_s).
        explore: weight of being far from past failures (beta_e); 0 is Memory-R.
        encoder: what embeds texts: policy (a frozen copy of the first one), ngrams, or the name of a sentence model.
        neighbours: nearest questions whose answers are compared with (K).
        remembered: answers that are remembered of each question (L).
        window: values by whose least and greatest each reward is scaled (w).
        after: explore begins once so many questions have a remembered failure.
        write_first: whether an answer is remembered before it is scored, as in the authors' code.
    """
    given = training.pop("reward", None)
    outcome = load_reward(given) if isinstance(given, str) else given or accuracy()
    recall = Recall(exploit, explore, encoder, neighbours=neighbours, responses=remembered, window=window, after=after,
                    write_first=write_first)  # fmt: skip
    made = grpo(reward=outcome + recall, **training)
    made.stages[0].name = "memory-rl"
    return made
