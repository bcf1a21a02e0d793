"""Reward curves of two sides compared: blocks, pairing by seed, what may be called the same; and that a run is not repeated."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # the benchmarks are no part of the package

from benchmarks import curves

RISING = [[0.2, 0.4, 0.5, 0.7, 0.9], [0.1, 0.3, 0.4, 0.8, 0.8], [0.3, 0.3, 0.6, 0.6, 1.0]]


def test_a_curve_is_the_same_as_itself_and_another_one_is_not() -> None:
    found = curves.compare({"whet": RISING, "trl": RISING}, 2)
    assert [b["steps"] for b in found["blocks"]] == [[0, 2], [2, 4], [4, 5]]
    assert found["blocks"][0]["whet"] == {"mean": pytest.approx(0.8 / 3), "by_seed": pytest.approx([0.3, 0.2, 0.3])}
    assert all(b["difference"]["value"] == 0.0 for b in found["blocks"]) and found["same"] is True
    late = np.array(RISING) - [[0.0, 0.0, 0.0, 0.0, x] for x in (0.3, 0.31, 0.32)]
    other = curves.compare({"whet": RISING, "trl": late.tolist()}, 2)
    last = other["blocks"][-1]
    assert last["difference"]["value"] == pytest.approx(0.31) and last["p_holm"] == pytest.approx(3 * last["p"])
    assert other["same"] is False and [b["p"] for b in other["blocks"][:2]] == [1.0, 1.0]


def test_seeds_are_paired_since_they_ask_the_same_problems() -> None:
    """The seeds lie far apart and each side's follow one another: the interval is that of their differences."""
    whet = [[0.1], [0.5], [0.9]]
    trl = [[0.12], [0.49], [0.89]]
    (block,) = curves.compare({"whet": whet, "trl": trl}, 10)["blocks"]
    assert block["difference"]["low"] > -0.05 and block["difference"]["high"] < 0.05


def test_one_seed_says_nothing_and_unequal_curves_are_refused() -> None:
    assert curves.compare({"whet": RISING[:1], "trl": RISING[:1]}, 2)["same"] is None
    with pytest.raises(ValueError, match="cannot be compared"):
        curves.compare({"whet": RISING, "trl": RISING[:2]}, 2)


def test_a_run_is_not_repeated_and_another_one_s_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(curves, "whet", lambda seed, **shape: calls.append(seed) or [0.25] * shape["steps"])
    file, shape = tmp_path / "whet-4.json", {"steps": 2, "batch": 3, "group": 4}
    for _ in range(2):
        assert curves.once(file, "whet", 4, shape) == [0.25, 0.25]
    assert calls == [4] and json.loads(file.read_text())["group"] == 4
    with pytest.raises(SystemExit, match="another run"):
        curves.once(file, "whet", 4, {**shape, "steps": 3})
