"""word-problem: short stories with one to five operations, in English and French.

A story is held as data (theme, names, numbers, operations), so that it can be told in either language and back.
Grammar stays right by choice of words: all numbers are at least 2, names and objects start with a consonant (no
elision), and no sentence needs a gender.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from whet.errors import unknown
from whet.tasks import chain
from whet.tasks.problem import Check, Corruption, Problem, Response, Verdict
from whet.tasks.task import Procedural
from whet.tasks.transforms import Transform, cycle
from whet.tasks.verify import number


@dataclass(frozen=True, slots=True)
class Theme:
    """Words for one kind of story: what is counted, what holds it, how there are more of it and how fewer."""

    objects: str
    holders: str
    more: str
    fewer: str


THEMES = {
    "en": (
        Theme("marbles", "bags", "wins", "loses"),
        Theme("books", "shelves", "buys", "lends"),
        Theme("apples", "baskets", "picks", "eats"),
        Theme("stamps", "albums", "receives", "sells"),
        Theme("coins", "boxes", "finds", "spends"),
        Theme("cookies", "plates", "bakes", "eats"),
        Theme("flowers", "vases", "picks", "gives away"),
        Theme("fish", "tanks", "buys", "sells"),
        Theme("pencils", "boxes", "receives", "breaks"),
        Theme("cards", "packs", "wins", "loses"),
    ),
    "fr": (
        Theme("billes", "sacs", "gagne", "perd"),
        Theme("livres", "étagères", "achète", "prête"),
        Theme("pommes", "paniers", "cueille", "mange"),
        Theme("timbres", "albums", "reçoit", "vend"),
        Theme("pièces", "boîtes", "trouve", "dépense"),
        Theme("biscuits", "assiettes", "prépare", "mange"),
        Theme("fleurs", "vases", "cueille", "donne"),
        Theme("poissons", "aquariums", "achète", "vend"),
        Theme("crayons", "boîtes", "reçoit", "casse"),
        Theme("cartes", "paquets", "gagne", "perd"),
    ),
}
NAMES = ("Mia", "Tom", "Nina", "Paul", "Rose", "Max", "Clara", "Lucas", "Sara", "Marc", "Julia", "David")

# two wordings each of: a start, a start in groups, more, fewer, a comparison, the question
SENTENCES = {
    "en": (
        {
            "start": "{name} has {n} {objects}.",
            "each": "{name} has {n} {holders} of {m} {objects}.",
            "more": "{name} {more} {n} more.",
            "fewer": "{name} {fewer} {n} {objects}.",
            "times": "{other} has {n} times as many {objects} as {name}.",
            "ask": "How many {objects} does {who} have now?",
        },
        {
            "start": "At first, {name} has {n} {objects}.",
            "each": "At first, {name} has {n} {holders}, each with {m} {objects}.",
            "more": "Then {name} {more} {n} {objects}.",
            "fewer": "Then {name} {fewer} {n} {objects}.",
            "times": "{other} has {n} times that many {objects}.",
            "ask": "In the end, how many {objects} does {who} have?",
        },
    ),
    "fr": (
        {
            "start": "{name} a {n} {objects}.",
            "each": "{name} a {n} {holders} de {m} {objects}.",
            "more": "{name} {more} encore {n} {objects}.",
            "fewer": "{name} {fewer} {n} {objects}.",
            "times": "{other} a {n} fois plus de {objects} que {name}.",
            "ask": "Combien de {objects} a {who} maintenant ?",
        },
        {
            "start": "Au début, {name} a {n} {objects}.",
            "each": "Au début, {name} a {n} {holders} de {m} {objects}.",
            "more": "Puis {name} {more} {n} {objects}.",
            "fewer": "Puis {name} {fewer} {n} {objects}.",
            "times": "{other} en a {n} fois plus.",
            "ask": "À la fin, combien de {objects} a {who} ?",
        },
    ),
}
FILLERS = {
    "en": ("", "It is sunny today. ", "School is over. ", "Lunch was good. "),
    "fr": ("", "Il fait beau. ", "La classe est finie. ", "Le repas était bon. "),
}
# what to do about each event, without its number
PLANS = {
    "en": {
        "start": "Start with the {objects} that {name} has.",
        "each": "Start with the {holders} that {name} has.\nMultiply by the {objects} in each.",
        "more": "Add the {objects} that {name} {more}.",
        "fewer": "Take away the {objects} that {name} {fewer}.",
        "times": "Multiply by how many times as many {other} has.",
    },
    "fr": {
        "start": "Partir des {objects} que {name} a.",
        "each": "Partir du nombre de {holders} que {name} a.\nMultiplier par les {objects} de chacun.",
        "more": "Ajouter les {objects} que {name} {more}.",
        "fewer": "Retirer les {objects} que {name} {fewer}.",
        "times": "Multiplier par combien de fois plus {other} en a.",
    },
}
SIGNS = {"each": "*", "more": "+", "fewer": "-", "times": "*"}
LARGEST = {1: 20, 2: 30, 3: 50, 4: 99, 5: 199}


class WordProblem(Procedural):
    """`Mia has 7 marbles. Mia wins 5 more. How many marbles does Mia have now?` with the rationale `7+5=12`.

    Args:
        level: the number of operations, 1 to 5, or a range.
        lang: "en", "fr" or "mixed" (half of the stories in each).
    """

    name = "word-problem"
    levels = tuple(LARGEST)
    description = "stories with one to five operations, in English or French"

    def __init__(self, level: int | str | None = None, lang: str = "en") -> None:
        super().__init__(level)
        if lang not in ("en", "fr", "mixed"):
            raise unknown("language", lang, ("en", "fr", "mixed"))
        self.lang = lang

    def draw(self, rng: random.Random, level: int) -> tuple[Any, ...]:
        """(theme, name, other name, start, ((kind, number), ...)), all of them told.

        The language is left out, so that a story and its translation are in the same split.
        """
        uniform = rng.random  # several times faster than randint, and a test problem takes ten draws
        name = int(uniform() * len(NAMES))
        other = name  # until the story compares: a difference that is not told would put one text into two splits
        largest = LARGEST[level]
        start = value = 2 + int(uniform() * (largest - 1))
        story: list[tuple[str, int]] = []
        for i in range(level):
            chance = uniform()
            if i == 0 and chance < 0.25:
                start = 2 + int(uniform() * 5)
                kind, n = "each", 2 + int(uniform() * 8)
                value = start
            elif i == level - 1 and chance > 0.8:
                kind, n = "times", 2 + int(uniform() * 3)
                other = (name + 1 + int(uniform() * (len(NAMES) - 1))) % len(NAMES)
            elif value >= 4 and uniform() < 0.5:
                kind, n = "fewer", 2 + int(uniform() * (min(largest, value - 2) - 1))
            else:
                kind, n = "more", 2 + int(uniform() * (largest - 1))
            story.append((kind, n))
            value = chain.apply(value, SIGNS[kind], n)
        return int(uniform() * len(THEMES["en"])), name, other, start, tuple(story)

    def build(self, parameters: tuple[Any, ...], level: int) -> Problem:
        theme, name, other, start, story = parameters
        lang = self.lang
        if lang == "mixed":  # by the story itself, so that no story is told in both languages
            lang = ("en", "fr")[zlib.crc32(repr(parameters).encode()) & 1]
        data = {"theme": theme, "name": name, "other": other, "start": start, "story": story}
        return _word({**data, "lang": lang, "wording": 0, "filler": 0}, level)

    def verify(self, problem: Problem, response: Response) -> Verdict:
        """Compares numbers."""
        return number(problem, response)

    def check(self, problem: Problem, response: Response) -> list[Check]:
        """One check a step, then the answer's."""
        return [*chain.check_steps(*_chain(problem.data), response.rationale), *super().check(problem, response)]

    def corrupt(self, problem: Problem, rng: random.Random) -> Corruption:
        """Labels: arithmetic, copy (a number), operation (the wrong one) and skip (an event)."""
        start, operations = _chain(problem.data)
        labels = ("arithmetic", "copy", "operation", "skip")
        return chain.corrupt(start, operations, rng, labels if len(operations) > 1 else labels[:-1])

    def transforms(self) -> Mapping[str, tuple[Transform, Transform]]:
        return {
            "language": cycle(_word, "lang", ("en", "fr")),
            "paraphrase": cycle(_word, "wording", (0, 1)),
            "filler": cycle(_word, "filler", range(len(FILLERS["en"]))),
        }

    def spec(self) -> str:
        options = {} if self._given is None else {"level": self._given}
        if self.lang != "en":
            options["lang"] = self.lang
        return ":".join(filter(None, [self.name, ",".join(f"{k}={v}" for k, v in options.items())]))

    def max_answer_tokens(self) -> int:
        return self.chosen[-1] * 14 + 24


