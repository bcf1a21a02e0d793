"""travel: checks on plans by hand, TravelPlanner's metrics, and the contract of procedural tasks."""

from __future__ import annotations

import itertools
import random
import re
from dataclasses import replace

import pytest

from whet.errors import WhetError
from whet.tasks import Check, Problem, Response, get_task
from whet.tasks.travel import COMMON, HARD, Travel, checks, rates, read
from whet.tasks.travel_world import Day, Trip

# two days in Bern: an inn for a night, a lodge for two at least
TRIP = Trip.of((
    "Oslo", ("Bern",), 2, 2, 1.0, (("cuisine", "thai"), ("room type", "entire"), ("transport", "taxi"), ("room rule", "pets")),
    (("Bern", (("inn", 40, 1, "entire", ""), ("lodge", 50, 2, "entire", ""), ("hut", 10, 1, "shared", ""),
               ("villa", 45, 1, "entire", "pets"), ("palace", 900, 1, "entire", "")),
      (("wok", 10, "thai"), ("pub", 8, "greek"), ("bar", 9, "greek"), ("grill", 12, "french"), ("cafe", 7, "thai")),
      ("dome", "zoo", "lake")),
     ("Rome", (("nest", 30, 1, "entire", ""),), (("trattoria", 9, "thai"),), ("forum",))),
    (("Oslo", "Bern", (("flight", 60), ("taxi", 50), ("drive", 20))),
     ("Bern", "Oslo", (("flight", 70), ("taxi", 50), ("drive", 20)))),
))  # fmt: skip
GOOD = """Oslo>Bern, flight, wok, dome, pub, inn
Bern>Oslo, flight, bar, zoo, grill, -"""
BUDGET = 400  # GOOD costs 2 (60 + 70) + 40 + 2 (10 + 8 + 9 + 12) = 378


def failed(text: str, trip: Trip = TRIP, budget: int = BUDGET) -> dict[str, str]:
    plan = read(text)
    assert plan is not None
    return {c.name: c.reason for c in checks(trip, plan, budget) if c.result == "fail"}


def test_a_good_plan_passes_all_thirteen_checks() -> None:
    plan = read(GOOD)
    assert plan is not None
    found = checks(TRIP, plan, BUDGET)
    assert [c.name for c in found] == [*COMMON, *HARD] and {c.result for c in found} == {"pass"}
    assert TRIP.cost(plan) == 378


@pytest.mark.parametrize(
    ("old", "new", "name", "reason"),
    [
        ("zoo, grill", "zoo, wok", "restaurants", "wok is visited twice"),
        ("bar, zoo", "bar, dome", "attractions", "dome is visited twice"),
        ("Bern>Oslo, flight", "Bern, -", "visiting city", "it ends in Bern"),
        ("Oslo>Bern, flight", "Oslo>Bern, drive", "transportation", "drive with flight"),
        ("Oslo>Bern, flight", "Oslo>Bern, -", "transportation", "none on day 1"),
        ("pub, inn", "pub, lodge", "accommodation", "lodge wants 2 nights, not 1"),
        ("wok, dome, pub", "wok, dome, trattoria", "current city", "trattoria is in Rome on day 1"),
        ("zoo, grill", "zoo, -", "complete", "no dinner on day 2"),
        ("pub, inn", "pub, -", "complete", "no hotel on day 1"),
        ("Bern>Oslo, flight", "Bern>Oslo, -", "complete", "no transport on day 2"),
        ("pub, inn", "pub, ritz", "sandbox", "ritz is in no table"),
        ("pub, inn", "pub, wok", "sandbox", "wok is in no table"),
        ("Bern>Oslo, flight", "Bern>Oslo, train", "sandbox", "no train from Bern to Oslo"),
        ("pub, inn", "pub, palace", "budget", "costs 1238 of 400"),
        ("pub, inn", "pub, hut", "room type", "hut is shared"),
        ("pub, inn", "pub, villa", "room rule", "villa forbids pets"),
        ("flight, wok", "taxi, wok", "transport", "uses taxi"),
    ],
)  # fmt: skip
def test_each_fault_fails_its_own_check_alone(old: str, new: str, name: str, reason: str) -> None:
    assert old in GOOD
    found = failed(GOOD.replace(old, new))
    assert found.pop(name) == reason
    if name in ("sandbox", "complete"):  # no credit for what cannot be judged
        assert set(found) == set(HARD) and all(r == f"not judged: {reason}" for r in found.values())
    else:
        assert found == {}


