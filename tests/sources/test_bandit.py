"""The bandit over categories: its numbers, its queues, what it hears, and that a resumed one is the same one."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trained import Scripted
from whet.advantages import group_std
from whet.errors import WhetError
from whet.records import Row, Sample, Segment
from whet.sources import Bandit, Filtered, Ordered, Problems, Scope, Uniform, category_of
from whet.sources.bandit import RULES, size_of_accuracy, size_of_advantage, softmax
from whet.tasks import Problem, Split, Task, get_task


class Shelves(Task):
    """A task that ends: `sizes[i]` problems of level i + 1, mixed up."""

    name = "shelves"

    def __init__(self, *sizes: int) -> None:
        made = [Problem(f"{level}/{i}", f"{level} {i}", "1", task="shelves", level=level, data={"kind": "ab"[i % 2]})
                for level, n in enumerate(sizes, 1) for i in range(n)]  # fmt: skip
        random.Random(0).shuffle(made)
        self.made = made

    def problems(self, split: Split, n: int | None = None, *, seed: int = 0, start: int = 0) -> list[Problem]:
        return self.made[start : None if n is None else start + n]

    def provides(self) -> set[str]:
        return {"verifier", "demonstrations"}


def bound(source: Any, task: Task | None = None, seed: int = 1) -> Any:
    source.bind(task or Shelves(20, 12, 8), seed)
    return source


def ids(problems: Sequence[Problem]) -> list[str]:
    return [p.id for p in problems]


def answers(
    problem: str, rewards: Sequence[float], tokens: int = 2, accuracy: Sequence[float] | None = None
) -> list[Row]:
    """A group of scored answers, with advantages."""
    rows = []
    for reward, right in zip(rewards, accuracy or rewards, strict=True):
        sample = Sample(
            [Segment("question", [5]), Segment("answer", [8] * tokens, learn=True)], problem, f"0/{problem}"
        )
        rows.append(Row({"response": sample}, {"reward": reward, "accuracy": right}))
    group_std()(rows)
    return rows


def feed(bandit: Bandit, draw: Sequence[Problem], rng: random.Random) -> None:
    bandit.observe(
        [row for p in draw for row in answers(p.id, [float(rng.random() < 0.4 / p.level) for _ in range(4)])]
    )


# -- numbers ---------------------------------------------------------------------------------------------------------
def test_the_probabilities() -> None:
    assert softmax([0.5, 0.0], 0.4) == pytest.approx([0.77730, 0.22270], abs=5e-6)
    for tau in (0.01, 0.4, 1.0, math.inf):
        assert softmax([0.3, 0.3, 0.3], tau) == pytest.approx([1 / 3] * 3)
    assert softmax([0.9, 0.1], math.inf) == [0.5, 0.5]
    assert softmax([900.0, 0.0], 0.001) == [1.0, 0.0], "the greatest value is taken off before exp"
    assert RULES["proportional"]([0.3, 0.0, 0.1], 1.0) == pytest.approx([0.3 / 0.41, 0.01 / 0.41, 0.1 / 0.41])
    assert RULES["greedy"]([0.1, 0.5, 0.2], 1.0) == pytest.approx([0.05, 0.9, 0.05])
    assert RULES["greedy"]([0.1], 1.0) == [1.0]


@pytest.mark.parametrize(("right", "size"), [(0, 0.0), (1, 0.6187), (4, 0.9354), (7, 0.6187), (8, 0.0)])
def test_the_size_of_advantages_of_eight_answers(right: int, size: float) -> None:
    rows = answers("p", [1.0] * right + [0.0] * (8 - right))
    assert np.mean(size_of_advantage(rows)) == pytest.approx(size, abs=5e-5)
    assert np.mean(size_of_accuracy(rows)) == pytest.approx(size, abs=5e-5)


def test_the_update() -> None:
    for decay, after in ((False, {"level-1": 0.6, "level-2": 0.2}), (True, {"level-1": 0.6, "level-2": 0.1})):
        bandit = Bandit(rate=0.5, decay_unvisited=decay)
        bound(bandit, Shelves(2, 2))
        bandit.values = {"level-1": 0.4, "level-2": 0.2}
        bandit.update({"level-1": 0.8})
        assert bandit.values == pytest.approx(after)


def test_a_category_is_valued_by_its_answers_whatever_their_lengths() -> None:
    """|A| is a mean over an answer's tokens first, and then over answers."""
    bandit = bound(Bandit(by="level", rate=1.0), Shelves(1))
    (problem,) = bandit.draw(1)
    rows = []
    for tokens, advantage in ((1, 1.0), (9, -0.2)):
        sample = Sample([Segment("q", [5]), Segment("answer", [8] * tokens, learn=True)], problem.id, "g")
        sample.per_token["advantage"] = torch.tensor([9.0] + [advantage] * tokens)  # the prompt's does not count
        rows.append(Row({"response": sample}, {"reward": 1.0, "accuracy": 1.0}))
    bandit.observe(rows)
    assert bandit.values["level-1"] == pytest.approx(0.6)


