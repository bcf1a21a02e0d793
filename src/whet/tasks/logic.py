"""logic: chains of if-then rules from one given fact to a conclusion.

Two chains lead to the atom asked for, one to it and one to its negation, and further chains lead elsewhere; the given
fact starts exactly one of them. So neither the words nor the sign of a rule give the answer away: the chain must be
followed. What no chain settles is truly unknown (an open world, from level 3 on).
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import factorial, perm
from typing import Any

from whet.errors import unknown
from whet.tasks.problem import Check, Corruption, Problem, Response, Step
from whet.tasks.task import Procedural
from whet.tasks.transforms import Transform, cycle

Node = tuple[str, bool]  # an atom and whether it is negated


@dataclass(frozen=True, slots=True)
class Words:
    """One language: two wordings of rules and questions, and one of everything else."""

    rule: tuple[str, str]
    fact: str
    ask: tuple[str, str]
    which: tuple[str, str]
    join: str
    apply: str
    end: str
    needs: str
    missing: str
    settled: str
    negation: str
    answers: tuple[str, str, str]
    plan: str

    def say(self, node: Node) -> str:
        """A node as text: `a`, `not a`."""
        return self.negation + node[0] if node[1] else node[0]


LANGUAGES = {
    "en": Words(
        rule=("If {} then {}.", "{} implies {}."),
        fact="{} is true.",
        ask=("Is {} true?", "Does {} hold?"),
        which=("Which is true: {}?", "Which of these holds: {}?"),
        join=" or ",
        apply="{}, so {}.",
        end="No rule uses {}.",
        needs="{} needs {}.",
        missing="{} is not given.",
        settled="It is settled.",
        negation="not ",
        answers=("yes", "no", "unknown"),
        plan="Start from what is true, apply the rule that uses it, and go on until no rule is left.",
    ),
    "fr": Words(
        rule=("Si {} alors {}.", "{} entraîne {}."),
        fact="{} est vrai.",
        ask=("{} est-il vrai ?", "A-t-on {} ?"),
        which=("Lequel est vrai : {} ?", "Lequel a-t-on : {} ?"),
        join=" ou ",
        apply="{}, donc {}.",
        end="Aucune règle n'utilise {}.",
        needs="{} demande {}.",
        missing="{} n'est pas donné.",
        settled="C'est établi.",
        negation="non ",
        answers=("oui", "non", "inconnu"),
        plan="Partir de ce qui est vrai, appliquer la règle qui l'utilise, et continuer tant qu'il reste une règle.",
    ),
}
FILLERS = {"en": ("", "Read with care. ", "Here is a puzzle. "), "fr": ("", "À lire avec soin. ", "Une énigme. ")}
# level: rules in a chain, chains that lead elsewhere (yes/no form), options (choice form), whether rules negate
LEVELS = {1: (1, 0, 2, False), 2: (2, 0, 3, False), 3: (2, 1, 3, True), 4: (3, 1, 3, True), 5: (4, 1, 4, True)}
YES, NO, UNKNOWN = 0, 1, 2  # which chain is started, and the place of its answer


class Logic(Procedural):
    """`If a then c. If b then not c. a is true. Is c true?` with the rationale `a is true.`, `a, so c.`

    Data set: generated, deterministic; English or (by transform) French. Contents: `data["chains"]` are the chains of
    (atom, negated), `data["started"]` is the one that the given fact starts, `data["support"]` the indices of the
    prompt's sentences that the answer rests on. Answers: yes, no and, from level 3, unknown, equally often; or one
    atom of those offered. Splits: a hash of letters, order and signs. Intended for rationales, faithfulness and
    choice scoring (each choice has a rationale: a derivation, or what is missing for one). Limit: one chain fires, so
    no rule ever needs two premises.

    Args:
        level: 1 to 5, or a range: rules in a chain (1, 2, 2, 3, 4); negations and a dead chain from level 3.
        form: "yesno" asks whether an atom is true, "choice" which one of several is.
        lang: "en" or "fr"; a problem and its translation are in the same split.
    """

    name = "logic"
    levels = tuple(LEVELS)
    default_level = 2
    description = "follow chains of if-then rules: yes, no, unknown, or one of several"

    def __init__(self, level: int | str | None = None, form: str = "yesno", lang: str = "en") -> None:
        super().__init__(level)
        if form not in ("yesno", "choice"):
            raise unknown("form of the logic task", form, ("yesno", "choice"))
        if lang not in LANGUAGES:
            raise unknown("language", lang, LANGUAGES)
        self.form, self.lang = form, lang

    def draw(self, rng: random.Random, level: int) -> tuple[int, ...]:
        """(lengths of the chains..., letters, order of the rules, signs, chain started), the last four as numbers."""
        length, dead, options, negates = LEVELS[level]
        chains = options if self.form == "choice" else 2 + dead
        lengths = (length,) * chains
        atoms = _count_atoms(lengths, self.form)
        letters = rng.randrange(perm(26, atoms))
        order = rng.randrange(factorial(length * chains))
        signs = rng.getrandbits(chains * (length - 1)) if negates and length > 1 else 0
        return (*lengths, letters, order, signs, rng.randrange(chains))

    def build(self, parameters: tuple[int, ...], level: int) -> Problem:
        *lengths, letters_code, order_code, signs, started = parameters
        letters = iter(_arrangement(letters_code, string.ascii_lowercase, _count_atoms(lengths, self.form)))
        target = next(letters) if self.form == "yesno" else ""
        chains: list[tuple[Node, ...]] = []
        for i, length in enumerate(lengths):
            nodes = [(next(letters), False)]
            for _ in range(length - 1):
                nodes.append((next(letters), bool(signs & 1)))
                signs >>= 1
            nodes.append((target, i == NO) if self.form == "yesno" and i < UNKNOWN else (next(letters), False))
            chains.append(tuple(nodes))
        rules = [(i, j) for i, length in enumerate(lengths) for j in range(length)]
        data = {
            "form": self.form,
            "chains": tuple(chains),
            "order": tuple(_arrangement(order_code, rules, len(rules))),
            "started": started,
            "shift": 0,
            "backward": False,
            "lang": self.lang,
            "wording": 0,
            "filler": 0,
        }
        return _word(data, level)

    def check(self, problem: Problem, response: Response) -> list[Check]:
        """One check a step, then the answer's. A step may build on any step before it, right or wrong."""
        words = LANGUAGES[problem.data["lang"]]
        rules = {(a, b) for a, b in _rules(_chains(problem.data), problem.data["order"])}
        given = _chains(problem.data)[problem.data["started"]][0]
        lines = [line.strip() for line in response.rationale.splitlines() if line.strip()]
        checks: list[Check] = []
        held: set[Node] = set()
        for i in range(max(len(problem.steps), len(lines))):
            name = f"step {i + 1}"
            if i >= len(lines):
                checks.append(Check(name, "n.a.", "no such step found"))
                continue
            reason = _fault(lines[i], words, rules, given, held)
            checks.append(Check(name, "fail" if reason else "pass", reason))
        return [*checks, *super().check(problem, response)]

    def corrupt(self, problem: Problem, rng: random.Random) -> Corruption:
        """Labels: fact (one that is not given), rule (one that is not there), negation (a rule's end reversed) and,
        where unknown is an answer, stop (a rule overlooked).
        """
        data = problem.data
        words, chains, started = LANGUAGES[data["lang"]], _chains(data), data["started"]
        chain = chains[started]
        last = len(chain) - 1
        labels = ["fact", "rule"]
        if data["form"] == "yesno" and started < UNKNOWN:
            labels += ["negation", "stop"] if len(chains) > UNKNOWN else ["negation"]
        label = rng.choice(labels)
        if label in ("fact", "rule"):
            other = rng.choice([i for i in range(len(chains)) if i != started])
            at = 0 if label == "fact" else rng.randint(1, last)
            nodes, ends = (*chain[:at], *chains[other][at:]), _is_dead(other, data["form"])
            return Corruption(_steps(nodes, words, ends), _answer(data, other), label, at)
        if label == "negation":
            atom, negated = chain[last]
            nodes = (*chain[:last], (atom, not negated))
            return Corruption(_steps(nodes, words, False), _answer(data, 1 - started), label, last)
        at = rng.randint(1, last)
        return Corruption(_steps(chain[:at], words, True), words.answers[UNKNOWN], label, at)

    def transforms(self) -> Mapping[str, tuple[Transform, Transform]]:
        return {
            "language": cycle(_word, "lang", ("en", "fr")),
            "paraphrase": cycle(_word, "wording", (0, 1)),
            "filler": cycle(_word, "filler", range(len(FILLERS["en"]))),
            "rename": cycle(_word, "shift", (0, 13)),
            "reorder": cycle(_word, "backward", (False, True)),
        }

    def spec(self) -> str:
        own = {"form": (self.form, "yesno"), "lang": (self.lang, "en")}
        options = {"level": self._given, **{k: v for k, (v, usual) in own.items() if v != usual}}
        given = ",".join(f"{k}={v}" for k, v in options.items() if v is not None)
        return f"{self.name}:{given}" if given else self.name

    def max_answer_tokens(self) -> int:
        length = LEVELS[self.chosen[-1]][0]
        return 16 + length * len("non x, donc non y. ") + len("Aucune règle n'utilise non y. ".encode()) + 24


