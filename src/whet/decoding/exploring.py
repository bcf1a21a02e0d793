"""Explore, then execute (E2C, 2509.23946): draw many cheap plans, carry out few.

    choose      what is executed                                               how the answer is found
    all         every plan (one plan: E2C-RP; with a temperature: self-consistency)   majority
    cluster     of k-means over the plans' embeddings, the plan nearest each centre   majority, weighted by cluster size
    judge       the plan that a judge picks (E2C-Select)                        it is the answer

Plans are drawn at a temperature, executions are greedy unless told otherwise. Every token that is drawn counts: those of all
plans, of all executions, and of the judge where the policy is the judge.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from whet.errors import WhetError, unknown
from whet.models.embedding import Encoder, get_encoder
from whet.models.meter import Meter
from whet.models.policy import Policy
from whet.records import Sample, Segment
from whet.sampling.sampler import SamplingSettings
from whet.seeds import seed_for
from whet.sources import Answering, ModelTeacher, Question, Teacher, user, verdicts
from whet.sources.planned import as_plan, draw_plans
from whet.sources.plans import Member, ask_members
from whet.tasks import Problem, Response, Task
from whet.tasks.outline import outline, rotated, titles

CHOICES = ("all", "cluster", "judge")
SPENT = ("explored", "executed", "judged")  # kinds of what was drawn and is no part of the answer
JUDGE = """{question}

Plans for it:
{plans}

