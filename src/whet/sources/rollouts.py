"""Collectors that ask the policy: roll-outs in groups, preference pairs, and STaR's bootstrapped rationales."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from whet.errors import WhetError
from whet.models.policy import Policy
from whet.records import Row, Sample
from whet.sampling.sampler import Request, SamplingSettings
from whet.seeds import seed_for
from whet.sources.collector import Collector, Scope, Stored, trim
from whet.sources.gate import groups_of
from whet.sources.plans import Plan, ask_members
from whet.sources.problems import Problems
from whet.sources.temperature import EntropyTarget, mean_entropy
from whet.tasks import Problem, Response, Task, Verdict


class Rollouts(Collector):
    """`group` sampled answers a problem.

    Args:
        group: answers a problem; they share a `group_id` and the prompt is prefilled once.
        max_new_tokens: generation budget; 0 asks the task, and below 1 is a share of what it says.
        temperature: the one temperature of sampler, old and reference log-probs; an `EntropyTarget` chooses it when the stage
            is entered, on the problems that come next, and logs it.
        gold: whether the first row of each group also holds the problem's gold response, as `gold`.
        plan: how the answers of a group begin, and how many they are; None is `group` free ones. The number `given_tokens` of
            a row says how many tokens its answer began with that no policy drew.
    """

    needs = frozenset({"verifier"})
    settings: SamplingSettings

    def __init__(
        self, group: int = 8, max_new_tokens: float = 0, temperature: float | EntropyTarget = 1.0, *, gold: bool = False,
        plan: Plan | None = None,
    ) -> None:  # fmt: skip
        self.plan = plan or Plan(group)
        self.group, self.gold = self.plan.size, gold
        self.needs = frozenset({"verifier", *self.plan.needs, *(["demonstrations"] if gold else [])})
        if max_new_tokens >= 1 and max_new_tokens != int(max_new_tokens):
            raise WhetError(
                f"max_new_tokens is a whole number, or a share of the task's below 1, not {max_new_tokens:g}"
            )
        self.own_budget = max_new_tokens >= 1
        self.share = max_new_tokens if 0 < max_new_tokens < 1 else 1.0
        budget = int(max_new_tokens) if self.own_budget or max_new_tokens < 0 else 1
        self.aim = temperature if isinstance(temperature, EntropyTarget) else None
        self.settings = SamplingSettings(
            budget, temperature if isinstance(temperature, int | float) else temperature.value
        )

    def bind(self, task: Task) -> None:
        super().bind(task)
        if not self.own_budget:
            self.settings = replace(self.settings, max_new_tokens=max(1, round(self.share * self.budget)))

    def prepare(self, problems: Problems, policy: Policy, scope: Scope) -> None:
        if self.aim is None:
            return
        before = problems.state_dict()
        drawn = problems.draw(self.aim.problems)
        problems.load_state_dict(before)  # they are drawn again, to learn from
        samples, seed = self.aim.samples, seed_for(scope.seed, "temperature")

        def measure(temperature: float) -> float:
            answers = ask(policy, drawn, replace(self.settings, temperature=temperature), samples, seed)
            return mean_entropy(sample for own in answers for sample in own)

        self._heat(self.aim.choose(measure))

    def _heat(self, temperature: float) -> None:
        self.settings = replace(self.settings, temperature=temperature)

    def rows(self, problems: Problems, n: int, policy: Policy, scope: Scope) -> list[Row]:
        if self.aim is not None:  # before all answers of a step, which have one temperature
            self._heat(self.aim.step())
        drawn = problems.draw(n)
        scope.remember(drawn)
        # a problem drawn twice in one step makes two groups
        members = self.plan.members(drawn, policy, self.settings, scope)
        answers = ask_members(policy, drawn, members, self.settings, scope.seed)
        rows = [
            [Row({"response": replace(sample, group_id=f"{place}/{problem.id}")}) for sample in samples]
            for place, (problem, samples) in enumerate(zip(drawn, answers, strict=True))
        ]
        for group, own in zip(rows, members, strict=True):
            for row, member in zip(group, own, strict=True):
                if given := sum(len(s.ids) for s in member.prefix if not s.sampled):
                    row.numbers["given_tokens"] = float(given)
        for problem, group in zip(drawn, rows if self.gold else (), strict=self.gold):
            group[0].samples["gold"] = trim(policy.format.demonstration(problem), policy.max_length)
        if self.aim is not None:
            self.aim.saw(mean_entropy(row["response"] for group in rows for row in group))
        return [row for group in rows for row in group]

    def report(self) -> Mapping[str, float]:
        return {} if self.aim is None else {"temperature": self.temperature}

    def state_dict(self) -> dict[str, Any]:
        return {} if self.aim is None else self.aim.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self.aim is not None:
            self.aim.load_state_dict(state)
            self._heat(self.aim.value)


class WithGreedy(Rollouts):
    """The same, and as the last row of each group the greedy answer (number `greedy`): the baseline of `remax`, which is
    scored and not learnt."""

    def rows(self, problems: Problems, n: int, policy: Policy, scope: Scope) -> list[Row]:
        found: list[Row] = []
        groups = groups_of(super().rows(problems, n, policy, scope))
        asked = distinct([scope.known[group[0].problem_id] for group in groups])
        answers = ask(policy, asked, replace(self.settings, temperature=0.0), 1, scope.seed)
        greedy = {problem.id: sample for problem, (sample,) in zip(asked, answers, strict=True)}
        for group in groups:
            last = replace(greedy[group[0].problem_id].copy(), group_id=group[0].group_id, rollout_id=len(group))
            found += [*group, Row({"response": last}, {"greedy": 1.0})]
        return found


class Pairs(Stored):
    """Preference pairs: a right and a wrong answer of the stage's entry policy to the same problem.

    Dropped: problems whose answers are all right or all wrong, and repeats of a problem or a response. At most `cap`
    pairs a problem, or easy problems would dominate.
    """

    needs = frozenset({"verifier"})
    settings: SamplingSettings

    def __init__(self, problems: int = 256, samples: int = 8, temperature: float = 1.0, cap: int = 2) -> None:
        super().__init__()
        self.n, self.samples, self.cap = problems, samples, cap
        self.settings = SamplingSettings(max_new_tokens=1, temperature=temperature)

    def build(self, problems: Problems, policy: Policy, scope: Scope) -> list[Row]:
        drawn = distinct(problems.draw(self.n))
        scope.remember(drawn)
        rows: list[Row] = []
        mixed = 0
        answers = [unique(samples) for samples in ask(policy, drawn, self.settings, self.samples, scope.seed)]
        for samples, verdicts in zip(answers, judge_all(scope.task, drawn, policy, answers), strict=True):
            right = [s for s, verdict in zip(samples, verdicts, strict=True) if verdict.value == 1.0]
            # NaN, which could not be judged, is neither
            wrong = [s for s, verdict in zip(samples, verdicts, strict=True) if verdict.value < 1.0]
            mixed += bool(right and wrong)
            for chosen, rejected in list(zip(right, wrong, strict=False))[: self.cap]:
                rows.append(Row({"chosen": learnable(chosen), "rejected": learnable(rejected)}))
        self.counts = {"problems": len(drawn), "with right and wrong answers": mixed, "pairs": len(rows)}
        return rows


class Preferences(Collector):
    """Given pairs: rows of a preference file."""

    needs = frozenset({"preferences"})

    def rows(self, problems: Problems, n: int, policy: Policy, scope: Scope) -> list[Row]:
        rows = []
        for problem in problems.draw(n):
            if problem.chosen is None or problem.rejected is None or problem.chosen == problem.rejected:
                raise WhetError(f"problem '{problem.id}' needs two different responses, chosen and rejected")
            pair = {
                name: trim(
                    Sample(
                        policy.format.prompt(problem) + policy.format.response("", text, tags=False),
                        problem_id=problem.id,
                        group_id=problem.id,
                    ),
                    policy.max_length,
                )
                for name, text in (("chosen", problem.chosen), ("rejected", problem.rejected))
            }
            rows.append(Row(dict(pair)))
        return rows


class Bootstrapped(Stored):
    """STaR (2203.14465, section 3): the policy's own rationales whose answer checks out; failures are asked again with
    the answer as a hint, and what then succeeds is kept *under the un-hinted question*.

    Args:
        problems: questions a round.
        samples: answers a question (1 in STaR; more is rejection-sampling fine-tuning).
        temperature: near 0 in STaR.
        rationalize: whether failures are asked again with the hint.
        cap: at most so many kept answers a question, duplicates dropped first.
        gold: whether the gold response of every question is learnt beside them.
    """

    needs = frozenset({"verifier"})
    settings: SamplingSettings

    def __init__(
        self, problems: int = 512, samples: int = 1, temperature: float = 0.0, rationalize: bool = True, cap: int = 4,
        *, gold: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.n, self.samples, self.rationalize, self.cap, self.gold = problems, samples, rationalize, cap, gold
        if gold:
            self.needs = frozenset({"verifier", "demonstrations"})
        self.settings = SamplingSettings(max_new_tokens=1, temperature=temperature)

    def build(self, problems: Problems, policy: Policy, scope: Scope) -> list[Row]:
        drawn = distinct(problems.draw(self.n))
        scope.remember(drawn)
        solved = self._solve(drawn, policy, scope, hinted=False)
        failed = [p for p in drawn if p.id not in solved] if self.rationalize else []
        rescued = self._solve(failed, policy, scope, hinted=True) if failed else {}
        rows = [Row({"response": s}) for p in drawn for s in solved.get(p.id, rescued.get(p.id, []))]
        self.counts = {"questions": len(drawn), "solved": len(solved), "rationalized": len(rescued),
                       "absent": len(drawn) - len(solved) - len(rescued), "kept": len(rows)}  # fmt: skip
        given = [policy.format.demonstration(p) for p in drawn if self.gold]
        return rows + [Row({"response": trim(sample, policy.max_length)}) for sample in given]

    def _solve(
        self, drawn: Sequence[Problem], policy: Policy, scope: Scope, *, hinted: bool
    ) -> dict[str, list[Sample]]:
        kept: dict[str, list[Sample]] = {}
        hints = [hint(p) if hinted else None for p in drawn]
        answers = ask(policy, drawn, self.settings, self.samples, seed_for(scope.seed, "hinted" if hinted else "free"),
                      hints)  # fmt: skip
        answers = [unique(samples) for samples in answers]
        judged = judge_all(scope.task, drawn, policy, answers)
        for problem, samples, verdicts in zip(drawn, answers, judged, strict=True):
            right = [s for s, verdict in zip(samples, verdicts, strict=True) if verdict.value == 1.0]
            right = [s for s in right if s.ended][: self.cap]
            if right:
                kept[problem.id] = [self._unhinted(s, problem, policy) for s in right]
        return kept

    @staticmethod
    def _unhinted(sample: Sample, problem: Problem, policy: Policy) -> Sample:
        given = [s for s in sample.segments if s.sampled]
        return Sample(policy.format.prompt(problem) + given, problem_id=problem.id, group_id=problem.id)


def hint(problem: Problem) -> str:
    """The reference answer in brackets behind the question, as STaR does for word problems."""
    return f" ({problem.answer})"


def ask(
    policy: Policy, problems: Sequence[Problem], settings: SamplingSettings, n: int, seed: int,
    hints: Sequence[str | None] | None = None,
) -> list[list[Sample]]:  # fmt: skip
    """`n` answers to each problem.

    An answer's seed depends on the call's seed, the problem and the answer's number alone (a problem that is asked
    twice is answered 2n times), so that it does not matter what else is asked.
    """
    requests = []
    asked: Counter[str] = Counter()
    for place, problem in enumerate(problems):
        segments = policy.format.prompt(problem, hints[place] if hints else None)
        seeds = [seed_for(seed, problem.id, asked[problem.id] + i) for i in range(n)]
        asked[problem.id] += n
        requests.append(Request(segments, seeds, settings, problem.id, problem.id))
    return policy.sample(requests)


def judge(task: Task, problem: Problem, policy: Policy, sample: Sample) -> Verdict:
    """The task's verdict on one sampled answer; where there are many, `judge_all` is faster."""
    policy.meter.verifier_calls += 1
    return policy.ranks.broadcast(task.verify(problem, policy.format.read(sample)))


