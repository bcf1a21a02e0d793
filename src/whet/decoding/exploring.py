"""Explore, then execute (E2C, 2509.23946): draw many cheap plans, carry out few.

    what is executed                                                                    how the answer is found
    every plan (one plan: E2C-RP; with a temperature: self-consistency)                 majority
    of k-means over the plans' embeddings the plan nearest each centre, if `clusters`   majority, weighted by cluster size

Plans are drawn at a temperature, executions are greedy unless told otherwise. Every token that is drawn counts: those of all
plans and of all executions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from whet.errors import WhetError
from whet.models.embedding import Encoder, get_encoder
from whet.models.policy import Policy
from whet.records import Sample
from whet.sampling.sampler import SamplingSettings
from whet.seeds import seed_for
from whet.sources import Answering, Member, ask, ask_members, judge_all
from whet.sources.answering import behind
from whet.tasks import Problem, Task
from whet.tasks.outline import outline, rotated, titles

ROUNDS = 25  # of k-means


class Following(Answering):
    """The policy answers by itself; how well its executions follow their plans is measured besides."""

    def measure(self, policy: Policy, task: Task, problems: Sequence[Problem]) -> Mapping[str, float]:
        """With each problem's own plan turned round (its first step last) in place of the policy's: `adherence`, the share of
        executions that take its steps one by one; `habit`, those of the plan as it was; and `accuracy_replaced`."""
        known = [p for p in problems if rotated(outline(p)) != outline(p)]
        if not known:
            return {}
        turned = [rotated(outline(p)) for p in known]
        settings = SamplingSettings(task.max_answer_tokens() + 64, temperature=0.0)
        answers = ask_members(policy, known, [[as_plan(policy, plan)] for plan in turned], settings, 0)
        done = [titles(policy.format.read(sample).execution) for (sample,) in answers]
        right = [verdict.value == 1.0 for (verdict,) in judge_all(task, known, policy, answers)]
        followed = [titles(plan) == steps for plan, steps in zip(turned, done, strict=True)]
        ignored = [titles(outline(p)) == steps for p, steps in zip(known, done, strict=True)]
        shares = {"adherence": followed, "habit": ignored, "accuracy_replaced": right}
        return {name: sum(each) / len(known) for name, each in shares.items()}


@dataclass
class Explore(Following):
    """Plans first, then executions.

    Attributes:
        plans: drawn for each answer (K).
        clusters: plans that are carried out, at most (M); 0 carries out all.
        temperature: of plans.
        execution_temperature: of executions; 0 is greedy.
        budget: most tokens of a plan.
    """

    plans: int = 8
    clusters: int = 3
    temperature: float = 0.9
    execution_temperature: float = 0.0
    budget: int = 128

    def __post_init__(self) -> None:
        if min(self.plans, self.budget) < 1 or self.clusters < 0:
            raise WhetError("explore: plans and the budget of a plan must be at least 1, and clusters at least 0")
        # tokens of plans and of executions that a problem's last greedy answer took
        self._drawn: dict[str, tuple[int, int]] = {}

    def ask(
        self, policy: Policy, problems: Sequence[Problem], settings: SamplingSettings, n: int, seed: int
    ) -> list[list[Sample]]:
        """`n` answers to each problem, each from plans of its own. The budget of `settings` is an execution's."""
        asked = [p for p in problems for _ in range(n)]
        drawn = draw_plans(policy, asked, self.plans, SamplingSettings(self.budget, self.temperature), seed)
        chosen = [dict.fromkeys(range(self.plans), 1)] * len(asked)
        if self.clusters:
            encode = get_encoder("policy", policy)
            chosen = [representatives(embed(encode, policy, group), self.clusters) for group in drawn]
        begun = [[group[i] for i in places] for group, places in zip(drawn, chosen, strict=True)]
        # a plan's tokens are allowed for: an execution has its own budget
        room, heat = settings.max_new_tokens + self.budget, self.execution_temperature
        executed = ask_members(policy, asked, begun, replace(settings, max_new_tokens=room, temperature=heat), seed)
        answers = [joined(policy, *found) for found in zip(drawn, chosen, executed, strict=True)]
        if settings.temperature == 0:
            for problem, group, answer in zip(asked, drawn, answers, strict=True):
                tokens = sum(member.length for member in group)
                self._drawn[problem.id] = tokens, len(answer.sampled) - tokens
        return [[replace(answers[i * n + j], rollout_id=j) for j in range(n)] for i in range(len(problems))]

    def measure(self, policy: Policy, task: Task, problems: Sequence[Problem]) -> Mapping[str, float]:
        """Besides: tokens of plans and of executions for each answer."""
        if any(p.id not in self._drawn for p in problems):
            self.ask(policy, problems, SamplingSettings(task.max_answer_tokens(), temperature=0.0), 1, 0)
        plans, executions = torch.tensor([self._drawn[p.id] for p in problems]).double().mean(0).tolist()
        return {**super().measure(policy, task, problems), "plan_tokens": plans, "execution_tokens": executions}


