"""The world of the travel task: trips with their tables, their prices, and the reference solver."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

CITIES = ("Oslo", "Bern", "Lima", "Cairo", "Delhi", "Rome")
_NAMES = """
    apple ball bell bird book bread cake card coat coin cup dish doll drum egg fan fish flag fork game glass hat key
    knife lamp leaf map milk note pen pipe plate ring rock rope rose shell shirt shoe spoon stone tea tie watch
    bear boat cat cloud crow deer fox frog goat hill lake lion moon nest owl pond snow star sun tree wave wolf
"""
NAMES = tuple(_NAMES.split())
KINDS = ("entire", "private", "shared")
RULES = ("pets", "smoking", "parties", "children")
CUISINES = ("thai", "greek", "french", "indian", "mexican")
BARRED = ("flight", "drive")
NONE = "-"
MEALS = 2  # a day: lunch and dinner

# days, cities to visit, wishes, cities in the tables besides, what the budget leaves above the cheapest plan
LEVELS = {1: (2, 1, 0, 0, 1.0), 2: (3, 1, 1, 1, 0.5), 3: (3, 2, 1, 0, 0.5), 4: (3, 2, 3, 1, 0.15)}


@dataclass(frozen=True)
class Hotel:
    """`nights` is the least number of them; `bars` is what its house rule forbids, or ""."""

    name: str
    price: int
    nights: int
    kind: str
    bars: str


@dataclass(frozen=True)
class Restaurant:
    name: str
    price: int
    cuisine: str


@dataclass(frozen=True)
class City:
    name: str
    hotels: tuple[Hotel, ...]
    restaurants: tuple[Restaurant, ...]
    sights: tuple[str, ...]


@dataclass(frozen=True)
class Day:
    """One line of a plan. On a day without a journey `start` and `end` are the same; `NONE` stands for nothing."""

    start: str
    end: str
    transport: str
    lunch: str
    sight: str
    dinner: str
    hotel: str

    @property
    def moves(self) -> bool:
        return self.start != self.end

    def __str__(self) -> str:
        where = f"{self.start}>{self.end}" if self.moves else self.end
        return ", ".join((where, self.transport, self.lunch, self.sight, self.dinner, self.hotel))


Plan = tuple[Day, ...]


@dataclass(frozen=True)
class Trip:
    """What is asked, with the tables.

    Attributes:
        route: the cities to visit, in order.
        wishes: of `room rule`, `cuisine`, `room type` and `transport` those that are asked for, with what is wanted (of
            transport: what is not).
        legs: price of each means of transport on each leg of the journey; a flight is paid a head, the others a car.
    """

    origin: str
    route: tuple[str, ...]
    days: int
    people: int
    slack: float
    wishes: Mapping[str, str]
    cities: tuple[City, ...]
    legs: Mapping[tuple[str, str], Mapping[str, int]]

    @classmethod
    @lru_cache(maxsize=256)
    def of(cls, parameters: tuple[Any, ...]) -> Trip:
        """From bare parameters (`draw`)."""
        origin, route, days, people, slack, wishes, cities, legs = parameters
        return cls(
            origin, route, days, people, slack, dict(wishes),
            tuple(City(name, tuple(Hotel(*h) for h in hotels), tuple(Restaurant(*r) for r in restaurants), sights)
                  for name, hotels, restaurants, sights in cities),
            {(a, b): dict(prices) for a, b, prices in legs},
        )  # fmt: skip

    def city(self, name: str) -> City | None:
        return next((c for c in self.cities if c.name == name), None)

    def journey(self) -> list[tuple[str, str]]:
        """(start, end) of each day: a new city each day as long as there is one, and home on the last."""
        stops = [self.origin, *self.route, *[self.route[-1]] * (self.days - len(self.route) - 1), self.origin]
        return list(itertools.pairwise(stops))

    def cost(self, plan: Sequence[Day]) -> int:
        """Of a plan; what is in no table costs nothing."""
        meals = {r.name: r.price for c in self.cities for r in c.restaurants}
        hotels = {h.name: h.price for c in self.cities for h in c.hotels}
        total = 0
        for day in plan:
            price = self.legs.get((day.start, day.end), {}).get(day.transport, 0)
            total += price * (self.people if day.transport == "flight" else 1) + hotels.get(day.hotel, 0)
            total += self.people * (meals.get(day.lunch, 0) + meals.get(day.dinner, 0))
        return total

    # -- the reference solver ------------------------------------------------------------------------------------------
    def budget(self) -> int:
        """What may be spent: the cheapest plan's cost and the level's slack, rounded up to tens."""
        parts = [min(map(self._fares, self._modes()))]
        parts += [min(h.price for h in self._hotels(c)) * self._nights(c) for c in self.route]
        dishes = min(
            sum(r.price for table in tables for r in table)
            for tables in itertools.product(
                *(itertools.combinations(self._restaurants(c), self._meals(c)) for c in self.route)
            )
            if self._tastes(tables)
        )
        cheapest = sum(parts) + self.people * dishes
        return math.ceil(cheapest * (1 + self.slack) / 10) * 10

    def solve(self) -> Plan:
        """The first plan, in the order of the tables, that keeps every constraint."""
        budget = self.budget()
        return next(plan for plan in self._plans() if self.cost(plan) <= budget)

    def _plans(self) -> Iterator[Plan]:
        """Plans that keep all constraints but the budget."""
        rooms = itertools.product(*(self._hotels(c) for c in self.route))
        tables = itertools.product(*(itertools.combinations(self._restaurants(c), self._meals(c)) for c in self.route))
        fitting = [t for t in tables if self._tastes(t)]
        for modes, hotels, meals in itertools.product(self._modes(), rooms, fitting):
            yield self._written(modes, hotels, meals)

    def _written(
        self, modes: Sequence[str], hotels: Sequence[Hotel], meals: Sequence[Sequence[Restaurant]]
    ) -> Plan:  # fmt: skip
        at = {c: place for place, c in enumerate(self.route)}
        dishes = [iter(table) for table in meals]
        sights = [iter(city.sights) for c in self.route if (city := self.city(c))]
        rides, days = iter(modes), []
        for number, (start, end) in enumerate(self.journey(), 1):
            here = at[start if number == self.days else end]
            room = hotels[here].name if number < self.days else NONE
            days.append(Day(start, end, next(rides) if start != end else NONE, next(dishes[here]).name,
                            next(sights[here]), next(dishes[here]).name, room))  # fmt: skip
        return tuple(days)

    def _modes(self) -> list[tuple[str, ...]]:
        """The ways to travel all legs: never by one's own car and by something else."""
        legs = [self.legs[leg] for leg in self.journey() if leg[0] != leg[1]]
        barred = self.wishes.get("transport")
        ways = list(itertools.product(*([m for m in ("flight", "taxi") if m in prices] for prices in legs)))
        ways.append(("drive",) * len(legs))
        return [way for way in ways if barred not in way]

    def _fares(self, modes: Sequence[str]) -> int:
        legs = [self.legs[leg] for leg in self.journey() if leg[0] != leg[1]]
        return sum(p[m] * (self.people if m == "flight" else 1) for p, m in zip(legs, modes, strict=True))

    def _nights(self, city: str) -> int:
        return sum(end == city for _, end in self.journey())

    def _meals(self, city: str) -> int:
        return MEALS * _days_in(self.route.index(city), self.days, len(self.route))

    def _hotels(self, name: str) -> list[Hotel]:
        city, rule, kind = self.city(name), self.wishes.get("room rule"), self.wishes.get("room type")
        assert city is not None
        nights = self._nights(name)
        return [
            h for h in city.hotels if h.nights <= nights and h.kind in (kind or h.kind) and h.bars != (rule or NONE)
        ]

    def _restaurants(self, name: str) -> tuple[Restaurant, ...]:
        city = self.city(name)
        assert city is not None
        return city.restaurants

    def _tastes(self, tables: Sequence[Sequence[Restaurant]]) -> bool:
        wanted = self.wishes.get("cuisine")
        return wanted is None or any(r.cuisine == wanted for table in tables for r in table)


