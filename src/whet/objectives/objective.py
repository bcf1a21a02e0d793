"""Term and Objective: a loss is a sum of weighted terms; a term gives a total and a count; the trainer divides.

    objective = nll() + 0.05 * forward_kl()

The count is known before the forward and summed over the optimizer batch (and over ranks), so the gradient does not
depend on micro-batches, accumulation, padding or row order.

| normaliser | total / count | two answers of 1 and 3 tokens, loss 1 on the first and 0 on the second |
|---|---|---|
| `token` | sum over learnt tokens / their number in the optimizer batch | 0.25 |
| `sequence` | mean over tokens in each sequence, then over sequences | 0.5 |
| `sequence-sum` | sum in each sequence, mean over sequences | 0.5 |
| `constant` | sum / (sequences x generation budget) | 1/8 at a budget of 4 |
| `row` | sum / rows | 0.5 |
| `none` | sum | 1 |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from whet.errors import WhetError
from whet.models.policy import Policy
from whet.objectives.forward import NORMALISERS, Context
from whet.objectives.views import View
from whet.records import Row


def count(normalise: str, rows: Sequence[Row], names: Sequence[str], budget: int = 0) -> float:
    """The divisor of a normaliser over rows, for the samples of the given roles. Needs no model."""
    samples = [s for row in rows for name in names for s in row.get(name)]
    if normalise == "token":
        return float(sum(s.count_learnt() for s in samples))
    if normalise in ("sequence", "sequence-sum"):
        return float(len(samples))
    if normalise == "constant":
        if budget <= 0:
            raise WhetError("the `constant` normaliser divides by the generation budget; this stage samples nothing")
        return float(len(samples) * budget)
    if normalise == "row":
        return float(len(rows))
    if normalise == "none":
        return 1.0
    raise WhetError(f"unknown normaliser '{normalise}': one of {', '.join(NORMALISERS)}")


class Term:
    """One summand of an objective.

    Attributes:
        name: as it appears in the metrics (`loss/<name>`).
        roles: the samples of a row that it learns from.
        normalise: one of the names above.
        couples: what must stay in one micro-batch: `token`, `sequence` and `row` nothing beyond a row, `group` the rows
            of a group, `batch` everything.
        needs: what must be prepared: `reference` (a frozen model), or written into `per_token`: `reference_logprob`,
            `old_logprob`, `old_value`.
        view: what its forwards read; None for the samples as they are, whose prompts can be shared.
        scope: `rows` (each micro-batch) or `parameters` (once an optimizer step, without rows).
        behaviour: whether it may compare the policy with the one that sampled: several steps on one batch then need
            `old_logprob`. A likelihood does not.
    """

    name: str = "term"
    roles: Sequence[str] = ("response",)
    normalise: str = "token"
    couples: ClassVar[str] = "token"
    needs: frozenset[str] = frozenset()
    view: View | None = None
    scope: ClassVar[str] = "rows"
    behaviour: ClassVar[bool] = True

    def check(self, policy: Policy) -> None:
        """Refuse a model that the term cannot learn with, or whose input its view cannot change. Called before anything runs."""
        if self.view is not None:
            self.view.check(policy)

    def count(self, rows: Sequence[Row], budget: int = 0) -> float:
        return count(self.normalise, rows, self.roles, budget)

    def active(self, rows: Sequence[Row]) -> bool:
        """Whether these rows give it a gradient at all; a batch that activates no term is a counted skip."""
        return any(s.count_learnt() for row in rows for role in self.roles for s in row.get(role))

    def total(self, ctx: Context) -> Tensor:
        """A scalar sum over the micro-batch (over nothing, for a parameter-space term)."""
        raise NotImplementedError

    def __mul__(self, weight: float) -> Objective:
        return Objective([(float(weight), self)])

    __rmul__ = __mul__

    def __add__(self, other: Term | Objective) -> Objective:
        return as_objective(self) + other


class Meeting(Term):
    """A term in which all rows of the optimizer batch meet, each as one vector: a contrast, a statistic of the batch.

        L = f(z_1 ... z_B)        dL/dtheta = sum_i  df/dz_i  dz_i/dtheta        z_i = what row i brings

    A micro-batch needs the z of its own rows with a gradient and only the values of the others, and adds the summands of
    its own rows. So no two rows have to be in one micro-batch or on one rank, and the gradient depends on neither: where the
    batch is cut, the learner asks all rows for their z once beforehand, without a gradient.
    """

    behaviour: ClassVar[bool] = False

    def active(self, rows: Sequence[Row]) -> bool:
        return self.count(rows) > 0

    def represent(self, ctx: Context) -> Tensor:
        """(b, D) what each row of the micro-batch brings; the same where it is asked for twice."""
        raise NotImplementedError

    def losses(self, states: Tensor, rows: Sequence[Row]) -> Tensor:
        """(B,) the summands of the whole batch, from the (B, D) that its rows bring. Needs no forward."""
        raise NotImplementedError

    def total(self, ctx: Context) -> Tensor:
        own = self.represent(ctx)
        if ctx.whole is None:
            return self.losses(own, ctx.rows).sum()
        places = torch.tensor(ctx.whole.places, device=own.device)
        everyone = ctx.whole.states[self.name].to(own).index_put((places,), own)
        losses = self.losses(everyone, ctx.whole.rows)
        whole = losses.sum()
        return losses[places].sum().detach() + whole - whole.detach()  # its own rows' value, all rows' gradient


class Objective:
    """A sum of weighted terms. Terms of weight 0 are not computed."""

    def __init__(self, terms: Sequence[tuple[float, Term]]) -> None:
        self.terms = [(w, t) for w, t in terms if w != 0.0]
        names = [t.name for _, t in self.terms]
        if len(set(names)) != len(names):
            raise WhetError(f"an objective has two terms named alike: {', '.join(names)}")

    def __add__(self, other: Term | Objective) -> Objective:
        return Objective([*self.terms, *as_objective(other).terms])

    def __mul__(self, weight: float) -> Objective:
        return Objective([(weight * w, t) for w, t in self.terms])

    __rmul__ = __mul__

    @property
    def needs(self) -> frozenset[str]:
        return frozenset().union(*(t.needs for _, t in self.terms))

    @property
    def behaviour(self) -> bool:
        """Whether a term may compare the policy with the one that sampled."""
        return any(t.behaviour for _, t in self.terms)

    @property
    def meetings(self) -> list[Meeting]:
        """The terms in which rows meet."""
        return [t for _, t in self.terms if isinstance(t, Meeting)]

    @property
    def couples(self) -> str:
        order = ("token", "sequence", "row", "group", "batch")
        return max((t.couples for _, t in self.terms), key=order.index, default="token")

    @property
    def roles(self) -> set[str]:
        return {r for _, t in self.terms for r in t.roles}

    @property
    def together(self) -> frozenset[str]:
        """The roles that terms read as they are: their samples are run together."""
        return frozenset(r for _, t in self.terms if t.view is None for r in t.roles)

    @property
    def padded(self) -> bool:
        """Whether a term changes what it reads, so that its samples are run padded."""
        return any(t.view is not None for _, t in self.terms)

    def check(self, policy: Policy) -> None:
        """Refuse a model that a term cannot learn with."""
        for _, term in self.terms:
            term.check(policy)

    def active(self, rows: Sequence[Row]) -> bool:
        """Whether any row term has something to learn."""
        return any(t.active(rows) for _, t in self.terms if t.scope == "rows")

    def counts(self, rows: Sequence[Row], budget: int = 0) -> dict[str, float]:
        """Each row term's count over the optimizer batch."""
        return {t.name: t.count(rows, budget) for _, t in self.terms}

    def total(self, ctx: Context, scope: str = "rows") -> dict[str, tuple[Tensor, float]]:
        """For each term: its weighted sum over the micro-batch, and the count to divide by.

        A method whose forward is its own overrides this; the loop does not change.
        """
        return {t.name: (w * t.total(ctx), ctx.counts[t.name]) for w, t in self.terms if t.scope == scope}

    def describe(self) -> str:
        """One line for the run log: weights, names and normalisers."""
        return " + ".join(f"{w:g} {t.name} [{t.normalise}]" for w, t in self.terms)


def as_objective(term: Term | Objective) -> Objective:
    return term if isinstance(term, Objective) else Objective([(1.0, term)])
