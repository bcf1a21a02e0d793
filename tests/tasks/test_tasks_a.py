"""mod-chain, countdown, boxes, lists, solutions: the contract as a matrix, then what is particular to each."""

from __future__ import annotations

import hashlib
import itertools
import random
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from whet.errors import WhetError
from whet.tasks.boxes import Boxes
from whet.tasks.countdown import Countdown, evaluate
from whet.tasks.lists import SKILLS, Lists
from whet.tasks.mod_chain import ModChain
from whet.tasks.problem import Problem, Response
from whet.tasks.solutions import STYLES, Solutions, run_program, style_of
from whet.tasks.traced import Traced, Unreadable

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Case:
    """A task class with options, the labels of its corruptor above level 1, its transforms beside the common two."""

    make: type[Traced]
    options: tuple[tuple[str, str], ...]
    labels: frozenset[str]
    transforms: frozenset[str]

    def at(self, level: int | str | None) -> Any:
        return self.make(level, **dict(self.options))

    def __str__(self) -> str:
        return self.at(None).spec()


def case(make: type[Traced], labels: str, transforms: str, **options: str) -> Case:
    return Case(make, tuple(options.items()), frozenset(labels.split()), frozenset(transforms.split()))


LISTS = "compare parity membership tally arithmetic copy skip lose order shift"
CASES = [
    case(ModChain, "arithmetic copy operator skip", "rename"),
    case(Countdown, "arithmetic reuse invent target", "order"),
    case(Countdown, "arithmetic reuse invent target", "order", trace="search"),
    case(Boxes, "lookup stale skip half copy", "rename order"),
    case(Lists, LISTS, "scaling"),
    case(Lists, "arithmetic copy skip", "scaling", skill="sum"),
    case(Solutions, "arithmetic copy operator skip", "scaling"),
    case(Solutions, "copy operator skip", "scaling", style="program"),
    case(Solutions, "arithmetic copy operator skip", "scaling", style="steps"),
    case(Solutions, "arithmetic copy operator skip", "scaling", style="prose"),
]
every_case = pytest.mark.parametrize("c", CASES, ids=str)
LEVELLED = [pytest.param(c, n, id=f"{c}-{n}") for c in CASES for n in c.make.levels]
every_level = pytest.mark.parametrize(("c", "level"), LEVELLED)


def gold(p: Problem) -> Response:
    return Response(f"{p.rationale}\n{p.answer}", p.answer, p.rationale)


def said(answer: str | None, rationale: str = "") -> Response:
    return Response(f"{rationale}\n{answer or ''}", answer, rationale)


def results(task: Traced, p: Problem, response: Response) -> list[str]:
    return [c.result for c in task.check(p, response)]


def digest() -> str:
    made = [c.at("1-5").problems(split, 15, seed=3) for c in CASES for split in ("train", "test")]
    wrong = [c.at(3).corrupt(c.at(3).problem("train", 1), random.Random(2)) for c in CASES]
    return hashlib.sha256(repr((made, wrong)).encode()).hexdigest()


# -- the contract ------------------------------------------------------------------------------------------------------
@every_level
def test_gold_is_right_complete_and_within_the_budget(c: Case, level: int) -> None:
    task = c.at(level)
    budget = task.max_answer_tokens()
    for p in task.problems("train", 300):
        verdict = task.verify(p, gold(p))
        assert (verdict.value, verdict.status) == (1.0, "ok"), (p, verdict)
        assert task.verify(p, said(p.answer)).value == 1.0  # without its rationale too
        assert results(task, p, gold(p)) == ["pass"] * (len(p.steps) + 1), (p, task.check(p, gold(p)))
        assert len(p.plan) + len(p.rationale) + len(p.answer or "") + 8 <= budget
        assert p.plan and not re.search(r"\d", p.plan)
        assert p.category
        for i, step in enumerate(p.steps):
            assert step.kind and step.skill and "\n" not in step.text
            assert list(step.premises) == sorted({*step.premises})
            assert all(0 <= q < i for q in step.premises)
        if p.choices:
            assert p.answer in p.choices and len({*p.choices}) == len(p.choices) == len(p.choice_rationales)


