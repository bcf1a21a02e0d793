"""Studies: what they must say, how criteria decide, and that a verdict is a function of its cells."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from trained import trained_folder
from whet import study as studies_module
from whet.arms import parse_arms
from whet.cells import asked, changed
from whet.compare import LOOKS
from whet.errors import WhetError
from whet.evaluation.scores import Cell, Scores
from whet.launch import Run
from whet.papers import paper
from whet.recipes.recipe import get_recipe, recipes
from whet.reproduce import VERDICT, judge, recompute, reproduce
from whet.study import Judgement, Study, above, below, every, get_study, studies, study
from whet.tasks import get_task
from whet.terminal.compare import add_commands, show_verdict
from whet.training.budget import Budget

RESULTS = Path(__file__).parent.parent / "results"
KEYS = ["paper", "claim", "criterion", "task", "model", "base_hash", "arms", "seeds", "metrics", "intervals", "verdict",
        "detectable", "why", "versions", "minutes", "forgetting"]  # fmt: skip


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Studies made by a test are gone after it."""
    studies()
    monkeypatch.setattr(studies_module, "_REGISTRY", dict(studies_module._REGISTRY))
    yield


def tiny_study(**changes: Any) -> Study:
    given: dict[str, Any] = {
        "paper": "grpo", "slug": "tiny", "claim": "More steps help.", "arms": {"long": "sft:batch=4", "short": "sft:batch=2"},
        "task": "parity", "budget": "steps:2", "model": trained_folder(), "metrics": ["accuracy", "mean@2", "forgetting"],
        "settings": {"test_n": 10, "k": 2, "validation_n": 4, "others": ["sort:level=1"], "others_n": 2,
                     "others_look_n": 2, "evaluations": 1},
        "quick": {"budget": "steps:1"}, **changes,
    }  # fmt: skip

    @study(**given)
    def tiny(scores: Scores) -> Judgement:
        """Reproduced if the long runs
        are better."""
        return above(scores, "accuracy", "long", "short")

    return tiny


# -- the studies there are -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("slug", list(studies()))
def test_every_study_can_be_run(slug: str) -> None:
    """Its arms are recipes that take their settings and fit the task, its budget can be read at every scale."""
    made = get_study(slug)
    assert made.claim.endswith(".") and made.criterion.endswith(".") and made.seeds >= 3
    assert not made.paper or paper(made.paper).title
    for scale in ("", "quick", "full"):
        shared = made.asked(scale)
        task, seeds = shared.pop("task"), shared.pop("seeds")
        assert seeds == 1 if scale == "quick" else seeds >= 3
        assert shared["budget"] is None or Budget.parse(shared["budget"])
        for arm in parse_arms(made.arms):
            config = arm.config(task, 0, shared)
            get_recipe(config.recipe)(**config.arguments).check(get_task(task))
            names = {m.partition("@")[2] for m in made.metrics if "@" in m}
            assert names <= {str(config.k)}, "metrics at k are those of the sampled answers"


def test_studies_are_no_recipes() -> None:
    assert "grpo" in studies() and not [name for name in recipes() if "study" in name]


# -- what is refused -----------------------------------------------------------------------------------------------------
def test_what_a_study_must_say() -> None:
    with pytest.raises(WhetError, match="needs at least 3 seeds, not 2"):
        tiny_study(seeds=2)
    with pytest.raises(WhetError, match="unknown control of study 'tiny' 'shor': did you mean 'short'"):
        tiny_study(controls=["shor"])
    with pytest.raises(WhetError, match="docstring must say what counts as reproduced"):
        study(paper="grpo", slug="mute", claim="x", arms={}, budget=None)(lambda scores: Judgement("reproduced", ""))
    with pytest.raises(WhetError, match="named by its paper, or by a slug"):
        tiny_study(paper="", slug="")
    with pytest.raises(WhetError, match="unknown study 'grop': did you mean 'grpo'"):
        get_study("grop")
    assert tiny_study().criterion == "Reproduced if the long runs are better."
    with pytest.raises(WhetError, match="one of them"):
        reproduce(tiny_study(), quick=True, full=True)


