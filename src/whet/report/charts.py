"""The charts of a report: Vega-Lite made with Altair, each with its numbers as a table and a sentence.

Colours are those of the page (`currentColor`) or of a palette that can be told apart on white and on near-black.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import altair as alt

from whet.report.curves import Point
from whet.report.numbers import NONE, amount, clock, flops, known, number, short
from whet.report.tables import Cell, Table

PALETTE = ("#3b82f6", "#e8710a", "#10a37f", "#c34ac2", "#b08900", "#e0475f", "#0e9fb8", "#8a7bd8", "#7f8a99")
ROWS = 16  # of a chart's table
CONFIG: dict[str, Any] = {  # of all charts: no colour of their own but the series'
    "background": None,
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {"labelColor": "currentColor", "titleColor": "currentColor", "domainColor": "currentColor",
             "tickColor": "currentColor", "gridColor": "currentColor", "gridOpacity": 0.14, "domainOpacity": 0.4,
             "tickOpacity": 0.4, "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal",
             "labelOverlap": True},
    "rule": {"color": "currentColor"},
    "text": {"color": "currentColor"},
}  # fmt: skip


@dataclass
class Chart:
    """A chart with its text alternatives.

    Attributes:
        spec: Vega-Lite.
        label: what it shows, in sentences with numbers.
        table: its numbers, thinned.
        legend: (name, colour, dashed) of each series; the page writes it, since it wraps on narrow screens.
    """

    title: str
    spec: Mapping[str, Any]
    label: str
    table: Table
    note: str = ""
    legend: Sequence[tuple[str, str, bool]] = ()

    def __post_init__(self) -> None:
        self.title, self.label = cut(self.title), cut(self.label, 4000)
        self.legend = [(cut(name), colour, dashed) for name, colour, dashed in self.legend]


@dataclass(frozen=True)
class Series:
    """A curve of a chart; `name` also decides its colour."""

    name: str
    points: Sequence[Point]
    part: str = ""
    dashed: bool = False

    @property
    def title(self) -> str:
        return f"{self.name}, {self.part}" if self.name and self.part else self.name or self.part


@dataclass
class Colours:
    """A colour for each name, the same in every chart."""

    names: Sequence[str]
    known: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.known = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(dict.fromkeys(self.names))}

    def __getitem__(self, name: str) -> str:
        return self.known.setdefault(name, PALETTE[len(self.known) % len(PALETTE)])


def curves(
    title: str, series: Sequence[Series], colours: Colours, *, metric: str, x: str = "step", share: bool = False,
    note: str = "", height: int = 200,
) -> Chart | None:  # fmt: skip
    """Lines with their intervals. None where no series has a point.

    Args:
        metric: decides how numbers are written.
        share: the values are shares: the axis stays within 0 and 1.
    """
    series = [s for s in series if s.points]
    if not series:
        return None
    rows = [{"s": s.title, "x": p.x, "y": p.value, "low": p.low, "high": p.high} for s in series for p in s.points]
    low, high = _domain(rows, share)
    titles = [s.title for s in series]
    colour = alt.Color("s:N", legend=None, scale=alt.Scale(domain=titles, range=[_colour(s, colours) for s in series]))
    dash = alt.StrokeDash("s:N", legend=None,
                          scale=alt.Scale(domain=titles, range=[[4, 3] if s.dashed else [1, 0] for s in series]))  # fmt: skip
    whole = x == "step"
    across = alt.X("x:Q", title=x, axis=alt.Axis(grid=False, tickMinStep=1 if whole else alt.Undefined, tickCount=6,
                                                 format="~s"), scale=alt.Scale(nice=False))  # fmt: skip
    up = alt.Y("y:Q", title=None, scale=alt.Scale(domain=[low, high], nice=False, zero=False),
               axis=alt.Axis(tickCount=5, format=_ticks(low, high)))  # fmt: skip
    tooltip = [alt.Tooltip("s:N", title="series"), alt.Tooltip("x:Q", title=x, format=",.4~g"),
               alt.Tooltip("y:Q", title=heading(title), format=".4~g"), alt.Tooltip("low:Q", format=".4~g"),
               alt.Tooltip("high:Q", format=".4~g")]  # fmt: skip
    base = alt.Chart(alt.Data(values=rows)).encode(x=across, color=colour)
    few = max(len(s.points) for s in series) <= 30
    layers = [base.mark_line(clip=True, strokeWidth=1.8).encode(y=up, strokeDash=dash),
              base.mark_point(clip=True, filled=True, size=28 if few else 40, opacity=1.0 if few else 0.0)
              .encode(y=up, tooltip=tooltip)]  # fmt: skip
    if any(known(row["low"]) for row in rows):
        layers.insert(0, base.mark_area(clip=True, opacity=0.16).encode(y=alt.Y("low:Q", title=None), y2="high:Q"))
    legend = [(s.title, _colour(s, colours), s.dashed) for s in series] if len(series) > 1 or series[0].title else []
    label = f"{title} by {x}. " + " ".join(_told(s, metric) for s in series)
    return Chart(title, _spec(alt.layer(*layers), height), label, _table(series, x, metric), note, legend)


def time_split(rows: Mapping[str, Mapping[str, float]]) -> Chart | None:
    """Bars of the seconds of a step by what they are spent on.

    Args:
        rows: {group: {part: mean seconds a step}}.
    """
    rows = {label: parts for label, parts in rows.items() if sum(parts.values()) > 0}
    if not rows:
        return None
    parts = list(dict.fromkeys(part for found in rows.values() for part in found))
    values = [{"group": label, "part": part, "order": i, "seconds": short(found.get(part, 0.0)),
               "share": short(found.get(part, 0.0) / sum(found.values()))}
              for label, found in rows.items() for i, part in enumerate(parts)]  # fmt: skip
    colour = alt.Color("part:N", legend=None, scale=alt.Scale(domain=parts, range=list(PALETTE[: len(parts)])))
    bars = alt.Chart(alt.Data(values=values)).mark_bar(height={"band": 0.7}).encode(
        x=alt.X("share:Q", title="share of a step's time", axis=alt.Axis(format="%", tickCount=5),
                scale=alt.Scale(domain=[0, 1])),
        y=alt.Y("group:N", title=None, sort=None, axis=_names(rows)),
        color=colour, order="order:Q",
        tooltip=["group:N", "part:N", alt.Tooltip("seconds:Q", format=".3~g"), alt.Tooltip("share:Q", format=".0%")],
    )  # fmt: skip
    table = Table(["", *(f"{part}, s a step" for part in parts)])
    for label, found in rows.items():
        table.rows.append([Cell(label or "run"), *(Cell(f"{found.get(part, 0.0):.3g}") for part in parts)])
    label = "Seconds of a step. " + " ".join(
        f"{group or 'run'}: {', '.join(f'{part} {found.get(part, 0.0):.3g}' for part in parts)}."
        for group, found in rows.items())  # fmt: skip
    height = 40 + 34 * len(rows)
    return Chart("Time of a step", _spec(bars, height), label, table, "",
                 [(part, PALETTE[i], False) for i, part in enumerate(parts)])  # fmt: skip


def intervals(title: str, rows: Sequence[Mapping[str, Any]], start: float | None, colours: Colours) -> Chart:
    """A dot and its interval for each arm, from the best on; the start is a dashed rule.

    Args:
        rows: {arm, value, low, high} each.
    """
    values = [{k: row[k] if k == "arm" else short(row[k]) for k in ("arm", "value", "low", "high")} for row in rows]
    order = [row["arm"] for row in rows]
    colour = alt.Color("arm:N", legend=None, scale=alt.Scale(domain=order, range=[colours[arm] for arm in order]))
    across = alt.X("value:Q", title=None, scale=alt.Scale(zero=False, padding=12), axis=alt.Axis(tickCount=6))
    base = alt.Chart(alt.Data(values=values)).encode(y=alt.Y("arm:N", sort=None, title=None, axis=_names(order)),
                                                     color=colour)  # fmt: skip
    layers = [base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", title=None), x2="high:Q"),
              base.mark_point(filled=True, size=90, opacity=1).encode(
                  x=across, tooltip=["arm:N", *(alt.Tooltip(f"{k}:Q", format=".3f") for k in ("value", "low", "high"))])]  # fmt: skip
    table = Table(["arm", title, "95 %"])
    for row in rows:
        reach = f"{number('', row['low'])} to {number('', row['high'])}" if known(row["low"]) else ""
        table.rows.append([Cell(row["arm"]), Cell(number("", row["value"])), Cell(reach)])
    note = ""
    if known(start):
        layers.insert(0, alt.Chart(alt.Data(values=[{"start": short(start)}])).mark_rule(
            strokeDash=[4, 4], opacity=0.6).encode(x="start:Q"))  # fmt: skip
        table.rows.append([Cell("start", tone="dim"), Cell(number("", start)), Cell("")])
        note = "Dashed: the model that all arms start from."
    label = f"{title} with 95 % intervals. " + " ".join(
        " ".join(c.text for c in row).strip() + "." for row in table.rows
    )
    return Chart(title, _spec(alt.layer(*layers), 40 + 36 * len(rows)), label, table, note)


def trade_off(arms: Sequence[Mapping[str, Any]], start: Mapping[str, Any] | None, colours: Colours) -> Chart:
    """Accuracy against forgetting; the size of a point is its cost in FLOPs.

    Args:
        arms: {arm, accuracy, accuracy_low, accuracy_high, forgetting, forgetting_low, forgetting_high, flops, seconds}.
        start: the same of the start, without cost.
    """
    values = [{k: v if isinstance(v, str) else short(v) for k, v in row.items()} for row in arms]
    order = [row["arm"] for row in arms]
    colour = alt.Color("arm:N", legend=None, scale=alt.Scale(domain=order, range=[colours[arm] for arm in order]))
    x = alt.X("forgetting:Q", title="forgetting (further left is better)",
              scale=alt.Scale(zero=False, padding=24), axis=alt.Axis(tickCount=6))  # fmt: skip
    y = alt.Y("accuracy:Q", title="accuracy", scale=alt.Scale(zero=False, padding=18), axis=alt.Axis(tickCount=5))
    size = alt.Size(
        "flops:Q", legend=None, scale=alt.Scale(domain=[0, max(row["flops"] for row in arms)], range=[20, 220])
    )
    base = alt.Chart(alt.Data(values=values)).encode(color=colour)
    layers: list[Any] = [
        base.mark_rule(opacity=0.45, clip=True).encode(x=x, y="accuracy_low:Q", y2="accuracy_high:Q"),
        base.mark_rule(opacity=0.45, clip=True).encode(y=y, x="forgetting_low:Q", x2="forgetting_high:Q"),
        base.mark_point(filled=True, opacity=0.9).encode(x=x, y=y, size=size, tooltip=[
            "arm:N", alt.Tooltip("accuracy:Q", format=".3f"), alt.Tooltip("forgetting:Q", format="+.3f"),
            alt.Tooltip("flops:Q", format=".3~s")]),
    ]  # fmt: skip
    if start:
        point = [{k: short(start[k]) for k in ("accuracy", "forgetting")}]
        layers.append(alt.Chart(alt.Data(values=point)).mark_point(shape="cross", size=90, color="currentColor", strokeWidth=0,
                                                                  filled=True, opacity=0.7).encode(x=x, y=y))  # fmt: skip
    table = Table(["arm", "accuracy", "forgetting", "FLOPs", "training"])
    for row in arms:
        table.rows.append([Cell(row["arm"]), Cell(number("accuracy", row["accuracy"])),
                           Cell(number("forgetting", row["forgetting"])), Cell(flops(row["flops"])),
                           Cell(clock(row["seconds"]))])  # fmt: skip
    label = "Accuracy, forgetting and cost. " + " ".join(
        f"{r[0].text}: accuracy {r[1].text}, forgetting {r[2].text}, {r[3].text} FLOPs." for r in table.rows)  # fmt: skip
    note = "Forgetting is accuracy lost on other tasks. A point's area is its FLOPs; lines are 95 % intervals." + (
        " The cross is the start." if start else ""
    )
    legend = [(arm, colours[arm], False) for arm in order]
    return Chart("Accuracy, forgetting, cost", _spec(alt.layer(*layers), 280), label, table, note, legend)


# -- parts -------------------------------------------------------------------------------------------------------------
def _spec(chart: Any, height: int) -> dict[str, Any]:
    return cut(chart.properties(width="container", height=height, autosize=alt.AutoSizeParams(type="fit-x", contains="padding")
                                ).to_dict())  # fmt: skip


def cut(value: Any, most: int = 200) -> Any:
    """A specification without very long names, over which Vega would sit for minutes to fit them beside an axis; each stays its own."""
    if isinstance(value, str) and len(value) > most:
        return f"{value[: most - 20]}... {zlib.crc32(value.encode('utf-8', 'replace')):08x}"
    if isinstance(value, dict):
        return {k: cut(v, most) for k, v in value.items()}
    return [cut(v, most) for v in value] if isinstance(value, list) else value


def _names(order: Any) -> alt.Axis:
    """An axis of names, as wide as they need and a phone allows. They stand as the data does (`sort=None`): of a list of names to sort by,
    Vega-Lite would make an expression, in which not every name can stand."""
    return alt.Axis(labelLimit=130, ticks=False, domain=False, labels=any(order))


def heading(text: str) -> str:
    """A title that Vega-Lite writes into an expression, from the name of a metric, which a run's folder may spell as it likes: letters,
    digits and what titles need."""
    return re.sub(r"[^\w %@().,:/+-]+", " ", text)[:100] or "value"


def _colour(series: Series, colours: Colours) -> str:
    return colours[series.name]


def _domain(rows: Sequence[Mapping[str, Any]], share: bool) -> tuple[float, float]:
    """Of the values, with room; a wide interval (two seeds) may leave the picture, so that the curves fill it."""
    values = [row["y"] for row in rows]
    bottom, top = min(values), max(values)
    room = (top - bottom) or abs(top) * 0.1 or (0.05 if share else 1.0)
    low = max(min([bottom, *(r["low"] for r in rows if known(r["low"]))]), bottom - 0.6 * room) - 0.06 * room
    high = min(max([top, *(r["high"] for r in rows if known(r["high"]))]), top + 0.6 * room) + 0.06 * room
    low = max(0.0, low) if bottom >= 0 else low
    return (low, min(1.0, high)) if share else (low, high)


def _ticks(low: float, high: float) -> Any:
    """Vega's own format, but 2e-8 and not 0.00000002, and 20k and not 20,000."""
    largest = max(abs(low), abs(high))
    return "~e" if largest < 1e-3 else "~s" if largest >= 1e4 else alt.Undefined


def _told(series: Series, metric: str) -> str:
    first, last = series.points[0], series.points[-1]
    highest = max(series.points, key=lambda p: p.value)
    lead = f"{series.title}: " if series.title else ""
    return (f"{lead}from {number(metric, first.value)} at {amount(first.x)} to {number(metric, last.value)} at "
            f"{amount(last.x)}, highest {number(metric, highest.value)} at {amount(highest.x)}.")  # fmt: skip


def _table(series: Sequence[Series], x: str, metric: str) -> Table:
    """The curves' numbers at about `ROWS` places, each from the first point at or after it."""
    places = sorted({p.x for s in series for p in s.points})
    kept = [places[round(i * (len(places) - 1) / (ROWS - 1))] for i in range(ROWS)] if len(places) > ROWS else places
    made = Table([x, *(s.title or "value" for s in series)])
    for place in kept:
        row = [Cell(amount(place))]
        for s in series:
            point = next((p for p in s.points if p.x == place), None)
            reach = f"{number(metric, point.low)} to {number(metric, point.high)}" if point and known(point.low) else ""
            row.append(Cell(number(metric, point.value), reach) if point else Cell(NONE))
        made.rows.append(row)
    return made
