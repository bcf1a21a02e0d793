"""Pretraining documents: what a base is made of, from a Mixture of tasks in several forms and styles.

| form | document |
|---|---|
| `solve` | the question and a response: worked steps, or the answer at once |
| `few-shot` | the same behind one to three solved questions of the same task |
| `critique` | the question with a candidate solution; the response names its first wrong step, or finds none |
| `follow` | the question with the steps of its plan, and a response that follows them |
| `statement` | a plain sentence of the task's world |

In each, a share of the shown rationales may be the task's labelled corruptions, wrong answer included: reliability.
"""

from __future__ import annotations

import random
from dataclasses import replace

from whet.errors import WhetError
from whet.models.policy import Policy
from whet.records import Row, Sample, Segment
from whet.seeds import rng_for
from whet.sources.collector import Collector, Scope, trim
from whet.sources.guided import guided_prompt
from whet.sources.problems import Mixture, Part, Problems
from whet.tasks import Problem


class Documents(Collector):
    """Documents of a Mixture; prompt and response are both learnt.

    Args:
        prompt_weight: weight of the prompt's tokens in the loss.
    """

    def __init__(self, prompt_weight: float = 0.1) -> None:
        self.prompt_weight = prompt_weight

    def rows(self, problems: Problems, n: int, policy: Policy, scope: Scope) -> list[Row]:
        if not isinstance(problems, Mixture):
            raise WhetError("pretraining documents come from a Mixture")
        drawn = problems.draw(n)
        return [Row({"response": self._sample(p, problems.part_of(p), policy, scope.seed)}) for p in drawn]

    def _sample(self, problem: Problem, part: Part, policy: Policy, seed: int) -> Sample:
        rng = rng_for(seed, "document", problem.id)
        prompt, response = FORMS[part.form](problem, part, policy, rng)
        # the first token has nothing before it to be predicted from
        head = Segment("start", prompt.ids[:1])
        rest = Segment(prompt.kind, prompt.ids[1:], learn=self.prompt_weight > 0, weight=self.prompt_weight)
        segments = [head, *([rest] if rest.ids else []), *response]
        return trim(Sample(segments, problem_id=problem.id, group_id=problem.id), policy.max_length)


Document = tuple[Segment, list[Segment]]


def shown(problem: Problem, part: Part, rng: random.Random) -> tuple[str, str]:
    """A response's (rationale, answer) in the part's style: at once, worked, or worked and wrong. Where there are no steps, the
    answer itself is of the part's reliability."""
    answer = problem.answer or ""
    if problem.steps and rng.random() >= part.worked:
        return "", answer
    if (problem.steps or part.reliability < 1) and rng.random() >= part.reliability:
        wrong = part.task.corrupt(problem, rng)
        return wrong.rationale, wrong.answer
    return problem.rationale, answer


def solve(problem: Problem, part: Part, policy: Policy, rng: random.Random) -> Document:
    return policy.format.prompt(problem)[0], policy.format.response(*shown(problem, part, rng))


def few_shot(problem: Problem, part: Part, policy: Policy, rng: random.Random) -> Document:
    """The examples are turns of the conversation before the question, all in the style of the response."""
    start = rng.randrange(1 << 30)
    examples = part.task.problems("train", rng.randint(1, 3), seed=1, start=start)
    worked = replace(part, worked=float(rng.random() < part.worked))
    turns: list[dict[str, str]] = []
    for example in examples:
        rationale, answer = shown(example, worked, rng)
        response = policy.format.response(rationale, answer, end=False)
        text = "".join(policy.format.decode(s.ids) for s in response)
        turns += [{"role": "user", "content": example.prompt}, {"role": "assistant", "content": text}]
    asked = replace(problem, messages=(*turns, {"role": "user", "content": problem.prompt}))
    return policy.format.prompt(asked)[0], policy.format.response(*shown(problem, worked, rng))


def critique(problem: Problem, part: Part, policy: Policy, rng: random.Random) -> Document:
    """Half of the candidates are right."""
    if rng.random() < 0.5:
        rationale, answer, found, verdict = problem.rationale, problem.answer, "All steps are right.", "right"
    else:
        wrong = part.task.corrupt(problem, rng)
        rationale, answer = wrong.rationale, wrong.answer
        found, verdict = f"Step {wrong.step + 1} is wrong: {wrong.label}.", "wrong"
    asked = replace(problem, prompt=f"{problem.prompt}\nSolution:\n{rationale}\nAnswer: {answer}\nIs it right?")
    return policy.format.prompt(asked)[0], policy.format.response(found, verdict, kind="critique")


def follow(problem: Problem, part: Part, policy: Policy, rng: random.Random) -> Document:
    """What a responder is to do with a guidance (`sources.guided`)."""
    asked = guided_prompt(problem, problem.plan)
    return policy.format.prompt(asked)[0], policy.format.response(*shown(problem, part, rng))


def statement(problem: Problem, part: Part, policy: Policy, rng: random.Random) -> Document:
    """A sentence of the task's world (`Task.statements`), as plain text."""
    text = next(iter(part.task.statements(1, seed=rng.randrange(1 << 30))))
    return Segment("start", policy.format.start()), [Segment("statement", policy.format.encode(text), learn=True),
                                                     policy.format.eos()]  # fmt: skip


FORMS = {"solve": solve, "few-shot": few_shot, "critique": critique, "follow": follow, "statement": statement}
