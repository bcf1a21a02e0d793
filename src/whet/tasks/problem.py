"""Problem, Response, Verdict: a question, an answer given to it, and the judgement of that answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["ok", "wrong", "unparseable", "timeout", "error"]
Split = Literal["train", "validation", "test"]


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a worked solution.

    Attributes:
        text: as written in the rationale, without a line break.
        kind: what sort of step (compute, copy, lookup, compare, conclude ...).
        skill: the skill tag that curricula and studies group by.
        premises: indices of the earlier steps it rests on.
    """

    text: str
    kind: str = "compute"
    skill: str = ""
    premises: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with what is needed to verify an answer.

    Attributes:
        id: unique within the task and version (`chain-sum/1/train/17`).
        prompt: the question's text.
        answer: the gold answer as text; None where only a verifier function knows.
        task: the task's name.
        level: difficulty, from 1.
        steps: the gold rationale as typed steps; empty where there is none.
        plan: what to do, without numbers; empty where there is none.
        choices: the options, in order; empty where the task has none. `answer` is then one of them.
        choice_rationales: one rationale for each choice; empty where there is none.
        category: what a curriculum's bandit may choose by.
        data: what the checkers need (operands, table, document ids ...), plain values.
        messages: the conversation before the answer, for chat rows; else empty and `prompt` is the one user turn.
        chosen, rejected: a preference pair's two responses, for preference rows.
    """

    id: str
    prompt: str
    answer: str | None = None
    task: str = ""
    level: int = 1
    steps: tuple[Step, ...] = ()
    plan: str = ""
    choices: tuple[str, ...] = ()
    choice_rationales: tuple[str, ...] = ()
    category: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    messages: tuple[Mapping[str, str], ...] = ()
    chosen: str | None = None
    rejected: str | None = None

    @property
    def rationale(self) -> str:
        """The gold rationale as text, a step a line; empty where there is none."""
        return "\n".join(s.text for s in self.steps)


@dataclass(frozen=True, slots=True)
class Response:
    """What was answered, cut by the Format.

    Attributes:
        text: the whole response.
        answer: the answer's part, or None where the format found none.
        rationale: the reasoning's part, empty where there is none; of one that plans first, the plan and its execution.
        ended: whether the end token was produced.
        plan, execution: the two apart, empty where there is none.
    """

    text: str
    answer: str | None = None
    rationale: str = ""
    ended: bool = True
    plan: str = ""
    execution: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judgement of a response.

    Attributes:
        value: in [0, 1]; NaN where nothing could be judged (`timeout`, `error`), which advantages leave out.
        status: `unparseable` is not `wrong`, and a failed verifier is neither.
        parts: named parts of the judgement, e.g. {"format": 1.0, "board": 0.5}.
        reason: one line for a human.
        label: the answer as the verifier read it, so that answers which mean the same have one label (`4` and `4.0`);
            None where it reads none. It is what votes are counted by, and no part of the judgement.
    """

    value: float
    status: Status
    parts: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    label: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Check:
    """One structured check of a response: RL rewards, feedback texts and metrics are reductions of these."""

    name: str
    result: Literal["pass", "fail", "n.a."]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Corruption:
    """A wrong rationale with the answer it leads to and the label of the error (`arithmetic`, `copy`, `skip` ...).

    `step` is the index of the first wrong step.
    """

    steps: tuple[Step, ...]
    answer: str
    label: str
    step: int

    @property
    def rationale(self) -> str:
        return "\n".join(s.text for s in self.steps)
