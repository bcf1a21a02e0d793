"""STaR's card: its six tests, by number, and rejection sampling as its switches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from trained import Parity, Scripted, trained_policy
from whet.errors import WhetError
from whet.models.policy import Policy
from whet.recipes.recipe import get_recipe
from whet.records import Row, Sample
from whet.sampling.sampler import SamplingSettings
from whet.sources import Bootstrapped, Problems, Scope, Stored, Uniform, ask, judge
from whet.sources.rollouts import hint
from whet.tasks import Problem, Response, Verdict, get_task
from whet.training.fit import Fit, Options
from whet.training.learner import Learner
from whet.training.rounds import growing
from whet.training.stage import Stage, Update

GREEDY = SamplingSettings(max_new_tokens=14, temperature=0.0)


def stages(**arguments: Any) -> list[Stage]:
    settings: dict[str, Any] = {"number": 2, "steps": 3, "growth": 1.0, "batch": 4, "questions": 24}
    return get_recipe("star")(**{**settings, **arguments}).stages


class Lenient(Parity):
    """Accepts everything."""

    def verify(self, problem: Problem, response: Response) -> Verdict:
        return Verdict(1.0, "ok")


def questions(n: int, task: Any = None, seed: int = 0) -> list[Problem]:
    """The questions of a round, as the run with this seed draws them."""
    from whet.seeds import seed_for

    source = Uniform(limit=n)
    source.bind(task or get_task("parity"), seed_for(seed, "problems"))
    return source.draw(n)


def greedy_rows(policy: Policy, problems: Sequence[Problem]) -> list[Row]:
    """The policy's own greedy answers that ended, to be learnt."""
    answers = [samples[0] for samples in ask(policy, problems, GREEDY, 1, 0)]
    kept = [(p, s) for p, s in zip(problems, answers, strict=True) if s.ended]
    return [
        Row({"response": Sample(policy.format.prompt(p) + [x for x in s.segments if x.sampled], p.id, p.id)})
        for p, s in kept
    ]


# -- 1 ---------------------------------------------------------------------------------------------------------------
class Given(Stored):
    """The policy's own outputs, made without STaR."""

    def build(self, problems: Problems, policy: Policy, scope: Scope) -> list[Row]:
        return greedy_rows(policy, problems.draw(24))


def test_1_with_a_verifier_that_accepts_all_it_is_sft_on_the_models_own_outputs() -> None:
    ours = Fit(trained_policy(), stages(number=1, rationalize=False), Lenient(), options=Options(seed=0))
    ours.run()
    (stage,) = stages(number=1)
    stage.collect = Given()
    theirs = Fit(trained_policy(), [stage], Lenient(), options=Options(seed=0))
    theirs.run()
    a, b = ours.policy.model.state_dict(), theirs.policy.model.state_dict()
    assert all(torch.equal(a[n], b[n]) for n in a)
    start = trained_policy().model.state_dict()
    assert any(not torch.equal(a[n], start[n]) for n in a)


# -- 2, 3 ------------------------------------------------------------------------------------------------------------
def built(policy: Any, n: int = 24, task: Any = None, **settings: Any) -> tuple[list[Row], Bootstrapped]:
    task = task or get_task("parity")
    collect = Bootstrapped(n, **settings)
    collect.bind(task)
    source = Uniform(limit=n)
    source.bind(task, 5)
    return collect.build(source, policy, Scope(task, 3)), collect


def test_2_without_rationalisation_it_keeps_exactly_what_is_right_greedily() -> None:
    policy, task = trained_policy(), get_task("parity")
    rows, collect = built(policy, rationalize=False)
    source = Uniform(limit=24)
    source.bind(task, 5)
    drawn = source.draw(24)
    right = {
        p.id: s.ids
        for p, (s,) in zip(drawn, ask(policy, drawn, GREEDY, 1, 99), strict=True)
        if judge(task, p, policy, s).value == 1.0 and s.ended
    }
    assert {r.problem_id: r["response"].ids for r in rows} == right
    assert 0 < len(right) < 24
    assert collect.counts == {"questions": 24, "solved": len(right), "rationalized": 0, "absent": 24 - len(right),
                              "kept": len(right)}  # fmt: skip
    again, _ = built(policy, rationalize=False)
    assert [r.state() for r in again] == [r.state() for r in rows]


def hinted(problem: str, prompt: str) -> Sequence[str]:
    """Right for every third question, right with the hint for every other third, never for the rest.

    With the hint the answer copies it, whatever it is.
    """
    number = int(prompt.partition("parity ")[2].split("<")[0].split(" ")[0])
    kind = number % 3
    _, _, hint_text = prompt.partition(" (")
    if kind == 0 or (kind == 1 and hint_text):
        return [f"{number % 10}|{number % 2}"]
    return [f"{number % 10}|{1 - number % 2}"]


