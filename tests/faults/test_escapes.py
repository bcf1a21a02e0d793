"""No hostile answer earns anything on any backend, and each backend stops what it says it stops."""

from __future__ import annotations

import sys
from collections import Counter

import pytest

if sys.platform != "linux":
    pytest.skip("the surroundings of escapes are made for Linux", allow_module_level=True)

from escapes import SHOULD_HOLD, Found, kinds, survey, table
from snippets import ESCAPES

from whet.sandbox.backends import Backend, probe
from whet.tasks.problem import Verdict

FAST = ("public file", "inherited variables", "write outside", "symbolic link to a system file", "tcp", "kill a bystander",
        "daemon", "large file", "forged results", "patched equality", "exit on import", "attach", "endless recursion")  # fmt: skip
# what limits alone let pass, where the parent is root; with its layers no backend lets anything pass
WITHOUT_LAYERS = {
    "namespaces": {"new namespaces"},
    "rlimits": {"system file", "public file", "list the root", "write outside", "write to /tmp", "write to shared memory",
                "write to /var/tmp", "symbolic link to a system file", "tcp", "udp", "url", "abstract socket", "listen",
                "ctypes system", "new namespaces", "System V memory"},
}  # fmt: skip


def passes(found: list[Found]) -> None:
    assert [row.name for row in found if row.rewarded] == []
    assert [(row.name, row.verdict.reason) for row in found if row.verdict.status == "error"] == []
    for row in found:
        known = WITHOUT_LAYERS.get(row.backend, set())
        assert row.stopped or row.name in known, (row.backend, row.name, row.breaches)


def test_there_are_many_and_no_two_of_a_name() -> None:
    assert len(ESCAPES) >= 60 and max(Counter(e.name for e in ESCAPES).values()) == 1
    assert {e.kind for e in ESCAPES} == {"python", "script", "sql"} and set(FAST) < {e.name for e in ESCAPES}


def test_some_on_the_strongest() -> None:
    found = list(survey([probe()], FAST))
    assert len(found) == len(FAST) + 1
    passes(found)
    assert all(row.stopped for row in found)


def test_the_survey_sees_what_gets_through() -> None:
    bare = Backend("rlimits")
    if bare not in kinds():
        pytest.skip("limits alone do not work here")
    found = {row.name: row for row in survey([bare], ("public file", "write outside", "tcp"))}
    passes(list(found.values()))
    assert found["public file"].breaches == ("read a secret",)
    assert found["write outside"].breaches == ("wrote outside",)
    assert found["tcp"].breaches == ("reached a server",)
    assert found[SHOULD_HOLD].stopped


def test_the_table() -> None:
    rows = [Found("a", "x", (), Verdict(0.0, "wrong"), 1.0), Found("a", "y", ("time",), Verdict(1.0, "ok"), 1.0)]
    assert table([row.row() for row in rows])[1:] == [["a", 2, 1, 1, "y (time)"]]


@pytest.mark.slow
def test_all_on_every_backend() -> None:
    for backend in kinds():
        found = list(survey([backend]))
        assert len(found) == len(ESCAPES)
        passes(found)
