"""Teachers: who else speaks. A critic, a judge, an annotator: all are asked questions and reply in text.

| spec | who replies |
|---|---|
| `procedural` | the task's own writer, critic or checker, a function: exact, free and offline |
| `model:NAME` | another model: a folder or Hub name |
| `http://HOST:PORT/v1#NAME` | a server that speaks OpenAI's chat protocol (vLLM, `transformers serve`, a paid one) |

What teachers cost is no part of a run's budget. It is counted beside it (`teacher_replies` and their tokens in the run's compute).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from whet.errors import WhetError
from whet.models.meter import Meter
from whet.models.policy import Policy
from whet.ranks import Ranks
from whet.sampling.sampler import Request, SamplingSettings
from whet.sources.attempts import Attempt
from whet.tasks import Problem, Task

Messages = tuple[Mapping[str, str], ...]


@dataclass(frozen=True)
class Question:
    """One thing that a teacher is asked.

    Attributes:
        messages: it in words, as chat messages.
        problem, attempt, task: what it is about, for a teacher that computes its reply.
        seed: of the reply; another seed may give another wording.
    """

    messages: Messages
    problem: Problem
    attempt: Attempt | None = None
    task: Task | None = None
    seed: int = 0


def user(text: str) -> Messages:
    """One user turn."""
    return ({"role": "user", "content": text},)


class Teacher:
    """Replies to questions, each a function of the question and its seed.

    Attributes:
        usage: what new replies have taken so far: `replies`, and where it is known `prompt_tokens` and `completion_tokens`.
    """

    name: str = "teacher"

    def __init__(self) -> None:
        self.usage: Counter[str] = Counter()

    def reply(self, questions: Sequence[Question]) -> list[str]:
        """One text for each question, in order."""
        raise NotImplementedError

    def ask(self, questions: Sequence[Question], meter: Meter) -> list[str]:
        """The replies, and what they took is counted by a run's meter."""
        before = Counter(self.usage)
        replies = self.reply(questions)
        meter.taught(self.usage - before)
        return replies

    def about(self, problems: Sequence[Problem], texts: Sequence[str], seed: int, meter: Meter) -> list[str]:
        """The replies to one text about each problem."""
        return self.ask([Question(user(text), p, seed=seed) for p, text in zip(problems, texts, strict=True)], meter)


class Procedural(Teacher):
    """A function that computes the reply."""

    def __init__(self, write: Callable[[Question], str], name: str = "procedural") -> None:
        super().__init__()
        self.write, self.name = write, name

    def reply(self, questions: Sequence[Question]) -> list[str]:
        return [self.write(question) for question in questions]


@dataclass
class ModelTeacher(Teacher):
    """Another model, or the policy itself, asked through its own format.

    Attributes:
        policy: a policy, or the name of one that is loaded when it is first asked.
    """

    policy: Policy | str
    settings: SamplingSettings = field(default_factory=lambda: SamplingSettings(512, temperature=0.3, top_p=0.95))
    usage: Counter[str] = field(default_factory=Counter, init=False)

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"model:{self.policy if isinstance(self.policy, str) else self.policy.name}"

    def reply(self, questions: Sequence[Question]) -> list[str]:
        if isinstance(self.policy, str):
            from whet.models.base import load

            self.policy = load(self.policy)
        policy = self.policy
        requests = [
            Request(policy.format.prompt(Problem(q.problem.id, q.messages[-1]["content"], messages=q.messages)),
                    [q.seed], self.settings, q.problem.id, q.problem.id)
            for q in questions
        ]  # fmt: skip
        replies = [samples[0] for samples in policy.sample(requests)]
        read = sum(reply.prompt_length for reply in replies)
        written = sum(len(reply) for reply in replies) - read
        if Ranks.here().first:  # the others have the same replies
            self.usage.update(replies=len(replies), prompt_tokens=read, completion_tokens=written)
        return [policy.format.read(reply).text for reply in replies]


def get_teacher(spec: str, write: Callable[[Question], str] | None = None) -> Teacher:
    """A teacher from its spec; `write` is the procedural one, where there is one."""
    if spec == "procedural" and write is not None:
        return Procedural(write)
    if spec.startswith("model:") and spec != "model:":
        return ModelTeacher(spec.removeprefix("model:"))
    if spec.startswith(("http://", "https://")):
        from whet.sources.server import Server

        url, _, model = spec.partition("#")
        return Server(url, model)
    known = ("procedural, " if write else "") + "model:NAME or http://HOST:PORT/v1#NAME"
    raise WhetError(f"teacher '{spec}' is not known: use {known}")