def test_points_for_the_format_do_not_make_a_hopeless_category_look_alive() -> None:
    hopeless = answers("p", [0.1, 0.0, 0.1, 0.0], accuracy=[0.0] * 4)
    assert np.mean(size_of_advantage(hopeless)) > 0.8
    assert size_of_accuracy(hopeless) == [0.0] * 4


def test_progress_is_the_change_of_accuracy_since_it_was_last_drawn() -> None:
    bandit = Bandit(rate=1.0, signal="progress")
    for mean, change in ((0.2, 0.0), (0.5, 0.3), (0.4, -0.1)):
        bandit.update({"a": mean})
        assert bandit.values["a"] == pytest.approx(change)


def test_answers_that_could_not_be_judged_say_nothing() -> None:
    bandit = bound(Bandit(by="level", rate=1.0))
    (problem,) = bandit.draw(1)
    rows = answers(problem.id, [1.0, 0.0, math.nan])
    bandit.observe(rows)
    assert bandit.values[f"level-{problem.level}"] == pytest.approx(math.sqrt(0.5), abs=1e-5)


# -- queues ----------------------------------------------------------------------------------------------------------
def test_one_category_is_a_shuffled_order() -> None:
    for task in (Shelves(23), get_task("parity")):
        bandit, plain = bound(Bandit(by="task"), task), bound(Uniform(), task)
        rng = random.Random(0)
        for _ in range(12):
            drawn = bandit.draw(7)
            assert ids(drawn) == ids(plain.draw(7))
            feed(bandit, drawn, rng)


def test_categories_are_drawn_alike_at_first_and_not_problems() -> None:
    bandit = bound(Bandit(by="level", temperature=math.inf), Shelves(60, 30, 10))
    feed(bandit, bandit.draw(20), random.Random(0))
    assert set(bandit.probabilities().values()) == {1 / 3}
    counts = Counter(p.level for p in bandit.draw(3000))
    assert all(abs(n - 1000) < 120 for n in counts.values())


def test_a_problem_comes_back_when_its_queue_is_filled_again() -> None:
    sizes = (9, 5, 3)
    bandit = bound(Bandit(by="level"), Shelves(*sizes))
    drawn = bandit.draw(120)
    for level, size in enumerate(sizes, 1):
        own = [p.id for p in drawn if p.level == level]
        passes = [own[i : i + size] for i in range(0, len(own), size)]
        assert all(len(set(part)) == len(part) for part in passes)
        whole = [tuple(part) for part in passes if len(part) == size]
        assert size == 3 or len(set(whole)) > 1, "each pass has an order of its own"


def test_it_asks_for_what_it_learns_from() -> None:
    bandit = bound(Bandit(by="level", temperature=0.2, rate=0.5))
    for _ in range(20):  # level 2 alone is between all right and all wrong
        drawn = bandit.draw(8)
        bandit.observe(
            [r for p in drawn for r in answers(p.id, [1, 0, 1, 0] if p.level == 2 else [0.0, 0.0, 0.0, 0.0])]
        )
    shares = bandit.probabilities()
    assert shares["level-2"] > 0.9 and bandit.report()["level"] == pytest.approx(2.0, abs=0.1)
    assert bandit.report()["value/level-1"] == 0.0


def test_an_endless_source_is_looked_through(monkeypatch: pytest.MonkeyPatch) -> None:
    bandit = bound(Bandit(by="level"), get_task("parity:level=1-2"))
    assert bandit.categories == ["level-1", "level-2"]
    drawn = bandit.draw(600)
    assert len(set(ids(drawn))) == 600 and {p.level for p in drawn} == {1, 2}
    monkeypatch.setattr("whet.sources.bandit.PATIENCE", 50)
    with pytest.raises(WhetError, match="no further problem of category 'level-9' among 50"):
        bound(Bandit(by="level")).pop("level-9")


# -- categories ------------------------------------------------------------------------------------------------------
def test_categories_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"q {i}", "answer": str(i), "level": 1 + i % 2, "topic": "xyz"[i % 3]} for i in range(120)]
    rows[0]["category"] = "own"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = get_task(str(file))
    problems = task.problems("train")

    def found(by: str) -> set[str]:
        return {category_of(by)(p) for p in problems}

    assert found("level") == {"level-1", "level-2"} and found("topic") == {"x", "y", "z"}
    assert found("task+level") == {"rows+level-1", "rows+level-2"} and len(found("topic+level")) == 6
    assert found("category") - {"own"} == {"level-1", "level-2"}
    assert set(bound(Bandit(by="topic"), task).counts) >= {"categories", "category x", "category y", "category z"}
    with pytest.raises(WhetError, match=r"has no 'subject' .* topic, category, level, task, or several as task\+level"):
        bound(Bandit(by="subject"), task)
    with pytest.raises(WhetError, match=r"has no '' .* task\+level"):
        category_of("task+")(problems[0])


