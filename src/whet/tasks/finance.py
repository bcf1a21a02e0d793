"""finance: eight small subtasks on generated tables and texts, from a table look-up to the sentiment of a headline."""

from __future__ import annotations

import random
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from whet.errors import unknown
from whet.tasks import finance_numbers as numbers
from whet.tasks import finance_templates as words
from whet.tasks.problem import Check, Corruption, Problem, Response, Verdict
from whet.tasks.task import Procedural
from whet.tasks.transforms import Transform, cycle

SUBTASKS = ("lookup", "compare", "sum", "change", "ratio", "interest", "sentiment", "extract")
SCALE = 10  # of the transform `scaling`


class Finance(Procedural):
    """`year sales / 2019 40 / 2020 50 / By what percent did the sales change from 2019 to 2020?` (a row a line).

    Its rationale is `sales 2019 = 40`, `sales 2020 = 50`, `50-40=10`, `10*100=1000`, `1000/40=25`, its answer `25%`.

    Data set: generated, deterministic, in English. Contents: `category` is the subtask: `lookup`, `compare` (which of
    two years; has choices), `sum` (of a column), `change` (in percent), `ratio`, `interest` (simple; from level 3 the
    repayment), `sentiment` (of a headline; has choices) and `extract` (from one to three deals). Splits: a hash of
    everything told. Answers are exact, with at most two decimals; numbers are compared as numbers, other answers as
    text. Limits: invented companies, clean tables, one table or text a question.

    Args:
        level: 1 to 4, or a range: rows, columns and digits; in texts reversals, concessions, and other deals.
        subtask: one of them, or None for all.
    """

    name = "finance"
    levels = tuple(numbers.LEVELS)
    description = "eight subtasks on small tables and texts: look up, compare, add, percent, ratio, interest, sentiment"

    def __init__(self, level: int | str | None = None, subtask: str | None = None) -> None:
        super().__init__(level)
        if subtask is not None and subtask not in SUBTASKS:
            raise unknown("subtask of the finance task", subtask, SUBTASKS)
        self.subtask = subtask

    def draw(self, rng: random.Random, level: int) -> tuple[Any, ...]:
        """(subtask, table or (), what is asked)."""
        subtask = self.subtask or SUBTASKS[int(rng.random() * len(SUBTASKS))]
        match subtask:
            case "sentiment":
                return subtask, (), words.draw_sentiment(rng, level)
            case "extract":
                return subtask, (), words.draw_extract(rng, level)
            case "interest":
                return subtask, (), numbers.draw_loan(rng, level)
        return subtask, *numbers.draw_table(rng, level, subtask)

    def build(self, parameters: tuple[Any, ...], level: int) -> Problem:
        subtask, table, asked = parameters
        data = {"subtask": subtask, "table": table, "asked": asked}
        return _word({**data, "wording": 0, "filler": 0, "scale": 1}, level)

    def verify(self, problem: Problem, response: Response) -> Verdict:
        """Compares numbers, and other answers as text."""
        from whet.tasks.verify import exact, number

        return number(problem, response) if (problem.answer or "")[-1:] in "0123456789%" else exact(problem, response)

    def check(self, problem: Problem, response: Response) -> list[Check]:
        """One check a step, then the answer's. A calculation may start from whatever the steps before it stated."""
        lines = [line.strip() for line in response.rationale.splitlines() if line.strip()]
        program = numbers.program(problem.data)
        stated: list[Fraction] = []
        checks: list[Check] = []
        for i in range(max(len(problem.steps), len(lines))):
            name = f"step {i + 1}"
            if i >= len(lines):
                checks.append(Check(name, "n.a.", "no such step found"))
                continue
            if i >= len(problem.steps):
                reason = "one step too many"
            elif program:
                reason = numbers.fault(lines[i], program[i], problem.data, stated)
            else:
                reason = "" if lines[i] == problem.steps[i].text else f"'{problem.steps[i].text}' is due"
            checks.append(Check(name, "fail" if reason else "pass", reason))
        return [*checks, *super().check(problem, response)]

    def corrupt(self, problem: Problem, rng: random.Random) -> Corruption:
        """Labels with numbers: cell (another cell), copy (a digit), arithmetic, swap (of operands), base (percent of
        the new value) and compare (a false comparison); with texts: cue, turn, aside, role, copy and deal.
        """
        data = problem.data
        if data["subtask"] == "sentiment":
            return words.misread_sentiment(data, rng)
        if data["subtask"] == "extract":
            return words.misread_extract(data, rng)
        return numbers.corrupt(problem, rng)

    def transforms(self) -> Mapping[str, tuple[Transform, Transform]]:
        """`scaling` multiplies all amounts of money; a headline has none and stays."""
        return {
            "paraphrase": cycle(_word, "wording", (0, 1)),
            "filler": cycle(_word, "filler", range(len(words.FILLERS))),
            "scaling": cycle(_word, "scale", (1, SCALE)),
        }

    def provides(self) -> set[str]:
        chosen = {"choices", "choice rationales"}  # a mixture has them only in some problems
        return super().provides() - (set() if self.subtask in ("compare", "sentiment") else chosen)

    def spec(self) -> str:
        options = {"level": self._given, "subtask": self.subtask}
        given = ",".join(f"{key}={value}" for key, value in options.items() if value is not None)
        return f"{self.name}:{given}" if given else self.name

    def max_answer_tokens(self) -> int:
        return 160


def _word(data: Mapping[str, Any], level: int) -> Problem:
    subtask = data["subtask"]
    plan = subtask
    if subtask == "sentiment":
        draft = words.word_sentiment(data)
    elif subtask == "extract":
        draft = words.word_extract(data)
    else:
        done = numbers.run(numbers.program(data), data, {})
        assert done is not None, data  # what is drawn comes out even
        steps, answer = done
        if subtask == "interest":
            loan, rate, years, repaid = data["asked"]
            plan = "repayment" if repaid else "interest"
            prompt = words.ASK[plan][data["wording"]].format(sum=loan * data["scale"], rate=rate, years=years)
            draft = words.Draft(prompt, answer, steps)
        else:
            choices, rationales = (), ()
            if subtask == "compare":
                choices = tuple(numbers.year_of(row, data) for row in data["asked"][1:])
                rationales = tuple(s.text for s in steps[:2])
            draft = words.Draft(numbers.table_prompt(data), answer, steps, choices, rationales)
    return Problem(
        id="",
        prompt=words.FILLERS[data["filler"]] + draft.prompt,
        answer=draft.answer,
        level=level,
        steps=draft.steps,
        plan=words.PLANS[plan],
        choices=draft.choices,
        choice_rationales=draft.choice_rationales,
        category=subtask,
        data=data,
    )
