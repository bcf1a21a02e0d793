"""The invented world of the task facts: people and towns, what holds of them and what changes when, and its words."""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from whet.seeds import rng_for

SIZES = (20, 80, 320, 1280)  # people; each world is the beginning of the next
TOWNS, COUNTRIES = 24, 6
JOBS = (
    "baker", "barber", "builder", "butcher", "cook", "dancer", "dentist", "doctor", "driver", "farmer", "guard",
    "judge", "nurse", "pilot", "poet", "sailor",
)  # fmt: skip
LAST_YEAR = 9
MOVING = 0.25  # the share of people whose home changes, and of those whose job does
ATTRIBUTES = ("home", "birth", "job", "friend", "age")

# What a sentence of each kind says of {s}; the first wording is the one that rationales use.
STATEMENTS = {
    "home": ("{s} lives in {v}.", "The home of {s} is {v}."),
    "birth": ("{s} was born in {v}.", "The birthplace of {s} is {v}."),
    "job": ("{s} works as a {v}.", "The job of {s} is {v}."),
    "friend": ("{s}'s best friend is {v}.", "The best friend of {s} is {v}."),
    "age": ("{s} is {v} years old.", "The age of {s} is {v}."),
    "country": ("{s} is in {v}.", "The country of {s} is {v}."),
}
CHANGES = {"home": "In year {y}, {s} moved to {v}.", "job": "In year {y}, {s} became a {v}."}

# Five wordings each: in closed-book form the first three are for train, then one for validation and one for test.
QUESTIONS = {
    "home": (
        "Where does {s} live?", "In which town does {s} live?", "What is the home of {s}?",
        "Which town is the home of {s}?", "{s} lives in which town?",
    ),
    "birth": (
        "Where was {s} born?", "In which town was {s} born?", "What is the birthplace of {s}?",
        "Which town is the birthplace of {s}?", "{s} was born in which town?",
    ),
    "job": (
        "What does {s} work as?", "What is the job of {s}?", "What does {s} do for a living?",
        "Which job does {s} have?", "{s} works as what?",
    ),
    "friend": (
        "Who is the best friend of {s}?", "Who is {s}'s best friend?", "What is the name of {s}'s best friend?",
        "Which person is the best friend of {s}?", "{s}'s best friend is who?",
    ),
    "age": (
        "How old is {s}?", "What is the age of {s}?", "How many years old is {s}?",
        "What age is {s}?", "{s} is how old?",
    ),
    "country": (
        "In which country is {s}?", "Which country is {s} in?", "What is the country of {s}?",
        "To which country does {s} belong?", "{s} is in which country?",
    ),
    "older": (
        "Who is older, {a} or {b}?", "Which of {a} and {b} is older?", "Of {a} and {b}, who is older?",
        "Who has more years, {a} or {b}?", "{a} or {b}: who is older?",
    ),
    "younger": (
        "Who is younger, {a} or {b}?", "Which of {a} and {b} is younger?", "Of {a} and {b}, who is younger?",
        "Who has fewer years, {a} or {b}?", "{a} or {b}: who is younger?",
    ),
}  # fmt: skip
# the subject of a second hop
PHRASES = {
    "home": "the town where {s} lives",
    "birth": "the town where {s} was born",
    "friend": "the best friend of {s}",
}

Fact = tuple[str, str]  # (subject, attribute)
Stated = tuple[str, str, str]  # (subject, attribute, value), true or not


@dataclass(frozen=True, slots=True)
class Change:
    """From `year` on, `attribute` of `subject` is `new` and no longer `old`."""

    subject: str
    attribute: str
    year: int
    old: str
    new: str

    @property
    def sentence(self) -> str:
        return CHANGES[self.attribute].format(s=self.subject, y=self.year, v=self.new)


