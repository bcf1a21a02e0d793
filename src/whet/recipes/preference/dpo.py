"""Direct preference optimization (2305.18290) and its relatives.

    L = - log sigmoid(beta ((s_w - s_w^ref) - (s_l - s_l^ref)))      s: the sum of response log-probs

Pairs come from a preference file, or, on a task with a verifier, from the policy itself: a right and a wrong answer to
the same problem, sampled once when the stage starts. Reference scores are computed once a row.

    whet run dpo --task chain-sum
    whet run dpo loss=ipo --task pairs.jsonl
"""

from __future__ import annotations

from typing import Any

from whet.errors import WhetError
from whet.objectives import dpo as preference
from whet.objectives import nll
from whet.objectives.objective import as_objective
from whet.recipes.recipe import Recipe, recipe
from whet.sources import Pairs, Preferences
from whet.training.optimizer import AdamW, Rate
from whet.training.stage import Stage, Update


@recipe(paper="dpo")
def dpo(
    loss: str = "sigmoid",
    beta: float | None = None,
    gamma: float | None = None,
    tau: float | None = None,
    smoothing: float | None = None,
    flip: float | None = None,
    lam: float | None = None,
    scores: str = "",
    reference_free: bool = False,
    sft: float = 0.0,
    pairs: str = "sampled",
    problems: int = 256,
    samples: int = 8,
    cap: int = 2,
    temperature: float = 1.0,
    steps: int = 100,
    batch: int = 16,
    lr: float | Rate = Rate(small=5e-5, paper=1e-6),
    warmup: float = 0.1,
) -> Recipe:
    """Direct preference optimization: pairs of a better and a worse answer, without a reward model.

    Args:
        loss: sigmoid, cdpo, robust, hinge, ipo, sigmoid_norm, simpo, orpo or dpop.
        beta: inverse temperature of the implicit reward; by default 0.1 (2 for simpo, whose scores are means).
        gamma: target margin of simpo; by default 1.
        tau: of ipo; by default 0.1.
        smoothing: label smoothing of cdpo; by default 0.1.
        flip: assumed share of flipped labels of robust, below 0.5; by default 0.1.
        lam: of orpo and dpop; by default 0.1 and 50.
        scores: sum or mean of a response's log-probs; empty takes the loss's own.
        reference_free: leave the reference out.
        sft: weight of the likelihood of the chosen answer, a token mean.
        pairs: sampled (from the policy, by the verifier) or given (the task's chosen and rejected).
        problems: problems that pairs are sampled on.
        samples: answers a problem.
        cap: pairs a problem at most.
        temperature: of the sampled answers.
        steps: optimizer steps.
        batch: pairs a step.
        lr: learning rate; by default 5e-5 below 50 M parameters and 1e-6 above.
        warmup: share of the steps with linear warm-up.
    """
    if pairs not in ("sampled", "given"):
        raise WhetError(f"dpo: pairs are sampled or given, not '{pairs}'")
    offered = {"beta": beta, "gamma": gamma, "tau": tau, "smoothing": smoothing, "flip": flip, "lam": lam}
    settings: dict[str, Any] = {
        name: value for name, value in offered.items() if value is not None
    }  # the loss refuses another's
    objective = as_objective(preference(loss, scores=scores or None, reference_free=reference_free, **settings))
    if sft:
        objective = objective + sft * nll(role="chosen", name="sft")
    collect = Preferences() if pairs == "given" else Pairs(problems, samples, temperature, cap)
    update = Update(objective, optimizer=AdamW(lr=lr, warmup=warmup, schedule="linear"))
    return Recipe([Stage(collect=collect, updates=[update], steps=steps, batch=batch, name="dpo")])
