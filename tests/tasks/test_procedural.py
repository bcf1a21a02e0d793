"""The contract of procedural tasks as a matrix: a new task is one more line in CASES."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from dataclasses import dataclass

import pytest

from whet.errors import WhetError
from whet.tasks import Problem, Procedural, Response, get_task
from whet.tasks.chain_sum import LEVELS, ChainSum
from whet.tasks.sort import Sort
from whet.tasks.word_problem import FILLERS, SENTENCES, THEMES, WordProblem


@dataclass(frozen=True)
class Case:
    """A task's spec without its level, the labels its corruptor uses and the names of its transforms."""

    spec: str
    labels: frozenset[str]
    transforms: frozenset[str]

    def at(self, level: object) -> Procedural:
        task = get_task(f"{self.spec}{',' if ':' in self.spec else ':'}level={level}")
        assert isinstance(task, Procedural)
        return task


def case(spec: str, labels: str, transforms: str) -> Case:
    return Case(spec, frozenset(labels.split()), frozenset(transforms.split()))


CASES = [
    case("chain-sum", "arithmetic carry copy skip", "filler paraphrase scaling"),
    case("word-problem", "arithmetic copy operation skip", "filler paraphrase language"),
    case("word-problem:lang=fr", "arithmetic copy operation skip", "filler paraphrase language"),
    case("word-problem:lang=mixed", "arithmetic copy operation skip", "filler paraphrase language"),
    case("sort", "swap drop duplicate", "filler paraphrase"),
]
LEVELLED = [pytest.param(c, n, id=f"{c.spec}-{n}") for c in CASES for n in get_task(c.spec).levels]
every_case = pytest.mark.parametrize("c", CASES, ids=lambda c: c.spec)
every_level = pytest.mark.parametrize(("c", "level"), LEVELLED)


def gold(problem: Problem) -> Response:
    return Response(f"{problem.rationale}\n{problem.answer}", problem.answer, problem.rationale)


def answered(answer: str | None) -> Response:
    return Response(answer or "", answer)


# -- the contract ------------------------------------------------------------------------------------------------------
@every_level
def test_gold_scores_one_and_passes_every_check(c: Case, level: int) -> None:
    task = c.at(level)
    for problem in task.problems("train", 300):
        verdict = task.verify(problem, gold(problem))
        assert (verdict.value, verdict.status) == (1.0, "ok"), (problem, verdict)
        checks = task.check(problem, gold(problem))
        assert [check.result for check in checks] == ["pass"] * len(checks), (problem, checks)
        assert len(checks) == len(problem.steps) + 1


@every_level
def test_corruptions_are_rejected_and_the_first_fault_is_found(c: Case, level: int) -> None:
    task = c.at(level)
    seen = set()
    for i, problem in enumerate(task.problems("train", 300)):
        wrong = task.corrupt(problem, random.Random(i))
        seen.add(wrong.label)
        assert wrong.rationale != problem.rationale
        assert wrong.steps[: wrong.step] == problem.steps[: wrong.step]
        assert wrong.steps[wrong.step].text != problem.steps[wrong.step].text
        response = Response(f"{wrong.rationale}\n{wrong.answer}", wrong.answer, wrong.rationale)
        verdict = task.verify(problem, response)
        assert (verdict.value, verdict.status) == (0.0, "wrong"), (problem, wrong)
        results = [check.result for check in task.check(problem, response)]
        assert results.index("fail") == wrong.step, (problem, wrong)
        assert results[-1] == "fail"
    assert seen <= c.labels
    if level > 1:
        assert seen == c.labels


@every_case
def test_corruption_is_a_function_of_the_generator(c: Case) -> None:
    task = c.at(2)
    problem = task.problem("train", 0)
    assert task.corrupt(problem, random.Random(4)) == task.corrupt(problem, random.Random(4))
    assert len({task.corrupt(problem, random.Random(i)).rationale for i in range(30)}) > 5


@every_case
@pytest.mark.parametrize("every", [False, True], ids=["level-1", "all-levels"])
def test_no_test_prompt_occurs_in_train_or_validation(c: Case, every: bool) -> None:
    levels = get_task(c.spec).levels
    task = c.at(f"{levels[0]}-{levels[-1]}" if every else levels[0])
    train, validation, test = ({p.prompt for p in task.problems(s, 2000)} for s in ("train", "validation", "test"))
    assert not test & train
    assert not test & validation
    assert not train & validation
    assert len(test) >= 5


