"""facts, logic and finance: the contract of procedural tasks as a matrix, then what is special to each."""

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
from whet.tasks import Problem, Procedural, Response, Verdict
from whet.tasks.facts import WORDINGS, Facts
from whet.tasks.facts_world import MOVING, QUESTIONS, SIZES, World
from whet.tasks.finance import SUBTASKS, Finance
from whet.tasks.finance_templates import LABELS, TURNS
from whet.tasks.logic import LEVELS, Logic

TASKS = {"facts": Facts, "logic": Logic, "finance": Finance}


def make(spec: str, **more: object) -> Procedural:
    """What `get_task` makes of the spec."""
    name, _, rest = spec.partition(":")
    options = dict(part.split("=") for part in rest.split(",") if part)
    return TASKS[name](**{**options, **more})


@dataclass(frozen=True)
class Case:
    """A task's spec, the labels its corruptor uses over all levels, its transforms, and whether it has choices."""

    spec: str
    labels: frozenset[str]
    transforms: frozenset[str]
    choices: bool = False


def case(spec: str, labels: str, transforms: str, choices: bool = False) -> Case:
    return Case(spec, frozenset(labels.split()), frozenset(transforms.split()), choices)


CASES = [
    case("facts:kind=lookup", "value subject relation", "paraphrase"),
    case("facts:kind=twohop", "value subject relation", "paraphrase"),
    case("facts:kind=comparison", "value subject compare", "paraphrase", True),
    case("facts:form=open", "value subject relation compare", "paraphrase"),
    case("facts:form=open,year=9,only=updated", "value subject relation stale", "paraphrase"),
    case("logic", "fact rule negation stop", "language paraphrase filler rename reorder", True),
    case("logic:form=choice", "fact rule", "language paraphrase filler rename reorder", True),
    case("finance:subtask=lookup", "cell copy", "paraphrase filler scaling"),
    case("finance:subtask=compare", "cell copy compare", "paraphrase filler scaling", True),
    case("finance:subtask=sum", "copy arithmetic", "paraphrase filler scaling"),
    case("finance:subtask=change", "cell copy arithmetic swap base", "paraphrase filler scaling"),
    case("finance:subtask=ratio", "cell copy arithmetic swap", "paraphrase filler scaling"),
    case("finance:subtask=interest", "copy arithmetic", "paraphrase filler scaling"),
    case("finance:subtask=sentiment", "cue turn aside", "paraphrase filler scaling", True),
    case("finance:subtask=extract", "role copy deal", "paraphrase filler scaling"),
]
LEVELLED = [pytest.param(c, n, id=f"{c.spec}-{n}") for c in CASES for n in make(c.spec).levels]
every_case = pytest.mark.parametrize("c", CASES, ids=lambda c: c.spec)
every_level = pytest.mark.parametrize(("c", "level"), LEVELLED)


def gold(problem: Problem) -> Response:
    return Response(f"{problem.rationale}\n{problem.answer}", problem.answer, problem.rationale)


def answered(answer: str | None) -> Response:
    return Response(answer or "", answer)


def results(task: Procedural, problem: Problem, rationale: str, answer: str | None = None) -> list[str]:
    response = Response("", problem.answer if answer is None else answer, rationale)
    return [check.result for check in task.check(problem, response)]


# -- the contract ------------------------------------------------------------------------------------------------------
@every_level
def test_gold_scores_one_and_passes_every_check(c: Case, level: int) -> None:
    task = make(c.spec, level=level)
    for problem in task.problems("train", 300):
        assert task.verify(problem, gold(problem)) == Verdict(1.0, "ok"), problem
        assert results(task, problem, problem.rationale) == ["pass"] * (len(problem.steps) + 1), problem
        assert len(problem.rationale) + len(problem.answer or "") + 16 <= task.max_answer_tokens()


