"""frozen-lake: a safe way over a frozen lake of four by four cells; the game is gymnasium's FrozenLake, without slipping.

Most maps have several shortest ways, and any safe way is right: what follows a move depends on it, whatever the gold way is.
"""

from __future__ import annotations

import importlib.util
import random
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from whet.errors import WhetError
from whet.tasks.problem import Problem, Response, Step, Verdict
from whet.tasks.task import Procedural

SIDE = 4
MOVES = "LDRU"  # in gymnasium's order
# level: holes, and the least number of moves to the goal
LEVELS = {1: (2, 2), 2: (4, 3), 3: (6, 4)}


class FrozenLake(Procedural):
    """`FFSF/FHFF/FHHF/FFGF S to G?` with the rationale `02 R 03`, `03 D 13` ... (cell, move, cell) and the moves as the answer.

    Contents: a map of S (start), G (goal), H (hole) and F (ice), anywhere on it. Dynamics: gymnasium's FrozenLake-v1 with
    `is_slippery=False`: left, down, right, up; a move off the map stays where it is. Gold: one of the shortest ways, at random.
    Verifier: the game is played; right is every way that ends at the goal without a move more. Part `shortest`.
    Levels: 1 two holes, 2 four, 3 six and at least four moves.

    Raises:
        WhetError: gymnasium is not installed.
    """

    name = "frozen-lake"
    levels = tuple(LEVELS)
    default_level = 2
    description = "a safe way over a 4 x 4 frozen lake (gymnasium)"

    def __init__(self, level: int | str | None = None) -> None:
        super().__init__(level)
        if importlib.util.find_spec("gymnasium") is None:
            raise WhetError("task 'frozen-lake' needs gymnasium: pip install 'whet[tasks]'")

    def draw(self, rng: random.Random, level: int) -> tuple[Any, ...]:
        """(seed of the gold way, the map)."""
        holes, least = LEVELS[level]
        while True:
            start, goal, *wet = rng.sample(range(SIDE * SIDE), 2 + holes)
            cells = ["S" if c == start else "G" if c == goal else "H" if c in wet else "F" for c in range(SIDE * SIDE)]
            rows = tuple("".join(cells[i : i + SIDE]) for i in range(0, SIDE * SIDE, SIDE))
            if distances(rows).get(start, 0) >= least:
                return rng.getrandbits(32), rows

    def identity(self, parameters: tuple[Any, ...]) -> object:
        return parameters[1]

    def build(self, parameters: tuple[Any, ...], level: int) -> Problem:
        seed, rows = parameters
        way = shortest(rows, random.Random(seed))
        steps = tuple(
            Step(f"{_cell(a)} {move} {_cell(b)}", "move", move, (i - 1,) if i else ())
            for i, (a, move, b) in enumerate(way)
        )
        return Problem(
            id="",
            prompt="/".join(rows) + " S to G?",
            answer="".join(move for _, move, _ in way),
            steps=steps,
            plan="Go from cell to cell towards the goal, around the holes.",
            category=f"level-{level}",
            data={"rows": rows, "least": len(way)},
        )

    def verify(self, problem: Problem, response: Response) -> Verdict:
        """Plays the answer's moves: one word, or one letter a word. Several words are several ways: no answer."""
        words = re.split(r"[\s,]+", (response.answer or "").strip(" \t\r\n,"))
        moves = "".join(words)
        if not moves or moves.strip(MOVES) or 1 < len(words) < len(moves):
            return Verdict(0.0, "unparseable", {"shortest": 0.0}, f"moves are {', '.join(MOVES)}, nothing else")
        fault = play(problem.data["rows"], moves)
        if fault:
            return Verdict(0.0, "wrong", {"shortest": 0.0}, fault)
        return Verdict(1.0, "ok", {"shortest": float(len(moves) == problem.data["least"])})

    def max_answer_tokens(self) -> int:
        longest = SIDE * SIDE  # moves of a way that visits no cell twice
        return longest * 9 + 24


@cache
def _game() -> Any:
    from gymnasium.envs.toy_text.frozen_lake import FrozenLakeEnv

    return FrozenLakeEnv


def play(rows: Sequence[str], moves: str) -> str:
    """What is wrong with a way; empty where it ends at the goal with its last move."""
    game = _game()(desc=list(rows), is_slippery=False)
    game.reset(seed=0)
    for i, move in enumerate(moves, 1):
        _, reward, ended, _, _ = game.step(MOVES.index(move))
        if ended and not reward:
            return f"move {i} ends in a hole"
        if ended:
            return "" if i == len(moves) else f"the goal is reached at move {i} of {len(moves)}"
    return "the way does not reach the goal"


@cache
def neighbours(cell: int) -> list[int]:
    """The cells that the moves lead to from a cell, as in gymnasium (whose game takes a millisecond to build)."""
    row, column = divmod(cell, SIDE)
    last = SIDE - 1
    around = (
        (row, max(column - 1, 0)),
        (min(row + 1, last), column),
        (row, min(column + 1, last)),
        (max(row - 1, 0), column),
    )
    return [r * SIDE + c for r, c in around]


def distances(rows: tuple[str, ...]) -> dict[int, int]:
    """Moves from each dry cell to the goal; a cell from which it cannot be reached is missing."""
    cells = "".join(rows)
    edge = [cells.index("G")]
    found = {edge[0]: 0}
    for cell in edge:  # it grows: the map is symmetric, so ways from the goal are ways to it
        for near in neighbours(cell):
            if near not in found and cells[near] != "H":
                found[near] = found[cell] + 1
                edge.append(near)
    return found


def shortest(rows: tuple[str, ...], rng: random.Random) -> list[tuple[int, str, int]]:
    """One of the shortest ways as (cell, move, cell)."""
    left = distances(rows)
    cell, way = "".join(rows).index("S"), []
    while left[cell]:
        action = rng.choice([a for a, near in enumerate(neighbours(cell)) if left.get(near, SIDE**2) < left[cell]])
        way.append((cell, MOVES[action], neighbours(cell)[action]))
        cell = way[-1][2]
    return way


def _cell(number: int) -> str:
    return f"{number // SIDE}{number % SIDE}"
