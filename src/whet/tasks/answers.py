r"""Reading the final answer from text: where it is announced, which number it is, whether it hedges.

A verifier must never score a text for merely containing the gold answer. So each text has one place that states its
answer (`conclusion`), and that place must commit to one number (`read_number`); `12 or 13` states nothing.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise

MAX_DIGITS = 1000  # a longer number is no answer; Python refuses to convert beyond 4300 digits anyway

_MARK = re.compile(r"####|\banswer\b[*_\s]*(?:is\b|:|=)[*_\s:]*", re.IGNORECASE)
_SENTENCE = re.compile(r"[.!?](?:\s|$)")
_NUMBER = re.compile(
    r"""(?<![\w\\])(?<![0-9][.,/])(?<![^\W\d_]-)         # stands alone: not in x2, 1.2.3, 1/2/3, GPT-4
    (?P<sign>[-+−])?(?:\\?[$£€])?
    (?: \\[dt]?frac\{\s*(?P<top>-?[0-9]++)\s*\}\{\s*(?P<bottom>[0-9]++)\s*\}
      | (?P<value>(?:[1-9][0-9]{0,2}(?:,[0-9]{3})++|[0-9]++)(?:\.[0-9]++)?+|\.[0-9]++)
        (?P<exponent>[eE][-+]?[0-9]{1,3})?+ (?:/(?P<over>[0-9]++))?+ )
    (?!\w|[.,][0-9]|/[0-9])                              # 12km, 1,5 and the superscript of 3² are no numbers
    """,
    re.VERBOSE,
)
# what before a number makes it part of an expression or denies it, and what behind it does
_FUNCTION = "sqrt|log|ln|exp|sin|cos|tan|cot"
_BEFORE = re.compile(
    rf"(?:\\?\b(?:{_FUNCTION})\s*[({{\[]+\s*|\\(?:{_FUNCTION})\s*|√\s*)$|"
    r"(?:[-−–—‐‑±≤≥≠^/÷×·]|[0-9)]\s*\*|\+|\\(?:times|cdot|div|pm|neq?|leq?|geq?)\b"
    r"|(?:\bnot|n't|n’t)(?:\s+\w+){0,2})\s*$",
    re.IGNORECASE,
)
_SCALE = r"(?:hundred|thousand|million|billion|trillion|dozen)\b"
_BEHIND = re.compile(
    r"\s*(?:\\?%\s*)?(?:[+×·÷√²³¹⁰⁴-⁹]|\^(?!\{?\\circ)|\*\s?[0-9(]|/\s*[0-9(]|-\w|,?\s*or\b|"
    rf"\\(?:times|cdot|div|pm|pi|[dt]?frac|{_FUNCTION})\b|{_SCALE})",
    re.IGNORECASE,
)
_UNSETTLED = re.compile(
    rf"\b(?:or|either|not)\b|n['’]t\b|[0-9]\s*{_SCALE}|[^\x00-\x7f](?<=[\d¹²³⁰-₉])|</?[a-z]+>|<!--|(?<!\\)%\s*[0-9\\(]",
    re.IGNORECASE,
)
_ALTERNATIVE = {"or", "either", "alternatively"}
_FILLER = {"and", "to", "then", "also", "through", "but", "maybe", "perhaps", "possibly"}


def conclusion(text: str, marked: bool = False, *, whole_line: bool = False) -> tuple[str, bool] | None:
    r"""The part of `text` that states its answer, and whether something announced it.

    The last marker decides: `\boxed{...}` (the outermost of nested boxes), `####`, `answer is`, `Answer:`. Behind a
    marker in prose the answer ends with its line or sentence (`whole_line`: its line). Without a marker it is the first
    line where the Format had already cut out the answer (`marked`), else the whole text. None where another answer stands beside it.
    """
    boxes = _boxes(text)
    marks = list(_MARK.finditer(text))
    if boxes and (not marks or boxes[-1][0] >= marks[-1].end()):
        start, stop, inside = boxes[-1]
        beside = len(boxes) > 1 and boxes[-2][2] != inside and alternatives(text[boxes[-2][1] : start])
        if beside or re.match(r"[\s$.,]*or\b", text[stop : stop + 40], re.IGNORECASE):
            return None
        return inside.replace("\\boxed{", "{"), True
    if not marks and not marked:
        return text.strip(), False
    if marks:
        text = text[marks[-1].end() :]
    text = text.strip()
    line = text.partition("\n")[0].strip()
    clause = line if whole_line else _SENTENCE.split(line)[0].strip()
    if re.match(r"\W*or\b", text[len(clause) : len(clause) + 40], re.IGNORECASE):
        return None
    return clause, True


@lru_cache(maxsize=4096)  # gold answers are read again for each answer, and answers of a group are often the same
def read_number(text: str, marked: bool = False) -> tuple[Fraction | None, str]:
    """The number a text states as its answer, exactly; or None and why not.

    Read: integers, decimals, `1,234.5`, `3/4` (no spaces), `1e-3`, `\\frac{3}{4}`, a sign, a currency or percent sign
    (units, which are dropped: `50%` is 50, not 0.5), words behind it. Digits are ASCII; other scripts' digits,
    superscripts, `inf`, `nan` and numbers of more than 1000 digits are not read. Where nothing announces the answer it
    is the last number of the text, unless other numbers are offered beside it or it is part of an expression.
    """
    found = conclusion(text, marked)
    if found is None:
        return None, "another answer beside it"
    text, announced = found
    matches = list(_NUMBER.finditer(text))
    if not matches:
        return None, "no number"
    last = matches[-1]
    value = _value(last)
    if value is None:
        return None, "a number that cannot be read"
    between_start = matches[-2].end() if len(matches) > 1 else 0
    between = text[between_start : last.start()]
    if _BEFORE.search(text[max(0, last.start() - 60) : last.start()]) or _BEHIND.match(text, last.end()):
        return None, "an expression or a denial, not a number"
    previous = _value(matches[-2]) if len(matches) > 1 else None
    if alternatives(between) if len(matches) > 1 and previous != value else _offers(between):
        return None, "several numbers offered"
    if announced:
        stated = [m for m in matches if m.start() > text.rfind("=")] or matches
        if any(_value(m) != value for m in stated):
            return None, "several numbers offered"
    return value, ""


def plain_number(text: str) -> Fraction | None:
    """The number that `text` is, with nothing beside it but a percent sign or dollar signs; else None."""
    text = text.strip().removesuffix("$").rstrip("% \\")
    match = _NUMBER.fullmatch(text)
    return _value(match) if match else None


def alternatives(between: str) -> bool:
    """Whether what stands between two answers only lists them: `12 13`, `12, 13`, `12 or 13`, `12 and then 13`."""
    words = set(re.findall(r"[^\W\d_]+", between.lower()))
    return _offers(between) or (words <= _FILLER and not re.search(r"[=≈→⇒]|->", between))


def unsettled(text: str) -> bool:
    """Whether a text lists numbers, names alternatives, denies something, has tags or a comment, or has numbers that
    math-verify cuts short: it reads `12 million`, `12²` and digits of other scripts as far as they are ASCII.
    """
    numbers = list(_NUMBER.finditer(text))
    gaps = [text[a.end() : b.start()] for a, b in pairwise(numbers)]
    listed = any(re.fullmatch(r"[\s,;{}]+|\W*(?:and|to)\W*", gap, re.IGNORECASE) for gap in gaps)
    return listed or bool(_UNSETTLED.search(text))


def _offers(clause: str) -> bool:
    return not _ALTERNATIVE.isdisjoint(re.findall(r"[^\W\d_]+", _SENTENCE.split(clause)[-1].lower()))


def _value(match: re.Match[str]) -> Fraction | None:
    if len(match.group()) > MAX_DIGITS:
        return None
    top, bottom = match["top"], match["bottom"] or match["over"] or "1"
    if int(bottom) == 0:
        return None
    value = Fraction(top or match["value"].replace(",", "") + (match["exponent"] or "")) / int(bottom)
    return -value if match["sign"] in ("-", "−") else value


def _boxes(text: str) -> list[tuple[int, int, str]]:
    r"""(start, end, content) of each outermost `\boxed{...}`; an unclosed one reaches to the end."""
    found: list[tuple[int, int, str]] = []
    position = 0
    while (start := text.find("\\boxed{", position)) >= 0:
        inside = start + len("\\boxed{")
        depth, stop = 1, len(text)
        for brace in re.compile(r"[{}]").finditer(text, inside):
            depth += 1 if brace.group() == "{" else -1
            if depth == 0:
                stop = brace.start()
                break
        found.append((start, stop + 1, text[inside:stop].strip()))
        position = stop + 1
    return found
