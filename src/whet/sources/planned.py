"""Answers that plan first: rows of plans with their executions to learn, and groups that branch below a plan (E2C, 2509.23946).

An execution is worth a plan only if it was written from it. So pairs are made in one order: a solution, its plan, and an
execution of that plan. The task's own are such a pair: its outline and its steps. A teacher distils a plan from the solution
and carries it out knowing the question and the plan alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from whet.errors import WhetError, unknown
from whet.models.policy import Policy
from whet.records import Row, Sample
from whet.sampling.sampler import Request, SamplingSettings
from whet.seeds import rng_for, seed_for
from whet.sources.collector import Collector, Scope, Stored, trim
from whet.sources.plans import Member, Plan
from whet.sources.problems import Problems
from whet.sources.rollouts import distinct, verdicts
from whet.sources.teachers import Question, Teacher, user
from whet.tasks import Problem, Response, Task
from whet.tasks.outline import outline, unnumbered

PAIRS = ("causal", "shuffled")
PARTS = ("all", "plan")
DISTIL = """{question}

A solution:
{solution}

Write the plan behind it: short numbered steps that say what to do, without any results."""
EXECUTE = """{question}

Follow this plan strictly, step by step:
{plan}

End with the answer behind "Answer:"."""


def planned(
    policy: Policy, problem: Problem, plan: str, execution: str, answer: str | None = None, learn: str = "all"
) -> Sample:  # fmt: skip
    """A problem with a response that plans first.

    Args:
        answer: by default the problem's own.
        learn: `all` of the response, or its `plan` alone, the token that ends it among it.
    """
    response = policy.format.planned(plan, execution, problem.answer or "" if answer is None else answer)
    for segment in response:
        segment.learn = learn == "all" or segment.kind == "plan"
    return trim(Sample(policy.format.prompt(problem) + response, problem.id, problem.id), policy.max_length)


class Planned(Collector):
    """The task's own plans and executions; of a problem with several solutions one that is drawn anew at each visit, so that
    the plan alone says which one is carried out.

    Args:
        pairs: `causal`, or `shuffled`: each plan beside the execution of another problem's, which teaches to ignore it.
        learn: `all`, or the `plan` alone (EF-SFT): how to carry one out is known already.
        original: with it a share `keep` of each step's rows is from this task, where plans and executions were learnt, and
            learnt whole: so that they are not forgotten.
    """

    needs = frozenset({"rationales"})

    def __init__(
        self, pairs: str = "causal", learn: str = "all", original: Task | None = None, keep: float = 0.0
    ) -> None:  # fmt: skip
        if pairs not in PAIRS:
            raise unknown("pairs of plan and execution", pairs, PAIRS)
        if learn not in PARTS:
            raise unknown("part to learn", learn, PARTS)
        if not 0 <= keep < 1 or bool(keep) != (original is not None):
            raise WhetError(f"keep is the share of rows from the original task, from 0 to below 1, not {keep:g}")
        self.pairs, self.learn, self.original, self.keep = pairs, learn, original, keep
        self.cursor = 0

    def rows(self, problems: Problems, n: int, policy: Policy, scope: Scope) -> list[Row]:
        kept = round(n * self.keep)
        drawn = problems.draw(n - kept)
        if self.pairs == "shuffled" and len({p.id for p in drawn}) < 2:
            raise WhetError("shuffled pairs take plans from other problems: use a batch of at least 2")
        scope.remember(drawn)
        drawn = [scope.task.another_way(p, rng_for(scope.seed, "way", p.id)) for p in drawn]
        others = drawn[1:] + drawn[:1] if self.pairs == "shuffled" else drawn
        samples = [planned(policy, p, outline(other), p.rationale, learn=self.learn)
                   for p, other in zip(drawn, others, strict=True)]  # fmt: skip
        if self.original is not None:
            known = self.original.problems("train", kept, seed=0, start=self.cursor)
            known = [self.original.another_way(p, rng_for(scope.seed, "way", p.id)) for p in known]
            self.cursor += kept
            samples += [planned(policy, p, outline(p), p.rationale) for p in known]
        return [Row({"response": sample}) for sample in samples]

    def state_dict(self) -> dict[str, Any]:
        return {"cursor": self.cursor}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.cursor = int(state["cursor"])


class Distilled(Stored):
    """Plans that a teacher distils from solutions, and executions that it writes from question and plan alone; those with a
    wrong answer are dropped (the paper's algorithm 2).

    Args:
        teacher: who writes both.
        rows: questions; 0 takes 512 of a generated task and all of a file.
    """

    needs = frozenset({"rationales", "verifier"})

    def __init__(self, teacher: Teacher, rows: int = 0) -> None:
        super().__init__()
        self.teacher, self.n = teacher, rows or 512

    def build(self, problems: Problems, policy: Policy, scope: Scope) -> list[Row]:
        drawn = distinct(problems.draw(self.n))
        asked = [user(DISTIL.format(question=p.prompt, solution=f"{p.rationale}\n{p.answer}")) for p in drawn]
        plans = ["\n".join(unnumbered(line) for line in text.splitlines() if line.strip())
                 for text in self._ask(drawn, asked, scope.seed)]  # fmt: skip
        asked = [user(EXECUTE.format(question=p.prompt, plan=plan)) for p, plan in zip(drawn, plans, strict=True)]
        executed = [(text.rpartition("Answer:")[0].strip(), text.rpartition("Answer:")[2].strip())
                    for text in self._ask(drawn, asked, seed_for(scope.seed, "execute"))]  # fmt: skip
        judged = verdicts(scope.task, [(p, Response(f"{e}\nAnswer: {a}", a, e))
                                       for p, (e, a) in zip(drawn, executed, strict=True)], policy)  # fmt: skip
        rows = [Row({"response": planned(policy, p, plan, execution, answer)})
                for p, plan, (execution, answer), verdict in zip(drawn, plans, executed, judged, strict=True)
                if plan and execution and verdict.value == 1.0]  # fmt: skip
        self.counts = {"questions": len(drawn), "kept": len(rows), "dropped": len(drawn) - len(rows)}
        return rows

    def _ask(self, drawn: Sequence[Problem], asked: Sequence[Any], seed: int) -> list[str]:
        return self.teacher.reply([Question(m, p, seed=seed) for m, p in zip(asked, drawn, strict=True)])


def draw_plans(
    policy: Policy, problems: Sequence[Problem], n: int, settings: SamplingSettings, seed: int
) -> list[list[Member]]:  # fmt: skip
    """`n` plans for each problem, as what answers begin with. A draw stops where the plan ends; one that ends without is an
    answer without a plan, and whole if it came to its end."""
    stopping = replace(settings, stop=(policy.format.plan_end,))
    requests: list[Request] = []
    asked: Counter[str] = Counter()
    for p in problems:  # as in `ask`: one that is asked twice gets 2n plans
        seeds = [seed_for(seed, "plan", p.id, asked[p.id] + i) for i in range(n)]
        asked[p.id] += n
        requests.append(Request(policy.format.prompt(p), seeds, stopping, p.id, p.id))
    return [[_begun(sample) for sample in samples] for samples in policy.sample(requests)]


def _begun(sample: Sample) -> Member:
    start = sample.prompt_length
    segments = tuple(s for s in sample.segments if s.sampled)
    return Member(segments, {name: values[start:] for name, values in sample.per_token.items()})


class Branches(Plan):
    """Groups that branch: `plans` plans, and below each of them `executions` answers that carry it out.

    Args:
        budget: most tokens of a plan.
    """

    def __init__(self, plans: int, executions: int, budget: int = 128) -> None:
        super().__init__(plans * executions)
        self.plans, self.executions, self.budget = plans, executions, budget

    def members(
        self, problems: Sequence[Problem], policy: Policy, settings: SamplingSettings, scope: Scope
    ) -> list[list[Member]]:  # fmt: skip
        short = replace(settings, max_new_tokens=min(self.budget, settings.max_new_tokens - 1))
        drawn = draw_plans(policy, problems, self.plans, short, scope.seed)
        return [[member for member in group for _ in range(self.executions)] for group in drawn]


def as_plan(policy: Policy, plan: str) -> Member:
    """A plan in words as what an answer begins with."""
    return Member((replace(policy.format.planned(plan, "", "")[0], learn=False),))
