"""AceReason-Nemotron 1.1 (2506.13284): scaled supervised data, then GRPO in stages, at a temperature that an entropy asks for.

    L = - sum_i sum_t A_i rho_it / sum_i |o_i|;   A_i = (r_i - mean) / std of the group;   rho = 1: one update a batch, no KL
    T of a stage: mean over sampled tokens of H(softmax(z_t / T)), answers sampled at T, is near `entropy_target`

The supervised data has two axes, prompts and responses to each. Every stage of reinforcement has a longer generation budget than
the one before; in the first ones answers that are cut off are not learnt (they count in the group's mean, and their tokens in
no denominator). Later stages keep problems that the policy of that moment solves, but not often. Moments of the optimizer go on
from stage to stage; there is no reference model. (grpo's switches remain: `kl` and `minibatches` make another method of it.)

Departures: math and code become the stages of one task; budgets are shares of the task's; the entropy's definition is ours, since
the paper gives none. A target of 0.3 is for a vocabulary of 150,000: try others on a small one. Rates are those of grpo.

    whet run acereason --task word-problem:level=3
    whet run acereason prompts=4000 responses=4 teacher=ORG/MODEL --model ORG/SMALL --task my.jsonl
"""

from __future__ import annotations

import math
from typing import Any

from whet.errors import WhetError
from whet.recipes.recipe import Recipe, recipe
from whet.recipes.reinforced.grpo import grpo
from whet.recipes.supervised.sft import sft
from whet.sources import Distilled, EntropyTarget, Filtered, Problems, Uniform, pass_rate
from whet.training.optimizer import Rate
from whet.training.stage import Stage

BUDGETS = (0.5, 0.75, 1.0)
BY_STAGE = {"max_new_tokens": "budgets", "filter_truncated": "overlong"}  # what grpo has one of: here one a stage


@recipe(paper="acereason", parent="grpo", task="word-problem:level=3", defaults={"normalise": "token"})
def acereason(
    sft_steps: int = 40,
    prompts: int = 1000,
    responses: int = 1,
    teacher: str = "",
    longer: float = 1.0,
    sft_lr: float | Rate = Rate(small=5e-4, paper=1e-5),
    sft_batch: int = 32,
    steps: int = 60,
    group: int = 8,
    warmup: float = 5,
    budgets: list | None = None,
    overlong: int = 2,
    keep_from: int = 2,
    shares: list | None = None,
    looks: int = 16,
    pool: int = 128,
    temperature: float = 0.0,
    entropy_target: float = 0.3,
    follow: float = 0.0,
    problems: Problems | None = None,
    **training: Any,
) -> Recipe:
    """Supervised fine-tuning on scaled data, then on-policy GRPO in stages of growing length.

    Args:
        sft_steps: supervised steps; 0 begins with reinforcement.
        prompts: different prompts of the supervised data; 0 takes all of a file.
        responses: traces of each prompt, at most.
        teacher: a model that writes the traces that are missing; without one there are those that the task has.
        longer: share of the prompts that is learnt, those with the longest traces.
        sft_lr: peak supervised rate; by default 5e-4 below 50 M parameters and 1e-5 above.
        sft_batch: traces a supervised step.
        steps: steps of reinforcement, shared by its stages.
        group: answers sampled for each problem; 8 in the paper's first stage, then 16.
        warmup: steps of linear warm-up of the first stage's rate.
        budgets: generation budget of each stage, as a share of the task's below 1, 1.0 for all of it, or in tokens above.
        overlong: in so many stages, from the first, answers that were cut off are not learnt.
        keep_from: the first stage, from 1, that is trained on filtered problems; 0 is off.
        shares: [low, high], which share of a problem's answers must be right for it to be kept; by default [1/16, 6/16].
        looks: answers to each problem that the filter asks for.
        pool: problems that are filtered; 0 is all of a file.
        temperature: of sampling; 0 chooses it at each stage's entry, by entropy_target.
        entropy_target: entropy of the sampled tokens, in nats, that the temperature is chosen for.
        follow: how fast the temperature then follows the entropy within a stage; 0 keeps it.
        problems: from Python, the source of the problems of reinforcement (a bandit, say).
    """
    for name, ours in BY_STAGE.items():
        if training.get(name):
            raise WhetError(f"acereason: {name} is said for each stage, by {ours}")
    if temperature and follow:
        raise WhetError("acereason: follow moves a temperature that entropy_target has chosen; leave temperature at 0")
    if follow and training.get("dynamic"):
        raise WhetError(
            "acereason: a batch drawn in several goes must have one temperature; use follow=0 or dynamic=false"
        )
    lengths = list(BUDGETS if budgets is None else budgets)
    if not lengths or not all(isinstance(length, int | float) and 0 < length < math.inf for length in lengths):
        raise WhetError(f"acereason: budgets is a list of numbers above 0, one for each stage, not {budgets}")
    if shares is not None and (len(shares) != 2 or not all(isinstance(share, int | float) for share in shares)):
        raise WhetError(f"acereason: shares is [low, high] of right answers, not {shares}")
    low, high = shares or (1 / 16, 6 / 16)
    over = problems or Uniform()
    data = Distilled(prompts, responses, teacher or None, longer)
    stages = [_supervised(sft_steps, sft_lr, sft_batch, data)] if sft_steps else []
    for number, budget in enumerate(lengths, 1):
        filtered = 0 < keep_from <= number
        share = 0 if budget == 1 else budget  # 0 is the task's whole
        (stage,) = grpo.build(  # whose budget is a share, and its temperature chosen: more than its arguments may say
            steps=max(1, round(steps / len(lengths))), group=group, warmup=warmup if number == 1 else 0,
            max_new_tokens=share, temperature=temperature or EntropyTarget(entropy_target, follow=follow),
            filter_truncated=number <= overlong, **{"normalise": "token", **training},
            problems=Filtered(pass_rate(low, high), looks, pool, temperature or 1.0, over=over) if filtered else over,
        ).stages  # fmt: skip
        stage.name, stage.carry = f"rl {number}", number > 1
        stages.append(stage)
    return Recipe(stages)


def _supervised(steps: int, lr: float | Rate, batch: int, data: Distilled) -> Stage:
    (stage,) = sft(steps=steps, lr=lr, batch=batch).stages
    stage.collect = data
    return stage
