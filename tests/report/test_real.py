"""A real comparison of tiny models, as `whet compare` leaves it: the contract of the files that a report reads."""

from __future__ import annotations

import json

import pytest

from trained import trained_folder
from whet.compare import compare
from whet.report.page import of_comparison, of_runs, render
from whet.report.read import ComparisonData, RunData, read
from whet.runs import index

pytest.importorskip("altair", reason="the report extra is not installed")
pytest.importorskip("vl_convert", reason="the report extra is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("real") / "compared"
    compare(
        ["sft:batch=4", "grpo:batch=2,group=2"], task="parity", model=trained_folder(), budget="steps:3", seeds=2, out=path,
        test_n=12, k=2, validation_n=6, others=["sort:level=1"], others_n=2, others_look_n=2, threads=1, evaluations=2,
    )  # fmt: skip
    return path


def test_a_comparison_and_its_runs(folder):
    found = read(folder)
    assert isinstance(found, ComparisonData)
    assert {group.label: [run.seed for run in group.runs] for group in found.groups} == {
        "sft:batch=4": [0, 1],
        "grpo:batch=2,group=2": [0, 1],
    }
    section = of_comparison(found, "comparison-1")
    assert [chart.title for chart in section.results] == [
        "Accuracy on test",
        "Validation accuracy",
        "Accuracy, forgetting, cost",
    ]
    assert {"Tokens of an answer", "Loss: nll", "Time of a step"} <= {chart.title for chart in section.training}
    assert len(section.pairs) == 2 * 12
    assert all(pair.change for pair in section.pairs)


def test_a_run_says_what_its_summary_says(folder):
    runs = [run for path in sorted((folder / "runs").glob("grpo*")) if isinstance(run := read(path), RunData)]
    assert len(runs) == 2
    section = of_runs(runs)
    (made,) = section.tables
    row = next(row for row in made.rows if row[0].text == "accuracy")
    after = [json.loads((run.folder / "summary.json").read_text())["after"]["accuracy"]["value"] for run in runs]
    assert row[2].text == f"{sum(after) / 2:.3f}"
    assert row[4].text == "12"


def test_both_on_one_page(folder):
    text = render([folder, *(folder / "runs").glob("sft*")])
    assert text.count('class="part"') == 2


def test_the_index_reads_it(folder):
    entry = index.read(folder)
    results = json.loads((folder / "results.json").read_text())
    assert entry.kind == "comparison"
    assert entry.after == results["arms"][0]["metrics"]["accuracy"]["value"]
    assert entry.before == results["start"]["accuracy"]["value"]
    assert entry.started.startswith("20")
    (inner, *_) = [index.read(path) for path in (folder / "runs").iterdir() if (path / "run.yaml").exists()]
    assert (inner.kind, inner.state) == ("run", "finished")
