"""Episodic memory: the card's numbers, the order of writing and scoring, limits, and what a checkpoint keeps."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from whet.advantages import group_std
from whet.errors import WhetError
from whet.records import Row, Sample, Segment
from whet.rewards import Attempt, Reward, accuracy, total
from whet.rewards.memory import Memory, Recall, Window, cosines, from_centre, question, unlike
from whet.tasks import Problem, Response, Verdict

X, Y, DIAGONAL = (1.0, 0.0), (0.0, 1.0), (0.6, 0.8)


def table(**vectors: Sequence[float]) -> Any:
    """An encoder that knows a few texts."""
    return lambda texts: np.array([vectors[t] for t in texts], dtype=np.float32)


def attempt(rationale: str, value: float, prompt: str = "q") -> Attempt:
    return Attempt(
        Problem(prompt, prompt), Response("whole", "1", rationale), Verdict(value, "ok" if value else "wrong"), 3, False
    )


def remembering(vectors: Mapping[str, Sequence[float]] | None = None, **settings: Any) -> Recall:
    return Recall(
        encoder=table(**{"q": X, "r": Y, "x": X, "y": Y, "d": DIAGONAL, **(vectors or {})}), **{"after": 0, **settings}
    )


def arrays(*vectors: Sequence[float]) -> np.ndarray:
    return np.array(vectors, dtype=np.float32)


# -- the numbers -----------------------------------------------------------------------------------------------------
def test_raw_values() -> None:
    """Test 1 of the card."""
    assert from_centre(arrays(X)[0], arrays(X, Y)) == pytest.approx(0.70711, abs=1e-5)
    assert unlike(arrays(X)[0], arrays(Y)) == 1.0
    assert unlike(arrays(Y)[0], arrays(Y)) == 0.0
    assert unlike(arrays(DIAGONAL)[0], arrays(X, Y)) == pytest.approx(0.2), "the nearest counts"
    assert from_centre(arrays(X)[0], arrays()) is None and unlike(arrays(X)[0], arrays()) is None
    assert cosines(arrays((0.0, 0.0), (3.0, 0.0)), arrays(X)[0]).tolist() == [0.0, 1.0]


def test_the_window() -> None:
    """Test 2: .2, .4, .3 in order; what leaves a window of 2 no longer counts."""
    wide, narrow = Window(100), Window(2)
    assert [wide.scale(v) for v in (0.2, 0.4, 0.3)] == [None, 1.0, pytest.approx(0.5)]
    assert [narrow.scale(v) for v in (0.2, 0.4, 0.3)] == [None, 1.0, 0.0], "0.2 has left"
    rounding = Window(100)
    assert [rounding.scale(v) for v in (0.0, 1e-7, -1e-7)] == [None] * 3


def test_parts_by_hand() -> None:
    """Distances to the centroid of {x, y, d} and of {x, y}, in order, scaled by those seen so far; the memory holds its own."""
    reward = remembering(explore=0)
    found = [p["exploit"] for p in reward([attempt(t, 1.0) for t in ("x", "y", "d")])]
    raw = [0.0, math.sqrt(0.5), math.dist(DIAGONAL, (1.6 / 3, 1.8 / 3))]
    assert list(reward.near.values) == pytest.approx(raw)
    # the first is alone in its window: 1 - raw distance; then 1 - scaled
    assert found == pytest.approx([1.0, 0.0, 1 - raw[2] / raw[1]])
    assert len(reward.failures) == 0, "explore is off, so that failures are not kept"


def test_edges_of_the_scaling() -> None:
    reward = remembering()
    (wrong,) = reward([attempt("x", 0.0)])
    assert wrong == {"exploit": 0.0, "explore": 0.0}, "no success yet: novelty 1; its own nearest failure: novelty 0"
    assert not reward.near.values and list(reward.far.values) == [0.0], "an empty memory is in no window"
    (right,) = reward([attempt("y", 1.0)])
    assert right == {"exploit": 1.0, "explore": 1.0}, "its own centroid; as far from the failure as can be"


# -- the order -------------------------------------------------------------------------------------------------------
def test_a_failure_is_its_own_nearest_neighbour_where_it_is_written_first() -> None:
    """Test 3."""
    first, after = remembering(exploit=0), remembering(exploit=0, write_first=False)
    assert first([attempt("x", 0.0)]) == [{"explore": 0.0}] and list(first.far.values) == [0.0]
    assert after([attempt("x", 0.0)]) == [{"explore": 1.0}] and not after.far.values, "an empty memory: novelty 1"
    later = after([attempt("y", 0.0), attempt("y", 0.0)])
    assert list(after.far.values) == [1.0, 0.0] and [p["explore"] for p in later] == [0.0, 0.0], (
        "the first is alone in its window (0), the second has seen it written"
    )


def test_explore_waits_for_failures() -> None:
    reward = remembering({"s": DIAGONAL}, exploit=0, after=2)
    assert reward([attempt("x", 0.0), attempt("y", 1.0)]) == [{"explore": 0.0}] * 2
    assert not reward.far.values, "what is not active is not computed"
    reward([attempt("x", 0.0, "r")])
    assert len(reward.failures) == 2 and reward.far.values


# -- what is remembered ----------------------------------------------------------------------------------------------
def test_an_answer_is_looked_up_by_its_own_question() -> None:
    """Test 6: two prompts in one call."""
    reward = remembering(explore=0)
    reward([attempt("x", 1.0, "q"), attempt("y", 1.0, "r")])
    assert list(reward.near.values) == [0.0, 0.0], "each is the centroid of its own question"
    assert reward.successes.read(arrays(X)[0]).tolist() == [list(X)]
    assert reward.successes.read(arrays(Y)[0]).tolist() == [list(Y)]


def test_limits() -> None:
    """Test 5."""
    memory = Memory(queries=2, responses=2)
    for vector in (X, Y, DIAGONAL):
        memory.write(arrays(X)[0], arrays(vector)[0])
    assert memory.read(arrays(X)[0]).tolist() == arrays(Y, DIAGONAL).tolist(), "the first of three is gone"
    memory.write(arrays(Y)[0], arrays(Y)[0])
    memory.write(arrays(X)[0], arrays(X)[0])  # an old question asked again keeps its place
    memory.write(arrays(DIAGONAL)[0], arrays(X)[0])
    assert len(memory) == 2
    assert memory.read(arrays(X)[0]).tolist() == [list(X)], (
        "x and its answers are gone; the nearest is now the diagonal"
    )
    assert memory.read(arrays(Y)[0]).tolist() == [list(Y)]


def test_neighbours() -> None:
    memory = Memory(queries=10, responses=10)
    for query, response in ((X, X), (DIAGONAL, DIAGONAL), (Y, Y)):
        memory.write(arrays(query)[0], arrays(response)[0])
    assert memory.read(arrays((0.1, 1.0))[0], 2).tolist() == arrays(Y, DIAGONAL).tolist(), "nearest first"
    assert memory.read(arrays((0.1, 1.0))[0], 9).shape == (3, 2)
    memory.write(arrays((0.0, 1.0))[0] * -0.0, arrays(X)[0])
    memory.write(arrays((0.0, 0.0))[0], arrays(Y)[0])
    assert len(memory) == 4, "-0 and 0 are one key"


def test_what_could_not_be_judged_leaves_no_trace() -> None:
    reward = remembering()
    reward([attempt("x", 1.0)])
    before = reward.state_dict()
    (lost,) = reward([attempt("y", math.nan)])
    assert all(math.isnan(v) for v in lost.values()) and set(lost) == {"exploit", "explore"}
    assert str(reward.state_dict()) == str(before)


def test_texts() -> None:
    """The reasoning is embedded, or all of an answer without; a question is all of its turns."""
    seen: list[list[str]] = []

    def encode(texts: Sequence[str]) -> np.ndarray:
        seen.append(list(texts))
        return np.ones((len(texts), 2), dtype=np.float32)

    Recall(encoder=encode)([attempt("x", 1.0), attempt("", 1.0)])
    assert seen == [["q"], ["x", "whole"]]
    turns = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})
    assert question(Problem("1", "b", messages=turns)) == "a\nb"


# -- as a reward -----------------------------------------------------------------------------------------------------
def test_weights_of_zero_change_nothing_and_compute_nothing() -> None:
    def never(texts: Sequence[str]) -> np.ndarray:
        raise AssertionError("nothing is embedded")

    group = [attempt("x", 1.0), attempt("y", 0.0)]
    assert (accuracy() + Recall(0, 0, encoder=never))(group) == accuracy()(group)
    assert (accuracy() + remembering(exploit=2.0, explore=0))(group)[0] == {"accuracy": 1.0, "exploit": 2.0}


def test_a_group_without_a_right_answer_still_learns() -> None:
    rows = [
        Row({"response": Sample([Segment("question", [1]), Segment("answer", [2], learn=True)], "q", "g")})
        for _ in range(3)
    ]
    reward = accuracy() + remembering()
    reward([attempt("x", 1.0)])
    for row, parts in zip(rows, reward([attempt(t, 0.0) for t in ("y", "d", "x")]), strict=True):
        row.numbers |= {"reward": total(parts), "accuracy": 0.0}
    group_std()(rows)
    found = [row.numbers["advantage"] for row in rows]
    assert found[0] < found[1] < found[2], "the nearer to the success, the better"


def resumed(reward: Reward, again: Reward) -> Reward:
    """`again` with the state that went through a checkpoint."""
    file = io.BytesIO()
    torch.save(reward.state_dict(), file)
    file.seek(0)
    again.load_state_dict(torch.load(file, weights_only=True))
    return again


def test_its_state_round_trips_bit_for_bit() -> None:
    rng = np.random.default_rng(0)
    vectors = {f"t{i}": rng.normal(size=8) for i in range(40)}
    settings = {"queries": 5, "responses": 3, "window": 7, "neighbours": 2, "after": 2}

    def make() -> Reward:
        return accuracy() + Recall(encoder=table(**vectors), **settings)

    def groups(start: int) -> list[list[Attempt]]:
        return [
            [attempt(f"t{(7 * i + j) % 40}", float((i + j) % 3 == 0), f"t{i}") for j in range(4)]
            for i in range(start, start + 12)
        ]

    whole, halted = make(), make()
    for group in groups(0):
        whole(group)
        halted(group)
    again = resumed(halted, make())
    assert [again(g) for g in groups(12)] == [whole(g) for g in groups(12)]
    assert str(again.state_dict()) == str(whole.state_dict())
    with pytest.raises(WhetError, match="of another reward"):
        remembering().load_state_dict({"children": []})


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(WhetError, match="window must be at least 1"):
        Recall(window=0)
    with pytest.raises(WhetError, match="call bind"):
        Recall()([attempt("x", 1.0)])
