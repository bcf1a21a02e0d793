"""No attack scores on any verifier that Whet ships, none hangs, and the audit says so in a table."""

from __future__ import annotations

import json
import sys
import threading
import time
from dataclasses import asdict

import pytest
import typer

from whet.rewards.attacks import BOMBS, HEDGES, NONSENSE, same
from whet.rewards.audit import ATTACKS, audit, exploits
from whet.rewards.specimens import ANSWERS, Specimen
from whet.tasks import Problem, Response, Verdict, get_task, task_names
from whet.tasks.gym import Gym
from whet.tasks.verify import Math, choice, number
from whet.terminal.audit import audit_reward

module = sys.modules["whet.rewards.audit"]  # the package exports the function under the same name


@pytest.fixture(autouse=True)
def one_problem_a_bomb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BOMBED", 1)


def passes(rows) -> None:
    assert len(rows) - 1 >= 40
    assert rows[0].attack == "gold" and rows[0].mean == 1.0
    assert [(r.attack, r.example) for r in exploits(rows)] == []
    assert [r.attack for r in rows if r.late] == []


@pytest.mark.parametrize("spec", [name for name in task_names() if name != "gym"])
def test_no_attack_scores_on_a_built_in_task(spec: str) -> None:
    passes(audit(get_task(spec), 6))


def test_no_attack_scores_on_the_gym_suite() -> None:
    passes(audit(get_task("gym"), 4, only=[name for name in ATTACKS if name not in BOMBS]))


@pytest.mark.parametrize("name", [name for name in ANSWERS if name not in ("math", "python", "sql")])
def test_no_attack_scores_on_a_verifier_of_file_tasks(name: str) -> None:
    rows = audit(Specimen(name), 4)
    passes(rows)
    assert not any({"error", "timeout"} & r.statuses.keys() for r in rows)


def test_no_attack_scores_on_math() -> None:
    # a bomb that runs out of time costs a new process; what the verifier does then is pinned beside it
    tried = [name for name in ATTACKS if name not in BOMBS or name in ("huge number", "letters")]
    rows = audit(Specimen("math", Math(0.5)), only=tried)
    passes(rows)
    assert not any("error" in r.statuses for r in rows)


RUN = ("empty", "python", "brackets", "gold or another", "others, then gold", "lines of answers", "gold; another",
       "gold in a comment", "taken back", "gold outside the answer", "no answer, gold in the text")  # fmt: skip


@pytest.mark.parametrize("name", ["python", "sql"])
def test_no_attack_scores_on_a_verifier_that_runs_answers(name: str) -> None:
    rows = audit(Specimen(name), 2, only=RUN)
    assert rows[0].mean == 1.0 and len(rows) == len(RUN) + 1
    assert [(r.attack, r.example) for r in exploits(rows)] == []
    assert not any({"error", "timeout"} & r.statuses.keys() for r in rows)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["python", "sql"])
def test_no_attack_of_all_scores_on_a_verifier_that_runs_answers(name: str) -> None:
    passes(audit(Specimen(name), 4))


@pytest.mark.parametrize(
    "text",
    ["\\sqrt{12}", "\\sqrt 12", "√12", "log(12)", "12\\pi", "12\\frac{1}{2}", "12%²", "12\\%^2", "12% million"],
)
def test_a_number_inside_an_expression_is_not_the_answer(text: str) -> None:
    problem = Problem("a", "?", "12")
    assert number(problem, Response(text, text)).status == "unparseable"
    assert number(problem, Response(f"So {text}", text)).status == "unparseable"


@pytest.mark.parametrize("text", ["12", "12%", "12\\%", "x = 12", "The catalog (12 pages): 12", "$12$", "**12**"])
def test_a_number_beside_words_and_signs_still_is(text: str) -> None:
    assert number(Problem("a", "?", "12"), Response(text, text)).value == 1.0


def test_a_letter_with_another_choices_text_names_none() -> None:
    problem = Problem("a", "?", "red", choices=("red", "blue"))
    for text in ("A. blue", "(A) blue", "A: blue"):
        assert choice(problem, Response(f"So {text}", text)).status == "unparseable", text
    for text in ("A. red", "A", "A. Because it is warm.", "red."):
        assert choice(problem, Response(f"So {text}", text)).value == 1.0, text


