"""The words of the task finance, and its two subtasks on text: the sentiment of a headline, and what a deal says.

Each subtask on text is a function of its data that gives the wording, and one that misreads it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from whet.tasks.problem import Corruption, Step

ITEMS = ("sales", "costs", "profits", "debts", "taxes", "wages")
FILLERS = ("", "From the annual report. ", "Read with care. ")
# two wordings each
ASK = {
    "lookup": ("What were the {item} in {year}?", "How high were the {item} in {year}?"),
    "compare": ("Which year had higher {item}, {a} or {b}?", "In which year were the {item} higher, {a} or {b}?"),
    "sum": ("What is the sum of the {item}?", "How much are the {item} of all years together?"),
    "change": (
        "By what percent did the {item} change from {a} to {b}?",
        "What is the change of the {item} from {a} to {b} in percent?",
    ),
    "ratio": (
        "How many times the {item} of {a} are the {item} of {b}?",
        "What is the ratio of the {item} of {b} to those of {a}?",
    ),
    "interest": (
        "A loan of {sum} at {rate}% a year for {years} years. What is the simple interest?",
        "How much simple interest does {sum} bear at {rate}% a year in {years} years?",
    ),
    "repayment": (
        "A loan of {sum} at {rate}% a year for {years} years. What is paid back with simple interest?",
        "How much do {sum} grow to at {rate}% simple interest a year in {years} years?",
    ),
}
PLANS = {
    "lookup": "Find the column, then the row, and read the value.",
    "compare": "Read both values and compare them.",
    "sum": "Add the values of the column one after another.",
    "change": "Read both values, subtract the first from the second, times a hundred, over the first.",
    "ratio": "Read both values and divide the second by the first.",
    "interest": "Multiply by the rate, divide by a hundred, multiply by the years.",
    "repayment": "Multiply by the rate, divide by a hundred, multiply by the years, add the loan.",
    "sentiment": "Find the words that judge, see what turns them around or sets them aside, and conclude.",
    "extract": "Find the deal that is asked about and read the part that is asked for.",
}


@dataclass(frozen=True, slots=True)
class Draft:
    """A worded question on text."""

    prompt: str
    answer: str
    steps: tuple[Step, ...]
    choices: tuple[str, ...] = ()
    choice_rationales: tuple[str, ...] = ()


def company(i: int) -> str:
    """Company number `i`, below COMPANIES."""
    first, second = divmod(i, len(_SYLLABLES))
    return f"{_SYLLABLES[first]}{_SYLLABLES[second]}x".capitalize()


_SYLLABLES = tuple(c + v for c in "bdfklmnprstvz" for v in "aeo")
COMPANIES = len(_SYLLABLES) ** 2

# -- sentiment ---------------------------------------------------------------------------------------------------------
LABELS = ("positive", "negative", "neutral")
POSITIVE, NEGATIVE, NEUTRAL = range(3)
VERBS = (
    ("gains", "jumps", "soars", "climbs", "rallies"),
    ("falls", "drops", "slides", "sinks", "plunges"),
    ("moves its office", "names a new chief", "holds its meeting", "renews its website", "hires an auditor"),
)
NOUNS = (
    ("record profit", "strong demand", "a large order", "rising sales"),
    ("a heavy loss", "weak demand", "a lawsuit", "falling sales"),
    ("a new address", "a stock split", "a meeting date", "a new logo"),
)
TURNS = ("fails to win", "loses", "is denied", "misses out on"), ("avoids", "escapes", "overcomes", "averts")
TAILS = ("on Monday", "on Tuesday", "on Wednesday", "on Thursday", "on Friday", "this week", "this month", "today")
SENTIMENT = (
    'Headline: "{}." Is it positive, negative or neutral?',
    'Positive, negative or neutral news? "{}."',
)


def draw_sentiment(rng: random.Random, level: int) -> tuple[int, ...]:
    """(form, company, tail, sentiment of the first cue, its word, word of the second cue)."""
    form = int(rng.random() * level)  # a level has all forms up to its own
    kind = int(rng.random() * (2 if form >= 2 else 3))
    words = len((VERBS, NOUNS, NOUNS, VERBS)[form][kind])
    second = 0 if form < 2 else int(rng.random() * 4)
    return form, int(rng.random() * COMPANIES), int(rng.random() * len(TAILS)), kind, int(rng.random() * words), second


def word_sentiment(data: Mapping[str, Any]) -> Draft:
    """The headline's form: a verb, a noun, a noun turned around, or a verb with a noun set aside."""
    _, name, tail, kind, *_ = data["asked"]
    cue, second = _cues(data)
    form = data["asked"][0]
    clause = {0: cue, 1: f"reports {cue}", 2: f"{second} {cue}", 3: f"{cue} despite {second}"}[form]
    headline = f"{company(name)} {clause} {TAILS[tail]}"
    result = 1 - kind if form == 2 else kind
    steps = _sentiment_steps(form, cue, second, kind, result)
    rationales = [f"What counts here is not {label}." for label in LABELS]
    rationales[result] = "\n".join(s.text for s in steps)
    return Draft(SENTIMENT[data["wording"]].format(headline), LABELS[result], steps, LABELS, tuple(rationales))


