"""Verifiers: a function of problem and response that returns a Verdict.

An answer that cannot be read is `unparseable`, not `wrong`; a verifier that could not judge (`timeout`, `error`) gives
NaN, never a silent 0. None looks for the gold answer somewhere in the text.
"""

from __future__ import annotations

import importlib
import re
import string
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import Any

from whet.errors import WhetError, unknown
from whet.tasks.answers import conclusion, read_number, unsettled
from whet.tasks.functions import call_trl, is_function_spec, is_trl, load_function, parameters
from whet.tasks.math_answers import MathChildren
from whet.tasks.problem import Problem, Response, Verdict
from whet.tasks.programs import python, sql
from whet.tasks.task import Task

Verifier = Callable[[Problem, Response], Verdict]

NAN = float("nan")
REGEX_SECONDS = 1.0
# all but what a number needs: a minus, and dots, commas, slashes and colons before a digit
_PUNCTUATION = re.compile(
    rf"[{re.escape(''.join(c for c in string.punctuation if c not in '-.,/:'))}]|(?<=\w)-(?=[^\W\d]|$)|[.,/:](?!\s*[0-9])"
)
_PLAIN_NUMBER = re.compile(r"[+-]?[0-9]{1,30}(\.[0-9]{1,30}|/0*[1-9][0-9]{0,29})?")
MAX_MATH = 500  # characters of an answer that `math` looks at


def exact(problem: Problem, response: Response) -> Verdict:
    """The answer is the gold answer, up to white space; case counts."""
    if problem.answer is None:
        return _no_gold(problem)
    given = _squeeze(response.answer)
    if not given:
        return _unparseable("no answer")
    return _judge(given == _squeeze(problem.answer), given, problem.answer)


def normalized(problem: Problem, response: Response) -> Verdict:
    """The answer is the gold answer up to case, punctuation, the articles a, an, the, and white space.

    What makes another number stays: a minus, and what stands between digits (`12.5`, `12:30`).
    """
    if problem.answer is None:
        return _no_gold(problem)
    given = _plain(response.answer or "")
    if not given:
        return _unparseable("no answer")
    return _judge(given == _plain(problem.answer), given, problem.answer)


def number(problem: Problem, response: Response) -> Verdict:
    """The answer is the gold number, exactly (as fractions: 0.5 is 1/2, 0.33 is not 1/3).

    Where several numbers stand in the response the announced one counts, else the last; `12 or 13` is unparseable.
    What is read as a number: `whet.tasks.answers.read_number`.
    """
    if problem.answer is None:
        return _no_gold(problem)
    gold, reason = read_number(problem.answer)
    if gold is None:
        return _error(f"the gold answer '{problem.answer[:80]}' is not a number ({reason})")
    if response.answer is None:
        return _unparseable("no answer")
    given, reason = read_number(response.answer, _marked(response))
    if given is None:
        return _unparseable(reason)
    return _judge(given == gold, str(given), str(gold))


def near(tolerance: float) -> Verifier:
    """`number`, but an answer is right that is at most `tolerance` away from the gold number (`number:0.01`)."""
    within = Fraction(str(tolerance))

    def verify(problem: Problem, response: Response) -> Verdict:
        verdict = number(problem, response)
        if verdict.status != "wrong" or verdict.label is None:
            return verdict
        gold, _ = read_number(problem.answer or "")
        assert gold is not None, "the verdict would be an error"
        return Verdict(1.0, "ok", label=verdict.label) if abs(Fraction(verdict.label) - gold) <= within else verdict

    return verify


def choice(problem: Problem, response: Response) -> Verdict:
    """The answer names the gold choice, and no other, by its letter (`B`, `(b)`, `B. text`) or by its text."""
    if not problem.choices or problem.answer is None:
        return _error(f"problem '{problem.id}' has no choices" if not problem.choices else "no gold answer")
    texts = [_fold(c) for c in problem.choices]
    gold = _named(problem.answer, texts)
    if gold is None:
        return _error(f"the gold answer '{problem.answer[:80]}' is none of the choices")
    found = conclusion(response.answer or "", _marked(response))
    given = _named(found[0], texts) if found else None
    if given is None:
        return _unparseable("not exactly one choice named")
    line = conclusion(response.answer or "", _marked(response), whole_line=True)
    if line and _contradicts(line[0], texts):
        return _unparseable("one choice's letter with another's text")
    return _judge(given == gold, given, gold)