def test_another_process_makes_the_same_problems() -> None:
    specs = [c.at("1-3").spec() for c in CASES]
    code = (
        "import json, sys; from whet.tasks import get_task; "
        "found = [get_task(s).problems(k, 20, seed=3) for s in sys.argv[1:] for k in ('train', 'test')]; "
        "print(json.dumps([repr(problems) for problems in found]))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, *specs]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    here = [repr(get_task(s).problems(k, 20, seed=3)) for s in specs for k in ("train", "test")]
    assert json.loads(done.stdout) == here


@every_case
def test_a_position_does_not_depend_on_the_others(c: Case) -> None:
    task = c.at("1-3")
    assert task.problems("train", 10)[5] == task.problems("train", 1, start=5)[0]
    assert task.problems("train", 5, seed=1) != task.problems("train", 5, seed=2)
    assert len({p.id for s in ("train", "validation", "test") for p in task.problems(s, 50)}) == 150


@every_level
def test_transforms_invert_exactly_and_stay_verifiable(c: Case, level: int) -> None:
    task = c.at(level)
    assert set(task.transforms()) == c.transforms
    for forward, inverse in task.transforms().values():
        for problem in task.problems("train", 20):
            moved = forward(problem)
            assert moved.prompt != problem.prompt
            assert inverse(moved) == problem
            assert forward(inverse(problem)) == problem
            assert task.verify(moved, gold(moved)).value == 1.0
            assert all(check.result == "pass" for check in task.check(moved, gold(moved)))
            wrong = task.corrupt(moved, random.Random(0))
            assert task.verify(moved, answered(wrong.answer)).value == 0.0


@every_level
def test_transforms_combine(c: Case, level: int) -> None:
    task = c.at(level)
    problem = moved = task.problem("train", 7)
    undo = []
    for forward, inverse in task.transforms().values():
        moved = forward(moved)
        undo.append(inverse)
    for inverse in undo:  # they move different fields, so any order undoes them
        moved = inverse(moved)
    assert moved == problem


@every_level
def test_right_answers_fit_the_budget(c: Case, level: int) -> None:
    task = c.at(level)
    for problem in task.problems("train", 300):
        assert len(problem.rationale) + len(problem.answer or "") + 16 <= task.max_answer_tokens()
        for forward, _ in task.transforms().values():
            moved = forward(problem)
            assert len(moved.rationale) + len(moved.answer or "") + 16 <= task.max_answer_tokens()


@every_case
def test_levels(c: Case) -> None:
    mixed = c.at("1-3")
    assert {p.level for p in mixed.problems("train", 60)} == {1, 2, 3}
    for task in (get_task(c.spec), c.at(2), mixed):
        again = get_task(task.spec())
        assert again.spec() == task.spec()
        assert again.problems("validation", 10) == task.problems("validation", 10)
    for level in (0, 99, "x", "3-1", "2-99", ""):
        with pytest.raises(WhetError, match="levels"):
            c.at(level)


@every_case
def test_steps_are_typed(c: Case) -> None:
    for problem in c.at("1-3").problems("train", 100):
        assert problem.plan
        assert not re.search("[0-9]", problem.plan)
        for i, step in enumerate(problem.steps):
            assert step.kind and step.skill and "\n" not in step.text
            assert step.premises == ((i - 1,) if i else ())


@every_case
def test_capabilities(c: Case) -> None:
    assert get_task(c.spec).provides() == {
        "verifier", "demonstrations", "unlimited", "rationales", "plans", "corruptions",
    }  # fmt: skip


@every_level
def test_answers_that_must_not_score(c: Case, level: int) -> None:
    task = c.at(level)
    problem = task.problem("train", 1)
    right = problem.answer
    assert right is not None
    assert task.verify(problem, answered(f"  {right}\n")).value == 1.0
    for text in (None, "", " ", "none", "?"):
        verdict = task.verify(problem, answered(text))
        assert (verdict.value, verdict.status) == (0.0, "unparseable"), text
    for text in (f"1{right}", f"{right}0", f"{right} 7", f"{right} or 7", f"-{right}", f"7, {right}", f"not {right}"):
        assert task.verify(problem, answered(text)).value == 0.0, text
    # the rationale is not the answer
    assert task.verify(problem, Response(right, None, problem.rationale)).value == 0.0


# -- chain-sum ---------------------------------------------------------------------------------------------------------
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


@pytest.mark.parametrize("name", ["chain-sum:level=4", "word-problem:level=4"])
def test_labels_say_what_is_wrong(name: str) -> None:
    task = get_task(name)
    for i, problem in enumerate(task.problems("train", 300)):
        wrong = task.corrupt(problem, random.Random(i))
        slips = []  # how far each step's result is off by its own arithmetic
        for step in wrong.steps:
            left, result = step.text.split("=")
            slips.append(int(result) - eval(left))
        slip = slips[wrong.step]
        assert not any(slips[: wrong.step] + slips[wrong.step + 1 :])
        if wrong.label == "arithmetic":
            assert 1 <= abs(slip) <= 9
        elif wrong.label == "carry":
            assert slip == (-10 if problem.steps[wrong.step].skill == "carry" else 10)
        else:
            assert slip == 0
        assert len(wrong.steps) == len(problem.steps) - (wrong.label == "skip")


# -- word-problem ------------------------------------------------------------------------------------------------------
STORY = (0, 0, 1, 3, (("each", 4), ("more", 5), ("fewer", 2), ("times", 3)))


def test_word_problem_pinned() -> None:
    task = WordProblem()
    problem = task.build(STORY, 4)
    assert problem.prompt == (
        "Mia has 3 bags of 4 marbles. Mia wins 5 more. Mia loses 2 marbles. "
        "Tom has 3 times as many marbles as Mia. How many marbles does Tom have now?"
    )
    assert problem.rationale == "3*4=12\n12+5=17\n17-2=15\n15*3=45"
    assert problem.answer == "45"
    assert [s.skill for s in problem.steps] == ["multiply", "add", "subtract", "multiply"]
    assert task.transforms()["language"][0](problem).prompt == (
        "Mia a 3 sacs de 4 billes. Mia gagne encore 5 billes. Mia perd 2 billes. "
        "Tom a 3 fois plus de billes que Mia. Combien de billes a Tom maintenant ?"
    )
    assert task.transforms()["paraphrase"][0](problem).prompt == (
        "At first, Mia has 3 bags, each with 4 marbles. Then Mia wins 5 marbles. Then Mia loses 2 marbles. "
        "Tom has 3 times that many marbles. In the end, how many marbles does Tom have?"
    )


def test_word_problem_language() -> None:
    english, french, mixed = (WordProblem("1-4", lang).problems("train", 300) for lang in ("en", "fr", "mixed"))
    assert all("How many" in p.prompt and p.prompt.isascii() for p in english)
    assert all("Combien de" in p.prompt and " a " in p.prompt for p in french)
    assert not any(re.search(r"\b(has|have|more|many|the)\b", p.prompt) for p in french)
    assert any("é" in p.prompt for p in french)
    assert 100 < sum("Combien" in p.prompt for p in mixed) < 200
    # the same story at the same place in both languages, hence in the same split
    assert [{**p.data, "lang": ""} for p in english] == [{**p.data, "lang": ""} for p in french]
    with pytest.raises(WhetError, match="language"):
        WordProblem(lang="de")


def test_word_problem_grammar() -> None:
    assert len(THEMES["en"]) == len(THEMES["fr"]) >= 8
    assert len(FILLERS["en"]) == len(FILLERS["fr"])
    assert [set(w) for w in SENTENCES["en"]] == [set(w) for w in SENTENCES["fr"]]
    for lang in ("en", "fr"):
        task = WordProblem("1-4", lang)
        problems = task.problems("train", 300)
        for p in [*problems, *map(task.transforms()["paraphrase"][0], problems)]:
            assert all(int(n) >= 2 for n in re.findall("[0-9]+", p.prompt))  # plural everywhere
            assert "{" not in p.prompt and "  " not in p.prompt
            if lang == "fr":  # no elision is due
                assert not re.search(r"\b(de|que|ne|le|la|en) [aeiouyhéèêà](?!\b)", p.prompt, re.IGNORECASE), p.prompt
        told = {re.sub("[0-9]+", "#", p.prompt) for p in WordProblem(1, lang).problems("train", 1000)}
        assert len(told) > 200


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_word_problem_level_is_the_number_of_operations(level: int) -> None:
    problems = WordProblem(level).problems("train", 200)
    assert {len(p.steps) for p in problems} == {level}
    assert {sign for p in problems for s in p.steps for sign in re.findall("[-+*]", s.text)} == {"+", "-", "*"}
    assert all(int(s.text.split("=")[1]) > 0 for p in problems for s in p.steps)


# -- sort --------------------------------------------------------------------------------------------------------------
def test_sort_pinned() -> None:
    problem = Sort().build((False, (12, 3, 40, 7)), 2)
    assert problem.prompt == "Sort ascending: 12 3 40 7."
    assert problem.rationale == (
        "smallest of 12 3 40 7 is 3\nsmallest of 12 40 7 is 7\nsmallest of 12 40 is 12\nlast is 40"
    )
    assert problem.answer == "3 7 12 40"
    assert Sort().build((True, (12, 3, 40, 7)), 2).answer == "40 12 7 3"


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_sort_is_sorted(level: int) -> None:
    problems = Sort(level).problems("train", 300)
    assert {"ascending" in p.prompt for p in problems} == {True, False}
    for p in problems:
        numbers = [int(n) for n in re.findall("[0-9]+", p.prompt)]
        assert len(set(numbers)) == len(numbers)
        assert p.answer == " ".join(map(str, sorted(numbers, reverse="descending" in p.prompt)))


def test_sort_verdicts() -> None:
    task = Sort()
    problem = task.build((False, (12, 3, 40, 7)), 2)
    for text in ("3, 7, 12, 40", "3,7,12,40", " 3  7\t12\n40 ", "3\u00a07\u00a012\u00a040", "\uff13 7 12 40"):
        assert task.verify(problem, answered(text)).value == 1.0, text
    for text, share in (("3 12 7 40", 0.5), ("3 7 12", 0.75), ("3 7 12 40 41", 0.8), ("40 12 7 3", 0.0)):
        verdict = task.verify(problem, answered(text))
        assert (verdict.value, verdict.status, verdict.parts["positions"]) == (0.0, "wrong", share)
    assert task.verify(problem, answered("371240")).value == 0.0
    assert task.verify(problem, answered("3 7 12 forty")).status == "unparseable"