@every_level
def test_corruptions_are_rejected_and_checks_find_the_step_and_its_label(c: Case, level: int) -> None:
    task = c.at(level)
    seen: set[str] = set()
    for i, p in enumerate(task.problems("train", 300)):
        wrong = task.corrupt(p, random.Random(i))
        seen.add(wrong.label)
        assert wrong.steps[: wrong.step] == p.steps[: wrong.step]
        assert wrong.steps[wrong.step].text != p.steps[wrong.step].text
        response = said(wrong.answer, wrong.rationale)
        verdict = task.verify(p, response)
        assert (verdict.value, verdict.status) == (0.0, "wrong"), (p, wrong, verdict)
        checks = task.check(p, response)
        failed = [k for k, check in enumerate(checks) if check.result == "fail"]
        assert failed[0] == wrong.step, (p, wrong, checks)
        assert checks[wrong.step].reason.startswith(f"{wrong.label}: "), (wrong, checks[wrong.step])
        assert checks[-1].result == "fail" and len(checks) > len(p.steps)
        if wrong.label in ("arithmetic", "copy", "operator") and c.make in (ModChain, Solutions):
            assert failed == [wrong.step, len(checks) - 1]  # what is built on the error is not blamed again
    assert seen <= c.labels
    if level > 1:
        assert seen == c.labels


@every_case
def test_corruption_is_a_function_of_the_generator(c: Case) -> None:
    task = c.at(2)
    p = task.problem("train", 0)
    assert task.corrupt(p, random.Random(4)) == task.corrupt(p, random.Random(4))
    assert len({task.corrupt(p, random.Random(i)).rationale for i in range(30)}) > 5


@every_level
def test_splits_are_disjoint_and_large_enough(c: Case, level: int) -> None:
    task = c.at(level)
    splits = {s: {p.prompt for p in task.problems(s, 400)} for s in ("train", "validation", "test")}
    assert not splits["train"] & (splits["validation"] | splits["test"])
    assert not splits["validation"] & splits["test"]
    assert len(splits["train"]) > 300 and len(splits["test"]) > 150


def test_another_process_makes_the_same_problems_and_corruptions() -> None:
    code = "from tests.tasks.test_tasks_a import digest; print(digest())"
    environment = {"PYTHONHASHSEED": "77", "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == digest()


@every_level
def test_transforms_invert_and_keep_gold_right(c: Case, level: int) -> None:
    task = c.at(level)
    transforms, budget = task.transforms(), task.max_answer_tokens()
    assert transforms.keys() == {"paraphrase", "filler", *c.transforms}
    for p in task.problems("train", 40):
        for name, (forward, inverse) in transforms.items():
            q = forward(p)
            assert q.prompt != p.prompt and q.id == p.id, (name, p)
            assert inverse(q) == p and forward(inverse(p)) == p, (name, p)
            assert len(q.plan) + len(q.rationale) + len(q.answer or "") + 16 <= budget, (name, q)
            assert results(task, q, gold(q)) == ["pass"] * (len(q.steps) + 1), (name, q)
        (first, back), (second, undo) = transforms["filler"], transforms[min(c.transforms)]
        assert back(undo(second(first(p)))) == p


@every_case
def test_transforms_carry_a_given_answer_and_never_the_gold_one(c: Case) -> None:
    task = c.at(2)
    p = task.problem("train", 5)
    for forward, inverse in task.transforms().values():
        q = forward(p)
        assert inverse(replace(q, answer="no idea")).answer == "no idea"
        assert inverse(replace(q, answer=q.answer)).answer == p.answer


@every_case
def test_unparseable_is_not_wrong(c: Case) -> None:
    task = c.at(2)
    p = task.problem("train", 0)
    for answer in (None, "", "  ", "I cannot say"):
        verdict = task.verify(p, said(answer))
        assert (verdict.value, verdict.status) == (0.0, "unparseable"), (answer, verdict)
    n = len(p.steps)
    assert results(task, p, said(None)) == ["n.a."] * n + ["fail"]
    garbled = said(p.answer, "hm\n" + p.rationale)
    assert results(task, p, garbled) == ["fail"] + ["n.a."] * n + ["pass"]


@every_case
def test_spec_id_and_datasheet(c: Case) -> None:
    options = ",".join(f"{k}={v}" for k, v in c.options if v != "mixed")
    assert c.at(None).spec() == c.make.name + (f":{options}" if options else "")
    assert c.at("1-3").spec() == f"{c.make.name}:level=1-3" + (f",{options}" if options else "")
    p = c.at(2).problem("test", 7, seed=1)
    assert p.id == f"{c.make.name}/1/test/1/2/7" + (f"/{options}" if options else "")
    assert (p.task, p.level) == (c.make.name, 2)
    assert c.make.description and "\n" not in c.make.description
    for word in ("Tests:", "Levels:", "Verifier:", "Errors:", "Skills:" if c.make is not Lists else "Rationales:"):
        assert word in c.make.datasheet
    provided = {"verifier", "demonstrations", "unlimited", "rationales", "plans", "corruptions"}
    assert c.at(None).provides() == provided | ({"choices"} if c.make is Boxes else set())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ModChain(level=9), "levels 1 to 6"),
        (lambda: Countdown(trace="serch"), "did you mean 'search'"),
        (lambda: Boxes(boxes=2), "3 to 9 boxes"),
        (lambda: Lists(skill="sorted"), "did you mean 'sort'"),
        (lambda: Solutions(style="poem"), "unknown style"),
    ],
)
def test_wrong_options_are_refused(make: Any, message: str) -> None:
    with pytest.raises(WhetError, match=message):
        make()


