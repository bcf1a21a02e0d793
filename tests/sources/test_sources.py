"""Where rows come from: draws, seeds, gates, mixtures, demonstrations and what collectors keep."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from tiny import tiny_policy
from trained import Parity, Scripted, trained_policy
from whet.errors import WhetError
from whet.records import Row, Sample, Segment
from whet.sampling.sampler import SamplingSettings
from whet.sources import (
    Collector,
    Demonstrations,
    Documents,
    DropDead,
    Gate,
    Mixture,
    Pairs,
    Part,
    Preferences,
    Rollouts,
    Scope,
    Uniform,
    ask,
    groups_of,
)
from whet.sources.collector import trim
from whet.sources.documents import shown
from whet.sources.gate import is_dead
from whet.sources.problems import epochs
from whet.sources.rollouts import unique
from whet.tasks import Problem, Response, Split, Task, Verdict, get_task


class Listed(Task):
    """A task that ends, as a file's does."""

    name = "listed"

    def __init__(self, n: int, **fields: Any) -> None:
        self._problems = [Problem(f"listed/{i}", f"question {i}", str(i % 2), **fields) for i in range(n)]

    def problems(self, split: Split, n: int | None = None, *, seed: int = 0, start: int = 0) -> list[Problem]:
        return self._problems[start : None if n is None else start + n]

    def provides(self) -> set[str]:
        return {"verifier", "demonstrations"}


def bound(source: Any, task: Task | None = None, seed: int = 1) -> Any:
    source.bind(task or get_task("parity"), seed)
    return source


# -- Uniform ---------------------------------------------------------------------------------------------------------
def test_each_problem_of_a_file_comes_once_an_epoch_in_a_new_order() -> None:
    source = bound(Uniform(), Listed(7))
    drawn = [p.id for n in (3, 5, 6) for p in source.draw(n)]
    first, second = drawn[:7], drawn[7:]
    assert sorted(first) == sorted(second) == [f"listed/{i}" for i in range(7)]
    assert first != second
    assert [p.id for p in bound(Uniform(), Listed(7)).draw(14)] == drawn, "how many are asked at once does not matter"
    assert [p.id for p in bound(Uniform(), Listed(7), seed=2).draw(14)] != drawn


def test_a_draw_goes_on_where_it_was_saved() -> None:
    source = bound(Uniform(), Listed(7))
    source.draw(5)
    state = source.state_dict()
    later = [p.id for p in source.draw(9)]
    other = bound(Uniform(), Listed(7))
    other.load_state_dict(state)
    assert [p.id for p in other.draw(9)] == later


def test_a_generated_task_never_repeats_and_differs_by_seed() -> None:
    drawn = [p.id for p in bound(Uniform()).draw(300)]
    assert len(set(drawn)) == 300
    assert not set(drawn) & {p.id for p in bound(Uniform(), seed=2).draw(300)}


def test_a_limit_keeps_to_the_first_problems() -> None:
    source = bound(Uniform(limit=5))
    drawn = [p.id for p in source.draw(15)]
    assert Counter(drawn) == dict.fromkeys(dict.fromkeys(drawn), 3) and len(set(drawn)) == 5
    assert [p.id for p in bound(Uniform(limit=99), Listed(4)).draw(4)] == [
        p.id for p in bound(Uniform(), Listed(4)).draw(4)
    ]
    with pytest.raises(WhetError, match="no problem in its train split"):
        bound(Uniform(), Listed(0))


def test_an_epoch_may_be_larger_than_what_is_cached() -> None:
    walk = epochs(3, 0, 30, seed=9)
    assert walk == [i for start in range(0, 30, 5) for i in epochs(3, start, 5, seed=9)]
    assert all(sorted(walk[i : i + 3]) == [0, 1, 2] for i in range(0, 30, 3))