class World:
    """People, towns and what holds of them; the same for the same seed, and smaller worlds are part of larger ones.

    Attributes:
        people, towns, countries: names. The people of size n are `people[:n]`.
        changes: fact -> Change, for facts that change once, in a year from 1 to 9.
    """

    def __init__(self, seed: int = 0, size: int = SIZES[-1]) -> None:
        rng = rng_for(seed, "facts", "names")
        syllables = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
        stems = rng.sample([a + b for a in syllables for b in syllables if a != b], SIZES[-1] + TOWNS + COUNTRIES)
        names = [stem.capitalize() for stem in stems]
        self.countries = tuple(f"{name}n" for name in names[:COUNTRIES])
        self.towns = tuple(f"{name}lby" for name in names[COUNTRIES : COUNTRIES + TOWNS])
        self.people = tuple(names[COUNTRIES + TOWNS :][:size])
        self.changes: dict[Fact, Change] = {}
        self._first: dict[Fact, str] = {}
        for i, town in enumerate(self.towns):
            self._first[town, "country"] = self.countries[i % COUNTRIES]
        for i, person in enumerate(self.people):
            self._add_person(i, person, rng_for(seed, "facts", "person", i))

    def _add_person(self, i: int, person: str, rng: random.Random) -> None:
        circle = next(n for n in SIZES if i < n)  # friends are of the smallest world that knows the person
        friend = (i + 1 + int(rng.random() * (circle - 1))) % circle
        home, birth, moved = rng.sample(self.towns, 3)
        job, retrained = rng.sample(JOBS, 2)
        values = (home, birth, job, self.people[friend], str(rng.randint(20, 89)))
        self._first.update({(person, a): v for a, v in zip(ATTRIBUTES, values, strict=True)})
        for attribute, old, new in (("home", home, moved), ("job", job, retrained)):
            if rng.random() < MOVING:
                change = Change(person, attribute, rng.randint(1, LAST_YEAR), old, new)
                self.changes[person, attribute] = change

    def value(self, subject: str, attribute: str, year: int = 0) -> str:
        """What holds in `year`; year 0 is before any change."""
        change = self.changes.get((subject, attribute))
        return change.new if change and change.year <= year else self._first[subject, attribute]

    def knows(self, fact: Fact) -> bool:
        """Whether there is such a fact."""
        return fact in self._first

    def facts(self, size: int) -> Iterator[Fact]:
        """All facts about the first `size` people and about the towns."""
        yield from ((person, attribute) for person in self.people[:size] for attribute in ATTRIBUTES)
        yield from ((town, "country") for town in self.towns)

    def needed(self, question: tuple[str, ...], year: int = 0) -> list[Fact]:
        """The facts that a question (see `Facts.draw`) rests on, in the order of use."""
        kind, subject, *rest = question
        if kind == "lookup":
            return [(subject, rest[0])]
        if kind == "twohop":
            return [(subject, rest[0]), (self.value(subject, rest[0], year), rest[1])]
        return [(subject, "age"), (rest[0], "age")]

    def state(self, fact: Fact, year: int = 0, wording: int = 0) -> str:
        """A fact as a sentence."""
        return STATEMENTS[fact[1]][wording].format(s=fact[0], v=self.value(*fact, year))

    def document(self, subject: str, year: int = 0) -> str:
        """The page about a person or a town: every fact about it, a sentence each. Its id is the subject's name."""
        attributes = ("country",) if (subject, "country") in self._first else ATTRIBUTES
        return " ".join(self.state((subject, attribute), year) for attribute in attributes)


@functools.lru_cache(maxsize=8)
def world(seed: int, size: int) -> World:
    """The world of a seed, made once a process."""
    return World(seed, size)


def ask(question: tuple[str, ...], wording: int) -> str:
    """A question in words."""
    kind, subject, *rest = question
    if kind == "comparison":
        return QUESTIONS[rest[1]][wording].format(a=subject, b=rest[0])
    if kind == "twohop":
        asked = QUESTIONS[rest[1]][wording].format(s=PHRASES[rest[0]].format(s=subject))
        return asked[0].upper() + asked[1:]
    return QUESTIONS[rest[0]][wording].format(s=subject)


def elder(question: tuple[str, ...], ages: list[str]) -> str:
    """The one of the two people compared that the ages make the answer."""
    _, first, second, which = question
    return first if (int(ages[0]) > int(ages[1])) == (which == "older") else second


_FORMS = [
    (attribute, re.compile(re.escape(form).replace(r"\{s\}", r"(?P<s>\w+)").replace(r"\{v\}", r"(?P<v>\w+)")))
    for attribute, forms in STATEMENTS.items()
    for form in forms
]


def read(line: str) -> Stated | None:
    """The fact that a sentence states, in either wording."""
    for attribute, form in _FORMS:
        if found := form.fullmatch(line):
            return found["s"], attribute, found["v"]
    return None
