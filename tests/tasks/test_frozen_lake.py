"""frozen-lake: its rules are gymnasium's, its gold ways are the shortest, and any safe way is right."""

from __future__ import annotations

import importlib.util
import random

import pytest

pytest.importorskip("gymnasium")

from whet.errors import WhetError
from whet.tasks import Problem, Response, get_task
from whet.tasks.frozen_lake import LEVELS, MOVES, SIDE, distances, neighbours, play

ROWS = ("SFFF", "FHFH", "FFFH", "HFFG")


def lake(rows: tuple[str, ...]) -> Problem:
    return Problem("x", "", data={"rows": rows, "least": distances(rows)["".join(rows).index("S")]})


def verdict(answer: str | None, rows: tuple[str, ...] = ROWS):
    return get_task("frozen-lake").verify(lake(rows), Response(answer or "", answer))


def test_moves_are_those_of_the_game() -> None:
    import gymnasium

    game = gymnasium.make("FrozenLake-v1", desc=["SFFF", "FFFF", "FFFF", "FFFG"], is_slippery=False).unwrapped
    for cell in range(SIDE * SIDE - 1):
        assert neighbours(cell) == [game.P[cell][a][0][1] for a in range(4)]


@pytest.mark.parametrize("level", LEVELS)
def test_problems(level: int) -> None:
    task = get_task(f"frozen-lake:level={level}")
    holes, least = LEVELS[level]
    problems = task.problems("train", 200)
    for problem in problems:
        rows = problem.data["rows"]
        text = "".join(rows)
        assert len(text) == 16 and (text.count("S"), text.count("G"), text.count("H")) == (1, 1, holes)
        assert len(problem.answer) == distances(rows)[text.index("S")] >= least
        found = task.verify(problem, Response("", problem.answer))
        assert (found.value, found.status, found.parts["shortest"]) == (1.0, "ok", 1.0)
        assert [s.text.split()[1] for s in problem.steps] == list(problem.answer)
        at = text.index("S")  # the rationale walks the map
        for step in problem.steps:
            here, move, there = step.text.split()
            assert here == f"{at // SIDE}{at % SIDE}"
            at = neighbours(at)[MOVES.index(move)]
            assert there == f"{at // SIDE}{at % SIDE}" and text[at] != "H"
        assert text[at] == "G"
        assert task.max_answer_tokens() >= len(f"{problem.rationale}{problem.answer}")
    splits = [{p.prompt for p in task.problems(s, 300)} for s in ("train", "validation", "test")]
    assert not splits[0] & splits[1] and not splits[0] & splits[2] and not splits[1] & splits[2]


def test_distances_against_play() -> None:
    """No way that is shorter than the distance reaches the goal, and the walls do not kill."""
    rows = get_task("frozen-lake:level=3").problem("test", 0).data["rows"]
    least = distances(rows)["".join(rows).index("S")]
    rng = random.Random(0)
    for _ in range(300):
        moves = "".join(rng.choice(MOVES) for _ in range(rng.randrange(1, least)))
        assert play(rows, moves)
    assert distances(("SHFF", "HFFF", "FFFF", "FFFG")).get(0) is None


def test_several_ways_are_right_and_gold_is_one_of_them() -> None:
    for way in ("DDRRDR", "RRDDDR", "D D R, R D R", "LUDDRRDR"):
        assert verdict(way).value == 1.0
    assert verdict("DDRRDR").parts["shortest"] == 1.0 and verdict("LUDDRRDR").parts["shortest"] == 0.0
    task = get_task("frozen-lake")
    ways = {task.build((seed, ROWS), 2).answer for seed in range(40)}
    assert len(ways) == 3 and all(verdict(way).value == 1.0 for way in ways)
    assert task.identity((1, ROWS)) == task.identity((2, ROWS))  # in one split, whatever the gold way


def test_faults_are_named() -> None:
    assert (verdict("DR").status, verdict("DR").reason) == ("wrong", "move 2 ends in a hole")
    assert verdict("DDRRDRR").reason == "the goal is reached at move 6 of 7"
    assert verdict("DD").reason == "the way does not reach the goal"
    for nothing in (None, "", "down", "DDXX"):
        assert (verdict(nothing).value, verdict(nothing).status) == (0.0, "unparseable")


def test_it_says_what_it_lacks(monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WhetError, match=r"needs gymnasium: pip install 'whet\[tasks\]'"):
        get_task("frozen-lake")
    assert get_task("sort").problems("train", 1)
