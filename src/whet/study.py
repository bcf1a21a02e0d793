"""Study: a paper's claim at small scale, with what would count as reproduced fixed in code before anything is run.

    @study(paper="grpo", claim="...", arms={"sft": "sft", "grpo": "grpo"}, budget="flops:1e13")
    def grpo(scores: Scores) -> Judgement:
        \"\"\"Reproduced if grpo's accuracy is above sft's by more than 2 points.\"\"\"
        return above(scores, "accuracy", "grpo", "sft", by=0.02)

The function is the criterion and its docstring is the criterion in words. It sees scores alone, so that a verdict is a
function of the committed cells. A study lives beside its paper's recipe, as `recipes/<family>/<slug>_study.py`.
"""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from whet.errors import WhetError, unknown
from whet.evaluation.forgetting import forgetting
from whet.evaluation.scores import Scores
from whet.evaluation.statistics import Interval, over_seeds

Outcome = Literal["reproduced", "not reproduced", "inconclusive"]
LEAST_SEEDS = 3


@dataclass(frozen=True)
class Judgement:
    """An outcome with its reason, in one sentence with numbers."""

    outcome: Outcome
    why: str


@dataclass(frozen=True)
class Study:
    """A claim, the runs that test it, and the criterion.

    Attributes:
        slug: its name, by default the paper's.
        paper: the paper's slug; empty where the comparison is Whet's own.
        claim: what is said to hold, in one sentence.
        criterion: what counts as reproduced, in words.
        judge: the same in code.
        arms: {label: arm}, as `whet compare` takes them; `controls` names those that are there to rule something out.
        task, model, budget, seeds: of every run; `model` None is the shipped base.
        metrics: what is reported, from the most important on.
        settings: further settings of all runs.
        full: what `--full` changes, for machines that have it; `quick` what `--quick` does.
    """

    slug: str
    paper: str
    claim: str
    criterion: str
    judge: Callable[[Scores], Judgement]
    arms: Mapping[str, str]
    task: str
    budget: str | None
    seeds: int = LEAST_SEEDS
    model: str | None = None
    metrics: Sequence[str] = ("accuracy",)
    controls: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    full: Mapping[str, Any] = field(default_factory=dict)
    quick: Mapping[str, Any] = field(default_factory=dict)

    def asked(self, scale: str = "") -> dict[str, Any]:
        """What every run shares (task, model, budget, settings) and how many seeds, at `full` or `quick` scale."""
        own = {"task": self.task, "model": self.model, "budget": self.budget, "seeds": self.seeds, **self.settings}
        return {**own, **({"full": self.full, "quick": {**self.quick, "seeds": 1}}.get(scale, {}))}


_REGISTRY: dict[str, Study] = {}


def study(
    *, paper: str = "", claim: str, arms: Mapping[str, str], task: str = "chain-sum", budget: str | None, slug: str = "",
    **more: Any,
) -> Callable[[Callable[[Scores], Judgement]], Study]:  # fmt: skip
    """Register a criterion as a study; the arguments are `Study`'s."""
    if not (slug or paper):
        raise WhetError("a study is named by its paper, or by a slug of its own")

    def decorate(judge: Callable[[Scores], Judgement]) -> Study:
        criterion = " ".join((inspect.getdoc(judge) or "").split())
        if not criterion:
            raise WhetError(f"study '{slug or paper}': the criterion's docstring must say what counts as reproduced")
        made = Study(slug or paper, paper, claim, criterion, judge, dict(arms), task, budget, **more)
        if made.seeds < LEAST_SEEDS:
            raise WhetError(f"study '{made.slug}': a verdict needs at least {LEAST_SEEDS} seeds, not {made.seeds}")
        for control in made.controls:
            if control not in made.arms:
                raise unknown(f"control of study '{made.slug}'", control, made.arms)
        known = _REGISTRY.get(made.slug)
        if known and known.judge.__module__ != judge.__module__:
            raise WhetError(f"two studies are called '{made.slug}'")
        _REGISTRY[made.slug] = made
        return made

    return decorate


