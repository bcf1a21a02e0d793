"""`whet runs` and `whet report` as commands."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

from whet.runs import index
from whet.terminal.runs import add_commands


@pytest.fixture
def invoke(tmp_path, monkeypatch):
    monkeypatch.setenv("WHET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(tmp_path)
    app = typer.Typer()
    add_commands(app)
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


def make_run(path: Path) -> Path:
    path.mkdir(parents=True)
    config = {"recipe": "grpo", "task": "sort", "seed": 0, "record": {"started": "2026-01-01T10:00:00"}}
    (path / "run.yaml").write_text(yaml.safe_dump(config))
    summary = {"before": {"accuracy": {"value": 0.1}}, "after": {"accuracy": {"value": 0.7}}, "steps": 3}
    (path / "summary.json").write_text(json.dumps(summary))
    return path


def test_runs_lists_what_is_below_runs_and_what_is_asked_for(invoke, tmp_path):
    assert "no runs yet" in invoke("runs").output
    make_run(tmp_path / "other" / "first")
    row = next(line for line in invoke("runs", "other").output.splitlines() if "grpo" in line)
    assert row.split() == ["2026-01-01", "10:00", "grpo", "sort", "base", "0.100", "0.700", "+0.600", "other/first"]
    (tmp_path / "other" / "first" / "run.yaml").rename(tmp_path / "run.yaml")
    assert "other/first (gone)" in invoke("runs").output


def test_only_the_newest_are_shown(invoke, tmp_path):
    for i in range(3):
        index.record(make_run(tmp_path / "runs" / str(i)))
    shown = invoke("runs", "-n", "2").output
    assert "the newest 2 of 3" in shown
    assert shown.count("grpo") == 2


def test_a_root_that_is_no_folder_is_refused(invoke):
    assert "'nowhere' is not a folder" in str(invoke("runs", "nowhere").exception)


def test_report_says_where_it_is(invoke, tmp_path, monkeypatch):
    page = pytest.importorskip("whet.report.page")
    monkeypatch.setattr(page, "render", lambda folders: " ".join(map(str, folders)))
    assert "report  page.html" in invoke("report", "a", "b", "--out", "page.html").output
    assert (tmp_path / "page.html").read_text() == "a b"


def test_listing_loads_neither_torch_nor_charts():
    code = ("import sys; from whet.terminal.runs import runs_table; import whet.runs.index; runs_table([]); "
            "print([m for m in ('torch', 'altair', 'transformers', 'pandas') if m in sys.modules])")  # fmt: skip
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