# -- mod-chain ---------------------------------------------------------------------------------------------------------
CHAIN = {
    "modulus": 7,
    "assignments": {"a": "3", "b": "a*4+2", "c": "b-a"},
    "given": "a",
    "solve": ("b", "c"),
    "wording": 0,
    "filler": 0,
}


def test_mod_chain_by_hand() -> None:
    task = ModChain()
    p = task.word(CHAIN, 2)
    assert p.prompt == "mod 7. a=3. b=a*4+2. c=b-a. c?"
    assert p.rationale == "b=3*4+2=0\nc=0-3=4" and p.answer == "4"
    assert p.data["hard"] == ((8, 9), (16, 17))
    assert [s.premises for s in p.steps] == [(), (0,)]
    assert p.plan == "find b, then c"
    lines = {
        "b=3*4+2=0\nc=0-3=4": ("", ""),
        "b=3*4+2=1\nc=1-3=5": ("arithmetic", ""),
        "b=3*4+2=14\nc=14-3=4": ("arithmetic", ""),  # not reduced
        "b=3*5+2=3\nc=3-3=0": ("copy", ""),
        "b=3*4-2=3\nc=3-3=0": ("operator", ""),
        "c=2-3=6": ("skip", None),
        "b=3*4+2=0\nc=0-3=4\nd=1+1=2": ("", "", "format"),
    }
    for rationale, labels in lines.items():
        reasons = [c.reason.partition(":")[0] for c in task.check(p, said("4", rationale))[:-1]]
        assert [r for r in reasons if r != "no such step"] == [x for x in labels if x is not None], rationale


def test_mod_chain_hard_spans_are_the_results_and_splits_ignore_names() -> None:
    task = ModChain("3-5")
    for p in task.problems("train", 100):
        for (start, end), step in zip(p.data["hard"], p.steps, strict=True):
            assert p.rationale[start:end] == step.text.rpartition("=")[2]
    level = ModChain(1)

    def bare(p: Problem) -> tuple[str, ...]:
        names = {x: str(i) for i, x in enumerate(p.data["assignments"])}
        return tuple(re.sub("[a-z]", lambda m: names[m[0]] + "v", e) for e in p.data["assignments"].values())

    assert not {bare(p) for p in level.problems("train", 1500)} & {bare(p) for p in level.problems("test", 300)}


def test_mod_chain_answers_follow_from_the_prompt_alone() -> None:
    for p in ModChain("1-5").problems("test", 100):
        modulus, *assignments, asked = re.findall(r"mod (\d+)|([a-z])=([^ ]+)\.|([a-z])\?", p.prompt)
        todo = {name: text for _, name, text, _ in assignments}
        values: dict[str, int] = {}
        while todo:  # in whatever order works
            name = next(x for x, e in todo.items() if {*re.findall("[a-z]", e)} <= values.keys())
            values[name] = eval(todo.pop(name), {}, dict(values)) % int(modulus[0])
        assert p.answer == str(values[asked[3]])


