"""SAE-tuning (Resa, 2506.09967): adapters that make up for a sparse autoencoder of a reasoning model, which is then taken out.

    source   the target itself, or the target after `warm` steps of sft on the gold responses
    extract  a top-k autoencoder of block l's output on the source, by its fraction of variance unexplained; no rationale is shown
    elicit   L = sum_t KL(p_t || q_t) / rows      p the target; q the target with adapters, and block l's output coded at all tokens
    use      the target with adapters, without the autoencoder

As released no gradient crosses the autoencoder (`sae_grad=none`): adapters after block l learn, those before stay at nothing.
`through` is ordinary backpropagation, of the prose. The texts of both stages are question and answer, which stands in the place of
the thought too; all tokens count. `models/autoencoder.py` is the autoencoder.

The paper's: 65,536 latents of width 1536, 32 active; SignSGD for them; r 32, alpha 128, dropout .05, rate 1e-6, batch 1, two epochs,
the 13th of 28 blocks, 1-based. Here AdamW trains both, dropout is off as everywhere, texts are rows of a batch and not equal cuts of
one stream, and there are no dead latents' loss (off there, too) and no autoencoders from elsewhere. Blocks are counted from 0.

`sae_steps=0` is the control of a random autoencoder.

    whet run resa --task my.jsonl --verifier number
    whet compare resa:block=0 resa:block=1 resa:block=2 --probes spliced
"""

from __future__ import annotations

from functools import partial
from typing import Any

from whet.errors import WhetError, unknown
from whet.models.autoencoder import NAME, centre, new_autoencoder
from whet.models.policy import Policy
from whet.objectives import forward_kl
from whet.objectives.coding import Coded, Reconstruction
from whet.recipes.recipe import Recipe, recipe
from whet.recipes.supervised.sft import sft
from whet.records import Row, Sample, Segment
from whet.sources import Demonstrations, Problems, Scope
from whet.sources.collector import trim
from whet.training.optimizer import AdamW, Rate
from whet.training.stage import Update
from whet.weights import Lora

GRADIENTS = ("none", "through")
CENTRE = 32  # texts whose mean output the autoencoder begins with


class Texts(Demonstrations):
    """Question and answer, the answer in the place of the thought too; every token but the first is learnt.

    Args:
        first: whether the policy's autoencoder is new, and begins with the mean of the first texts' outputs.
    """

    def __init__(self, first: bool) -> None:
        super().__init__(rationale=False)
        self.first = first

    def prepare(self, problems: Problems, policy: Policy, scope: Scope) -> None:
        if self.first:
            before = problems.state_dict()
            centre(policy, self.rows(problems, CENTRE, policy, scope))
            problems.load_state_dict(before)

    def rows(self, problems: Problems, n: int, policy: Policy, scope: Scope) -> list[Row]:
        drawn = problems.draw(n)
        scope.remember(drawn)
        found = []
        for problem in drawn:
            question, *told = policy.format.prompt(problem)
            head = [Segment("start", question.ids[:1]), Segment("question", question.ids[1:], learn=True)]
            response = policy.format.response(problem.answer or "", problem.answer)
            segments = [s for s in (*head, *told, *response) if s.ids]
            sample = Sample(segments, problem_id=problem.id, group_id=problem.id)
            found.append(Row({"response": trim(sample, policy.max_length)}))
        return found


@recipe(paper="resa", parent="sft")
def resa(
    block: int | None = None, latents: int = 2048, active: int = 32, sae_steps: int = 100,
    sae_lr: float | Rate = Rate(small=2e-3, paper=1e-4), sae_grad: str = "none", rank: int = 16, alpha: float = 0.0,
    warm: int = 100, warm_lr: float | Rate = Rate(small=1e-3, paper=1e-5), rationale: bool = True, steps: int = 100,
    lr: float | Rate = Rate(small=1e-3, paper=1e-6), normalise: str = "sequence-sum", **training: Any,
) -> Recipe:  # fmt: skip
    """SAE-tuning (2506.09967): adapters that make up for a sparse autoencoder of a reasoning model.

    Args:
        block: whose output is coded, from 0; by default the middle one.
        latents: directions of the autoencoder.
        active: how many of them code a token.
        sae_steps: steps that train it; 0 leaves it random, as a control.
        sae_lr: its learning rate; by default 2e-3 below 50 M parameters and 1e-4 above.
        sae_grad: none (it is a constant, as released) or through (adapters before the block learn too).
        rank: of the adapters.
        alpha: they are scaled by alpha / rank; 0 is 4 times the rank, as in the paper.
        warm: steps of sft that make the source out of the target; with 0 the target is its own source.
        warm_lr: their learning rate; by default 1e-3 below 50 M parameters and 1e-5 above.
        rationale: whether the source learns the gold rationales; the texts never show them.
        steps: that train the adapters against the autoencoder.
        lr: peak learning rate of these; by default 1e-3 below 50 M parameters and 1e-6 above.
        normalise: of the divergence: sequence-sum (as released, so that long texts weigh more), token, sequence, row or none.
    """
    if sae_grad not in GRADIENTS:
        raise unknown("gradient of the autoencoder", sae_grad, GRADIENTS)
    if min(warm, sae_steps, alpha) < 0 or not 1 <= active <= latents:
        raise WhetError("resa: warm, sae_steps and alpha are 0 or more, and active is from 1 to latents; not "
                        f"{warm}, {sae_steps}, {alpha:g}, and {active} of {latents}")  # fmt: skip
    match = forward_kl(normalise, view=Coded(block, sae_grad == "through"))
    (elicit,) = sft(objective=match, steps=steps, lr=lr, **training).stages
    elicit.name, elicit.collect, elicit.reference = "elicit", Texts(first=not sae_steps), "base"
    elicit.modules = {NAME: partial(new_autoencoder, latents=latents, active=active, block=block)}
    stages = [elicit]
    if sae_steps:
        (extract,) = sft(steps=sae_steps, **training).stages
        extract.name, extract.collect, extract.modules = "extract", Texts(first=True), elicit.modules
        extract.updates = [Update(Reconstruction(block), optimizer=AdamW(lr=sae_lr))]
        stages.insert(0, extract)
    if warm:
        (source,) = sft(steps=warm, lr=warm_lr, rationale=rationale, **training).stages
        source.name, elicit.start = "source", "base"
        stages.insert(0, source)
    return Recipe(stages).moving(Lora(rank, alpha or 4.0 * rank))
