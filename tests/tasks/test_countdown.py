"""countdown: the parser of expressions, the verifier, and search traces."""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter
from fractions import Fraction

import pytest
from task_tools import said

from whet.tasks.countdown import Countdown, evaluate
from whet.tasks.traced import Unreadable


@pytest.mark.parametrize(
    ("text", "value"),
    [("6*3+7", 25), ("7 + 3 * 6", 25), ("(2+3)*5", 25), ("2-(3-7)", 6), ("7/2*2", 7), ("8/(3-8/3)", 24), ("((4))", 4),
     ("1-2-3", -4), ("8/4/2", 1), ("3/(2-2)", None), ("1/(3/(2-2))", None)],
)  # fmt: skip
def test_expressions(text: str, value: int | None) -> None:
    assert evaluate(text)[0] == (None if value is None else Fraction(value))


@pytest.mark.parametrize(
    "text",
    ["", "6**3", "-6+3", "6 3", "(6+3", "6+3)", "6+", "abs(6)", "6//2", "1e3", "0x1f", "6%4", "__import__('os')",
     "6*3;7", "1234567", "()", "6,3", "(" * 150 + "6" + ")" * 150, "٣+3", "6^2", "lambda: 6"],
)  # fmt: skip
def test_other_text_is_no_expression(text: str) -> None:
    with pytest.raises(Unreadable):
        evaluate(text)


def test_expressions_agree_with_python() -> None:
    rng = random.Random(0)

    def grow(depth: int) -> str:
        if depth == 0 or rng.random() < 0.3:
            return str(rng.randint(1, 30))
        inner = f"{grow(depth - 1)}{rng.choice('+-*/')}{grow(depth - 1)}"
        return f"({inner})" if rng.random() < 0.5 else inner

    for _ in range(300):
        text = grow(3)
        exact = re.sub(r"\d+", lambda m: f"Fraction({m[0]})", text)
        try:
            expected = eval(exact, {"Fraction": Fraction})
        except ZeroDivisionError:
            expected = None
        value, used = evaluate(text)
        assert value == expected and used == [int(n) for n in re.findall(r"\d+", text)], text


def test_countdown_accepts_any_right_expression_and_no_other() -> None:
    task = Countdown(3)
    path = ((6, "*", 3), (18, "+", 7))
    p = task.build(((2, 3, 6, 7), 25, path), 3)
    assert p.prompt == "make 25 from 2 3 6 7."
    assert p.rationale == "6*3=18: 2 7 18\n18+7=25: 2 25\n25 reached" and p.answer == "6*3+7"
    verdicts = {
        "6*3+7": ("ok", 1, 1), "7+6*3": ("ok", 1, 1), "(7+6*3)": ("ok", 1, 1), "6*3+7=25": ("ok", 1, 1),
        "６×３＋７": ("ok", 1, 1), "6*3+7=26": ("wrong", 1, 1), "6*3+6+3-2": ("wrong", 0, 1), "25": ("wrong", 0, 1),
        "6*3+2": ("wrong", 1, 0), "67-2*3": ("wrong", 0, 0), "6*3/(7-7)": ("wrong", 0, 0), "6/(3-3)": ("wrong", 0, 0),
        "6*3+7 or 2+3": ("unparseable",), "6*3+7=25=25": ("unparseable",), "=25": ("unparseable",),
    }  # fmt: skip
    for text, (status, *parts) in verdicts.items():
        verdict = task.verify(p, said(text))
        assert (verdict.status, *(verdict.parts.get(k) for k in ("uses", "value")))[: 1 + len(parts)] == (
            status,
            *map(float, parts),
        ), text
    lines = {
        "7*3=21: 2 6 21\n21+6=27: 2 27\n27-2=25\n25 reached": ("", "", "", ""),  # another solution
        "6*3=18: 2 7\n18+7=25: 2 25\n25 reached": ("list", "", ""),
        "6*3=19: 2 7 19\n19+7=26: 2 26\n26 reached": ("arithmetic", "", "target"),
        "6*6=36: 2 3 7 36": ("reuse",),
        "9+7=16: 2 3 6 16": ("invent",),
        "6+3=9: 2 7 9\nback: 2 3 6 7\n6*3=18: 2 7 18": ("", "", ""),
        "6+3=9: 2 7 9\nback: 2 3 6 8": ("", "back"),
    }
    for rationale, labels in lines.items():
        checks = task.check(p, said("6*3+7", rationale))
        reasons = [c.reason.partition(":")[0] for c in checks[:-1] if c.result != "n.a."]
        assert reasons == list(labels), rationale


def test_search_traces_have_the_direct_problem_and_real_dead_ends() -> None:
    direct, search = Countdown("2-4"), Countdown("2-4", trace="search")
    backs = Counter()
    for a, b in zip(direct.problems("train", 150), search.problems("train", 150), strict=True):
        assert (a.prompt, a.answer, a.plan) == (b.prompt, b.answer, b.plan)
        target = b.data["target"]
        lines = b.rationale.split("\n")
        assert lines[-1] == f"{target} reached"
        ends = []
        for before, line in itertools.pairwise(lines):
            if line.startswith("back: "):
                assert ":" not in before  # one number was left: a dead end is followed to its end
                ends.append(int(before.rpartition("=")[2]))
        assert len({*ends}) == len(ends) and target not in ends  # distinct wrong values
        kept = [s.text for s in b.steps if s.kind == "compute"]
        assert [s.text for s in a.steps if s.kind == "compute"] == [t for t in kept if t in a.rationale.split("\n")]
        backs[len(ends)] += 1
    assert backs[1] > 40 and backs[2] > 40 and backs[0] < 8 and set(backs) <= {0, 1, 2}
