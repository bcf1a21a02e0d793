"""The page as text: what it holds, and that nothing a model wrote gets out of its place."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_folders import EVIL, make_comparison, make_run

from whet.errors import WhetError
from whet.report import page

pytest.importorskip("altair", reason="the report extra is not installed")
pytest.importorskip("vl_convert", reason="the report extra is not installed")


class Elements(HTMLParser):
    """Tags, text, scripts and charts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self._script: list[str] | None = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._script = [] if tag == "script" else self._script

    def handle_endtag(self, tag):
        if tag == "script" and self._script is not None:
            self.scripts.append("".join(self._script))
            self._script = None

    def handle_data(self, data):
        if self._script is not None:
            self._script.append(data)
        else:
            self.text += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Elements:
    """A comparison and a run whose answers, labels and task try to break out."""
    path = tmp_path_factory.mktemp("evil")
    compared = make_comparison(
        path / "c", {f"grpo:name={EVIL}": ["1110", "1111"], "sft": ["1000", "1010"]}, answer=EVIL
    )
    run = make_run(path / "r", answer=EVIL + "</pre></li></script>", arguments={"note": EVIL})
    return Elements(page.render([compared, run]))


def test_nothing_a_model_wrote_becomes_markup(evil):
    assert EVIL in evil.text
    assert not evil.named("img")
    assert len(evil.named("script")) == 3  # the charts' data and the two scripts of the page
    assert evil.named("script")[0]["type"] == "application/json"
    raw = evil.scripts[0]
    assert "<" not in raw and ">" not in raw
    assert EVIL in json.dumps(json.loads(raw), ensure_ascii=False).replace('\\"', '"')


def test_only_the_scripts_of_the_page_may_run_and_nothing_may_load(evil):
    (policy,) = (m["content"] or "" for m in evil.named("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; ")
    allowed = re.search("script-src ([^;]+);", policy)[1].split()
    digest = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in evil.scripts[1:]]
    assert allowed == [f"'sha256-{d}'" for d in digest]
    addresses = [a[k] for _, a in evil.tags for k in ("src", "href") if a.get(k)]
    assert all(address.startswith(("#", "data:")) for address in addresses)


def test_every_chart_has_a_sentence_and_a_table(evil):
    charts = [a for _, a in evil.tags if "data-chart" in a]
    specs = json.loads(evil.scripts[0])["specs"]
    assert [a["data-chart"] for a in charts] == [str(i) for i in range(len(specs))]
    assert all(a["role"] == "img" and re.search(r"\d", a["aria-label"]) for a in charts)
    assert len(evil.named("figure")) == len(charts) == evil.text.count("Numbers")


def test_a_run_has_its_parts(tmp_path):
    text = Elements(page.render([make_run(tmp_path / "first")])).text
    titles = ["Validation accuracy", "Accuracy of sampled answers", "Reward", "Tokens of an answer", "Entropy of a token",
              "KL: approx kl", "Dead groups", "Truncated answers", "Loss: policy gradient", "Norm of the gradient",
              "Time of a step"]  # fmt: skip
    places = [text.index(title) for title in titles]
    assert places == sorted(places)
    assert "grpo: accuracy 0.250 before, 0.750 after: +0.500" in text
    assert "Zero in every step: unparseable, failed." in text
    assert "whet run grpo steps=4 --task chain-sum --test-n 4 --k 2 --out NEW" in text
    assert "model_hash: abc" in text  # run.yaml as it stands


def test_chart_sentences_give_the_numbers(tmp_path):
    found = Elements(page.render([make_run(tmp_path / "a"), make_run(tmp_path / "b", seed=1)]))
    labels = [a["aria-label"] for _, a in found.tags if "data-chart" in a]
    assert labels[0] == "Validation accuracy by step. from 0.100 at 0 to 0.650 at 4, highest 0.650 at 4."
    assert any(label.startswith("Seconds of a step. run: sample 3, score 0, learn 1.") for label in labels)


def test_an_unfinished_run_shows_how_far_it_is(tmp_path):
    text = Elements(page.render([make_run(tmp_path / "a", finished=False)])).text
    assert f"{tmp_path / 'a'}: not finished, 4 steps so far" in text
    assert "Validation accuracy" in text
    assert "no answer" in text


def test_a_comparison_says_who_is_best(tmp_path):
    text = Elements(page.render([make_comparison(tmp_path / "c")])).text
    assert "grpo is best: accuracy 0.833 (0.733 to 0.933)." in text
    assert "Its lead over sft, +0.500, is more than chance (corrected p 0.001)." in text
    assert "Accuracy, forgetting, cost" in text
    assert (
        "whet compare sft:lr=0.0001 grpo:lr=0.0001 test_n=4 --task chain-sum --budget flops:2e12 --seeds 3 --out NEW"
        in text
    )
    assert "Equal: flops:2e12 a run; 101% to 101% of it was spent." in text


def test_a_comparison_without_its_run_folders_is_still_shown(tmp_path):
    import shutil

    shutil.rmtree(make_comparison(tmp_path / "c") / "runs")
    assert "grpo is best" in page.render([tmp_path / "c"])


def test_the_page_is_a_function_of_the_files(tmp_path):
    folders = [make_comparison(tmp_path / "c"), make_run(tmp_path / "a")]
    assert page.render(folders) == page.render([*folders, tmp_path / "a"])


def test_a_missing_library_names_the_extra(tmp_path, monkeypatch):
    page.javascript.cache_clear()
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(WhetError, match=r"vl_convert.*pip install 'whet\[report\]'"):
        page.render([make_run(tmp_path / "a")])


def test_where_it_cannot_be_written(tmp_path):
    folder = make_run(tmp_path / "a")
    with pytest.raises(WhetError, match="cannot be written"):
        page.write_report([folder], Path(folder))


def test_what_the_guards_told_stands_above_the_training_charts(tmp_path: Path) -> None:
    """In one line for all seeds of a recipe, with the first step of any; escaped, as a user's reward may have named it."""
    runs = [
        make_run(tmp_path / f"{recipe}-{seed}", seed=seed, recipe=recipe)
        for recipe in ("grpo", "ppo")
        for seed in (0, 1)
    ]
    for run, step in zip(runs[:2], (3, 2), strict=True):
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for row in rows:
            row |= {"warnings": [f"the entropy {EVIL}"]} if row["step"] == step and "share" in row else {}
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = Elements(page.render(runs))
    (told,) = [a for a in found.named("ul") if a.get("class") == "warnings"]
    assert told and f"grpo: the entropy {EVIL} (in 2 of 2 seeds, first after step 2)" in found.text
    assert not found.named("img")
    alone = Elements(page.render(runs[:1]))
    assert f"the entropy {EVIL} (after step 3)" in alone.text and "grpo: the entropy" not in alone.text
    assert "Mismatch of sampler and trainer" not in alone.text, "these runs have no such number"
    assert not [a for a in Elements(page.render(runs[2:])).named("ul") if a.get("class") == "warnings"]
