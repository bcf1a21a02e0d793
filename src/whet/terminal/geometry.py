"""`whet probe geometry` and `whet probe equivalent`: where training moved, as tables and plots, and the same model by other weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.text import Text

from whet.errors import WhetError, unknown
from whet.models.base import load
from whet.probes.agreement import Alike, alike, consensus, profiles
from whet.probes.equivalent import EQUIVALENT
from whet.probes.geometry import MEASURES, OVERLAPS, Cache, Place, mean, measure, sweep
from whet.terminal.console import console, curve, table
from whet.weights import Weights
from whet.weights.delta import open_model

HEADS = {"change": "|dW|/|W|", "sparsity": "sparsity", "drift": "drift", "drift_by_change": "drift/|dW|", "angle_left": "angle U",
         "angle_right": "angle V", "angle_by_change": "angle/|dW|", "gap": "gap", "energy": "energy", "principal": "principal",
         "low": "low", "spared": "princ. not low", "top_principal": "top principal", "top_low": "top low"}  # fmt: skip
BY_LAYER = ("sparsity", "drift_by_change", "angle_by_change")
CLOSE = 1e-3  # of log-probabilities, where a model is to be the same function


def geometry(
    before: str, after: Sequence[str], *, rank: int = 0, density: float = 0.2, sweeps: bool = False,
    beside: tuple[str, str] | None = None, plot: Path | None = None, as_json: bool = False,
) -> None:  # fmt: skip
    """Measure each model of `after` against `before`; print, and draw.

    Args:
        sweeps: the overlaps at other ranks and densities, too.
        beside: another start and a run of it, whose changes are compared with those of `after`.
    """
    start, cache = open_model(before), Cache()
    runs = {name: open_model(name) for name in after}
    config = start.config
    found = {
        name: measure(start, run, rank=rank, density=density, config=config, cache=cache) for name, run in runs.items()
    }
    swept = {name: sweep(start, run, config=config, cache=cache) for name, run in runs.items()} if sweeps else {}
    ends = [(start, run) for run in runs.values()]
    if beside:
        ends.append((open_model(beside[0]), open_model(beside[1])))
    agreed = alike(ends, config) if len(ends) > 1 else []
    if as_json:
        told = {name: {"mean": mean(places), "matrices": [vars(p) for p in places], **({"sweep": swept[name]} if swept else {})}
                for name, places in found.items()}  # fmt: skip
        both = _means(agreed)
        print(json.dumps({"before": before, "density": density, "after": told, "jaccard": both and both[0],
                          "jaccard by chance": both and both[1], "alike": [vars(p) for p in agreed]}))  # fmt: skip
    else:
        screen = console()
        for name, places in found.items():
            screen.print(f"[bold]{before}[/] -> [bold]{name}[/]", soft_wrap=True)
            screen.print(rows(places))
            if swept:
                screen.print(swept_rows(swept[name]))
        screen.print(f"[dim]principal, low and top: share of the changed entries (or of the {density:.0%} that moved most) in the "
                     f"{density:.0%} of W that are largest after rank reduction, or smallest; by chance {density:g}. Angles in degrees; "
                     "gap: how far the last direction counted stands out; energy: the share of the directions counted. Sparsity and "
                     "changed: as stored in bf16.[/]")  # fmt: skip
        if both := _means(agreed):
            screen.print(alike_rows(agreed))
            screen.print(f"changed entries of the runs: Jaccard {both[0]:.3f}, by chance {both[1]:.3f}")
    if plot is not None:
        shares = {name: list(consensus(start, [run], config)) for name, run in runs.items()}
        draw(found, plot, {name: {n: profiles(mask) for n, mask in own} for name, own in shares.items()})


def rows(places: Sequence[Place]) -> Any:
    """A row for each measure and a column for each kind of matrix, then some measures layer by layer."""
    kinds = list(dict.fromkeys(p.kind for p in places))
    groups = [[p for p in places if p.kind == kind] for kind in kinds]
    made = _tight("", *map(_short, kinds), "all")
    means = [*map(mean, groups), mean(places)]
    for name in MEASURES:
        made.add_row(Text(HEADS[name], style="cyan"), *(_written(name, numbers) for numbers in means))
    made.add_section()
    made.add_row("by layer")
    for name in BY_LAYER:
        layers = [[p.numbers[name] or 0.0 for p in own if p.layer is not None] for own in groups]
        made.add_row(Text(HEADS[name], style="cyan"), *map(curve, layers))
    return made


def swept_rows(found: Sequence[Mapping[str, float | None]]) -> Any:
    """The overlaps at each rank and density."""
    made = _tight("k/side", "chance", *(HEADS[m] for m in OVERLAPS))
    for row in found:
        made.add_row(f"{row['rank']:.3g}", f"{row['density']:.1f}", *(_written(m, row) for m in OVERLAPS))
    return made


def alike_rows(found: Sequence[Alike]) -> Any:
    """Jaccard less chance of each layer and kind of matrix."""
    kinds = list(dict.fromkeys(p.kind for p in found))
    made = _tight("Jaccard - chance", *map(_short, kinds))
    at = {(p.layer, p.kind): f"{p.jaccard - p.by_chance:+.3f}" for p in found}
    for layer in dict.fromkeys(p.layer for p in found):
        made.add_row("-" if layer is None else f"layer {layer}", *(at.get((layer, kind), "-") for kind in kinds))
    return made


def draw(
    found: Mapping[str, Sequence[Place]],
    file: Path,
    shares: Mapping[str, Mapping[str, tuple[torch.Tensor, torch.Tensor]]],
) -> None:
    """Three plots below each other, a colour for each kind of matrix: each measure layer by layer; the cosines of the principal
    angles; and the share of each row and column that changed, over layers."""
    try:
        import altair as alt
    except ImportError:
        raise WhetError("a plot needs altair: pip install 'whet[report]'") from None
    if file.suffix not in (".svg", ".png", ".html"):
        raise WhetError(f"'{file}': a plot is .svg, .png or .html")
    measures = [{"run": run, "layer": p.layer, "matrix": p.kind, "measure": HEADS[name], "value": value}
                for run, places in found.items() for p in places for name in MEASURES
                if p.layer is not None and (value := p.numbers[name]) is not None]  # fmt: skip
    angles = [{"run": run, "layer": f"{side}, layer {p.layer}", "matrix": p.kind, "direction": i + 1, "cosine": value}
              for run, places in found.items() for p in places for side, values in p.cosines.items()
              for i, value in enumerate(values)]  # fmt: skip
    kind = {p.name: (p.kind, p.layer) for places in found.values() for p in places}
    changed = [{"run": run, "matrix": kind[name][0], "side": f"{side}, layer {kind[name][1]}", "place": i, "changed": float(v)}
               for run, own in shares.items() for name, both in own.items() if name in kind
               for side, values in zip(("rows", "columns"), both, strict=True) for i, v in enumerate(values)]  # fmt: skip

    def lines(data: list[dict[str, Any]], x: str, y: str, by: str, point: bool = False, sort: Any = None) -> Any:
        chart = alt.Chart(alt.Data(values=data), width=180, height=120).mark_line(point=point).encode(
            x=x, y=alt.Y(y, title=None, scale=alt.Scale(zero=False)), color="matrix:N", strokeDash="run:N",
            facet=alt.Facet(by, columns=4, title=None, sort=sort),
        )  # fmt: skip
        return chart.resolve_scale(x="independent", y="independent")

    alt.vconcat(
        lines(measures, "layer:O", "value:Q", "measure:N", True, list(HEADS.values())),
        lines(angles, "direction:Q", "cosine:Q", "layer:N"), lines(changed, "place:Q", "changed:Q", "side:N"),
    ).save(str(file))  # fmt: skip


def equivalent(model: str | None, out: Path, *, how: str, layers: Sequence[int] | None = None, seed: int = 0) -> None:
    """Write the same model by other weights, in fp32, after a look that it is the same."""
    if how not in EQUIVALENT:
        raise unknown("way to other weights", how, EQUIVALENT)
    if out.exists() and any(out.iterdir()):
        raise WhetError(f"'{out}' is not empty; choose another folder")
    policy = load(model, device="cpu", dtype="float32")
    Weights().attach(policy, seed)  # merges adapters
    ids = torch.randint(policy.model.config.vocab_size, (4, 32), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        policy.model.eval()
        was = policy.logits(ids).log_softmax(-1)
        EQUIVALENT[how](policy.model, layers, seed)
        apart = float((policy.logits(ids).log_softmax(-1) - was).abs().max())
    if apart > CLOSE:
        raise WhetError(
            f"{type(policy.model).__name__} is another function after '{how}': log-probabilities differ by {apart:.2g}"
        )
    policy.save(out)
    console().print(f"{out}: the same function (log-probabilities to {apart:.0e}), in fp32", soft_wrap=True)


def _means(found: Sequence[Alike]) -> tuple[float, float] | None:
    n = len(found)
    return (sum(p.jaccard for p in found) / n, sum(p.by_chance for p in found) / n) if n else None


def _tight(first: str, *others: str) -> Any:
    """A table of numbers whose columns stand close."""
    made = table(first, *others, right=others)
    made.padding = (0, 0)
    return made


def _short(kind: str) -> str:
    return kind if kind == "c_proj" else kind.removesuffix("_proj")


def _written(name: str, numbers: Mapping[str, float | None]) -> str:
    value = numbers[name]
    form = {"change": ".1e", "drift": ".1e", "angle_left": ".2f", "angle_right": ".2f", "angle_by_change": ".0f"}.get(
        name, ".3f"
    )
    return "-" if value is None else f"{value:{form}}"
