"""Pensez (2503.13661): a few hundred curated rows in two languages, most of them long, the traces in one language.

    L = - sum_t log p(y_t | x, y_<t) / (number of learnt tokens),  y = trace, answer, end;  inputs + U(+-alpha / sqrt(L d))

Half of the questions are translated, with their answers; their traces stay in the first language. Of each half 70 % are
among the longer traces of what was drawn and the rest among the shorter, so that simple questions get short traces. Rows
that are too long, repeated, wrong or in the wrong language are dropped, and counted.

Departures: translation and traces are the task's (its `language` transform), not a large model's; languages are told by
their small words and not by fastText; rows are padded and not packed. A file without such a transform brings its own
rows: `bilingual=0`.

    whet run pensez
    whet run pensez bilingual=0 --task mine.jsonl
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from whet.errors import WhetError
from whet.objectives import nll
from whet.objectives.views import Neftune
from whet.recipes.recipe import Recipe, recipe
from whet.recipes.supervised.sft import sft
from whet.seeds import rng_for
from whet.sources import Curated
from whet.sources.curation import Correct, Distinct, Filter, Language, Length, Rank, Subset
from whet.tasks import Problem, Task


@dataclass
class Bilingual(Curated):
    """The curated set; each subset's `dress` is found when the task is known.

    Attributes:
        translated: names of the subsets in the second language.
        keep_traces: whether their traces stay in the first one.
        noise: share of rows whose trace and answer are the task's corruptions, before any filter.
    """

    translated: frozenset[str] = frozenset()
    keep_traces: bool = True
    noise: float = 0.0

    def bind(self, task: Task) -> None:
        super().bind(task)
        language = task.transforms().get("language")
        if self.translated and language is None:
            raise WhetError(f"pensez: task '{task.name}' has no transform `language`; use a task that has one (logic, "
                            "word-problem), or bilingual=0")  # fmt: skip
        if self.noise and "corruptions" not in task.provides():
            raise WhetError(f"pensez: task '{task.name}' writes no wrong rationales; leave noise at 0")

        def dress(problem: Problem, seed: int, second: bool) -> Problem:
            other = language[0](problem) if second and language else problem
            shown = replace(other, steps=problem.steps) if self.keep_traces else other
            rng = rng_for(seed, "noise", problem.id)
            if rng.random() >= self.noise:
                return shown
            wrong = task.corrupt(other, rng)
            data = {**shown.data, "reference": shown.answer}
            return replace(shown, steps=wrong.steps, answer=wrong.answer, data=data)

        for subset in self.subsets:
            second = subset.name in self.translated
            subset.dress = lambda problem, seed, second=second: dress(problem, seed, second)


@recipe(paper="pensez", parent="sft", task="logic:level=1-3")
def pensez(
    rows: int = 400,
    bilingual: float = 0.5,
    long: float = 0.7,
    traces: str = "kept",
    curate: bool = True,
    noise: float = 0.0,
    check_language: bool = True,
    neftune: float = 5.0,
    padded: bool = False,
    epochs: int = 5,
    steps: int = 0,
    batch: int = 32,
    **training: Any,
) -> Recipe:
    """Learn a small curated set in two languages, with traces in one.

    Args:
        rows: rows of the set.
        bilingual: share of them in the second language.
        long: share of each language's rows that are from the longer half of the traces.
        traces: of the second language's rows: kept in the first, or translated.
        curate: whether wrong, repeated and foreign rows are dropped and long ones preferred; else rows are as drawn.
        noise: share of rows that are made wrong beforehand, to be filtered out or learnt.
        check_language: whether rows are dropped whose words are not of their language (English, then French).
        neftune: scale of the noise on input embeddings (alpha); 0 is off.
        padded: whether its L is the padded length of the batch, as in the release, or each row's own.
        epochs: passes over the set, where steps is 0.
        steps: optimizer steps instead.
        batch: rows a step.
    """
    if traces not in ("kept", "translated"):
        raise WhetError(f"pensez: traces are kept or translated, not '{traces}'")
    for name, share in (("bilingual", bilingual), ("long", long), ("noise", noise)):
        if not 0 <= share <= 1:
            raise WhetError(f"pensez: {name} is a share from 0 to 1, not {share:g}")
    if not training.get("rationale", True) or training.get("objective"):
        raise WhetError("pensez learns traces by likelihood: leave out rationale and objective")
    each_epoch = max(1, -(-rows // batch))
    view = Neftune(neftune, padded) if neftune else None
    made = sft(objective=nll(normalise=training.pop("normalise", "token"), view=view), batch=batch,
               steps=steps or epochs * each_epoch, **training)  # fmt: skip
    second = round(bilingual * rows)
    counts = {}
    for name, n in (("first", rows - second), ("second", second)):
        counts |= {f"{name}, long": round(long * n), f"{name}, short": n - round(long * n)}

    def filters(name: str) -> list[Filter]:
        if not curate:
            return [Length()]
        own = "fr" if name.startswith("second") else "en"
        spoken = [Language(own, own if traces == "translated" else "en", 0.99 if own == "fr" else 0.95)]
        return [
            Length(),
            Distinct(),
            Correct(),
            *(spoken if check_language else []),
            Rank("longest" if name.endswith("long") else "shortest"),
        ]

    stage = made.stages[0]
    stage.name, stage.keep_every = "pensez", each_epoch
    stage.collect = Bilingual([Subset(name, n, filters(name)) for name, n in counts.items()],
                              translated=frozenset(n for n in counts if n.startswith("second") and counts[n]),
                              keep_traces=traces == "kept", noise=noise)  # fmt: skip
    return made
