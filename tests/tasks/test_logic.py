"""logic: answers that follow from the text, and checks that name the fault."""

from __future__ import annotations

import re

import pytest
from task_tools import judged

from whet.tasks.logic import LEVELS, Logic


def test_logic_pinned() -> None:
    problem = Logic(1).build((1, 1, 0, 0, 0, 0), 1)
    assert problem.prompt == "If b then a. If c then not a. b is true. Is a true?"
    assert (problem.rationale, problem.answer) == ("b is true.\nb, so a.", "yes")
    assert problem.choice_rationales == ("b is true.\nb, so a.", "not a needs c.\nc is not given.")
    assert problem.data["support"] == (0, 2)
    french = Logic(1).transforms()["language"][0](problem)
    assert (french.prompt, french.answer) == ("Si b alors a. Si c alors non a. b est vrai. a est-il vrai ?", "oui")
    renamed = Logic(1).transforms()["rename"][0](problem)
    assert renamed.prompt == "If o then n. If p then not n. o is true. Is n true?"


@pytest.mark.parametrize("form", ["yesno", "choice"])
@pytest.mark.parametrize("level", LEVELS)
def test_logic_answers_follow_from_the_text_alone(form: str, level: int) -> None:
    """An independent forward chainer that reads the prompt."""
    problems = Logic(level, form).problems("train", 400)
    for p in problems:
        rules = re.findall(r"If ((?:not )?[a-z]) then ((?:not )?[a-z])\.", p.prompt)
        (known,) = re.findall(r"(?<![a-z] )\b([a-z]) is true\.", p.prompt)
        held = {known}
        while new := {b for a, b in rules if a in held} - held:
            held |= new
        if form == "choice":
            answers = held & set(p.choices)
        else:
            asked = p.prompt.split()[-2]
            answers = {"yes"} if asked in held else {"no"} if f"not {asked}" in held else {"unknown"}
        assert answers == {p.answer}, p
        assert not any(f"not {x}" in held for x in held)
        assert len(p.choices) == (LEVELS[level][2] if form == "choice" else 2 + LEVELS[level][1])
        sentences = re.findall(r"[^.?]+[.?]", p.prompt)
        support = {sentences[i].strip() for i in p.data["support"]}
        for step in p.steps:  # the sentences named as support are those that the rationale uses
            if step.kind == "apply":
                assert "If {} then {}".format(*step.text[:-1].split(", so ")) + "." in support
    shares = [sum(p.answer == a for p in problems) / len(problems) for a in ("yes", "no", "unknown")]
    if form == "yesno":
        kinds = 2 + LEVELS[level][1]
        assert all(abs(share - 1 / kinds) < 0.09 for share in shares[:kinds])
    else:
        assert abs(sum(p.choices.index(p.answer or "") == 0 for p in problems) / 400 - 1 / LEVELS[level][2]) < 0.09


def test_logic_checks_name_the_fault() -> None:
    task = Logic(2)
    problem = task.build((2, 2, 0, 0, 0, 0), 2)
    assert problem.prompt == "If b then c. If c then a. If d then e. If e then not a. b is true. Is a true?"
    assert judged(task, problem, "b is true.\nb, so c.\nc, so a.") == ["pass"] * 4
    assert judged(task, problem, "b is true.\nc, so a.") == ["pass", "fail", "n.a.", "pass"]
    assert judged(task, problem, "d is true.\nd, so e.\ne, so not a.", "no") == ["fail", "pass", "pass", "fail"]
    assert judged(task, problem, "b is true.\nNo rule uses b.") == ["pass", "fail", "n.a.", "pass"]
    assert judged(task, problem, "b is true.\nb is true.\nb, so c.") == ["pass", "fail", "pass", "pass"]
