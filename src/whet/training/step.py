"""One step of a stage: draw, collect, score, estimate advantages, observe, gate, transform, update."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from whet.models.policy import Policy
from whet.records import Row
from whet.seeds import seed_for
from whet.sources import Scope, groups_of
from whet.training import metrics
from whet.training.learner import Learner, minibatches
from whet.training.references import References
from whet.training.scoring import prepare, score
from whet.training.stage import Stage, Update

CLOCK: tuple[str, ...] = ("sample", "score", "learn")  # what the seconds of a step are spent on


class Step:
    """The steps of a stage that has been entered; all randomness of one is a function of the seed it is given.

    Args:
        stage: what is done.
        policies: by name, the trained one and the frozen ones.
        learners: one for each of the stage's updates.
        scope: what its sources see; its seed and share are set at each step.
        token_budget: tokens run at once.
    """

    def __init__(
        self, stage: Stage, policies: Mapping[str, Policy], learners: Sequence[Learner], scope: Scope, token_budget: int
    ) -> None:
        self.stage, self.policies, self.learners, self.scope = stage, policies, learners, scope
        self.token_budget = token_budget
        self.policy = policies["policy"]
        self.references = References()
        self.clock: dict[str, float] = {}
        self.where = ""

    def take(self, seed: int, share: float, where: str) -> dict[str, Any]:
        """Do it.

        Args:
            share: how much of the stage is done.
            where: the step in words, for errors and for a rank that hangs.

        Returns:
            Its metrics, and the seconds of its parts.
        """
        stage = self.stage
        self.where, self.scope.share = where, share
        seen, rows = self.rows(seed)
        for buffer in stage.buffers.values():
            buffer.add(seen, self.policy, self.scope)
        found: dict[str, Any] = metrics.of_rows(seen, rows) if stage.reward else {}
        found |= {f"problems/{what}": value for what, value in stage.problems.report().items()}
        found |= stage.collect.report()
        with self._timed("learn"):
            self.policy.model.train(self.policy.checkpointing)
            for name, update, learner in zip(stage.metric_names(), stage.updates, self.learners, strict=True):
                found |= {name + key: value for key, value in self._update(update, learner, rows, seed).items()}
        stage.problems.learnt(found)
        for name, buffer in stage.buffers.items():
            found |= {f"{name}/{what}": float(n) for what, n in buffer.counts.items()}
        self.scope.known.clear()
        if told := [line for learner in self.learners for line in learner.said()]:
            found["warnings"] = told
        return {**found, **{f"seconds/{k}": v for k, v in self.clock.items()}}

    def rows(self, seed: int) -> tuple[list[Row], list[Row]]:
        """All rows seen and the rows to learn from; a refilling gate draws until `batch` groups are admitted."""
        stage = self.stage
        self.clock = dict.fromkeys(CLOCK, 0.0)
        seen: list[Row] = []
        admitted: list[list[Row]] = []
        first = stage.wants_of_all()
        for draw in range(stage.gate.max_draws if stage.gate.refill else 1):
            self.scope.seed = seed_for(seed, "draw", draw)
            with self._timed("sample"):
                rows = stage.collect.rows(stage.problems, stage.batch, self.policy, self.scope)
            for row in rows:
                for sample in row.all():
                    sample.check()
            with self._timed("score"):
                if stage.reward is not None:
                    score(rows, stage.reward, self.policy, self.scope)
                self._prepare(rows, first)
                if stage.advantage is not None:
                    stage.advantage(rows)
            stage.problems.observe(rows)
            seen += rows
            if stage.reward is None:
                admitted = [rows]
                break
            admitted += [group for group in groups_of(rows) if stage.gate.admits(group)]
            if len(admitted) >= stage.batch:
                break
        chosen = [row for group in admitted[: stage.batch] for row in group]
        with self._timed("score"):
            self._prepare(chosen, stage.wants() - first)
        for transform in stage.transforms:
            transform(chosen)
        return seen, chosen

    def _prepare(self, rows: Sequence[Row], wants: frozenset[str]) -> None:
        prepare(rows, wants, self.policies, self.stage.collect.temperature, self.token_budget, self.references)

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        self.policy.ranks.at = f"{self.where}, {name}"
        yield
        self.clock[name] += time.perf_counter() - began

    def _update(self, update: Update, learner: Learner, rows: list[Row], seed: int) -> dict[str, Any]:
        chosen = rows if update.rows == "rows" else self.stage.buffers[update.rows].take()
        if chosen is None:
            return {}
        if update.temperature is None:
            learner.temperature = self.stage.collect.temperature  # which may follow what is measured
        if update.fresh:
            learner.forget()
        taken: list[dict[str, float]] = []
        for epoch in range(update.epochs):
            for number, part in enumerate(minibatches(chosen, update.minibatches, seed, epoch)):
                where = f"{self.where} ({self.stage.name})"
                taken.append(learner.step(part, seed_for(seed, "learn", epoch, number), where))
            if update.least and all(found.get("skipped") for found in taken[-update.minibatches :]):
                break
        return metrics.mean(taken)
