"""Pages of studies and the ledger of all of them, from the committed verdicts.

    python -m whet.report.ledger            write docs/ledger.md and docs/papers/<slug>.md
    python -m whet.report.ledger --check    exit with 1 where they are not what the verdicts say

They are a function of `results/<slug>/verdict.json` (and `results/<slug>/full/verdict.json`) and of the list of papers;
nobody writes in them by hand.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from whet.errors import WhetError
from whet.papers import paper
from whet.report.numbers import NONE, interval, known, name, number, p_value
from whet.report.tables import forgetting_notes, forgotten, negated

MADE = "<!-- made by `python -m whet.report.ledger` from results/: do not edit -->"
START = "start"


def pages(results: str | Path = "results") -> dict[str, str]:
    """{path below docs/: text} of the ledger and of a page for each study that has a verdict."""
    found = read(results)
    return {"ledger.md": ledger(found), **{f"papers/{slug}.md": page(slug, v) for slug, v in found.items()}}


def read(results: str | Path) -> dict[str, dict[str, Any]]:
    """{slug: {"small": verdict, "full": verdict}}, of the scales that were run."""
    found: dict[str, dict[str, Any]] = {}
    for folder in sorted(p for p in Path(results).glob("*") if p.is_dir()):
        files = {"small": folder / "verdict.json", "full": folder / "full" / "verdict.json"}
        scales = {scale: _verdict(file) for scale, file in files.items() if file.exists()}
        if scales:
            found[folder.name] = scales
    return found


def ledger(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The table of all studies: paper, claim, verdict, effect with its interval, cost."""
    lines = [MADE, "", "# Ledger", "",
             "Does a paper's claim hold at small scale? Each row is a study of `whet reproduce`: what would count as "
             "reproduced was fixed in code before it was run, and the verdict is computed from the committed numbers of "
             "every seed. Small scale is a small model on a task that a computer makes and checks; it says nothing about "
             "large ones.", ""]  # fmt: skip
    if not found:
        return "\n".join([*lines, "No study has a verdict yet.", ""])
    lines += ["| study | paper | claim | verdict | effect (95 %) | cost |", "|---|---|---|---|---|---|"]
    for slug, scales in found.items():
        for scale, verdict in scales.items():
            which = f"[{slug}](papers/{slug}.md)" + (" (full)" if scale == "full" else "")
            lines.append(_row(which, _paper(verdict), _escape(verdict["claim"]), f"**{verdict['verdict']}**",
                              effect(slug, verdict), cost(verdict)))  # fmt: skip
    return "\n".join([*lines, ""])


def page(slug: str, scales: Mapping[str, Any]) -> str:
    """A study's page."""
    first = next(iter(scales.values()))
    lines = [MADE, "", f"# {slug}", "", f"{_paper(first)}", "", f"**Claim.** {_escape(first['claim'])}", "",
             f"**Criterion.** {_escape(first['criterion'])}", ""]  # fmt: skip
    for scale, verdict in scales.items():
        if len(scales) > 1:
            lines += [f"## {'Full' if scale == 'full' else 'Small'} scale", ""]
        lines += _study(slug, scale, verdict)
    return "\n".join(lines)


def effect(slug: str, verdict: Mapping[str, Any]) -> str:
    """The first metric's difference between the paper's method and the best arm that it is measured against.

    The method is the arm called as the study or the paper is, else the last one; the others are the arms that are no
    controls, or the start where there is none.
    """
    arms = list(verdict["arms"])
    method = next((arm for arm in (slug, verdict["paper"]) if arm in arms), arms[-1])
    metric = next(iter(verdict["metrics"]))
    found = verdict["intervals"][metric]
    rivals = [arm for arm in arms if arm != method and arm not in verdict["controls"]]
    if not rivals:
        if START not in found:
            return NONE
        return f"{name(metric)} of {method} {_with_interval(metric, found[method])}, start {number(metric, found[START]['value'])}"
    rival = max(rivals, key=lambda arm: found[arm]["value"])
    return (
        f"{name(metric)} {method} – {rival}: {_with_interval(metric, _difference(found, method, rival), signed=True)}"
    )


def cost(verdict: Mapping[str, Any]) -> str:
    """`12 runs, 34 min`."""
    runs = len(verdict["arms"]) * len(verdict["seeds"])
    return f"{runs} runs, {verdict['minutes']:.0f} min"


def write(results: str | Path, docs: str | Path) -> list[Path]:
    """Write all pages below `docs`; a page whose study has gone is removed. Returns what changed."""
    changed = []
    wanted = pages(results)
    for path in stale(results, docs):
        changed.append(path)
        text = wanted.get(path.relative_to(docs).as_posix())
        if text is None:
            path.unlink()
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return changed