# -- criteria ------------------------------------------------------------------------------------------------------------
def cells(**accuracy: list[str]) -> list[Cell]:
    """Cells of arms whose seeds answered like that."""
    return [
        Cell(arm, None if arm == "start" else seed, "key", {"budget": "steps:2"}, "parity/1", "parity",
             {"name": "base", "hash": "h", "parameters": 5}, {"accuracy": text.count("1") / len(text), "forgetting": 0.01 * seed},
             {"greedy": text, "k": 0, "sampled": ""}, versions={"whet": "1"}, minutes=0.5)
        for arm, rows in accuracy.items() for seed, text in enumerate(rows)
    ]  # fmt: skip


HIGH, LOW = "1" * 90 + "0" * 10, "1" * 30 + "0" * 70


@pytest.mark.parametrize(
    ("a", "b", "by", "outcome"),
    [(HIGH, LOW, 0.0, "reproduced"), (HIGH, LOW, 0.3, "reproduced"), (HIGH, LOW, 0.6, "inconclusive"),
     (HIGH, LOW, 0.8, "not reproduced"), (LOW, HIGH, 0.0, "not reproduced"), (LOW, LOW, 0.0, "not reproduced")],
)  # fmt: skip
def test_above_decides_by_the_whole_interval(a: str, b: str, by: float, outcome: str) -> None:
    found = above(Scores(cells(a=[a] * 3, b=[b] * 3)), "accuracy", "a", "b", by)
    assert found.outcome == outcome
    assert below(Scores(cells(a=[a] * 3, b=[b] * 3)), "accuracy", "b", "a", by).outcome == outcome
    assert found.why.startswith("accuracy of a - b is ")


def test_seeds_that_disagree_are_inconclusive() -> None:
    found = above(Scores(cells(a=[HIGH, LOW, LOW], b=[LOW, LOW, LOW])), "accuracy", "a", "b")
    assert found.outcome == "inconclusive"


def test_one_seed_decides_nothing() -> None:
    with pytest.raises(WhetError, match="one seed says nothing"):
        above(Scores(cells(a=[HIGH], b=[LOW])), "forgetting", "a", "b")


def test_every() -> None:
    yes, no, perhaps = (Judgement(o, o) for o in ("reproduced", "not reproduced", "inconclusive"))  # type: ignore[arg-type]
    assert every(yes, yes).outcome == "reproduced"
    assert every(yes, perhaps).outcome == "inconclusive"
    assert every(yes, perhaps, no).outcome == "not reproduced"


# -- verdicts ------------------------------------------------------------------------------------------------------------
def test_the_contract_of_a_verdict() -> None:
    made = tiny_study(metrics=["accuracy", "forgetting"])
    found = judge(made, cells(start=[LOW], long=[HIGH] * 3, short=[LOW] * 3))
    assert set(KEYS) <= set(found)
    assert found["verdict"] == "reproduced at small scale" and found["seeds"] == [0, 1, 2]
    assert found["metrics"]["accuracy"] == {"long": [0.9] * 3, "short": [0.3] * 3}
    assert (
        found["intervals"]["accuracy"]["long - short"]["low"] > 0
        and found["intervals"]["accuracy"]["start"]["value"] == 0.3
    )
    assert found["forgetting"]["at_steps"] is None and "not looked at" in found["forgetting"]["why"]
    assert found["detectable"]["accuracy"] > 0 and found["minutes"] == 3.5
    assert found["model"] == {"name": "base", "parameters": 5} and found["base_hash"] == "h"


def test_what_makes_no_verdict() -> None:
    made, full = tiny_study(metrics=["accuracy"]), {"long": [HIGH] * 3, "short": [LOW] * 3}
    with pytest.raises(WhetError, match="at least 3 of every arm"):
        judge(made, cells(long=[HIGH] * 3, short=[LOW] * 2))
    with pytest.raises(WhetError, match="arm 'short' has seeds \\[\\]"):
        judge(made, cells(long=[HIGH] * 3))
    mixed = cells(**full)
    mixed[0] = replace(mixed[0], model={**mixed[0].model, "hash": "other"})
    with pytest.raises(WhetError, match="more than one start"):
        judge(made, mixed)
    with pytest.raises(WhetError, match="unknown metric 'pass@8'"):
        judge(tiny_study(metrics=["pass@8"]), cells(**full))


