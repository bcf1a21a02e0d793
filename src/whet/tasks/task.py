"""Task: a named, versioned, seeded source of problems in three disjoint splits, with a verifier.

A procedural task writes two small functions: `draw(rng, level)` makes the bare parameters of a problem, and
`build(parameters, level)` words them. The split is a hash of the parameters, so train, validation and test are disjoint
by construction, in every process, whatever the seed.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from whet.errors import WhetError, unknown
from whet.seeds import rng_for
from whet.tasks.problem import Check, Corruption, Problem, Response, Split, Verdict

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class Task:
    """What the rest of Whet asks of a task. Subclass it, or `Procedural` for generated problems."""

    name: ClassVar[str] | str = ""
    version: int = 1
    levels: tuple[int, ...] = (1,)
    default_level: int = 1
    description: str = ""
    judged: tuple[str, ...] = ("answer",)  # checks that every answer passes or fails: feedback is about them
    gives_shares: bool = False  # whether a verdict may give a wrong answer a share of 1

    def problems(self, split: Split, n: int | None = None, *, seed: int = 0, start: int = 0) -> list[Problem]:
        """`n` problems of a split from position `start`; the same for the same arguments in every process.

        A procedural task has no end and needs `n`; a file's split ends, and n=None means all of it.
        """
        raise NotImplementedError

    def pool(self, split: Split, n: int | None = None, *, seed: int = 0) -> Sequence[Problem]:
        """The same problems, to be drawn from again and again; a task of large files reads each when it is asked for."""
        return self.problems(split, n, seed=seed)

    def verify(self, problem: Problem, response: Response) -> Verdict:
        """Judge a response. The default compares the answer's text with the gold answer."""
        from whet.tasks.verify import exact

        return exact(problem, response)

    def verify_all(self, pairs: Sequence[tuple[Problem, Response]]) -> list[Verdict]:
        """`verify` of each pair, in order; a task whose verdicts take long gives several at a time."""
        return [self.verify(problem, response) for problem, response in pairs]

    def check(self, problem: Problem, response: Response) -> list[Check]:
        """Structured checks, from the first to the last; the default is the one on the final answer."""
        verdict = self.verify(problem, response)
        return [Check("answer", "pass" if verdict.value == 1.0 else "fail", verdict.reason)]

    def corrupt(self, problem: Problem, rng: random.Random) -> Corruption:
        """A wrong rationale whose answer the verifier rejects, with the label of its error."""
        raise WhetError(f"task '{self.name}' has no corruptor")

    def another_way(self, problem: Problem, rng: random.Random) -> Problem:
        """The problem with a right solution drawn from those that it has; with its only one where it has no other."""
        return problem

    def statements(self, n: int, *, seed: int = 0) -> Iterable[str]:
        """Plain sentences that are true in the task's world, for pretraining."""
        raise WhetError(f"task '{self.name}' has no world to make statements about")

    def transforms(self) -> Mapping[str, tuple[Callable[[Problem], Problem], Callable[[Problem], Problem]]]:
        """Named invertible transforms of problems as (forward, inverse): language, paraphrase, scaling, filler."""
        return {}

    def aspects(self, n: int, *, seed: int = 0) -> Mapping[str, Sequence[Problem]]:
        """Further sets of at most `n` problems; the accuracy on each is measured before and after under its name."""
        return {}

    def provides(self) -> set[str]:
        """What recipes may need of a task: `verifier, demonstrations, rationales, choices, choice rationales, plans,
        corruptions, preferences, unlimited`."""
        return {"verifier"}

    def spec(self) -> str:
        """The text that `get_task` turns into this task again."""
        return str(self.name)

    def max_answer_tokens(self) -> int:
        """A generation budget that a right answer fits in, in tokens."""
        return 128


