"""edits: facts of an invented world that are to hold otherwise from now on, and what an edited model is asked."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from whet.errors import WhetError
from whet.seeds import rng_for
from whet.tasks.facts_world import JOBS, SIZES, Fact, World, ask, world
from whet.tasks.problem import Problem, Response, Split, Verdict
from whet.tasks.task import Task
from whet.tasks.verify import normalized

WORDINGS: dict[Split, tuple[int, ...]] = {"train": (0,), "validation": (1, 3), "test": (2, 4)}


class Edits(Task):
    """`Where does Pagi live?`, to be answered by another town than before, from memory.

    Data set: the world of the task `facts` (which the shipped base has learnt up to level 2: of level 2 it answers four of
    five such questions), of which `n` facts get another value of their kind. Answers are names or ages alone, without a rationale.
    Splits: train has the edit requests, each fact in one wording; validation and test ask for the same facts in two other
    wordings each, so that accuracy is GENERALISATION. `data["old"]` is what held before, `data["edit"]` the request's number.
    Aspects: `reliability` asks the requests themselves; `locality` asks for facts that were not edited, in the requests' wording.
    Verifier: exact match after normalisation (case, punctuation, articles, white space), of what was generated and not of tokens
    behind a given prefix.
    Limits: English, single-valued facts; what follows from an edit (two hops) is not asked.

    Args:
        level: 1 to 4: 20, 80, 320 or 1280 people and 24 towns.
        n: how many facts are edited.
        world: the seed of the world.
        draw: the seed of which facts are edited and what they become.
    """

    name = "edits"
    levels = (1, 2, 3, 4)
    default_level = 2
    description = "model editing: facts of an invented world that change, asked in the words of the edit and in others"

    def __init__(
        self, level: int | str | None = None, n: int | str = 100, world: int | str = 0, draw: int | str = 0
    ) -> None:
        given = {"level": self.default_level if level is None else level, "n": n, "world": world, "draw": draw}
        wrong = [f"{name} '{value}'" for name, value in given.items() if not str(value).isdecimal()]
        if wrong:
            raise WhetError(f"the options of the edits task are whole numbers, not {', '.join(wrong)}")
        self.level, self.n, self.seed, self.drawn = (int(value) for value in given.values())
        if self.level not in self.levels:
            raise WhetError(f"task 'edits' has levels 1 to {self.levels[-1]}, not '{level}'")
        facts = len(list(self.world().facts(SIZES[self.level - 1])))
        if not 1 <= self.n < facts:
            raise WhetError(f"edits:level={self.level} has {facts} facts: 1 to {facts - 1} can be edited, not {self.n}")

    def world(self) -> World:
        """Before any edit."""
        return world(self.seed, SIZES[self.level - 1])

    @cached_property
    def edits(self) -> dict[Fact, str]:
        """Each edited fact and what it becomes, in the order of the requests."""
        return {fact: self._new(fact, rng_for(self.drawn, "edits", "value", *fact)) for fact in self._order[: self.n]}

    @property
    def unedited(self) -> list[Fact]:
        """All other facts, in a random order."""
        return self._order[self.n :]

    @cached_property
    def _order(self) -> list[Fact]:
        facts = list(self.world().facts(SIZES[self.level - 1]))
        return rng_for(self.drawn, "edits", self.level).sample(facts, len(facts))

    def _new(self, fact: Fact, rng: random.Random) -> str:
        place, (subject, attribute) = self.world(), fact
        pools: dict[str, Sequence[str]] = {
            "job": JOBS, "friend": place.people, "country": place.countries, "age": [str(n) for n in range(20, 90)],
        }  # fmt: skip
        return rng.choice([v for v in pools.get(attribute, place.towns) if v not in (subject, place.value(*fact))])

    # -- what is asked -------------------------------------------------------------------------------------------------
    def problems(self, split: Split, n: int | None = None, *, seed: int = 0, start: int = 0) -> list[Problem]:
        """The requests in their order, or every edited fact in the split's first wordings and then in its second ones."""
        facts, wordings = list(self.edits), WORDINGS[split]
        asked = [(i, wordings[(i + turn) % len(wordings)]) for turn in range(len(wordings)) for i in range(len(facts))]
        stop = None if n is None else start + n
        return [self._ask(facts[i], split, wording, i) for i, wording in asked[start:stop]]

    def aspects(self, n: int, *, seed: int = 0) -> Mapping[str, Sequence[Problem]]:
        kept = [self._ask(fact, "kept", WORDINGS["train"][0]) for fact in self.unedited[:n]]
        return {"reliability": self.problems("train", n), "locality": kept}

    def _ask(self, fact: Fact, where: str, wording: int, edit: int | None = None) -> Problem:
        (subject, attribute), old = fact, self.world().value(*fact)
        data: dict[str, Any] = {"fact": f"{subject}.{attribute}", "old": old, "wording": wording, "edit": edit}
        return Problem(
            id=f"edits/{self.version}/{where}/{self.seed}/{self.drawn}/{self.level}/{subject}.{attribute}/{wording}",
            prompt=ask(("lookup", subject, attribute), wording),
            answer=old if edit is None else self.edits[fact],
            task=self.name,
            level=self.level,
            category=attribute,
            data=data,
        )

    def verify(self, problem: Problem, response: Response) -> Verdict:
        return normalized(problem, response)

    def provides(self) -> set[str]:
        return {"verifier", "demonstrations"}

    def spec(self) -> str:
        options = {"level": self.level, "n": self.n, "world": self.seed, "draw": self.drawn}
        usual = {"level": self.default_level, "n": 100, "world": 0, "draw": 0}
        given = ",".join(f"{key}={value}" for key, value in options.items() if value != usual[key])
        return f"{self.name}:{given}" if given else self.name

    def max_answer_tokens(self) -> int:
        return 32