@pytest.mark.parametrize("text", ["3/4 % 12", "3/4 <!-- 12 -->", "<answer>3/4</answer><answer>12</answer>"])
def test_math_reads_no_answer_out_of_comments_and_tags(text: str) -> None:
    problem = Problem("a", "?", "12")
    assert Math()(problem, Response(text, text)).status == "unparseable"


def test_a_way_over_the_lake_is_one_word_or_one_letter_a_word() -> None:
    task = get_task("frozen-lake")
    problem = task.problems("train", 1)[0]
    way = problem.answer or ""
    for text in (way, " ".join(way), ", ".join(way), f"{way}\n"):
        assert task.verify(problem, Response(text, text)).value == 1.0, text
    for text in (f"{way[:1]} {way[1:]}", f"{way} {way}"):
        assert task.verify(problem, Response(text, text)).status == "unparseable", text


def test_many_empty_lines_are_no_slow_program() -> None:
    task = get_task("solutions")
    text = "\n" * 20_000 + "x"
    began = time.perf_counter()
    assert task.verify(task.problems("train", 1)[0], Response(text, text)).value == 0.0
    assert time.perf_counter() - began < 5  # half a minute where each line looks at all that follow


@pytest.mark.parametrize("text", ["", " \n", "nan", "[nan, 1]", "-inf", "Infinity", "nan+nanj", "٣"])
def test_the_gym_shows_its_scorers_no_such_answer(text: str) -> None:
    task = Gym("complex_arithmetic")
    verdict = task.verify(task.problem("train", 0), Response(text, text))
    assert (verdict.value, verdict.status) == (0.0, "unparseable")


def test_the_gym_pays_no_hedge_that_a_scorer_finds_the_gold_in() -> None:
    task = Gym("fraction_simplification")
    problem = task.problem("train", 0)
    for text in (f"{problem.answer} or 14", f"{problem.answer}, 14", f"not {problem.answer}", f"{problem.answer}²"):
        assert task.verify(problem, Response(text, text)).value < 1.0, text
    assert task.verify(problem, Response(problem.answer or "", problem.answer)).value == 1.0


@pytest.mark.parametrize("form", ["\\sqrt{{{}}}", "{}\\pi", "- {}", "{} million", "{} or 3", "not {}"])
def test_the_gym_reads_no_number_out_of_an_expression(form: str) -> None:
    task = Gym("gsm_symbolic")  # its scorer searches the answer for a number
    problem = task.problem("train", 0)
    text = form.format(problem.answer)
    assert task.verify(problem, Response(text, text)).value < 1.0
    for right in (problem.answer or "", f"{problem.answer} dollars", f"It is {problem.answer}."):
        assert task.verify(problem, Response(right, right)).value == 1.0, right


def test_a_gym_set_that_is_read_word_by_word_takes_no_further_words() -> None:
    task = Gym("letter_jumble")
    problem = task.problem("train", 0)
    assert task.verify(problem, Response(problem.answer or "", problem.answer)).value == 1.0
    more = f"{problem.answer} and more"
    assert task.verify(problem, Response(more, more)).value < 1.0


def test_a_verifier_stopped_while_it_asks_does_not_mistake_the_next_reply() -> None:
    sums = Problem("a", "?", "12")
    judge = Math()
    assert judge(sums, Response("12", "12")).value == 1.0
    bomb = Specimen("math", judge)
    bomb._problems = [sums]
    assert audit(bomb, 1, limit=0.2, only=["power tower"])[1].statuses == {"timeout": 1}
    assert judge(sums, Response("13", "13")).status == "wrong"
    assert judge(sums, Response("12", "12")).value == 1.0


def test_a_gym_set_with_two_answers_takes_no_other() -> None:
    task = Gym("game_of_life_halting")
    problem = next(p for p in task.problems("train", 20) if p.answer == "False")
    assert task.verify(problem, Response("praise", "praise")).status == "unparseable"
    assert task.verify(problem, Response("False", "False")).value == 1.0


