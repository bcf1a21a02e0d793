"""Prefix-RFT (2507.01679): in every group, one answer begins with a piece of a demonstration and the policy goes on.

    answers 1 .. G-1    free
    answer G            y*_1 .. y*_L, then the policy's own      L = floor(l |y*|),  l ~ Uniform(low_s, .95),  low_s: .95 -> .05
    A_i = r_i - mean_j r_j                                        one advantage for the whole response, prefix included
    L   = - sum_it min(rho_it A_it, clip(rho_it) A_it) / (answers x budget) - .001 H
    A_it = 0 at the prefix tokens that are not among the 20 % with the highest entropy

A prefix that leads to a right answer is learnt where the policy was unsure of it; one that leads astray is unlearnt. rho is
the policy's own at every token (no probabilities of a demonstrator are used). With L = 0 this is Dr.GRPO.

Not as in the release: the prefix is cut in tokens and not decoded; its tokens are ranked within their answer, not within a
micro-batch; sums are divided by (answers x budget) of the whole batch; there is no second clip at a ratio of 3. Its further
switches are not here: l from a beta distribution, a baseline of their own for answers with a prefix, prefix tokens without a clip or
with reshaped advantages (LUFFY's shape is in `luffy`), and continuations alone left out at the length limit (`filter_truncated=true`
leaves out the whole answer).

`luffy` (2504.14945) is the baseline with the whole demonstration as an answer of its group, whose tokens are learnt by
-A p / (p + .1), without a ratio or a clip.

    whet run prefix-rft --task sort:level=3
"""

from __future__ import annotations

from typing import Any

from whet.objectives.given import Given
from whet.recipes.recipe import Recipe, recipe
from whet.recipes.reinforced.grpo import grpo
from whet.sources import PrefixLength, WithDemonstration

OF_THE_PAPER = {"advantage": "group-mean", "normalise": "constant", "entropy": 1e-3}


@recipe(paper="prefix-rft", parent="grpo", defaults=OF_THE_PAPER)
def prefix_rft(
    group: int = 8,
    high: float = 0.95,
    end: float = 0.05,
    min_prefix: int = 0,
    top: float = 0.2,
    shown: float = 1.0,
    **training: Any,
) -> Recipe:
    """Prefix-RFT: one answer of each group continues a piece of the demonstration, of which the most uncertain tokens are learnt.

    Args:
        group: answers sampled for each problem, the one with a prefix among them.
        high: the largest share of the demonstration that is given, and the smallest at the start.
        end: the smallest share at the end, where the cosine leads; as large as high, the pieces stay long.
        min_prefix: tokens that are given at least.
        top: share of the prefix tokens that is learnt, those with the highest entropy.
        shown: share of the problems whose demonstration is used.
    """
    plan = WithDemonstration(group, PrefixLength(high, end, min_prefix), shown)
    return _named("prefix-rft", grpo.build(**{**OF_THE_PAPER, **training}, plan=plan, given=Given(top=top)))


@recipe(paper="prefix-rft", parent="grpo", defaults=OF_THE_PAPER)
def luffy(group: int = 8, shape: float = 0.1, shown: float = 1.0, **training: Any) -> Recipe:
    """LUFFY (2504.14945), the baseline of Prefix-RFT: the whole demonstration is one answer of each group.

    Args:
        group: answers of a group, the demonstration among them.
        shape: gamma of p / (p + gamma), which weighs the demonstration's improbable tokens up.
        shown: share of the problems whose demonstration is used.
    """
    plan = WithDemonstration(group, None, shown)
    return _named("luffy", grpo.build(**{**OF_THE_PAPER, **training}, plan=plan, given=Given(shape=shape)))


def _named(name: str, made: Recipe) -> Recipe:
    (stage,) = made.stages
    stage.name = name
    return made
