"""Load, in small: what is streamed is not held, a step late in a run costs what an early one costs. `make faults` has the full ones."""

from __future__ import annotations

import json
import math
import random
import sys
import tracemalloc
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import load

from trained import trained_policy
from whet.errors import WhetError
from whet.evaluation import matrix
from whet.models import format
from whet.seeds import rng_for
from whet.sources.problems import Mixture, Part, Uniform, epochs
from whet.tasks import get_task


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    load.write_rows(file, 1500, 4000)
    return file


def held(work) -> float:
    """MiB of Python's objects that are held at most while work() runs."""
    tracemalloc.start()
    try:
        kept = work()
        peak = tracemalloc.get_traced_memory()[1] / load.MIB
    finally:
        tracemalloc.stop()
    assert kept is not None
    return peak


def drawn(file: Path, n: int = 300) -> Uniform:
    problems = Uniform()
    problems.bind(get_task(str(file)), 0)
    for _ in range(n // 10):
        assert len(problems.draw(10)) == 10
    return problems


def test_a_file_is_not_held(rows: Path) -> None:
    size = rows.stat().st_size / load.MIB
    assert size > 5
    drawn(rows, 10)  # what is imported and kept once
    assert held(lambda: drawn(rows)) < size / 4


def test_the_rows_of_a_mixture_are_not_held(rows: Path) -> None:
    def mixed() -> Mixture:
        mixture = Mixture([Part(get_task(str(rows)))])
        mixture.bind(get_task(str(rows)), 0)
        mixture.draw(100)
        return mixture

    assert held(mixed) < rows.stat().st_size / load.MIB / 4


def test_the_order_is_the_one_of_a_file_that_is_held(rows: Path) -> None:
    """So that a run of before is resumed: the walk of each epoch is the shuffle of a list by the same seed."""
    order = list(range(50))
    rng_for(3, "epoch", 1).shuffle(order)
    assert epochs(50, 50, 50, 3) == order
    task = get_task(str(rows))
    all_of_it = task.problems("train")
    problems = Uniform()
    problems.bind(task, 3)
    assert problems.size == len(all_of_it)
    assert problems.draw(20) == [all_of_it[i] for i in epochs(len(all_of_it), 0, 20, 3)]
    state = problems.state_dict()
    again = Uniform()
    again.bind(get_task(str(rows)), 3)
    again.load_state_dict(state)
    assert again.draw(5) == problems.draw(5)


def test_a_pool_is_the_list_of_its_problems(rows: Path) -> None:
    task = get_task(str(rows))
    pool, listed = task.pool("train", 40), task.problems("train", 40)
    assert list(pool) == listed and len(pool) == 40
    assert pool[-1] == listed[-1] and pool[3:9:2] == listed[3:9:2]
    with pytest.raises(IndexError):
        pool[40]
    assert len(task.pool("train", 10**9)) == len(task.pool("train")) == len(task.problems("train"))
    with pytest.raises(WhetError, match="no split"):
        task.pool("dev")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "row", ["{", '{"answer": "1"}', '{"prompt": 3, "answer": "1"}', '{"prompt": "p", "answer": NaN}']
)
def test_a_bad_row_far_down_is_named(rows: Path, row: str) -> None:
    with rows.open("a") as out:
        out.write(row + "\n")
    with pytest.raises(WhetError, match=r"rows\.jsonl:1501: "):
        get_task(str(rows))


def test_a_file_that_changes_while_it_is_drawn_from(rows: Path) -> None:
    problems = drawn(rows, 10)
    with rows.open("a") as out:
        out.write(json.dumps({"prompt": "new", "answer": "1"}) + "\n")
    with pytest.raises(WhetError, match="changed while it was in use"):
        problems.draw(1)


def test_many_answers_are_asked_for_in_parts_and_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, task = trained_policy(), get_task("parity")
    problems, asked = task.problems("test", 50), []
    real = matrix._cells
    monkeypatch.setattr(matrix, "_cells", lambda *a: asked.append(len(a[2])) or real(*a))
    for k, heat in ((1, 0.0), (3, 1.0)):
        whole = matrix.evaluate(policy, task, problems, k=k, temperature=heat, seed=5).as_dict()
        monkeypatch.setattr(matrix, "AT_ONCE", 20)
        parts = matrix.evaluate(policy, task, problems, k=k, temperature=heat, seed=5).as_dict()
        monkeypatch.undo()
        monkeypatch.setattr(matrix, "_cells", lambda *a: asked.append(len(a[2])) or real(*a))
        for mine, theirs in zip(whole.pop("confidence"), parts.pop("confidence"), strict=True):
            assert mine == pytest.approx(theirs, abs=1e-5, nan_ok=True)  # rounding goes by what else is in the batch
        assert whole == parts
    assert asked == [50, 20, 20, 10, 50, *[6] * 8, 2]


def test_a_line_and_its_interval() -> None:
    assert load.line([0.0, 1.0, 2.0, 3.0], [1.0, 3.0, 5.0, 7.0]) == (2.0, 0.0)
    draw = random.Random(0)
    x = [i / 10 for i in range(40)]
    slope, error = load.line(x, [0.5 * a + draw.gauss(0, 0.1) for a in x])
    assert abs(slope - 0.5) < error < 0.1
    assert load.line([0.0, 1.0], [0.0, 1.0]) == (1.0, math.inf)


def test_a_short_run_keeps_nothing_of_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects do not come and go with the weather, as memory does: a list that grew by one a step would be seen."""
    monkeypatch.setattr(format, "CACHED", 200)  # which would be filled in the first thousand steps
    found = load.soak(200, every=20)
    assert found["objects_per_1000_steps"] < 100  # a tenth of an object a step
    assert found["metrics_bytes_per_step"] < 600


def test_texts_that_are_kept_encoded_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(format, "CACHED", 1000)
    made = trained_policy().format
    texts = [f"parity {i}" for i in range(500)]
    ids = [made.encode(text) for text in texts]
    assert sum(map(len, made._cache.values())) == made._cached <= 1000
    assert [made.encode(text) for text in texts] == ids  # kept or not
    made.encode(texts[0]).append(7)
    assert made.encode(texts[0]) == ids[0]  # what is given out is one's own


@pytest.mark.slow
def test_a_large_file() -> None:
    found = load.stream()
    assert found["holds"], found


@pytest.mark.slow
def test_a_large_evaluation() -> None:
    found = load.evaluate_many()
    assert found["holds"], found


@pytest.mark.slow
def test_long_runs() -> None:
    for found in (load.soak(), load.soak(2000, "grpo", 50, group=2)):
        assert found["holds"], found
