"""lists: each skill against a one-line oracle, and answers that are lists."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from task_tools import results, said

from whet.tasks.lists import SKILLS, Lists

ORACLES = {
    "sort": lambda x, n: sorted(x),
    "even": lambda x, n: [i for i in x if i % 2 == 0],
    "odd": lambda x, n: [i for i in x if i % 2],
    "above": lambda x, n: [i for i in x if i > n],
    "dedupe": lambda x, n: list(dict.fromkeys(x)),
    "count": lambda x, n: [x.count(n)],
    "reverse": lambda x, n: x[::-1],
    "max": lambda x, n: [max(x)],
    "min": lambda x, n: [min(x)],
    "sum": lambda x, n: [sum(x)],
    "item": lambda x, n: [x[n - 1]],
}


@pytest.mark.parametrize("skill", SKILLS)
def test_each_skill_alone_answers_its_prompt_and_can_be_corrupted(skill: str) -> None:
    task = Lists("1-5", skill=skill)
    for i, p in enumerate(task.problems("test", 60)):
        asked, _, listed = p.prompt.partition(": ")
        name, _, number = asked.partition(" ")
        right = ORACLES[name](list(map(int, listed.split())), int(number or 0))
        assert p.answer == (" ".join(map(str, right)) or "empty")
        assert p.category == skill and {s.skill for s in p.steps} == {skill}
        wrong = task.corrupt(p, random.Random(i))
        assert task.verify(p, said(wrong.answer)).status == "wrong"
        assert results(task, p, said(wrong.answer, wrong.rationale)).index("fail") == wrong.step


def test_lists_draws_all_skills_evenly_and_scores_positions() -> None:
    task = Lists(2)
    counts = Counter(p.category for p in task.problems("train", 1100))
    assert counts.keys() == SKILLS.keys() and min(counts.values()) > 60
    p = task.build(("sort", (3, 1, 2, 9, 5), 0), 2)
    assert p.rationale.split("\n")[:2] == ["take 1 leave 3 2 9 5", "take 2 leave 3 9 5"]
    for text, value, positions in (("1 2 3 5 9", 1, 1), ("[1, 2, 3, 5, 9]", 1, 1), ("1 2 3 9 5", 0, 0.6),
                                   ("1 2 3 5 9 9", 0, 5 / 6), ("empty", 0, 0), ("5", 0, 0)):  # fmt: skip
        verdict = task.verify(p, said(text))
        assert (verdict.value, verdict.parts["positions"]) == (value, pytest.approx(positions)), text
    none = task.build(("even", (3, 1, 7, 9, 5), 0), 2)
    assert none.answer == "empty"
    assert [task.verify(none, said(x)).status for x in ("empty", "Empty.", "", "3")] == [
        "ok",
        "ok",
        "unparseable",
        "wrong",
    ]


def test_scaling_carries_list_answers_by_their_kind() -> None:
    task = Lists(2)
    forward, inverse = task.transforms()["scaling"]
    above = forward(task.build(("above", (3, 1, 7, 9, 5), 5), 2))
    assert (above.prompt, above.answer) == ("above 15: 9 3 21 27 15", "21 27")
    assert inverse(replace(above, answer="21 27 15")).answer == "7 9 5"
    assert inverse(replace(above, answer="21 26")).answer == "7 26/3"  # stays wrong
    count = forward(task.build(("count", (3, 1, 3, 9, 5), 3), 2))
    assert (count.prompt, count.answer, inverse(count).answer) == ("count 9: 9 3 9 27 15", "2", "2")
