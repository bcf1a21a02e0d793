"""A task that tiny models half master, and tiny models that do: what recipes need to have something to learn from."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from tiny import tiny_policy
from whet.models.policy import Policy
from whet.objectives import nll
from whet.records import Sample
from whet.sampling.sampler import Request
from whet.sources import Demonstrations, Scope, Uniform
from whet.tasks import Procedural, get_task
from whet.tasks.problem import Corruption, Problem, Step
from whet.tasks.task import register
from whet.tasks.transforms import Transform, cycle
from whet.training.learner import Learner
from whet.training.optimizer import AdamW
from whet.training.stage import Update
from whet.weights import Weights

_folders: list[tempfile.TemporaryDirectory[str]] = []


class Parity(Procedural):
    """`parity 1234` is answered by the last digit (the one step) and whether it is odd."""

    name = "parity"
    levels = (1, 2)

    def draw(self, rng: random.Random, level: int) -> tuple[int, ...]:
        return (rng.randrange(10 ** (2 + level)),)

    def build(self, parameters: tuple[int, ...], level: int) -> Problem:
        (n,) = parameters
        return _parity({"n": n, "word": "parity"}, level)

    def corrupt(self, problem: Problem, rng: random.Random) -> Corruption:
        wrong = int(problem.steps[0].text) + 1
        return Corruption((Step(str(wrong % 10)),), str(wrong % 2), "copy", 0)

    def transforms(self) -> Mapping[str, tuple[Transform, Transform]]:
        return {"language": cycle(_parity, "word", ("parity", "reste"))}

    def max_answer_tokens(self) -> int:
        return 14


def _parity(data: Mapping[str, Any], level: int) -> Problem:
    n, last = data["n"], str(data["n"] % 10)
    return Problem(
        "", f"{data['word']} {n}", str(n % 2), level=level, steps=(Step(last),), plan="look at the end\nsay if it is odd",
        choices=("0", "1"), choice_rationales=tuple(last if n % 2 == i else "no" for i in (0, 1)), data=data,
    )  # fmt: skip


register("parity", "trained", "Parity")


@cache
def _weights(kind: str, style: str, steps: int, **config: Any) -> dict[str, torch.Tensor]:
    policy = tiny_policy(kind, style=style, **config)
    task, weights = get_task("parity"), Weights()
    weights.attach(policy, 0)
    update = Update(nll(), optimizer=AdamW(lr=1e-2, schedule="linear"))
    learner = Learner(update, {"policy": policy}, weights, steps=steps, token_budget=10_000)
    problems = Uniform()
    problems.bind(task, 7)
    for step in range(steps):
        learner.step(Demonstrations().rows(problems, 16, policy, Scope(task, step)), step, "training")
    return policy.model.state_dict()


def trained_policy(kind: str = "qwen3", style: str = "tags", dtype: torch.dtype = torch.float32, steps: int = 40,
                   **config: Any) -> Policy:  # fmt: skip
    """A tiny policy that answers `parity` in its format, often wrongly, and ends; new weights each time, equal ones."""
    policy = tiny_policy(kind, style=style, dtype=dtype, **config)
    policy.model.load_state_dict(_weights(kind, style, steps, **config))
    return policy


@cache
def trained_folder(kind: str = "qwen3", style: str = "tags", **config: Any) -> str:
    """A model folder of such a policy, for what loads models by name. Nobody may write into it."""
    holder = tempfile.TemporaryDirectory(prefix="tiny-")
    _folders.append(holder)
    trained_policy(kind, style, **config).save(Path(holder.name) / "model")
    return str(Path(holder.name) / "model")


class Scripted:
    """A policy whose answers are written beforehand, to test what is made of them.

    Args:
        answers: (problem id, prompt as text) -> its answers in order; `steps|answer` or `answer`, and what ends in
            an ellipsis was cut off.
    """

    def __init__(self, answers: Callable[[str, str], Sequence[str]]) -> None:
        self.policy = tiny_policy(style="tags")
        self.answers = answers
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.policy, name)

    def sample(self, requests: Sequence[Request], on_token: Any = None) -> list[list[Sample]]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Request) -> list[Sample]:
        self.asked.append(request.problem_id)
        prompt = self.policy.format.decode([i for s in request.segments for i in s.ids])
        samples = []
        for i, text in enumerate(self.answers(request.problem_id, prompt)[: len(request.seeds)]):
            rationale, _, answer = text.removesuffix("…").rpartition("|")
            segments = self.policy.format.response(rationale, answer, end=not text.endswith("…"))
            for segment in segments:
                segment.sampled = True
            samples.append(Sample([*request.segments, *segments], request.problem_id, request.group_id, i))
        return samples
