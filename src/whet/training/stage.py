"""Update and Stage: what a recipe is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn

from whet.errors import WhetError
from whet.models.policy import Policy
from whet.objectives.objective import Objective, Term, as_objective
from whet.records import Row
from whet.rewards import Reward
from whet.sources import Buffer, Collector, Gate, Problems, Uniform
from whet.tasks import Task
from whet.training.optimizer import AdamW
from whet.weights import Weights


class Advantage(Protocol):
    """Turns the scored rows of a step into per-token advantages.

    `needs` names what the trainer must have written into `per_token` first (`old_logprob`, `old_value`,
    `reference_logprob`); `needs_group` says that a group of one gives no baseline.
    """

    needs: frozenset[str]
    needs_group: bool

    def __call__(self, rows: Sequence[Row]) -> None: ...


@dataclass
class Update:
    """An objective on rows with an optimizer.

    Attributes:
        objective: terms, or one term.
        rows: `rows` (what the collector made and the gate admitted) or the name of a buffer of the stage.
        epochs, minibatches: passes over the rows, and optimizer steps in a pass. More than one step means that the
            policy moves away from the one that sampled: the trainer then computes the old log-probs once beforehand.
        clip: maximal gradient norm; 0 is off.
        temperature: divides the logits; None is the one temperature of the stage's sampling.
        least: a batch whose loss is below it is left alone, weights and moments, and so are further epochs once all
            batches of one are; 0 learns from every batch.
        fresh: whether the optimizer's moments begin anew at each step of the stage.
    """

    objective: Objective | Term
    rows: str = "rows"
    optimizer: AdamW = field(default_factory=AdamW)
    epochs: int = 1
    minibatches: int = 1
    clip: float = 1.0
    temperature: float | None = None
    least: float = 0.0
    fresh: bool = False

    def __post_init__(self) -> None:
        self.objective = as_objective(self.objective)
        if self.epochs < 1 or self.minibatches < 1:
            raise WhetError("epochs and minibatches must be at least 1")

    @property
    def loss(self) -> Objective:
        return as_objective(self.objective)

    @property
    def steps(self) -> int:
        return self.epochs * self.minibatches


@dataclass
class Stage:
    """A source and a list of updates, for so many steps.

    Attributes:
        collect: how problems become rows.
        updates: in order, each step.
        steps: steps of the stage; a step draws `batch` problems.
        problems: where they come from.
        reward: scores groups of answers; None where nothing is sampled.
        advantage: from rewards to per-token advantages.
        gate: which groups are learnt from.
        transforms: small functions on the admitted rows, in order.
        modules: further networks, e.g. {"value": fn(policy) -> nn.Module}.
        start: `last` goes on from the stage before, `base` from the run's first weights.
        carry: whether the optimizers go on with the moments of those of the stage before; rates and schedules begin anew.
        keep_every: keep the weights after each so many steps in the run folder's `milestones`, for claims about the way.
        reference: what a reference model is: the policy when the stage `start`s, or the run's `base`.
        task: what it trains on and what validation looks at meanwhile, where that is not the run's task.
        until: it ends once accuracy on validation comes to this, or else after its steps; 0 takes all steps.
    """

    collect: Collector
    updates: list[Update]
    steps: int
    batch: int = 8
    problems: Problems = field(default_factory=Uniform)
    reward: Reward | None = None
    advantage: Advantage | None = None
    gate: Gate = field(default_factory=Gate)
    transforms: Sequence[Callable[[Sequence[Row]], None]] = ()
    buffers: Mapping[str, Buffer] = field(default_factory=dict)
    weights: Weights | None = None
    modules: Mapping[str, Callable[[Policy], nn.Module]] = field(default_factory=dict)
    start: str = "last"
    carry: bool = False
    reference: str = "start"
    keep_every: int = 0
    task: Task | None = None
    until: float = 0.0
    name: str = "train"

    def needs(self) -> frozenset[str]:
        """What the task must provide."""
        return self.collect.needs

    def wants(self) -> frozenset[str]:
        """What must be prepared for the objectives and the advantage (reference, old log-probs, values)."""
        found = frozenset().union(*(u.loss.needs for u in self.updates))
        if self.advantage is not None:
            found |= self.advantage.needs
        several = [u for u in self.updates if u.rows == "rows" and u.steps > 1 and u.loss.behaviour]
        if several and self.reward is not None:
            found |= {"old_logprob"}
        return found

    def wants_of_all(self) -> frozenset[str]:
        """Of these, what every row needs that was seen: the advantage comes before the gate, and buffers keep rows that it
        drops. The rest is prepared for what the gate admitted."""
        if self.buffers:
            return self.wants()
        return frozenset(self.advantage.needs if self.advantage is not None else ())

    def metric_names(self) -> list[str]:
        """What the metrics of each update begin with: nothing for the first, `hardest/` for one on the buffer of that
        name, `rows-2/` for a second one on the same rows."""
        rows = [u.rows for u in self.updates]
        names = [r if r != "rows" and rows.count(r) == 1 else f"{r}-{i}" for i, r in enumerate(rows, 1)]
        return ["", *(f"{name}/" for name in names[1:])]

    def check(self) -> None:
        """Refuse at the start what cannot work."""
        if self.steps < 1 or self.batch < 1:
            raise WhetError(f"stage '{self.name}': steps and batch must be at least 1")
        if not 0 <= self.until <= 1:
            raise WhetError(f"stage '{self.name}': until is an accuracy from 0 to 1, not {self.until:g}")
        if self.start not in ("last", "base"):
            raise WhetError(f"stage '{self.name}' starts from '{self.start}': one of last, base")
        if self.carry and self.start != "last":
            raise WhetError(f"stage '{self.name}' carries its optimizer on, but not its weights; start from 'last'")
        if self.advantage is not None:
            if self.reward is None:
                raise WhetError(f"stage '{self.name}' has an advantage but no reward")
            if self.advantage.needs_group and self.collect.group < 2:
                raise WhetError(f"stage '{self.name}': a group of one has no baseline; use group=2 or more, or an "
                                "advantage without a group (advantage=reinforce++)")  # fmt: skip
        if self.gate.needs_group and self.collect.group < 2:
            raise WhetError(f"stage '{self.name}': every group of one is all right or all wrong, so that dynamic "
                            "sampling would drop everything; use group=2 or more, or dynamic=false")  # fmt: skip
        for update in self.updates:
            if update.rows != "rows" and update.rows not in self.buffers:
                raise WhetError(f"stage '{self.name}': an update learns from '{update.rows}', which is no buffer")

    def state_dict(self) -> dict[str, Any]:
        """The state of every part that has one."""
        return {name: part.state_dict() for name, part in self._parts() if hasattr(part, "state_dict")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, part in self._parts():
            if state.get(name):
                part.load_state_dict(state[name])

    def _parts(self) -> list[tuple[str, Any]]:
        named = [("problems", self.problems), ("collect", self.collect), ("reward", self.reward),
                 ("advantage", self.advantage)]  # fmt: skip
        return [*named, *((f"buffer {name}", buffer) for name, buffer in self.buffers.items())]

    def describe(self) -> list[str]:
        """Lines for the run log: the two dials, and everything that follows from them."""
        lines = [f"{self.name}: {self.steps} steps of {self.batch} problems"
                 + (f" x {self.collect.group} answers" if self.collect.group > 1 else "")]  # fmt: skip
        for u in self.updates:
            per = "1 optimizer step" if u.steps == 1 else f"{u.steps} optimizer steps"
            lines.append(f"  {per} a step on {u.rows}: {u.loss.describe()}")
        return lines