def judge_all(
    task: Task, problems: Sequence[Problem], policy: Policy, answers: Sequence[Sequence[Sample]]
) -> list[list[Verdict]]:
    """The task's verdicts on the sampled answers to each problem."""
    pairs = zip(problems, answers, strict=True)
    found = iter(verdicts(task, [(p, policy.format.read(s)) for p, samples in pairs for s in samples], policy))
    return [[next(found) for _ in samples] for samples in answers]


def verdicts(task: Task, asked: Sequence[tuple[Problem, Response]], policy: Policy) -> list[Verdict]:
    """The task's verdicts on responses, in order; each rank gives its share of them."""

    def own(share: Sequence[tuple[Problem, Response]]) -> list[Verdict]:
        policy.meter.verifier_calls += len(share)
        return task.verify_all(share)

    return policy.ranks.map(own, asked)


def distinct(problems: Sequence[Problem]) -> list[Problem]:
    """Each problem once: a file shorter than the draw comes round again."""
    return list({p.id: p for p in problems}.values())


def unique(samples: Sequence[Sample]) -> list[Sample]:
    """The first of each distinct response."""
    seen: dict[tuple[int, ...], Sample] = {}
    for sample in samples:
        seen.setdefault(tuple(sample.sampled), sample)
    return list(seen.values())


def learnable(sample: Sample) -> Sample:
    """A copy without the sampler's tables, to be kept and stored."""
    kept = sample.copy()
    kept.per_token = {}
    return kept
