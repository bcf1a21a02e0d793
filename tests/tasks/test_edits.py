"""edits: what is edited, what is asked of an edited model, and how its answers are read."""

from __future__ import annotations

from typing import Any

import pytest
from test_verify import HOSTILE, TWELVE, told

from whet.errors import WhetError
from whet.tasks import Problem, get_task
from whet.tasks.edits import WORDINGS, Edits
from whet.tasks.facts_world import ask
from whet.tasks.verify import check_gold, get_verifier, normalized


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_an_edit_is_another_value_of_the_same_kind(level: int) -> None:
    task = Edits(level)
    place = task.world()
    kinds = {"home": place.towns, "birth": place.towns, "friend": place.people, "country": place.countries}
    assert len(task.edits) == 100 and not set(task.edits) & set(task.unedited)
    assert len(task.edits) + len(task.unedited) == 5 * (20, 80, 320, 1280)[level - 1] + 24
    for (subject, attribute), new in task.edits.items():
        old = place.value(subject, attribute)
        assert new not in (old, subject)
        assert new in kinds.get(attribute, (new,)) and (old.isdecimal() == new.isdecimal())


def test_every_edit_is_asked_in_other_words_and_no_prompt_is_in_two_splits() -> None:
    task = get_task("edits")
    asked: Any = {split: task.problems(split) for split in WORDINGS}
    assert [len(problems) for problems in asked.values()] == [100, 200, 200]
    prompts = [p.prompt for problems in asked.values() for p in problems]
    assert len(set(prompts)) == len(prompts) == len({p.id for problems in asked.values() for p in problems})
    facts = [p.data["fact"] for p in asked["train"]]
    for split, problems in asked.items():
        for first in range(0, len(problems), 100):
            assert [p.data["fact"] for p in problems[first : first + 100]] == facts, "whole rounds over all edits"
        assert tuple(dict.fromkeys(sorted(p.data["wording"] for p in problems))) == WORDINGS[split]
    assert all(p.answer != p.data["old"] and not p.steps for p in asked["test"])
    check_gold(task, asked["test"])


def test_aspects_are_the_requests_and_what_was_left_alone() -> None:
    task = get_task("edits")
    aspects = task.aspects(50)
    assert aspects["reliability"] == task.problems("train", 50)
    kept = aspects["locality"]
    assert len(kept) == 50 and not {p.data["fact"] for p in kept} & {f"{s}.{a}" for s, a in task.edits}  # type: ignore[attr-defined]
    assert all(p.answer == p.data["old"] for p in kept)
    one = kept[0]
    assert one.prompt == ask(("lookup", *one.data["fact"].split(".")), 0)


def test_positions_draws_and_specs() -> None:
    task = get_task("edits:n=30,level=1,draw=2")
    assert task.spec() == "edits:level=1,n=30,draw=2" and get_task("edits:level=2").spec() == "edits"
    again = get_task(task.spec())
    assert (
        again.problems("test", 5, start=7) == task.problems("test")[7:12] == task.problems("test", 5, seed=9, start=7)
    )
    other = get_task("edits:n=30,level=1,draw=3")
    assert {p.prompt for p in other.problems("train")} != {p.prompt for p in task.problems("train")}
    assert "unlimited" not in task.provides() and "rationales" not in task.provides()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("edits:level=5", "levels 1 to 4"),
        ("edits:level=1-2", "whole numbers, not level '1-2'"),
        ("edits:n=x,draw=-1", "not n 'x', draw '-1'"),
        ("edits:level=1,n=124", "has 124 facts: 1 to 123 can be edited"),
        ("edits:n=0", "not 0"),
        ("edits:nn=1", "nn"),
    ],
)
def test_wrong_options_are_named(spec: str, message: str) -> None:
    with pytest.raises(WhetError, match=message):
        get_task(spec)


# -- the scorer ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        ("eiffel tower", "The Eiffel Tower.", True),
        ("The Eiffel Tower.", "eiffel  tower", True),
        ("Paris", "Paris, France", False),
        ("Paris", "Pariss", False),
        ("Paris", "not Paris", False),
        ("theatre", "the atre", False),
        ("St. Louis", "st louis", True),
        ("-7", "7", False),
    ],
)
def test_answers_are_compared_after_normalisation(gold: str, answer: str, right: bool) -> None:
    verdict = get_verifier("normalized")(Problem("p", "", gold), told(answer))
    assert (verdict.value, verdict.status) == ((1.0, "ok") if right else (0.0, "wrong"))


def test_nothing_and_other_numbers_do_not_score() -> None:
    assert normalized(TWELVE, told(" the. ")).status == "unparseable"
    assert normalized(Problem("p", "", None), told("x")).status == "error"
    assert not [text for text in HOSTILE if normalized(TWELVE, told(text)).value == 1.0]
    assert get_task("edits").verify(TWELVE, told("12.")).value == 1.0
