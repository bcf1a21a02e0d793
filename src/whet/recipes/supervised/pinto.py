"""PINTO (2211.01562): choose from question and rationales, and be less sure when a rationale is spoilt.

Every choice a_i has its own rationale r_i, from a frozen writer that is not told the answer:

    rho_i = mean_j log p(a_i^j | a_i^<j, q, A, r_i)        P = softmax_i rho_i
    L     = - log P(gold)  -  lambda sum_i q_i log P'_i     q = (1 - eps) onehot(gold) + eps / K

P' sees spoilt rationales: for each choice and visit a coin decides whether its rationale is hidden (nothing attends to it,
and it takes no positions) or a share of its tokens is replaced by random ones. Answers are the best-scored choice.

Departures: a decoder instead of an encoder-decoder, AdamW instead of Adafactor, the spoilt branch on the same batch (the
released code draws a second one), batches of 8 and not 16, and a teacher is asked without examples.

    whet run pinto
    whet run pinto rationales=model --task mine.jsonl
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from whet.errors import WhetError
from whet.models.packing import Batch
from whet.models.policy import Policy
from whet.objectives.choices import ChoiceLoss
from whet.objectives.views import Seen, View, generator
from whet.recipes.recipe import Recipe, recipe
from whet.sources import ByScore, Choices, Justify, Uniform
from whet.training.optimizer import AdamW, Rate
from whet.training.stage import Stage, Update


@dataclass(frozen=True)
class Spoilt(View):
    """Each rationale hidden, with probability `mask`, or partly replaced by tokens uniform over the vocabulary.

    Of L tokens int(ratio L) are hit, drawn without replacement. What is hidden takes no positions, so that a rationale that
    is hidden whole is the same as none, whatever its length.
    """

    mask: float = 0.5
    mask_ratio: float = 1.0
    replace_ratio: float = 0.3

    def see(self, policy: Policy, batch: Batch, seed: int) -> Seen:
        ids, mask = batch.ids.clone(), batch.mask.clone()
        for row, sample in enumerate(batch.samples):
            draw = generator(seed, batch, row, "spoilt")
            hide = bool(torch.rand(1, generator=draw) < self.mask)
            span = sample.span_mask("rationale").nonzero()[:, 0]
            ratio = self.mask_ratio if hide else self.replace_ratio
            hit = span[torch.randperm(len(span), generator=draw)[: int(len(span) * ratio)]].to(ids.device)
            if hide:
                mask[row, hit] = False
            else:
                drawn = torch.randint(policy.model.config.vocab_size, (len(hit),), generator=draw)
                ids[row, hit] = drawn.to(ids.device)
        if torch.equal(mask, batch.mask):
            return Seen(ids)  # nothing is hidden: plain causal attention, to the bit
        return Seen(ids, mask, positions=(mask.cumsum(1) - 1).clamp(min=0))


@recipe(paper="pinto", task="clues")
def pinto(
    weight: float = 1.0,
    smoothing: float = 0.1,
    mask: float = 0.5,
    mask_ratio: float = 1.0,
    replace_ratio: float = 0.3,
    rationales: str = "task",
    list_choices: bool = True,
    lengths: str = "token",
    limit: int = 0,
    steps: int = 120,
    batch: int = 8,
    lr: float | Rate = Rate(small=3e-4, paper=3e-4),
    warmup: float = 0.06,
    schedule: str = "constant",
) -> Recipe:
    """Choose from question and rationales, regularised to be unsure where a rationale is spoilt.

    Args:
        weight: of the spoilt branch (lambda); 0 is plain learning to choose.
        smoothing: of its labels (epsilon).
        mask: probability that a spoilt rationale is hidden and not replaced.
        mask_ratio: share of a hidden rationale's tokens.
        replace_ratio: share of a replaced one's.
        rationales: task for the problems' own, model to have the start model write them, none to choose without.
        list_choices: whether the choices stand behind the question.
        lengths: what a choice's score is divided by: token, character, none.
        limit: learn from the first so many problems only; 0 is all.
        steps: optimizer steps.
        batch: questions a step; each has all its choices.
        lr: peak learning rate.
        warmup: steps of linear warm-up, or a share of all steps below 1.
        schedule: constant, linear or cosine after the warm-up.
    """
    for name, value in (("mask", mask), ("mask_ratio", mask_ratio), ("replace_ratio", replace_ratio)):
        if not 0 <= value <= 1:
            raise WhetError(f"pinto: {name} is a share from 0 to 1, not {value:g}")
    if rationales == "none" and weight:
        raise WhetError("pinto: without rationales there is nothing to spoil; set weight=0")
    justify = Justify(rationales, list_choices)
    spoilt = ChoiceLoss(Spoilt(mask, mask_ratio, replace_ratio), smoothing, lengths, name="spoilt")
    optimizer = AdamW(lr=lr, warmup=warmup, schedule=schedule)
    stage = Stage(problems=Uniform(limit=limit), collect=Choices(justify), steps=steps, batch=batch, name="pinto",
                  updates=[Update(ChoiceLoss(lengths=lengths) + weight * spoilt, optimizer=optimizer)])  # fmt: skip
    return Recipe([stage], ByScore(justify, lengths, hidden=Spoilt(mask=1.0)))