Which one is best? Reply with its number alone."""


class Following(Answering):
    """The policy answers by itself; how well its executions follow their plans is measured besides."""

    def measure(self, policy: Policy, task: Task, problems: Sequence[Problem]) -> Mapping[str, float]:
        """With each problem's own plan turned round (its first step last) in place of the policy's: `adherence`, the share of
        executions that take its steps one by one; `habit`, those of the plan as it was; and `accuracy_replaced`."""
        known = [p for p in problems if rotated(outline(p)) != outline(p)]
        if not known:
            return {}
        plans = [outline(p) for p in known]
        settings = SamplingSettings(task.max_answer_tokens() + 64, temperature=0.0)
        with policy.metered(Meter()):
            given = [[as_plan(policy, rotated(plan))] for plan in plans]
            read = [policy.format.read(s) for (s,) in ask_members(policy, known, given, settings, 0)]
            judged = verdicts(task, list(zip(known, read, strict=True)), policy)
        done = [titles(r.execution or r.rationale) for r in read]
        n = len(known)
        return {
            "adherence": sum(titles(rotated(plan)) == steps for plan, steps in zip(plans, done, strict=True)) / n,
            "habit": sum(titles(plan) == steps for plan, steps in zip(plans, done, strict=True)) / n,
            "accuracy_replaced": sum(v.value == 1.0 for v in judged) / n,
        }


@dataclass
class Explore(Following):
    """Plans first, then executions.

    Attributes:
        plans: drawn for each answer (K).
        choose: `all`, `cluster` or `judge`; see above.
        clusters: of `cluster`, at most (M).
        temperature: of plans.
        execution_temperature: of executions; 0 is greedy.
        budget: most tokens of a plan.
        judge: who picks; None is the policy itself.
        encoder: whose vectors are clustered: see `models.embedding`.
    """

    plans: int = 8
    choose: str = "cluster"
    clusters: int = 3
    temperature: float = 0.9
    execution_temperature: float = 0.0
    budget: int = 128
    judge: Teacher | None = None
    encoder: str = "policy"

    def __post_init__(self) -> None:
        if self.choose not in CHOICES:
            raise unknown("choice of plans", self.choose, CHOICES)
        if self.plans < 1 or self.clusters < 1 or self.budget < 1:
            raise WhetError("explore: plans, clusters and the budget of a plan must be at least 1")
        self._last: dict[str, tuple[Sample, int]] = {}  # of each problem the last greedy answer, and its plans' tokens

    def ask(
        self, policy: Policy, problems: Sequence[Problem], settings: SamplingSettings, n: int, seed: int
    ) -> list[list[Sample]]:
        """`n` answers to each problem, each from plans of its own. The budget of `settings` is an execution's."""
        rounds = [
            self._once(policy, problems, settings, seed_for(seed, "exploration", i) if i else seed) for i in range(n)
        ]
        if settings.temperature == 0:
            self._last = {p.id: found for p, found in zip(problems, rounds[0], strict=True)}
        return [[replace(s, rollout_id=i) for i, (s, _) in enumerate(row)] for row in zip(*rounds, strict=True)]

    def _once(
        self, policy: Policy, problems: Sequence[Problem], settings: SamplingSettings, seed: int
    ) -> list[tuple[Sample, int]]:  # fmt: skip
        """An answer to each problem, and how many tokens its plans took."""
        drawn = draw_plans(policy, problems, self.plans, SamplingSettings(self.budget, self.temperature), seed)
        chosen = [dict.fromkeys(range(self.plans), 1)] * len(problems)
        said = [""] * len(problems)
        if self.choose == "judge":
            said = self._judged(policy, problems, drawn, seed)
            chosen = [{picked(reply, self.plans): 1} for reply in said]
        elif self.choose == "cluster":
            encode = get_encoder(self.encoder, policy)
            chosen = [representatives(embed(encode, texts(policy, group)), self.clusters) for group in drawn]
        # the plan's tokens are allowed for: an execution has its own budget
        own = replace(
            settings, max_new_tokens=settings.max_new_tokens + self.budget, temperature=self.execution_temperature
        )
        begun = [[group[i] for i in picks] for group, picks in zip(drawn, chosen, strict=True)]
        answers = ask_members(policy, problems, begun, own, seed)
        joined = [self._joined(policy, *found) for found in zip(drawn, chosen, answers, said, strict=True)]
        return [(sample, sum(member.length for member in group)) for sample, group in zip(joined, drawn, strict=True)]

    def _judged(
        self, policy: Policy, problems: Sequence[Problem], drawn: Sequence[Sequence[Member]], seed: int
    ) -> list[str]:  # fmt: skip
        judge = self.judge or ModelTeacher(policy, SamplingSettings(16, temperature=0.0))
        told = ["\n\n".join(f"{i}. {text}" for i, text in enumerate(texts(policy, group), 1)) for group in drawn]
        return judge.reply([Question(user(JUDGE.format(question=p.prompt, plans=plans)), p, seed=seed)
                            for p, plans in zip(problems, told, strict=True)])  # fmt: skip

    def _joined(
        self, policy: Policy, drawn: Sequence[Member], chosen: Mapping[int, int], answers: Sequence[Sample], said: str
    ) -> Sample:  # fmt: skip
        """The answer that won, with all that was drawn on the way to it."""
        labels = [label(policy.format.read(sample)) for sample in answers]
        won = weighted_vote(labels, list(chosen.values()))
        kept = list(chosen)[won]
        answer = answers[won]
        head = [s for s in answer.segments if not s.sampled]
        tail = [s for s in answer.segments if s.sampled]
        explored = [i for j, member in enumerate(drawn) if j != kept for s in member.prefix for i in s.ids]
        executed = [i for j, place in enumerate(chosen) if j != won for i in _after(drawn[place], answers[j])]
        judged = policy.format.encode(said) if said and self.judge is None else []
        spent = [Segment(kind, ids, sampled=True)
                 for kind, ids in zip(SPENT, (explored, executed, judged), strict=True) if ids]  # fmt: skip
        return replace(answer, segments=[*head, *spent, *tail], per_token={})

    def read(self, policy: Policy, sample: Sample) -> Response:
        return policy.format.read(_answer(sample))

    def measure(self, policy: Policy, task: Task, problems: Sequence[Problem]) -> Mapping[str, float]:
        """Besides: tokens of plans, executions and judgements for each answer, and the share of answers with a plan."""
        if any(p.id not in self._last for p in problems):
            with policy.metered(Meter()):
                self.ask(policy, problems, SamplingSettings(task.max_answer_tokens(), temperature=0.0), 1, 0)
        found, n = [self._last[p.id] for p in problems], max(1, len(problems))
        plans = sum(tokens for _, tokens in found)
        judged = sum(len(x.ids) for s, _ in found for x in s.segments if x.kind == "judged")
        total = sum(len(x.ids) for s, _ in found for x in s.segments if x.sampled)
        return {
            **super().measure(policy, task, problems),
            "plan_tokens": plans / n,
            "execution_tokens": (total - plans - judged) / n,
            "judge_tokens": judged / n,
            "planned": sum(any(x.kind == "plan" for x in s.segments) for s, _ in found) / n,
        }


