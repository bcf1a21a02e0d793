"""facts: questions about an invented world, to be answered from memory or from the facts in the prompt.

A fact can be asked for in five wordings, reached over a second fact, compared with another, and changed in a given
year: the views that tell whether a fact was learnt from whether its sentence was.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from typing import Any

from whet.errors import WhetError, unknown
from whet.seeds import rng_for
from whet.tasks.facts_world import (
    ATTRIBUTES,
    CHANGES,
    JOBS,
    LAST_YEAR,
    SIZES,
    STATEMENTS,
    Fact,
    Stated,
    World,
    ask,
    elder,
    read,
    world,
)
from whet.tasks.problem import Check, Corruption, Problem, Response, Split, Step
from whet.tasks.task import Procedural, split_of
from whet.tasks.transforms import Transform, cycle

HOPS = (
    ("home", "country"), ("birth", "country"), ("friend", "home"), ("friend", "birth"), ("friend", "job"),
    ("friend", "age"),
)  # fmt: skip
KINDS = ("lookup", "twohop", "comparison")
WORDINGS: dict[Split, tuple[int, ...]] = {"train": (0, 1, 2), "validation": (3,), "test": (4,)}
PLANS = {
    "lookup": "State the fact that is asked for.",
    "twohop": "State who or what is meant, then the fact that is asked for.",
    "comparison": "State both ages, then compare them.",
}
DISTRACTORS = (1, 3, 5, 8)  # a level, in open-book prompts


class Facts(Procedural):
    """`Where does Pagi live?` with the rationale `Pagi lives in Rudolby.`

    Data set: an invented world of people (home, birthplace, job, best friend, age), towns and countries, the same for
    the same `world`; the worlds of the levels have 20, 80, 320 and 1280 people, each part of the next.
    Contents: `data["facts"]` (`Pagi.home`) and `data["documents"]` (`Pagi`, whose text is `documents()["Pagi"]`) are
    what the answer rests on, `data["old_answer"]` the one of year 0 where it was another.
    Splits, closed book: BY WORDING, NOT BY FACT, since a method must be able to learn the facts: every fact is asked
    for in train in three wordings, in validation and test in one more each, so no prompt is in two splits. Whether
    facts combine is tested by training on one `kind` and testing on another. Open book: by a hash of what is asked, in
    all wordings, so no question of the test split is asked in train. Updates: about a quarter of homes and jobs change
    once, in a year from 1 to 9; the questions stay, the answers are those of `year`.
    Limits: English, single-valued facts, no fact that the text does not state.

    Args:
        level: 1 to 4, or a range: the size of the world, and with an open book 1, 3, 5 or 8 distractors.
        form: "closed" asks only; "open" puts the facts and distractors before the question.
        kind: "lookup", "twohop", "comparison" (has choices) or "mixed".
        world: the seed of the world.
        year: the answers are those of this year, 0 (before any change) to 9.
        only: "updated" asks only where the answer differs from that of year 0.
    """

    name = "facts"
    levels = (1, 2, 3, 4)
    description = "facts of an invented world: look up, combine, compare, update; from memory or from the prompt"

    def __init__(
        self,
        level: int | str | None = None,
        form: str = "closed",
        kind: str = "mixed",
        world: int | str = 0,
        year: int | str = 0,
        only: str = "all",
    ) -> None:
        super().__init__(level)
        choices = {"form": ("closed", "open"), "kind": (*KINDS, "mixed"), "only": ("all", "updated")}
        for option, given in (("form", form), ("kind", kind), ("only", only)):
            if given not in choices[option]:
                raise unknown(f"{option} of the facts task", given, choices[option])
        self.form, self.kind, self.only = form, kind, only
        self.seed = _whole("world", world, 2**31)
        self.year = _whole("year", year, LAST_YEAR)
        if only == "updated" and (self.year == 0 or kind == "comparison"):
            raise WhetError("facts:only=updated needs a year from 1 to 9 and another kind than comparison")
        self._kinds = (kind,) if kind != "mixed" else KINDS if only == "all" else KINDS[:2]
        self._updates: dict[int, list[tuple[str, ...]]] = {}

    # -- the world -----------------------------------------------------------------------------------------------------
    def world(self) -> World:
        """The world of the highest level chosen."""
        return world(self.seed, SIZES[self.chosen[-1] - 1])

    def statements(self, n: int | None = None, seed: int = 0) -> Iterator[str]:
        """`n` facts of this year as sentences, for pretraining: every fact once in random order, then again in other
        wordings; n=None is one round.
        """
        place = self.world()
        facts = list(place.facts(len(place.people)))
        n = len(facts) if n is None else n
        for start in range(0, n, len(facts)):
            rng = rng_for(seed, "facts", "statements", start)
            for fact in rng.sample(facts, min(len(facts), n - start)):
                yield place.state(fact, self.year, rng.randrange(2))

    def documents(self) -> dict[str, str]:
        """The page of every person and town by its id, as of this year."""
        place = self.world()
        return {subject: place.document(subject, self.year) for subject in (*place.people, *place.towns)}

    # -- problems ------------------------------------------------------------------------------------------------------
    def problem(self, split: Split, index: int, *, seed: int = 0) -> Problem:
        """Problem number `index`: closed book, the wording is the split's; open book, the question's hash is."""
        rng = rng_for(seed, self.name, self.version, split, index)
        level = self.chosen[0] if len(self.chosen) == 1 else rng.choice(self.chosen)
        closed = self.form == "closed"
        for _ in range(10_000):
            question = self.draw(rng, level)
            if closed or split_of(question) == split:
                break
        else:
            raise WhetError(f"task '{self.name}' level {level}: too few questions to fill the {split} split")
        wording = rng.choice(WORDINGS[split]) if closed else rng.randrange(5)
        context = () if closed else self._context(question, level, rng)
        name = f"{self.name}/{self.version}/{split}/{seed}/{level}/{index}"
        return self._word({"question": question, "wording": wording, "context": context}, level, name)

    def draw(self, rng: random.Random, level: int) -> tuple[str, ...]:
        """What is asked: (lookup, subject, attribute), (twohop, person, attribute, attribute of that), or
        (comparison, person, person, older or younger).
        """
        uniform = rng.random  # several times faster than choice, and an open-book test problem takes ten draws
        place, size = self.world(), SIZES[level - 1]
        if self.only == "updated":
            updated = self._updated(level)
            return updated[int(uniform() * len(updated))]
        kind = self._kinds[int(uniform() * len(self._kinds))]
        subject = place.people[int(uniform() * size)]
        if kind == "lookup":
            attribute = (*ATTRIBUTES, "country")[int(uniform() * 6)]
            if attribute == "country":
                subject = place.towns[int(uniform() * len(place.towns))]
            return kind, subject, attribute
        if kind == "twohop":
            return kind, subject, *HOPS[int(uniform() * len(HOPS))]
        other = subject
        while place.value(subject, "age") == place.value(other, "age"):
            other = place.people[int(uniform() * size)]
        return kind, subject, other, "older" if uniform() < 0.5 else "younger"

    def _updated(self, level: int) -> list[tuple[str, ...]]:
        """All questions of a level whose answer has changed by this year."""
        if level not in self._updates:
            people = self.world().people[: SIZES[level - 1]]
            asked = {"lookup": [(a,) for a in ATTRIBUTES], "twohop": HOPS}
            every = [(kind, person, *rest) for kind in self._kinds for person in people for rest in asked[kind]]
            self._updates[level] = [q for q in every if self._answer(q, self.year) != self._answer(q, 0)]
            if not self._updates[level]:
                raise WhetError(f"facts: no answer changes up to year {self.year} at level {level}; take a later year")
        return self._updates[level]

    def build(self, parameters: tuple[str, ...], level: int) -> Problem:
        """The question in its first wording; with an open book, its facts alone stand before it."""
        context = tuple(self.world().needed(parameters, self.year)) if self.form == "open" else ()
        return self._word({"question": parameters, "wording": 0, "context": context}, level)

    def _answer(self, question: tuple[str, ...], year: int) -> str:
        place = self.world()
        if question[0] == "comparison":
            return elder(question, [place.value(person, "age") for person in question[1:3]])
        return place.value(*place.needed(question, year)[-1], year)

    def _context(self, question: tuple[str, ...], level: int, rng: random.Random) -> tuple[Fact, ...]:
        """The facts needed and distractors (the same subjects' other facts, others' same facts), in random order."""
        place = self.world()
        needed = place.needed(question, self.year)
        chosen = dict.fromkeys(needed)
        for _ in range(10 * DISTRACTORS[level - 1]):  # a small world may have fewer
            if len(chosen) == len(needed) + DISTRACTORS[level - 1]:
                break
            subject, attribute = rng.choice(needed)
            if attribute == "country":
                subject = rng.choice(place.towns)
            elif rng.random() < 0.5:
                attribute = rng.choice(ATTRIBUTES)
            else:
                subject = place.people[int(rng.random() * SIZES[level - 1])]
            chosen[subject, attribute] = None
        return tuple(rng.sample(list(chosen), len(chosen)))

    def _word(self, data: Mapping[str, Any], level: int, name: str = "") -> Problem:
        place, question, wording = self.world(), data["question"], data["wording"]
        kind = question[0]
        needed = place.needed(question, self.year)
        answer, old = self._answer(question, self.year), self._answer(question, 0)
        stated = [(*fact, place.value(*fact, self.year)) for fact in needed]
        asked = ask(question, wording)
        choices = question[1:3] if kind == "comparison" else ()
        return Problem(
            id=name,
            prompt=" ".join([*self._told(data["context"]), asked]),
            answer=answer,
            task=self.name,
            level=level,
            steps=self._steps(question, stated),
            plan=PLANS[kind],
            choices=choices,
            choice_rationales=tuple(place.state((person, "age")) for person in choices),
            category=kind,
            data={
                **data,
                "facts": tuple(f"{subject}.{attribute}" for subject, attribute in needed),
                "documents": tuple(dict.fromkeys(subject for subject, _ in needed)),
                "old_answer": old if old != answer else None,
            },
        )

    def _told(self, context: tuple[Fact, ...]) -> list[str]:
        """The sentences of an open book: the facts as of year 0, then what has changed since, in order."""
        place = self.world()
        changes = [place.changes[fact] for fact in context if fact in place.changes]
        since = sorted((c for c in changes if c.year <= self.year), key=lambda c: (c.year, c.subject))
        return [place.state(fact) for fact in context] + [c.sentence for c in since]

    def _steps(self, question: tuple[str, ...], stated: list[Stated]) -> tuple[Step, ...]:
        skill = "recall" if self.form == "closed" else "read"
        steps = [Step(STATEMENTS[a][0].format(s=s, v=v), "lookup", skill) for s, a, v in stated]
        if question[0] == "twohop":
            steps[1] = Step(steps[1].text, "lookup", skill, (0,))
        if question[0] == "comparison":
            first, second = stated[0][2], stated[1][2]
            than = "more" if int(first) > int(second) else "less"
            steps.append(Step(f"{first} is {than} than {second}.", "compare", "compare", (0, 1)))
        return tuple(steps)

    # -- judging -------------------------------------------------------------------------------------------------------
    def check(self, problem: Problem, response: Response) -> list[Check]:
        """One check a step, then the answer's. A second hop may start from whatever the first one stated."""
        question = problem.data["question"]
        lines = [line.strip() for line in response.rationale.splitlines() if line.strip()]
        due = [*self.world().needed(question, self.year)]
        said: list[Stated] = []
        checks: list[Check] = []
        for i in range(max(len(problem.steps), len(lines))):
            name = f"step {i + 1}"
            if i >= len(lines):
                checks.append(Check(name, "n.a.", "no such step found"))
                continue
            if question[0] == "twohop" and i == 1 and said:
                due = [(said[0][2], question[3])]
            reason = self._fault(lines[i], due, said, compares=question[0] == "comparison")
            if i >= len(problem.steps):
                reason = "one step too many"
            checks.append(Check(name, "fail" if reason else "pass", reason))
        return [*checks, *super().check(problem, response)]

    def _fault(self, line: str, due: list[Fact], said: list[Stated], compares: bool) -> str:
        """What is wrong with a step, or ""; what it states goes to `said`, and what was due is taken from `due`."""
        place = self.world()
        if compares and (found := re.fullmatch(r"([0-9]{1,3}) is (more|less) than ([0-9]{1,3})\.?", line)):
            if sorted((found[1], found[3])) != sorted(value for _, attribute, value in said if attribute == "age"):
                return "compares other ages than those stated"
            first, second = int(found[1]), int(found[3])
            return "" if (first > second) == (found[2] == "more") and first != second else "the comparison is false"
        found = read(line)
        if found is None:
            return "not a statement of a fact"
        said.append(found)
        subject, attribute, value = found
        if not due:
            return "no fact is due"
        fact = (subject, attribute) if (subject, attribute) in due else due[0]
        due.remove(fact)
        if fact != (subject, attribute):
            return f"states {subject}'s {attribute} where {fact[0]}'s {fact[1]} is due"
        if not place.knows(fact):
            return f"there is no {attribute} of {subject}"
        right = place.value(*fact, self.year)
        return "" if value == right else f"the {attribute} of {subject} is {right}, not {value}"

    def corrupt(self, problem: Problem, rng: random.Random) -> Corruption:
        """Labels: value (a wrong one), subject (a fact of someone else), relation (home for birthplace or the reverse),
        stale (what held before a change) and compare (a false comparison).
        """
        question = problem.data["question"]
        needed = self.world().needed(question, self.year)
        for _ in range(100):
            label, at = rng.choice(self._labels(needed, question[0])), rng.randrange(len(needed))
            if label == "compare":
                *facts, last = problem.steps
                more = "less" if "more" in last.text else "more"
                text = re.sub("more|less", more, last.text)
                answer = next(person for person in question[1:3] if person != problem.answer)
                return Corruption((*facts, Step(text, last.kind, last.skill, last.premises)), answer, label, len(facts))
            stated = self._misstate(question, at, label, problem.level, rng)
            if stated is None:
                continue
            values = [value for _, _, value in stated]
            if question[0] == "comparison" and values[0] == values[1]:
                continue
            answer = elder(question, values) if question[0] == "comparison" else values[-1]
            if answer != problem.answer:
                return Corruption(self._steps(question, stated), answer, label, at)
        raise WhetError(f"problem '{problem.id}': found no corruption")

    def _labels(self, needed: list[Fact], kind: str) -> list[str]:
        labels = ["value", "subject"]
        if any(attribute in ("home", "birth") for _, attribute in needed):
            labels.append("relation")
        if any(fact in self.world().changes and self.world().changes[fact].year <= self.year for fact in needed):
            labels.append("stale")
        return [*labels, "compare"] if kind == "comparison" else labels

    def _misstate(
        self, question: tuple[str, ...], at: int, label: str, level: int, rng: random.Random
    ) -> list[Stated] | None:
        """The facts as stated by a rationale that gets fact `at` wrong; None where this label does not fit it."""
        place = self.world()
        kind, needed = question[0], place.needed(question, self.year)
        subject, attribute = needed[at]
        people = place.people[: SIZES[level - 1]]
        stated = [(*fact, place.value(*fact, self.year)) for fact in needed]
        right = stated[at][2]
        if label == "value":
            pools = {"job": JOBS, "friend": people, "country": place.countries, "age": [str(n) for n in range(20, 90)]}
            wrong = rng.choice(pools.get(attribute, place.towns))
            stated[at] = (subject, attribute, wrong)
            if wrong in (right, subject):
                return None
        elif label == "subject":
            other = rng.choice(place.towns if attribute == "country" else people)
            stated[at] = (other, attribute, place.value(other, attribute, self.year))
            if other in (subject, *(s for s, _ in needed)):
                return None
        elif label == "relation" and attribute in ("home", "birth"):
            other = "birth" if attribute == "home" else "home"
            stated[at] = (subject, other, place.value(subject, other, self.year))
        elif label == "stale" and attribute in CHANGES and place.value(subject, attribute) != right:
            stated[at] = (subject, attribute, place.value(subject, attribute))
        else:
            return None
        if kind == "twohop" and at == 0:
            bridge = (stated[0][2], needed[1][1])
            stated[1] = (*bridge, place.value(*bridge, self.year))
        return stated

    # -- the rest ------------------------------------------------------------------------------------------------------
    def transforms(self) -> Mapping[str, tuple[Transform, Transform]]:
        """`paraphrase` runs through all five wordings, those of the other splits among them."""
        return {"paraphrase": cycle(self._word, "wording", range(5))}

    def provides(self) -> set[str]:
        return super().provides() - (set() if self.kind == "comparison" else {"choices", "choice rationales"})

    def spec(self) -> str:
        options = {"level": self._given, "form": self.form, "kind": self.kind, "world": self.seed, "year": self.year}
        options["only"] = self.only
        usual = {"level": None, "form": "closed", "kind": "mixed", "world": 0, "year": 0, "only": "all"}
        given = ",".join(f"{key}={value}" for key, value in options.items() if value != usual[key])
        return f"{self.name}:{given}" if given else self.name

    def max_answer_tokens(self) -> int:
        return 112  # the longest rationale, two ages and their comparison, is 64 bytes


def _whole(option: str, text: int | str, highest: int) -> int:
    if not str(text).isdecimal() or int(text) > highest:
        raise WhetError(f"the {option} of the facts task is a whole number from 0 to {highest}, not '{text}'")
    return int(text)
