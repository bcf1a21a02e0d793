"""LIFT (2506.00772): supervised fine-tuning of the principal weights alone, chosen anew as they move.

    W' = U_r S_r V_r^T                   the r largest singular directions of a matrix, of its weights of now
    M  = the k largest |W'_ij|           k = density m n, or (m + n) R as adapters of rank R would have; each matrix by itself
    theta[M] <- theta[M] - lr AdamW(g[M])           moments for M alone, carried over a new choice where entries stay

Linear layers but the head; embeddings, norms and biases stay. r says which entries, density (or R) how many. What leaves M keeps
its value, so that the whole update is wider than one mask. Decay acts on M alone (in the released code on nothing), and the norm
that is clipped is that of M.

The paper's: R = 128 of widths 2048 to 4096 (about 5 % of the weights), r = 32 to 128, a new choice each 400 steps of about 1900
(10 to 2000 there), rate 2e-4. The defaults here are for small models: r an eighth of the width, 5 %, each 50 steps. In its released
form the code chooses the smallest |W'|; `smallest=true` is that, as a control. `sft --weights random:density=0.05,refresh=50`, or
`magnitude`, is the other control, and `grpo --weights lift` the same weights elsewhere.

    whet run lift --task my.jsonl --verifier number
"""

from __future__ import annotations

from typing import Any

from whet.recipes.recipe import Recipe, recipe
from whet.recipes.supervised.sft import sft
from whet.training.optimizer import Rate
from whet.weights import choices


@recipe(paper="lift", parent="sft")
def lift(
    rank: int = 0, density: float = 0.05, refresh: int = 50, budget_rank: int = 0, smallest: bool = False,
    lr: float | Rate = Rate(small=1e-3, paper=2e-4), **training: Any,
) -> Recipe:  # fmt: skip
    """LIFT (2506.00772): SFT of the weights that are largest after rank reduction.

    Args:
        rank: singular directions kept before entries are chosen; 0 is an eighth of each matrix's smaller side.
        density: share of each matrix that moves.
        refresh: optimizer steps between two choices; 0 chooses once.
        budget_rank: as many entries as adapters of this rank have, instead of a density.
        smallest: the smallest entries instead, as a control.
        lr: peak learning rate; by default 1e-3 below 50 M parameters and 2e-4 above.
    """
    return sft(lr=lr, **training).moving(choices.lift(rank, density, refresh, budget_rank, smallest))
