"""Which blocks NoiseFiT perturbs, and how much: measured once, before training, on the first rows.

Two rules (2504.03302 and its code). By *ratio*: mean |h| of a block's output over the mean of the noise that it would get; the
`number` largest or lowest are taken. The noise does not travel, and its size relative to the output is fixed, so the ratio says how
evenly a block's channels are spread and little else. `auto`: each block alone gets noise of five sizes; taken are the blocks
where the prediction moves much while the likelihood hardly falls, each with the smallest noise that moves it enough.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

import torch
from torch import Tensor

from whet.errors import WhetError
from whet.models.hooks import blocks
from whet.models.policy import Policy
from whet.objectives import Clean, Context, View
from whet.objectives.forward import kl
from whet.objectives.noise import BlockNoise, adaptive_scale, deviation
from whet.objectives.views import Read, drawn
from whet.records import Row
from whet.seeds import rng_for

RULES = ("auto", "largest", "lowest", "random")
RELATIVE = 0.01  # sigma of the ratio's noise, in deviations of the output: the authors multiply 0.1 by itself
DRAWS = 10
GRID = (0.25, 0.5, 1.0, 1.5, 2.0)  # sizes that `auto` tries, in units of 1 / sqrt(hidden size)
WORSE = 0.02  # the likelihood may fall by this share
BANDS = 3  # of depth, over which the chosen blocks are spread
ENOUGH = 0.75  # of the chosen blocks' median divergence


@dataclass
class Plan:
    """The chosen blocks with their noise.

    Attributes:
        rule: one of `RULES`.
        number: how many blocks the rules other than `auto` take.
        gain: multiplies all noise; 0 is none.
        scales: (block, sigma), once chosen.
    """

    rule: str = "auto"
    number: int = 3
    gain: float = 1.0
    beta: float = 0.1
    through: bool = False
    scales: tuple[tuple[int, float], ...] = ()

    def choose(self, policy: Policy, rows: Sequence[Row], seed: int) -> None:
        """Measure and choose, with one forward (by ratio) or five a block (`auto`)."""
        with torch.no_grad():
            if self.rule == "auto":
                found = automatic(policy, rows, seed, self.beta)
            elif self.rule == "random":
                n = len(blocks(policy))
                found = dict.fromkeys(rng_for(seed, "noisy blocks").sample(range(n), self.number), RELATIVE)
            else:
                ratios = signal_to_noise(policy, rows, seed, self.beta)
                order = sorted(range(len(ratios)), key=lambda b: ratios[b], reverse=self.rule == "largest")
                found = dict.fromkeys(order[: self.number], RELATIVE)
        self.scales = tuple(sorted(found.items()))


@dataclass(frozen=True)
class Planned(View):
    """A plan's noise, as it was chosen when the stage began."""

    plan: Plan = field(hash=False)
    draw: int

    def check(self, policy: Policy) -> None:
        n = len(blocks(policy))
        if self.plan.rule != "auto" and self.plan.number > n:
            raise WhetError(f"noisefit: the model has {n} blocks, and number={self.plan.number} are asked for")

    def at(self, ctx: Context, name: str) -> View:
        plan = self.plan
        scales = tuple((block, plan.gain * sigma) for block, sigma in plan.scales)
        return BlockNoise(scales, self.draw, plan.beta, plan.rule != "auto", plan.through) if plan.gain else Clean()


def signal_to_noise(policy: Policy, rows: Sequence[Row], seed: int, beta: float = 0.1) -> list[float]:
    """Of each block's output, mean |h| over mean |noise|, on the rows' real tokens."""
    ctx = Context(rows, {"policy": policy}, seed=seed)
    batch = ctx.batch("response")
    ratios: dict[int, float] = {}

    def read(block: int, hidden: Tensor) -> None:
        size = hidden.shape[-1]
        # noise_std times the deviation: the second noise_std of the training noise is not in the authors' ratio
        scale = RELATIVE**0.5 * deviation(hidden, batch.mask) * adaptive_scale(hidden, batch.mask, beta)
        noise = [
            drawn(batch, seed, lambda draw, n: torch.randn(n, size, generator=draw), block, i) for i in range(DRAWS)
        ]
        added = torch.stack([(xi.to(hidden) * scale)[batch.mask].abs().mean() for xi in noise]).mean()
        ratios[block] = float(hidden[batch.mask].abs().mean() / (added + 1e-6))

    ctx.forward("response", Read(read))
    return [ratios[b] for b in sorted(ratios)]


def automatic(policy: Policy, rows: Sequence[Row], seed: int, beta: float = 0.1) -> dict[int, float]:
    """{block: sigma} of the blocks whose noise moves the prediction and keeps the likelihood."""
    ctx = Context(rows, {"policy": policy}, seed=seed)
    clean = ctx.forward("response")
    loss = -float(clean.logprobs.mean())
    unit = policy.model.config.hidden_size**-0.5
    tried: list[dict[float, tuple[float, float]]] = []  # of each block: factor -> (divergence, relative loss)
    for block in range(len(blocks(policy))):
        found = {}
        for factor in GRID:
            noisy = ctx.forward("response", BlockNoise(((block, factor * unit),), beta=beta))
            apart = noisy.per_token(lambda a, t, b: 0.5 * (kl(a, t, b) + kl(b, t, a)), clean)
            found[factor] = (float(apart.mean()), max(0.0, -float(noisy.logprobs.mean()) - loss) / loss)
        valid = {f: v for f, v in found.items() if v[1] <= WORSE}
        tried.append(valid or found)
    best = [max(t, key=lambda f: score(f, *t[f])) for t in tried]
    chosen = spread([score(f, *t[f]) for f, t in zip(best, tried, strict=True)])
    target = ENOUGH * median(tried[b][best[b]][0] for b in chosen)
    return {b: unit * smallest({f: v[0] for f, v in tried[b].items()}, target) for b in chosen}


def score(factor: float, divergence: float, worse: float) -> float:
    """What a noise is worth: divergence, less where the likelihood falls or the size is unusual."""
    return divergence / (1 + worse) / (1 + 0.05 * math.log2(factor) ** 2)


def spread(scores: Sequence[float]) -> list[int]:
    """Blocks that stand out (at least the median plus the median deviation), at most sqrt(n), spread over depth."""
    n, middle = len(scores), median(scores)
    out = [b for b, s in enumerate(scores) if s > 0 and s >= middle + median(abs(x - middle) for x in scores)]
    # of an even number of blocks none may reach the bar
    out = sorted(out or [max(range(n), key=lambda b: scores[b])], key=lambda b: -scores[b])
    most = math.ceil(math.sqrt(n))
    quota = math.ceil(most / BANDS)
    first = [b for b in out if sum(1 for o in out[: out.index(b)] if o * BANDS // n == b * BANDS // n) < quota]
    return sorted([*first, *(b for b in out if b not in first)][:most])


def smallest(divergences: Mapping[float, float], target: float) -> float:
    """The smallest factor that reaches the target, else the nearest to it by logarithm."""
    reaching = [f for f in sorted(divergences) if divergences[f] >= target]
    return reaching[0] if reaching else max(divergences, key=lambda f: divergences[f])
