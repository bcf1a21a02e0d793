"""The stored problem x sample matrix of an evaluation; every metric is a pure function of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from whet.models.policy import Policy
from whet.records import Sample
from whet.sampling.sampler import SamplingSettings
from whet.sources import Answering, verdicts
from whet.tasks import Problem, Status, Task, Verdict

AT_ONCE = 8192  # answers that are asked for together


@dataclass(frozen=True, slots=True)
class Cell:
    """One answer.

    Attributes:
        value: the verdict's value; NaN where it could not be judged.
        tokens: its length, end token included.
        label: the answer for votes, equal where answers mean the same; None where it could not be read.
        parts: the verdict's.
        confidence: the mean probability of its tokens when they were sampled; NaN where the answer does not carry them.
    """

    value: float
    status: Status
    tokens: int
    ended: bool
    label: str | None
    text: str = ""
    parts: Mapping[str, float] = field(default_factory=dict)
    confidence: float = math.nan


@dataclass
class Matrix:
    """Problems x samples.

    Attributes:
        cells: one row of equally many cells for each problem.
    """

    problems: Sequence[Problem]
    cells: list[list[Cell]] = field(default_factory=list)

    @property
    def n(self) -> int:
        return len(self.cells)

    @property
    def k(self) -> int:
        return len(self.cells[0]) if self.cells else 0

    def as_dict(self) -> dict[str, list]:
        """Plain values, one list a problem: what every metric can be computed from again."""
        table: dict[str, list] = {"problem": [p.id for p in self.problems], "level": [p.level for p in self.problems]}
        for name in ("value", "status", "tokens", "ended", "label", "confidence"):
            table[name] = [[getattr(cell, name) for cell in row] for row in self.cells]
        return table


def vote(verdict: Verdict, answer: str | None) -> str | None:
    """What an answer votes for: its meaning as the verifier read it, else its text up to white space; an answer that the
    verifier could not read votes for nothing."""
    if verdict.status == "unparseable" or answer is None:
        return None
    return verdict.label if verdict.label is not None else " ".join(answer.split())


def confidence(sample: Sample) -> float:
    """The mean probability of the tokens that were sampled, each of the distribution that it was drawn from (a greedy one of
    the policy's own); NaN where the sample does not carry them."""
    sampled = torch.tensor([s.sampled for s in sample.segments for _ in s.ids], dtype=torch.bool)
    if "sampler_logprob" not in sample.per_token or not sampled.any():
        return math.nan
    return round(float(sample.per_token["sampler_logprob"][sampled].double().exp().mean()), 6)


def evaluate(
    policy: Policy, task: Task, problems: Sequence[Problem], *, k: int = 1, temperature: float = 0.0, seed: int = 0,
    max_new_tokens: int = 0, answering: Answering | None = None,
) -> Matrix:  # fmt: skip
    """Answer each problem `k` times (greedily at temperature 0) and judge the answers. `answering` says how answers come
    about, where the policy does not give them by itself. Answers to a problem that say the same are judged once.

    A task without a verifier (a preference file) still shows lengths and ends; its verdicts are NaN. Of many answers only
    `AT_ONCE` are held with their tokens; which they are changes none, as an answer does not depend on what else is asked.
    """
    settings = SamplingSettings(max_new_tokens=max_new_tokens or task.max_answer_tokens(), temperature=temperature)
    unjudged = None if "verifier" in task.provides() else Verdict(math.nan, "error", reason="the task has no verifier")
    how = answering or Answering()
    cells, part = [], max(1, AT_ONCE // k)
    for start in range(0, len(problems), part):
        cells += _cells(policy, task, problems[start : start + part], settings, k, seed, how, unjudged)
    return Matrix(problems, cells)


def _cells(
    policy: Policy, task: Task, problems: Sequence[Problem], settings: SamplingSettings, k: int, seed: int, how: Answering,
    unjudged: Verdict | None,
) -> list[list[Cell]]:  # fmt: skip
    answers = how.ask(policy, problems, settings, k, seed)
    asked = [[(place, how.read(policy, sample)) for sample in samples] for place, samples in enumerate(answers)]
    distinct = list(dict.fromkeys(pair for pairs in asked for pair in pairs))
    said = [(problems[place], response) for place, response in distinct]
    judged = dict(zip(distinct, [unjudged] * len(said) if unjudged else verdicts(task, said, policy), strict=True))
    cells = []
    for samples, pairs in zip(answers, asked, strict=True):
        row = []
        for sample, pair in zip(samples, pairs, strict=True):
            (_, response), verdict = pair, judged[pair]
            tokens = sum(len(s.ids) for s in sample.segments if s.sampled)
            label = vote(verdict, response.answer)
            row.append(Cell(verdict.value, verdict.status, tokens, sample.ended, label, response.text, verdict.parts,
                            confidence(sample)))  # fmt: skip
        cells.append(row)
    return cells
