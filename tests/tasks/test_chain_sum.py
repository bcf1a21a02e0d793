"""chain-sum: what its levels hold, and how its checks name a fault."""

from __future__ import annotations

import re

import pytest

from whet.tasks import Response
from whet.tasks.chain_sum import LEVELS, ChainSum


def test_chain_sum_pinned() -> None:
    problem = ChainSum().build((12, 45, -7, 30), 4)
    assert problem.prompt == "Compute 12+45-7+30."
    assert problem.rationale == "12+45=57\n57-7=50\n50+30=80"
    assert problem.answer == "80"
    assert [s.skill for s in problem.steps] == ["add", "subtract", "add"]
    assert [s.skill for s in ChainSum().build((7, 5, 90, 99), 3).steps] == ["carry", "carry", "carry"]
    assert ChainSum().problem("train", 0).prompt == "Compute 25+10+51+90."
    scaled = ChainSum().transforms()["scaling"][0](problem)
    assert (scaled.prompt, scaled.answer) == ("Compute 120+450-70+300.", "800")


@pytest.mark.parametrize("level", LEVELS)
def test_chain_sum_level(level: int) -> None:
    fewest, most, largest, minus = LEVELS[level]
    problems = ChainSum(level).problems("train", 400)
    counts = {len(p.steps) + 1 for p in problems}
    assert counts == set(range(fewest, most + 1))
    assert any("-" in p.prompt for p in problems) == minus
    for p in problems:
        written = p.prompt.removeprefix("Compute ").removesuffix(".")
        assert re.fullmatch("[0-9]+([+-][0-9]+)+", written)
        assert str(eval(written)) == p.answer
        assert all(1 <= int(n) <= largest for n in re.findall("[0-9]+", written))
        assert all(int(s.text.split("=")[1]) >= 0 for s in p.steps)
    assert len({p.prompt for p in problems}) > (50 if level == 1 else 390)


def test_chain_sum_demo_level_is_short_and_hard_to_guess() -> None:
    problems = ChainSum().problems("test", 1000)
    assert max(len(p.prompt + p.rationale + (p.answer or "")) for p in problems) <= 68
    answers = [p.answer for p in problems]
    assert max(answers.count(a) for a in set(answers)) < 25


def test_chain_sum_checks_name_the_fault() -> None:
    problem = ChainSum().build((12, 45, -7, 30), 4)

    def results(rationale: str, answer: str = "80") -> list[str]:
        checks = ChainSum().check(problem, Response("", answer, rationale))
        return [check.result for check in checks]

    assert results("12 + 45 = 57\n57 − 7 = 50, 30+50=80") == ["pass"] * 4
    assert results("12+45=58\n58-7=51\n51+30=81", "81") == ["fail", "pass", "pass", "fail"]
    assert results("12+45=57\n58-7=51") == ["pass", "fail", "n.a.", "pass"]
    assert results("12+45=57\n57+30=87\n87-7=80") == ["pass", "fail", "fail", "pass"]
    assert results("") == ["n.a.", "n.a.", "n.a.", "pass"]
    assert results("12+45=57\n57-7=50\n50+30=80\n80+1=81") == ["pass", "pass", "pass", "fail", "pass"]
    reasons = [c.reason for c in ChainSum().check(problem, Response("", "80", "12+45=58\n57-7=50\n50+3=53"))]
    assert reasons[:3] == ["12+45 is 57, not 58", "starts from 57, not from 58", "uses +3 where +30 is due"]