def stale(results: str | Path, docs: str | Path) -> list[Path]:
    """The pages that are missing, are not what the verdicts say, or belong to no verdict."""
    wanted = {Path(docs) / place: text for place, text in pages(results).items()}
    old = [path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    return old + [path for path in sorted((Path(docs) / "papers").glob("*.md")) if path not in wanted]


# -- parts -------------------------------------------------------------------------------------------------------------
def _study(slug: str, scale: str, v: Mapping[str, Any]) -> list[str]:
    """Verdict, numbers and cost of a study at one scale."""
    budget = f", each run {v['budget']}" if v["budget"] else ""
    lines = [f"**Verdict: {v['verdict']}.** {_escape(v['why'])}", "",
             f"{v['task']} on {v['model']['name']} ({v['model']['parameters'] / 1e6:.3g} M parameters), seeds "
             f"{', '.join(map(str, v['seeds']))}{budget}; {cost(v)}. Intervals are 95 %, over seeds and test problems.", "",
             f"    whet reproduce {slug}{' --full' if scale == 'full' else ''}", ""]  # fmt: skip
    metrics = list(v["metrics"])
    lines += [_row("arm", *map(name, metrics)), _row(*["---"] * (len(metrics) + 1))]
    rows = [START, *v["arms"]] if any(START in v["intervals"][m] for m in metrics) else list(v["arms"])
    for arm in rows:
        label = arm + (" (control)" if arm in v["controls"] else "")
        lines.append(_row(label, *(_with_interval(m, v["intervals"][m].get(arm)) for m in metrics)))
    if told := [f"{arm} is `{spec}`" for arm, spec in v["arms"].items() if arm != spec]:
        lines += ["", "; ".join(told) + "."]
    main = metrics[0]
    lines += ["", _row(f"difference in {name(main)}", "", "p", "p, corrected"), _row(*["---"] * 4)]
    for pair, d in v["intervals"][main].items():
        if "p" in d:
            lines.append(_row(pair.replace(" - ", " – "), _with_interval(main, d, signed=True), p_value(d["p"]),
                              p_value(d["p_corrected"])))  # fmt: skip
    forgot = v["forgetting"]
    if made := forgotten(forgot, list(v["arms"])):
        lines += ["", _row("forgetting", *made.heads[1:]), _row(*["---"] * len(made.heads))]
        lines += [_row(*(f"{c.text} ({c.more})" if c.more else c.text for c in row)) for row in made.rows]
    for note in forgetting_notes(forgot):
        lines += ["", _escape(note)]
    if known(v["detectable"][main]):
        lines += ["", f"The smallest true difference that every pair of arms would have shown (80 % power): "
                      f"{v['detectable'][main]:.3f}."]  # fmt: skip
    lines += ["", f"{name(main).capitalize()} of each seed: " + "; ".join(
        f"{arm} {', '.join(number(main, x) for x in values)}" for arm, values in v["metrics"][main].items()) + "."]  # fmt: skip
    return [*lines, "", f"Versions: {', '.join(f'{k} {x}' for k, x in v['versions'].items())}.", ""]


def _difference(found: Mapping[str, Any], a: str, b: str) -> Mapping[str, Any]:
    """a - b, from the interval of either order."""
    return found[f"{a} - {b}"] if f"{a} - {b}" in found else negated(found[f"{b} - {a}"])


def _with_interval(metric: str, found: Mapping[str, Any] | None, signed: bool = False) -> str:
    if not found:
        return NONE
    reach = interval(metric, found, signed)
    return number(metric, found["value"], signed) + (f" ({reach})" if reach else "")


def _paper(verdict: Mapping[str, Any]) -> str:
    if not verdict["paper"]:
        return "a comparison of Whet's own"
    found = paper(verdict["paper"])
    return f"[{_escape(found.title)}]({found.url})"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _escape(text: str) -> str:
    """A sentence as Markdown that cannot end a table's cell."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _verdict(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text())
    except ValueError as problem:
        raise WhetError(f"'{file}' cannot be read: {problem}; compute it again with `whet reproduce`") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the pages; with `--check` only say which are not up to date."""
    check = list(sys.argv[1:] if arguments is None else arguments) == ["--check"]
    found = stale("results", "docs") if check else write("results", "docs")
    for path in found:
        print(f"{path} {'is not up to date' if check else 'written'}")
    return int(check and bool(found))


if __name__ == "__main__":
    sys.exit(main())
