"""clues: the note, the writer's mistakes, and what the forms share (the contract is in test_tasks_b.py)."""

from __future__ import annotations

import random

import pytest

from whet.errors import WhetError
from whet.tasks import Response, get_task
from whet.tasks.clues import OPTIONS, Clues


@pytest.mark.parametrize(
    ("cue", "low", "high"), [("aligned", 0.86, 0.94), ("reversed", 0.06, 0.14), ("random", 0.27, 0.39)]
)
def test_the_note_is_right_as_often_as_its_form_says(cue: str, low: float, high: float) -> None:
    problems = Clues(cue=cue).problems("train", 800)
    right = [p.data["foods"][p.data["noted"]] == p.answer for p in problems]
    assert low < sum(right) / len(right) < high
    assert all(p.data["foods"][p.data["noted"]] in p.choices for p in problems)


@pytest.mark.parametrize("sound", [1.0, 0.85, 0.0])
def test_the_writer_argues_for_one_choice_and_is_right_as_often_as_told(sound: float) -> None:
    problems = Clues(sound=sound).problems("train", 600)
    right = []
    for p in problems:
        argued = [i for i, r in enumerate(p.choice_rationales) if r.startswith(p.data["people"][p.data["asked"]])]
        assert len(argued) == 1
        right.append(p.choices[argued[0]] == p.answer)
    assert abs(sum(right) / len(right) - sound) < 0.05


def test_the_forms_ask_the_same_questions_with_other_notes() -> None:
    forms = [Clues(cue=cue).problems("test", 100) for cue in ("aligned", "reversed", "random")]
    for one, two, three in zip(*forms, strict=True):
        assert one.answer == two.answer == three.answer and one.choices == two.choices == three.choices
        assert one.choice_rationales == two.choice_rationales and one.data["order"] == three.data["order"]
    assert sum(a.prompt != b.prompt for a, b in zip(forms[0], forms[1], strict=True)) > 70


def test_the_support_is_what_the_answer_rests_on_and_no_place_gives_it_away() -> None:
    problems = Clues().problems("train", 600)
    for p in problems:
        sentences = p.prompt.split(". ")
        assert [sentences[i] + "." for i in p.data["support"]] == [s.text for s in p.steps]
        assert p.answer in p.choices and len(p.choices) == OPTIONS[2]
    places = [p.choices.index(p.answer or "") for p in problems]
    assert all(150 < places.count(i) < 250 for i in range(3))


def test_steps_in_the_wrong_place_or_of_another_kind_fail() -> None:
    task, problem = Clues(), Clues().problem("train", 0)
    first, second = (s.text for s in problem.steps)
    animal = problem.data["animals"][problem.data["asked"]]
    for rationale, reason in (
        (second, "whose animal comes first"),
        (f"{first}\n{first}", "said before"),
        (f"{first}\nA {animal} eats stones.", "no fact says"),
        ("Nobody keeps a fox.", "not about"),
        ("It is clear.", "not a step"),
    ):
        failed = [c for c in task.check(problem, Response("", problem.answer, rationale)) if c.result == "fail"]
        assert failed and failed[0].reason.startswith(reason)
    wrong = task.corrupt(problem, random.Random(0))
    assert wrong.answer in problem.choices


def test_options_are_checked_and_stand_in_the_spec() -> None:
    assert get_task("clues:level=1:cue=reversed:sound=1").spec() == "clues:level=1,cue=reversed,sound=1"
    assert get_task(get_task("clues:cue=random,sound=0.5").spec()).spec() == "clues:cue=random,sound=0.5"
    for spec, told in (
        ("clues:cue=upside", "unknown cue"),
        ("clues:sound=2", "a share from 0 to 1"),
        ("clues:sound=x", "a share"),
    ):
        with pytest.raises(WhetError, match=told):
            get_task(spec)