def _chain(data: Mapping[str, Any]) -> tuple[int, list[chain.Operation]]:
    return data["start"], [(SIGNS[kind], n) for kind, n in data["story"]]


def _word(data: Mapping[str, Any], level: int) -> Problem:
    lang, story = data["lang"], data["story"]
    theme, sentences = THEMES[lang][data["theme"]], SENTENCES[lang][data["wording"]]
    name, other = NAMES[data["name"]], NAMES[data["other"]]
    words = {
        "name": name,
        "other": other,
        "who": other if story[-1][0] == "times" else name,
        "objects": theme.objects,
        "holders": theme.holders,
        "more": theme.more,
        "fewer": theme.fewer,
    }
    if story[0][0] == "each":
        told = [sentences["each"].format(n=data["start"], m=story[0][1], **words)]
        events = story[1:]
    else:
        told = [sentences["start"].format(n=data["start"], **words)]
        events = story
    first = "each" if story[0][0] == "each" else "start"
    told += [sentences[kind].format(n=n, **words) for kind, n in events]
    start, operations = _chain(data)
    return Problem(
        id="",
        prompt=FILLERS[lang][data["filler"]] + " ".join([*told, sentences["ask"].format(**words)]),
        answer=str(chain.value_of(start, operations)),
        level=level,
        steps=chain.steps_of(start, operations),
        plan="\n".join(PLANS[lang][kind].format(**words) for kind in [first, *(kind for kind, _ in events)]),
        category=f"level-{level}",
        data=data,
    )
