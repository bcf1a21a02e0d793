"""reasoning-gym through our interface: gold answers of every data set, splits, levels, and hostile answers."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("reasoning_gym")

from whet.errors import WhetError
from whet.tasks import Problem, Response, Task, get_task
from whet.tasks import gym as gym_module
from whet.tasks.gym import DISAGREEING_LEVELS, KNOWN_DISAGREEMENTS, NO_GOLD, REFUSED_LEVELS, SUITE, Gym, gym_names
from whet.tasks.gym_server import EVALUATES, PARSES, is_harmless

# the library iterates over sets of strings here: without a fixed hash seed they differ from process to process
HASHED = ("isomorphic_strings", "knight_swap", "polynomial_multiplication", "ransom_note", "word_ladder")


def answered(answer: str | None) -> Response:
    return Response(answer or "", answer)


def gold_scores(name: str, n: int) -> list[float]:
    task = Gym(name)
    return [task.verify(p, answered(p.answer)).value for p in task.problems("train", n) if p.answer is not None]


# -- gold answers ------------------------------------------------------------------------------------------------------
def test_gold_answers_of_every_data_set_score_one() -> None:
    scores = {name: gold_scores(name, 4) for name in gym_names()}
    assert len(scores) >= 105
    assert {name for name, found in scores.items() if not found} == set(NO_GOLD)
    assert {name: min(found) for name, found in scores.items() if found and min(found) != 1.0} == KNOWN_DISAGREEMENTS


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(gym_names()) - set(NO_GOLD)))
def test_gold_answers_of_many_problems(name: str) -> None:
    assert min(gold_scores(name, 30)) == KNOWN_DISAGREEMENTS.get(name, 1.0)


# generation may take minutes there, or give up
COSTLY = {"jugs": (4,), "number_sequence": (4,), "sokoban": range(6, 15), "tsumego": (3, 4)}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(gym_names()) - set(NO_GOLD)))
def test_gold_answers_at_every_level_of_the_curriculum(name: str) -> None:
    try:
        levels = Gym(name, level=1).levels
    except WhetError as none:
        assert "no curriculum" in str(none)
        return
    for level in levels:
        task = Gym(name, level)
        if level in REFUSED_LEVELS.get(name, ()):
            with pytest.raises(WhetError, match="failed at 'draw': AssertionError"):
                task.problem("train", 0)
        elif level not in COSTLY.get(name, ()):
            problems, ends = [], time.monotonic() + 5
            while len(problems) < 5 and (not problems or time.monotonic() < ends):
                problems.append(task.problem("train", len(problems)))
            scores = {task.verify(p, answered(p.answer)).value for p in problems}
            assert scores == {1.0} or level in DISAGREEING_LEVELS.get(name, ()), (level, scores)
            assert name != "rubiks_cube" or level == 1 or scores == {0.01}  # mended in the library? then take it off


@pytest.mark.parametrize("name", NO_GOLD)
def test_sets_without_gold_answers(name: str) -> None:
    task = Gym(name)
    assert task.problem("train", 0).answer is None
    assert task.provides() == {"verifier", "unlimited"}


# -- positions, splits, levels -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["chain_sum", "suite", "acre", "list_functions"])
def test_splits_are_disjoint_and_positions_stable(name: str) -> None:
    task = Gym(name)
    prompts = [{p.prompt for s in (0, 1) for p in task.problems(split, 100, seed=s)} for split in ("train", "test")]
    assert not prompts[0] & prompts[1]
    assert min(map(len, prompts)) > 100
    assert task.problems("test", 8)[5] == task.problems("test", 1, start=5)[0]
    assert task.problems("test", 8) != task.problems("test", 8, seed=1)
    with pytest.raises(WhetError, match="no end"):
        task.problems("train")


def test_another_process_makes_the_same_problems() -> None:
    code = (
        "import json, sys; from whet.tasks import get_task; "
        "print(json.dumps([repr(get_task('gym:' + n).problems('train', 2)) for n in sys.argv[1:]]))"
    )
    names = [*HASHED, "list_functions", "suite"]
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, *names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [repr(Gym(n).problems("train", 2)) for n in names]


def test_levels_are_the_curriculum_and_options_the_configuration() -> None:
    assert Gym("chain_sum").problem("train", 0).level == 1
    hard = Gym("chain_sum", level="4-5")
    assert {p.level for p in hard.problems("train", 20)} == {4, 5}
    short = Gym("chain_sum", max_terms="2", max_digits=1)
    assert all(len(p.prompt.split(":")[1].split()) == 4 for p in short.problems("train", 20))  # 3 + 4 =
    for task in (hard, short, Gym("suite"), Gym("chain_sum", level=2, max_terms=3)):
        again = get_task(task.spec())
        assert again.spec() == task.spec()
        assert again.problems("validation", 5) == task.problems("validation", 5)
    assert Gym("chain_sum", level=1).problem("train", 0) != Gym("chain_sum", level=2).problem("train", 0)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("gym:chain_sun", "did you mean 'chain_sum'"),
        ("gym:composite", "unknown reasoning-gym data set"),
        ("gym:chain_sum:max_term=3", "did you mean 'max_terms'"),
        ("gym:chain_sum:max_terms=many", "is a int, not 'many'"),
        ("gym:chain_sum:level=99", "has levels 1 to"),
        ("gym:acre:level=2", "no curriculum"),
        ("gym:suite:level=2", "no levels or options"),
    ],
)
def test_mistakes_are_named(spec: str, said: str) -> None:
    name, _, rest = spec.removeprefix("gym:").partition(":")
    key, _, value = rest.partition("=")
    with pytest.raises(WhetError, match=said):
        Gym(name, **({key: value} if key else {}))


def test_a_configuration_that_the_library_refuses_is_an_error() -> None:
    with pytest.raises(WhetError, match=r"caesar_cipher.*rotation must be in range"):
        Gym("caesar_cipher", level=4).problem("train", 0)
    with pytest.raises(WhetError, match=r"chain_sum.*max_terms"):
        Gym("chain_sum", max_terms=1).problem("train", 0)


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    gym_module._server.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(WhetError, match=r"whet\[tasks\]"):
        Gym("chain_sum")


# -- the suite ---------------------------------------------------------------------------------------------------------
def test_suite_is_short_mixed_and_right() -> None:
    task = Gym("suite")
    problems = task.problems("train", 300)
    assert len(SUITE) == 20
    assert {p.category for p in problems} == set(SUITE)
    assert max(len(p.prompt) for p in problems) <= 200
    assert max(len(p.answer or "") for p in problems) <= 20
    for p in problems:
        assert task.verify(p, answered(p.answer)).value == 1.0, p
        assert task.verify(p, answered("?")).status == "wrong", p
    assert task.provides() == {"verifier", "unlimited", "demonstrations"}
    assert 16 <= task.max_answer_tokens() <= 64


def test_rationales_of_gsm_symbolic() -> None:
    task = Gym("gsm_symbolic")
    problem = next(p for p in task.problems("train", 5) if len(p.steps) > 1)
    assert "rationales" in task.provides()
    assert problem.steps[1].premises == (0,)
    assert "####" not in problem.rationale


# -- verdicts ----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def countdown() -> tuple[Task, Problem]:
    task = Gym("countdown")
    return task, task.problem("train", 0)


def test_verdicts(countdown: tuple[Task, Problem]) -> None:
    task, problem = countdown
    right = task.verify(problem, answered(problem.answer))
    assert (right.value, right.status, right.parts["score"]) == (1.0, "ok", 1.0)
    near = task.verify(problem, answered("1+1"))
    assert (near.value, near.status, near.reason) == (0.05, "wrong", "score 0.05")
    assert task.verify(problem, answered(None)).status == "unparseable"
    assert task.verify(problem, Response(problem.answer or "", None)).value == 0.0


def test_a_scorer_that_raises_is_an_error() -> None:
    task = Gym("prime_factorization")
    verdict = task.verify(task.problem("train", 0), answered("x"))
    assert math.isnan(verdict.value)
    assert verdict.status == "error"
    assert "ValueError" in verdict.reason


def test_a_scorer_that_hangs_is_ended(countdown: tuple[Task, Problem], monkeypatch: pytest.MonkeyPatch) -> None:
    task, problem = countdown
    monkeypatch.setattr(gym_module, "SCORE_SECONDS", 0.5)
    verdict = task.verify(problem, answered("9**9**9**9"))
    assert math.isnan(verdict.value)
    assert verdict.status == "timeout"
    monkeypatch.undo()
    assert task.verify(problem, answered(problem.answer)).value == 1.0


@pytest.mark.parametrize("name", sorted(EVALUATES | PARSES))
def test_answers_are_not_run_as_code(name: str, tmp_path: Path) -> None:
    target = tmp_path / "kept"
    target.write_text("x")
    task = Gym(name)
    problem = task.problem("train", 0)
    code = f"__import__('os').remove('{target}')"
    for hostile in (code, f"[{code}]", f"({code})!", f"x + {code}", f"'{{0.real}}'.format({code})", f"f'{{{code}}}'"):
        verdict = task.verify(problem, answered(hostile))
        assert verdict.value == 0.0, hostile
    assert target.exists()
    assert "refused" in task.verify(problem, answered(code)).reason


@pytest.mark.parametrize(
    ("name", "answer", "harmless"),
    [
        ("chain_sum", "__import__('os')", True),  # its scorer only compares
        ("spiral_matrix", "[1, -2, [3]]", True),
        ("spiral_matrix", "1 2 3", True),  # no expression, so eval gets nowhere
        ("spiral_matrix", "[1]*9**9", False),
        ("string_insertion", "ABCDE", True),
        ("string_insertion", "(lambda: 1)()", False),
        ("string_insertion", "[c for c in 'ab']", False),
        ("countdown", "(3 + 4)*5 - 6/2", True),
        ("countdown", "(1).real", False),
        ("countdown", "(1) . real", False),
        ("countdown", "exit()", False),
        ("countdown", "N('1')", False),
        ("simple_integration", "7*X**3/3 + sin(X) + C", True),
        ("simple_integration", "2.5*x", True),
        ("simple_integration", "eval(x)", False),
    ],
)
def test_harmless(name: str, answer: str, harmless: bool) -> None:
    assert is_harmless(name, answer) is harmless
