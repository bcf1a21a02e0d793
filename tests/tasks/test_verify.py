"""Verifiers: what scores, what must not, and that no failure is a silent 0."""

from __future__ import annotations

import math
import threading
import time
from fractions import Fraction
from pathlib import Path

import pytest

from whet.errors import WhetError
from whet.tasks import Problem, Response, Verdict, get_task
from whet.tasks.answers import plain_number, read_number
from whet.tasks.files import read_files
from whet.tasks.math_answers import MathChild, MathChildren, as_math
from whet.tasks.verify import Math, check_gold, choice, exact, get_verifier, number


def told(text: str | None) -> Response:
    """A response in which the Format found no tag: the whole text is the answer."""
    return Response(text or "", text)


def tagged(answer: str) -> Response:
    """A response whose answer the Format cut out."""
    return Response(f"<think>because</think><answer>{answer}</answer>", answer)


TWELVE = Problem("p", "What is 5+7?", "12")
COLOURS = Problem("p", "Which colour?", "red", choices=("dark red", "red", "green", "blue"))  # red is B
# no verifier may give any of these 1 where the gold answer is 12
HOSTILE = [
    None, "", "   ", "\n", "13", "112", "120", "12.5", "-12", "–12", "- 12", "-$12", "1 2", "12 13 14", "13 14 12",
    "12 or 13", "13 or 12", "12, 13", "12,13", "12;13", "12/13", "12:30", "between 11 and 12", "12 and 13", "12 or so",
    "12\n13", "12. Or 13.", "x=13 or x=12", "\\boxed{}", "\\boxed{13}", "\\boxed{12 \\boxed{13}}",
    "\\boxed{13 \\boxed{12}}", "\\boxed{12} \\boxed{13}", "\\boxed{13} or \\boxed{12}", "\\boxed{12} or 13",
    "\\boxed{12, 13}", "12 \\boxed{13}", "the answer is correct", "The answer is right. Trust me.", "not 12",
    "the answer isn't 12", "The answer is not equal to 12", "12 million", "12^2", "3 \\times 12", "12 + x", "12²",
    "x12", "12cm", "GPT-12", "1.2.12", "１２", "١٢", "1٢", "12٣", "twelve", "inf", "nan", "∞", "Answer:", "#### ",
    "####",
    "12 #### 13", "Answer: 12 or 13", "The answer is 12 or 13", "12 = 13", "9" * 1_000_000, "1" * 1_000_000 + "x",
    "12" + "0" * 5000, "1e9999", "12e1", "0x12", "What is 5+7?", "5+7", "5, 7, 12", "\u200b", "<answer></answer>",
]  # fmt: skip


# -- reading numbers -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", 12), ("+12", 12), ("-12", -12), ("−12", -12), ("12.", 12), ("12.50", Fraction(25, 2)),
        (".5", Fraction(1, 2)),
        ("1,234,567.5", Fraction(2469135, 2)), ("3/4", Fraction(3, 4)), ("-3/4", Fraction(-3, 4)), ("6/2", 3),
        ("1e3", 1000), ("1.5e-1", Fraction(3, 20)), ("\\frac{3}{4}", Fraction(3, 4)),
        ("-\\dfrac{1}{2}", Fraction(-1, 2)),
        ("$12", 12), ("\\$1,200", 1200), ("-$12", -12), ("$12$", 12), ("12%", 12), ("12\\%", 12), ("90^\\circ", 90),
        ("12 apples", 12), ("12 km/h", 12), ("**12**", 12), ("x = -5", -5), ("So 5 + 7 = 12.", 12),
        ("5 and 7 make 12", 12),
        ("First 3, then 4. That gives 7 in all.", 7), ("It is 12, no wait, 13", 13), ("10 - 4\n#### 6", 6),
        ("The answer is 12. Because 3 times 4.", 12), ("**Answer:** 12", 12), ("Answer: 7\n\nQuestion: 3+4?", 7),
        ("The answer is: $\\boxed{\\frac{1}{2}}$.", Fraction(1, 2)), ("\\boxed{\\boxed{12}}", 12), ("\\boxed{12", 12),
        ("I had \\boxed{3} but it is \\boxed{4}", 4), ("\\boxed{3} is wrong, the answer is 4", 4), ("12 (12.0)", 12),
    ],
)  # fmt: skip
def test_a_number_is_read_exactly(text: str, value: Fraction | int):
    assert read_number(text) == (Fraction(value), "")


