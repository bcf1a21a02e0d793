"""finance: subtasks against the tables, labels, verdicts and checks."""

from __future__ import annotations

import re

import pytest
from task_tools import answered, judged

from whet.tasks.finance import SUBTASKS, Finance
from whet.tasks.finance_templates import LABELS, TURNS


def test_finance_pinned() -> None:
    table = ((0, 1), 2019, ((40, 30), (50, 35)))
    change = Finance().build(("change", table, (0, 0, 1)), 2)
    assert change.prompt == (
        "year sales costs\n2019 40 30\n2020 50 35\nBy what percent did the sales change from 2019 to 2020?"
    )
    assert change.rationale == "sales 2019 = 40\nsales 2020 = 50\n50-40=10\n10*100=1000\n1000/40=25"
    assert change.answer == "25%"
    scaled = Finance().transforms()["scaling"][0](change)
    assert "2019 400 300" in scaled.prompt
    assert scaled.answer == "25%"
    loan = Finance().build(("interest", (), (200, 5, 3, True)), 3)
    assert loan.rationale == "200*5=1000\n1000/100=10\n10*3=30\n200+30=230"
    assert Finance().build(("sum", table, (1, 0, 0)), 2).rationale == "30+35=65"
    assert Finance().build(("ratio", table, (0, 0, 1)), 2).answer == "1.25"
    compared = Finance().build(("compare", table, (1, 0, 1)), 2)
    assert (compared.choices, compared.answer, compared.steps[-1].text) == (("2019", "2020"), "2020", "30<35")
    deal = Finance().build(("extract", (), ("target", 0, ((0, 1, 30, 2010, 1),))), 2)
    assert deal.prompt == "Babex went to Babax for 30 million in 2010. What did Babax buy?"
    assert (deal.rationale, deal.answer) == ("target for Babax: Babex", "Babex")
    news = Finance().build(("sentiment", (), (3, 0, 0, 1, 0, 1)), 4)
    assert news.prompt.startswith('Headline: "Babax falls despite strong demand on Monday."')
    assert (news.rationale, news.answer) == ("set aside: strong demand\nfalls: negative", "negative")


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_finance_answers_follow_from_the_text_alone(level: int) -> None:
    for p in Finance(level, "change").problems("train", 200) + Finance(level, "ratio").problems("train", 200):
        header, *rows, question = p.prompt.split("\n")
        cells = {(r.split()[0], item): int(v) for r in rows for item, v in zip(header.split()[1:], r.split()[1:])}  # noqa: B905
        item = next(i for i in header.split()[1:] if i in question)
        a, b = (cells[year, item] for year in re.findall(r"\d{4}", question))
        value = float((p.answer or "").rstrip("%"))
        assert value == ((b - a) / a * 100 if p.category == "change" else b / a)
    for p in Finance(level, "sum").problems("train", 100):
        header, *rows, question = p.prompt.split("\n")
        column = next(i for i, item in enumerate(header.split()) if item in question and i)
        assert int(p.answer or "") == sum(int(r.split()[column]) for r in rows)
    for p in Finance(level, "interest").problems("train", 100):
        loan, rate, years = map(int, re.findall(r"\d+", p.prompt))
        assert float(p.answer or "") == loan * rate * years / 100 + (loan if level > 2 else 0)


def test_finance_mixes_its_subtasks_and_labels() -> None:
    problems = Finance("1-4").problems("train", 800)
    counts = [sum(p.category == s for p in problems) for s in SUBTASKS]
    assert min(counts) > 60
    labels = [p.answer for p in Finance("1-4", "sentiment").problems("train", 600)]
    assert min(labels.count(label) for label in LABELS) > 100
    turned = [p for p in Finance(3, "sentiment").problems("train", 300) if len(p.steps) == 2]
    assert any(t in p.prompt for p in turned for t in TURNS[0])
    for p in turned:
        assert p.steps[0].text.split(": ")[1] != p.answer


def test_finance_verdicts_and_checks() -> None:
    task = Finance()
    change = task.build(("change", ((0,), 2019, ((40,), (50,))), (0, 0, 1)), 1)
    for text in ("25%", "25", "25.0 %", "25 percent"):
        assert task.verify(change, answered(text)).value == 1.0, text
    for text in ("-25%", "0.25", "2.5%", "25 or 30"):
        assert task.verify(change, answered(text)).value == 0.0, text
    slip = "sales 2019 = 40\nsales 2020 = 50\n50 - 40 = 11\n11*100=1100\n1100/40=27.5"
    assert judged(task, change, slip, "27.5%") == ["pass", "pass", "fail", "pass", "pass", "fail"]
    base = "sales 2019 = 40\nsales 2020 = 50\n50-40=10\n100*10=1000\n1000/50=20"
    assert judged(task, change, base, "20%") == ["pass", "pass", "pass", "pass", "fail", "fail"]


def test_a_mixture_promises_no_choices() -> None:
    task = Finance(1)
    assert any(p.choices for p in task.problems("train", 50))
    assert not {"choices", "choice rationales"} & task.provides()
