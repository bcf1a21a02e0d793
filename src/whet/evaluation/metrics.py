"""Metrics of a matrix, each with its n and a 95 % interval where it is a share."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from whet.evaluation.matrix import Cell, Matrix
from whet.runs import plain

Z = 1.959964  # two-sided 95 %


def wilson(successes: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion; it stays inside [0, 1] and does not collapse at 0 or 1."""
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    centre = (p + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n)) / (1 + Z * Z / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_interval(values: Sequence[float]) -> dict[str, float | int]:
    """Mean of shares in [0, 1] with a normal 95 % interval; the problems are the independent unit."""
    n = len(values)
    mean = sum(values) / n if n else math.nan
    if n < 2:
        return {"value": mean, "low": 0.0, "high": 1.0, "n": n}
    half = Z * math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n)
    return {"value": mean, "low": max(0.0, mean - half), "high": min(1.0, mean + half), "n": n}


def correct(cell: Cell) -> bool:
    return cell.value == 1.0


def known(row: Sequence[Cell]) -> list[Cell]:
    """The answers that could be judged."""
    return [c for c in row if not math.isnan(c.value)]


def pass_at_k(n: int, c: int, k: int) -> float:
    """The unbiased estimate 1 - C(n - c, k) / C(n, k) from n answers of which c are right (2107.03374)."""
    if n - c < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))


def majority(row: Sequence[Cell]) -> float:
    """Whether the most frequent label is right; a tie counts the share of tied labels that are."""
    votes = Counter(c.label for c in row if c.label is not None)
    if not votes:
        return 0.0
    top = max(votes.values())
    tied = [label for label, count in votes.items() if count == top]
    right = {c.label for c in row if correct(c)}
    return sum(label in right for label in tied) / len(tied)


def share(cells: Sequence[Cell], of: str) -> float:
    """Share of answers that are `ended`, or of a status."""
    if not cells:
        return math.nan
    return sum(c.ended if of == "ended" else c.status == of for c in cells) / len(cells)


def accuracy(matrix: Matrix) -> dict[str, float | int]:
    """Accuracy of the first answers, with n and Wilson's interval; answers that could not be judged are left out."""
    first = [row[0] for row in matrix.cells if known(row[:1])]
    low, high = wilson(sum(map(correct, first)), len(first))
    value = sum(map(correct, first)) / len(first) if first else math.nan
    return {"value": value, "low": low, "high": high, "n": len(first)}


def parts(matrix: Matrix) -> dict[str, float]:
    """The mean of each named part of the verdicts on the first answers, over those that have it: `parts/NAME`."""
    found: dict[str, list[float]] = {}
    for row in matrix.cells:
        for name, value in row[0].parts.items():
            found.setdefault(f"parts/{name}", []).append(value)
    return {name: sum(values) / len(values) for name, values in found.items()}


def summary(greedy: Matrix, sampled: Matrix | None, samples: int = 4) -> dict[str, object]:
    """The contract of `summary.json`: greedy accuracy, sampled accuracy over the first `samples` answers, pass@k, and the
    mean of each part of the verdict."""
    cells = [c for row in greedy.cells for c in row]
    found: dict[str, object] = {
        "accuracy": accuracy(greedy),
        "tokens_per_answer": sum(c.tokens for c in cells) / max(1, len(cells)),
        "ended": share(cells, "ended"),
        "unparseable": share(cells, "unparseable"),
    }
    found |= parts(greedy)
    failed = sum(c.status in ("error", "timeout") for c in cells)
    if failed:
        found["failed"] = failed / len(cells)
    if sampled is not None and sampled.n:
        k = sampled.k
        rows = [judged for row in sampled.cells if (judged := known(row))]
        found["sampled_accuracy"] = mean_interval([sum(map(correct, r[:samples])) / len(r[:samples]) for r in rows])
        found[f"pass@{k}"] = mean_interval([pass_at_k(len(r), sum(map(correct, r)), min(k, len(r))) for r in rows])
        found[f"majority@{k}"] = mean_interval([majority(r) for r in rows])
    return plain(found)  # type: ignore[return-value]