@every_level
def test_corruptions_are_rejected_and_the_first_fault_is_found(c: Case, level: int) -> None:
    task = make(c.spec, level=level)
    for i, problem in enumerate(task.problems("train", 300)):
        wrong = task.corrupt(problem, random.Random(i))
        assert wrong.label in c.labels
        assert wrong.steps[: wrong.step] == problem.steps[: wrong.step]
        assert wrong.steps[wrong.step].text != problem.steps[wrong.step].text
        verdict = task.verify(problem, answered(wrong.answer))
        assert (verdict.value, verdict.status) == (0.0, "wrong"), (problem, wrong)
        found = results(task, problem, wrong.rationale, wrong.answer)
        assert found.index("fail") == wrong.step, (problem, wrong)
        assert found[-1] == "fail"


@every_case
def test_every_label_occurs_and_is_a_function_of_the_generator(c: Case) -> None:
    task = make(c.spec, level=f"1-{make(c.spec).levels[-1]}")
    wrong = [task.corrupt(p, random.Random(i)) for i, p in enumerate(task.problems("train", 800))]
    assert {w.label for w in wrong} == c.labels
    problem = task.problem("train", 0)
    assert task.corrupt(problem, random.Random(4)) == task.corrupt(problem, random.Random(4))


@every_case
@pytest.mark.parametrize("every", [False, True], ids=["level-1", "all-levels"])
def test_no_test_prompt_occurs_in_train_or_validation(c: Case, every: bool) -> None:
    levels = make(c.spec).levels
    task = make(c.spec, level=f"{levels[0]}-{levels[-1]}" if every else levels[0])
    train, validation, test = ({p.prompt for p in task.problems(s, 500)} for s in ("train", "validation", "test"))
    assert not test & train
    assert not test & validation
    assert not train & validation
    assert len(test) >= (1 if "updated" in c.spec else 40)