# -- countdown ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "value"),
    [("6*3+7", 25), ("7 + 3 * 6", 25), ("(2+3)*5", 25), ("2-(3-7)", 6), ("7/2*2", 7), ("8/(3-8/3)", 24), ("((4))", 4),
     ("1-2-3", -4), ("8/4/2", 1), ("3/(2-2)", None), ("1/(3/(2-2))", None)],
)  # fmt: skip
def test_expressions(text: str, value: int | None) -> None:
    assert evaluate(text)[0] == (None if value is None else Fraction(value))


@pytest.mark.parametrize(
    "text",
    ["", "6**3", "-6+3", "6 3", "(6+3", "6+3)", "6+", "abs(6)", "6//2", "1e3", "0x1f", "6%4", "__import__('os')",
     "6*3;7", "1234567", "()", "6,3", "(" * 150 + "6" + ")" * 150, "٣+3", "6^2", "lambda: 6"],
)  # fmt: skip
def test_other_text_is_no_expression(text: str) -> None:
    with pytest.raises(Unreadable):
        evaluate(text)


def test_expressions_agree_with_python() -> None:
    rng = random.Random(0)

    def grow(depth: int) -> str:
        if depth == 0 or rng.random() < 0.3:
            return str(rng.randint(1, 30))
        inner = f"{grow(depth - 1)}{rng.choice('+-*/')}{grow(depth - 1)}"
        return f"({inner})" if rng.random() < 0.5 else inner

    for _ in range(300):
        text = grow(3)
        exact = re.sub(r"\d+", lambda m: f"Fraction({m[0]})", text)
        try:
            expected = eval(exact, {"Fraction": Fraction})
        except ZeroDivisionError:
            expected = None
        value, used = evaluate(text)
        assert value == expected and used == [int(n) for n in re.findall(r"\d+", text)], text


def test_countdown_accepts_any_right_expression_and_no_other() -> None:
    task = Countdown(3)
    path = ((6, "*", 3), (18, "+", 7))
    p = task.build(((2, 3, 6, 7), 25, path), 3)
    assert p.prompt == "make 25 from 2 3 6 7."
    assert p.rationale == "6*3=18: 2 7 18\n18+7=25: 2 25\n25 reached" and p.answer == "6*3+7"
    verdicts = {
        "6*3+7": ("ok", 1, 1), "7+6*3": ("ok", 1, 1), "(7+6*3)": ("ok", 1, 1), "6*3+7=25": ("ok", 1, 1),
        "６×３＋７": ("ok", 1, 1), "6*3+7=26": ("wrong", 1, 1), "6*3+6+3-2": ("wrong", 0, 1), "25": ("wrong", 0, 1),
        "6*3+2": ("wrong", 1, 0), "67-2*3": ("wrong", 0, 0), "6*3/(7-7)": ("wrong", 0, 0), "6/(3-3)": ("wrong", 0, 0),
        "6*3+7 or 2+3": ("unparseable",), "6*3+7=25=25": ("unparseable",), "=25": ("unparseable",),
    }  # fmt: skip
    for text, (status, *parts) in verdicts.items():
        verdict = task.verify(p, said(text))
        assert (verdict.status, *(verdict.parts.get(k) for k in ("uses", "value")))[: 1 + len(parts)] == (
            status,
            *map(float, parts),
        ), text
    lines = {
        "7*3=21: 2 6 21\n21+6=27: 2 27\n27-2=25\n25 reached": ("", "", "", ""),  # another solution
        "6*3=18: 2 7\n18+7=25: 2 25\n25 reached": ("list", "", ""),
        "6*3=19: 2 7 19\n19+7=26: 2 26\n26 reached": ("arithmetic", "", "target"),
        "6*6=36: 2 3 7 36": ("reuse",),
        "9+7=16: 2 3 6 16": ("invent",),
        "6+3=9: 2 7 9\nback: 2 3 6 7\n6*3=18: 2 7 18": ("", "", ""),
        "6+3=9: 2 7 9\nback: 2 3 6 8": ("", "back"),
    }
    for rationale, labels in lines.items():
        checks = task.check(p, said("6*3+7", rationale))
        reasons = [c.reason.partition(":")[0] for c in checks[:-1] if c.result != "n.a."]
        assert reasons == list(labels), rationale


