"""travel: a plan for a few days that keeps eight rules of common sense and up to five of the traveller's own.

A small twin of TravelPlanner (arXiv 2402.01622), with its checks; every plan that passes them all is right.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import groupby, pairwise
from typing import Any

from whet.tasks.problem import Check, Corruption, Problem, Response, Verdict
from whet.tasks.task import Procedural
from whet.tasks.transforms import Transform, cycle
from whet.tasks.travel_world import LEVELS, NAMES, NONE, Day, Plan, Trip, draw

COMMON = ("visiting city", "restaurants", "attractions", "transportation", "accommodation", "current city", "sandbox",
          "complete")  # fmt: skip
HARD = ("budget", "room rule", "cuisine", "room type", "transport")
UNJUDGED = "not judged"


class Travel(Procedural):
    """The tables, then `plan 2 days from Oslo to Bern and back for 1, budget 260.`; the answer is a line a day:

        Oslo>Bern, flight, apple, lamp, key, ring        from>to, transport, lunch, attraction, dinner, hotel
        Bern>Oslo, taxi, cup, map, egg, -                `-` stands for nothing

    Checks, of common sense: the cities are visited in order and the trip ends at home (`visiting city`), no restaurant and
    no attraction twice, one's own car is not mixed with other transport (`transportation`), hotels are stayed at for their
    least number of nights (`accommodation`), what is visited is in the day's cities (`current city`) and in the tables
    (`sandbox`), nothing that is needed is left out (`complete`). Of the traveller: `budget`, and where wished `room rule`,
    `cuisine`, `room type` and `transport`; these are judged where a plan is complete and within the sandbox, else they fail.

    Levels: 1 two days, one city, a generous budget; 2 three days, a wish, a city in the tables that is not visited; 3 three
    days in two cities; 4 three wishes and a tight budget. The gold plan is the first one in the order of the tables.
    Errors: the name of the one check that a plan then fails.
    """

    name = "travel"
    levels = tuple(LEVELS)
    default_level = 1
    description = "plan two or three days under eight rules of common sense, a budget and up to three wishes"
    judged = COMMON

    def draw(self, rng: random.Random, level: int) -> tuple[Any, ...]:
        return draw(rng, level)

    def build(self, parameters: tuple[Any, ...], level: int) -> Problem:
        return _word({"trip": parameters, "wording": 0}, level)

    def check(self, problem: Problem, response: Response) -> list[Check]:
        """The eight checks of common sense, then the five of the traveller (`n.a.` where there is no such wish)."""
        trip, plan = Trip.of(problem.data["trip"]), read(response.answer)
        if plan is None:
            hard = [Check(n, "fail" if n == "budget" or n in trip.wishes else "n.a.", "no plan") for n in HARD]
            return [*(Check(name, "fail", "no plan that can be read") for name in COMMON), *hard]
        return checks(trip, plan, problem.data["budget"])

    def verify(self, problem: Problem, response: Response) -> Verdict:
        """1 if no check fails (TravelPlanner's final pass). Parts: `delivery`; `commonsense` and `hard`, the shares of checks
        passed; `commonsense macro` and `hard macro`, whether all are; and each common-sense check by its name."""
        found = self.check(problem, response)
        delivered = read(response.answer) is not None
        counts = rates([found])
        parts = {"delivery": float(delivered), "commonsense": counts["commonsense micro"], "hard": counts["hard micro"],
                 "commonsense macro": counts["commonsense macro"], "hard macro": counts["hard macro"],
                 **{c.name: float(c.result == "pass") for c in found if c.name in COMMON}}  # fmt: skip
        if not delivered:
            return Verdict(0.0, "unparseable", parts, "no plan of six fields a line")
        failed = [c for c in found if c.result == "fail"]
        if failed:
            return Verdict(0.0, "wrong", parts, f"{failed[0].name}: {failed[0].reason}")
        return Verdict(1.0, "ok", parts)

    def corrupt(self, problem: Problem, rng: random.Random) -> Corruption:
        """One change to the gold plan that fails one check alone, which is its label."""
        found = _slips(problem.data["trip"])
        label = rng.choice(list(found))
        return Corruption((), rng.choice(found[label]), label, 0)

    def transforms(self) -> Mapping[str, tuple[Transform, Transform]]:
        return {"paraphrase": cycle(_word, "wording", (0, 1))}

    def max_answer_tokens(self) -> int:
        """Characters of the longest plan, of which a token has at least one."""
        return 64 * max(LEVELS[level][0] for level in self.chosen) + 16


def read(text: str | None) -> Plan | None:
    """A plan from its text; None unless each line has six fields."""
    days = []
    for line in filter(str.strip, (text or "").splitlines()):
        fields = [field.strip() for field in line.split(",")]
        if len(fields) != 6 or not all(fields):
            return None
        start, arrow, end = (part.strip() for part in fields[0].partition(">"))
        days.append(Day(start, end if arrow else start, *fields[1:]))
    return tuple(days) or None


# -- checks ------------------------------------------------------------------------------------------------------------
def checks(trip: Trip, plan: Plan, budget: int) -> list[Check]:
    """All checks of a plan, in order."""
    reasons = {"visiting city": _visiting(trip, plan), "restaurants": _repeated([m for d in plan for m in (d.lunch, d.dinner)]),
               "attractions": _repeated([d.sight for d in plan]), "transportation": _transportation(plan),
               "accommodation": _accommodation(trip, plan), "current city": _current_city(trip, plan),
               "sandbox": _sandbox(trip, plan), "complete": _complete(trip, plan)}  # fmt: skip
    found = [Check(name, "fail" if reason else "pass", reason) for name, reason in reasons.items()]
    unjudged = next((f"{UNJUDGED}: {reasons[n]}" for n in ("sandbox", "complete") if reasons[n]), "")
    hotels = [h for c in trip.cities for h in c.hotels if any(h.name == d.hotel for d in plan)]
    cuisines = {
        r.cuisine for c in trip.cities for r in c.restaurants if any(r.name in (d.lunch, d.dinner) for d in plan)
    }
    cost, wish = trip.cost(plan), trip.wishes.get
    hard = {
        "budget": f"costs {cost} of {budget}" if cost > budget else "",
        "room rule": next((f"{h.name} forbids {h.bars}" for h in hotels if h.bars == wish("room rule")), ""),
        "cuisine": f"no {wish('cuisine')} food" if wish("cuisine") not in cuisines else "",
        "room type": next((f"{h.name} is {h.kind}" for h in hotels if h.kind != wish("room type")), ""),
        "transport": f"uses {wish('transport')}" if wish("transport") in {d.transport for d in plan} else "",
    }
    for name, reason in hard.items():
        if name != "budget" and wish(name) is None:
            found.append(Check(name, "n.a."))
        else:
            found.append(Check(name, "fail" if unjudged or reason else "pass", unjudged or reason))
    return found


def _visiting(trip: Trip, plan: Plan) -> str:
    if plan[0].start != trip.origin:
        return f"it starts from {plan[0].start}"
    for before, after in pairwise(plan):
        if after.start != before.end:
            return f"{before.end} is left for {after.start} by nothing"
    stops = [end for end, _ in groupby([plan[0].start, *(d.end for d in plan)])]
    if stops[-1] != trip.origin:
        return f"it ends in {stops[-1]}"
    return "" if tuple(stops[1:-1]) == trip.route else f"it visits {' '.join(stops[1:-1])}"


def _repeated(names: Sequence[str]) -> str:
    twice = next((n for place, n in enumerate(names) if n != NONE and n in names[:place]), "")
    return f"{twice} is visited twice" if twice else ""


def _transportation(plan: Plan) -> str:
    used = {d.transport for d in plan} - {NONE}
    if "drive" in used and len(used) > 1:
        return f"drive with {min(used - {'drive'})}"
    if plan[0].transport == NONE:
        return "none on day 1"
    idle = next((d for d in plan if not d.moves and d.transport != NONE), None)
    return f"{idle.transport} to nowhere" if idle else ""


def _accommodation(trip: Trip, plan: Plan) -> str:
    least = {h.name: h.nights for c in trip.cities for h in c.hotels}
    for name, nights in groupby(d.hotel for d in plan):
        if (stayed := len(list(nights))) < least.get(name, 0):
            return f"{name} wants {least[name]} nights, not {stayed}"
    return ""


def _current_city(trip: Trip, plan: Plan) -> str:
    where = {
        x: c.name
        for c in trip.cities
        for x in (*(h.name for h in c.hotels), *(r.name for r in c.restaurants), *c.sights)
    }
    for number, day in enumerate(plan, 1):
        for name, cities in ((day.lunch, {day.start, day.end}), (day.sight, {day.start, day.end}),
                             (day.dinner, {day.start, day.end}), (day.hotel, {day.end})):  # fmt: skip
            if name in where and where[name] not in cities:
                return f"{name} is in {where[name]} on day {number}"
    return ""


def _sandbox(trip: Trip, plan: Plan) -> str:
    hotels = {h.name for c in trip.cities for h in c.hotels} | {NONE}
    meals = {r.name for c in trip.cities for r in c.restaurants} | {NONE}
    sights = {s for c in trip.cities for s in c.sights} | {NONE}
    known = {trip.origin, *(c.name for c in trip.cities)}
    for day in plan:
        for name, table in ((day.start, known), (day.end, known), (day.lunch, meals), (day.sight, sights),
                            (day.dinner, meals), (day.hotel, hotels)):  # fmt: skip
            if name not in table:
                return f"{name} is in no table"
        if day.moves and day.transport != NONE and day.transport not in trip.legs.get((day.start, day.end), {}):
            return f"no {day.transport} from {day.start} to {day.end}"
    return ""


def _complete(trip: Trip, plan: Plan) -> str:
    if len(plan) != trip.days:
        return f"{len(plan)} days of {trip.days}"
    for number, day in enumerate(plan, 1):
        needed = {"lunch": day.lunch, "attraction": day.sight, "dinner": day.dinner}
        if number < trip.days:
            needed["hotel"] = day.hotel
        if number > 1 and day.moves:  # that of day 1 is the business of `transportation`
            needed["transport"] = day.transport
        missing = next((what for what, name in needed.items() if name == NONE), "")
        if missing:
            return f"no {missing} on day {number}"
    return ""


def rates(plans: Sequence[Sequence[Check]]) -> dict[str, float]:
    """TravelPlanner's pass rates of some plans' checks: of each kind, micro (checks passed / checks that apply) and macro
    (plans that pass all of them / plans), and `final` (plans that pass both kinds)."""
    found: dict[str, float] = {}
    whole: dict[str, list[bool]] = {}
    for kind, names in (("commonsense", COMMON), ("hard", HARD)):
        tables = [[c.result == "pass" for c in plan if c.name in names and c.result != "n.a."] for plan in plans]
        found[f"{kind} micro"] = sum(map(sum, tables)) / max(1, sum(map(len, tables)))
        whole[kind] = [all(table) for table in tables]
        found[f"{kind} macro"] = sum(whole[kind]) / max(1, len(plans))
    found["final"] = sum(a and b for a, b in zip(*whole.values(), strict=True)) / max(1, len(plans))
    return found


# -- slips -------------------------------------------------------------------------------------------------------------
@lru_cache(maxsize=512)
def _slips(parameters: tuple[Any, ...]) -> dict[str, list[str]]:
    """Texts of plans one change away from the gold one, by the one check that they fail."""
    trip = Trip.of(parameters)
    gold, budget = trip.solve(), trip.budget()
    found: dict[str, list[str]] = {}
    for plan in _neighbours(trip, gold):
        failed = [
            c.name for c in checks(trip, plan, budget) if c.result == "fail" and not c.reason.startswith(UNJUDGED)
        ]
        if len(failed) == 1:
            found.setdefault(failed[0], []).append(_text(plan))
    return found


def _neighbours(trip: Trip, gold: Plan) -> list[Plan]:
    names = {d.name for c in trip.cities for d in (*c.hotels, *c.restaurants)} | {
        s for c in trip.cities for s in c.sights
    }
    unknown = next(n for n in NAMES if n not in names)
    meals = [*(r.name for c in trip.cities for r in c.restaurants), unknown, NONE]
    options = {
        "lunch": meals,
        "dinner": meals,
        "sight": [*(s for c in trip.cities for s in c.sights), unknown, NONE],
        "hotel": [*(h.name for c in trip.cities for h in c.hotels), unknown, NONE],
        "transport": ["flight", "taxi", "drive", NONE],
    }
    found = [_changed(gold, i, **{field: value})
             for i, day in enumerate(gold) for field, values in options.items()
             if not (field == "hotel" and i == len(gold) - 1) for value in values if value != getattr(day, field)]  # fmt: skip
    found += [tuple(replace(d, transport=mode) if d.moves else d for d in gold) for mode in ("flight", "taxi", "drive")]
    last = gold[-1]
    return [*found, _changed(gold, len(gold) - 1, end=last.start, transport=NONE)]


def _changed(plan: Plan, place: int, **fields: str) -> Plan:
    return (*plan[:place], replace(plan[place], **fields), *plan[place + 1 :])


# -- words -------------------------------------------------------------------------------------------------------------
def _text(plan: Plan) -> str:
    return "\n".join(map(str, plan))


def _word(data: Mapping[str, Any], level: int) -> Problem:
    trip = Trip.of(data["trip"])
    budget, people = trip.budget(), f"{trip.people} people" if trip.people > 1 else "1 person"
    lines = ["; ".join(f"{a} to {b}: {', '.join(f'{m} {p}' for m, p in prices.items())}"
                       for (a, b), prices in trip.legs.items())]  # fmt: skip
    for c in trip.cities:
        hotels = (f"{h.name} {h.price} {h.kind}" + (f" {h.nights} nights" if h.nights > 1 else "")
                  + (f" no {h.bars}" if h.bars else "") for h in c.hotels)  # fmt: skip
        food = (f"{r.name} {r.price} {r.cuisine}" for r in c.restaurants)
        lines.append(f"{c.name}: hotels {', '.join(hotels)}; food {', '.join(food)}; sights {', '.join(c.sights)}")
    told = {"room rule": "{} allowed", "cuisine": "{} food", "room type": "{} rooms", "transport": "no {}"}
    wishes = ", ".join(told[name].format(value) for name, value in trip.wishes.items())
    route = " and ".join(trip.route)
    if data["wording"] == 0:
        query = f"plan {trip.days} days from {trip.origin} to {route} and back for {people}, budget {budget}."
    else:
        query = f"{people} in {trip.origin} want to see {route}, {trip.days} days, for {budget} at most."
    return Problem(
        id="",
        prompt="\n".join([*lines, f"{query} wanted: {wishes}." if wishes else query]),
        answer=_text(trip.solve()),
        level=level,
        category=f"level-{level}",
        data={**data, "budget": budget},
    )
