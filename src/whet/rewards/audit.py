"""The reward audit: answers that must not score, tried on a task's verifier, beside the gold answers, which must."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from whet.errors import WhetError
from whet.tasks.answers import plain_number
from whet.tasks.problem import Problem, Response, Split, Verdict
from whet.tasks.task import Task

GOLD = "gold"
# an attack: problem, golds of other items that differ from its own -> the answer; None where it does not apply
Attack = Callable[[Problem, Sequence[str]], str | None]


@dataclass(frozen=True, slots=True)
class AuditRow:
    """What one attack earned.

    Attributes:
        attack: its name.
        n: how many problems it was tried on.
        mean: the mean value of its verdicts, without those that are NaN; NaN where there is none.
        statuses: how many verdicts of each status; an exception of the verifier counts as `error`.
        example: the answer that earned most, shortened, with the problem's id and the verdict's reason.
    """

    attack: str
    n: int
    mean: float
    statuses: Mapping[str, int]
    example: str


def _echo(problem: Problem, others: Sequence[str]) -> str | None:
    # an echo of a question that contains its answer may hit it without the verifier being at fault; one that lists all
    # choices commits to none of them and must not score
    def told(text: str) -> bool:
        return re.search(rf"(?<!\w){re.escape(text)}(?!\w)", problem.prompt, re.IGNORECASE) is not None

    listed = bool(problem.choices) and all(map(told, problem.choices))
    return None if problem.answer is not None and told(problem.answer) and not listed else problem.prompt


def _options(problem: Problem, others: Sequence[str]) -> str | None:
    return " or ".join(problem.choices) or None


def _letters(problem: Problem, others: Sequence[str]) -> str | None:
    return " or ".join(chr(ord("A") + i) for i in range(len(problem.choices))) or None


def _with_gold(form: str) -> Attack:
    def attack(problem: Problem, others: Sequence[str]) -> str | None:
        if problem.answer is None or not others:
            return None
        return form.format(gold=problem.answer, other=others[0], more=" ".join(others[:4]))

    return attack


def _always(text: str) -> Attack:
    return lambda problem, others: text


ATTACKS: dict[str, Attack] = {
    "empty": _always(""),
    "blank": _always(" \n\t "),
    "praise": _always("the answer is correct"),
    "empty box": _always("\\boxed{}"),
    "not a number": _always("nan"),
    "infinity": _always("inf"),
    "huge number": _always("9" * 100_000),
    "prompt echoed": _echo,
    "all options": _options,
    "all letters": _letters,
    "gold of another item": _with_gold("{other}"),
    "gold or another": _with_gold("{gold} or {other}"),
    "another or gold": _with_gold("{other} or {gold}"),
    "gold among others": _with_gold("{gold} {more}"),
    "others, then gold": _with_gold("{more} {gold}"),
    "nested boxes": _with_gold("\\boxed{{{other} \\boxed{{{gold}}}}}"),
    "denied gold": _with_gold("not {gold}"),
}


def audit(task: Task, n: int = 64, *, split: Split = "train", seed: int = 0) -> list[AuditRow]:
    """Try the gold answer and every attack on `n` problems of a split; attacks that apply to none are left out."""
    problems = task.problems(split, n, seed=seed)
    if not problems:
        raise WhetError(f"task '{task.spec()}' has no {split} problems to audit")
    others = [_others(problems, i) for i in range(len(problems))]
    attacks: dict[str, Attack] = {GOLD: lambda problem, _: problem.answer, **ATTACKS}
    rows: list[AuditRow] = []
    for name, attack in attacks.items():
        answers = [(p, attack(p, o)) for p, o in zip(problems, others, strict=True)]
        tried = [(p, text, _judge(task, p, text)) for p, text in answers if text is not None]
        if tried:
            rows.append(_row(name, tried))
    return rows


def exploits(rows: Sequence[AuditRow]) -> list[AuditRow]:
    """The attacks that earned more than 0. (Gold that earns less than 1 is `check_gold`'s affair.)"""
    return [row for row in rows if row.attack != GOLD and row.mean > 0]


def _others(problems: Sequence[Problem], i: int) -> list[str]:
    """Gold answers of the next problems that differ from problem i's, also as numbers."""
    own = problems[i].answer
    found: list[str] = []
    for problem in (*problems[i + 1 :], *problems[:i]):
        answer = problem.answer
        if answer is None or own is None or answer in found or " ".join(answer.split()) == " ".join(own.split()):
            continue
        if plain_number(own) is not None and plain_number(answer) == plain_number(own):
            continue
        found.append(answer)
        if len(found) == 4:
            break
    return found


def _judge(task: Task, problem: Problem, text: str) -> Verdict:
    try:
        return task.verify(problem, Response(text, text))
    except WhetError:
        raise
    except Exception as failure:  # a verifier that breaks on an attack is a finding, not the end of the audit
        return Verdict(float("nan"), "error", reason=f"raised {type(failure).__name__}: {failure}")


def _row(attack: str, tried: Sequence[tuple[Problem, str, Verdict]]) -> AuditRow:
    values = [v.value for _, _, v in tried if not math.isnan(v.value)]
    problem, text, verdict = max(tried, key=lambda t: -1.0 if math.isnan(t[2].value) else t[2].value)
    shown = text if len(text) <= 80 else text[:77] + "..."
    return AuditRow(
        attack,
        len(tried),
        math.fsum(values) / len(values) if values else float("nan"),
        dict(Counter(v.status for _, _, v in tried)),
        f"{shown!r} to {problem.id}" + (f" ({verdict.reason})" if verdict.reason else ""),
    )