def test_search_traces_have_the_direct_problem_and_real_dead_ends() -> None:
    direct, search = Countdown("2-4"), Countdown("2-4", trace="search")
    backs = Counter()
    for a, b in zip(direct.problems("train", 150), search.problems("train", 150), strict=True):
        assert (a.prompt, a.answer, a.plan) == (b.prompt, b.answer, b.plan)
        target = b.data["target"]
        lines = b.rationale.split("\n")
        assert lines[-1] == f"{target} reached"
        ends = []
        for before, line in itertools.pairwise(lines):
            if line.startswith("back: "):
                assert ":" not in before  # one number was left: a dead end is followed to its end
                ends.append(int(before.rpartition("=")[2]))
        assert len({*ends}) == len(ends) and target not in ends  # distinct wrong values
        kept = [s.text for s in b.steps if s.kind == "compute"]
        assert [s.text for s in a.steps if s.kind == "compute"] == [t for t in kept if t in a.rationale.split("\n")]
        backs[len(ends)] += 1
    assert backs[1] > 40 and backs[2] > 40 and backs[0] < 8 and set(backs) <= {0, 1, 2}


# -- boxes -------------------------------------------------------------------------------------------------------------
def simulate(prompt: str) -> str:
    """The answer from the words of the prompt alone."""
    first, *changes, asked = prompt.split(". ")
    boxes = {box: [thing] for thing, box in (part.split(" in ") for part in first.split(", "))}
    for change in changes:
        if change.startswith("swap"):
            _, a, b = change.split()
            boxes[a], boxes[b] = boxes[b], boxes[a]
        else:
            thing, b = change.split(" to ")
            for held in boxes.values():
                if thing in held:
                    held.remove(thing)
            boxes[b].append(thing)
    return " ".join(boxes[asked.removeprefix("in ").removesuffix("?")]) or "nothing"


def test_boxes_answers_follow_from_the_prompt_alone() -> None:
    answers = Counter()
    for p in Boxes("1-5").problems("test", 200):
        assert simulate(p.prompt) == p.answer
        answers[len(p.answer.split()) if p.answer != "nothing" else 0] += 1
    assert answers[0] > 5 and answers[1] > 50 and answers[2] > 5


def test_boxes_by_hand() -> None:
    task = Boxes()
    p = task.build(((16, 1, 2), (0, 22, 10), (("swap", 0, 1), ("move", 2, 1)), 1), 3)
    assert p.prompt == "apple in Q, key in B, cup in C. swap Q B. cup to B. in B?"
    assert p.rationale == "swap Q B: Q key, B apple\ncup to B: C nothing, B apple cup\nB: apple cup"
    assert [s.premises for s in p.steps] == [(), (0,), (1,)]
    assert p.choices == ("key", "apple cup", "nothing")
    assert p.choice_rationales == ("key B > Q", "apple Q > B, cup C > B", "C empty")
    verdicts = {
        "cup apple": ("ok", 1.0, 1.0), "cup, apple": ("ok", 1.0, 1.0), "apple and cup": ("ok", 1.0, 1.0),
        "apple": ("wrong", 1.0, 0.5), "apple cup key": ("wrong", 2 / 3, 1.0), "apple apple cup": ("wrong", 2 / 3, 1.0),
        "nothing": ("wrong", 0.0, 0.0), "apple dragon": ("unparseable", None, None),
    }  # fmt: skip
    for text, expected in verdicts.items():
        verdict = task.verify(p, said(text))
        assert (verdict.status, verdict.parts.get("precision"), verdict.parts.get("recall")) == expected, text