@pytest.mark.parametrize("text", ["1,23", "12,34,567", "0,123", "1/2/3", "12/0", "3 / 4", "10^6", "2*3", "١٢", "1 1/2"])
def test_what_is_no_number(text: str):
    assert read_number(text)[0] is None


def test_a_cut_out_answer_ends_with_its_line_while_a_whole_text_offers_two_numbers():
    assert read_number("12\n\nQuestion: what is 13?", marked=True)[0] == 12
    assert read_number("12\n13")[0] is None
    assert read_number("3 apples for 4 people", marked=True)[0] is None


def test_a_percent_is_not_its_hundredth():
    half = Problem("p", "?", "0.5")
    assert number(half, told("50%")).value == 0.0
    assert number(Problem("p", "?", "50%"), told("50")).value == 1.0


def test_plain_number_takes_the_whole_text():
    assert plain_number(" 1,000 ") == 1000
    assert plain_number("50%") == 50
    assert plain_number("12 apples") is None
    assert plain_number("") is None


# -- hostile answers -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("make", [told, tagged], ids=["whole text", "tagged"])
@pytest.mark.parametrize("verifier", ["exact", "number", "regex:([0-9]+)"])
def test_no_hostile_answer_scores(verifier: str, make):
    judge = get_verifier(verifier)
    assert judge(TWELVE, make("12")).value == 1.0
    for text in HOSTILE:
        if make is tagged and text is None:
            continue
        response = make(text)
        if make is tagged and (text or "").startswith("12\n"):
            continue  # the first line of a cut-out answer states 12
        verdict = judge(TWELVE, response)
        assert verdict.value == 0.0, text
        assert verdict.status in ("wrong", "unparseable"), text


def test_hostile_answers_are_judged_fast():
    """Linear time: half a second of CPU; the bound is far above it, and a quadratic scan would take hours."""
    start = time.process_time()
    for text in ("9" * 10**6, "1" * 10**6 + "x", "\\boxed{" * 10**5, "answer" + " " * 10**6, "12 " * 10**5 + "x"):
        number(TWELVE, told(text))
    assert time.process_time() - start < 20


@pytest.mark.parametrize("text", [None, "", "the answer is correct", "12 or 13", "\\boxed{}"])
def test_unparseable_is_not_wrong(text: str | None):
    assert number(TWELVE, told(text)).status == "unparseable"
    assert number(TWELVE, told("13")) == Verdict(0.0, "wrong", reason="13 is not 12")


@pytest.mark.parametrize("verifier", ["exact", "number", "math", "regex:(.*)", "choice"])
def test_a_missing_gold_is_an_error_and_never_scores(verifier: str):
    verdict = get_verifier(verifier)(Problem("p", "?"), told("12"))
    assert verdict.status == "error"
    assert math.isnan(verdict.value)


@pytest.mark.parametrize("gold", ["nan", "inf", "twelve", "12 or 13", "", "1/0"])
def test_a_gold_that_is_no_number_is_an_error(gold: str):
    for text in (gold, "12", "", "nan"):
        verdict = number(Problem("p", "?", gold), told(text))
        assert verdict.status == "error"
        assert math.isnan(verdict.value)


def test_exact_ignores_white_space_only():
    problem = Problem("p", "?", "New  York")
    assert exact(problem, told(" New\nYork ")).value == 1.0
    for text in (
        "new york",
        "New York.",
        "NewYork",
        "New York or Rome",
        "Not New York",
        "New Y\u043erk",
        "The answer is New York",
    ):
        assert exact(problem, told(text)).status == "wrong"
    assert exact(problem, told(" ")).status == exact(problem, told(None)).status == "unparseable"


# -- choice ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "text",
    ["B", "b", "(B)", "B.", "B)", "[b]", "**B**", "red", "Red.", "B. red", "(b) red", "B: red", "Answer: B",
     "The answer is B.",
     "The answer is (B) red.", "\\boxed{B}", "I think it is red", "It must be option B"],
)  # fmt: skip
def test_a_choice_is_named_by_letter_or_text(text: str):
    assert choice(COLOURS, told(text)).value == 1.0