def misread_sentiment(data: Mapping[str, Any], rng: random.Random) -> Corruption:
    """Labels: cue (a word misjudged), turn (a reversal overlooked), aside (the wrong part set aside)."""
    form, _, _, kind, *_ = data["asked"]
    cue, second = _cues(data)
    wrong = rng.choice([i for i in range(3) if i != kind and (form != 2 or i != NEUTRAL)])
    if form == 2 and rng.random() < 0.5:
        steps = _sentiment_steps(form, cue, second, kind, kind)
        return Corruption(steps, LABELS[kind], "turn", 1)
    if form == 3 and rng.random() < 0.5:
        return Corruption(_sentiment_steps(form, second, cue, 1 - kind, 1 - kind), LABELS[1 - kind], "aside", 0)
    result = 1 - wrong if form == 2 else wrong
    return Corruption(_sentiment_steps(form, cue, second, wrong, result), LABELS[result], "cue", int(form == 3))


def _cues(data: Mapping[str, Any]) -> tuple[str, str]:
    """The word that judges, and the one that turns it around or is set aside."""
    form, _, _, kind, word, second = data["asked"]
    cue = (VERBS, NOUNS, NOUNS, VERBS)[form][kind][word]
    return cue, TURNS[kind][second] if form == 2 else NOUNS[1 - kind][second] if form == 3 else ""


def _sentiment_steps(form: int, cue: str, second: str, kind: int, result: int) -> tuple[Step, ...]:
    judged = Step(f"{cue}: {LABELS[kind]}", "cue", "sentiment", (0,) if form == 3 else ())
    if form == 2:
        return judged, Step(f"{second}: {LABELS[result]}", "turn", "negation", (0,))
    if form == 3:
        return Step(f"set aside: {second}", "aside", "concession"), judged
    return (judged,)


# -- extract -----------------------------------------------------------------------------------------------------------
DEALS = (
    ("{buyer} bought {target} for {price} million in {year}.", "In {year}, {buyer} paid {price} million for {target}."),
    ("{target} went to {buyer} for {price} million in {year}.", "In {year}, {buyer} got {target} for {price} million."),
)
FIELDS = ("buyer", "target", "price", "year")
ASK_DEAL = {
    "buyer": ("Who bought {target}?", "Which company bought {target}?"),
    "target": ("What did {buyer} buy?", "Which company was bought by {buyer}?"),
    "price": ("How many million were paid for {target}?", "For how many million was {target} bought?"),
    "year": ("When was {target} bought?", "In which year was {target} bought?"),
}


def draw_extract(rng: random.Random, level: int) -> tuple[Any, ...]:
    """(field asked for, deal asked about, ((buyer, target, price, year, form), ...)); names are not repeated."""
    count = (1, 1, 2, 3)[level - 1]
    forms = 1 if level == 1 else 2
    names: dict[int, None] = {}
    while len(names) < 2 * count:
        names[int(rng.random() * COMPANIES)] = None
    firms = list(names)
    deals = tuple(
        (firms[2 * i], firms[2 * i + 1], 10 + int(rng.random() * 90), 2001 + int(rng.random() * 20),
         int(rng.random() * forms))
        for i in range(count)
    )  # fmt: skip
    return FIELDS[int(rng.random() * 4)], int(rng.random() * count), deals


def word_extract(data: Mapping[str, Any]) -> Draft:
    """One to three deals, told in the active or the passive voice, and a question about one of them."""
    field, which, deals = data["asked"]
    told = [_fields(deal, data["scale"]) for deal in deals]
    sentences = [DEALS[deal[4]][data["wording"]].format(**f) for deal, f in zip(deals, told, strict=True)]
    question = ASK_DEAL[field][data["wording"]].format(**told[which])
    answer = told[which][field]
    return Draft(" ".join([*sentences, question]), answer, (_extract_step(field, told[which], answer),))


def misread_extract(data: Mapping[str, Any], rng: random.Random) -> Corruption:
    """Labels: role (the other side of the deal), copy (a digit), deal (another deal's value)."""
    field, which, deals = data["asked"]
    told = [_fields(deal, data["scale"]) for deal in deals]
    right = told[which][field]
    others = [f[field] for i, f in enumerate(told) if i != which and f[field] != right]
    if others and rng.random() < 0.5:
        label, wrong = "deal", rng.choice(others)
    elif field in ("buyer", "target"):
        label, wrong = "role", told[which]["target" if field == "buyer" else "buyer"]
    else:
        label, wrong = "copy", miscopied(right, rng)
    return Corruption((_extract_step(field, told[which], wrong),), wrong, label, 0)


def miscopied(digits: str, rng: random.Random) -> str:
    """The number with its last digit other than 0 replaced by another such digit."""
    kept = digits.rstrip("0")
    return kept[:-1] + rng.choice([d for d in "123456789" if d != kept[-1]]) + digits[len(kept) :]


def _fields(deal: tuple[int, ...], scale: int) -> dict[str, str]:
    buyer, target, price, year, _ = deal
    return {"buyer": company(buyer), "target": company(target), "price": str(price * scale), "year": str(year)}


def _extract_step(field: str, deal: Mapping[str, str], value: str) -> Step:
    of = deal["buyer" if field == "target" else "target"]
    return Step(f"{field} for {of}: {value}", "lookup", "extract")
