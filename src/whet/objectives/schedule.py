"""Numbers that change while a stage goes on, counted in optimizer steps."""

from __future__ import annotations

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