@pytest.mark.parametrize(
    "text",
    [None, "", " ", "A", "C", "b green", "E", "dark red", "green", "A or B", "B or A", "A/B", "ABCD", "A, B, C, D",
     "B and C", "red or green",
     "dark red or red", "dark red, red, green, blue", "B. green", "(b) blue", "not B", "It isn't red",
     "all of the above", "none",
     "redder", "the answer is correct", "\\boxed{A} \\boxed{B}", "\\boxed{A \\boxed{B}}", "Answer: A or B", "Ｂ", "В",
     "2",
     "A colour like red", "12", "Which colour?", "\\boxed{B} or C", "A because B is wrong"],
)  # fmt: skip
def test_no_hostile_choice_scores(text: str | None):
    verdict = choice(COLOURS, told(text))
    assert verdict.value == 0.0
    assert verdict.status == ("wrong" if text in ("A", "C", "dark red", "green", "b green") else "unparseable")


def test_a_choice_of_numbers_is_read_as_text():
    problem = Problem("p", "?", "12", choices=("1", "12", "112"))
    assert choice(problem, told("12")).value == choice(problem, told("it is 12")).value == 1.0
    assert [choice(problem, told(t)).value for t in ("112", "1", "12 or 112", "2")] == [0.0] * 4


def test_a_gold_that_is_no_choice_is_an_error():
    assert choice(Problem("p", "?", "x", choices=("a1", "b1")), told("x")).status == "error"


# -- math ------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def maths():
    pytest.importorskip("math_verify")
    return Math(seconds=3.0)


@pytest.mark.parametrize(
    ("gold", "text"),
    [("12", "12"), ("12", "The answer is $12$."), ("1/2", "0.5"), ("\\frac{1}{2}", "\\boxed{\\frac{2}{4}}"),
     ("x+1", "1+x"),
     ("3\\sqrt{13}", "$\\sqrt{117}$"), ("2\\pi", "\\boxed{2\\pi}"), ("(1, 2)", "(1,2)"), ("1,234", "1234"),
     ("\\text{Evelyn}", "\\boxed{\\text{Evelyn}}"), ("5+7=12 #### 12", "#### 12"), ("12", "So we get 12 apples")],
)  # fmt: skip
def test_math_compares_values(maths: Math, gold: str, text: str):
    assert maths(Problem("p", "?", gold), told(text)) == Verdict(1.0, "ok")


@pytest.mark.parametrize(
    ("text", "label"), [("1/2", "1/2"), ("0.50", "1/2"), ("2/4", "1/2"), ("3", "3"), ("1/0", "1/0")]
)
def test_what_a_mathematical_answer_votes_for(maths, text: str, label: str) -> None:
    assert maths(Problem("p", "?", "0.5"), told(text)).label == label


def test_no_hostile_answer_scores_in_math(maths: Math):
    equal = {"5+7", "12cm"}  # the library reads values, and drops units
    for text in HOSTILE:
        if text not in equal:
            assert maths(TWELVE, told(text)).value == 0.0, text


def test_math_does_not_add_up_a_list(maths: Math):
    """math-verify reads `12 13 14` in a box as 39."""
    assert maths(Problem("p", "?", "39"), told("\\boxed{12 13 14}")).status == "unparseable"


@pytest.mark.parametrize("gold", ["", "nonsense words", "no 12 here", "\\boxed{1} \\boxed{2}"])
def test_math_gold_that_does_not_parse_never_scores(maths: Math, gold: str):
    for text in (gold, "12", "", "x"):
        verdict = maths(Problem("p", "?", gold), told(text))
        assert verdict.value != 1.0
        assert verdict.status in ("error", "unparseable")
    assert math.isnan(maths(Problem("p", "?", gold), told("12")).value)


def test_math_stops_in_time_outside_the_main_thread():
    """The comparison is hopeless and the signal of the library's own timeout works in the main thread only."""
    pytest.importorskip("math_verify")
    quick = Math(seconds=0.3)
    found: list[Verdict] = []

    def work() -> None:
        found.append(quick(TWELVE, told("$9^{9^{9}}$")))
        found.append(quick(TWELVE, told("12")))  # the next one is served

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(timeout=100)
    assert not thread.is_alive()
    assert found[0].status == "timeout"
    assert math.isnan(found[0].value)
    assert found[1] == Verdict(1.0, "ok")


def test_a_dead_math_process_is_an_error_and_replaced():
    pytest.importorskip("math_verify")
    child = MathChild(seconds=3.0)
    assert child.compare("12", "12")[0] == "equal"
    process = child._process
    assert process is not None
    process.kill()
    process.wait()
    assert child.compare("12", "13")[0] == "different"
    assert child._process is not process