@pytest.mark.parametrize("boxes", [3, 5, 7])
def test_counterfactuals_tell_the_three_variables_apart(boxes: int) -> None:
    from whet.tasks import split_of

    task = Boxes(1, boxes=boxes)
    for p in task.problems("test", 40):
        expected = []
        for variable in ("position", "object", "label"):
            base, other, answer = task.counterfactual(p, variable, seed=1)
            assert base is p
            expected.append(answer)
        assert len({p.answer, *expected}) == 4
        old, new = base.data, other.data
        assert sorted(old["boxes"]) == sorted(new["boxes"]) and not {*old["objects"]} & {*new["objects"]}
        place = new["boxes"].index(new["asked"])
        assert expected == [old["objects"][place], other.answer, old["objects"][old["boxes"].index(new["asked"])]]
        letters = tuple(ord(x) - 65 for x in new["boxes"])
        from whet.tasks.boxes import OBJECTS

        bare = (letters, tuple(map(OBJECTS.index, new["objects"])), (), place)
        assert split_of(bare) == "test"
        assert len(base.prompt.split()) == len(other.prompt.split())  # places correspond
    with pytest.raises(WhetError, match="without changes"):
        Boxes(3).counterfactual(Boxes(3).problem("test", 0))
    with pytest.raises(WhetError, match="not 'colour'"):
        task.counterfactual(p, "colour")  # type: ignore[arg-type]


# -- lists -------------------------------------------------------------------------------------------------------------
ORACLES = {
    "sort": lambda x, n: sorted(x),
    "even": lambda x, n: [i for i in x if i % 2 == 0],
    "odd": lambda x, n: [i for i in x if i % 2],
    "above": lambda x, n: [i for i in x if i > n],
    "dedupe": lambda x, n: list(dict.fromkeys(x)),
    "count": lambda x, n: [x.count(n)],
    "reverse": lambda x, n: x[::-1],
    "max": lambda x, n: [max(x)],
    "min": lambda x, n: [min(x)],
    "sum": lambda x, n: [sum(x)],
    "item": lambda x, n: [x[n - 1]],
}


@pytest.mark.parametrize("skill", SKILLS)
def test_each_skill_alone_answers_its_prompt_and_can_be_corrupted(skill: str) -> None:
    task = Lists("1-5", skill=skill)
    for i, p in enumerate(task.problems("test", 60)):
        asked, _, listed = p.prompt.partition(": ")
        name, _, number = asked.partition(" ")
        right = ORACLES[name](list(map(int, listed.split())), int(number or 0))
        assert p.answer == (" ".join(map(str, right)) or "empty")
        assert p.category == skill and {s.skill for s in p.steps} == {skill}
        wrong = task.corrupt(p, random.Random(i))
        assert task.verify(p, said(wrong.answer)).status == "wrong"
        assert results(task, p, said(wrong.answer, wrong.rationale)).index("fail") == wrong.step


def test_lists_draws_all_skills_evenly_and_scores_positions() -> None:
    task = Lists(2)
    counts = Counter(p.category for p in task.problems("train", 1100))
    assert counts.keys() == SKILLS.keys() and min(counts.values()) > 60
    p = task.build(("sort", (3, 1, 2, 9, 5), 0), 2)
    assert p.rationale.split("\n")[:2] == ["take 1 leave 3 2 9 5", "take 2 leave 3 9 5"]
    for text, value, positions in (("1 2 3 5 9", 1, 1), ("[1, 2, 3, 5, 9]", 1, 1), ("1 2 3 9 5", 0, 0.6),
                                   ("1 2 3 5 9 9", 0, 5 / 6), ("empty", 0, 0), ("5", 0, 0)):  # fmt: skip
        verdict = task.verify(p, said(text))
        assert (verdict.value, verdict.parts["positions"]) == (value, pytest.approx(positions)), text
    none = task.build(("even", (3, 1, 7, 9, 5), 0), 2)
    assert none.answer == "empty"
    assert [task.verify(none, said(x)).status for x in ("empty", "Empty.", "", "3")] == [
        "ok",
        "ok",
        "unparseable",
        "wrong",
    ]


def test_scaling_carries_list_answers_by_their_kind() -> None:
    task = Lists(2)
    forward, inverse = task.transforms()["scaling"]
    above = forward(task.build(("above", (3, 1, 7, 9, 5), 5), 2))
    assert (above.prompt, above.answer) == ("above 15: 9 3 21 27 15", "21 27")
    assert inverse(replace(above, answer="21 27 15")).answer == "7 9 5"
    assert inverse(replace(above, answer="21 26")).answer == "7 26/3"  # stays wrong
    count = forward(task.build(("count", (3, 1, 3, 9, 5), 3), 2))
    assert (count.prompt, count.answer, inverse(count).answer) == ("count 9: 9 3 9 27 15", "2", "2")