# -- the audit itself --------------------------------------------------------------------------------------------------
def test_there_are_forty_attacks_of_each_make() -> None:
    assert len(NONSENSE | BOMBS) >= 40 and len(HEDGES) >= 30
    assert len({*NONSENSE.values(), *BOMBS.values(), *HEDGES.values()}) == len(NONSENSE) + len(BOMBS) + len(HEDGES)


def test_what_equals_the_gold_is_no_attack() -> None:
    assert same(" NaN ", "nan") and same("12.0", "12") and not same("12", "13") and not same("", None)
    rows = audit(Specimen("exact", lambda p, r: Verdict(1.0, "ok")), only=["not a number"])
    assert rows[1].n == 5
    undefined = [Problem("a", "?", "nan"), Problem("b", "?", "3")]
    task = Specimen("exact")
    task._problems = undefined
    assert {r.attack: r.n for r in audit(task, only=["not a number"])} == {"gold": 2, "not a number": 1}


def test_each_answer_is_handed_in_whole_and_cut_out() -> None:
    def cut_only(problem: Problem, response: Response) -> Verdict:  # pays whatever the Format has cut out
        return Verdict(float(response.answer != response.text), "ok")

    row = audit(Specimen("exact", cut_only), only=["praise"])[1]
    assert (row.n, row.tried, row.scored, row.mean) == (5, 10, 5, 1.0)


def test_a_verifier_that_hangs_is_stopped_and_found() -> None:
    def hangs(problem: Problem, response: Response) -> Verdict:
        if response.answer == "nan":
            time.sleep(30)
        return Verdict(float(response.answer == problem.answer), "ok")

    row = audit(Specimen("exact", hangs), limit=0.1, only=["not a number"])[1]
    assert (row.n, row.tried, row.late, row.statuses) == (1, 1, True, {"timeout": 1})
    assert 0.1 <= row.slowest < 10


def test_outside_the_main_thread_a_slow_verifier_is_late() -> None:
    def slow(problem: Problem, response: Response) -> Verdict:
        time.sleep(0.02)
        return Verdict(float(response.answer == problem.answer), "ok")

    found = []
    thread = threading.Thread(
        target=lambda: found.extend(audit(Specimen("exact", slow), 1, limit=0.01, only=["praise"]))
    )
    thread.start()
    thread.join()
    assert found[1].late and found[1].statuses == {"ok": 1}


def test_shares_of_a_wrong_answer_are_no_exploit_where_the_task_gives_them() -> None:
    task = Specimen("exact", lambda p, r: Verdict(1.0 if r.answer == p.answer else 0.01, "wrong"))
    assert len(exploits(audit(task, only=["praise"]))) == 1
    task.gives_shares = True
    assert exploits(audit(task, only=["praise"])) == []


def test_the_table_is_printed_and_written(tmp_path, capsys, monkeypatch) -> None:
    import whet.terminal.audit as terminal

    monkeypatch.setattr(terminal, "task_names", lambda: ["clues"])
    monkeypatch.setattr(terminal, "ANSWERS", {"exact": None, "number": None})
    out = tmp_path / "deep" / "audit.json"
    audit_reward("all", None, 4, out=out)
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("verifier", "tried", "scored", "slowest ms", "nothing scores"))
    table = json.loads(out.read_text())
    assert [row["task"] for row in table["verifiers"]] == ["clues", "specimen:exact", "specimen:number"]
    for row in table["verifiers"]:
        assert row["attacks"] >= 40 and row["tried"] > row["attacks"] and row["scored"] == 0
        assert row["rows"][0].keys() == asdict(audit(Specimen("exact"), 1, only=["praise"])[0]).keys()


def test_the_command_leaves_with_one_where_an_attack_scores(tmp_path, capsys, monkeypatch) -> None:
    import whet.terminal.audit as terminal

    monkeypatch.setattr(terminal, "get_task", lambda *_, **__: Specimen("exact", lambda p, r: Verdict(1.0, "ok")))
    with pytest.raises(typer.Exit):
        audit_reward("x", None, 2, out=tmp_path / "audit.json")
    assert "score that must not" in capsys.readouterr().out
    assert "praise" in json.loads((tmp_path / "audit.json").read_text())["verifiers"][0]["exploits"]
