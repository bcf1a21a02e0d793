"""What the tests of tasks share: responses, and the results of a task's checks."""

from __future__ import annotations

from whet.tasks import Problem, Response, Task


def gold(problem: Problem) -> Response:
    return Response(f"{problem.rationale}\n{problem.answer}", problem.answer, problem.rationale)


def answered(answer: str | None) -> Response:
    """An answer that is the whole text, as a format without tags hands it over."""
    return Response(answer or "", answer)


def said(answer: str | None, rationale: str = "") -> Response:
    """An answer that the format has cut out of a text."""
    return Response(f"{rationale}\n{answer or ''}", answer, rationale)


def results(task: Task, problem: Problem, response: Response) -> list[str]:
    return [check.result for check in task.check(problem, response)]


def judged(task: Task, problem: Problem, rationale: str, answer: str | None = None) -> list[str]:
    """The results of a rationale, beside the gold answer unless another is given."""
    return results(task, problem, Response("", problem.answer if answer is None else answer, rationale))