def _word(data: Mapping[str, Any], level: int) -> Problem:
    words = LANGUAGES[data["lang"]]
    chains, started, wording = _chains(data), data["started"], data["wording"]
    order = data["order"][::-1] if data["backward"] else data["order"]
    sentences = [words.rule[wording].format(words.say(a), words.say(b)) for a, b in _rules(chains, order)]
    sentences.append(words.fact.format(words.say(chains[started][0])))
    if data["form"] == "choice":
        choices = tuple(chain[-1][0] for chain in chains)
        listed = ", ".join(choices[:-1]) + words.join + choices[-1]
        question = words.which[wording].format(listed)
    else:
        choices = words.answers[: len(chains)]
        question = words.ask[wording].format(chains[YES][-1][0])
    steps = _steps(chains[started], words, _is_dead(started, data["form"]))
    support = (*(order.index((started, j)) for j in range(len(chains[started]) - 1)), len(sentences) - 1)
    return Problem(
        id="",
        prompt=FILLERS[data["lang"]][data["filler"]] + " ".join([*sentences, question]),
        answer=_answer(data, started),
        level=level,
        steps=steps,
        plan=words.plan,
        choices=choices,
        choice_rationales=tuple(
            _for_choice(i, data["form"], chains, started, steps, words) for i in range(len(choices))
        ),
        category=data["form"],
        data={**data, "support": support},
    )


