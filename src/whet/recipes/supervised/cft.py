r"""Critique fine-tuning (2501.17703), on one problem (2506.03295): learn to say what is wrong with solutions, not to solve.

    L = - sum_t log p(c_t | x, y, c_<t) / (number of learnt tokens)      x: question, y: a candidate solution, c: its critique

Candidates are many attempts at few problems, right and wrong ones. A teacher criticises each in several wordings; critiques
whose verdict is not that of the verifier, whose boxed correction is wrong or that come to no conclusion are dropped, and so
are rows that are too long: the conclusion must survive. Evaluation is by solving, without a critique in sight.

Decided here: the procedural teacher re-derives each step by the task's checker; the teacher's end marker is stripped; right
and wrong candidates keep their natural rate, which the log shows, unless `right` raises it. Small-scale defaults; the paper's are lr 5e-6, batch 512, 50
epochs of 600 rows, seven teachers and ten generators. Critiques that you have already are rows for plain `sft`.

    whet run cft
    whet run cft teacher=http://127.0.0.1:8000/v1 source=policy --task my.jsonl --verifier math
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from itertools import cycle, islice
from typing import Any

from whet.errors import WhetError
from whet.models.policy import Policy
from whet.recipes.recipe import Recipe, recipe
from whet.recipes.supervised.sft import sft_on
from whet.records import Row, Sample
from whet.seeds import rng_for, seed_for
from whet.sources import Attempt, Attempts, Problems, Question, Scope, Stored, Teacher, distinct, get_teacher, user
from whet.tasks import Problem, Response, Task
from whet.training.optimizer import Rate

ROW = "Question:\n{}\n\nStudent's Solution:\n{}"
ASK = """{}

