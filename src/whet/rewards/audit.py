"""The reward audit: answers that must not score, tried on a task's verifier, beside the gold answers, which must."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from whet.errors import WhetError
from whet.rewards.attacks import BOMBS, Attack, attacks_on, same
from whet.tasks.answers import plain_number
from whet.tasks.problem import Problem, Response, Split, Verdict
from whet.tasks.task import Task
from whet.tasks.verify import gold_response

GOLD = "gold"
BOMBED = 2  # problems that a bomb is tried on: it does not depend on the problem
LIMIT = 20.0  # seconds; above the limits that the verifiers set themselves
ATTACKS: dict[str, Attack] = attacks_on()


@dataclass(frozen=True, slots=True)
class AuditRow:
    """What one attack earned.

    Attributes:
        attack: its name.
        n: how many problems it was tried on. An attack that runs out of time is not tried again.
        mean: the mean value of its verdicts, without those that are NaN; NaN where there is none.
        tried: how many responses were judged: most answers are handed in as the whole text, and as the Format cuts them
            out of one. What counts for a problem is the verdict that paid most.
        statuses: how many verdicts of each status; an exception of the verifier counts as `error`.
        example: the answer that earned most, shortened, with the problem's id and the verdict's reason.
        scored: how many verdicts paid: more than 0, or 1 where the task gives shares of it to wrong answers.
        slowest: seconds of the slowest verdict.
        late: whether one took longer than the limit.
    """

    attack: str
    n: int
    mean: float
    statuses: Mapping[str, int]
    example: str
    tried: int
    scored: int
    slowest: float
    late: bool = False


@dataclass(frozen=True, slots=True)
class _Trial:
    """What one attack earned on one problem: the verdict that paid most, and the time of the slowest."""

    problem: Problem
    text: str
    verdict: Verdict
    seconds: float
    responses: int


def audit(
    task: Task, n: int = 64, *, split: Split = "train", seed: int = 0, limit: float = LIMIT, only: Sequence[str] = ()
) -> list[AuditRow]:
    """Try the gold answer and every attack on `n` problems of a split; attacks that apply to none are left out.

    Args:
        limit: seconds that one verdict may take. In the main thread a verifier is stopped then, unless it hangs inside
            one call of a C library; elsewhere it is only found to be late.
        only: names of the attacks; empty takes all.
    """
    problems = task.problems(split, n, seed=seed)
    if not problems:
        raise WhetError(f"task '{task.spec()}' has no {split} problems to audit")
    others = [_others(task, problems, i) for i in range(len(problems))]
    # the gold answer comes first and has no limit: it may start a process that the others need
    rows = [_row(GOLD, task, _trials(task, lambda p, _: _gold(p), problems, others, math.inf), math.inf)]
    rows += [
        _row(name, task, _trials(task, attack, problems[: BOMBED if name in BOMBS else None], others, limit), limit)
        for name, attack in ATTACKS.items()
        if not only or name in only
    ]
    return [row for row in rows if row.n]


def exploits(rows: Sequence[AuditRow]) -> list[AuditRow]:
    """The attacks that scored. (Gold that earns less than 1 is `check_gold`'s affair.)"""
    return [row for row in rows if row.attack != GOLD and row.scored]


def _gold(problem: Problem) -> Response | None:
    return None if problem.answer is None else Response(problem.answer, problem.answer)


def _trials(
    task: Task, attack: Attack, problems: Sequence[Problem], others: Sequence[Sequence[str]], limit: float
) -> list[_Trial]:
    made: list[_Trial] = []
    for problem, golds in zip(problems, others, strict=False):
        trials: list[_Trial] = []
        for response in _responses(attack(problem, golds)):
            began = time.perf_counter()
            verdict = _judge(task, problem, response, limit)
            shown = response.text if response.answer is None else response.answer
            trials.append(_Trial(problem, shown, verdict, time.perf_counter() - began, 1))
            if verdict.status == "timeout":
                break
        if trials:
            slowest = max(t.seconds for t in trials)
            made.append(replace(max(trials, key=_paid), seconds=slowest, responses=len(trials)))
            if trials[-1].verdict.status == "timeout":
                break
    return made


def _paid(trial: _Trial) -> float:
    # no verdict is a finding too: it comes before a 0
    return 1e-9 if math.isnan(trial.verdict.value) else trial.verdict.value


def _responses(attack: str | Response | None) -> list[Response]:
    """A text as a format without tags hands it over, and as one that has cut it out."""
    if attack is None or isinstance(attack, Response):
        return [] if attack is None else [attack]
    return [Response(attack, attack), Response(f"Let me see.\n{attack}", attack, "Let me see.")]


def _others(task: Task, problems: Sequence[Problem], i: int) -> list[str]:
    """Gold answers of the next problems that differ from problem i's, also as numbers, and are of its kind: numbers
    beside a number (words beside one are no other answer: `8 apples`), else words.

    Left out is what a task that does not go by the gold answer finds to be right (another way to the goal).
    """
    own = problems[i]
    if own.answer is None:
        return []
    found: list[str] = []
    for problem in (*problems[i + 1 :], *problems[:i]):
        answer = problem.answer
        if not answer or answer in found or same(answer, own.answer) or _is_number(answer) != _is_number(own.answer):
            continue
        swapped = replace(own, answer=answer)
        if (
            task.verify(swapped, gold_response(own)).value == 1.0
            and task.verify(own, gold_response(problem)).value == 1.0
        ):
            continue
        found.append(answer)
        if len(found) == 4:
            break
    return found


def _is_number(text: str) -> bool:
    return plain_number(text) is not None


class _Late(BaseException):
    """Raised by the alarm; no `except Exception` on its way catches it."""


@contextmanager
def _stopped_after(seconds: float) -> Iterator[None]:
    """Raises _Late in the block where it takes longer; only the main thread of a Unix process can be interrupted."""
    if (
        math.isinf(seconds)
        or not hasattr(signal, "setitimer")
        or threading.current_thread() is not threading.main_thread()
    ):
        yield
        return

    def alarm(*_: Any) -> None:
        raise _Late

    before = signal.signal(signal.SIGALRM, alarm)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _judge(task: Task, problem: Problem, response: Response, limit: float) -> Verdict:
    try:
        with _stopped_after(limit):
            return task.verify(problem, response)
    except WhetError:
        raise
    except _Late:
        return Verdict(float("nan"), "timeout", reason=f"stopped after {limit:g} s")
    except Exception as failure:  # a verifier that breaks on an attack is a finding, not the end of the audit
        return Verdict(float("nan"), "error", reason=f"raised {type(failure).__name__}: {failure}")


def _row(attack: str, task: Task, tried: Sequence[_Trial], limit: float) -> AuditRow:
    if not tried:
        return AuditRow(attack, 0, float("nan"), {}, "", 0, 0, 0.0)
    values = [t.verdict.value for t in tried if not math.isnan(t.verdict.value)]
    best = max(tried, key=_paid)
    shown = best.text if len(best.text) <= 80 else best.text[:77] + "..."
    slowest = max(t.seconds for t in tried)
    return AuditRow(
        attack,
        len(tried),
        math.fsum(values) / len(values) if values else float("nan"),
        dict(Counter(t.verdict.status for t in tried)),
        f"{shown!r} to {best.problem.id}" + (f" ({best.verdict.reason[:200]})" if best.verdict.reason else ""),
        sum(t.responses for t in tried),
        sum(v >= 1.0 if task.gives_shares else v > 0.0 for v in values),
        slowest,
        slowest > limit,
    )