class Math:
    """The answer equals the gold answer as mathematics, by the math-verify library (`pip install 'whet[tasks]'`).

    A gold answer that cannot be parsed is an `error`. Where the gold answer is no list, an answer that lists numbers,
    names alternatives or denies something is unparseable: the library would pick one of them, or add them up. It takes
    `5+7` for 12, and `12%` for both 12 and 0.12.

    Args:
        seconds: how long one comparison may take before its verdict is `timeout`.
    """

    def __init__(self, seconds: float = 5.0) -> None:
        self.children = MathChildren(seconds)

    def several(self, pairs: Sequence[tuple[Problem, Response]]) -> list[Verdict]:
        """The verdicts on many responses, in order: a comparison takes milliseconds, so children share them."""
        return self.children.map(lambda pair: self(*pair), pairs)

    def __call__(self, problem: Problem, response: Response) -> Verdict:
        if problem.answer is None:
            return _no_gold(problem)
        gold = conclusion(problem.answer)
        found = conclusion(response.answer or "", _marked(response))
        if gold is None or found is None or not found[0]:
            return _error("the gold answer has two boxes") if gold is None else _unparseable("no answer")
        given, announced = found
        if announced and len(given) > MAX_MATH:
            return _unparseable(f"an answer of more than {MAX_MATH} characters")
        given = given[-MAX_MATH:]
        last = re.split(r"[.!?]\s|\n", given.strip())[-1]
        if unsettled(given if announced else last) and not unsettled(gold[0]):
            return _unparseable("not one settled answer")
        outcome, reason = self.children.compare(gold[0], given)
        match outcome:
            case "equal" | "different":
                text = _squeeze(given)  # 1/2 and 0.5 are one vote; what is more than a number votes as it stands
                label = str(Fraction(text)) if _PLAIN_NUMBER.fullmatch(text) else text
                return Verdict(float(outcome == "equal"), "ok" if outcome == "equal" else "wrong", {}, reason, label)
            case "answer":
                return _unparseable(reason)
            case "timeout":
                return Verdict(NAN, "timeout", reason=reason)
            case _:
                return _error(reason)


math = Math()


def regex_verifier(pattern: str) -> Verifier:
    """The whole answer, stripped, matches `pattern`; where the pattern has a group, group 1 is the gold answer.

    An answer that does not match is `wrong`, with a group `unparseable`; an empty answer never matches. Matching stops
    after a second (`timeout`), for which the `regex` package is needed.
    """
    try:
        regex: Any = importlib.import_module("regex")  # the standard library's re cannot be stopped
    except ImportError:
        raise WhetError("verifier 'regex:' needs the regex package: pip install regex") from None
    try:
        compiled = regex.compile(pattern)
    except regex.error as problem:
        raise WhetError(f"verifier 'regex:{pattern}': {problem}") from None

    def verify(problem: Problem, response: Response) -> Verdict:
        if compiled.groups and problem.answer is None:
            return _no_gold(problem)
        given = (response.answer or "").strip()
        if not given:
            return _unparseable("no answer")
        try:
            match = compiled.fullmatch(given, timeout=REGEX_SECONDS)
        except TimeoutError:
            return Verdict(NAN, "timeout", reason=f"pattern '{pattern}' took more than {REGEX_SECONDS:g} s")
        if not compiled.groups:
            return _judge(match is not None, given, f"of the form '{pattern}'")
        if match is None or match[1] is None:
            return _unparseable(f"not of the form '{pattern}'")
        return _judge(_squeeze(match[1]) == _squeeze(problem.answer), match[1], problem.answer or "")

    return verify


def function_verifier(function: Callable[..., Any], name: str = "") -> Verifier:
    """A verifier from a user's function: `f(problem, response)` -> bool, float in [0, 1] or Verdict, or a TRL reward
    function `f(prompts, completions, **columns)` -> [float]. An exception, None, NaN or a value outside [0, 1] is an
    `error` verdict with its reason; a value below 1 is `wrong`, with its share kept.
    """
    name = name or getattr(function, "__name__", type(function).__name__)
    trl = is_trl(function)
    if not trl and not (callable(function) and len(parameters(function)) >= 2):
        raise WhetError(f"verifier '{name}' must be a function of (problem, response) or of (prompts, completions)")

    def verify(problem: Problem, response: Response) -> Verdict:
        try:
            result = call_trl(function, [problem], [response.text])[0] if trl else function(problem, response)
            if isinstance(result, Verdict):
                return result
            value = NAN if result is None else float(result)
        except WhetError:  # the function asks for what is not there: every problem would fail
            raise
        except Exception as failure:
            return _error(f"'{name}' raised {type(failure).__name__}: {failure}")
        if not 0.0 <= value <= 1.0:
            return _error(f"'{name}' returned {result}, not a value from 0 to 1")
        return Verdict(value, "ok" if value == 1.0 else "wrong")

    return verify


VERIFIERS: dict[str, Verifier] = {
    "exact": exact,
    "normalized": normalized,
    "number": number,
    "math": math,
    "choice": choice,
    "python": python,
    "sql": sql,
}