# -- Mixture and Documents -------------------------------------------------------------------------------------------
def test_a_mixture_keeps_its_shares() -> None:
    parts = [Part(get_task("parity:level=1"), share=3), Part(get_task("parity:level=2"), share=1)]
    source = bound(Mixture(parts))
    drawn = source.draw(2000)
    share = sum(source.part_of(p) is parts[0] for p in drawn) / 2000
    assert abs(share - 0.75) < 0.04
    assert all(p.level == (1 if source.part_of(p) is parts[0] else 2) for p in drawn)
    assert len({p.id for p in drawn}) == 2000


def test_a_mixture_goes_on_where_it_was_saved() -> None:
    parts = [Part(get_task("parity:level=1")), Part(get_task("parity:level=2"), repeats=3)]
    source = bound(Mixture(parts))
    source.draw(11)
    other = bound(Mixture(parts))
    other.load_state_dict(source.state_dict())
    assert [p.id for p in other.draw(9)] == [p.id for p in source.draw(9)]


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_repeats_are_of_the_part_and_not_of_the_mixture(share: float) -> None:
    """Distinct problems = the part's draws / repeats, whatever its share."""
    part = Part(get_task("parity:level=1"), share=share, repeats=4)
    rest = [Part(get_task("parity:level=2"), share=1 - share)] if share < 1 else []
    source = bound(Mixture([part, *rest]))
    drawn = [p.id.split("/", 2)[2] for p in source.draw(4000) if source.part_of(p) is part]
    assert len(drawn) / len(set(drawn)) == pytest.approx(4, rel=0.15)


def test_a_file_in_a_mixture_comes_round_again() -> None:
    source = bound(Mixture([Part(Listed(5))]))
    assert len({p.prompt for p in source.draw(50)}) == 5


def test_a_mixture_refuses_what_it_cannot_make() -> None:
    with pytest.raises(WhetError, match="at least one part"):
        Mixture([])
    with pytest.raises(WhetError, match="'listed' writes no wrong rationales"):
        bound(Mixture([Part(Listed(5), reliability=0.5)]))
    with pytest.raises(WhetError, match="come from a Mixture"):
        Documents().rows(bound(Uniform()), 1, tiny_policy(), Scope(get_task("parity"), 0))


def documents(n: int, part: Part, weight: float = 0.1) -> tuple[list[Row], Any]:
    policy = tiny_policy(style="tags")
    source = bound(Mixture([part]))
    return Documents(weight).rows(source, n, policy, Scope(part.task, 3)), policy


def test_documents_show_the_share_of_steps_and_of_right_steps_that_was_asked_for() -> None:
    part = Part(get_task("parity"), worked=0.5, reliability=0.8)
    rows, policy = documents(1500, part)
    source = bound(Mixture([part]))
    worked = wrong = 0
    for row, problem in zip(rows, source.draw(1500), strict=True):
        sample = row["response"]
        response = policy.format.read(Sample([s for s in sample.segments if s.kind not in ("start", "question")]))
        assert bool(response.rationale) == any(s.kind == "rationale" for s in sample.segments)
        assert sample.ended and sample.segments[0].kind == "start" and not sample.segments[0].learn
        worked += bool(response.rationale)
        right = response.answer == problem.answer
        assert right or response.rationale, "an answer at once is always right"
        assert right == (response.rationale in ("", problem.rationale))
        wrong += not right
    assert worked / 1500 == pytest.approx(0.5, abs=0.04) and wrong / worked == pytest.approx(0.2, abs=0.04)


@pytest.mark.parametrize("weight", [0.1, 0.0])
def test_a_documents_prompt_is_learnt_with_its_weight(weight: float) -> None:
    (row,), _ = documents(1, Part(get_task("parity")), weight)
    sample = row["response"]
    sample.check()
    prompt = sample.span_mask("question", "start")
    assert sample.learn_mask.tolist() == [i > 0 and (weight > 0 or not p) for i, p in enumerate(prompt.tolist())]
    assert {round(w, 6) for w in sample.weights[sample.span_mask("question")].tolist()} == {weight}
    assert set(sample.weights[~prompt].tolist()) == {1.0}