class Procedural(Task):
    """A task whose problems are generated.

    Args:
        level: one difficulty level, or several as "1-4" (drawn uniformly for each problem).
    """

    def __init__(self, level: int | str | None = None) -> None:
        self._given = level
        chosen = self.default_level if level is None else level
        self.chosen = _levels(chosen, self.levels, str(self.name))

    # -- what a task writes ----------------------------------------------------------------------------------------
    def draw(self, rng: random.Random, level: int) -> tuple[Any, ...]:
        """The bare parameters of a problem: a tuple with a stable `repr` (integers, strings, nested tuples)."""
        raise NotImplementedError

    def build(self, parameters: tuple[Any, ...], level: int) -> Problem:
        """The worded problem with rationale and answer; its id is filled in afterwards."""
        raise NotImplementedError

    def identity(self, parameters: tuple[Any, ...]) -> object:
        """What of the parameters identifies the problem, for the split: all of them, unless some of them only word or
        solve it (the names of variables, a style, one of several solutions)."""
        return parameters

    # -- what it gets ----------------------------------------------------------------------------------------------
    def problems(self, split: Split, n: int | None = None, *, seed: int = 0, start: int = 0) -> list[Problem]:
        if n is None:
            raise WhetError(f"task '{self.name}' is generated and has no end: say how many problems")
        return [self.problem(split, start + i, seed=seed) for i in range(n)]

    def problem(self, split: Split, index: int, *, seed: int = 0) -> Problem:
        """Problem number `index` of a split."""
        rng = rng_for(seed, self.name, self.version, split, index)
        level = self.chosen[0] if len(self.chosen) == 1 else rng.choice(self.chosen)
        for _ in range(10_000):
            parameters = self.draw(rng, level)
            if split_of(self.identity(parameters)) == split:
                built = self.build(parameters, level)
                name = f"{self.name}/{self.version}/{split}/{seed}/{level}/{index}"
                return replace(built, id=name, task=str(self.name), level=level)
        raise WhetError(f"task '{self.name}' level {level}: too few distinct problems to fill the {split} split")

    def provides(self) -> set[str]:
        found = {"verifier", "demonstrations", "unlimited"}
        probe = self.problem("train", 0)
        if probe.steps:
            found.add("rationales")
        if probe.choices:
            found.add("choices")
        if probe.choice_rationales:
            found.add("choice rationales")
        if probe.plan:
            found.add("plans")
        if type(self).corrupt is not Task.corrupt:
            found.add("corruptions")
        return found

    def spec(self) -> str:
        return str(self.name) if self._given is None else f"{self.name}:level={self._given}"


def split_of(parameters: object) -> Split:
    """80 / 10 / 10 by a hash of what identifies the problem (footguns: never by a shuffled index)."""
    bucket = hashlib.blake2b(repr(parameters).encode(), digest_size=2).digest()[0] * 10 // 256
    return "test" if bucket == 9 else "validation" if bucket == 8 else "train"


def _levels(level: int | str, known: tuple[int, ...], name: str) -> tuple[int, ...]:
    try:
        low, _, high = str(level).partition("-")
        chosen = tuple(range(int(low), int(high or low) + 1))
    except ValueError:
        chosen = ()
    if not chosen or any(c not in known for c in chosen):
        raise WhetError(f"task '{name}' has levels {known[0]} to {known[-1]}, not '{level}'")
    return chosen


_REGISTRY: dict[str, tuple[str, str]] = {}


def register(name: str, module: str, cls: str) -> None:
    """Make a task known by name; its module is imported when it is first asked for."""
    _REGISTRY[name] = (module, cls)


def task_names() -> list[str]:
    """All registered task names, in order of registration."""
    return list(_REGISTRY)


def get_task(spec: str | Task, **options: Any) -> Task:
    """A task from its spec: `name`, `name:level=2`, `gym:NAME`, a path to a JSONL file, or `hub:ORG/DATASET`.

    `options` are the file reader's (verifier, validation, test ...). Raises WhetError for an unknown name.
    """
    if isinstance(spec, Task):
        return spec
    import importlib

    name, _, rest = spec.partition(":")
    if name not in _REGISTRY:
        from whet.tasks.files import is_file_spec, read_files

        if is_file_spec(spec):
            return read_files(spec, **options)
        raise unknown("task", spec, _REGISTRY)
    given = {k: v for k, v in options.items() if v is not None}
    if given:
        raise WhetError(f"task '{name}' has its own verifier and splits; leave out {', '.join(sorted(given))}")
    module, cls = _REGISTRY[name]
    args: list[str] = []
    kwargs: dict[str, str] = {}
    for part in filter(None, rest.replace(":", ",").split(",")):
        key, eq, value = part.partition("=")
        kwargs.update({key: value}) if eq else args.append(part)
    factory = getattr(importlib.import_module(module), cls)
    if getattr(factory, "takes_spec", False):  # another task's spec stands in the rest
        return factory.of(rest)
    try:
        return factory(*args, **kwargs)
    except TypeError as problem:
        raise WhetError(f"task '{spec}': {problem}") from None


def iterate(task: Task, split: Split, *, seed: int = 0, batch: int = 64) -> Iterator[Problem]:
    """All problems of a split in order; without end for a procedural task."""
    start = 0
    while True:
        found = task.problems(split, batch, seed=seed, start=start)
        yield from found
        if len(found) < batch:
            return
        start += batch
