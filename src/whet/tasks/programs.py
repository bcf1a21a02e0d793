"""Verifiers `python` and `sql`: run the program that an answer is, and compare what comes out with what should.

The program runs in a sandbox (`whet.sandbox`) and is told inputs only. The expected results stay in this process, which
compares them as JSON values. A program that breaks, hangs, or is stopped is `wrong`; only a sandbox that did not work is
an `error`. Nothing is left out of the baselines because a program misbehaved.

Rows of `python`:

| field | holds |
|---|---|
| `tests` | a list: `{"args": [..], "output": ..}` or `{"input": .., "output": ..}` calls the function (`kwargs` may stand beside `args`); `{"stdin": "..", "stdout": ".."}` runs the program |
| `entry` | the function's name; not for programs |
| `answer` | a solution, if there is one: it is tried before a run |

Rows of `sql`: `schema` is a script that makes the database, or a list of scripts: a query must be right on each, which
tells a query from a lucky constant (Zhong, Yu, Klein 2020, https://arxiv.org/abs/2010.02840); `answer` is the gold query.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

from whet.errors import WhetError
from whet.sandbox.backends import Backend
from whet.sandbox.parent import Limits, Outcome, run
from whet.sandbox.values import equal, results, same_rows, same_text, too_deep
from whet.tasks.math_answers import cores
from whet.tasks.problem import Problem, Response, Verdict

LONG = 50_000  # characters of a program
OPERATIONS = 20_000_000  # of SQLite's machine, for one query
NAN = float("nan")

_FENCE = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)^[ \t]*```[ \t]*$", re.MULTILINE | re.DOTALL)
_NOT_OUTSIDE = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|`[^`]*`|\[[^\]]*\]|--[^\n]*|/\*.*?\*/", re.DOTALL)


def program_of(answer: str | None) -> str:
    """The program in an answer: its last fenced block, or all of it where it has none; "" where there is nothing.

    Markdown fences around nothing are nothing, and a fence that is not closed is no fence.
    """
    text = answer or ""
    blocks = _FENCE.findall(text) if "```" in text else []
    return (blocks[-1] if blocks else text).strip("\n \t")


class _Runs:
    """What both verifiers share.

    Args:
        limits: of one program.
        backend: None takes the strongest that works, found at the first program.
    """

    def __init__(self, limits: Limits | None = None, backend: Backend | None = None) -> None:
        self.limits, self.backend = limits or Limits(), backend

    def several(self, pairs: Sequence[tuple[Problem, Response]]) -> list[Verdict]:
        """The verdicts on many responses, in order; as many programs at a time as there are cores."""
        with ThreadPoolExecutor(min(cores(), max(1, len(pairs)))) as threads:
            return list(threads.map(lambda pair: self(*pair), pairs))

    def __call__(self, problem: Problem, response: Response) -> Verdict:
        raise NotImplementedError

    def _run(self, job: dict[str, Any], stdin: bytes = b"") -> Outcome:
        return run(job, stdin, self.limits, self.backend)


class Python(_Runs):
    """The answer is a Python program that passes all tests of its row; `parts["tests"]` is the share that it passes."""

    def __call__(self, problem: Problem, response: Response) -> Verdict:
        tests, entry = _tests(problem)
        code = program_of(response.answer)
        if not code or len(code) > LONG or not _writable(code):
            return _unparseable("no program" if not code else f"no program of at most {LONG} characters of text")
        found = self._functions(code, entry, tests) if entry else self._scripts(code, tests)
        if isinstance(found, Verdict):
            return found
        passed, label, reason = found
        share = sum(passed) / len(tests)
        right = all(passed)
        return Verdict(float(right), "ok" if right else "wrong", {"tests": share}, "" if right else reason, label)

    def _functions(
        self, code: str, entry: str, tests: list[dict[str, Any]]
    ) -> Verdict | tuple[list[bool], str | None, str]:
        inputs = [{"args": t["args"], "kwargs": t["kwargs"]} for t in tests]
        outcome = self._run({"kind": "function", "code": code, "entry": entry, "inputs": inputs})
        if outcome.status == "failed":
            return _error(outcome.reason)
        if outcome.status != "done":
            return _wrong(outcome.reason)
        first = results(outcome.output, 1)
        if first and "missing" in first[0]:
            return _unparseable(f"no function '{entry}'")
        if first and "broken" in first[0]:
            return _wrong(str(first[0]["broken"])[:200])
        lines = results(outcome.output, len(tests))
        if not lines:
            return _wrong("not one result for each test")
        passed = ["value" in line and equal(line["value"], t["output"]) for line, t in zip(lines, tests, strict=True)]
        bad = next((i for i, right in enumerate(passed) if not right), 0)
        told = str(lines[bad].get("error") or f"returned {json.dumps(lines[bad].get('value'))}")[:120]
        return passed, _label(outcome.output), f"test {bad + 1}: {told}"

    def _scripts(self, code: str, tests: list[dict[str, Any]]) -> Verdict | tuple[list[bool], str | None, str]:
        passed: list[bool] = []
        reason, written = "", b""
        for number, test in enumerate(tests, 1):
            outcome = self._run({"kind": "script", "code": code}, test["stdin"].encode())
            if outcome.status == "failed":
                return _error(outcome.reason)
            ended = outcome.status == "done" and outcome.code == 0
            passed.append(ended and same_text(outcome.output.decode(errors="replace"), test["stdout"]))
            written += outcome.output + b"\0"
            if not passed[-1] and not reason:
                told = f"wrote {outcome.output[:80]!r}" if ended else outcome.reason or f"exit code {outcome.code}"
                reason = f"test {number}: {told}"
            if outcome.status in ("time", "killed"):  # the others would take as long
                passed += [False] * (len(tests) - number)
                break
        return passed, _label(written), reason


class Sql(_Runs):
    """The answer is one SQL query that gives what the gold query gives: the same rows, each as often, on every database of the
    row; in the same order where the gold query orders them. Names of columns do not count.
    """

    def __init__(self, limits: Limits | None = None, backend: Backend | None = None) -> None:
        super().__init__(limits, backend)
        self._gold = lru_cache(1024)(self._wanted)

    def __call__(self, problem: Problem, response: Response) -> Verdict:
        if problem.answer is None:
            return _error(f"problem '{problem.id}' has no gold query")
        query = program_of(response.answer)
        if not query or len(query) > LONG or not _writable(query):
            return _unparseable("no query" if not query else f"no query of at most {LONG} characters of text")
        gold, ordered, labels = program_of(problem.answer), is_ordered(program_of(problem.answer)), b""
        wanted: list[list[Any]] = []
        for schema in _schemas(problem):
            try:
                wanted.append(self._gold(schema, gold))
            except _NoGold as failure:
                return _error(f"the gold query of problem '{problem.id}': {failure}")
        if not any(wanted):
            return _error(f"the gold query of problem '{problem.id}' gives no rows, as many a wrong one does")
        for schema, rows in zip(_schemas(problem), wanted, strict=True):
            given = self._ask(schema, query)
            if isinstance(given, str):
                return _error(given[1:]) if given.startswith("!") else _wrong(given)
            labels += json.dumps(given).encode()
            if not same_rows(given, rows, ordered):
                return Verdict(
                    0.0, "wrong", {}, f"{len(given)} rows that are not the {len(rows)} wanted", _label(labels)
                )
        return Verdict(1.0, "ok", label=_label(labels))

    def _wanted(self, schema: str, gold: str) -> list[list[Any]]:
        rows = self._ask(schema, gold)
        if isinstance(rows, str):  # raised, so that it is not remembered
            raise _NoGold(rows.lstrip("!"))
        return rows

    def _ask(self, schema: str, query: str) -> list[list[Any]] | str:
        """The rows of a query, or what went wrong; with a ! before it where the query is not at fault."""
        outcome = self._run({"kind": "query", "schema": schema, "query": query, "operations": OPERATIONS})
        if outcome.status != "done":
            return ("!" if outcome.status == "failed" else "") + outcome.reason
        found = results(outcome.output, 1)
        if not found:
            return "no result"
        if "broken" in found[0]:
            return f"!the schema cannot be made: {found[0]['broken']}"
        return found[0]["value"] if "value" in found[0] else str(found[0].get("error"))[:200]


class _NoGold(Exception):
    """The gold query has no result."""


def is_ordered(query: str) -> bool:
    """Whether the outermost query has ORDER BY."""
    text, depth, outside = _NOT_OUTSIDE.sub(" ", query), 0, ""
    for character in text:
        depth += (character == "(") - (character == ")")
        outside += character if depth == 0 else ""
    return re.search(r"\border\s+by\b", outside, re.IGNORECASE) is not None


def _tests(problem: Problem) -> tuple[list[dict[str, Any]], str]:
    """A row's tests in one shape, and the function's name, "" for programs."""

    def refuse(what: str) -> WhetError:
        return WhetError(f"problem '{problem.id}': {what}")

    tests, entry = problem.data.get("tests"), problem.data.get("entry") or ""
    if not isinstance(tests, list) or not tests:
        raise refuse("verifier 'python' needs the field 'tests', a list of objects with 'args' and 'output', or 'stdin' "
                     "and 'stdout'")  # fmt: skip
    if not isinstance(entry, str) or (entry and not entry.isidentifier()):
        raise refuse("field 'entry' must be the name of a function")
    made: list[dict[str, Any]] = []
    for number, test in enumerate(tests, 1):
        if not isinstance(test, dict):
            raise refuse(f"test {number} must be an object")
        test = {key: value for key, value in test.items() if value is not None or key in ("output", "input")}
        if not entry:
            if not (isinstance(test.get("stdin", ""), str) and isinstance(test.get("stdout"), str)):
                raise refuse(f"test {number} needs the texts 'stdin' and 'stdout', or the row a field 'entry'")
            wanted = str(test["stdout"])
            if not wanted.strip():
                raise refuse(f"test {number} expects no output, which a program that does nothing gives")
            made.append({"stdin": test.get("stdin", ""), "stdout": wanted})
            continue
        args, kwargs = test.get("args", [test["input"]] if "input" in test else []), test.get("kwargs", {})
        if "output" not in test or not isinstance(args, list) or not isinstance(kwargs, dict):
            raise refuse(f"test {number} needs 'output', and 'input' (one value) or 'args' (a list)")
        if too_deep([args, kwargs, test["output"]]):
            raise refuse(f"test {number} is nested too deep")
        made.append({"args": args, "kwargs": kwargs, "output": test["output"]})
    if entry and all(test["output"] is None for test in made):
        raise refuse("all tests expect null, which a function that does nothing gives")
    return made, entry


def _schemas(problem: Problem) -> list[str]:
    schema = problem.data.get("schema")
    scripts = [schema] if isinstance(schema, str) else schema
    if not isinstance(scripts, list) or not scripts or not all(isinstance(s, str) for s in scripts):
        raise WhetError(f"problem '{problem.id}': verifier 'sql' needs the field 'schema', a script of SQL that makes the "
                        "database, or a list of scripts")  # fmt: skip
    return scripts


def _writable(text: str) -> bool:
    return not re.search("[\ud800-\udfff]", text)


def _label(output: bytes) -> str:
    """Programs with the same results have one vote."""
    return hashlib.blake2b(output, digest_size=12).hexdigest()


def _wrong(reason: str) -> Verdict:
    return Verdict(0.0, "wrong", reason=reason)


def _unparseable(reason: str) -> Verdict:
    return Verdict(0.0, "unparseable", reason=reason)


def _error(reason: str) -> Verdict:
    return Verdict(NAN, "error", reason=reason)


python = Python()
sql = Sql()