# -- Demonstrations, Preferences, trim -------------------------------------------------------------------------------
def test_demonstrations_learn_the_response_and_nothing_else() -> None:
    policy, task = tiny_policy(style="tags"), get_task("parity")
    for rationale in (True, False):
        rows = Demonstrations(rationale).rows(bound(Uniform()), 3, policy, Scope(task, 0))
        for row, problem in zip(rows, bound(Uniform()).draw(3), strict=True):
            sample = row["response"]
            assert [s.kind for s in sample.segments if s.learn] == (
                ["rationale", "answer", "eos"] if rationale else ["answer", "eos"]
            )
            assert sample.prompt_length == len(policy.format.prompt(problem)[0].ids)
            assert sample.problem_id == sample.group_id == problem.id


def test_trim_cuts_from_the_end_and_the_end_token_first() -> None:
    def sample() -> Sample:
        return Sample([Segment("question", [5, 6]), Segment("answer", [7, 8, 9], learn=True),
                       Segment("eos", [1], learn=True)])  # fmt: skip

    assert trim(sample(), 6).ids == trim(sample(), 99).ids == [5, 6, 7, 8, 9, 1]
    assert trim(sample(), 6).ended and not trim(sample(), 5).ended
    assert [trim(sample(), n).ids for n in (5, 4, 2, 1)] == [[5, 6, 7, 8, 9], [5, 6, 7, 8], [5, 6], [5]]
    with pytest.raises(WhetError, match="no learnt token"):
        trim(sample(), 2).check()


def test_preferences_keep_prompt_and_end_on_both_sides() -> None:
    policy = tiny_policy(style="tags")
    source = bound(Uniform(), Listed(3, chosen="yes it is", rejected="no"))
    for row in Preferences().rows(source, 3, policy, Scope(Listed(3), 0)):
        chosen, rejected = row["chosen"], row["rejected"]
        assert chosen.segments[0].ids == rejected.segments[0].ids and chosen.ended and rejected.ended
        assert policy.format.decode(chosen.response) == "yes it is" and policy.format.decode(rejected.response) == "no"
    for pair in ({"chosen": "a", "rejected": "a"}, {"chosen": "a"}):
        with pytest.raises(WhetError, match="'listed/0' needs two different responses"):
            Preferences().rows(bound(Uniform(), Listed(1, **pair)), 1, policy, Scope(Listed(1), 0))


# -- sampling --------------------------------------------------------------------------------------------------------
HOT = SamplingSettings(max_new_tokens=8, temperature=1.5)


def test_an_answer_does_not_depend_on_what_else_is_asked() -> None:
    policy = trained_policy("gpt2", "plain")
    problems = get_task("parity").problems("train", 5)
    everyone = {
        p.id: [s.ids for s in found] for p, found in zip(problems, ask(policy, problems, HOT, 3, 7), strict=True)
    }
    for some in (problems[3:], problems[::-1], [problems[2]]):
        for problem, found in zip(some, ask(policy, some, HOT, 3, 7), strict=True):
            assert [s.ids for s in found] == everyone[problem.id]
    (fewer,) = ask(policy, [problems[1]], HOT, 2, 7)
    assert [s.ids for s in fewer] == everyone[problems[1].id][:2]
    assert any([s.ids for s in f] != everyone[p.id]
               for p, f in zip(problems, ask(policy, problems, HOT, 3, 8), strict=True))  # fmt: skip


def test_a_problem_that_is_drawn_twice_makes_two_groups_of_other_answers() -> None:
    policy, task = trained_policy("gpt2", "plain"), Listed(2)
    rows = Rollouts(3, 8, 1.5).rows(bound(Uniform(), task), 4, policy, Scope(task, 5))
    groups = groups_of(rows)
    assert [len(g) for g in groups] == [3, 3, 3, 3]
    same = [g for g in groups if g[0].problem_id == "listed/0"]
    assert len(same) == 2
    assert [r["response"].ids for r in same[0]] != [r["response"].ids for r in same[1]]


