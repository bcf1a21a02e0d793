"""The contract of generated tasks as a matrix: a new task is one more line in CASES.

What is special to a task is pinned in its own file beside this one.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from task_tools import answered, gold, judged, results, said

from whet.errors import WhetError
from whet.tasks import Procedural, Response, get_task
from whet.tasks.traced import Traced

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Case:
    """One task, or one of its variants.

    Attributes:
        spec: without a level.
        labels: of its corruptor, over all levels.
        transforms: their names.
        choices: whether every problem has some; None where only some problems do.
        parts: names that may be among a verdict's parts.
        every_label: whether each level from the second on shows all labels.
        chain: each step rests on the one before it.
        free: any text is an answer that can be read.
        pool: problems drawn of each split of a level, and the fewest different prompts in train and in test.
    """

    spec: str
    labels: frozenset[str]
    transforms: frozenset[str]
    choices: bool | None = False
    parts: frozenset[str] = frozenset()
    every_label: bool = True
    chain: bool = False
    free: bool = False
    pool: tuple[int, int, int] = (500, 40, 40)

    def at(self, level: object) -> Any:
        task = get_task(self.spec if level is None else f"{self.spec}{',' if ':' in self.spec else ':'}level={level}")
        assert isinstance(task, Procedural)
        return task

    @property
    def levels(self) -> tuple[int, ...]:
        return get_task(self.spec).levels

    @property
    def all(self) -> Any:
        return self.at(f"{self.levels[0]}-{self.levels[-1]}")


def case(spec: str, labels: str, transforms: str, *, parts: str = "", **more: Any) -> Case:
    return Case(
        spec, *(frozenset(names.split()) for names in (labels, transforms)), parts=frozenset(parts.split()), **more
    )


RUNNING: dict[str, Any] = {"chain": True, "pool": (2000, 5, 5)}  # of a running value
TRACED: dict[str, Any] = {"pool": (400, 301, 151)}
READ: dict[str, Any] = {"every_label": False, "free": True}  # answers are words
LISTS = "compare parity membership tally arithmetic copy skip lose order shift"
DRESS = "paraphrase filler"
CASES = [
    case("chain-sum", "arithmetic carry copy skip", f"{DRESS} scaling", **RUNNING),
    case("word-problem", "arithmetic copy operation skip", f"{DRESS} language", **RUNNING),
    case("word-problem:lang=fr", "arithmetic copy operation skip", f"{DRESS} language", **RUNNING),
    case("word-problem:lang=mixed", "arithmetic copy operation skip", f"{DRESS} language", **RUNNING),
    case("sort", "swap drop duplicate", DRESS, parts="positions", **RUNNING),
    case("mod-chain", "arithmetic copy operator skip", f"{DRESS} rename", **TRACED),
    case("countdown", "arithmetic reuse invent target", f"{DRESS} order", parts="uses value", **TRACED),
    case("countdown:trace=search", "arithmetic reuse invent target", f"{DRESS} order", parts="uses value", **TRACED),
    case(
        "boxes",
        "lookup stale skip half copy",
        f"{DRESS} rename order",
        choices=True,
        parts="precision recall",
        **TRACED,
    ),
    case("lists", LISTS, f"{DRESS} scaling", parts="positions", **TRACED),
    case("lists:skill=sum", "arithmetic copy skip", f"{DRESS} scaling", parts="positions", **TRACED),
    case("solutions", "arithmetic copy operator skip", f"{DRESS} scaling", parts="executed stated", **TRACED),
    case("solutions:style=program", "copy operator skip", f"{DRESS} scaling", parts="executed stated", **TRACED),
    case("solutions:style=steps", "arithmetic copy operator skip", f"{DRESS} scaling", **TRACED),
    case("solutions:style=prose", "arithmetic copy operator skip", f"{DRESS} scaling", **TRACED),
    case("facts:kind=lookup", "value subject relation", "paraphrase", **READ),
    case("facts:kind=twohop", "value subject relation", "paraphrase", **READ),
    case("facts:kind=comparison", "value subject compare", "paraphrase", choices=True, **READ),
    case("facts:form=open", "value subject relation compare", "paraphrase", choices=None, **READ),
    case("facts:form=open,year=9,only=updated", "value subject relation stale", "paraphrase", pool=(500, 1, 1), **READ),
    case("logic", "fact rule negation stop", f"{DRESS} language rename reorder", choices=True, **READ),
    case("logic:form=choice", "fact rule", f"{DRESS} language rename reorder", choices=True, **READ),
    case("clues", "keeper food", "paraphrase", choices=True, **READ),
    case("clues:cue=reversed,sound=1", "keeper food", "paraphrase", choices=True, **READ),
    case("finance:subtask=lookup", "cell copy", f"{DRESS} scaling", **READ),
    case("finance:subtask=compare", "cell copy compare", f"{DRESS} scaling", choices=True, **READ),
    case("finance:subtask=sum", "copy arithmetic", f"{DRESS} scaling", **READ),
    case("finance:subtask=change", "cell copy arithmetic swap base", f"{DRESS} scaling", **READ),
    case("finance:subtask=ratio", "cell copy arithmetic swap", f"{DRESS} scaling", **READ),
    case("finance:subtask=interest", "copy arithmetic", f"{DRESS} scaling", **READ),
    case("finance:subtask=sentiment", "cue turn aside", f"{DRESS} scaling", choices=True, **READ),
    case("finance:subtask=extract", "role copy deal", f"{DRESS} scaling", **READ),
]
LEVELLED = [pytest.param(c, n, id=f"{c.spec}-{n}") for c in CASES for n in c.levels]
every_case = pytest.mark.parametrize("c", CASES, ids=lambda c: c.spec)
every_level = pytest.mark.parametrize(("c", "level"), LEVELLED)
# the smallest levels, where splits could run out of problems; a traced task's levels differ in kind
first_levels = pytest.mark.parametrize(
    ("c", "level"), [p for p in LEVELLED if p.values[1] == 1 or isinstance(p.values[0].at(None), Traced)]
)
every_traced = pytest.mark.parametrize("c", [c for c in CASES if isinstance(c.at(None), Traced)], ids=lambda c: c.spec)


def digest() -> str:
    """All that is made from a seed: problems, and corruptions."""
    made = [c.all.problems(split, 20, seed=3) for c in CASES for split in ("train", "test")]
    wrong = [c.all.corrupt(c.all.problem("train", 1), random.Random(2)) for c in CASES]
    return hashlib.sha256(repr((made, wrong)).encode()).hexdigest()


# -- gold and wrong rationales -----------------------------------------------------------------------------------------
@every_level
def test_gold_scores_one_passes_every_check_and_fits_the_budget(c: Case, level: int) -> None:
    task = c.at(level)
    budget = task.max_answer_tokens()
    for p in task.problems("train", 300):
        verdict = task.verify(p, gold(p))
        assert (verdict.value, verdict.status, verdict.reason) == (1.0, "ok", ""), (p, verdict)
        assert verdict.parts.keys() <= c.parts and bool(verdict.parts) <= bool(c.parts)
        assert task.verify(p, said(p.answer)).value == 1.0  # without its rationale too
        checks = task.check(p, gold(p))
        assert [check.result for check in checks] == ["pass"] * (len(p.steps) + 1), (p, checks)
        assert len(p.rationale.encode()) + len((p.answer or "").encode()) + 16 <= budget
        if isinstance(task, Traced):
            assert len(p.plan) + len(p.rationale) + len(p.answer or "") + 8 <= budget


@every_level
def test_problems_are_well_formed(c: Case, level: int) -> None:
    for p in c.at(level).problems("train", 300):
        assert p.plan and not re.search("[0-9]", p.plan)
        assert p.category
        for i, step in enumerate(p.steps):
            assert step.kind and step.skill and "\n" not in step.text
            assert list(step.premises) == sorted({*step.premises})
            assert all(0 <= q < i for q in step.premises)
            assert not c.chain or step.premises == ((i - 1,) if i else ())
        assert c.choices is None or bool(p.choices) == c.choices
        assert len(p.choice_rationales) == len(p.choices) == len({*p.choices})
        assert all(p.choice_rationales)
        assert not p.choices or p.answer in p.choices


@every_level
def test_corruptions_are_rejected_and_checks_find_the_first_fault(c: Case, level: int) -> None:
    task = c.at(level)
    seen = set()
    for i, p in enumerate(task.problems("train", 300)):
        wrong = task.corrupt(p, random.Random(i))
        seen.add(wrong.label)
        assert wrong.rationale != p.rationale
        assert wrong.steps[: wrong.step] == p.steps[: wrong.step]
        assert wrong.steps[wrong.step].text != p.steps[wrong.step].text
        response = said(wrong.answer, wrong.rationale)
        for given in (response, answered(wrong.answer)):
            verdict = task.verify(p, given)
            assert (verdict.value, verdict.status) == (0.0, "wrong"), (p, wrong, verdict)
        checks = task.check(p, response)
        failed = [k for k, check in enumerate(checks) if check.result == "fail"]
        assert failed[0] == wrong.step, (p, wrong, checks)
        assert checks[-1].result == "fail" and checks[-1].name == "answer"
        if isinstance(task, Traced):
            assert checks[wrong.step].reason.startswith(f"{wrong.label}: "), (wrong, checks[wrong.step])
            assert len(checks) > len(p.steps)
            if wrong.label in ("arithmetic", "copy", "operator") and task.name in ("mod-chain", "solutions"):
                assert failed == [wrong.step, len(checks) - 1]  # what is built on the error is not blamed again
    assert seen <= c.labels
    if c.every_label and level > 1:
        assert seen == c.labels


@every_case
def test_every_label_occurs_and_a_corruption_is_a_function_of_the_generator(c: Case) -> None:
    task = c.all
    assert {task.corrupt(p, random.Random(i)).label for i, p in enumerate(task.problems("train", 800))} == c.labels
    for problem in (task.problem("train", 0), c.at(2).problem("train", 0)):
        assert task.corrupt(problem, random.Random(4)) == task.corrupt(problem, random.Random(4))
        made = {task.corrupt(problem, random.Random(i)).rationale for i in range(30)}
        assert c.free or len(made) > 5  # a comparison of two cells has few


# -- seeds, splits, levels ---------------------------------------------------------------------------------------------
@first_levels
def test_splits_are_disjoint_and_large_enough(c: Case, level: int) -> None:
    n, train, test = c.pool
    task = c.at(level)
    prompts = {s: {p.prompt for p in task.problems(s, n)} for s in SPLITS}
    assert not prompts["train"] & (prompts["validation"] | prompts["test"])
    assert not prompts["validation"] & prompts["test"]
    assert len(prompts["train"]) >= train and len(prompts["test"]) >= test


@every_case
def test_splits_are_disjoint_over_all_levels(c: Case) -> None:
    n, _, test = c.pool
    prompts = {s: {p.prompt for p in c.all.problems(s, n)} for s in SPLITS}
    assert not prompts["train"] & (prompts["validation"] | prompts["test"])
    assert not prompts["validation"] & prompts["test"]
    assert len(prompts["test"]) >= test


def test_another_process_makes_the_same_problems_and_corruptions() -> None:
    here = Path(__file__)
    environment = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": os.pathsep.join([str(here.parent), *sys.path])}
    command = [sys.executable, "-c", f"from {here.stem} import digest; print(digest())"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == digest()


@every_case
def test_a_position_does_not_depend_on_the_others(c: Case) -> None:
    task = c.at("1-3")
    assert task.problems("train", 10)[5] == task.problems("train", 1, start=5)[0]
    assert task.problems("train", 5, seed=1) != task.problems("train", 5, seed=2)
    assert len({p.id for split in SPLITS for p in task.problems(split, 50)}) == 150


@every_case
def test_levels_and_specs(c: Case) -> None:
    mixed = c.at("1-3")
    assert {p.level for p in mixed.problems("train", 60)} == {1, 2, 3}
    for task in (c.at(None), c.at(2), mixed):
        again = get_task(task.spec())
        assert again.spec() == task.spec()
        assert again.problems("validation", 10) == task.problems("validation", 10)
    for level in (0, 99, "x", "3-1", "2-99", ""):
        with pytest.raises(WhetError, match="levels"):
            c.at(level)


@every_case
def test_what_a_task_says_of_itself(c: Case) -> None:
    task = c.at(None)
    assert task.description and "\n" not in task.description
    usual = {"verifier", "demonstrations", "unlimited", "rationales", "plans", "corruptions"}
    assert task.provides() == usual | ({"choices", "choice rationales"} if c.choices else set())


@every_traced
def test_ids_specs_and_data_sheets_name_the_options(c: Case) -> None:
    name, _, options = c.spec.partition(":")
    assert c.at(None).spec() == c.spec
    assert c.at("1-3").spec() == f"{name}:level=1-3" + (f",{options}" if options else "")
    p = c.at(2).problem("test", 7, seed=1)
    assert p.id == f"{name}/1/test/1/2/7" + (f"/{options}" if options else "")
    assert (p.task, p.level) == (name, 2)
    for word in ("Tests:", "Levels:", "Verifier:", "Errors:", "Rationales:" if name == "lists" else "Skills:"):
        assert word in c.at(None).datasheet


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mod-chain:level=9", "levels 1 to 6"),
        ("countdown:trace=serch", "did you mean 'search'"),
        ("boxes:boxes=2", "3 to 9 boxes"),
        ("lists:skill=sorted", "did you mean 'sort'"),
        ("solutions:style=poem", "unknown style"),
        ("word-problem:lang=de", "language"),
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
def test_wrong_options_are_named(spec: str, message: str) -> None:
    with pytest.raises(WhetError, match=message):
        get_task(spec)


# -- transforms --------------------------------------------------------------------------------------------------------
@every_level
def test_transforms_invert_exactly_and_stay_verifiable(c: Case, level: int) -> None:
    task = c.at(level)
    assert set(task.transforms()) == c.transforms
    for name, (forward, inverse) in task.transforms().items():
        for p in task.problems("train", 40):
            q = forward(p)
            if not (name == "scaling" and p.category in ("sentiment", "extract")):  # without amounts of money
                assert q.prompt != p.prompt, (name, p)
            assert q.id == p.id
            assert inverse(q) == p and forward(inverse(p)) == p, (name, p)
            assert task.verify(q, gold(q)).value == 1.0
            assert results(task, q, gold(q)) == ["pass"] * (len(q.steps) + 1), (name, q)
            wrong = task.corrupt(q, random.Random(0))
            assert task.verify(q, answered(wrong.answer)).value == 0.0
            assert judged(task, q, wrong.rationale, wrong.answer).index("fail") == wrong.step


@every_level
def test_transformed_answers_fit_the_budget(c: Case, level: int) -> None:
    task = c.at(level)
    budget = task.max_answer_tokens()
    for forward, _ in task.transforms().values():
        for p in task.problems("train", 300 if c.chain else 40):
            q = forward(p)
            assert len(q.rationale.encode()) + len((q.answer or "").encode()) + 16 <= budget
            if isinstance(task, Traced):
                assert len(q.plan) + len(q.rationale) + len(q.answer or "") + 16 <= budget


@every_level
def test_transforms_combine(c: Case, level: int) -> None:
    task = c.at(level)
    pairs = list(task.transforms().values())
    for p in task.problems("train", 10):
        moved = p
        for forward, _ in pairs:
            moved = forward(moved)
        for undone in (pairs, pairs[::-1]):  # they move different fields, so any order undoes them
            back = moved
            for _, inverse in undone:
                back = inverse(back)
            assert back == p


@every_traced
def test_transforms_carry_a_given_answer_and_never_the_gold_one(c: Case) -> None:
    task = c.at(2)
    p = task.problem("train", 5)
    for forward, inverse in task.transforms().values():
        q = forward(p)
        assert inverse(replace(q, answer="no idea")).answer == "no idea"
        assert inverse(replace(q, answer=q.answer)).answer == p.answer


# -- hostile answers and rationales ------------------------------------------------------------------------------------
@every_level
def test_answers_that_must_not_score(c: Case, level: int) -> None:
    task = c.at(level)
    for p in task.problems("train", 20 if level == c.levels[0] else 2):
        right = p.answer or ""
        assert task.verify(p, answered(f"  {right}\n")).value == 1.0
        for text in (None, "", "  ", *(() if c.free else ("none", "?", "I cannot say"))):
            for response in (answered(text), said(text)):
                verdict = task.verify(p, response)
                assert (verdict.value, verdict.status) == (0.0, "unparseable"), text
        other = "8" if right == "7" else "7"
        every = " ".join(p.choices) if len(p.choices) > 1 else "zz"
        beside = (f"{right} {other}", f"{other}, {right}", f"{right} or {other}", f"not {right}", every)
        changed = [f"1{right}", f"-1{right}"]
        if not re.search(r"(^| )0$|\.", right):  # 00 and -0 are 0, and 1.250 is 1.25
            changed += [f"{right}0", f"-{right}"]
        for text in (*changed, *beside, "zz"):
            assert task.verify(p, answered(text)).value == 0.0, text
        # the rationale is not the answer
        assert task.verify(p, Response(right, None, p.rationale)).value == 0.0


JUNK = ["?", "9" * 9000, "٣" * 40, "so, so. =\n = \n1/0=1\n0/0=0", "x is y.", ":\nA: , \nswap A B: A,\n, : ,"]


@every_case
@pytest.mark.parametrize("junk", JUNK, ids=range(len(JUNK)))
def test_junk_never_breaks_a_check(c: Case, junk: str) -> None:
    task = c.at(None)
    for p in task.problems("train", 5):
        n = len(p.steps)
        for rationale in (junk, *(s.text.replace(s.text.split()[-1], junk) for s in p.steps)):
            found = judged(task, p, rationale)
            # a running value is looked for in the text, so that junk may hold no step at all
            assert ("fail" in found) or (c.chain and "n.a." in found), rationale
        assert judged(task, p, "") == ["n.a."] * n + ["pass"]
        assert results(task, p, said(None)) == ["n.a."] * n + ["fail"]
        if task.name not in ("mod-chain", "countdown", "boxes"):  # which may say a true thing twice
            assert judged(task, p, f"{p.rationale}\n{p.steps[-1].text}")[-2:] == ["fail", "pass"]


@every_traced
def test_what_follows_an_unreadable_step_is_not_judged(c: Case) -> None:
    task = c.at(2)
    p = task.problem("train", 0)
    assert judged(task, p, "hm\n" + p.rationale) == ["fail"] + ["n.a."] * len(p.steps) + ["pass"]
