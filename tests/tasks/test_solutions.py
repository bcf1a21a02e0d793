"""solutions: three styles of one solution, and programs that are run."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import pytest
from task_tools import results, said

from whet.tasks.solutions import STYLES, Solutions, run_program, style_of
from whet.tasks.traced import Unreadable

PROGRAM, TAGGED, PROSE = "t1=3+4\nt2=t1*2", "<s>3+4=7</s>\n<s>7*2=14</s>", "first 3 plus 4 is 7\nthen 7 times 2 is 14"


@pytest.mark.parametrize(
    ("text", "style"),
    [(PROGRAM, "program"), (TAGGED, "steps"), (PROSE, "prose"), (f"{PROGRAM}\n{TAGGED}", "steps"),
     (f"{PROSE}\n{PROGRAM}", "program"), (f"{PROSE}\n<s>", "steps"), ("14", "other"), ("", "other"),
     ("t1=oops", "program"),
     ("the first one", "other"), ("First, 3", "prose"), ("at t1=3 it ends", "other"), ("firstly", "other")],
)  # fmt: skip
def test_every_text_has_one_style(text: str, style: str) -> None:
    assert style_of(text) == style


@pytest.mark.parametrize(
    ("text", "value"),
    [(PROGRAM, 14), ("t1=3+4;\nt2 = t1*t1\n49", 49), ("t1=7/2", Fraction(7, 2)), ("t1=3-9", -6),
     ("t1=1+1\nt1=t1*3", 6)],
)  # fmt: skip
def test_programs_run(text: str, value: Fraction) -> None:
    assert run_program(text) == value


@pytest.mark.parametrize(
    "text",
    ["", "14", "t1=", "t1=t2+1", "t1=3/0", "t1=3**4", "t1=__import__('os')", "t1=3+4+5",
     "t1=999999999*999999999", "t1=9*9\n" + "t1=t1*t1\n" * 99],
)  # fmt: skip
def test_other_programs_are_refused(text: str) -> None:
    with pytest.raises(Unreadable):
        run_program(text)


def test_any_format_is_accepted_whatever_the_problem_shows() -> None:
    task = Solutions()
    p = task.build(("steps", False, 3, (("+", 4), ("*", 2))), 1)
    assert (p.prompt, p.answer, p.rationale) == ("start 3. add 4. times 2. result?", "14", TAGGED)
    assert [task.restyled(p, s).rationale for s in STYLES] == [PROGRAM, TAGGED, PROSE]
    assert task.restyled(p, "prose").id == p.id
    for rationale in (PROGRAM, TAGGED, PROSE):
        assert results(task, p, said("14", rationale)) == ["pass"] * 3
        assert task.verify(p, said("14", rationale)).value == 1.0
    ran = task.verify(p, said("15", PROGRAM))  # a program is run, whatever is answered beside it
    assert task.verify(p, said(None, PROGRAM)).status == "unparseable"  # but no format need not answer
    assert (ran.status, ran.parts) == ("ok", {"executed": 1.0, "stated": 0.0})
    failed = task.verify(p, said("14", "t1=3+4\nt2=t1*3"))
    assert (failed.status, failed.parts) == ("wrong", {"executed": 0.0, "stated": 1.0})
    assert task.verify(p, said("14", "t1=3+4\nt2=t9*2")).status == "unparseable"
    assert task.verify(p, said("15", TAGGED)).status == "wrong"


def test_all_styles_share_their_problems_and_mixed_has_a_third_of_each() -> None:
    made = {s: Solutions("1-5", style=s).problems("train", 300) for s in (*STYLES, "mixed")}
    for rows in zip(*made.values(), strict=True):
        assert len({(p.prompt, p.answer, p.plan) for p in rows}) == 1
    for style in STYLES:
        assert {style_of(p.rationale) for p in made[style]} == {style}
    shares = Counter(style_of(p.rationale) for p in made["mixed"])
    assert shares.keys() == {*STYLES} and min(shares.values()) > 75


def test_equations_hold_for_their_answers() -> None:
    for p in Solutions(5).problems("test", 100) + Solutions(3).problems("test", 100):
        left, right = p.prompt.removesuffix(". x?").split("=")
        assert eval(left, {"x": int(p.answer)}) == int(right)
        assert p.category == "algebra"
    scaled = Solutions().transforms()["scaling"][0](Solutions().build(("prose", True, 19, (("-", 4), ("/", 3))), 3))
    assert (scaled.prompt, scaled.answer) == ("x*3+12=57. x?", "15")