def test_a_cuisine_that_nothing_has_fails_its_check_alone() -> None:
    assert failed(GOOD, replace(TRIP, wishes={"cuisine": "mexican"})) == {"cuisine": "no mexican food"}


def test_the_order_of_cities_and_the_number_of_days_are_checked() -> None:
    assert failed(GOOD.replace("Oslo>Bern", "Rome>Bern"))["visiting city"] == "it starts from Rome"
    assert failed(GOOD.splitlines()[0])["complete"] == "1 days of 2"
    assert "visiting city" in failed(GOOD.replace("Bern>Oslo", "Rome>Oslo"))
    assert failed(f"{GOOD}\nOslo, -, -, -, -, -")["complete"] == "3 days of 2"


def test_2_metrics() -> None:
    """Two plans of eight checks, one that passes all and one that fails two."""
    passing = [Check(name, "pass") for name in COMMON]
    failing = [Check(name, "fail" if name in ("complete", "restaurants") else "pass") for name in COMMON]
    found = rates([passing, failing])
    assert found["commonsense micro"] == 14 / 16 and found["commonsense macro"] == 1 / 2


def test_3_a_plan_outside_the_sandbox_gets_no_hard_credit_and_unasked_checks_do_not_count() -> None:
    free = replace(TRIP, wishes={"cuisine": "thai"})
    good, bad = read(GOOD), read(GOOD.replace("inn", "ritz"))
    assert good and bad
    plans = [checks(free, good, BUDGET), checks(free, bad, BUDGET)]
    assert [c.result for c in plans[0] if c.name in HARD] == ["pass", "n.a.", "pass", "n.a.", "n.a."]
    assert [c.result for c in plans[1] if c.name in HARD] == ["fail", "n.a.", "fail", "n.a.", "n.a."]
    found = rates(plans)
    assert (found["hard micro"], found["hard macro"], found["final"]) == (2 / 4, 1 / 2, 1 / 2)
    assert rates([]) == dict.fromkeys(found, 0.0)


@pytest.mark.parametrize(
    "text", ["", "I cannot plan this.", "Oslo>Bern, flight, wok", None, "a, b, c, d, e, f, g", "a,,,,,"]
)
def test_what_is_no_plan_is_unparseable_and_fails_every_check(text: str | None) -> None:
    task = Travel(2)
    problem = task.problem("train", 0)
    verdict = task.verify(problem, Response(text or "", text))
    assert (verdict.value, verdict.status, verdict.parts["delivery"]) == (0.0, "unparseable", 0.0)
    assert set(verdict.parts.values()) == {0.0}
    found = task.check(problem, Response(text or "", text))
    assert [c.name for c in found] == [*COMMON, *HARD] and "pass" not in {c.result for c in found}


def test_parts_of_the_verdict() -> None:
    task = Travel(2)
    problem = task.problem("train", 0)
    assert set(task.verify(problem, gold(problem)).parts.values()) == {1.0}
    lines = (problem.answer or "").splitlines()
    day = read(problem.answer)
    assert day is not None
    repeated = "\n".join([lines[0], str(replace(day[1], lunch=day[0].lunch)), *lines[2:]])
    parts = task.verify(problem, Response(repeated, repeated)).parts
    assert parts["restaurants"] == 0.0 and parts["commonsense"] == 7 / 8 and parts["commonsense macro"] == 0.0
    assert parts["delivery"] == parts["sandbox"] == 1.0


# -- the contract ------------------------------------------------------------------------------------------------------
def gold(problem: Problem) -> Response:
    return Response(problem.answer or "", problem.answer)