def test_reproduce(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, options = tiny_study(), {"results": tmp_path / "results", "work": tmp_path / "work", "threads": 1}
    found = reproduce(made, **options)
    folder = tmp_path / "results" / "tiny"
    names = sorted(f.name for f in folder.iterdir())
    assert names == sorted(["start.json", VERDICT, *(f"{arm}-{s}.json" for arm in ("long", "short") for s in range(3))])
    assert json.loads((folder / VERDICT).read_text()) == found.found == recompute(folder)

    # what is committed is not run again, even where the runs are gone
    monkeypatch.setattr(Run, "go", lambda self: pytest.fail("a committed cell is run again"))
    monkeypatch.setattr(Run, "before", lambda self: pytest.fail("the start is measured again"))
    again = reproduce(made, **{**options, "work": tmp_path / "elsewhere"})
    assert again.found == found.found

    # the command writes the study's page beside the ledger, from the same cells
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "ledger.md").write_text("old")
    monkeypatch.chdir(tmp_path)
    app = typer.Typer()
    app.command("other")(lambda: None)
    add_commands(app)
    done = CliRunner().invoke(
        app, ["reproduce", "tiny", "--results", str(tmp_path / "results")], catch_exceptions=False
    )
    assert done.exit_code == 0 and "verdict: " in done.output
    assert "[tiny](papers/tiny.md)" in (tmp_path / "docs" / "ledger.md").read_text()
    page = (tmp_path / "docs" / "papers" / "tiny.md").read_text()
    assert "**Claim.** More steps help." in page and "    whet reproduce tiny\n" in page and "at 2 steps" in page

    # a cell decides
    cell = Cell.read(folder / "long-0.json")
    (folder / "long-0.json").write_text(replace(cell, answers={**cell.answers, "greedy": "1" * 10}, metrics={
        **cell.metrics, "accuracy": 1.0}).text())  # fmt: skip
    assert recompute(folder)["metrics"]["accuracy"]["long"][0] == 1.0
    (folder / "other-0.json").write_text(replace(cell, arm="other").text())
    with pytest.raises(WhetError, match="has no arm 'other' any more"):
        recompute(folder)


def test_a_changed_study_is_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"results": tmp_path / "results", "work": tmp_path / "work", "threads": 1}
    reproduce(tiny_study(), **options)
    seen: list[str] = []
    go = Run.go
    monkeypatch.setattr(Run, "go", lambda self: seen.append(str(self.config.budget)) or go(self))
    reproduce(tiny_study(budget="steps:3"), **options)
    assert seen == ["steps:3"] * 6
    assert {c["config"]["budget"] for f in (tmp_path / "results" / "tiny").glob("long-*.json")
            if (c := json.loads(f.read_text()))} == {"steps:3"}  # fmt: skip


def test_quick_writes_no_verdict(tmp_path: Path) -> None:
    made = tiny_study()
    found = reproduce(made, quick=True, results=tmp_path / "results", work=tmp_path / "work", threads=1)
    assert found.found is None and not (tmp_path / "results").exists()
    assert found.comparison.asked["seeds"] == [0] and found.comparison.asked["budget"] == "steps:1"
    screen = Console(record=True, width=140, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
    show_verdict(found, screen)
    assert "no verdict" in screen.export_text()


@pytest.mark.parametrize("file", sorted(RESULTS.rglob(VERDICT)), ids=lambda f: str(f.parent.relative_to(RESULTS)))
def test_every_committed_verdict_follows_from_its_cells(file: Path) -> None:
    assert recompute(file.parent) == json.loads(file.read_text())


@pytest.mark.parametrize("slug", [s for s in studies() if (RESULTS / s / "start.json").exists()])
def test_committed_cells_answer_what_the_study_asks_today(slug: str) -> None:
    """A new default of a recipe may not make old cells mean something else: the study then says the old one itself."""
    study = studies()[slug]
    shared = {**LOOKS, **study.asked()}
    task, seeds = shared.pop("task"), shared.pop("seeds")
    for arm in parse_arms(study.arms):
        for seed in range(seeds):
            cell = Cell.read(RESULTS / slug / f"{arm.slug}-{seed}.json")
            assert not changed(asked(arm, arm.config(task, seed, shared)), cell.config), arm.label