def test_3_and_6_hints_are_not_kept_and_what_fails_both_ways_is_absent() -> None:
    policy = Scripted(hinted)
    rows, collect = built(policy)
    source = Uniform(limit=24)
    source.bind(get_task("parity"), 5)
    drawn = {p.id: p for p in source.draw(24)}
    kind = {i: int(p.prompt.split()[1]) % 3 for i, p in drawn.items()}
    assert {r.problem_id for r in rows} == {i for i, k in kind.items() if k < 2}
    assert len(rows) == len({r.problem_id for r in rows})
    for row in rows:
        sample, problem = row["response"], drawn[row.problem_id]
        prompt = sample.segments[: sample.prompt_length and 1]
        assert [s.ids for s in prompt] == [s.ids for s in policy.format.prompt(problem)]
        assert hint(problem) not in policy.format.decode(sample.ids)
        assert policy.format.read(sample).answer == problem.answer
        assert [s.kind for s in sample.segments if s.learn] == ["rationale", "answer", "eos"]
    # asked once without the hint, and again with it only where that failed
    asked = {i: policy.asked.count(i) for i in kind}
    assert asked == {i: 1 if k == 0 else 2 for i, k in kind.items()}
    counts = [sum(k == x for k in kind.values()) for x in (0, 1, 2)]
    assert collect.counts == {"questions": 24, "solved": counts[0], "rationalized": counts[1], "absent": counts[2],
                              "kept": counts[0] + counts[1]}  # fmt: skip


def test_an_answer_that_was_cut_off_is_not_kept() -> None:
    def answers(problem: str, prompt: str) -> Sequence[str]:
        number = int(prompt.partition("parity ")[2].split("<")[0].split(" ")[0])
        return [f"{number % 10}|{number % 2}" + ("…" if number % 2 else "")]

    rows, _ = built(Scripted(answers), rationalize=False)
    assert rows and all(r["response"].ended for r in rows)


# -- 4 ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("restart", ["base", "last"])
def test_4_each_round_asks_the_last_model_and_trains_the_base(restart: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def weights(policy: Policy) -> dict[str, torch.Tensor]:
        return {n: p.detach().clone() for n, p in policy.model.named_parameters()}

    def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
        return all(torch.equal(a[n], b[n]) for n in a)

    asking: list[dict[str, torch.Tensor]] = []
    training: list[dict[str, torch.Tensor]] = []
    build, init = Bootstrapped.build, Learner.__init__

    def spied_build(self: Bootstrapped, problems: Problems, policy: Policy, scope: Scope) -> list[Row]:
        asking.append(weights(policy))
        return build(self, problems, policy, scope)

    def spied_init(self: Learner, update: Update, policies: Any, *args: Any, **kwargs: Any) -> None:
        training.append(weights(policies["policy"]))
        init(self, update, policies, *args, **kwargs)

    monkeypatch.setattr(Bootstrapped, "build", spied_build)
    monkeypatch.setattr(Learner, "__init__", spied_init)
    policy = trained_policy()
    base = weights(policy)
    Fit(policy, stages(number=3, restart=restart), get_task("parity"), options=Options(seed=1)).run()
    assert len(asking) == len(training) == 3
    assert equal(asking[0], base) and not equal(asking[1], base) and not equal(asking[2], asking[1])
    for start, asked in zip(training, asking, strict=True):
        assert equal(start, base if restart == "base" else asked)


# -- 5 ---------------------------------------------------------------------------------------------------------------
def test_5_the_steps_grow() -> None:
    assert growing(5, 40, 1.2) == [40, 48, 57, 69, 82]
    assert [s.steps for s in get_recipe("star")(number=4).stages] == [40, 48, 57, 69]
    assert growing(3, 10) == [10, 10, 10]
    for bad in ((0, 40, 1.2), (2, 0, 1.2), (2, 40, 0.0)):
        with pytest.raises(WhetError, match="rounds: "):
            growing(*bad)


# -- the switches ------------------------------------------------------------------------------------------------------
def test_rejection_sampling_keeps_distinct_answers_up_to_a_cap() -> None:
    def answers(problem: str, prompt: str) -> Sequence[str]:
        number = int(prompt.partition("parity ")[2].split("<")[0].split(" ")[0])
        right, wrong = str(number % 2), str(1 - number % 2)
        return [f"a|{right}", f"a|{right}", f"b|{wrong}", f"b|{right}", f"c|{right}", f"d|{right}"]

    rows, _ = built(Scripted(answers), n=3, samples=6, temperature=1.0, cap=3)
    policy = Scripted(answers)
    kept = [policy.format.read(r["response"]).rationale for r in rows]
    assert kept == ["a", "b", "c"] * 3


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(WhetError, match="need a temperature above 0"):
        stages(samples=4)
    with pytest.raises(WhetError, match="starts from 'middle'"):
        Fit(trained_policy(), stages(restart="middle"), get_task("parity"))
    assert [s.name for s in stages()] == ["round 1", "round 2"]


def test_the_same_questions_are_asked_in_all_rounds() -> None:
    asked: list[list[str]] = []

    class Noted(Lenient):
        def verify(self, problem: Problem, response: Response) -> Verdict:
            asked[-1].append(problem.id)
            return super().verify(problem, response)

    made = stages(number=2, rationalize=False)
    for stage in made:
        prepare = stage.collect.prepare
        stage.collect.prepare = lambda *a, prepare=prepare: (asked.append([]), prepare(*a))[1]  # type: ignore[method-assign]
    Fit(trained_policy(), made, Noted(), options=Options(seed=3)).run()
    assert sorted(asked[0]) == sorted(asked[1]) == sorted(p.id for p in questions(24, Noted(), 3))
