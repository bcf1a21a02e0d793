"""DRIFT (2510.15050): short SFT whose gradients are bent towards a reasoning expert, which is never merged in.

    D  = W_expert - W                                  once, when training starts; norms and cosine tensor by tensor
    g~ = g - alpha (1 + cos(g, D))/2 |g| D/|D|         then clipping and AdamW as ever

`weights/bent.py` has the modes and the sign. An expert is a model of the same shape (`expert=FOLDER`, a run, a name of the Hub);
tensors are matched by name, those of a vision tower left alone. With `origin` D is the difference of two other models (the prior
of GRPO over SFT). Without an expert the run trains one first, from its own base on worked chains of arithmetic, and goes back; with
`first` it then learns other tasks, answers alone, and stands far from its expert, as a vision-language model does.

The paper's: alpha 1, attention and MLP, about 4000 verified chains of thought, 3 epochs, rate 1e-6, cosine, warm-up 5 %, batch 1.
Controls: `alpha=0` is SFT to the bit; `direction=random`, of D's norm, and `reverse`; `merge=0.5` is task arithmetic before
training, with `lr=0 alpha=0 steps=1` alone.
`grpo --weights drift:expert=FOLDER` is the same with other objectives. Not built: a D for adapters.

    whet run drift --task my.jsonl --verifier number --model ORG/NAME expert=ORG/REASONER
    whet run drift first="word-problem:level=1;lists:level=1"
"""

from __future__ import annotations

from typing import Any

from whet.errors import WhetError
from whet.recipes.recipe import Recipe, recipe
from whet.recipes.supervised.sft import sft
from whet.sources import Mixture, Part
from whet.training.optimizer import Rate
from whet.training.stage import Stage
from whet.weights import get_weights
from whet.weights.bent import Bent, stored
from whet.weights.snapshot import Kept, Snapshots

REASONING = "chain-sum:level=2;chain-sum:level=3"
LR = Rate(small=5e-4, paper=1e-5)  # sft's


@recipe(paper="drift", parent="sft", task="word-problem:level=2")
def drift(
    alpha: float = 1.0, mode: str = "adaptive", modules: str = "attn;mlp", expert: str = "", origin: str = "",
    expert_tasks: str = "", expert_steps: int = 0, first: str = "", first_steps: int = 0, first_lr: float = 0.0,
    rescale: bool = True, direction: str = "expert", merge: float = 0.0, micro: bool = False, inside: str = "full",
    lr: float | Rate = Rate(small=5e-4, paper=1e-6), **training: Any,
) -> Recipe:  # fmt: skip
    """DRIFT (2510.15050): SFT whose gradients are bent towards a reasoning expert.

    Args:
        alpha: strength; 0 is sft.
        mode: adaptive (by the angle between gradient and direction), grad-norm or absolute.
        modules: attn, mlp, norm, embed, head, full or regular expressions, separated by `;`, each with a factor as in mlp=0.5.
        expert: a model of the same shape; by default the run trains one from its base.
        origin: take the direction from this model to the expert, and not from the one that is trained.
        expert_tasks: what the run's own expert learns, with rationales, separated by `;`; by default sums in 2 and 3 steps.
        expert_steps: steps of that; 0 takes as many as the run's last stage.
        first: tasks that the model learns before, answers alone, separated by `;`.
        first_steps: steps of that; 0 takes as many as the run's last stage.
        first_lr: peak rate of that; 0 is sft's.
        rescale: of mode absolute, give the direction the norm of the weights, tensor by tensor.
        direction: expert, or as a control reverse or random.
        merge: add so much of the difference to the weights before training.
        micro: bend the gradient of each micro-batch, and not that of the step.
        inside: which weights move, as --weights has it; their masks come after the bending.
        lr: peak learning rate; by default 5e-4 below 50 M parameters and 1e-6 above.
    """
    if expert and (expert_tasks or expert_steps):
        raise WhetError("drift: an expert that is there learns nothing; leave expert_tasks and expert_steps out")
    if origin and not expert:
        raise WhetError("drift: origin is what the direction to another model is taken from; name that as expert")
    if not first and (first_steps or first_lr):
        raise WhetError("drift: first_steps and first_lr are of the tasks that are learnt first; name them by first")
    (target,) = sft(lr=lr, **training).stages
    models = Snapshots()
    made: list[Stage] = []
    if not expert:
        made.append(_learning("expert", expert_tasks or REASONING, target, expert_steps, LR))
        made[0].weights = Kept(models, "expert")
    if first:
        made.append(_learning("first", first, target, first_steps, first_lr or LR, rationale=False))
        made[-1].weights = Kept(models)
        made[-1].start = "last" if expert else "base"
    target.name = "drift"
    target.start = "last" if first or expert else "base"
    target.weights = Bent(
        stored(expert) if expert else lambda: models["expert"], stored(origin) if origin else None, alpha=alpha, mode=mode,
        modules=modules, rescale=rescale, direction=direction, merge=merge, micro=micro, inside=get_weights(inside),
    )  # fmt: skip
    return Recipe([*made, target])


def _learning(name: str, tasks: str, like: Stage, steps: int, lr: float | Rate, **how: Any) -> Stage:
    source = Mixture(Part.read(tasks))
    (stage,) = sft(problems=source, steps=steps or like.steps, batch=like.batch, lr=lr, **how).stages
    stage.name = name
    return stage
