"""Curation: small sets made by filters, each of which says how many rows it dropped.

    Curated([Subset("long", 140, filters=[Distinct(), Correct(), Rank("longest")]), Subset("short", 60, ...)])

A subset draws a pool of problems, dresses them (a translation, say), filters them in order and keeps the first so many. It
is made once, when its stage is entered. A filter is a small pure function of problems; those that ask the model (tokens,
difficulty) get the policy of that moment.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import ceil

from whet.errors import WhetError, unknown
from whet.models.policy import Policy
from whet.records import Row
from whet.sampling.sampler import SamplingSettings
from whet.seeds import seed_for
from whet.sources.collector import Scope, Stored, trim
from whet.sources.filters import answered
from whet.sources.problems import Problems
from whet.sources.rollouts import ask, distinct
from whet.tasks import Problem, Response, Step
from whet.tasks.answers import conclusion

Dress = Callable[[Problem, int], Problem]  # a problem and a seed -> the row that is made of it


class Filter:
    """Keeps some of the problems.

    Attributes:
        name: as it appears in the counts.
        needs: what the task must provide.
    """

    name: str = "filter"
    needs: frozenset[str] = frozenset()

    def keep(self, problems: Sequence[Problem], policy: Policy, scope: Scope) -> list[Problem]:
        """Those that pass, in their order."""
        raise NotImplementedError


@dataclass
class Length(Filter):
    """Demonstrations of `low` to `high` tokens, prompt included; 0 is the longest that the model takes."""

    low: int = 1
    high: int = 0
    name: str = "length"

    def keep(self, problems: Sequence[Problem], policy: Policy, scope: Scope) -> list[Problem]:
        high = min(self.high or policy.max_length, policy.max_length)
        return [p for p in problems if self.low <= len(policy.format.demonstration(p)) <= high]


@dataclass
class Distinct(Filter):
    """The first of equal prompts, whatever their case, spaces and punctuation."""

    name: str = "repeated"

    def keep(self, problems: Sequence[Problem], policy: Policy, scope: Scope) -> list[Problem]:
        first: dict[str, Problem] = {}
        for problem in problems:
            first.setdefault(" ".join(re.findall(r"[\w+*/<>=-]+", problem.prompt.casefold())), problem)
        return list(first.values())


@dataclass
class Correct(Filter):
    r"""Rows whose own answer is the reference, by the task's verifier.

    The row's own answer is what its response concludes with (`\boxed{}`, with braces matched, then `Answer:`), else its
    answer field; the reference is `data["reference"]` where there is one, else the answer field.
    """

    name: str = "wrong"
    needs = frozenset({"verifier"})

    def keep(self, problems: Sequence[Problem], policy: Policy, scope: Scope) -> list[Problem]:
        return [p for p in problems if self._right(p, scope)]

    def _right(self, problem: Problem, scope: Scope) -> bool:
        reference = str(problem.data.get("reference", problem.answer))
        own = own_answer(problem)
        if option_letters(own) and option_letters(own) == option_letters(reference):
            return True
        asked = replace(problem, answer=reference)
        return scope.task.verify(asked, Response(own, own)).value == 1.0


@dataclass
class Language(Filter):
    """Rows whose question and answer are in one language and whose rationale is in another (or the same).

    A text passes where more than `sure` of the words that tell languages apart are of the language; a text without such
    words (a number, a formula) passes.
    """

    question: str
    rationale: str
    sure: float = 0.95
    name: str = "language"

    def __post_init__(self) -> None:
        for given in (self.question, self.rationale):
            if given not in WORDS:
                raise unknown("language", given, WORDS)

    def keep(self, problems: Sequence[Problem], policy: Policy, scope: Scope) -> list[Problem]:
        return [
            p for p in problems
            if is_in(f"{p.prompt}\n{p.answer}", self.question, self.sure) and is_in(p.rationale, self.rationale, self.sure)
        ]  # fmt: skip


@dataclass
class Rank(Filter):
    """The `longest` or `shortest` share of what comes, by the characters of the rationale; ties in their order."""

    which: str = "longest"
    share: float = 0.5
    name: str = "rank"

    def __post_init__(self) -> None:
        if self.which not in ("longest", "shortest"):
            raise unknown("rank", self.which, ("longest", "shortest"))

    def keep(self, problems: Sequence[Problem], policy: Policy, scope: Scope) -> list[Problem]:
        sign = -1 if self.which == "longest" else 1
        order = sorted(range(len(problems)), key=lambda i: sign * len(problems[i].rationale))
        kept = sorted(order[: ceil(self.share * len(problems))])
        return [problems[i] for i in kept]


@dataclass
class Shortest(Filter):
    """Of several rows that ask the same, the one whose demonstration has the fewest tokens; the first of equal ones.

    Behind `Correct` it is the shortest correct trace of each problem.
    """

    name: str = "longer"

    def keep(self, problems: Sequence[Problem], policy: Policy, scope: Scope) -> list[Problem]:
        shortest: dict[tuple[int, ...], tuple[int, Problem]] = {}
        for problem in problems:
            sample = policy.format.demonstration(problem)
            asked = tuple(sample.ids[: sample.prompt_length])
            if asked not in shortest or len(sample) < shortest[asked][0]:
                shortest[asked] = (len(sample), problem)
        return [problem for _, problem in shortest.values()]


@dataclass
class Difficulty(Filter):
    """Problems that the model solves in a share from `low` to `high` of `samples` answers.

    It is one operation at the stage's entry: its counts and rows are kept with the stage.
    """

    low: float = 0.0
    high: float = 0.9
    samples: int = 4
    name: str = "difficulty"
    needs = frozenset({"verifier"})

    def keep(self, problems: Sequence[Problem], policy: Policy, scope: Scope) -> list[Problem]:
        accuracy = answered(problems, self.samples, policy, scope.task, seed_for(scope.seed, "difficulty"))
        rates = (accuracy == 1.0).mean(1)
        return [p for p, rate in zip(problems, rates, strict=True) if self.low <= rate <= self.high]


@dataclass
class Agreed(Filter):
    """Problems on whose answer another, stronger model agrees with itself; its reasoning becomes what is learnt.

    Of its answers the plurality counts, if `share` of all say it. Where the problem has a gold answer it must be right; where
    it has none it stands for the truth. The rationale is that of the first answer in the plurality. What the model costs is
    not part of the run's compute.

    Attributes:
        model: a policy, or the name of one that is loaded when it is first asked.
    """

    model: Policy | str
    samples: int = 5
    share: float = 0.5
    name: str = "no agreement"
    needs = frozenset({"verifier"})

    def keep(self, problems: Sequence[Problem], policy: Policy, scope: Scope) -> list[Problem]:
        if isinstance(self.model, str):
            from whet.models.base import load

            self.model = load(self.model)
        settings = SamplingSettings(scope.task.max_answer_tokens(), temperature=1.0)
        answers = ask(self.model, problems, settings, self.samples, seed_for(scope.seed, "agreed"))
        read = self.model.format.read
        told = (self._told(p, [read(s) for s in own], scope) for p, own in zip(problems, answers, strict=True))
        return [problem for problem in told if problem is not None]

    def _told(self, problem: Problem, responses: Sequence[Response], scope: Scope) -> Problem | None:
        judged = [(r, scope.task.verify(problem, r)) for r in responses if r.ended and r.answer]
        labels = [v.label if v.label is not None else " ".join((r.answer or "").split()) for r, v in judged]
        if not labels:
            return None
        plurality, votes = Counter(labels).most_common(1)[0]
        response, verdict = judged[labels.index(plurality)]
        if votes < self.share * self.samples or (problem.answer is not None and verdict.value != 1.0):
            return None
        return replace(problem, answer=response.answer, steps=tuple(Step(t) for t in response.rationale.splitlines()))


@dataclass
class Subset:
    """A part of a curated set.

    Attributes:
        rows: how many are wanted.
        filters: in order.
        dress: what is made of each problem before it is filtered.
        over: problems drawn for each row that is wanted.
    """

    name: str
    rows: int
    filters: Sequence[Filter] = ()
    dress: Dress | None = None
    over: int = 3


@dataclass
class Curated(Stored):
    """Demonstrations of curated problems. The subsets share no problem.

    A subset that comes out short is counted; one that comes out empty is an error, as is a short one where `exact`.
    """

    subsets: Sequence[Subset]
    exact: bool = False
    needs: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        Stored.__init__(self)
        named = [f.needs for s in self.subsets for f in s.filters]
        self.needs = frozenset({"demonstrations"}).union(*named)

    def build(self, problems: Problems, policy: Policy, scope: Scope) -> list[Row]:
        rows, counts, used = [], dict[str, int](), set[str]()
        for subset in self.subsets:
            if not subset.rows:
                continue
            drawn = [p for p in distinct(problems.draw(subset.over * subset.rows)) if p.id not in used]
            pool = [subset.dress(p, scope.seed) for p in drawn] if subset.dress else drawn
            told = {"drawn": len(pool)}
            for filtering in subset.filters:
                kept = filtering.keep(pool, policy, scope)
                told[f"dropped, {filtering.name}"] = len(pool) - len(kept)
                pool = kept
            chosen = pool[: subset.rows]
            told["kept"] = len(chosen)
            if not chosen or (self.exact and len(chosen) < subset.rows):
                how = ", ".join(f"{what} {n}" for what, n in told.items())
                raise WhetError(f"curation: subset '{subset.name}' wants {subset.rows} rows and found {len(chosen)} ({how}); "
                                "give more problems, or loosen a filter")  # fmt: skip
            used |= {p.id for p in chosen}
            rows += [Row({"response": trim(policy.format.demonstration(p), policy.max_length)}) for p in chosen]
            counts |= {f"{subset.name}: {what}": n for what, n in told.items()}
        self.counts = counts
        return rows


# -- what a row says ---------------------------------------------------------------------------------------------------
def own_answer(problem: Problem) -> str:
    """What a row's response concludes with, or its answer where it announces nothing."""
    found = conclusion(problem.rationale) if problem.rationale else None
    return found[0] if found is not None and found[1] else problem.answer or ""