def test_a_math_process_that_dies_while_it_is_asked_is_asked_again_once(monkeypatch: pytest.MonkeyPatch) -> None:
    child, replies = MathChild(), [("error", "the comparison died"), ("equal", ""), ("different", "")]
    monkeypatch.setattr(child, "_ask", lambda gold, answer: replies.pop(0))
    assert child.compare("12", "12")[0] == "equal" and len(replies) == 1
    replies[:] = [("error", "the comparison died")] * 3
    assert child.compare("12", "12") == ("error", "the comparison died") and len(replies) == 1


def test_many_comparisons_are_shared_by_children_once_that_pays() -> None:
    pytest.importorskip("math_verify")
    many = Math(seconds=3.0)
    many.children = MathChildren(3.0, most=2)
    pairs = [(Problem("p", "?", str(i % 3)), told(str(i % 2))) for i in range(12)]
    alone = many.several(pairs)
    assert [verdict.value for verdict in alone] == [float(i % 3 == i % 2) for i in range(12)]
    assert many.children._free.qsize() == 1, "the first child serves alone"
    many.children.waited = 100.0
    assert many.several(pairs) == alone == [many(*pair) for pair in pairs]
    assert many.children._free.qsize() <= 2
    assert MathChildren(most=0).most >= 1


def test_a_file_of_mathematics_is_judged_by_them(tmp_path: Path) -> None:
    pytest.importorskip("math_verify")
    (tmp_path / "rows.jsonl").write_text("\n".join(f'{{"prompt": "what is {i}?", "answer": "{i}"}}' for i in range(40)))
    task = get_task(str(tmp_path / "rows.jsonl"), verifier="math")
    problems = task.problems("train", 3)
    given = [told(p.answer or "") for p in problems[1:]] + [told("x")]
    assert task.verify_all(list(zip(problems, given, strict=True))) == [
        task.verify(p, response) for p, response in zip(problems, given, strict=True)
    ]


def test_only_bare_mathematics_gets_dollar_signs():
    assert as_math("\\frac{1}{2}") == "$\\frac{1}{2}$"
    assert as_math("\\sin x") == "$\\sin x$"
    assert as_math("sin(x)") == "$sin(x)$"
    assert as_math("$x$") == "$x$"
    assert as_math("we get 12") == "we get 12"


# -- regex -----------------------------------------------------------------------------------------------------------
def test_regex_matches_the_whole_answer():
    form = get_verifier("regex:[A-Z]{2}\\d+")
    assert form(TWELVE, told(" AB12 ")).value == 1.0
    for text in ("AB", "xAB12", "AB12x", "AB12 or CD13"):
        assert form(TWELVE, told(text)).status == "wrong"
    assert get_verifier("regex:.*")(TWELVE, told("")).status == "unparseable"


def test_regex_with_a_group_compares_it_with_the_gold():
    group = get_verifier("regex:id=(\\d+)")
    assert group(TWELVE, told("id=12")).value == 1.0
    assert group(TWELVE, told("id=13")).status == "wrong"
    assert group(TWELVE, told("12")).status == "unparseable"


def test_a_catastrophic_pattern_times_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("whet.tasks.verify.REGEX_SECONDS", 0.05)
    verdict = get_verifier("regex:(?:(?:a|aa)+b?)+c")(TWELVE, told("a" * 80))
    assert verdict.status == "timeout"
    assert math.isnan(verdict.value)


def test_a_bad_pattern_is_refused():
    with pytest.raises(WhetError, match="regex:\\(a"):
        get_verifier("regex:(a")


# -- functions -------------------------------------------------------------------------------------------------------
SOURCE = """
from whet.tasks import Verdict
calls = []
def boolean(problem, response): return response.answer == problem.answer
def share(problem, response): return 0.25
def full(problem, response): return Verdict(0.5, "wrong", {"board": 0.5})
def broken(problem, response): return {}["gone"]
def silent(problem, response): return None
def big(problem, response): return 3.0
def nothing(): return 1.0
def trl(prompts, completions, answer, **columns): return [float(c == a) for c, a in zip(completions, answer)]
def trl_broken(completions): raise ZeroDivisionError("no")
def trl_none(completions, **kwargs): return [None]
def trl_wants(completions, colour): return [1.0]
"""


@pytest.fixture
def module(tmp_path):
    path = tmp_path / "judge.py"
    path.write_text(SOURCE)
    return lambda name: get_verifier(f"{path}:{name}")