@pytest.mark.parametrize("level", Travel.levels)
def test_gold_passes_and_fits_and_each_corruption_fails_its_check_alone(level: int) -> None:
    task = Travel(level)
    labels = set()
    for number, problem in enumerate(task.problems("train", 40)):
        verdict = task.verify(problem, gold(problem))
        assert (verdict.value, verdict.status) == (1.0, "ok"), problem
        assert len(problem.answer or "") + 16 <= task.max_answer_tokens()
        wrong = task.corrupt(problem, random.Random(number))
        assert wrong == task.corrupt(problem, random.Random(number))
        assert task.verify(problem, Response(wrong.answer, wrong.answer)).status == "wrong"
        found = [c for c in task.check(problem, Response(wrong.answer, wrong.answer)) if c.result == "fail"]
        assert found[0].name == wrong.label and all(c.reason.startswith("not judged") for c in found[1:])
        labels.add(wrong.label)
    assert {"restaurants", "attractions", "visiting city", "transportation", "sandbox", "complete"} <= labels


def test_every_check_can_be_failed() -> None:
    task = Travel("2-4")
    from whet.tasks.travel import _slips

    found = set().union(*(_slips(p.data["trip"]) for p in task.problems("train", 150)))
    assert found == {*COMMON, *HARD}


@pytest.mark.parametrize("level", Travel.levels)
def test_the_reference_solver_is_within_budget_and_first_in_the_order_of_the_tables(level: int) -> None:
    """By brute force over every plan that the tables allow, on the two-day level; elsewhere the cost alone."""
    for problem in Travel(level).problems("train", 4):
        trip = Trip.of(problem.data["trip"])
        plan = trip.solve()
        budget = problem.data["budget"]
        assert trip.cost(plan) <= budget and budget % 10 == 0
        if level > 1:
            continue
        (city,) = trip.cities
        names = [r.name for r in city.restaurants]
        costs = []
        for modes in itertools.product(("flight", "taxi", "drive"), repeat=2):
            for hotel, (a, b, c, d) in itertools.product(city.hotels, itertools.permutations(names, 4)):
                tried = (Day(trip.origin, city.name, modes[0], a, city.sights[0], b, hotel.name),
                         Day(city.name, trip.origin, modes[1], c, city.sights[1], d, "-"))  # fmt: skip
                if all(x.result != "fail" for x in checks(trip, tried, 10**6)):
                    costs.append(trip.cost(tried))
        assert budget == -(-2 * min(costs) // 10) * 10


def test_splits_are_disjoint_and_specs_round_trip() -> None:
    for spec in ("travel", "travel:level=3", "travel:level=1-4"):
        task = get_task(spec)
        assert task.spec() == spec
        prompts = [{p.prompt for p in task.problems(split, 40)} for split in ("train", "validation", "test")]
        assert (
            all(len(p) == 40 for p in prompts)
            and not prompts[0] & prompts[1]
            and not prompts[2] & (prompts[0] | prompts[1])
        )
        assert task.problems("test", 9)[5] == task.problems("test", 1, start=5)[0]
    assert get_task("travel").provides() == {"verifier", "demonstrations", "unlimited", "corruptions"}
    with pytest.raises(WhetError, match="levels 1 to 4"):
        Travel(5)


def test_all_that_is_needed_stands_in_the_prompt() -> None:
    for problem in Travel("1-4").problems("train", 60):
        for day in read(problem.answer) or ():
            for name in (day.lunch, day.dinner, day.sight, day.end, *([] if day.hotel == "-" else [day.hotel])):
                assert re.search(rf"\b{name}\b", problem.prompt), (name, problem.prompt)
        assert str(problem.data["budget"]) in problem.prompt
        for wish in Trip.of(problem.data["trip"]).wishes.values():
            assert re.search(rf"wanted:.*\b{wish}\b", problem.prompt)


def test_paraphrase_inverts() -> None:
    forward, inverse = Travel().transforms()["paraphrase"]
    for problem in Travel("1-4").problems("train", 10):
        moved = forward(problem)
        assert moved.prompt != problem.prompt and moved.answer == problem.answer and inverse(moved) == problem
        assert Travel().verify(moved, gold(moved)).value == 1.0
