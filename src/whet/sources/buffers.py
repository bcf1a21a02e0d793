"""Buffers: rows kept aside for a second update of a stage."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from whet.errors import WhetError, unknown
from whet.models.policy import Policy
from whet.records import Row
from whet.seeds import rng_for
from whet.sources.collector import Scope
from whet.sources.gate import groups_of


class Buffer:
    """Keeps rows until an update wants them. What it holds is state: a resumed run goes on with it.

    Attributes:
        counts: what it holds, took in and left out so far, for the log.
    """

    counts: Mapping[str, int] = {}

    def add(self, rows: Sequence[Row], policy: Policy, scope: Scope) -> None:
        """All scored rows of a step, those that the gate dropped too; their problems are in `scope.known`."""
        raise NotImplementedError

    def take(self) -> list[Row] | None:
        """The rows to learn from now, or None to wait. It is asked once a step."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


QUESTIONS = ("hardest", "random", "all")


class Demonstrated(Buffer):
    """Demonstrations of questions that the roll-outs of a step single out, one entry a question (ReLIFT 2506.07527).

    Which question is told by raw accuracy, never by the shaped reward. The newest entries are taken first; what is left
    over stays. A demonstration that is longer than the generation budget is dropped and counted: cut off, it would teach not
    to end.

    Args:
        size: entries that are taken at once; infinity never fills.
        questions: `hardest`: those that no answer of the group solved; `random`: as many of the step's, drawn; `all` of them.
    """

    def __init__(self, size: float, questions: str = "hardest") -> None:
        if not size >= 1:
            raise WhetError(f"a buffer hands over at least 1 entry, not {size:g}")
        if questions not in QUESTIONS:
            raise unknown("questions", questions, QUESTIONS)
        self.size, self.questions = size, questions
        self.held: list[Row] = []
        self.met = self.used = self.dropped = 0

    @property
    def counts(self) -> Mapping[str, int]:  # type: ignore[override]
        return {"waiting": len(self.held), "questions": self.met, "used": self.used, "dropped": self.dropped}

    def add(self, rows: Sequence[Row], policy: Policy, scope: Scope) -> None:
        groups = groups_of(rows)
        self.met += len(groups)
        chosen = [group for group in groups if all(row.numbers["accuracy"] == 0.0 for row in group)]
        if self.questions == "random":
            drawn = rng_for(scope.seed, "buffer").sample(range(len(groups)), len(chosen))
            chosen = [groups[i] for i in sorted(drawn)]
        elif self.questions == "all":
            chosen = groups
        if math.isinf(self.size):  # what is never taken is not kept
            return
        fresh = []
        for group in chosen:
            sample = policy.format.demonstration(scope.known[group[0].problem_id])
            budget = max(int((row["response"].settings or {}).get("max_new_tokens", 0)) for row in group)
            if sample.count_learnt() > budget or len(sample) > policy.max_length:
                self.dropped += 1
            else:
                fresh.append(Row({"response": sample}))
        self.held = fresh + self.held

    def take(self) -> list[Row] | None:
        if len(self.held) < self.size:
            return None
        size = int(self.size)
        taken, self.held = self.held[:size], self.held[size:]
        self.used += size
        return taken

    def state_dict(self) -> dict[str, Any]:
        return {"held": [row.state() for row in self.held], "met": self.met, "used": self.used, "dropped": self.dropped}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.held = [Row.from_state(row) for row in state["held"]]
        self.met, self.used, self.dropped = (int(state[name]) for name in ("met", "used", "dropped"))