def option_letters(text: str) -> str:
    """`ABD` of `ABD`, `A, B, D` and `(A) (B) (D)`: the chosen options in order; "" where the text is something else."""
    bare = re.sub(r"[\s,;()]|\band\b", "", text)
    return "".join(sorted(bare)) if re.fullmatch(r"[A-Z]{1,8}", bare) and len(set(bare)) == len(bare) else ""


# -- languages ---------------------------------------------------------------------------------------------------------
WORDS = {
    "en": {"the", "is", "are", "was", "if", "then", "implies", "so", "true", "does", "do", "how", "many", "much", "has", "have", "had", "of", "which", "and", "not", "no", "yes", "now", "with", "what", "where", "when", "who", "will", "each", "more", "than", "there", "this", "that", "from", "in", "it", "unknown", "uses", "some", "any", "every"},
    "fr": {"le", "la", "les", "est", "sont", "si", "alors", "donc", "vrai", "entraîne", "combien", "quel", "quelle", "lequel", "et", "non", "oui", "maintenant", "avec", "ou", "où", "quand", "qui", "chaque", "plus", "que", "il", "elle", "une", "un", "des", "du", "au", "aux", "dans", "pour", "ce", "cette", "inconnu", "règle", "utilise", "pas", "fois", "encore", "puis", "début", "fin"},
}  # fmt: skip


def is_in(text: str, language: str, sure: float = 0.95) -> bool:
    """Whether the words of a text that tell languages apart are of `language`; formulas are left out first."""
    bare = re.sub(r"\$[^$]*\$|\\\(.*?\\\)|\\\[.*?\\\]", " ", text, flags=re.DOTALL).casefold()
    words = [w for w in re.findall(r"[^\W\d_]+", bare) if len(w) > 1]
    told = {name: sum(w in known for w in words) for name, known in WORDS.items()}
    return not sum(told.values()) or told[language] > sure * sum(told.values()) - 1e-9