def as_plan(policy: Policy, plan: str) -> Member:
    """A plan in words as what an answer begins with."""
    return Member((replace(policy.format.planned(plan, "", "")[0], learn=False),))


def draw_plans(
    policy: Policy, problems: Sequence[Problem], n: int, settings: SamplingSettings, seed: int
) -> list[list[Member]]:  # fmt: skip
    """`n` plans for each problem, as what answers begin with. A draw stops where the plan ends; one that ends without is an
    answer without a plan, and whole if it came to its end."""
    stopping = replace(settings, stop=(policy.format.plan_end,))
    drawn = ask(policy, problems, stopping, n, seed_for(seed, "plan"))
    return [[Member(tuple(s for s in sample.segments if s.sampled)) for sample in samples] for samples in drawn]


def joined(policy: Policy, drawn: Sequence[Member], sizes: Mapping[int, int], answers: Sequence[Sample]) -> Sample:
    """Of the answers that begin with the plans at `sizes`, the one that wins their vote; before it stands what was
    drawn besides."""
    won = weighted_vote([policy.format.read(sample).answer for sample in answers], list(sizes.values()))
    kept = list(sizes)[won]
    spent = [i for j, member in enumerate(drawn) if j != kept for s in member.prefix for i in s.ids]
    spent += [
        i for j, answer in zip(sizes, answers, strict=True) if j != kept for i in answer.sampled[drawn[j].length :]
    ]
    return behind(answers[won], spent)


def weighted_vote(labels: Sequence[str | None], weights: Sequence[int]) -> int:
    """The place of the answer that stands for the label with the greatest weight: its heaviest, of equal ones the first. What
    cannot be read votes for nothing."""
    totals: Counter[str | None] = Counter()
    for label, weight in zip(labels, weights, strict=True):
        totals[label] += weight if label is not None else 0
    won = max(totals, key=totals.__getitem__)
    return max((i for i, label in enumerate(labels) if label == won), key=weights.__getitem__)


def embed(encode: Encoder, policy: Policy, plans: Sequence[Member]) -> Tensor:
    """(plans, d) vectors; equal plans have equal ones, to the bit."""
    texts = [policy.format.read(Sample(list(plan.prefix))).text for plan in plans]
    distinct = list(dict.fromkeys(texts))
    return torch.from_numpy(encode(distinct)).double()[[distinct.index(text) for text in texts]]


def representatives(points: Tensor, clusters: int) -> dict[int, int]:
    """{place of the point nearest each centre: points of its cluster} of k-means, in the order of the points.

    Nothing is drawn: the first centre is the first point, each further one the point farthest from those before. Fewer
    distinct points than clusters make fewer clusters.
    """
    centres = points[:1]
    while len(centres) < min(clusters, len(points.unique(dim=0))):
        centres = torch.cat([centres, points[[int(torch.cdist(points, centres).amin(1).argmax())]]])
    for _ in range(ROUNDS):
        owner = torch.cdist(points, centres).argmin(1)
        centres = torch.stack([points[owner == c].mean(0) for c in owner.unique()])
    away = torch.cdist(points, centres)
    owner = away.argmin(1)
    inside = owner[:, None] == torch.arange(len(centres))
    nearest = away.where(inside, torch.inf).argmin(0)
    return {place: size for place, size in sorted(zip(nearest.tolist(), inside.sum(0).tolist(), strict=True)) if size}