def get_verifier(spec: str | Verifier) -> Verifier:
    """A verifier from its name (`exact, normalized, number, math, choice, python, sql`), `number:TOLERANCE`, `regex:PATTERN`, or `module.py:function`."""
    if not isinstance(spec, str):
        return function_verifier(spec)
    if spec in VERIFIERS:
        return VERIFIERS[spec]
    if re.fullmatch(r"number:[0-9]+(\.[0-9]+)?", spec):
        return near(float(spec.removeprefix("number:")))
    if spec.startswith("regex:"):
        return regex_verifier(spec.removeprefix("regex:"))
    if is_function_spec(spec):
        return function_verifier(load_function(spec), spec)
    raise unknown("verifier", spec, [*VERIFIERS, "number:TOLERANCE", "regex:PATTERN", "module.py:function"])


def gold_response(problem: Problem) -> Response:
    """The gold answer as a response."""
    text = problem.answer or ""
    return Response(text, text, problem.rationale)


def check_gold(task: Task, problems: Iterable[Problem]) -> None:
    """Raise unless the task's verifier gives each gold answer 1. Problems without one are passed over."""
    for problem in problems:
        if problem.answer is None:
            continue
        verdict = task.verify(problem, gold_response(problem))
        if verdict.value != 1.0:
            where = getattr(task, "where", lambda p: f"task '{task.spec()}', problem '{p.id}'")(problem)
            reason = f" ({verdict.reason})" if verdict.reason else ""
            verifier = getattr(task, "verifier_name", "own")
            raise WhetError(
                f"{where}: the verifier ({verifier}) gives the gold answer '{problem.answer[:80]}' {verdict.value:g}, "
                f"status {verdict.status}{reason}; name another verifier or mend the row"
            )


_LABELLED = re.compile(r"[(\[]?([a-z])(?:[)\].:]+\s*|\s+[-–—:]\s*|$)(.*)")


def _contradicts(line: str, texts: list[str]) -> bool:
    """Whether a line is one choice's letter before the text of another, though its sentence ends in between: `B. red`."""
    label = _LABELLED.fullmatch(_bare(line))
    place = ord(label[1]) - ord("a") if label else len(texts)
    return bool(label and label[2] in texts and place < len(texts) and texts[place] != label[2])


def _bare(text: str) -> str:
    return _fold(text).strip("*_`\"' ").rstrip(".!")


def _named(text: str, texts: list[str]) -> str | None:
    """The one choice that `text` names, as folded text; None where it names none or several. (An English sentence that
    begins with `A` names the first choice too; it is refused rather than guessed at.)
    """
    letters = {chr(ord("a") + i): t for i, t in enumerate(texts[:26])}
    plain = _bare(text)
    if plain in texts:
        return plain
    label = _LABELLED.fullmatch(plain)
    if label and label[1] in letters:
        named = letters[label[1]]
        if not label[2] or label[2] in texts:  # "B. red" where B is red; else they contradict
            return named if label[2] in ("", named) else None
    if re.search(r"\bnot\b|n['’]t\b", plain):
        return None
    names: set[str] = set()
    rest = _squeeze(text)
    for option in sorted(set(texts), key=len, reverse=True):  # "dark red" is not "red"
        rest, hits = re.subn(rf"(?<!\w){re.escape(option)}(?!\w)", " | ", rest, flags=re.IGNORECASE)
        names |= {option} if hits else set()
    for letter in re.findall(r"(?<![\w'’])([A-Z])(?![\w'’])", rest):  # in running text only capitals are letters
        if letter.lower() in letters:
            names.add(letters[letter.lower()])
    return names.pop() if len(names) == 1 else None


def _marked(response: Response) -> bool:
    """Whether the Format cut the answer out of the text (else it handed over the whole text)."""
    return response.answer != response.text


def _squeeze(text: str | None) -> str:
    return " ".join((text or "").split())


def _plain(text: str) -> str:
    return _squeeze(re.sub(r"\b(?:a|an|the)\b", " ", _PUNCTUATION.sub("", text.casefold())))


def _fold(text: str) -> str:
    return _squeeze(text).casefold()


def _judge(right: bool, given: str, gold: str) -> Verdict:
    reason = "" if right else f"{given[:80]} is not {gold[:80]}"
    return Verdict(float(right), "ok" if right else "wrong", reason=reason, label=given)


def _unparseable(reason: str) -> Verdict:
    return Verdict(0.0, "unparseable", reason=reason)


def _error(reason: str) -> Verdict:
    return Verdict(NAN, "error", reason=reason)


def _no_gold(problem: Problem) -> Verdict:
    return _error(f"problem '{problem.id}' has no gold answer")
