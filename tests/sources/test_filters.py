"""Roll-out filters: rules over the matrix of accuracies, chosen once with the policy that enters the stage, and resumed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from trained import trained_policy
from whet.errors import WhetError
from whet.sources import Filtered, Rollouts, Scope, Uniform, answered, pass_rate, solvable
from whet.tasks import get_task

NAN = float("nan")
# never, sometimes, always solved; points for the format alone; one of two could not be judged; none could
MATRIX = np.array([[0, 0], [0, 1], [1, 1], [0.5, 0.5], [1, NAN], [NAN, NAN]], dtype=float)


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        (solvable(), [1, 2, 4]),
        (solvable(drop_all_correct=True), [1]),
        (pass_rate(0.0, 1.0), [0, 1, 2, 3, 4]),
        (pass_rate(0.5, 0.5), [1]),
        (pass_rate(0.0, 0.5), [0, 1, 3]),
        (pass_rate(1.0, 1.0), [2, 4]),
    ],
)
def test_rules(rule: Any, kept: list[int]) -> None:
    """Test 2 of rif-rft's card is rows 0 to 3."""
    assert np.flatnonzero(rule(MATRIX)).tolist() == kept


def entered(source: Filtered, seed: int = 0, policy: Any = None) -> Filtered:
    task = get_task("parity")
    source.bind(task, 3)
    source.prepare(policy or trained_policy(), Scope(task, seed))
    return source


def test_it_keeps_what_the_policy_solves_now_and_then() -> None:
    policy = trained_policy()
    source = entered(Filtered(solvable(drop_all_correct=True), samples=4, pool=40), policy=policy)
    assert 0 < source.size == source.counts["kept"] < 40 == source.counts["filtered"]
    assert source.counts["kept"] + source.counts["never solved"] + source.counts["always solved"] == 40
    first = [p.id for p in source.draw(source.size)]
    assert len(set(first)) == source.size and set(first) == {p.id for p in source.draw(source.size)}, (
        "epochs of the kept"
    )
    assert policy.meter.sampled_tokens and policy.meter.verifier_calls == 160, "the choice is paid for"
    task, unfiltered = get_task("parity"), Uniform()
    unfiltered.bind(task, 3)
    seen = {p.id: p for p in unfiltered.draw(40)}
    assert set(first) < set(seen), "they are those that the other source gives first"
    rates = (answered(list(seen.values()), 4, policy, task, seed=11) == 1.0).mean(1)
    kept = np.array([name in first for name in seen])
    assert rates[kept].std() < rates.std(), "by its own other answers too, they are neither hopeless nor easy"


def test_the_choice_is_that_of_the_entry_policy_and_of_the_stages_seed() -> None:
    def kept(seed: int, hotter: float = 1.0) -> set[str]:
        policy = trained_policy()
        policy.model.get_output_embeddings().weight.data.mul_(1 / hotter)
        source = entered(Filtered(solvable(drop_all_correct=True), samples=4, pool=24), seed, policy)
        return {p.id for p in source.draw(source.size)}

    assert kept(0) == kept(0) != kept(1)
    assert kept(0) != kept(0, hotter=1.5)


@pytest.mark.parametrize("over", [Uniform, lambda: Uniform(limit=30)])
def test_it_resumes(over: Any) -> None:
    """Without asking the policy again, and wherever the other source stood."""

    def make() -> Filtered:
        return Filtered(solvable(), samples=2, pool=24, over=over())

    source = entered(make())
    source.draw(7)
    state = source.state_dict()
    again = make()
    again.bind(get_task("parity"), 3)
    again.load_state_dict(state)
    assert again.size == source.size and again.counts == source.counts
    assert [p.id for p in again.draw(40)] == [p.id for p in source.draw(40)]
    assert again.state_dict() == source.state_dict()


def test_before_its_stage_nothing_is_filtered() -> None:
    task, plain = get_task("parity"), Uniform()
    source = Filtered(solvable(), pool=4)
    before = source.state_dict()
    source.bind(task, 3)
    plain.bind(task, 3)
    assert [p.id for p in source.draw(6)] == [p.id for p in plain.draw(6)]
    source.load_state_dict(before)
    assert source.over.state_dict() == {"cursor": 0}


def test_its_answers_are_not_those_that_are_learnt() -> None:
    """Test 3: the stage's own answers to the same problems are drawn anew."""
    policy, task = trained_policy(), get_task("parity")
    source = entered(Filtered(solvable(), samples=4, pool=8), policy=policy)
    collect = Rollouts(4)
    collect.bind(task)
    asked: list[int] = []
    real = policy.sample
    policy.sample = lambda requests, *rest: [asked.extend(s for r in requests for s in r.seeds), real(requests, *rest)][
        1
    ]  # type: ignore[method-assign]
    collect.rows(source, source.size, policy, Scope(task, 0))
    learnt, asked[:] = set(asked), []
    source.prepare(policy, Scope(task, 0))
    assert learnt and asked and not learnt & set(asked)


def test_what_cannot_work_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WhetError, match="has no end: say how many"):
        Filtered(solvable()).bind(get_task("parity"), 0)
    with pytest.raises(WhetError, match=r"no problem of task 'parity' is left \(filtered 6, "):
        entered(Filtered(lambda accuracy: np.zeros(len(accuracy), dtype=bool), samples=1, pool=6))
    with pytest.raises(WhetError, match="at least one sample"):
        Filtered(solvable(), samples=0)
    with pytest.raises(WhetError, match="low <= high"):
        pass_rate(0.5, 0.4)
    task = get_task("parity")
    monkeypatch.setattr(type(task), "provides", lambda self: {"unlimited"})
    with pytest.raises(WhetError, match="no verifier to filter"):
        entered(Filtered(solvable(), pool=4))