class Budgeted(Parity):
    def max_answer_tokens(self) -> int:
        return 17


COLLECTORS = {"rollouts": Rollouts(2), "given": Rollouts(2, 5), "pairs": Pairs(), "gold": Demonstrations()}


@pytest.mark.parametrize(("kind", "budget"), [("rollouts", 17), ("given", 5), ("pairs", 17), ("gold", 0)])
def test_the_generation_budget_is_the_tasks_unless_it_is_given(kind: str, budget: int) -> None:
    collect: Collector = COLLECTORS[kind]
    collect.bind(Budgeted())
    assert collect.budget == budget
    assert collect.temperature == 1.0


def test_a_group_has_at_least_one_answer() -> None:
    with pytest.raises(WhetError, match="at least 1, not 0"):
        Rollouts(0)
    assert Rollouts(1, 4, 0.0).temperature == 1.0, "greedy answers have no temperature to divide log-probs by"


# -- Pairs -----------------------------------------------------------------------------------------------------------
def scripted(answers: Sequence[Sequence[str]]) -> Scripted:
    """A policy that answers problem i with `answers[i]`."""
    return Scripted(lambda problem, prompt: answers[int(problem.rpartition("/")[2])])


class Judged(Listed):
    """`ok...` is right, `?...` cannot be judged, all else is wrong."""

    def verify(self, problem: Problem, response: Response) -> Verdict:
        text = response.answer or ""
        if text.startswith("?"):
            return Verdict(math.nan, "error")
        return Verdict(1.0, "ok") if text.startswith("ok") else Verdict(0.0, "wrong")


def texts(policy: Any, sample: Sample) -> str:
    return policy.format.read(sample).answer


def test_pairs_drop_what_teaches_nothing() -> None:
    """All right, all wrong, repeats of a response, what could not be judged, and what is above the cap."""
    answers = [
        ["ok a", "ok b", "ok c", "ok d"],
        ["no", "nope", "wrong", "bad"],
        ["ok", "ok", "no", "no"],
        ["ok 1", "ok 2", "no 1", "no 2"],
        ["? x", "ok", "? y", "? z"],
        ["ok 1", "? y", "no 1", "no 2"],
    ]
    policy, task = scripted(answers), Judged(6)
    collect = Pairs(problems=6, samples=4, cap=1)
    collect.bind(task)
    rows = collect.build(bound(Uniform(), task), policy, Scope(task, 0))  # type: ignore[arg-type]
    found = sorted((r.problem_id, texts(policy, r["chosen"]), texts(policy, r["rejected"])) for r in rows)
    assert found == [("listed/2", "ok", "no"), ("listed/3", "ok 1", "no 1"), ("listed/5", "ok 1", "no 1")]
    assert collect.counts == {"problems": 6, "with right and wrong answers": 3, "pairs": 3}
    assert all(r["chosen"].per_token == {} for r in rows)
    more = Pairs(problems=6, samples=4, cap=5)
    more.bind(task)
    assert len(more.build(bound(Uniform(), task), policy, Scope(task, 0))) == 4  # type: ignore[arg-type]


def test_a_short_file_is_asked_once_a_problem() -> None:
    policy, task = scripted([["ok", "no"]] * 3), Judged(3)
    collect = Pairs(problems=50, samples=2, cap=1)
    rows = collect.build(bound(Uniform(), task), policy, Scope(task, 0))  # type: ignore[arg-type]
    assert sorted(policy.asked) == ["listed/0", "listed/1", "listed/2"] and len(rows) == 3


def test_nothing_to_learn_from_is_said_with_its_counts() -> None:
    policy, task = scripted([["ok", "ok b"]] * 2), Judged(2)
    with pytest.raises(
        WhetError, match=r"Pairs found nothing to learn from \(problems 2, with right and wrong answers 0"
    ):
        Pairs(problems=2, samples=2).prepare(bound(Uniform(), task), policy, Scope(task, 0))  # type: ignore[arg-type]


