"""`whet probe geometry`: the table of where training moved, and its plot."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from whet.errors import WhetError
from whet.probes.geometry import MEASURES, Place, jaccard, mean, measure
from whet.terminal.console import console, curve, table
from whet.weights.delta import open_model

HEADS = {"change": "|dW|/|W|", "sparsity": "sparsity", "drift": "drift", "angle_left": "angle U", "angle_right": "angle V",
         "gap": "gap", "principal": "principal", "low": "low", "spared": "principal, not low", "top_principal": "top principal",
         "top_low": "top low"}  # fmt: skip


def geometry(
    before: str,
    after: Sequence[str],
    *,
    rank: int = 0,
    density: float = 0.2,
    plot: Path | None = None,
    as_json: bool = False,
) -> None:
    """Measure each model of `after` against `before`; print, and draw."""
    start = open_model(before)
    runs = {name: open_model(name) for name in after}
    found = {name: measure(start, run, rank=rank, density=density, config=start.config) for name, run in runs.items()}
    alike = jaccard(start, list(runs.values()), start.config) if len(runs) > 1 else None
    if as_json:
        told = {name: {"mean": mean(places), "matrices": [vars(p) for p in places]} for name, places in found.items()}
        print(json.dumps({"before": before, "density": density, "after": told, "jaccard": alike and alike[0],
                          "jaccard by chance": alike and alike[1]}))  # fmt: skip
    else:
        screen = console()
        for name, places in found.items():
            screen.print(f"[bold]{before}[/] -> [bold]{name}[/]", soft_wrap=True)
            screen.print(rows(places))
        screen.print(f"[dim]principal, low and top: share of the changed entries (or of the {density:.0%} that moved most) in the "
                     f"{density:.0%} of W that are largest after rank reduction, or smallest; by chance {density:g}. Angles in degrees; "
                     "gap: how far the last direction counted stands out. Sparsity and changed: as stored in bf16.[/]")  # fmt: skip
        if alike:
            screen.print(f"changed entries of the runs: Jaccard {alike[0]:.3f}, by chance {alike[1]:.3f}")
    if plot is not None:
        draw(found, plot)


def rows(places: Sequence[Place]) -> Any:
    """A row for each kind of matrix and one for all, with the changes of the layers in order."""
    made = table("matrices", *HEADS.values(), "sparsity by layer", right=tuple(HEADS.values()))
    kinds = list(dict.fromkeys(p.kind for p in places))
    for kind in [*kinds, "all"]:
        own = [p for p in places if kind in (p.kind, "all")]
        numbers = mean(own)
        if kind == "all":
            made.add_section()
        layers = [p.numbers["sparsity"] or 0.0 for p in own if p.layer is not None] if kind != "all" else []
        made.add_row(
            Text(kind, style="bold" if kind == "all" else "cyan"),
            *(_written(name, numbers) for name in HEADS),
            curve(layers),
        )
    return made


def draw(found: Mapping[str, Sequence[Place]], file: Path) -> None:
    """Each measure layer by layer, a colour for each kind of matrix."""
    try:
        import altair as alt
    except ImportError:
        raise WhetError("a plot needs altair: pip install 'whet[report]'") from None
    if file.suffix not in (".svg", ".png", ".html"):
        raise WhetError(f"'{file}': a plot is .svg, .png or .html")
    data = [{"run": run, "layer": p.layer, "matrix": p.kind, "measure": HEADS[name], "value": value}
            for run, places in found.items() for p in places for name in MEASURES
            if p.layer is not None and (value := p.numbers[name]) is not None]  # fmt: skip
    chart = alt.Chart(alt.Data(values=data), width=180, height=120).mark_line(point=True).encode(
        x=alt.X("layer:O"), y=alt.Y("value:Q", title=None, scale=alt.Scale(zero=False)), color="matrix:N", strokeDash="run:N",
        facet=alt.Facet("measure:N", columns=4, title=None, sort=list(HEADS.values())),
    )  # fmt: skip
    chart.resolve_scale(y="independent").save(str(file))


def _written(name: str, numbers: Mapping[str, float | None]) -> str:
    value = numbers[name]
    return (
        "-"
        if value is None
        else f"{value:.2e}"
        if name in ("change", "drift")
        else f"{value:.2f}"
        if name.startswith("angle")
        else f"{value:.3f}"
    )