def _answer(data: Mapping[str, Any], chain: int) -> str:
    """The answer that a chain leads to."""
    if data["form"] == "choice":
        return _chains(data)[chain][-1][0]
    return LANGUAGES[data["lang"]].answers[min(chain, UNKNOWN)]


def _for_choice(
    i: int, form: str, chains: Sequence[Sequence[Node]], started: int, steps: tuple[Step, ...], words: Words
) -> str:
    """The derivation of a choice, or what is missing for one."""
    if i == started:
        return "\n".join(s.text for s in steps)
    if _is_dead(i, form):
        return f"{steps[-1].text}\n{words.settled}"
    nodes = chains[i]
    needs = [words.needs.format(words.say(b), words.say(a)) for a, b in zip(nodes[-2::-1], nodes[:0:-1], strict=True)]
    return "\n".join([*needs, words.missing.format(words.say(nodes[0]))])


def _steps(nodes: Sequence[Node], words: Words, dead: bool) -> tuple[Step, ...]:
    """From the first node, which is given, to the last; a dead chain's end is stated."""
    steps = [Step(words.fact.format(words.say(nodes[0])), "given", "fact")]
    for i, (a, b) in enumerate(pairwise(nodes)):
        steps.append(
            Step(words.apply.format(words.say(a), words.say(b)), "apply", "negation" if a[1] or b[1] else "rule", (i,))
        )
    if dead:
        steps.append(Step(words.end.format(words.say(nodes[-1])), "conclude", "unknown", (len(steps) - 1,)))
    return tuple(steps)


def _fault(line: str, words: Words, rules: set[tuple[Node, Node]], given: Node, held: set[Node]) -> str:
    """What is wrong with a step, or "". What it states is held from then on, so that an error fails once."""
    if read := _read(line, words.end, words):
        (node,) = read
        if any(a == node for a, _ in rules):
            return f"a rule uses '{words.say(node)}'"
        return "" if node in held else f"'{words.say(node)}' was not derived"
    if read := _read(line, words.fact, words):
        (node,) = read
        reason = "" if node == given else f"'{words.say(node)}' is not given"
    elif read := _read(line, words.apply, words):
        before, node = read
        reason = "" if before in held else f"'{words.say(before)}' was not derived"
        reason = reason if (before, node) in rules else "no such rule"
    else:
        return "not a step of this kind"
    reason = reason or ("said before" if node in held else "")
    held.add(node)
    return reason


def _read(line: str, form: str, words: Words) -> list[Node] | None:
    """The nodes in a line of the form, such as `{}, so {}.`; None where it is of another."""
    literal = rf"({words.negation})?([a-z])"
    found = re.fullmatch(re.escape(form).replace(r"\{\}", literal), line)
    if not found:
        return None
    parts = found.groups()
    return [(atom, negation is not None) for negation, atom in zip(parts[::2], parts[1::2], strict=True)]


def _chains(data: Mapping[str, Any]) -> tuple[tuple[Node, ...], ...]:
    """The chains under the names that the transform `rename` gives to the atoms."""
    shift = data["shift"]
    if not shift:
        return data["chains"]
    rotate = {c: string.ascii_lowercase[(i + shift) % 26] for i, c in enumerate(string.ascii_lowercase)}
    return tuple(tuple((rotate[atom], negated) for atom, negated in chain) for chain in data["chains"])


def _rules(chains: Sequence[Sequence[Node]], order: Sequence[tuple[int, int]]) -> list[tuple[Node, Node]]:
    return [(chains[i][j], chains[i][j + 1]) for i, j in order]


def _is_dead(chain: int, form: str) -> bool:
    return form == "yesno" and chain >= UNKNOWN


def _count_atoms(lengths: Sequence[int], form: str) -> int:
    return sum(lengths) + len(lengths) - (form == "yesno")  # whose first two chains share their end


def _arrangement(code: int, items: Sequence[Any], k: int) -> list[Any]:
    """The `k`-arrangement of `items` with number `code`; one code an arrangement, so equal texts have equal codes."""
    pool = list(items)
    chosen = []
    for _ in range(k):
        code, i = divmod(code, len(pool))
        chosen.append(pool.pop(i))
    return chosen
