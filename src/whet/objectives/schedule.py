"""Numbers that change while a stage goes on, counted in optimizer steps."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Ramp:
    """Rises (or falls) in a straight line from `start` to `end`, then stays.

    Attributes:
        over: the share of the stage's steps that it takes; 0 is `end` from the first step on.
    """

    end: float
    start: float = 0.0
    over: float = 0.0

    def at(self, step: float, steps: int) -> float:
        """Its value after `step` of `steps` optimizer steps."""
        if self.over == 0:
            return self.end
        return self.start + (self.end - self.start) * min(1.0, step / (self.over * steps + 1))


@dataclass(frozen=True)
class Cosine:
    """Falls (or rises) along half a cosine from `start` to `end`."""

    end: float
    start: float

    def at(self, step: float, steps: int) -> float:
        """Its value after `step` of `steps` optimizer steps."""
        return self.end + 0.5 * (self.start - self.end) * (1.0 + math.cos(math.pi * min(1.0, step / steps)))


@dataclass
class Follow:
    """A positive number that is moved until a measured quantity, which rises with it, is near a target:

        value <- value exp(-gain clip(measured / target - 1, -1, 1)), within [low, high]

    Attributes:
        target: of the measured quantity, above 0.
        value: to begin with.
        gain: how fast; 0 leaves the value alone.
    """

    target: float
    value: float
    gain: float
    low: float = 0.0
    high: float = math.inf

    def observe(self, measured: float) -> None:
        error = min(max(measured / self.target - 1, -1.0), 1.0)
        self.value = min(max(self.value * math.exp(-self.gain * error), self.low), self.high)