def _days_in(place: int, days: int, cities: int) -> int:
    """Days spent in the city at a place of the route: one each, and in the last one what is left."""
    return 1 if place < cities - 1 else days - (cities - 1)


def draw(rng: random.Random, level: int) -> tuple[Any, ...]:
    """Bare parameters of a trip that has a solution: (origin, route, days, people, slack, wishes, cities, legs).

    In each city one hotel, at a random place, meets the wishes and the length of the stay, and in the first city one
    restaurant has the wanted cuisine; all else is drawn freely.
    """
    days, visited, wished, others, slack = LEVELS[level]
    names = list(NAMES)
    rng.shuffle(names)
    origin, *cities = rng.sample(CITIES, 1 + visited + others)
    route = tuple(cities[:visited])
    offered = {"room rule": RULES, "cuisine": CUISINES, "room type": KINDS, "transport": BARRED}
    wishes = {name: rng.choice(offered[name]) for name in sorted(rng.sample(list(offered), wished))}
    tables = []
    for place, city in enumerate(cities):
        stay = _days_in(place, days, visited) if place < visited else 1
        nights = stay - (place == visited - 1) if place < visited else 1
        hotels = [[names.pop(), rng.randrange(20, 80, 5), rng.choice((1, 1, 2, 3)), rng.choice(KINDS),
                   rng.choice(("", *RULES))] for _ in range(3 if place < visited else 2)]  # fmt: skip
        fit = rng.choice(hotels)
        fit[2], fit[3] = min(fit[2], nights), wishes.get("room type", fit[3])
        fit[4] = "" if fit[4] == wishes.get("room rule") else fit[4]
        count = MEALS * stay + 1 if place < visited else 2
        dishes = [[names.pop(), rng.randrange(5, 30), rng.choice(CUISINES)] for _ in range(count)]
        if place == 0 and "cuisine" in wishes:
            rng.choice(dishes)[2] = wishes["cuisine"]
        sights = tuple(names.pop() for _ in range(stay + 1))
        tables.append((city, tuple(map(tuple, hotels)), tuple(map(tuple, dishes)), sights))
    legs = []
    for start, end in itertools.pairwise((origin, *route, origin)):
        flies = [("flight", rng.randrange(40, 120, 5))] if rng.random() < 0.7 else []
        legs.append((start, end, (*flies, ("taxi", rng.randrange(40, 120, 5)), ("drive", rng.randrange(20, 60, 5)))))
    return origin, route, days, rng.choice((1, 2)), slack, tuple(wishes.items()), tuple(tables), tuple(legs)
