"""What a step reports: pure functions of its rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from whet.records import Row
from whet.sources.gate import groups_of, is_dead


def of_rows(seen: Sequence[Row], admitted: Sequence[Row]) -> dict[str, float]:
    """Rewards, lengths and the guards that RL users need to see, over all answers of a step."""
    seen = [row for row in seen if not row.numbers.get("greedy")]  # a baseline, not one of the answers
    names = {k for row in seen for k in row.numbers if k == "reward" or k.startswith("reward/")}
    found = {name: _mean(row.numbers.get(name, math.nan) for row in seen) for name in sorted(names)}
    for name in ("accuracy", "tokens", "ended", "unparseable", "failed"):
        found[name] = _mean(row.numbers[name] for row in seen)
    groups = groups_of(seen)
    found["answers"] = float(len(seen))
    found["admitted"] = len(admitted) / max(1, len(seen))
    found["dead_groups"] = _mean(float(is_dead(g)) for g in groups if len(g) > 1)
    found["tokens_right"] = _mean(r.numbers["tokens"] for r in seen if r.numbers["accuracy"] == 1.0)
    found["tokens_wrong"] = _mean(r.numbers["tokens"] for r in seen if r.numbers["accuracy"] < 1.0)
    given = [row for row in seen if row.numbers.get("given_tokens")]
    if given:
        found["given_tokens"] = _mean(row.numbers["given_tokens"] for row in given)
        found["given_accuracy"] = _mean(row.numbers["accuracy"] for row in given)
    sampled = [row["response"] for row in seen if "entropy" in row["response"].per_token]
    if sampled:
        total = sum(float(s.per_token["entropy"].sum()) for s in sampled)
        found["entropy"] = total / max(1.0, sum(row.numbers["tokens"] for row in seen))
    return found


def mean(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each number over the rows that have it; `skipped` and `learnt_tokens` are summed."""
    names = dict.fromkeys(k for row in rows for k in row)
    found = {k: _mean(row.get(k, math.nan) for row in rows) for k in names}
    for name in ("skipped", "learnt_tokens"):
        if name in found:
            found[name] = sum(row.get(name, 0.0) for row in rows)
    return found


def merge(ranks: Sequence[tuple[Mapping[str, float], Mapping[str, tuple[float, int]]]]) -> dict[str, float]:
    """What an optimizer step reports, of all ranks.

    Args:
        ranks: of each, its share of each term's loss, and what its terms logged as (mean, how many values); of what is
            called `*_max`, the maximum instead of the mean.
    """
    found: dict[str, float] = {}
    for losses, _ in ranks:
        for name, loss in losses.items():
            found[f"loss/{name}"] = found.get(f"loss/{name}", 0.0) + loss
    for name in dict.fromkeys(name for _, logged in ranks for name in logged):
        parts = [logged[name] for _, logged in ranks if name in logged and logged[name][1]]
        if len(parts) == 1 or name.endswith("_max"):
            found[name] = max(value for value, _ in parts)
        else:
            total = sum(n for _, n in parts)
            found[name] = sum(value * n for value, n in parts) / total if total else math.nan
    return found


def _mean(values: Iterable[float]) -> float:
    known = [v for v in values if not math.isnan(v)]
    return sum(known) / len(known) if known else math.nan
