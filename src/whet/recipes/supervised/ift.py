"""Intuitive fine-tuning (IFT, 2405.11870): the input is mixed with what the policy itself would have written, and a token's
loss weighs as much as the losses that follow from it.

    s^_t = argmax p(. | x, s*_<t)                        from a first forward on the given text, without a gradient
    e_t  = (1 - mix) E(s*_t) + mix E(s^_t)               at the response's tokens; the prompt is read as it is
    l_t  = - log p(s*_t | e_<t)                          the second forward
    W_t  = sum_{k >= t} gamma^(k-t) l_k                  L = mean over sequences of sum_t W_t l_t / sum_t W_t

The weights carry a gradient, as in the authors' code; the exponent is its k - t (algorithm 1 prints N - t). `form=sum` is the
paper's equation 21: fixed weights that grow with t. Input embeddings get no gradient, as in that code, unless
`train_embeddings`. Where it departs: AdamW (the authors': RMSprop). Not built: the k-th best or a sampled prediction in the
place of the most probable one.

`mix=0 gamma=0 train_embeddings=true` is `sft normalise=sequence`. Changing both at once confounds two effects: report the 2 x 2.

    whet run ift --task frozen-lake
"""

from __future__ import annotations

from typing import Any

from whet.errors import WhetError
from whet.objectives import Ramp
from whet.objectives.ahead import Ahead
from whet.objectives.intuitive import Propagated
from whet.recipes.recipe import Recipe, recipe
from whet.recipes.supervised.sft import sft


@recipe(paper="ift", parent="sft")
def ift(
    mix: float = 0.2,
    gamma: float = 0.95,
    form: str = "product",
    ramp: float = 0.0,
    noisy: bool = False,
    train_embeddings: bool = False,
    normalise: str = "sequence",
    **training: Any,
) -> Recipe:
    """Intuitive fine-tuning (2405.11870): read your own guesses, and care for what follows from a token.

    Args:
        mix: the paper's lambda, the share of the policy's prediction in each response token's input.
        gamma: discount of the losses that follow; 0 weighs all tokens alike.
        form: product (the weights follow the losses) or sum (fixed weights, later tokens heavier).
        ramp: the share of the steps in which mix rises from 0; 0 begins with it.
        noisy: multiply mix by 1 + xi / 2 in each step, xi standard normal, within 0 and 1.
        train_embeddings: whether the input embeddings learn through the input.
        normalise: sequence (the paper's), token, sequence-sum, constant, row or none.
    """
    if not 0 <= mix <= 1:
        raise WhetError(f"ift: mix is a share, between 0 and 1, not {mix:g}")
    if not 0 <= ramp <= 1:
        raise WhetError(f"ift: ramp is a share of the steps, between 0 and 1, not {ramp:g}")
    if mix == 0 and (noisy or ramp):
        raise WhetError("ift: mix=0 mixes nothing, so that noisy and ramp have no effect; leave them out")
    if gamma == 0 and form != "product":
        raise WhetError("ift: gamma=0 weighs all tokens alike, so that form has no effect; leave it out")
    view = Ahead(Ramp(mix, over=ramp), noisy, train_embeddings) if mix or not train_embeddings else None
    return sft(objective=Propagated(gamma, form, view, normalise), **training)
