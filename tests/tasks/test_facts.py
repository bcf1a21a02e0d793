"""facts: the invented world, its splits, updates, statements and documents."""

from __future__ import annotations

import re

from task_tools import judged

from whet.tasks.facts import WORDINGS, Facts
from whet.tasks.facts_world import MOVING, QUESTIONS, SIZES, World


def test_world_is_one_to_one_and_nested() -> None:
    world, small = World(0), World(0, SIZES[0])
    assert world.people[: SIZES[0]] == small.people
    assert all(small.state(fact, 9) == world.state(fact, 9) for fact in small.facts(SIZES[0]))
    names = (*world.people, *world.towns, *world.countries)
    assert len(set(names)) == len(names)
    assert World(1).people != world.people
    moved = sum(fact[1] == "home" for fact in world.changes) / len(world.people)
    assert abs(moved - MOVING) < 0.04
    for (subject, attribute), change in world.changes.items():
        assert change.old != change.new
        assert world.value(subject, attribute, change.year - 1) == change.old
        assert world.value(subject, attribute, change.year) == change.new


def test_facts_closed_book_splits_by_wording_and_keeps_every_fact_in_train() -> None:
    task = Facts(1, kind="lookup")
    asked = {s: {p.data["facts"] for p in task.problems(s, 3000)} for s in ("train", "validation", "test")}
    assert asked["train"] == asked["validation"] == asked["test"]
    assert len(asked["train"]) == 20 * 5 + 24
    for split, wordings in WORDINGS.items():
        assert {p.data["wording"] for p in task.problems(split, 100)} == set(wordings)
    assert all(len(set(forms)) == 5 for forms in QUESTIONS.values())


def test_facts_open_book_splits_by_question_and_tells_what_is_needed() -> None:
    for level, distractors in ((1, 1), (2, 3), (3, 5), (4, 8)):
        task = Facts(level, form="open")
        asked = [{p.data["question"] for p in task.problems(s, 500)} for s in ("train", "validation", "test")]
        assert not (asked[0] & asked[1] or asked[0] & asked[2] or asked[1] & asked[2])
        for p in task.problems("test", 100):
            needed = {tuple(fact.split(".")) for fact in p.data["facts"]}
            assert needed <= set(p.data["context"])
            assert len(p.data["context"]) == len(needed) + distractors
            assert all(task.world().state(fact) in p.prompt for fact in p.data["context"])


def test_facts_updates() -> None:
    old, new = Facts(3, kind="lookup"), Facts(3, kind="lookup", year=9, only="updated")
    world = new.world()
    problems = new.problems("train", 300)
    for p in problems:
        assert p.data["old_answer"] not in (None, p.answer)
        (fact,) = p.data["facts"]
        change = world.changes[tuple(fact.split("."))]
        assert (change.old, change.new) == (p.data["old_answer"], p.answer)
        before = old.build(p.data["question"], 3)
        assert before.answer == change.old  # the question stays, the answer is another
        assert judged(new, p, before.rationale) == ["fail", "pass"]
    told = Facts(3, form="open", kind="lookup", year=9, only="updated").problem("test", 0)
    assert re.search(r"In year [1-9], ", told.prompt)
    assert told.data["old_answer"] in told.prompt and (told.answer or "") in told.prompt
    assert {p.answer for p in Facts(3, kind="lookup", year=1, only="updated").problems("train", 50)} < {
        c.new for c in world.changes.values()
    }


def test_facts_statements_and_documents() -> None:
    task = Facts(1)
    once = list(task.statements())
    assert len(once) == len(set(once)) == 20 * 5 + 24
    assert list(task.statements(40, seed=1)) != once[:40]
    twice = list(task.statements(248, seed=2))
    facts = list(task.world().facts(20))
    wordings = {fact: {task.world().state(fact, 0, w) for w in (0, 1)} for fact in facts}
    assert all(sum(s in forms for s in twice) == 2 for forms in wordings.values())
    pages = task.documents()
    for p in task.problems("train", 100):
        for step in p.steps[: len(p.data["documents"])]:
            assert any(step.text in pages[d] for d in p.data["documents"])


def test_facts_checks_name_the_fault() -> None:
    task = Facts(1, kind="twohop")
    world = task.world()
    person = world.people[0]
    town, country = world.value(person, "home"), world.value(world.value(person, "home"), "country")
    problem = task.build(("twohop", person, "home", "country"), 1)
    assert problem.prompt == f"In which country is the town where {person} lives?"
    assert problem.rationale == f"{person} lives in {town}.\n{town} is in {country}."
    assert judged(task, problem, f"The home of {person} is {town}.\n{town} is in {country}.") == ["pass"] * 3
    other = next(t for t in world.towns if world.value(t, "country") != country)
    wrong = f"{person} lives in {other}.\n{other} is in {world.value(other, 'country')}."
    assert judged(task, problem, wrong, "x") == ["fail", "pass", "fail"]
    assert judged(task, problem, f"{person} lives in {town}.\n{other} is in {country}.") == ["pass", "fail", "pass"]
    assert judged(task, problem, f"{town} is in {country}.") == ["pass", "n.a.", "pass"]


def test_a_mixture_promises_no_choices() -> None:
    task = Facts(1)
    assert any(p.choices for p in task.problems("train", 50))
    assert not {"choices", "choice rationales"} & task.provides()