You are a teacher. Name the key concepts and the right approach. Check the solution step by step. If a step is wrong, say which \
one and why, and give the correct solution with its final answer in \\boxed{{}}. End with a line of this form:
Conclusion: right/wrong [END]"""
WORDINGS = (  # a right step, a wrong one, what all of them are, what the correction is headed by
    ("{} is right.", "{} is wrong: {}.", "Every step holds.", "The right way:"),
    ("{}: correct.", "{}: not correct, {}.", "There is no mistake.", "It should be:"),
    ("I agree with {}.", "I do not agree with {}: {}.", "I agree with all.", "Instead:"),
    ("{} holds.", "{} does not hold: {}.", "All of it holds.", "A right solution:"),
    ("Yes, {}.", "No, {}: {}.", "Nothing is wrong.", "Do this:"),
    ("{} is fine.", "The mistake is {}: {}.", "All is fine.", "Mended:"),
    ("{}, true.", "{}, false: {}.", "All true.", "True is:"),
)
_CONCLUSION = re.compile(r"Conclusion:\s*(right|wrong)[\s.*]*\Z", re.IGNORECASE)
_BOXED = re.compile(r"\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}")


def critic(question: Question) -> str:
    """The procedural teacher: it goes through the steps to the first wrong one, and then gives the right solution."""
    attempt = question.attempt
    assert attempt is not None
    problem, (right, wrong, none, headed) = attempt.problem, WORDINGS[question.seed % len(WORDINGS)]
    lines = [line.strip() for line in attempt.response.rationale.splitlines() if line.strip()]
    said = [problem.plan] if problem.plan else []
    fault = False
    for place, check in enumerate(attempt.checks):
        name = f"{check.name[:1].upper()}{check.name[1:]}"
        shown = f"{name} ({lines[place]})" if place < len(lines) else name
        fault = check.result == "fail"
        if check.result != "n.a.":
            said.append(wrong.format(shown, check.reason or "it is not so") if fault else right.format(shown))
        if fault:
            break
    said += [headed, *filter(None, [problem.rationale]), f"\\boxed{{{problem.answer}}}"] if fault else [none]
    return "\n".join([*said, f"Conclusion: {'right' if attempt.right else 'wrong'}"])


def stripped(critique: str) -> str:
    """A critique without the end marker that the teacher was told to write."""
    return critique.replace("[END]", "").strip()


def fault_of(critique: str, attempt: Attempt, task: Task) -> str:
    """Why a critique may not be learnt; "" where it may."""
    concluded = _CONCLUSION.search(critique)
    if concluded is None:
        return "without a conclusion"
    if (concluded[1].lower() == "right") != attempt.right:
        return "with a wrong verdict"
    boxed = _BOXED.findall(critique)
    if boxed and task.verify(attempt.problem, Response(boxed[-1], boxed[-1])).value != 1.0:
        return "with a wrong correction"
    return ""


def instead(problem: Problem, text: str) -> Problem:
    """The problem with another last user turn."""
    turns: tuple[Mapping[str, str], ...] = problem.messages
    return replace(problem, prompt=text, messages=(*turns[:-1], *user(text)) if turns else ())


class Critiques(Stored):
    """Rows of question, candidate and critique; the critique alone is learnt.

    Args:
        attempts: the candidates.
        n: problems that they are candidates of.
        teacher: who criticises; it is asked `wordings` times about each.
        most: rows that are kept, drawn from those that pass.
        right: least share of rows about right candidates: they are repeated up to it.
    """

    def __init__(
        self, attempts: Attempts, n: int, teacher: Teacher, wordings: int = 7, most: int = 600, right: float = 0.0
    ) -> None:  # fmt: skip
        super().__init__()
        if not 0 <= right < 1:
            raise WhetError(f"cft: right is a share of rows, from 0 to below 1, not {right}")
        if min(n, wordings, most) < 1:
            raise WhetError("cft: limit, wordings and rows must be at least 1")
        self.attempts, self.n, self.teacher = attempts, n, teacher
        self.wordings, self.most, self.right = wordings, most, right
        self.needs = attempts.needs

    def build(self, problems: Problems, policy: Policy, scope: Scope) -> list[Row]:
        pool = self.attempts.make(distinct(problems.draw(self.n)), policy, scope)
        questions = [self._question(a, i, scope) for at_one in pool for a in at_one for i in range(self.wordings)]
        rows: list[Row] = []
        counts: Counter[str] = Counter()
        seen: set[tuple[int, str]] = set()
        for question, reply in zip(questions, self.teacher.ask(questions, policy.meter), strict=True):
            attempt, critique = question.attempt, stripped(reply)
            assert attempt is not None
            sample = _row(attempt, critique, policy)
            fault = "repeated" if (id(attempt), critique) in seen else fault_of(critique, attempt, scope.task)
            fault = fault or ("too long" if len(sample) > policy.max_length else "")
            seen.add((id(attempt), critique))
            counts[f"critiques {fault or 'that pass'}"] += 1
            if not fault:
                rows.append(Row({"response": sample}, {"right": float(attempt.right)}))
        if len(rows) > self.most:
            chosen = sorted(rng_for(scope.seed, "critiques").sample(range(len(rows)), self.most))
            rows = [rows[i] for i in chosen]
        good = [row for row in rows if row.numbers["right"]]
        lacking = math.ceil((self.right * len(rows) - len(good)) / (1 - self.right))
        rows += islice(cycle(good), max(0, lacking))
        counts["rows"], counts["right rows"] = len(rows), int(sum(r.numbers["right"] for r in rows))
        self.counts = {**self.attempts.counts, **counts}
        return rows

    def _question(self, attempt: Attempt, number: int, scope: Scope) -> Question:
        # numbers follow each other, so that the procedural teacher's wordings differ
        seed = seed_for(scope.seed, "critique", attempt.problem.id) // len(WORDINGS) * len(WORDINGS) + number
        text = ASK.format(ROW.format(attempt.problem.prompt, attempt.text()))
        return Question(user(text), attempt.problem, attempt, scope.task, seed)


def _row(attempt: Attempt, critique: str, policy: Policy) -> Sample:
    problem = attempt.problem
    asked = instead(problem, ROW.format(problem.prompt, attempt.text()))
    segments = policy.format.prompt(asked) + policy.format.response(critique, None, kind="critique")
    return Sample(segments, problem_id=problem.id, group_id=problem.id)


@recipe(paper="cft", parent="sft")
def cft(
    limit: int = 1,
    samples: int = 100,
    source: str = "mixed",
    teacher: str = "procedural",
    wordings: int = 7,
    rows: int = 600,
    right: float = 0.0,
    temperature: float = 1.0,
    steps: int = 100,
    lr: float | Rate = Rate(small=5e-4, paper=5e-6),
    **training: Any,
) -> Recipe:
    """Critique fine-tuning: learn critiques of many candidate solutions, of one problem or more.

    Args:
        limit: problems whose candidates are criticised; 1 is the one-shot form.
        samples: candidates a problem beside the gold solution, at most.
        source: of candidates: policy, corruptor, mixed (the policy's own, filled up by the task's corruptor where it has
            one) or auto (the corruptor where there is one).
        teacher: procedural (the task's checker), model:NAME or http://HOST:PORT/v1#NAME.
        wordings: critiques of a candidate.
        rows: critiques that are kept at most, drawn from those that pass the filter.
        right: least share of critiques of right candidates, by repeating them; 0 keeps the natural rate.
        temperature: of sampled candidates.
        steps: optimizer steps.
        lr: learning rate; by default 5e-4 below 50 M parameters and 5e-6 above.
    """
    attempts = Attempts(source, samples, temperature)
    collect = Critiques(attempts, limit, get_teacher(teacher, critic), wordings, rows, right)
    return sft_on(collect, steps=steps, lr=lr, limit=limit, **training)
