"""How numbers are written on a page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

NONE = "–"
SIGNED = ("forgetting",)


def known(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def name(metric: str) -> str:
    """A metric's name in words."""
    return metric.replace("_", " ").replace("/", " / ")


def number(metric: str, value: Any, signed: bool = False) -> str:
    """A metric's value: shares with three decimals, lengths with one, a `plain` number with three digits."""
    if not known(value):
        return NONE
    sign = "+" if signed or metric in SIGNED else ""
    form = ".1f" if metric.startswith(("tokens", "steps")) else ".3g" if metric == "plain" else ".3f"
    return format(value, sign + form)


def interval(metric: str, found: Mapping[str, Any], signed: bool = False) -> str:
    """`0.401 to 0.512`; empty where there is none."""
    low, high = found.get("low"), found.get("high")
    if not (known(low) and known(high)):
        return ""
    return f"{number(metric, low, signed)} to {number(metric, high, signed)}"


def p_value(value: Any) -> str:
    return NONE if not known(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def amount(value: Any) -> str:
    """A large number, shortened: 812, 2.52 M, 3.1e12."""
    if not known(value):
        return NONE
    if abs(value) >= 1e12:
        return flops(value)
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.3g}"


def flops(value: Any) -> str:
    """A count of floating-point operations, always as a power of ten, so that a column of them reads as one: 9e11, 1.4e12."""
    return f"{value:.2g}".replace("e+0", "e").replace("e+", "e") if known(value) and value >= 1e6 else amount(value)


def clock(seconds: Any) -> str:
    """0:07, 12:30, 1:02:30."""
    if not known(seconds):
        return NONE
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def short(value: Any) -> Any:
    """Four significant digits: a page holds many numbers."""
    return float(f"{value:.4g}") if known(value) else None