def test_another_process_makes_the_same_problems() -> None:
    specs = [make(c.spec, level="1-3").spec() for c in CASES]
    code = (
        "import json, sys; sys.path.insert(0, sys.argv[1]); from test_tasks_b import make; "
        "found = [make(s).problems(k, 10, seed=3) for s in sys.argv[2:] for k in ('train', 'test')]; "
        "print(json.dumps([repr(problems) for problems in found]))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, os.path.dirname(__file__), *specs]  # noqa: PTH120
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    here = [repr(make(s).problems(k, 10, seed=3)) for s in specs for k in ("train", "test")]
    assert json.loads(done.stdout) == here


@every_case
def test_positions_levels_and_specs(c: Case) -> None:
    task = make(c.spec, level="1-3")
    assert task.problems("train", 10)[5] == task.problems("train", 1, start=5)[0]
    assert task.problems("train", 5, seed=1) != task.problems("train", 5, seed=2)
    assert {p.level for p in task.problems("train", 60)} == {1, 2, 3}
    assert len({p.id for s in ("train", "validation", "test") for p in task.problems(s, 50)}) == 150
    for one in (make(c.spec), make(c.spec, level=2), task):
        again = make(one.spec())
        assert again.spec() == one.spec()
        assert again.problems("validation", 10) == one.problems("validation", 10)
    for level in (0, 99, "x", "3-1", ""):
        with pytest.raises(WhetError, match="levels"):
            make(c.spec, level=level)


@every_level
def test_transforms_invert_exactly_and_stay_verifiable(c: Case, level: int) -> None:
    task = make(c.spec, level=level)
    assert set(task.transforms()) == c.transforms
    for name, (forward, inverse) in task.transforms().items():
        for problem in task.problems("train", 20):
            moved = forward(problem)
            if not (name == "scaling" and problem.category in ("sentiment", "extract")):
                assert moved.prompt != problem.prompt
            assert inverse(moved) == problem
            assert forward(inverse(problem)) == problem
            assert task.verify(moved, gold(moved)).value == 1.0
            assert set(results(task, moved, moved.rationale)) == {"pass"}
            wrong = task.corrupt(moved, random.Random(0))
            assert results(task, moved, wrong.rationale, wrong.answer).index("fail") == wrong.step
            assert len(moved.rationale.encode()) + len(moved.answer or "") + 16 <= task.max_answer_tokens()


@every_level
def test_steps_and_choices_are_well_formed(c: Case, level: int) -> None:
    task = make(c.spec, level=level)
    for problem in task.problems("train", 100):
        assert problem.plan
        assert not re.search("[0-9]", problem.plan)
        for i, step in enumerate(problem.steps):
            assert step.kind and step.skill and "\n" not in step.text
            assert all(0 <= p < i for p in step.premises)
        assert len(problem.choice_rationales) == len(problem.choices)
        assert bool(problem.choices) == c.choices or "open" in c.spec
        if problem.choices:
            assert problem.answer in problem.choices
            assert len(set(problem.choices)) == len(problem.choices)
            assert all(problem.choice_rationales)


@every_case
def test_capabilities(c: Case) -> None:
    usual = {"verifier", "demonstrations", "unlimited", "rationales", "plans", "corruptions"}
    assert make(c.spec).provides() == (usual | {"choices"} if c.choices else usual)


def test_mixtures_promise_no_choices() -> None:
    for task in (Facts(1), Finance(1)):
        assert any(p.choices for p in task.problems("train", 50))
        assert "choices" not in task.provides()


@every_case
def test_answers_that_must_not_score(c: Case) -> None:
    task = make(c.spec)
    for problem in task.problems("train", 20):
        right = problem.answer or ""
        assert task.verify(problem, answered(f"  {right}\n")).value == 1.0
        for text in (None, "", "  "):
            verdict = task.verify(problem, answered(text))
            assert (verdict.value, verdict.status) == (0.0, "unparseable"), text
        every = " ".join(problem.choices) if len(problem.choices) > 1 else f"{right} or 7"
        for text in (f"1{right}", f"not {right}", f"{right} or 7", every, "zz", f"-1{right}"):
            assert task.verify(problem, answered(text)).value == 0.0, text
        assert task.verify(problem, Response(right, None, problem.rationale)).value == 0.0


@every_case
@pytest.mark.parametrize("junk", ["?", "9" * 9000, "٣" * 40, "so, so. =\n = \n1/0=1\n0/0=0", "x is y."], ids=range(5))
def test_junk_never_breaks_a_check(c: Case, junk: str) -> None:
    task = make(c.spec)
    for problem in task.problems("train", 5):
        for rationale in (junk, *(s.text.replace(s.text.split()[-1], junk) for s in problem.steps)):
            assert "fail" in results(task, problem, rationale)
        assert set(results(task, problem, "")) == {"n.a.", "pass"}
        assert results(task, problem, f"{problem.rationale}\n{problem.steps[-1].text}")[-2:] == ["fail", "pass"]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("facts:form=opn", "did you mean 'open'"),
        ("facts:kind=lookups", "did you mean 'lookup'"),
        ("facts:year=10", "year of the facts task is a whole number from 0 to 9"),
        ("facts:world=x", "world of the facts task"),
        ("facts:only=updated", "needs a year"),
        ("facts:only=updated,year=3,kind=comparison", "needs a year"),
        ("logic:form=choices", "did you mean 'choice'"),
        ("finance:subtask=sums", "did you mean 'sum'"),
    ],
)
def test_mistakes_are_named(spec: str, said: str) -> None:
    with pytest.raises(WhetError, match=said):
        make(spec)


# -- facts -------------------------------------------------------------------------------------------------------------
def test_world_is_one_to_one_and_nested() -> None:
    world, small = World(0), World(0, SIZES[0])
    assert world.people[: SIZES[0]] == small.people
    assert all(small.state(fact, 9) == world.state(fact, 9) for fact in small.facts(SIZES[0]))
    names = (*world.people, *world.towns, *world.countries)
    assert len(set(names)) == len(names)
    assert World(1).people != world.people
    moved = sum(fact[1] == "home" for fact in world.changes) / len(world.people)
    assert abs(moved - MOVING) < 0.04
    for (subject, attribute), change in world.changes.items():
        assert change.old != change.new
        assert world.value(subject, attribute, change.year - 1) == change.old
        assert world.value(subject, attribute, change.year) == change.new


