"""Penalties on repetition: dense ones by token, with the places of the cards, and one number an answer."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from whet.advantages import generalized_advantage
from whet.errors import WhetError
from whet.records import Row, Sample, Segment
from whet.rewards import Attempt, total
from whet.rewards.repetition import dense_repetition, excess, repeated, repeated_share, repetition, sparse_repetition
from whet.tasks import Problem, Response, Verdict


def attempt(ids: list[int], value: float = 1.0, text: str = "", row: bool = True) -> Attempt:
    body = Segment("rationale", ids, learn=True, sampled=True)
    end = Segment("eos", [1], learn=True, sampled=True)
    sample = Sample([Segment("question", [2, 3]), body, end], "p", "p")
    verdict = Verdict(value, "ok" if value == 1.0 else "wrong")
    return Attempt(Problem("p", "?", "12"), Response(text, text), verdict, len(ids) + 1, False, 100,
                   Row({"response": sample}, {"reward": 1.0}) if row else None)  # fmt: skip


# -- long-cot, card test 2 -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("ids", "marked"),
    [
        ([1, 2, 3, 1, 2, 3, 9], [3, 4, 5]),
        ([1, 2, 3, 1, 2, 3, 1, 2], [3, 4, 5, 6, 7]),
        ([7, 7, 7, 7], [1, 2, 3]),
        ([7, 7], []),
        ([], []),
    ],
)
def test_long_cot_2_places(ids: list[int], marked: list[int]) -> None:
    assert [i for i, told in enumerate(repeated(ids, 3)) if told] == marked


def test_long_cot_2_only_the_start_of_each_stretch() -> None:
    def places(ids: list[int]) -> list[int]:
        return [i for i, told in enumerate(repeated(ids, 3, only_start=True)) if told]

    assert places([1, 2, 3, 1, 2, 3, 1, 2]) == [3, 4, 5]
    assert places([1, 2, 3, 1, 2, 3, 8, 9, 1, 2, 3]) == [3, 4, 5, 8, 9, 10]


def test_the_dense_penalty_is_set_on_tokens_and_not_in_the_answers_reward() -> None:
    one = attempt([11, 12, 13, 11, 12, 13, 11, 12])
    assert dense_repetition(3, -0.05)([one]) == [{}]
    assert one.row is not None
    sample = one.row["response"]
    assert sample.per_token["reward"].tolist() == pytest.approx(
        [0] * 5 + [-0.05] * 5 + [0]
    )  # a question of 2, and the end
    assert one.row.numbers["reward/repetition"] == pytest.approx(-0.25) and one.row.numbers["reward"] == 1.0
    sample.check()


def returns(
    ids: list[int], gamma: float | Sequence[float], penalty: float | None, name: str = "return"
) -> torch.Tensor:
    """Of the tokens of an answer and its end, with values that differ and an outcome of 1."""
    one = attempt(ids)
    assert one.row is not None
    if penalty is not None:
        dense_repetition(2, penalty)([one])
    sample = one.row["response"]
    sample.per_token |= {"old_value": torch.linspace(0, 1, len(sample)), "old_logprob": torch.zeros(len(sample))}
    generalized_advantage(gamma, lam=1.0, whiten=False)([one.row])
    return sample.per_token[name][2:]


def test_the_penalty_has_a_discount_of_its_own() -> None:
    """R_t = 1 + sum over u >= t of 0.5^(u - t) (-0.1) where u repeats: the outcome is not discounted."""
    tail = [-0.1 * (0.5**2 + 0.5**3), -0.1 * (0.5 + 0.25), -0.1 * 1.5, -0.1, 0.0]
    assert returns([7, 8, 7, 8], (1.0, 0.5), -0.1).tolist() == pytest.approx([1 + t for t in tail])


def test_no_penalty_is_the_outcome_alone() -> None:
    """Card test 3: a channel of zeros changes nothing, whatever its discount; one channel is standard GAE."""
    for name in ("return", "advantage"):
        plain = returns([7, 8, 7, 8, 9], 1.0, None, name)
        torch.testing.assert_close(returns([7, 8, 7, 8, 9], (1.0, 0.9), 0.0, name), plain)
        assert not torch.allclose(returns([7, 8, 7, 8, 9], (1.0, 0.9), -0.1, name), plain)


def test_the_sparse_form_is_of_words_and_of_wrong_answers() -> None:
    text = "a b a b a b"  # bigrams: ab ba ab ba ab, 3 of 5 repeated
    right, wrong = attempt([5], 1.0, text), attempt([5], 0.0, text)
    found = sparse_repetition(2, -0.5)([right, wrong])
    assert [total(parts) for parts in found] == pytest.approx([0.0, -0.3])
    assert repeated_share(["a", "b"], 3) == 0.0


# -- phi-4-reasoning, card test 4 --------------------------------------------------------------------------------------------
def test_phi4_4_excess() -> None:
    assert excess(["x"] * 20) == 1.0, "max(1 / 1, 16 / (20 / 5)), clipped"
    assert excess(["x"] * 9) == 0.0, "no 5-gram stands more than 5 times"
    assert excess(list(range(50))) == excess([]) == 0.0
    # six times the same five words among others: of 53 different 5-grams one is frequent, and 6 / (78 / 5) is more
    text = [w for i in range(6) for w in ("a", "b", "c", "d", "e", *(f"{i}-{j}" for j in range(8)))]
    assert len(text) == 78 and excess(text) == pytest.approx(6 / (78 / 5))
    assert excess(text, often=6) == 0.0


def test_phi4_4_as_a_reward() -> None:
    (parts,) = repetition()([attempt([9] * 20)])
    assert parts == {"repetition": -1.0}


def test_tokens_need_rows() -> None:
    for reward in (dense_repetition(3), repetition()):
        with pytest.raises(WhetError, match="rows"):
            reward([attempt([5, 6], row=False)])
    with pytest.raises(WhetError, match="at least 1 token"):
        dense_repetition(0)
