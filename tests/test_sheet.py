"""The data-sheet of a base: its cells, what a level is good for, and what guessing gets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from whet.errors import WhetError
from whet.models.base import load
from whet.sheet import VARIANTS, family, guess, kinds, learnt, level, line, measure, overview, sheet, specs
from whet.tasks import get_task, task_names


def cell(
    task: str, greedy: float, sampled: float, reach: float, chance: tuple[float, float] = (0, 0)
) -> dict[str, Any]:
    interval = {"low": 0.0, "high": 1.0}
    return {
        "task": task, "hash": "0", "n": 4, "k": 16, "ended": 1.0, "tokens_per_answer": 3.0,
        "accuracy": {"value": greedy, **interval}, "sampled_accuracy": {"value": sampled, **interval},
        "pass@16": {"value": reach, **interval}, "guess": {"accuracy": chance[0], "pass@16": chance[1]},
    }  # fmt: skip


# -- cells -------------------------------------------------------------------------------------------------------------
def test_specs_are_all_levels_and_the_variants_are_further_ones() -> None:
    every = list(specs(learnt()))
    assert {family(spec) for spec in every} == set(learnt()) < set(task_names())
    assert len(learnt()) >= 11 and learnt()[0] == "chain-sum"
    assert len(every) == sum(len(get_task(name).levels) for name in learnt())
    assert list(specs(["logic:form=choice", "sort:level=2"]))[::5] == ["logic:form=choice,level=1", "sort:level=2"]
    assert len({*every, *VARIANTS}) == len(every) + len(VARIANTS)
    for spec in VARIANTS:
        assert get_task(spec).spec() == spec  # else a cell would have two names
    assert (family(VARIANTS[0]), level(VARIANTS[0])) == ("word-problem:lang=fr", "2")


@pytest.mark.parametrize("model", ["base", "micro"])
def test_a_cell_is_measured_once_and_the_sheet_keeps_all_of_them(model: str, tmp_path: Path) -> None:
    policy, told = load(model), []
    cells = measure(policy, tmp_path, names=["sort"], n=4, k=2, tell=told.append)
    assert [c["task"] for c in cells] == [f"sort:level={i}" for i in (1, 2, 3, 4)] and told == [*map(line, cells)]
    for file in tmp_path.glob("*.json"):
        kept = json.loads(file.read_text())
        assert kept.pop("guess")["accuracy"] < 0.05
        file.write_text(json.dumps({**kept, "ended": 0.123}))
    # of the same weights, so only what is missing in it is added
    assert [c["ended"] for c in measure(policy, tmp_path, names=["sort"], n=4, k=2)] == [0.123] * 4
    (other,) = measure(policy, tmp_path, names=[VARIANTS[1]], n=4, k=2)
    assert (other["task"], other["guess"]["accuracy"]) == (VARIANTS[1], 0.5)
    text = (tmp_path / "sheet.md").read_text()
    assert text.count("| sort:level") == 4 and f"| {VARIANTS[1]} |" in text and text.count("0.123") == 4
    assert text.index("| sort |") < text.index("| sort:level=1 |")  # the overview comes first
    missing = text.partition("Not measured yet: ")[2].partition(". The same")[0].split(", ")
    assert len(missing) == len([*specs(learnt()), *VARIANTS]) - 5 and VARIANTS[0] in missing
    assert [c["ended"] for c in measure(policy, tmp_path, names=["sort:level=1"], n=5, k=2)] != [0.123]


def test_an_empty_sheet_is_refused() -> None:
    with pytest.raises(WhetError, match="at least one task"):
        sheet([])


# -- what a level is good for ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("numbers", "found"),
    [
        ((0.9, 0.9, 1.0), ["mastered"]),
        ((0.2, 0.2, 0.6), ["headroom"]),
        ((0.2, 0.5, 0.6), ["headroom"]),  # greedy decides
        ((0.5, 0.2, 0.6), ["headroom (sampled)"]),
        ((0.9, 0.5, 1.0), ["mastered", "headroom (sampled)"]),
        ((0.0, 0.0, 0.05), ["beyond"]),
        ((0.0, 0.0, 0.2), []),
        ((float("nan"),) * 3, []),
    ],
)
def test_kinds(numbers: tuple[float, float, float], found: list[str]) -> None:
    assert kinds(cell("sort:level=1", *numbers)) == found


def test_the_overview_names_levels_and_says_where_chance_forbids_one() -> None:
    cells = [
        cell("sort:level=1", 0.9, 0.9, 1.0),
        cell("sort:level=2", 0.2, 0.2, 0.9, (0.2, 0.9)),
        cell("sort:level=3", 0.2, 0.2, 0.9),
        cell("sort:level=4", 0.0, 0.0, 0.0),
        cell("lists:level=1", 0.5, 0.1, 0.6, (0.01, 0.05)),
        cell("logic:level=1", 0.5, 0.5, 1.0, (0.5, 0.999)),
        cell("logic:level=2", 0.4, 0.4, 1.0, (0.33, 0.997)),
        cell("logic:level=2,form=choice", 0.9, 0.9, 1.0, (0.25, 0.99)),
    ]
    rows = overview(cells).splitlines()[2:]
    assert rows == [
        "| sort | 1 | 2, 3 | - | 4 |",
        "| lists | - | - | 1 | - |",
        "| logic | - | 1, 2 | - | cannot exist: guessing alone has pass@16 1.00 (one guess 0.33) or more |",
        "| logic:form=choice | 2 | - | - | cannot exist: guessing alone has pass@16 0.99 (one guess 0.25) or more |",
    ]


@pytest.mark.parametrize(
    ("spec", "low", "high"),
    [
        ("logic:level=1", 0.5, 0.5),  # yes or no, whatever the prompt
        ("logic:level=5", 1 / 3, 1 / 3),
        ("logic:level=5,form=choice", 0.25, 0.25),  # its options stand in the prompt
        ("facts:level=1,kind=comparison", 0.5, 0.5),
        ("boxes:level=1", 0.2, 0.2),
        ("boxes:level=6", 0, 0.01),  # three objects: no box's content stands in the prompt
        ("countdown:level=1", 0, 0),
        ("mod-chain:level=1", 0.17, 0.23),  # modulo 5
        ("chain-sum:level=1", 0.04, 0.1),  # 17 sums
    ],
)
def test_what_guessing_gets(spec: str, low: float, high: float) -> None:
    found = guess(get_task(spec), 200, 16)
    assert low - 1e-9 <= found["accuracy"] <= high + 1e-9
    assert found["pass@16"] <= 1 - (1 - found["accuracy"]) ** 16 + 1e-9  # equal where every problem has the same chance
    if low == high:
        assert found["pass@16"] == pytest.approx(1 - (1 - low) ** 16)
