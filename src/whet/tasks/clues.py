"""clues: choose what somebody's animal eats; the facts are in the question, and so is a note that is often right.

The answer takes two supporting facts. The note is a shortcut: it names the right choice in nine of ten questions, but not in
the forms that test who follows it. Each choice comes with a rationale by a writer that is sometimes mistaken.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from whet.errors import WhetError, unknown
from whet.tasks.problem import Check, Corruption, Problem, Response, Step
from whet.tasks.task import Procedural
from whet.tasks.transforms import Transform, cycle

PEOPLE = ("Mia", "Tom", "Nina", "Paul", "Rose", "Max", "Clara", "Lucas", "Sara", "Marc", "Julia", "David")
ANIMALS = ("fox", "hen", "cat", "dog", "pig", "cow", "goat", "duck", "bird", "mouse", "horse", "bear")
FOODS = ("fish", "corn", "milk", "meat", "nuts", "hay", "bread", "seeds", "fruit", "cheese", "grass", "honey")
KEEPS, EATS, LACKS = "{} keeps a {}.", "A {} eats {}.", "{} keeps no {}."
NOTES = ("A note says: {}.", "Somebody wrote: {}.")
ASKS = ("What does the animal of {} eat?", "What should {} feed the animal with?")
PLAN = "Find the animal that is kept.\nFind what this animal eats."
# share of questions whose note names the right choice; `random` names every choice equally often
CUES = {"aligned": 0.9, "reversed": 0.1, "random": None}
OPTIONS = {1: 2, 2: 3, 3: 4, 4: 5}  # choices at each level


class Clues(Procedural):
    """`Mia keeps a fox. Tom keeps a hen. A hen eats corn. A fox eats fish. A note says: fish. What does the animal of Mia
    eat?` with the rationale `Mia keeps a fox.`, `A fox eats fish.`

    Data set: generated, deterministic, English. Contents: `data["support"]` are the indices of the two sentences that the
    answer rests on, `data["noted"]` and `data["believed"]` the choices that the note names and that the writer of the
    choices' rationales takes to be right. Splits: a hash of who keeps what and what eats what; order, note and the writer's
    mistakes are left out of it. Intended for choice scoring, faithfulness to rationales and shortcut learning.
    Limits: one wording of facts, always two hops, a rationale is a derivation or a missing fact.

    Args:
        level: 1 to 4, or a range: 2 to 5 choices.
        cue: whether the note is `aligned` with the answer (nine of ten), `random`, or `reversed` (one of ten).
        sound: share of problems whose choice rationales are right; in the others they argue for a wrong choice.
    """

    name = "clues"
    levels = tuple(OPTIONS)
    default_level = 2
    description = "choose by two supporting facts, beside a note that is often right; a rationale for each choice"

    def __init__(self, level: int | str | None = None, cue: str = "aligned", sound: float | str = 0.85) -> None:
        super().__init__(level)
        if cue not in CUES:
            raise unknown("cue of the clues task", cue, CUES)
        try:
            self.sound = float(sound)
        except ValueError:
            self.sound = -1.0
        if not 0 <= self.sound <= 1:
            raise WhetError(f"clues: sound is a share from 0 to 1, not {sound}")
        self.cue = cue

    def draw(self, rng: random.Random, level: int) -> tuple[Any, ...]:
        """(people, animals, foods, who is asked for; order of sentences, of choices, noted and believed choice).

        Every draw is made in every form, so that the forms ask the same questions with other notes.
        """
        k = OPTIONS[level]
        people, animals, foods = (tuple(rng.sample(words, k)) for words in (PEOPLE, ANIMALS, FOODS))
        asked, order, shown = rng.randrange(k), tuple(rng.sample(range(2 * k), 2 * k)), tuple(rng.sample(range(k), k))
        helps, mistaken = rng.random(), rng.random()
        others = [i for i in range(k) if i != asked]
        other, wrong = rng.choice(others), rng.choice(others)
        noted = asked if helps < (CUES[self.cue] or 1 / k) else other
        believed = asked if mistaken < self.sound else wrong
        return people, animals, foods, asked, order, shown, noted, believed

    def identity(self, parameters: tuple[Any, ...]) -> object:
        return parameters[:4]

    def build(self, parameters: tuple[Any, ...], level: int) -> Problem:
        names = ("people", "animals", "foods", "asked", "order", "shown", "noted", "believed")
        return _word({**dict(zip(names, parameters, strict=True)), "wording": 0}, level)

    def check(self, problem: Problem, response: Response) -> list[Check]:
        """One check a step, then the answer's."""
        lines = [line.strip() for line in response.rationale.splitlines() if line.strip()]
        checks: list[Check] = []
        for i in range(max(len(problem.steps), len(lines))):
            name = f"step {i + 1}"
            if i >= len(lines):
                checks.append(Check(name, "n.a.", "no such step found"))
                continue
            fault = _fault(lines[i], i, problem.data)
            checks.append(Check(name, "fail" if fault else "pass", fault))
        return [*checks, *super().check(problem, response)]

    def corrupt(self, problem: Problem, rng: random.Random) -> Corruption:
        """Labels: keeper (somebody else's animal) and food (another animal's)."""
        data = problem.data
        other = rng.choice([i for i in range(len(data["people"])) if i != data["asked"]])
        label = rng.choice(("keeper", "food"))
        steps = _steps(data, other if label == "keeper" else data["asked"], other)
        return Corruption(steps, data["foods"][other], label, 0 if label == "keeper" else 1)

    def transforms(self) -> Mapping[str, tuple[Transform, Transform]]:
        return {"paraphrase": cycle(_word, "wording", (0, 1))}

    def spec(self) -> str:
        options: dict[str, object] = {} if self._given is None else {"level": self._given}
        options |= {"cue": self.cue} if self.cue != "aligned" else {}
        options |= {"sound": f"{self.sound:g}"} if self.sound != 0.85 else {}
        return ":".join(filter(None, [self.name, ",".join(f"{k}={v}" for k, v in options.items())]))

    def max_answer_tokens(self) -> int:
        return 80


