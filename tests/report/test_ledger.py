"""The ledger and the studies' pages: functions of the verdicts; the committed ones are what the verdicts say."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_folders import make_verdict

from whet.errors import WhetError
from whet.report import ledger

ROOT = Path(__file__).parents[2]
STUDIES = sorted(path.parent.name for path in (ROOT / "results").glob("*/verdict.json"))


def test_committed_pages_are_what_the_verdicts_say():
    stale = [str(path.relative_to(ROOT)) for path in ledger.stale(ROOT / "results", ROOT / "docs")]
    assert not stale, "run `python -m whet.report.ledger`"


def test_every_committed_verdict_has_its_row():
    text = (ROOT / "docs" / "ledger.md").read_text()
    assert all(f"(papers/{slug}.md)" in text for slug in STUDIES)


def test_without_a_verdict_the_ledger_says_so(tmp_path):
    assert list(ledger.pages(tmp_path)) == ["ledger.md"]
    assert "No study has a verdict yet." in ledger.pages(tmp_path)["ledger.md"]


def test_a_row_has_claim_verdict_effect_and_cost(tmp_path):
    make_verdict(tmp_path / "grpo")
    row = ledger.pages(tmp_path)["ledger.md"].splitlines()[-1]
    cells = [cell.strip() for cell in row.replace("\\|", "/").split("|")[1:-1]]
    assert cells[0] == "[grpo](papers/grpo.md)"
    assert "](https://arxiv.org/abs/2402.03300)" in cells[1]
    assert cells[2:] == [
        "Reinforcement / raises a model's accuracy.", "**reproduced at small scale**",
        "accuracy grpo – sft: +0.200 (+0.150 to +0.250)", "6 runs, 12 min",
    ]  # fmt: skip


def test_the_effect_is_against_the_best_arm_that_is_no_control(tmp_path):
    make_verdict(tmp_path / "grpo", controls=["sft"])
    row = ledger.pages(tmp_path)["ledger.md"].splitlines()[-1]
    assert "accuracy of grpo 0.720 (0.620 to 0.820), start 0.050" in row


def test_a_page_has_arms_differences_and_seeds(tmp_path):
    make_verdict(tmp_path / "grpo")
    make_verdict(tmp_path / "grpo" / "full", verdict="inconclusive at small scale")
    text = ledger.pages(tmp_path)["papers/grpo.md"]
    assert "## Small scale" in text and "## Full scale" in text
    assert "**Verdict: inconclusive at small scale.**" in text
    assert "    whet reproduce grpo --full\n" in text
    assert "| grpo | 0.720 (0.620 to 0.820) |" in text and " is `" not in text
    assert "| sft – grpo | -0.200 (-0.250 to -0.150) | < 0.001 | < 0.001 |" in text
    assert "| forgetting | at 16 steps | at accuracy 0.450 | steps there | FLOPs there |" in text
    assert "| grpo | +0.100 (+0.000 to +0.200) | +0.070 (-0.030 to +0.170) | 12 | 1.2e12 |" in text
    assert "(forgetting/1): 256 problems of each at the end, 64 where arms are equal." in text
    assert "Accuracy of each seed: sft 0.500, 0.520, 0.540; grpo 0.700, 0.720, 0.740." in text


def test_a_study_of_no_paper_says_so(tmp_path):
    make_verdict(tmp_path / "head-to-head", paper="")
    made = ledger.pages(tmp_path)
    assert "| [head-to-head](papers/head-to-head.md) | a comparison of Whet's own |" in made["ledger.md"]
    assert "a comparison of Whet's own\n" in made["papers/head-to-head.md"]


def test_an_arm_has_its_label_in_the_table_and_its_settings_below(tmp_path):
    make_verdict(tmp_path / "grpo", arms={"sft": "sft", "grpo": "grpo:lr=1e-4"})
    text = ledger.pages(tmp_path)["papers/grpo.md"]
    assert "| grpo | 0.720 (0.620 to 0.820) |" in text and "\ngrpo is `grpo:lr=1e-4`.\n" in text


def test_write_mends_what_is_stale_and_removes_what_has_gone(tmp_path):
    results, docs = tmp_path / "results", tmp_path / "docs"
    make_verdict(results / "grpo")
    assert {path.name for path in ledger.write(results, docs)} == {"ledger.md", "grpo.md"}
    assert ledger.write(results, docs) == []
    (docs / "ledger.md").write_text("by hand")
    (docs / "papers" / "gone.md").write_text("old")
    assert {path.name for path in ledger.stale(results, docs)} == {"ledger.md", "gone.md"}
    ledger.write(results, docs)
    assert not (docs / "papers" / "gone.md").exists()
    assert ledger.stale(results, docs) == []


def test_the_command_checks(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert ledger.main(["--check"]) == 1
    assert "docs/ledger.md is not up to date" in capsys.readouterr().out
    assert ledger.main([]) == 0
    assert ledger.main(["--check"]) == 0


def test_a_damaged_verdict_is_named(tmp_path):
    (make_verdict(tmp_path / "grpo") / "verdict.json").write_text("{")
    with pytest.raises(WhetError, match=r"grpo/verdict.json' cannot be read"):
        ledger.pages(tmp_path)
