"""Direct preference optimization (2305.18290) and its relatives.

    L = - log sigmoid(beta ((s_w - s_w^ref) - (s_l - s_l^ref)))      s: the sum of response log-probs

Pairs come from a preference file, or, on a task with a verifier, from the policy itself: a right and a wrong answer to
the same problem, sampled once when the stage starts. Reference scores are computed once a row.

    whet run dpo --task chain-sum
    whet run dpo loss=ipo --task pairs.jsonl
"""

from __future__ import annotations

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
    beta: float = 0.0,
    gamma: float = 1.0,
    tau: float = 0.1,
    smoothing: float = 0.1,
    flip: float = 0.1,
    lam: float = 0.0,
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
        beta: inverse temperature of the implicit reward; 0 takes 0.1 (2 for simpo, whose scores are means).
        gamma: target margin of simpo.
        tau: of ipo.
        smoothing: label smoothing of cdpo.
        flip: assumed share of flipped labels of robust, below 0.5.
        lam: of orpo and dpop; 0 takes 0.1 and 50.
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
    offered = {"beta": beta, "gamma": gamma, "tau": tau, "smoothing": smoothing, "flip": flip, "lam": lam}
    takes = {"cdpo": ("beta", "smoothing"), "robust": ("beta", "flip"), "ipo": ("tau",), "simpo": ("beta", "gamma"),
             "orpo": ("lam",), "dpop": ("beta", "lam")}.get(loss, ("beta",))  # fmt: skip
    settings = {k: offered[k] for k in takes if offered[k] or k not in ("beta", "lam")}
    objective = as_objective(preference(loss, scores=scores or None, reference_free=reference_free, **settings))
    if sft:
        objective = objective + sft * nll(role="chosen", name="sft")
    collect = Preferences() if pairs == "given" else Pairs(problems, samples, temperature, cap)
    update = Update(objective, optimizer=AdamW(lr=lr, warmup=warmup, schedule="linear"))
    return Recipe([Stage(collect=collect, updates=[update], steps=steps, batch=batch, name="dpo")])