@pytest.mark.parametrize(("arguments", "says"), [
    ({"rate": 0.0}, "rate is in"), ({"temperature": 0.0}, "temperature above 0"), ({"rule": "softmx"}, "mean 'softmax'"),
    ({"signal": "advantages"}, "mean 'advantage'"),
])  # fmt: skip
def test_arguments_that_cannot_work(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(WhetError, match=says):
        Bandit(**arguments)


def test_without_rewards_or_advantages_it_says_so() -> None:
    bandit = bound(Bandit(by="level"))
    (problem,) = bandit.draw(1)
    sample = Sample([Segment("q", [5]), Segment("answer", [8], learn=True)], problem.id, "g")
    with pytest.raises(WhetError, match="no number 'reward'"):
        bandit.observe([Row({"response": sample})])
    with pytest.raises(WhetError, match="signal=accuracy"):
        bandit.observe([Row({"response": sample}, {"reward": 1.0, "accuracy": 1.0})])


# -- state -----------------------------------------------------------------------------------------------------------
def through_a_checkpoint(state: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(state))  # plain values only


def sources() -> dict[str, Any]:
    return {
        "bandit": lambda: Bandit(by="level", temperature=0.2),
        "progress": lambda: Bandit(by="level", signal="progress", rule="greedy", decay_unvisited=True),
        "over an order": lambda: Bandit(Ordered(20), by="level"),
        "over a filter": lambda: Bandit(Filtered(lambda accuracy: np.arange(len(accuracy)) % 2 == 0, samples=1), by="level"),
        "easy": lambda: Ordered(20),
        "hard, filtered": lambda: Ordered(20, True, Filtered(lambda accuracy: np.arange(len(accuracy)) % 2 == 0, samples=1)),
    }  # fmt: skip


def walk(source: Problems, steps: range) -> list[list[str]]:
    found = []
    for step in steps:
        drawn = source.draw(5)
        found.append(ids(drawn))
        source.observe([r for p in drawn for r in answers(p.id, [float(random.Random(f"{step}{p.id}{i}").random() < 0.5)
                                                                 for i in range(4)])])  # fmt: skip
    return found


@pytest.mark.parametrize("name", sources())
@pytest.mark.parametrize("endless", [False, True])
def test_a_resumed_source_is_the_source_that_went_on(name: str, endless: bool) -> None:
    task: Task = get_task("parity:level=1-2") if endless else Shelves(20, 12, 8)
    if endless and "filter" in name:
        pytest.skip("a filter's pool ends")
    make = sources()[name]
    whole = bound(make(), task)
    whole.prepare(Scripted(lambda *_: ["1"]), Scope(task, 3))
    walk(whole, range(7))
    again = bound(make(), task)
    again.load_state_dict(through_a_checkpoint(whole.state_dict()))
    assert again.state_dict() == whole.state_dict()
    assert again.report() == whole.report() or isinstance(again, Ordered)
    assert walk(again, range(7, 16)) == walk(whole, range(7, 16))
    assert again.state_dict() == whole.state_dict()


def test_a_filter_comes_before_the_bandit() -> None:
    """It changes what the queues hold, once, when the stage is entered."""
    bandit = bound(Bandit(Filtered(lambda accuracy: np.arange(len(accuracy)) < 10, samples=1), by="level"))
    assert bandit.counts["categories"] == 3
    bandit.prepare(Scripted(lambda *_: ["1"]), Scope(Shelves(20, 12, 8), 3))
    assert bandit.counts["kept"] == 10
    drawn = bandit.draw(200)
    assert set(ids(drawn)) == set(ids(bound(Uniform()).draw(10)))


# -- fixed orders ----------------------------------------------------------------------------------------------------
def test_orders_are_the_same_problems_in_another_order() -> None:
    plain = bound(Uniform()).draw(60)
    for hardest in (False, True):
        ordered = bound(Ordered(60, hardest))
        drawn = [p for _ in range(12) for p in ordered.draw(5)]
        assert Counter(ids(drawn)) == Counter(ids(plain))
        levels = [p.level for p in drawn]
        assert levels == sorted(levels, reverse=hardest) and len(set(levels)) == 3
        own = [p.id for p in drawn if p.level == 2]
        assert own == [p.id for p in plain if p.level == 2], "ties are in the source's own, random, order"
        assert ordered.report() == {"level": 1.0 if hardest else 3.0}
        after = ordered.draw(60)
        assert [p.level for p in after] == sorted((p.level for p in after), reverse=hardest), (
            "a further pass begins anew"
        )


def test_a_draw_may_cross_into_the_next_pass() -> None:
    a, b = bound(Ordered(7)), bound(Ordered(7))
    assert ids(a.draw(30)) == [i for n in (4, 9, 1, 16) for i in ids(b.draw(n))]
    with pytest.raises(WhetError, match="at least one"):
        Ordered(0)
