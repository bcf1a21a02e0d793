"""A harmless program that finds out whether a backend works."""

from __future__ import annotations

from whet.sandbox.backends import Backend
from whet.sandbox.parent import Limits, run
from whet.sandbox.values import results

PROGRAM = """
import os, json, math, sqlite3, decimal

def trial(a, b):
    with open("own.txt", "w") as file:
        file.write("x")
    os.remove("own.txt")
    return [a + b, len(os.environ), os.getuid()]
"""


def trial(backend: Backend) -> bool:
    """Whether `backend` runs it: its library is there, its folder can be written, its environment is empty."""
    job = {"kind": "function", "code": PROGRAM, "entry": "trial", "inputs": [{"args": [1, 2], "kwargs": {}}]}
    outcome = run(job, limits=Limits(cpu=10, seconds=20.0), backend=backend)
    found = results(outcome.output, 1) if outcome.status == "done" else []
    return bool(found) and "value" in found[0] and found[0]["value"][:2] == [3, 3]