# -- solutions ---------------------------------------------------------------------------------------------------------
PROGRAM, TAGGED, PROSE = "t1=3+4\nt2=t1*2", "<s>3+4=7</s>\n<s>7*2=14</s>", "first 3 plus 4 is 7\nthen 7 times 2 is 14"


@pytest.mark.parametrize(
    ("text", "style"),
    [(PROGRAM, "program"), (TAGGED, "steps"), (PROSE, "prose"), (f"{PROGRAM}\n{TAGGED}", "steps"),
     (f"{PROSE}\n{PROGRAM}", "program"), (f"{PROSE}\n<s>", "steps"), ("14", "other"), ("", "other"),
     ("t1=oops", "program"),
     ("the first one", "other"), ("First, 3", "prose"), ("at t1=3 it ends", "other"), ("firstly", "other")],
)  # fmt: skip
def test_every_text_has_one_style(text: str, style: str) -> None:
    assert style_of(text) == style


@pytest.mark.parametrize(
    ("text", "value"),
    [(PROGRAM, 14), ("t1=3+4;\nt2 = t1*t1\n49", 49), ("t1=7/2", Fraction(7, 2)), ("t1=3-9", -6),
     ("t1=1+1\nt1=t1*3", 6)],
)  # fmt: skip
def test_programs_run(text: str, value: Fraction) -> None:
    assert run_program(text) == value


@pytest.mark.parametrize(
    "text",
    ["", "14", "t1=", "t1=t2+1", "t1=3/0", "t1=3**4", "t1=__import__('os')", "t1=3+4+5",
     "t1=999999999*999999999", "t1=9*9\n" + "t1=t1*t1\n" * 99],
)  # fmt: skip
def test_other_programs_are_refused(text: str) -> None:
    with pytest.raises(Unreadable):
        run_program(text)


def test_any_format_is_accepted_whatever_the_problem_shows() -> None:
    task = Solutions()
    p = task.build(("steps", False, 3, (("+", 4), ("*", 2))), 1)
    assert (p.prompt, p.answer, p.rationale) == ("start 3. add 4. times 2. result?", "14", TAGGED)
    assert [task.restyled(p, s).rationale for s in STYLES] == [PROGRAM, TAGGED, PROSE]
    assert task.restyled(p, "prose").id == p.id
    for rationale in (PROGRAM, TAGGED, PROSE):
        assert results(task, p, said("14", rationale)) == ["pass"] * 3
        assert task.verify(p, said("14", rationale)).value == 1.0
    ran = task.verify(p, said("15", PROGRAM))  # a program is run, whatever is answered beside it
    assert task.verify(p, said(None, PROGRAM)).status == "unparseable"  # but no format need not answer
    assert (ran.status, ran.parts) == ("ok", {"executed": 1.0, "stated": 0.0})
    failed = task.verify(p, said("14", "t1=3+4\nt2=t1*3"))
    assert (failed.status, failed.parts) == ("wrong", {"executed": 0.0, "stated": 1.0})
    assert task.verify(p, said("14", "t1=3+4\nt2=t9*2")).status == "unparseable"
    assert task.verify(p, said("15", TAGGED)).status == "wrong"


def test_all_styles_share_their_problems_and_mixed_has_a_third_of_each() -> None:
    made = {s: Solutions("1-5", style=s).problems("train", 300) for s in (*STYLES, "mixed")}
    for rows in zip(*made.values(), strict=True):
        assert len({(p.prompt, p.answer, p.plan) for p in rows}) == 1
    for style in STYLES:
        assert {style_of(p.rationale) for p in made[style]} == {style}
    shares = Counter(style_of(p.rationale) for p in made["mixed"])
    assert shares.keys() == {*STYLES} and min(shares.values()) > 75


def test_equations_hold_for_their_answers() -> None:
    for p in Solutions(5).problems("test", 100) + Solutions(3).problems("test", 100):
        left, right = p.prompt.removesuffix(". x?").split("=")
        assert eval(left, {"x": int(p.answer)}) == int(right)
        assert p.category == "algebra"
    scaled = Solutions().transforms()["scaling"][0](Solutions().build(("prose", True, 19, (("-", 4), ("/", 3))), 3))
    assert (scaled.prompt, scaled.answer) == ("x*3+12=57. x?", "15")
