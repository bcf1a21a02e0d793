"""The page stays still whatever a model wrote: some payloads here, all of them in the slow suite."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

pytest.importorskip("altair", reason="the report extra is not installed")
pytest.importorskip("vl_convert", reason="the report extra is not installed")

from xss import FIELDS, PAYLOADS, evil_page, look, make_run, opened, spoil, survey

from whet.report import charts
from whet.report.page import write_report

SOME = [
    "script",
    "end of a json",
    "line separators",
    "url, white space",
    "vega call",
    "half of a character",
    "bidi",
    "null",
]


@pytest.fixture(scope="module")
def browser():
    try:
        with opened() as found:
            yield found
    except LookupError as problem:
        pytest.skip(str(problem))


def test_the_suite_is_large() -> None:
    assert len(set(PAYLOADS.values())) == len(PAYLOADS) >= 60 and FIELDS >= 50


def test_a_payload_reaches_every_part_of_the_page(tmp_path: Path) -> None:
    """Without a browser: what is spoilt stands on the page, escaped, in the parts that are made by different code."""
    page = write_report([spoil(make_run(tmp_path / "run"), "<i>spoilt")], tmp_path / "report.html").read_text()
    assert "<i>spoilt" not in page
    assert page.count("&lt;i&gt;spoilt") > 30
    assert "\\u003ci\\u003espoilt" in page  # in the charts' data


def test_names_in_charts_are_short_and_their_own() -> None:
    """Vega sits for minutes over a name of 20,000 letters without a space, and cannot parse every title."""
    long = ["A" * 20_000, "A" * 20_001]
    cut = charts.cut({"data": long, "width": 3})
    assert cut["width"] == 3 and len(set(cut["data"])) == 2 and all(len(name) < 210 for name in cut["data"])
    assert charts.cut("accuracy") == "accuracy"
    assert charts.heading('Reward: a\n"\u2028 b') == "Reward: a  b"
    assert charts.heading("pass@16 (greedy), 50 %") == "pass@16 (greedy), 50 %"


@pytest.mark.browser
def test_pages_of_evil_runs_stay_still(browser, tmp_path: Path) -> None:
    some = [PAYLOADS[name] for name in SOME]
    assert not {kind: found for kind, found in look(browser, evil_page(tmp_path, some), some).items() if found}


@pytest.mark.browser
def test_a_page_that_does_not_escape_is_caught(browser, tmp_path: Path) -> None:
    """The spy sees what there is to see: the same page with one answer left as it was written."""
    mark = "spoilt-here"
    page = evil_page(tmp_path, [mark], comparisons=0)
    for harm, kinds in (
        ("<img src=x onerror=__xss(1)>", {"console", "element", "attribute", "request"}),
        ("<iframe srcdoc='<script>parent.__xss(1)</script>'></iframe>", {"console", "element", "attribute"}),
        ("<script>__xss(1)</script>", {"console", "element"}),
        ("<i onclick=__xss(1)>", {"attribute"}),
    ):
        bad = page.with_name("bad.html")
        bad.write_text(page.read_text().replace(f"<pre>{mark}</pre>", f"<pre>{harm}{mark}</pre>", 1))
        assert harm in bad.read_text()
        found = {kind for kind, seen in look(browser, bad, [mark]).items() if seen}
        assert kinds & {"element", "attribute"} <= found, harm
        assert "ran" not in found  # the page's policy lets nothing run even so
        # without the policy it does run, where it can by itself
        bad.write_text(bad.read_text().replace("Content-Security-Policy", "x"))
        assert ("ran" in {kind for kind, seen in look(browser, bad, [mark]).items() if seen}) == (
            harm != "<i onclick=__xss(1)>"
        )


@pytest.mark.slow
@pytest.mark.browser
def test_all_payloads() -> None:
    try:
        found = survey()
    except LookupError as problem:
        pytest.skip(str(problem))
    assert found["holds"], found["seen"]