def test_facts_closed_book_splits_by_wording_and_keeps_every_fact_in_train() -> None:
    task = Facts(1, kind="lookup")
    asked = {s: {p.data["facts"] for p in task.problems(s, 3000)} for s in ("train", "validation", "test")}
    assert asked["train"] == asked["validation"] == asked["test"]
    assert len(asked["train"]) == 20 * 5 + 24
    for split, wordings in WORDINGS.items():
        assert {p.data["wording"] for p in task.problems(split, 100)} == set(wordings)
    assert all(len(set(forms)) == 5 for forms in QUESTIONS.values())


def test_facts_open_book_splits_by_question_and_tells_what_is_needed() -> None:
    for level, distractors in ((1, 1), (2, 3), (3, 5), (4, 8)):
        task = Facts(level, form="open")
        asked = [{p.data["question"] for p in task.problems(s, 500)} for s in ("train", "validation", "test")]
        assert not (asked[0] & asked[1] or asked[0] & asked[2] or asked[1] & asked[2])
        for p in task.problems("test", 100):
            needed = {tuple(fact.split(".")) for fact in p.data["facts"]}
            assert needed <= set(p.data["context"])
            assert len(p.data["context"]) == len(needed) + distractors
            assert all(task.world().state(fact) in p.prompt for fact in p.data["context"])


def test_facts_updates() -> None:
    old, new = Facts(3, kind="lookup"), Facts(3, kind="lookup", year=9, only="updated")
    world = new.world()
    problems = new.problems("train", 300)
    for p in problems:
        assert p.data["old_answer"] not in (None, p.answer)
        (fact,) = p.data["facts"]
        change = world.changes[tuple(fact.split("."))]
        assert (change.old, change.new) == (p.data["old_answer"], p.answer)
        before = old.build(p.data["question"], 3)
        assert before.answer == change.old  # the question stays, the answer is another
        assert results(new, p, before.rationale) == ["fail", "pass"]
    told = Facts(3, form="open", kind="lookup", year=9, only="updated").problem("test", 0)
    assert re.search(r"In year [1-9], ", told.prompt)
    assert told.data["old_answer"] in told.prompt and (told.answer or "") in told.prompt
    assert {p.answer for p in Facts(3, kind="lookup", year=1, only="updated").problems("train", 50)} < {
        c.new for c in world.changes.values()
    }


def test_facts_statements_and_documents() -> None:
    task = Facts(1)
    once = list(task.statements())
    assert len(once) == len(set(once)) == 20 * 5 + 24
    assert list(task.statements(40, seed=1)) != once[:40]
    twice = list(task.statements(248, seed=2))
    facts = list(task.world().facts(20))
    wordings = {fact: {task.world().state(fact, 0, w) for w in (0, 1)} for fact in facts}
    assert all(sum(s in forms for s in twice) == 2 for forms in wordings.values())
    pages = task.documents()
    for p in task.problems("train", 100):
        for step in p.steps[: len(p.data["documents"])]:
            assert any(step.text in pages[d] for d in p.data["documents"])


def test_facts_checks_name_the_fault() -> None:
    task = Facts(1, kind="twohop")
    world = task.world()
    person = world.people[0]
    town, country = world.value(person, "home"), world.value(world.value(person, "home"), "country")
    problem = task.build(("twohop", person, "home", "country"), 1)
    assert problem.prompt == f"In which country is the town where {person} lives?"
    assert problem.rationale == f"{person} lives in {town}.\n{town} is in {country}."
    assert results(task, problem, f"The home of {person} is {town}.\n{town} is in {country}.") == ["pass"] * 3
    other = next(t for t in world.towns if world.value(t, "country") != country)
    wrong = f"{person} lives in {other}.\n{other} is in {world.value(other, 'country')}."
    assert results(task, problem, wrong, "x") == ["fail", "pass", "fail"]
    assert results(task, problem, f"{person} lives in {town}.\n{other} is in {country}.") == ["pass", "fail", "pass"]
    assert results(task, problem, f"{town} is in {country}.") == ["pass", "n.a.", "pass"]


