"""One optimizer step: accumulate -> reduce -> after_grads -> mask -> clip -> optimizer -> after_step -> every_n_steps."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from whet.errors import WhetError, first_line, out_of_memory
from whet.models.policy import Policy
from whet.models.sharded import DTensor, LocalOptimizer, Sharded, clip_, local
from whet.objectives.forward import Context, Whole
from whet.records import Row
from whet.seeds import rng_for
from whet.training import metrics
from whet.training.stage import Update
from whet.weights import Packed, Weights

MOST_NONFINITE = 10  # batches that a stage may leave out for their numbers


class NotFinite(WhetError):
    """A loss or a gradient is nan or infinite."""


class Learner:
    """An update's optimizer, its step counter and its schedule.

    A micro-batch that does not fit into memory is run again in halves, with the same gradient.

    Args:
        steps: optimizer steps it will take in the stage (for the schedule).
        token_budget: tokens run at once, those that pad too.
        temperature, budget: passed on to the objective's context.
        share: the share of the stage that is done, where a budget ends it and not a number of steps.
        skip: leave out a batch whose loss or gradient is not finite, up to `MOST_NONFINITE` of them, where it else ends the run.
        shards: the policy's twin that is cut among the ranks, where there is one; it learns, and the policy follows after each step.
        eight_bit: moments of 8 bits, by bitsandbytes.

    Attributes:
        told: what is to be said of the last step, a line each.
    """

    def __init__(
        self, update: Update, policies: Mapping[str, Policy], weights: Weights, *, steps: int, token_budget: int,
        temperature: float = 1.0, budget: int = 0, share: Callable[[], float | None] = lambda: None,
        skip: bool = False, shards: Sharded | None = None, eight_bit: bool = False,
    ) -> None:  # fmt: skip
        self.update = update
        self.policy = policies["policy"]
        self.shards = shards
        self.policies = {n: shards.twin if shards and p is self.policy else p for n, p in policies.items()}
        self.ranks = self.policy.ranks
        self.weights = weights
        self.steps = max(1, steps)
        self.token_budget = token_budget
        self.temperature = temperature
        self.budget = budget
        self.share = share
        self.skip = skip
        self.taken = self.skipped = self.nonfinite = 0
        self.told: list[str] = []
        self.parameters = self.policies["policy"].trainable_parameters()
        size = self.policy.size()

        def plain(chosen: Mapping[str, Any]) -> torch.optim.Optimizer:
            return update.optimizer.build(chosen, size, self.parameters, eight_bit=eight_bit)

        def build(chosen: Mapping[str, Any]) -> torch.optim.Optimizer:
            return LocalOptimizer(plain, chosen) if shards else plain(chosen)  # type: ignore[return-value]

        self.optimizer = weights.optimizer(build, self.parameters)
        self.peak = update.optimizer.rate(self.policy.size())

    def step(self, rows: Sequence[Row], seed: int, where: str) -> dict[str, float]:
        """Learn from `rows`; returns metrics. A batch without anything to learn is a counted skip."""
        objective = self.update.loss
        if not rows or not objective.active(rows):
            self.skipped += 1
            self.policy.meter.idle_steps += 1
            return {"skipped": 1.0}
        rate = self.peak * self.update.optimizer.scale(self.position, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        for name in self.policy.resting:  # its moments begin anew when it moves again
            held = self.optimizer.held(name) if isinstance(self.optimizer, LocalOptimizer) else self.parameters[name]
            self.optimizer.state.pop(held, None)
        with self.shards.learning() if self.shards else nullcontext():
            found = self._learn(rows, seed, where)
        if "skipped" in found:
            return found
        found["lr"] = rate
        self.taken += 1
        self.policy.meter.optimizer_steps += 1
        if self.weights.every and self.taken % self.weights.every == 0:
            self.weights.every_n_steps(self.policy, self.taken)
        return found

    def _learn(self, rows: Sequence[Row], seed: int, where: str) -> dict[str, float]:
        """Gradient and optimizer step."""
        try:
            found = self.accumulate(rows, seed, where)
            if self.update.least and _loss(found) < self.update.least:
                self.skipped += 1
                self.policy.meter.idle_steps += 1
                return {**found, "skipped": 1.0}
            self.weights.after_grads(self.parameters)
            self.weights.mask(self.parameters)
            found["grad_norm"] = self._clip(where)
        except NotFinite as problem:
            return self._leave_out(problem)
        self.optimizer.step()
        self._measure()
        self.weights.after_step(self.parameters)
        return found

    def said(self) -> list[str]:
        """What is to be said since the last time."""
        told, self.told = self.told, []
        return told

    def _leave_out(self, problem: NotFinite) -> dict[str, float]:
        if not self.skip:
            raise problem
        self.nonfinite += 1
        if self.nonfinite > MOST_NONFINITE:
            raise WhetError(f"{problem}; {MOST_NONFINITE} batches were left out before") from None
        self.optimizer.zero_grad(set_to_none=True)
        self.policy.meter.idle_steps += 1
        self.told.append(f"{problem}: left out, number {self.nonfinite} of at most {MOST_NONFINITE}")
        return {"skipped": 1.0, "nonfinite": 1.0}

    def forget(self) -> None:
        """Begin the moments anew."""
        getattr(self.optimizer, "inside", self.optimizer).state.clear()

    def carry(self, before: Learner) -> None:
        """Go on with the moments of an earlier optimizer of the same parameters."""
        if list(before.parameters) != list(self.parameters):
            raise WhetError("an optimizer is carried on to a stage that trains other parameters (a value head came in, say); "
                            "begin a fresh one")  # fmt: skip
        packed = [set(getattr(o, "places", ())) for o in (before.optimizer, self.optimizer)]
        if packed[0] != packed[1]:
            raise WhetError("the moments of chosen entries are not those of whole tensors: an optimizer is not carried on "
                            "between masked weights and others")  # fmt: skip
        if isinstance(self.optimizer, Packed) and isinstance(before.optimizer, Packed):
            self.optimizer.carry(before.optimizer)
            return
        held, own = before.optimizer.state_dict(), self.optimizer.state_dict()
        self.optimizer.load_state_dict({"state": held["state"], "param_groups": own["param_groups"]})

    @property
    def position(self) -> float:
        """Optimizer steps done, for schedules; where a budget ends the stage, its spent share of `steps`."""
        share = self.share()
        return self.taken if share is None else share * self.steps

    def accumulate(self, rows: Sequence[Row], seed: int, where: str = "") -> dict[str, float]:
        """Write the gradient of the whole batch, of which each rank runs its share. The counts are those of the whole batch
        and come first, so that neither micro-batches nor ranks can change it.

        Raises:
            NotFinite: a term is nan or infinite, on any rank; the gradient is not to be used.
        """
        asked = self.token_budget
        while True:
            try:
                found = self._accumulate(rows, seed, where)
                break
            except RuntimeError as full:
                if not out_of_memory(full):
                    raise
                said = first_line(full)
            self._halve(rows, where, said)  # out of the handler, whose traceback holds what has been computed
        if self.token_budget < asked:
            self.told.append(
                f"{where}: out of memory; from here on {self.token_budget} tokens at once, with the same gradient"
            )
        return found

    def _halve(self, rows: Sequence[Row], where: str, said: str) -> None:
        longest = max(sum(len(s) for s in row.all()) for row in rows)
        if self.ranks.size > 1 or self.token_budget <= longest:
            raise WhetError(f"{where}: out of memory with {self.token_budget} tokens at once, a row has up to {longest}; "
                            f"give a smaller --token-budget, --activation-checkpointing, or --weights lora ({said})")  # fmt: skip
        self.optimizer.zero_grad(set_to_none=True)
        self.token_budget = max(longest, min(self.token_budget, longest * len(rows)) // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _accumulate(self, rows: Sequence[Row], seed: int, where: str) -> dict[str, float]:
        objective = self.update.loss
        counts = objective.counts(rows, self.budget)
        position = self.position  # one for all micro-batches, while the budget is being spent
        self.optimizer.zero_grad(set_to_none=True)
        losses: dict[str, float] = defaultdict(float)
        wrong: list[str] = []
        logs: dict[str, list[Tensor]] = defaultdict(list)
        how = (self.temperature, self.budget, position, self.steps, objective.together)
        key = _coupling("batch" if objective.meetings and self._fits(rows) else objective.couples)
        micros = self.policy.micro_batches(self._share(rows), self.token_budget, key, padded=objective.padded)
        live = [True] * len(micros)
        if self.shards:
            micros, live = self.shards.rounds(micros, rows)
        for micro, counted, whole in zip(micros, live, self._meet(rows, micros, counts, seed, how), strict=True):
            ctx = Context(micro, self.policies, counts, seed, *how, whole=whole)
            if self.shards:
                self._backward(self.shards.compute(partial(objective.total, ctx)), losses, wrong, micro, counted)
            else:
                self._backward(objective.total(ctx), losses, wrong, micro)
            for name, values in ctx.logs.items() if counted else ():
                logs[name] += values
        if self.shards:
            self.shards.reshard()
        if self.ranks.first and not self.shards:  # with shards no term is of parameters: `check_shards`
            ctx = Context([], self.policies, counts, seed, step=position, steps=self.steps)
            self._backward(objective.total(ctx, scope="parameters"), losses, wrong, [])
        learnt = sum(s.count_learnt() for row in rows for role in objective.roles for s in row.get(role))
        self.policy.meter.learnt_tokens += learnt
        self.ranks.agree("the rows that they learn from", (counts, learnt))
        self.ranks.sum_gradients(p for p in self.parameters.values() if not isinstance(p, DTensor))
        own = {name: (_reduce(name, torch.cat(values)), sum(map(len, values))) for name, values in logs.items()}
        everyone = self.ranks.gather((losses, own, wrong))
        for *_, said in everyone:
            if said:
                raise NotFinite(f"{where}: {said[0]}; lower the learning rate (now {self.optimizer.param_groups[0]['lr']:.2g}) or look "
                                "at these rows")  # fmt: skip
        return {**metrics.merge([(loss, logged) for loss, logged, _ in everyone]), "learnt_tokens": float(learnt)}

    def _fits(self, rows: Sequence[Row]) -> bool:
        """Whether the rows are one micro-batch, even padded: then they meet without a pass beforehand."""
        lengths = [len(s) for row in rows for s in row.all()]
        return max(lengths) * len(lengths) <= self.token_budget

    @torch.no_grad()
    def _meet(
        self, rows: Sequence[Row], micros: Sequence[list[Row]], counts: Mapping[str, float], seed: int, how: tuple[Any, ...]
    ) -> list[Whole | None]:  # fmt: skip
        """For each micro-batch the batch that it is a part of, with what every row brings to the terms in which rows meet;
        None where no such term is, or nothing was cut."""
        meetings = self.update.loss.meetings
        if not meetings or (self.ranks.size == 1 and len(micros) == 1):
            return [None] * len(micros)
        free: dict[int, list[int]] = defaultdict(list)  # a row that comes twice has two places
        for place, row in enumerate(rows):
            free[id(row)].append(place)
        # the last place stays: with shards a rank may run rows of another for nothing, more than once
        places = [[held.pop() if len(held := free[id(row)]) > 1 else held[0] for row in micro] for micro in micros]
        own: dict[str, dict[int, Tensor]] = {term.name: {} for term in meetings}
        for micro, at in zip(micros, places, strict=True):
            ctx = Context(micro, self.policies, counts, seed, *how)
            for term in meetings:
                states = self.shards.compute(partial(term.represent, ctx)) if self.shards else term.represent(ctx)
                own[term.name].update(zip(at, states.cpu(), strict=True))
        everyone = self.ranks.gather(own)
        known = {name: {p: z for part in everyone for p, z in part[name].items()} for name in own}
        everything = {name: torch.stack([found[p] for p in range(len(rows))]) for name, found in known.items()}
        return [Whole(rows, at, everything) for at in places]

    def _share(self, rows: Sequence[Row]) -> list[Row]:
        """The rows that this rank runs. Groups stay whole: their prompt is run once, and terms may couple them."""
        if self.ranks.size == 1:
            return list(rows)
        whole = self.update.loss.couples == "batch"
        units: dict[object, list[Row]] = {}
        for place, row in enumerate(rows):
            units.setdefault("all" if whole else row.group_id or place, []).append(row)
        share = self.ranks.share(list(units.values()), cost=lambda unit: sum(len(s) for r in unit for s in r.all()))
        return [row for unit in share for row in unit]

    def _backward(
        self, parts: Mapping[str, tuple[Tensor, float]], losses: dict[str, float], wrong: list[str], rows: Sequence[Row],
        counted: bool = True,
    ) -> None:  # fmt: skip
        # a term that counts nothing has nothing to learn here, beside another one that has
        scaled = {name: total / number for name, (total, number) in parts.items() if number}
        if not scaled:
            return
        for name, value in scaled.items() if counted else ():
            if not torch.isfinite(value):
                ids = ", ".join(dict.fromkeys(row.problem_id for row in rows)) or "parameters"
                wrong.append(f"term '{name}' is {float(value.detach())} on {ids}")
            losses[name] += float(value.detach())
        loss = torch.stack([v.reshape(()) for v in scaled.values()]).sum()
        if loss.requires_grad and (self.shards or not wrong):  # a backward of shards is all ranks' or nobody's
            (loss if counted else 0.0 * loss).backward()

    def _clip(self, where: str) -> float:
        gradients = [p for p in self.parameters.values() if p.grad is not None]
        limit = self.update.clip or float("inf")
        if self.shards:
            norm = clip_([p.grad for p in gradients if p.grad is not None], limit)
        else:
            norm = float(torch.nn.utils.clip_grad_norm_(gradients, limit))
        if norm != norm or norm == float("inf"):
            raise NotFinite(f"{where}: the gradient norm is {norm}; lower the learning rate")
        return norm

    def _measure(self) -> None:
        """Note how much memory the step held, and how many entries it moved."""
        places: Mapping[str, Tensor] = getattr(self.optimizer, "places", {})
        moved = {n: p for n, p in self.parameters.items() if p.grad is not None}
        states = getattr(self.optimizer, "inside", self.optimizer).state.values()
        held = [value for state in states for value in state.values() if isinstance(value, Tensor)]
        self.policy.meter.saw(
            sum(len(places[n]) if n in places else local(p).numel() for n, p in moved.items()),
            sum(t.nbytes for t in (*held, *places.values())),
            sum(local(p.grad).nbytes for p in moved.values() if p.grad is not None),
        )

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "taken": self.taken, "skipped": self.skipped,
                "nonfinite": self.nonfinite, "token_budget": self.token_budget}  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.optimizer.load_state_dict(dict(state["optimizer"]))
        self.taken, self.skipped = int(state["taken"]), int(state["skipped"])
        self.nonfinite = int(state.get("nonfinite", 0))
        self.token_budget = min(self.token_budget, int(state.get("token_budget", self.token_budget)))


def _loss(found: Mapping[str, float]) -> float:
    return sum(value for name, value in found.items() if name.startswith("loss/"))


def _reduce(name: str, values: Tensor) -> float:
    """The mean of what a term logged; the maximum where its name says so."""
    return float(values.max() if name.endswith("_max") else values.mean()) if len(values) else math.nan


def _coupling(couples: str) -> Callable[[Row], object] | None:
    if couples == "group":
        return lambda row: row.group_id
    if couples == "batch":
        return lambda row: "all"
    return None


def minibatches(rows: Sequence[Row], n: int, seed: int, epoch: int) -> list[list[Row]]:
    """`n` parts of nearly equal size, shuffled anew each epoch; a part may be empty when there are fewer rows."""
    if n == 1:
        return [list(rows)]
    order = list(range(len(rows)))
    rng_for(seed, "minibatches", epoch).shuffle(order)
    return [[rows[i] for i in order[k::n]] for k in range(n)]
