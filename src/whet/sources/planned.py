"""Answers that plan first: rows of plans with their executions to learn (E2C, 2509.23946).

An execution is worth a plan only if it was written from it. So pairs are made in one order: a solution, its plan, and an
execution of that plan. The task's own are such a pair: its outline and its steps. A teacher distils a plan from the solution
and carries it out knowing the question and the plan alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from whet.errors import WhetError, unknown
from whet.models.policy import Policy
from whet.records import Row, Sample
from whet.seeds import rng_for, seed_for
from whet.sources.collector import Collector, Scope, trim
from whet.sources.guided import Guidances, guided_prompt
from whet.sources.problems import Problems
from whet.sources.rollouts import verdicts
from whet.tasks import Problem, Response
from whet.tasks.outline import outline

PAIRS = ("causal", "shuffled")
PARTS = ("all", "plan")


def planned(policy: Policy, problem: Problem, plan: str, execution: str, answer: str | None = None) -> Sample:
    """A problem with a response that plans first, learnt whole; the answer is by default the problem's own."""
    response = policy.format.planned(plan, execution, problem.answer or "" if answer is None else answer)
    return Sample(policy.format.prompt(problem) + response, problem.id, problem.id)


class Planned(Collector):
    """The task's own plans and executions; of a problem with several solutions one that is drawn anew at each visit, so that
    the plan alone says which one is carried out.

    Args:
        pairs: `causal`, or `shuffled`: each plan beside the execution of another problem's, which teaches to ignore it.
        learn: `all`, or the `plan` alone, the token that ends it among it (EF-SFT): how to carry one out is known already.
    """

    needs = frozenset({"rationales"})

    def __init__(self, pairs: str = "causal", learn: str = "all") -> None:
        for what, value, known in (("pairs of plan and execution", pairs, PAIRS), ("part to learn", learn, PARTS)):
            if value not in known:
                raise unknown(what, value, known)
        self.pairs, self.learn = pairs, learn

    def rows(self, problems: Problems, n: int, policy: Policy, scope: Scope) -> list[Row]:
        drawn = problems.draw(n)
        if self.pairs == "shuffled" and len({p.id for p in drawn}) < 2:
            raise WhetError("shuffled pairs take plans from other problems: use a batch of at least 2")
        scope.remember(drawn)
        drawn = [scope.task.another_way(p, rng_for(scope.seed, "way", p.id)) for p in drawn]
        others = drawn[1:] + drawn[:1] if self.pairs == "shuffled" else drawn
        samples = [planned(policy, p, outline(o), p.rationale) for p, o in zip(drawn, others, strict=True)]
        for segment in (s for sample in samples for s in sample.segments):
            segment.learn = segment.learn and (self.learn == "all" or segment.kind == self.learn)
        return [Row({"response": trim(sample, policy.max_length)}) for sample in samples]


class Distilled(Guidances):
    """Plans that a teacher distils from solutions, and executions that it writes from question and plan alone; plans that compute
    and executions with a wrong answer are dropped (the paper's algorithm 2).

    Args:
        rows: questions; 0 takes `4096` of a generated task and all of a file.
        teacher: who writes both.
    """

    needs = frozenset({"rationales", "verifier"})

    def asked(self, problem: Problem) -> str:
        return f"{problem.prompt}\n\nA solution:\n{problem.rationale}\n{problem.answer}\n\nWrite the steps behind it. Do not compute."

    def samples(self, kept: Sequence[tuple[Problem, str]], policy: Policy, scope: Scope) -> list[Sample]:
        assert self.teacher is not None, "a teacher writes both"
        asked = [p for p, _ in kept]
        texts = [f"{guided_prompt(p, plan).prompt}\nEnd with the answer behind 'Answer:'." for p, plan in kept]
        replies = self.teacher.about(asked, texts, seed_for(scope.seed, "execute"), policy.meter)
        cut = [reply.rpartition("Answer:") for reply in replies]
        read = [Response("".join(parts), parts[2].strip(), parts[0].strip()) for parts in cut]
        judged = verdicts(scope.task, list(zip(asked, read, strict=True)), policy)
        return [planned(policy, p, plan, r.rationale, r.answer)
                for (p, plan), r, verdict in zip(kept, read, judged, strict=True) if r.rationale and verdict.value == 1.0]  # fmt: skip
