"""Does a mixture of related sets teach each of them better than itself alone, beyond what more steps would?

Nine sets of few rows: five questions on one kind of report, two that have nothing to do with it, one general (stories) and
one of bare arithmetic. Arms are all sets alone, all together, and all but one; sets alone also at a higher rate, of which
validation chooses, so that they are searched as much. `all, steps` takes as many steps as a set alone.

    whet reproduce cocktail
"""

from __future__ import annotations

from whet.evaluation.scores import ON, Scores
from whet.evaluation.statistics import over_seeds
from whet.recipes.studies.mixtures import Mix, contribution, gain, plan
from whet.study import Judgement, best, every, judged, study

RELATED = {name: f"finance:level=3:subtask={name}" for name in ("sum", "change", "ratio", "compare", "lookup")}
UNRELATED = {"sort": "sort:level=3", "lists": "lists:level=3"}
SETS = {**RELATED, **UNRELATED, "general": "word-problem:level=3", "maths": "chain-sum:level=2-3"}
ROWS = 300


def label(mix: Mix) -> str:
    if len(mix) == 1:
        return next(iter(mix))
    left_out = [name for name in SETS if name not in mix]
    return "all" + "".join(f" but {name}" for name in left_out)


def arm(mix: Mix, more: str = "") -> str:
    return f"cocktail:sets={';'.join(SETS[name] for name in SETS if name in mix)},limit={ROWS}{more}"


MIXES = {label(mix): mix for mix in plan(list(SETS), ("singles", "leave_one_out", "all"))}
HIGH = {f"{name} high": arm(frozenset({name}), ",lr=1.5e-3") for name in RELATED}
TASK = SETS["sum"]


@study(
    paper="cocktail",
    claim="Fine-tuning on a mixture of related tasks beats fine-tuning on the target task alone.",
    arms={
        "sft": f"sft:limit={ROWS},steps=19",
        **{name: arm(mix) for name, mix in MIXES.items()},
        **HIGH,
        "all, steps": arm(frozenset(SETS), ",count=steps,steps=19"),
        "sum and unrelated": arm(frozenset({"sum", "sort", "lists", "general"})),
    },
    controls=["sft", *HIGH, "all, steps", "sum and unrelated"],
    task=TASK,
    budget=None,
    metrics=["accuracy", *(ON + SETS[name] for name in SETS if name != "sum")],
    settings={"test_n": 96, "k": 0, "others": [s for s in SETS.values() if s != TASK], "others_n": 96, "evaluations": 1,
              "validation_n": 64, "keep": "last"},
    quick={"test_n": 16, "others_n": 16, "validation_n": 16},
    full={"seeds": 5, "test_n": 512, "others_n": 512},
)  # fmt: skip
def cocktail(scores: Scores) -> Judgement:
    """Reproduced if, over the five related sets, the mean gain of the mixtures over the set alone (at the rate with the better
    validation accuracy) is above 0, and leaving out a related set costs the others more than leaving out an unrelated one,
    each with the whole 95 % interval over seeds; not reproduced if one of these intervals lies on the other side; else
    inconclusive. The gain at equal steps is reported in `all, steps`, and decides nothing."""
    seeds = range(min(len(cells) for cells in scores.cells.values()))
    alone = {name: best(scores, name, f"{name} high") for name in RELATED}
    gains, gaps = [], []
    for seed in seeds:
        s = {
            (mix, task): scores.values("accuracy" if task == "sum" else ON + SETS[task], alone.get(name, name))[seed]
            for name, mix in MIXES.items()
            for task in SETS
        }
        gains.append(mean([gain(s, task) for task in RELATED]))
        inside = [contribution(s, t, u, list(SETS)) for t in RELATED for u in RELATED if t != u]
        outside = [contribution(s, t, u, list(SETS)) for t in RELATED for u in UNRELATED]
        gaps.append(mean(inside) - mean(outside))
    return every(
        judged("mean cocktail gain", over_seeds(gains), 0.0),
        judged("contribution of related - of unrelated sets", over_seeds(gaps), 0.0),
    )


def mean(values: list[float]) -> float:
    return sum(values) / len(values)