def studies() -> dict[str, Study]:
    """All studies by slug: those of modules below `whet.recipes` whose name ends with `_study`, and any made since."""
    package = importlib.import_module("whet.recipes")
    for found in pkgutil.walk_packages(package.__path__, "whet.recipes."):
        if found.name.endswith("_study"):
            importlib.import_module(found.name)
    return dict(sorted(_REGISTRY.items()))


def get_study(slug: str) -> Study:
    """A study by slug. Raises WhetError with the nearest one."""
    known = studies()
    if slug not in known:
        raise unknown("study", slug, known)
    return known[slug]


# -- what criteria are made of -----------------------------------------------------------------------------------------
def above(scores: Scores, metric: str, a: str, b: str, by: float = 0.0) -> Judgement:
    """Whether a's metric is above b's by more than `by`.

    Reproduced where the whole 95 % interval of the difference is above `by`, not reproduced where it is all at or below it,
    inconclusive where `by` is inside it.
    """
    return judged(f"{metric} of {a} - {b}", scores.difference(metric, a, b), by)


def judged(what: str, found: Interval, by: float = 0.0) -> Judgement:
    """The same of any number with an interval."""
    if math.isnan(found.low):
        raise WhetError(f"{what}: one seed says nothing about how it varies")
    outcome: Outcome = "reproduced" if found.low > by else "not reproduced" if found.high <= by else "inconclusive"
    told = f"{what} is {found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}], claimed above {by:+g}"
    return Judgement(outcome, told)


def best(scores: Scores, *arms: str) -> str:
    """The arm with the best accuracy on validation at the end of training, mean over seeds: how a baseline's settings are
    chosen without a look at test. The first of equal ones."""

    def last(arm: str) -> float:
        found = [cell.curve[-1]["accuracy"] for cell in scores.cells[arm] if cell.curve]
        if len(found) < len(scores.cells[arm]):
            raise WhetError(f"arm '{arm}' was not evaluated on validation, by which it would be chosen")
        return sum(found) / len(found)

    for arm in arms:
        if arm not in scores.cells:
            raise unknown("arm", arm, scores.cells)
    return max(arms, key=last)


def below(scores: Scores, metric: str, a: str, b: str, by: float = 0.0) -> Judgement:
    """Whether a's metric is below b's by more than `by`."""
    return above(scores, metric, b, a, by)


def keeps(scores: Scores, a: str, b: str, by: float = 0.0) -> Judgement:
    """Whether a loses less than b of other tasks where both are equally accurate on validation: at the best accuracy that every
    seed of both comes to (`evaluation.forgetting`). Inconclusive where one of them does not rise above the start."""
    found = forgetting(Scores([*scores.cells[a], *scores.cells[b]]))
    at = found["at_accuracy"]
    if not at or at["missed"]:
        why = "; ".join(f"{arm}: {reason}" for arm, reason in at["missed"].items()) if at else found["why"]
        return Judgement("inconclusive", f"forgetting of {b} - {a} at equal accuracy cannot be told: {why}")
    lost = [at["arms"][arm]["by_seed"] for arm in (b, a)]
    saved = over_seeds([theirs - ours for theirs, ours in zip(*lost, strict=True)])
    return judged(f"forgetting of {b} - {a} at accuracy {at['accuracy']:.3f}", saved, by)


def every(*parts: Judgement) -> Judgement:
    """All must hold: not reproduced where one is not, reproduced where all are.

    Each part is tested at 5 %; that all of them pass by chance is then less likely still, so nothing is corrected.
    """
    outcomes = {part.outcome for part in parts}
    outcome: Outcome = "inconclusive"
    if "not reproduced" in outcomes:
        outcome = "not reproduced"
    elif outcomes == {"reproduced"}:
        outcome = "reproduced"
    return Judgement(outcome, "; ".join(f"{part.why} ({part.outcome})" for part in parts))
