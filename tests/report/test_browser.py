"""The page in a real browser, without a network: charts are drawn, filters work, nothing runs that must not.

Needs Playwright's Python package (of the dev extra) and Chromium: the one at `WHET_CHROMIUM`, else `chromium` on PATH
(`apt-get install chromium`, as `.ci/run` does). Without them these tests are skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import CHROMIUM, FLAGS
from report_folders import EVIL, make_comparison, make_run

from whet.report.page import write_report

pytestmark = pytest.mark.browser
pytest.importorskip("altair", reason="the report extra is not installed")
pytest.importorskip("vl_convert", reason="the report extra is not installed")
sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install 'whet[dev]'")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not CHROMIUM:
        pytest.skip("there is no Chromium on PATH: apt-get install chromium, or name one by WHET_CHROMIUM")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison, two seeds of a run with evil answers, and a long prompt without spaces."""
    path = tmp_path_factory.mktemp("report")
    compared = make_comparison(path / "compared", answer=EVIL)
    runs = [make_run(path / f"run{seed}", seed=seed, before="0011" * 5, after="0101" * 5, answer=EVIL + "x" * 300,
                     arguments={"steps": 4, "note": "n" * 120}) for seed in range(2)]  # fmt: skip
    return write_report([compared, *runs], path / "out" / "report.html")


@pytest.fixture
def opened(browser: Any, report: Path) -> Iterator[Any]:
    """open(width, scheme) -> a page of which every complaint is kept in `.complaints` and every request in `.requests`."""
    contexts = []

    def open_page(width: int = 1200, scheme: str = "light", **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **options)
        contexts.append(context)
        page = context.new_page()
        page.complaints, page.requests = [], []
        page.on("console", lambda message: page.complaints.append(message.text))
        page.on("pageerror", lambda problem: page.complaints.append(str(problem)))
        page.on("request", lambda request: page.requests.append(request.url))
        page.goto(report.as_uri())
        if options.get("java_script_enabled", True):
            charts = page.locator("[data-chart]").count()
            page.wait_for_function(f"document.querySelectorAll('[data-chart] svg').length === {charts}")
        return page

    yield open_page
    for context in contexts:
        context.close()


def test_charts_are_drawn_offline_and_nothing_is_complained_of(opened, tmp_path):
    page = opened()
    assert page.locator("[data-chart]").count() > 15
    assert not page.complaints
    assert all(url.startswith(("file:", "data:")) for url in page.requests)
    assert page.title() == "grpo · sft on chain-sum · grpo on chain-sum"  # no answer has changed it
    assert page.locator("img").count() == 0
    shot = page.screenshot(path=tmp_path / "report.png", full_page=True)
    assert len(shot) > 50_000


def test_curves_have_lines_and_bands(opened):
    chart = opened().locator("#runs [data-chart]").first
    assert chart.locator("path[aria-roledescription='line mark container'], .mark-line path").count() >= 1
    assert chart.locator(".mark-area path").count() >= 1


def test_the_filters(opened):
    page = opened()
    block = page.locator("#runs [data-answers]")
    shown = block.locator("li[data-run]:visible")
    output = block.locator("output")
    assert output.inner_text() == "20 answers: 5 fixed, 5 broken, 5 still wrong, 5 still right"
    assert shown.count() == 12
    block.get_by_role("button", name="Show more").click()
    assert shown.count() == 20
    block.locator("select[name=change]").select_option("fixed")
    assert output.inner_text() == "5 answers: 5 fixed, 0 broken, 0 still wrong, 0 still right"
    assert {item.get_attribute("data-change") for item in shown.all()} == {"fixed"}
    block.locator("input[name=text]").fill("WHAT 13+7")
    assert shown.count() == 1
    assert "What is 13+7?" in shown.inner_text()
    block.locator("select[name=run]").select_option("")
    assert shown.count() == 2
    block.locator("input[name=text]").fill("no such words")
    assert shown.count() == 0
    assert block.get_by_role("button", name="Show more").is_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(opened, scheme):
    """The contrast of text, of dim text and of the charts' labels is at least 4.5 (WCAG AA)."""
    page = opened(scheme=scheme)
    for selector in ("body", ".note", "td.good, th.good, .chip.good", ".chip.bad", ".chart .role-axis-label text"):
        assert contrast(page, selector) >= 4.5, selector
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(rgb(paper)) < 200) == (scheme == "dark")


def test_every_chart_says_in_words_and_numbers_what_it_shows(opened):
    page = opened()
    for figure in page.locator("figure").all():
        chart = figure.locator("[data-chart]")
        assert chart.get_attribute("role") in ("img", "graphics-document")  # of the page, then of Vega
        label = chart.get_attribute("aria-label") or ""
        assert label.endswith(".") and any(c.isdigit() for c in label), label  # not `Vega visualization`
        assert figure.locator("details table tbody tr").count() >= 1
    assert all(region.get_attribute("aria-label") for region in page.locator("[role=region]").all())
    forgetting = page.get_by_role("region", name="Forgetting: accuracy lost on other tasks")
    assert "at accuracy 0.450" in forgetting.inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_scrolls_down_only(opened, scheme, tmp_path):
    page = opened(width=390, scheme=scheme)
    assert len(page.screenshot(path=tmp_path / "phone.png", full_page=True)) > 50_000
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert not page.complaints
    for chart in page.locator("[data-chart] svg").all():
        box = chart.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390


def test_a_chart_follows_the_width_of_the_window(opened):
    page = opened()
    chart = page.locator("[data-chart] svg").first
    wide = chart.bounding_box()["width"]
    page.set_viewport_size({"width": 390, "height": 900})
    page.wait_for_function("document.querySelector('[data-chart] svg').getBoundingClientRect().right <= 390")
    assert chart.bounding_box()["width"] != wide


def test_numbers_can_be_opened_by_keyboard(opened):
    page = opened()
    summary = page.locator("figure summary").first
    summary.focus()
    page.keyboard.press("Enter")
    assert page.locator("figure details[open] table").first.is_visible()


def test_without_scripts_every_number_and_answer_is_there(opened):
    page = opened(java_script_enabled=False)
    assert page.locator("#runs li[data-run]:visible").count() == 40
    assert page.locator("form.filters:visible").count() == 0
    assert page.locator("table").count() > 15


def rgb(colour: str) -> list[int]:
    return [int(float(part)) for part in colour.removeprefix("rgba(").removeprefix("rgb(").rstrip(")").split(",")][:3]


def contrast(page: Any, selector: str) -> float:
    """WCAG's contrast of an element's text with what is painted behind it."""
    text, behind = page.locator(selector).first.evaluate(
        """element => {
            const colour = element instanceof SVGElement ? getComputedStyle(element).fill : getComputedStyle(element).color;
            let at = element;
            while (at && /, 0\\)$|transparent/.test(getComputedStyle(at).backgroundColor)) at = at.parentElement;
            return [colour, getComputedStyle(at ?? document.body).backgroundColor];
        }"""
    )
    light, dark = sorted((luminance(rgb(text)), luminance(rgb(behind))), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: list[int]) -> float:
    parts = [c / 255 for c in colour]
    red, green, blue = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