def test_stored_rows_are_drawn_in_epochs_and_saved() -> None:
    policy, task = scripted([["ok", "no"]] * 5), Judged(5)

    def make() -> Pairs:
        return Pairs(problems=5, samples=2)

    collect, scope = make(), Scope(task, 11)
    source = bound(Uniform(), task)
    collect.prepare(source, policy, scope)  # type: ignore[arg-type]
    drawn = [r.problem_id for n in (2, 3, 5) for r in collect.rows(source, n, policy, scope)]  # type: ignore[arg-type]
    assert sorted(drawn[:5]) == sorted(drawn[5:]) == [f"listed/{i}" for i in range(5)]
    state = collect.state_dict()
    later = [r.problem_id for r in collect.rows(source, 7, policy, scope)]  # type: ignore[arg-type]
    other = make()
    other.load_state_dict(state)
    assert [r.problem_id for r in other.rows(source, 7, policy, Scope(task, 99))] == later  # type: ignore[arg-type]
    assert other.counts == collect.counts


def test_unique_looks_at_sampled_tokens_alone() -> None:
    def sample(prompt: int, *ids: int) -> Sample:
        return Sample([Segment("question", [prompt]), Segment("answer", list(ids), sampled=True)])

    kept = unique([sample(5, 7, 8), sample(6, 7, 8), sample(5, 7), sample(5, 8, 7)])
    assert [s.ids for s in kept] == [[5, 7, 8], [5, 7], [5, 8, 7]]


# -- gates -----------------------------------------------------------------------------------------------------------
def group(*accuracies: float, reward: Sequence[float] | None = None) -> list[Row]:
    rewards = reward or accuracies
    sample = Sample([Segment("question", [2]), Segment("answer", [3], learn=True)])
    return [Row({"response": sample}, {"accuracy": a, "reward": r}) for a, r in zip(accuracies, rewards, strict=True)]


def test_a_dead_group_is_told_by_accuracy_alone() -> None:
    nan = math.nan
    assert is_dead(group(1, 1, 1)) and is_dead(group(0, 0)) and not is_dead(group(1, 0))
    assert is_dead(group(1, 1, reward=[0.3, 0.9])) and not is_dead(group(1, 0, reward=[0.5, 0.5]))
    assert is_dead(group(nan, nan)) and is_dead(group(1, float("nan"), 1)) and not is_dead(group(nan, 1, 0))
    assert not is_dead(group(0.25, 0.5)), "a graded verdict has a baseline too"


def test_gates() -> None:
    assert Gate().admits(group(1, 1)) and not Gate().refill
    assert DropDead().admits(group(1, 0)) and not DropDead().admits(group(1, 1)) and DropDead().refill
    assert not DropDead(refill=False).refill
    grouped = groups_of([replace_group(r, g) for r, g in zip(group(1, 0, 1, 0), "abab", strict=True)])
    assert [[r.numbers["accuracy"] for r in g] for g in grouped] == [[1, 1], [0, 0]]


def replace_group(row: Row, name: str) -> Row:
    return Row({"response": replace(row["response"], group_id=name)}, row.numbers)


def test_sources_leave_the_global_generator_alone() -> None:
    """Nothing that a source does touches the global generators: a resume need not save them."""
    before = random.getstate()
    bound(Mixture([Part(get_task("parity"), worked=0.5)])).draw(5)
    bound(Uniform(), Listed(5)).draw(9)
    assert random.getstate() == before


def test_an_answer_without_steps_is_as_reliable_as_its_part() -> None:
    task = get_task("travel:level=1")
    problems = task.problems("train", 200, seed=0)

    def right(reliability: float) -> list[bool]:
        part = Part(task, reliability=reliability)
        return [shown(p, part, random.Random(i))[1] == p.answer for i, p in enumerate(problems)]

    assert all(right(1.0)) and not any(right(0.0))
    assert 60 < sum(right(0.4)) < 100
