"""Noisy labels: how many, which, what the verifier then says, and what cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import trained  # noqa: F401  (registers the task parity)
from whet.errors import WhetError
from whet.sources.labels import NoisyLabels
from whet.tasks import Problem, Response, get_task


def drawn(task: str, rate: float, limit: int = 40, seed: int = 3, **more) -> tuple[NoisyLabels, list[Problem]]:
    source = NoisyLabels(rate, limit, **more)
    source.bind(get_task(task), seed)
    return source, source.draw(source.size)


def wrong(problems: list[Problem]) -> set[str]:
    return {p.id for p in problems if "truth" in p.data}


@pytest.mark.parametrize("task", ["chain-sum:level=3", "parity:level=2", "lists:level=3", "word-problem:level=2"])
def test_the_verifier_believes_what_was_planted(task: str) -> None:
    source, problems = drawn(task, 0.3)
    assert source.counts == {"problems": 40, "left out, long answer": 0, "wrong gold answers": 12}
    assert len(wrong(problems)) == 12 and len({p.id for p in problems}) == 40
    made = get_task(task)
    for p in problems:
        truth = p.data.get("truth", p.answer)
        assert made.verify(p, Response(p.answer or "", p.answer)).value == 1.0
        assert (made.verify(p, Response(truth, truth)).value == 1.0) == (p.id not in wrong(problems))


def test_rate_zero_is_the_task_and_rates_are_nested() -> None:
    _, clean = drawn("chain-sum:level=3", 0.0)
    assert sorted(clean, key=lambda p: p.id) == sorted(
        get_task("chain-sum:level=3").problems("train", 40, seed=3), key=lambda p: p.id
    )
    few, many = wrong(drawn("chain-sum:level=3", 0.2)[1]), wrong(drawn("chain-sum:level=3", 0.5)[1])
    assert few < many and (len(few), len(many)) == (8, 20)
    assert wrong(drawn("chain-sum:level=3", 0.2)[1]) == few != wrong(drawn("chain-sum:level=3", 0.2, seed=4)[1])


def test_each_problem_once_an_epoch_and_resume() -> None:
    source, first = drawn("parity:level=2", 0.5, limit=10)
    again = NoisyLabels(0.5, 10)
    again.bind(get_task("parity:level=2"), 3)
    again.load_state_dict(source.state_dict())
    assert again.draw(7) == source.draw(7)
    assert sorted(p.id for p in first) == sorted({p.id for p in first})


def test_long_gold_answers_are_left_out_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "silver.jsonl"
    rows = [{"prompt": f"q{i}", "answer": f"{i}" if i % 2 else f"it is about {i} or so"} for i in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = NoisyLabels(0.5, limit=0, words=1)
    task = get_task(str(path), verifier="exact")
    source.bind(task, 0)
    kept = source.draw(source.size)
    # the split of a file is by hash of its prompts, so that not all 60 are there to train on
    assert source.counts["problems"] + source.counts["left out, long answer"] == len(task.problems("train"))
    assert all(len((p.answer or "").split()) == 1 for p in kept) and source.counts["left out, long answer"] > 10
    assert len(wrong(kept)) == round(len(kept) / 2)


def test_what_it_refuses() -> None:
    with pytest.raises(WhetError, match="share from 0 to 1"):
        NoisyLabels(1.5)
    with pytest.raises(WhetError, match="does not go by the gold answer"):
        drawn("countdown:level=1", 0.5)
    with pytest.raises(WhetError, match="say how many rows"):
        drawn("parity", 0.5, limit=0)
    with pytest.raises(WhetError, match="words or fewer"):
        drawn("parity", 0.0, words=-1)
