"""FISH mask (2111.09839): the entries that the likelihood of demonstrations depends on most."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from whet.errors import WhetError
from whet.models.policy import Policy
from whet.records import Row
from whet.weights.calibration import fisher
from whet.weights.masked import Masked
from whet.weights.menu import choice
from whet.weights.selectors import Top, known
from whet.weights.weights import Weights


class Fisher(Top):
    """The entries of highest Fisher information on demonstrations (2111.09839)."""

    def __init__(self, density: float, rows: int = 64, task: str = "", *, smallest: bool = False) -> None:
        super().__init__(known, density, smallest=smallest)
        self.rows, self.task = rows, task

    def calibrate(self, policy: Policy, rows: Sequence[Row]) -> dict[str, Tensor]:
        return fisher(policy, rows, list(self.eligible(policy.model)))


@choice("fisher", family="selective, by score")
def by_fisher(density: float = 0.05, rows: int = 64, task: str = "", smallest: bool = False) -> Weights:
    """The entries that the likelihood of demonstrations depends on most (FISH mask, 2111.09839)."""
    if rows < 1:
        raise WhetError(f"rows to calibrate on are 1 or more, not {rows}")
    return Masked(Fisher(density, rows, task, smallest=smallest), name="fisher")
