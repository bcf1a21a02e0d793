"""The verifiers that run answers: what is right, what is wrong, and that no failure of a program is an error of ours."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from whet.errors import WhetError
from whet.sandbox.backends import Backend
from whet.sandbox.parent import Limits, Outcome
from whet.tasks import Problem, Response, Verdict
from whet.tasks import programs as module
from whet.tasks.files import read_files
from whet.tasks.programs import Python, Sql, is_ordered, program_of
from whet.tasks.verify import check_gold, get_verifier, gold_response

ADD = {"entry": "add", "tests": [{"args": [1, 2], "output": 3}, {"args": [0.1], "kwargs": {"b": 0.2}, "output": 0.3}]}
SCHEMA = "CREATE TABLE t (a, b); INSERT INTO t VALUES (1, 'x'), (2, 'y'), (2, 'y'), (3, x'00ff');"


def judged(code: str | None, data: dict[str, Any], gold: str | None = None) -> Verdict:
    return (Sql() if "schema" in data else Python())(Problem("p", "?", gold, data=data), Response(code or "", code))


def test_a_function_is_called_and_what_it_returns_compared_here() -> None:
    assert judged("def add(a, b): return a + b", ADD) == Verdict(1.0, "ok", {"tests": 1.0})
    half = judged("def add(a, b): return int(a + b)", ADD)
    assert (half.value, half.status, half.parts, half.reason) == (0.0, "wrong", {"tests": 0.5}, "test 2: returned 0")
    assert judged("def add(a, b): raise KeyError('no')", ADD).reason == "test 1: KeyError: 'no'"
    assert judged("def other(): pass", ADD).status == "unparseable"
    assert judged("def add(a, b) return", ADD).reason.startswith("SyntaxError")
    assert judged(None, ADD).status == judged(" ", ADD).status == judged("x" * 60_000, ADD).status == "unparseable"


@pytest.mark.parametrize(("output", "code", "right"), [
    (1, "True", False), (True, "1", False), (1, "1.0", True), ("1", "1", False), ([1, 2], "(1, 2)", True), (None, "None", True),
    ({"1": 2}, "{1: 2}", True), ([], "{}", False), (3, "{3}", False), (0, "float('nan')", False), ("\u00e9", "chr(233)", True),
])  # fmt: skip
def test_values_are_json_of_one_kind(output: Any, code: str, right: bool) -> None:
    tests = [{"args": [0], "output": output}, {"args": [1], "output": 1}]
    found = judged(f"def f(x): return x or {code}", {"entry": "f", "tests": tests})
    assert found.value == float(right) and found.status == ("ok" if right else "wrong")


def test_a_function_that_does_nothing_earns_nothing() -> None:
    with pytest.raises(WhetError, match="all tests expect null"):
        judged("def f(x): pass", {"entry": "f", "tests": [{"input": 1, "output": None}]})


def test_a_program_reads_and_prints() -> None:
    data = {"tests": [{"stdin": "3 4\n", "stdout": "7"}, {"stdin": "1 1\n", "stdout": "2\n"}]}
    assert judged("a, b = map(int, input().split())\nprint(a + b, ' ')", data).value == 1.0
    assert judged("import sys\nprint(sum(map(int, sys.stdin.read().split())))", data).value == 1.0
    assert judged("print(7)", data).parts == {"tests": 0.5}
    late = judged("print(sum(map(int, input().split())))\nraise ValueError", data)  # right, and then broken
    assert (late.value, late.reason) == (0.0, "test 1: exit code 1")


def test_the_program_is_the_last_fenced_block_or_all_of_it() -> None:
    assert program_of("x") == "x" and program_of(None) == ""
    assert program_of("First\n```python\na\n```\nthen\n```\nb\nc\n```\nDone.") == "b\nc"
    assert program_of("```python\n```") == ""
    assert program_of("a\n```\nb") == "a\n```\nb"  # never closed


def test_programs_with_the_same_results_have_one_vote() -> None:
    one, other = judged("def add(a, b): return a + b", ADD), judged("add = lambda a, b: sum([a, b])", ADD)
    assert one.label == other.label != judged("def add(a, b): return 0", ADD).label


def test_what_a_program_does_is_its_fault_and_what_the_sandbox_does_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for status, value in (("time", 0.0), ("killed", 0.0), ("output", 0.0), ("failed", math.nan)):
        monkeypatch.setattr(module, "run", lambda *_, s=status: Outcome(s, reason="so"))
        for data, gold in ((ADD, None), ({"tests": [{"stdin": "", "stdout": "1"}]}, None)):
            found = judged("def add(a, b): return a + b", data, gold)
            assert found.value == value or (math.isnan(found.value) and found.status == "error")
    found = judged("SELECT 1", {"schema": SCHEMA}, "SELECT 1")
    assert found.status == "error" and "gold" in found.reason


@pytest.mark.parametrize("data", [
    {}, {"tests": []}, {"tests": [3], "entry": "f"}, {"tests": [{"output": 1}], "entry": "no name"}, {"tests": [{"stdin": "x"}]},
    {"tests": [{"args": 3, "output": 1}], "entry": "f"}, {"tests": [{"args": []}], "entry": "f"}, {"tests": [{"stdout": " "}]},
])  # fmt: skip
def test_a_row_without_tests_is_refused_by_name(data: dict[str, Any]) -> None:
    with pytest.raises(WhetError, match="problem 'p': "):
        judged("def f(): pass", {"tests": None} | data)


def test_queries_are_compared_by_their_rows() -> None:
    data = {"schema": SCHEMA}
    assert judged("SELECT b AS other FROM t WHERE a = 2", data, "SELECT b FROM t WHERE b = 'y'").value == 1.0
    assert judged("SELECT DISTINCT b FROM t WHERE a = 2", data, "SELECT b FROM t WHERE a = 2").value == 0.0  # as often
    assert judged("SELECT a, 1 FROM t", data, "SELECT a FROM t").value == 0.0
    assert judged("SELECT a FROM t ORDER BY a DESC", data, "SELECT a FROM t").value == 1.0
    assert judged("SELECT a FROM t ORDER BY a DESC", data, "SELECT a FROM t ORDER BY a").value == 0.0
    assert judged("SELECT 2.0 + 0.1 + 0.2", data, "SELECT 2.3").value == 1.0
    assert judged("SELECT b FROM t WHERE a = 3", data, "SELECT x'00ff'").value == 1.0
    assert judged("SELECT c FROM t", data, "SELECT a FROM t").reason == "OperationalError: no such column: c"
    assert judged("```sql\nSELECT max(a) FROM t;\n```", data, "SELECT 3").value == 1.0


def test_a_constant_is_found_out_by_a_second_database() -> None:
    other = "CREATE TABLE t (a, b); INSERT INTO t VALUES (7, 'x');"
    gold = "SELECT max(a) FROM t"
    assert judged("SELECT 3", {"schema": SCHEMA}, gold).value == 1.0
    assert judged("SELECT 3", {"schema": [SCHEMA, other]}, gold).value == 0.0
    assert judged("SELECT a FROM t ORDER BY a DESC LIMIT 1", {"schema": [SCHEMA, other]}, gold).value == 1.0


def test_a_gold_query_that_tells_nothing_apart_is_an_error() -> None:
    for gold, schema in (("SELECT a FROM t WHERE 0", SCHEMA), ("SELECT nothing", SCHEMA), ("SELECT 1", "CREATE TABLE")):
        found = judged("SELECT a FROM t WHERE 0", {"schema": schema}, gold)
        assert found.status == "error" and math.isnan(found.value)
    with pytest.raises(WhetError, match="'schema'"):
        Sql()(Problem("p", "?", "SELECT 1"), Response("SELECT 1", "SELECT 1"))


def test_where_a_query_is_ordered() -> None:
    assert is_ordered("select a from t\norder   by a")
    for query in ("SELECT a FROM (SELECT a FROM t ORDER BY a)", "SELECT 'order by'", 'SELECT "order by" -- order by\n',
                  "SELECT rank() OVER (ORDER BY a) FROM t", "SELECT 1 /* order by */", "SELECT [order by] FROM t"):  # fmt: skip
        assert not is_ordered(query)


@pytest.mark.filterwarnings("ignore:.*left out")
def test_a_file_of_programs_is_a_task(tmp_path: Path) -> None:
    path = tmp_path / "programs.jsonl"
    rows = [{"prompt": f"Add {n}.", "answer": f"def f(x): return x + {n}", "entry": "f",
             "tests": [{"input": 1, "output": 1 + n}]} for n in range(4)]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = read_files(str(path), "python", test=str(path), validation=str(path))
    problems = task.problems("test")
    check_gold(task, problems[:1])
    answers = [gold_response(problems[0])] * 4
    assert [v.value for v in task.verify_all(list(zip(problems, answers, strict=True)))] == [1.0, 0.0, 0.0, 0.0]
    assert get_verifier("python") is module.python and get_verifier("sql") is module.sql


def test_a_wall_that_cannot_be_built_runs_nothing(tmp_path: Path) -> None:
    judge = Python(Limits(disk=-1), Backend("namespaces"))  # no file system has this size
    found = judge(Problem("p", "?", data=ADD), Response("", "def add(a, b): return a + b"))
    assert found.status == "error" and math.isnan(found.value) and "could not be built" in found.reason
