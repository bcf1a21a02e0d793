"""Noisy labels: how many, which, what the verifier then says, and what cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import trained  # noqa: F401  (registers the task parity)
from whet.errors import WhetError
from whet.sources import Uniform
from whet.tasks import Problem, Response, get_task
from whet.tasks.noisy import Noisy


def drawn(task: str, rate: float, rows: int = 40, draw: int = 3, **more: Any) -> list[Problem]:
    return Noisy(get_task(task), rate, rows, draw=draw, **more).problems("train")


def wrong(problems: list[Problem]) -> set[str]:
    return {p.id for p in problems if "truth" in p.data}


@pytest.mark.parametrize("task", ["chain-sum:level=3", "parity:level=2", "lists:level=3", "word-problem:level=2"])
def test_the_verifier_believes_what_was_planted(task: str) -> None:
    problems = drawn(task, 0.3)
    assert len(problems) == 40 and len(wrong(problems)) == 12 and len({p.id for p in problems}) == 40
    made = get_task(task)
    for p in problems:
        truth = p.data.get("truth", p.answer)
        assert made.verify(p, Response(p.answer or "", p.answer)).value == 1.0
        assert (made.verify(p, Response(truth, truth)).value == 1.0) == (p.id not in wrong(problems))


def test_rate_zero_is_the_task_and_rates_are_nested() -> None:
    clean = drawn("chain-sum:level=3", 0.0)
    assert clean == get_task("chain-sum:level=3").problems("train", 40, seed=3)
    few, many = wrong(drawn("chain-sum:level=3", 0.2)), wrong(drawn("chain-sum:level=3", 0.5))
    assert few < many and (len(few), len(many)) == (8, 20)
    assert wrong(drawn("chain-sum:level=3", 0.2)) == few != wrong(drawn("chain-sum:level=3", 0.2, draw=4))


def test_each_problem_once_an_epoch_and_by_its_spec() -> None:
    task = get_task("noisy:rate=0.5:rows=10|parity:level=2")
    source = Uniform()
    source.bind(task, 1)
    first = source.draw(10)
    assert sorted(p.id for p in first) == sorted({p.id for p in first}) == sorted(p.id for p in task.problems("train"))
    assert len(wrong(first)) == 5 and get_task(task.spec()).problems("train") == task.problems("train")
    for split in ("validation", "test"):
        assert task.problems(split, 8, seed=2) == get_task("parity:level=2").problems(split, 8, seed=2)


def test_long_gold_answers_are_left_out_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "silver.jsonl"
    rows = [{"prompt": f"q{i}", "answer": f"{i}" if i % 2 else f"it is about {i} or so"} for i in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = get_task(str(path), verifier="exact")
    kept = Noisy(task, 0.5, rows=0, words=1).problems("train")
    # the split of a file is by hash of its prompts, so that not all 60 are there to train on
    assert all(len((p.answer or "").split()) == 1 for p in kept) and len(task.problems("train")) - len(kept) > 10
    assert len(wrong(kept)) == round(len(kept) / 2)


def test_what_it_refuses() -> None:
    with pytest.raises(WhetError, match="share from 0 to 1"):
        Noisy(get_task("parity"), 1.5)
    with pytest.raises(WhetError, match="does not go by the gold answer"):
        drawn("countdown:level=1", 0.5)
    with pytest.raises(WhetError, match="say how many rows"):
        drawn("parity", 0.5, rows=0)
    with pytest.raises(WhetError, match="words or fewer"):
        drawn("parity", 0.0, words=-1)
    for spec in ("noisy:rate=0.3", "noisy:share=0.3|parity", "noisy:rate=x|parity"):
        with pytest.raises(WhetError, match="write noisy:rate"):
            get_task(spec)
