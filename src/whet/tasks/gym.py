"""gym: the data sets of reasoning-gym (https://github.com/open-thought/reasoning-gym), each with its own scorer.

`gym:chain_sum` is the library's default configuration, `gym:chain_sum:level=2` a level of its curriculum, and any
number or word of its configuration can be set by name (`gym:chain_sum:max_terms=3`). `gym:suite` mixes twenty sets
that a small model can start on. The library runs in a process of its own (see `gym_server`), which starts with the
first task and costs about a second.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import math
import os
import re
import select
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from whet.errors import WhetError, unknown
from whet.seeds import rng_for, seed_for
from whet.tasks.answers import plain_number, read_number
from whet.tasks.problem import Problem, Response, Split, Step, Verdict
from whet.tasks.task import Task, _levels

# name: (configuration, why it is a place to start)
SUITE: dict[str, tuple[dict[str, Any], str]] = {
    "basic_arithmetic": ({"max_terms": 3, "max_digits": 1}, "the shortest prompt there is; one number"),
    "chain_sum": ({"max_terms": 3, "max_digits": 1}, "running totals of single digits"),
    "products": ({"max_terms": 2, "max_digits": 1}, "the multiplication table"),
    "simple_equations": ({"max_terms": 2, "max_value": 20}, "one unknown, one number"),
    "number_sequence": ({"max_complexity": 1, "max_value": 20}, "a short rule seen in a few numbers"),
    "gcd": ({"max_value": 30}, "a small number from two small numbers"),
    "lcm": ({"max_value": 12}, "two small numbers, one number of at most three digits"),
    "count_bits": ({"max_n": 64}, "one small number in, one digit out"),
    "count_primes": ({"max_n": 50}, "an interval below 50"),
    "complex_arithmetic": (
        {"min_real": -5, "max_real": 5, "min_imag": -5, "max_imag": 5, "operations_weights": [0.5, 0.5, 0, 0]},
        "two sums of small numbers side by side",
    ),
    "fraction_simplification": ({"max_value": 20, "max_factor": 5}, "two small numbers over each other"),
    "decimal_chain_sum": ({"max_terms": 2, "max_digits": 1, "max_decimal_places": 1}, "sums with one decimal"),
    "base_conversion": ({"max_value": 60, "max_base": 4}, "short numerals"),
    "calendar_arithmetic": ({}, "a weekday or a small number"),
    "time_intervals": ({"task_types": ["time"]}, "one difference of clock times within a day"),
    "spell_backward": ({"max_word_len": 4}, "letters in, letters out"),
    "letter_counting": ({"max_words": 5}, "one small count"),
    "leg_counting": ({"max_animals": 3}, "a sum of small products"),
    "family_relationships": ({"max_family_size": 4}, "one word out, from a few relations"),
    "syllogism": ({}, "yes or no from two premises"),
}
# Where the library's scorer does not give 1 to its own gold answer: the lowest score over the first 30 problems of
# train (an example answer such as `P` is scored as trivial). `python -m benchmarks.gym` measures all of it.
KNOWN_DISAGREEMENTS = {"propositional_logic": 0.05}
# Levels of the curriculum where it does so though it does not by default: on cubes above 3 the example solution fails.
DISAGREEING_LEVELS = {"propositional_logic": (1, 2, 3, 4, 5), "rubiks_cube": (2, 3, 4)}
# Levels whose configuration the library's own check refuses.
REFUSED_LEVELS = {
    "caesar_cipher": (3, 4), "knight_swap": (1, 2, 3, 4, 5), "modulo_grid": (2,), "rubiks_cube": (5,), "survo": (3, 4),
}  # fmt: skip
# Sets whose items carry no answer at all; their scorers judge moves.
NO_GOLD = ("boxnet", "rush_hour")

TWO_ANSWERS = {"game_of_life_halting"}  # whose scorer takes every text but `True` for `False`
# whose scorers look at no word behind the gold answer's last, or pass over what is no move
WORD_BY_WORD = {"letter_jumble", "spell_backward", "word_sorting", "sokoban"}
START_SECONDS, ITEM_SECONDS, SCORE_SECONDS = 300.0, 120.0, 10.0  # a busy machine takes long to import


class Gym(Task):
    """Data set: reasoning-gym's `name`, or the mixture `suite`.

    Contents: generated puzzles with verifiers, 105 sets from algebra to games. Source: reasoning-gym (Apache-2.0),
    whose `codeio` runs code it ships. Splits: a hash of the question's text, so they are disjoint whatever seed or
    level made it; the problem of a position does not depend on how many are drawn. Scores: the library's own,
    clipped to [0, 1], as value and part `score`; many give a little for a wrong answer (0.01) and part for a
    near one. What a scorer would take that commits to no answer is
    unparseable: nothing, nan and inf, digits that are not ASCII, and a text that earns 1 with another number, `or` or
    `not` beside the gold answer. Limits: `boxnet` and `rush_hour` have no gold answer; `rubiks_cube` rejects its own solutions from level 2 on, and `puzzle24` takes any four numbers for the given ones; `prime_factorization`, `boxnet` and `game_of_life`
    raise on many malformed answers, whose verdicts are then `error`; and an answer that a scorer would run as code is
    refused where it is more than data or algebra.

    Args:
        name: a name from `gym_names()`, or `suite`.
        level: a level of the library's curriculum, from 1, or several as "1-3"; None for its default configuration.
        options: numbers and words of the set's configuration.

    Raises:
        WhetError: unknown name, option or level, a refused configuration, or the extra `tasks` is missing.
    """

    name = "gym"
    description = "the data sets of reasoning-gym, each with its own scorer; gym:suite mixes twenty short ones"
    gives_shares = True

    def __init__(self, name: str = "suite", level: int | str | None = None, **options: Any) -> None:
        self.name = f"gym:{name}"
        if name == "suite":
            if level is not None or options:
                raise WhetError("task 'gym:suite' has no levels or options: name one of its data sets to set them")
            self.description = f"{len(SUITE)} short data sets of reasoning-gym, mixed"
            self._options = {member: json.dumps(settings) for member, (settings, _) in SUITE.items()}
        else:
            if name not in (known := gym_names()):
                raise unknown("reasoning-gym data set", name, [*known, "suite"])
            about = _ask("describe", name)
            self.description = f"reasoning-gym's {name.replace('_', ' ')}"
            self.levels = tuple(range(1, about["levels"] + 1)) or (1,)
            self._options = {name: json.dumps(_cast(name, options, about["fields"]), sort_keys=True)}
            if level is not None and not about["levels"]:
                raise WhetError(f"task '{self.name}' has no curriculum in reasoning-gym: leave out its level")
        self._given = {"level": level, **options} if level is not None else options
        # the server calls the default configuration level 0
        self._chosen = (0,) if level is None else _levels(level, self.levels, self.name)

    def problems(self, split: Split, n: int | None = None, *, seed: int = 0, start: int = 0) -> list[Problem]:
        if n is None:
            raise WhetError(f"task '{self.name}' is generated and has no end: say how many problems")
        return [self.problem(split, start + i, seed=seed) for i in range(n)]

    def problem(self, split: Split, index: int, *, seed: int = 0) -> Problem:
        """Problem number `index` of a split."""
        path = (self.name, self.version, split, index)
        rng = rng_for(seed, *path)
        member, level = rng.choice(list(self._options)), rng.choice(self._chosen)
        options = self._options[member]
        found = _ask("draw", member, level, options, split, seed_for(seed, *path, "item"), seconds=ITEM_SECONDS)
        return Problem(
            id=f"{self.name}/{self.version}/{split}/{seed}/{level}/{index}",
            prompt=found["question"],
            answer=found["answer"],
            task=self.name,
            level=max(level, 1),
            steps=tuple(Step(line, "text", member, (i - 1,) if i else ()) for i, line in enumerate(found["steps"])),
            category=member,
            data={"dataset": member, "level": level, "options": options, "index": found["index"]},
        )

    def verify(self, problem: Problem, response: Response) -> Verdict:
        """The library's score of the answer, clipped to [0, 1]; a scorer that raises or hangs gives NaN."""
        if response.answer is None:
            return Verdict(0.0, "unparseable", {"score": 0.0}, "no answer found")
        data = problem.data
        fault = _unsettled(response.answer, problem.answer)
        if not fault and data["dataset"] in TWO_ANSWERS and response.answer.strip().casefold() not in ("true", "false"):
            fault = "neither True nor False"
        if fault:
            return Verdict(0.0, "unparseable", {"score": 0.0}, fault)
        where = (data["dataset"], data["level"], data["options"], data["index"])
        try:
            score = _ask("score", *where, response.answer, seconds=SCORE_SECONDS)
        except _TimedOut as problem_:
            return Verdict(math.nan, "timeout", reason=str(problem_))
        except WhetError as problem_:
            return Verdict(math.nan, "error", reason=str(problem_))
        if score is None:
            return Verdict(0.0, "unparseable", {"score": 0.0}, "the scorer would run this answer as code: refused")
        if not math.isfinite(score):
            return Verdict(math.nan, "error", reason=f"the scorer of '{data['dataset']}' gave {score}")
        value = min(1.0, max(0.0, score))
        longer = data["dataset"] in WORD_BY_WORD and _words(response.answer) != _words(problem.answer or "")
        if value == 1.0 and (longer or _hedges(response.answer, problem.answer)):
            return Verdict(0.0, "unparseable", {"score": 0.0}, "not one settled answer")
        right = value == 1.0
        return Verdict(value, "ok" if right else "wrong", {"score": value}, "" if right else f"score {value:g}")

    def provides(self) -> set[str]:
        found = {"verifier", "unlimited"}
        if not set(self._options) & set(NO_GOLD):
            found.add("demonstrations")
        if set(self._options) == {"gsm_symbolic"}:
            found.add("rationales")
        return found

    def spec(self) -> str:
        return self.name + "".join(f":{key}={value}" for key, value in self._given.items())

    @functools.cached_property
    def _longest(self) -> int:
        probe = self.problems("train", 32)
        return max(len(f"{p.rationale}{p.answer or ''}".encode()) for p in probe)

    def max_answer_tokens(self) -> int:
        """Twice the bytes of the longest of 32 gold answers: no tokenizer takes more than a token a byte."""
        return max(16, 2 * self._longest)


