"""The sampling temperature that gives answers a wanted entropy (2506.13284).

The entropy is that of the distribution which tokens are drawn from, at that temperature, in nats, a mean over the tokens of
sampled answers. A paper's 0.3 belongs to its vocabulary and its model; what a small model's best target is must be tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from whet.errors import WhetError
from whet.objectives.schedule import Follow
from whet.records import Sample

STRIDE = 1.5  # factor between trials until the target lies between two of them


def mean_entropy(samples: Iterable[Sample]) -> float:
    """Mean entropy of the sampled tokens, in nats, as the sampler drew them."""
    total, tokens = 0.0, 0
    for sample in samples:
        if "entropy" not in sample.per_token:
            raise WhetError(
                "an entropy target needs the entropy of each token, which a server does not tell: use --sampler auto"
            )
        total += float(sample.per_token["entropy"].sum())
        tokens += sum(len(s.ids) for s in sample.segments if s.sampled)
    return total / max(1, tokens)


def settle(
    measure: Callable[[float], float], target: float, start: float = 1.0, low: float = 0.3, high: float = 2.0,
    trials: int = 8, tolerance: float = 0.05,
) -> float:  # fmt: skip
    """The temperature in [low, high] whose measured entropy is nearest to the target, of at most `trials` that are tried.

    Args:
        measure: entropy of answers sampled at a temperature; it rises with it.
        tolerance: share of the target by which it may be missed.
    """
    tried: dict[float, float] = {}
    temperature = start
    for _ in range(trials):
        tried[temperature] = measure(temperature)
        if abs(tried[temperature] - target) <= tolerance * target:
            break
        below = max((t for t, found in tried.items() if found < target), default=None)
        above = min((t for t, found in tried.items() if found > target), default=None)
        if below is None or above is None:
            temperature = min(high, temperature * STRIDE) if above is None else max(low, temperature / STRIDE)
        else:
            temperature = (below * above) ** 0.5
        if temperature in tried:  # at a bound, or as near as floats come
            break
    return min(tried, key=lambda t: abs(tried[t] - target))


class EntropyTarget:
    """A temperature chosen when a stage is entered, so that the entropy of the policy's answers is near a target.

    Args:
        target: entropy in nats.
        low, high: bounds of the temperature; at one of them the target may be missed, which the log's `entropy` shows.
        problems, samples: answers that an entropy is measured on.
        follow: how fast the temperature then follows the entropy of each step's answers; 0 keeps it for the stage. A gate
            that draws a batch in several goes does not go with it.
    """

    def __init__(
        self,
        target: float = 0.3,
        low: float = 0.3,
        high: float = 2.0,
        problems: int = 32,
        samples: int = 2,
        follow: float = 0.0,
    ) -> None:
        if target <= 0 or not 0 < low < high or problems < 1 or samples < 1 or follow < 0:
            raise WhetError(
                "entropy target: target above 0, 0 < low < high, at least one problem and sample, follow not below 0"
            )
        self.target, self.low, self.high, self.problems, self.samples = target, low, high, problems, samples
        self.following = Follow(target, min(max(1.0, low), high), follow, low, high)
        self._seen: float | None = None

    @property
    def value(self) -> float:
        """The temperature now."""
        return self.following.value

    def choose(self, measure: Callable[[float], float]) -> float:
        """Settle on a temperature, beginning with the one that it has."""
        self.following.value, self._seen = settle(measure, self.target, self.value, self.low, self.high), None
        return self.value

    def step(self) -> float:
        """The temperature of a step's answers, after it has followed those of the last step."""
        if self._seen is not None:
            self.following.observe(self._seen)
            self._seen = None
        return self.value

    def saw(self, entropy: float) -> None:
        """After a step's answers."""
        self._seen = entropy

    def state_dict(self) -> dict[str, Any]:
        return {"temperature": self.value, "seen": self._seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.following.value, self._seen = float(state["temperature"]), state["seen"]