# -- logic -------------------------------------------------------------------------------------------------------------
def test_logic_pinned() -> None:
    problem = Logic(1).build((1, 1, 0, 0, 0, 0), 1)
    assert problem.prompt == "If b then a. If c then not a. b is true. Is a true?"
    assert (problem.rationale, problem.answer) == ("b is true.\nb, so a.", "yes")
    assert problem.choice_rationales == ("b is true.\nb, so a.", "not a needs c.\nc is not given.")
    assert problem.data["support"] == (0, 2)
    french = Logic(1).transforms()["language"][0](problem)
    assert (french.prompt, french.answer) == ("Si b alors a. Si c alors non a. b est vrai. a est-il vrai ?", "oui")
    renamed = Logic(1).transforms()["rename"][0](problem)
    assert renamed.prompt == "If o then n. If p then not n. o is true. Is n true?"


@pytest.mark.parametrize("form", ["yesno", "choice"])
@pytest.mark.parametrize("level", LEVELS)
def test_logic_answers_follow_from_the_text_alone(form: str, level: int) -> None:
    """An independent forward chainer that reads the prompt."""
    problems = Logic(level, form).problems("train", 400)
    for p in problems:
        rules = re.findall(r"If ((?:not )?[a-z]) then ((?:not )?[a-z])\.", p.prompt)
        (known,) = re.findall(r"(?<![a-z] )\b([a-z]) is true\.", p.prompt)
        held = {known}
        while new := {b for a, b in rules if a in held} - held:
            held |= new
        if form == "choice":
            answers = held & set(p.choices)
        else:
            asked = p.prompt.split()[-2]
            answers = {"yes"} if asked in held else {"no"} if f"not {asked}" in held else {"unknown"}
        assert answers == {p.answer}, p
        assert not any(f"not {x}" in held for x in held)
        assert len(p.choices) == (LEVELS[level][2] if form == "choice" else 2 + LEVELS[level][1])
        sentences = re.findall(r"[^.?]+[.?]", p.prompt)
        support = {sentences[i].strip() for i in p.data["support"]}
        for step in p.steps:  # the sentences named as support are those that the rationale uses
            if step.kind == "apply":
                assert "If {} then {}".format(*step.text[:-1].split(", so ")) + "." in support
    shares = [sum(p.answer == a for p in problems) / len(problems) for a in ("yes", "no", "unknown")]
    if form == "yesno":
        kinds = 2 + LEVELS[level][1]
        assert all(abs(share - 1 / kinds) < 0.09 for share in shares[:kinds])
    else:
        assert abs(sum(p.choices.index(p.answer or "") == 0 for p in problems) / 400 - 1 / LEVELS[level][2]) < 0.09


def test_logic_checks_name_the_fault() -> None:
    task = Logic(2)
    problem = task.build((2, 2, 0, 0, 0, 0), 2)
    assert problem.prompt == "If b then c. If c then a. If d then e. If e then not a. b is true. Is a true?"
    assert results(task, problem, "b is true.\nb, so c.\nc, so a.") == ["pass"] * 4
    assert results(task, problem, "b is true.\nc, so a.") == ["pass", "fail", "n.a.", "pass"]
    assert results(task, problem, "d is true.\nd, so e.\ne, so not a.", "no") == ["fail", "pass", "pass", "fail"]
    assert results(task, problem, "b is true.\nNo rule uses b.") == ["pass", "fail", "n.a.", "pass"]
    assert results(task, problem, "b is true.\nb is true.\nb, so c.") == ["pass", "fail", "pass", "pass"]


# -- finance -----------------------------------------------------------------------------------------------------------
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
    assert results(task, change, slip, "27.5%") == ["pass", "pass", "fail", "pass", "pass", "fail"]
    base = "sales 2019 = 40\nsales 2020 = 50\n50-40=10\n100*10=1000\n1000/50=20"
    assert results(task, change, base, "20%") == ["pass", "pass", "pass", "pass", "fail", "fail"]