def _answer(sample: Sample) -> Sample:
    return replace(sample, segments=[s for s in sample.segments if s.kind not in SPENT])


def _after(member: Member, answer: Sample) -> list[int]:
    """What an answer has behind its plan."""
    return [i for s in answer.segments if s.sampled for i in s.ids][member.length :]


def texts(policy: Policy, group: Sequence[Member]) -> list[str]:
    """The plans in words."""
    read = [policy.format.read(Sample(list(member.prefix))) for member in group]
    return [r.plan or r.text for r in read]


def label(response: Response) -> str | None:
    """What an answer votes for; one that cannot be read votes for nothing."""
    return None if response.answer is None else " ".join(response.answer.split())


def weighted_vote(labels: Sequence[str | None], weights: Sequence[float]) -> int:
    """The place of the answer that stands for the label with the greatest weight: its heaviest, of equal ones the first."""
    totals: dict[str, float] = {}
    for name, weight in zip(labels, weights, strict=True):
        if name is not None:
            totals[name] = totals.get(name, 0.0) + weight
    won = max(totals, key=totals.__getitem__) if totals else None
    return max((i for i, name in enumerate(labels) if name == won), key=lambda i: weights[i])


def picked(reply: str, plans: int) -> int:
    """The place of the plan that a judge names; the first where it names none."""
    found = re.search(r"\d+", reply)
    return int(found[0]) - 1 if found and 1 <= int(found[0]) <= plans else 0


# -- clusters ----------------------------------------------------------------------------------------------------------
def embed(encode: Encoder, plans: Sequence[str]) -> Tensor:
    """(plans, d) vectors; equal plans have equal ones, to the bit."""
    distinct = list(dict.fromkeys(plans))
    return torch.from_numpy(encode(distinct)).double()[[distinct.index(plan) for plan in plans]]


def representatives(points: Tensor, clusters: int) -> dict[int, int]:
    """{place of the point nearest each centre: points of its cluster} of k-means, in the order of the points."""
    owner, centres = k_means(points, clusters)
    found = {}
    for c in range(len(centres)):
        members = (owner == c).nonzero()[:, 0]
        nearest = (points[members] - centres[c]).square().sum(-1).argmin()
        found[int(members[nearest])] = len(members)
    return dict(sorted(found.items()))


def k_means(points: Tensor, clusters: int, rounds: int = 50) -> tuple[Tensor, Tensor]:
    """(N,) the cluster of each point and (M,) centres. Nothing is drawn: the first centre is the point nearest the mean, each
    further one the point farthest from those before. Fewer distinct points than clusters make fewer clusters."""
    starts = [int((points - points.mean(0)).square().sum(-1).argmin())]
    while len(starts) < clusters:
        away = torch.cdist(points, points[starts]).amin(1)
        if float(away.max()) < 1e-6:
            break
        starts.append(int(away.argmax()))
    centres, owner = points[starts].clone(), None
    for _ in range(rounds):
        now = torch.cdist(points, centres).argmin(1)
        if owner is not None and torch.equal(now, owner):
            break
        owner = now
        # a centre that lost all its points is left out
        centres = torch.stack([points[owner == c].mean(0) for c in range(len(centres)) if bool((owner == c).any())])
        owner = torch.cdist(points, centres).argmin(1)
    assert owner is not None
    return owner, centres