def _word(data: Mapping[str, Any], level: int) -> Problem:
    people, animals, foods, asked = (data[name] for name in ("people", "animals", "foods", "asked"))
    k = len(people)
    facts = [KEEPS.format(who, what) for who, what in zip(people, animals, strict=True)]
    facts += [EATS.format(what, food) for what, food in zip(animals, foods, strict=True)]
    told = [facts[i] for i in data["order"]]
    note = NOTES[data["wording"]].format(foods[data["noted"]])
    return Problem(
        id="",
        prompt=" ".join([*told, note, ASKS[data["wording"]].format(people[asked])]),
        answer=foods[asked],
        level=level,
        steps=_steps(data, asked, asked),
        plan=PLAN,
        choices=tuple(foods[i] for i in data["shown"]),
        choice_rationales=tuple(_argument(data, i) for i in data["shown"]),
        category=f"{k} choices",
        data={**data, "support": (data["order"].index(asked), data["order"].index(k + asked))},
    )


def _steps(data: Mapping[str, Any], kept: int, eaten: int) -> tuple[Step, ...]:
    """That the animal `kept` is the asked one's, and that it eats `eaten`."""
    animal = data["animals"][kept]
    return (Step(KEEPS.format(data["people"][data["asked"]], animal), "lookup", "keeper"),
            Step(EATS.format(animal, data["foods"][eaten]), "lookup", "food", (0,)))  # fmt: skip


def _argument(data: Mapping[str, Any], choice: int) -> str:
    """The writer's rationale for a choice: a derivation for the one it believes in, what is missing for the others."""
    if choice == data["believed"]:
        return "\n".join(s.text for s in _steps(data, choice, choice))
    animal = data["animals"][choice]
    return f"{EATS.format(animal, data['foods'][choice])}\n{LACKS.format(data['people'][data['asked']], animal)}"


def _fault(line: str, place: int, data: Mapping[str, Any]) -> str:
    """What is wrong with a step, or ""."""
    people, animals, foods, asked = (data[name] for name in ("people", "animals", "foods", "asked"))
    if found := _read(KEEPS, line):
        who, animal = found
        if who != people[asked]:
            return f"not about {people[asked]}"
        return (
            ""
            if place == 0 and animal == animals[asked]
            else f"{who} keeps no {animal}"
            if place == 0
            else "said before"
        )
    if found := _read(EATS, line):
        animal, food = found
        if place != 1:
            return "whose animal comes first" if place == 0 else "nothing is left to say"
        return "" if (animal, food) in zip(animals, foods, strict=True) else f"no fact says that a {animal} eats {food}"
    return "not a step of this kind"


def _read(form: str, line: str) -> Sequence[str] | None:
    found = re.fullmatch(re.escape(form).replace(r"\{\}", r"(\w+)"), line)
    return found.groups() if found else None