def gym_names() -> list[str]:
    """All data sets of the installed reasoning-gym, without the mixture `suite`."""
    return list(_ask("names"))


def _cast(name: str, options: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    """The options with the types of the configuration's defaults (a spec's values are text)."""
    cast: dict[str, Any] = {}
    for key, text in options.items():
        if key not in fields:
            raise unknown(f"option of reasoning-gym's '{name}'", key, fields)
        kind = type(fields[key])
        try:
            cast[key] = str(text).lower() in ("true", "1") if kind is bool else kind(text)
        except ValueError:
            raise WhetError(f"option '{key}' of reasoning-gym's '{name}' is a {kind.__name__}, not '{text}'") from None
    return cast


# -- the process -------------------------------------------------------------------------------------------------------
class _TimedOut(WhetError):
    """The library did not answer in time; its process was ended, and the next question starts another."""


class _Server:
    """The running `gym_server` of this process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        environment = {
            "PATH": os.environ.get("PATH", ""),
            "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path),
            "PYTHONHASHSEED": "0",
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "whet.tasks.gym_server"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True,
        )  # fmt: skip

    def ask(self, request: list[Any], seconds: float) -> Any:
        what = f"reasoning-gym's '{request[1]}'" if len(request) > 1 else "reasoning-gym"
        assert self.process.stdin is not None and self.process.stdout is not None
        with self.lock:
            try:
                self.process.stdin.write(json.dumps(request) + "\n")
                self.process.stdin.flush()
                ready, _, _ = select.select([self.process.stdout], [], [], seconds)
                line = self.process.stdout.readline() if ready else ""
            except BrokenPipeError:
                ready, line = [True], ""
            except BaseException:  # interrupted: the reply still to come would be taken for the next one's
                self.end()
                raise
        if not line:
            self.end()
            if not ready:
                raise _TimedOut(f"{what} did not answer '{request[0]}' within {seconds:g} s")
            raise WhetError(f"{what} ended its process during '{request[0]}' (out of memory?)")
        reply = json.loads(line)
        if "error" in reply:
            raise WhetError(f"{what} failed at '{request[0]}': {reply['error']}")
        return reply["ok"]

    def end(self) -> None:
        """Kill the process; the next request starts another."""
        self.process.kill()
        self.process.wait()
        _server.cache_clear()


@functools.lru_cache(maxsize=1)
def _server(pid: int) -> _Server:
    """One for each process: a forked child must not share its parent's pipe."""
    if importlib.util.find_spec("reasoning_gym") is None:
        raise WhetError("task 'gym' needs reasoning-gym: pip install 'whet[tasks]'")
    server = _Server()
    try:
        server.ask(["names"], START_SECONDS)
    except WhetError:
        raise WhetError("reasoning-gym does not start: see what `python -m whet.tasks.gym_server` says") from None
    return server


# some scorers search the answer, and a comparison with nan or inf can come out true
_NOT_FINITE = re.compile(r"(?<![^\W_])(?:nanj?|inf(?:inity)?j?)(?![^\W_])|∞", re.IGNORECASE)
_BESIDE = re.compile(r"\d|\b(?:or|either|not)\b|n['’]t\b", re.IGNORECASE)


def _unsettled(answer: str, gold: str | None) -> str:
    """Why the library's scorer must not see an answer; empty where it may."""
    if not answer.strip():
        return "no answer"
    if _NOT_FINITE.search(answer) and not _NOT_FINITE.search(gold or ""):
        return "not a finite number"
    if _foreign_digits(answer) and not _foreign_digits(gold or ""):
        return "digits that are not ASCII"
    return ""


def _words(text: str) -> int:
    return len(re.findall(r"[^\s,;<>\\{}]+", text))


def _foreign_digits(text: str) -> bool:
    return not text.isascii() and any(c.isdigit() and not c.isascii() for c in text)


def _hedges(answer: str, gold: str | None) -> bool:
    """Whether the gold answer stands in the text beside a number, an alternative or a denial, or in an expression."""
    if not gold or not gold.strip() or " ".join(answer.split()) == " ".join(gold.split()):
        return False
    if plain_number(gold) is not None and read_number(answer)[0] is None:
        return True
    rest = re.sub(rf"(?<![\w.]){re.escape(gold.strip())}(?!\w|\.\w)", " ", answer)
    return rest != answer and _BESIDE.search(rest) is not None


def _ask(*request: Any, seconds: float = ITEM_SECONDS) -> Any:
    return _server(os.getpid()).ask(list(request), seconds)