def test_functions_return_bool_float_or_verdict(module):
    assert module("boolean")(TWELVE, told("12")) == Verdict(1.0, "ok")
    assert module("boolean")(TWELVE, told("13")) == Verdict(0.0, "wrong")
    assert module("share")(TWELVE, told("12")) == Verdict(0.25, "wrong")
    assert module("full")(TWELVE, told("12")).parts == {"board": 0.5}
    assert module("trl")(TWELVE, told("12")).value == 1.0
    assert module("trl")(TWELVE, told("13")).value == 0.0


@pytest.mark.parametrize(
    ("name", "reason"),
    [("broken", "KeyError: 'gone'"), ("trl_broken", "ZeroDivisionError: no"), ("silent", "returned None"),
     ("big", "returned 3.0"), ("trl_none", "returned nan")],
)  # fmt: skip
def test_a_failing_function_is_an_error_verdict_not_a_zero(module, name: str, reason: str):
    verdict = module(name)(TWELVE, told("12"))
    assert verdict.status == "error"
    assert math.isnan(verdict.value)
    assert reason in verdict.reason


def test_a_function_that_asks_for_a_missing_column_stops(module):
    with pytest.raises(WhetError, match="asks for colour"):
        module("trl_wants")(TWELVE, told("12"))


def test_functions_that_cannot_be_loaded(module, tmp_path):
    with pytest.raises(WhetError, match="did you mean 'boolean'"):
        module("boolaen")
    with pytest.raises(WhetError, match=r"\(problem, response\)"):
        module("nothing")
    with pytest.raises(WhetError, match="there is no file"):
        get_verifier(f"{tmp_path}/gone.py:f")
    (tmp_path / "bad.py").write_text("def f(:")
    with pytest.raises(WhetError, match="cannot be imported: SyntaxError"):
        get_verifier(f"{tmp_path}/bad.py:f")


def test_a_changed_file_is_read_again(tmp_path):
    path = tmp_path / "f.py"
    path.write_text("def f(problem, response): return 0.0")
    assert get_verifier(f"{path}:f")(TWELVE, told("12")).value == 0.0
    path.write_text("def f(problem, response): return 1.0")
    assert get_verifier(f"{path}:f")(TWELVE, told("12")).value == 1.0


def test_an_unknown_verifier_offers_the_nearest():
    with pytest.raises(WhetError, match="unknown verifier 'numbr': did you mean 'number'"):
        get_verifier("numbr")


# -- gold ------------------------------------------------------------------------------------------------------------
def test_check_gold_names_file_and_row(tmp_path):
    path, held = tmp_path / "mine.jsonl", tmp_path / "held.jsonl"
    path.write_text('{"prompt": "a", "answer": "12"}\n\n{"prompt": "b", "answer": "twelve"}\n{"prompt": "c"}\n')
    held.write_text('{"prompt": "d", "answer": "1"}\n')
    more = tmp_path / "more.jsonl"
    more.write_text('{"prompt": "e", "answer": "1"}\n')
    task = read_files(str(path), verifier="number", validation=str(held), test=str(more))
    problems = task.problems("train")
    check_gold(task, [problems[0], problems[2]])  # the last has no gold answer
    with pytest.raises(WhetError, match=r"mine\.jsonl:3: the verifier \(number\) gives the gold answer 'twelve' nan"):
        check_gold(task, problems)


# -- a tolerance -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "value"),
    [("7", 1.0), ("#### 7.005", 1.0), ("6.99", 1.0), ("7.01", 1.0), ("7.0101", 0.0), ("7.02", 0.0), ("8", 0.0)],
)
def test_a_number_may_be_near(text: str, value: float):
    problem = Problem("p", "3+4?", "7")
    verdict = get_verifier("number:0.01")(problem, told(text))
    assert (verdict.value, verdict.status) == (value, "ok" if value else "wrong")
    assert verdict.label == str(read_number(text)[0]), "who votes for 7.005 does not vote for 7"
    assert get_verifier("number:0")(problem, told(text)) == number(problem, told(text))


def test_near_is_as_strict_as_number_otherwise():
    near = get_verifier("number:0.5")
    for text in (None, "", "12 or 13", "the answer is correct"):
        assert near(TWELVE, told(text)).status == "unparseable"
    assert near(Problem("p", "?"), told("12")).status == near(Problem("p", "?", "twelve"), told("12")).status == "error"
    for spec in ("number:", "number:x", "number:-1"):
        with pytest.raises(WhetError, match="unknown verifier"):
            get_verifier(spec)
