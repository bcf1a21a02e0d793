"""Reads what a report is made of: run folders and comparisons."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from whet.errors import WhetError
from whet.runs import RunFolder

# settings that change speed, memory or where a run is, but not what it is: runs that differ in them are of one group
IRRELEVANT = {"seed", "device", "threads", "token_budget", "activation_checkpointing", "shard", "save_every", "track",
              "allow_pickle", "trust_remote_code"}  # fmt: skip

MEASURING = {
    "eval_every",
    "evaluations",
    "validation_n",
    "test_n",
    "k",
    "others",
    "others_n",
    "others_look_n",
    "probes",
}  # named only if need be


@dataclass(frozen=True)
class RunData:
    """A run folder's contents.

    Attributes:
        asked: the settings in run.yaml; `record` is what the run found (versions, hashes).
        text: run.yaml as it stands.
        summary: None for a run that has not ended.
        before: the evaluation before training; empty where there was none.
        steps, evaluations: lines of metrics.jsonl.
        answers: lines of samples.jsonl, by `before` and `after`.
        matrices: the answers' verdicts, by `before` and `after`.
    """

    folder: Path
    asked: Mapping[str, Any]
    record: Mapping[str, Any]
    text: str
    summary: Mapping[str, Any] | None
    before: Mapping[str, Any]
    steps: Sequence[Mapping[str, Any]]
    evaluations: Sequence[Mapping[str, Any]]
    answers: Mapping[str, Sequence[Mapping[str, Any]]]
    matrices: Mapping[str, Mapping[str, Any]]

    @property
    def after(self) -> Mapping[str, Any]:
        """The evaluation at the end; empty for a run that has not ended."""
        return self.summary["after"] if self.summary else {}

    @property
    def seed(self) -> int:
        return int(self.asked.get("seed", 0))

    @property
    def warnings(self) -> dict[str, int]:
        """What the guards told while it trained, and after which step."""
        return {text: int(row["step"]) for row in self.steps for text in row.get("warnings", ())}

    def by_problem(self, metric: str, when: str) -> np.ndarray | None:
        """(P,) accuracy or pass@k on each test problem, NaN where nothing could be judged; None for other metrics."""
        matrix = self.matrices.get(when, {})
        if metric == "accuracy" and matrix.get("greedy"):
            return _right(matrix["greedy"]["value"])[:, 0]
        table = matrix.get("sampled") and _right(matrix["sampled"]["value"])
        if table is None or metric != f"pass@{table.shape[1]}":
            return None
        found = np.full(len(table), np.nan)
        some = ~np.isnan(table).all(1)
        found[some] = np.nanmax(table[some], 1)
        return found

    def problems(self, when: str) -> list[str]:
        """The ids of the test problems, in the matrix's order."""
        return self.matrices.get(when, {}).get("greedy", {}).get("problem", [])


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seeds alone; a report draws them as one curve with an interval."""

    label: str
    runs: Sequence[RunData]

    @property
    def finished(self) -> list[RunData]:
        return [run for run in self.runs if run.summary]


@dataclass(frozen=True)
class ComparisonData:
    """A comparison's results.json and the run folders of its arms, in its order of arms."""

    folder: Path
    results: Mapping[str, Any]
    groups: Sequence[Group] = field(default_factory=list)

    @cached_property
    def metrics(self) -> list[str]:
        return list(self.results["arms"][0]["metrics"])


def read(folder: str | Path) -> RunData | ComparisonData:
    """A run folder or a comparison's. Raises WhetError for another, or for one that is damaged."""
    path = Path(folder)
    try:
        if (path / "results.json").exists():
            return read_comparison(path)
        if (path / "run.yaml").exists():
            return read_run(path)
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, yaml.YAMLError) as problem:
        what = f"{type(problem).__name__}: {' '.join(str(problem).split())}"
        raise WhetError(f"'{folder}' cannot be read, it seems damaged ({what})") from None
    raise WhetError(f"'{folder}' is neither a run's folder (run.yaml) nor a finished comparison's (results.json)")


def read_run(path: Path) -> RunData:
    folder = RunFolder(path)
    text = folder.config.read_text()
    asked = dict(yaml.safe_load(text))
    record = asked.pop("record", {})
    rows = folder.read_metrics()
    answers: dict[str, list[Mapping[str, Any]]] = {"before": [], "after": []}
    if folder.samples.exists():
        with folder.samples.open(encoding="utf-8") as lines:
            for row in map(json.loads, filter(str.strip, lines)):
                answers.get(row["when"], []).append(row)
    matrices = {when: _json(path / f"matrix-{when}.json") for when in ("before", "after")}
    return RunData(
        folder=path, asked=asked, record=record, text=text, summary=_json(folder.summary) or None,
        before=_json(path / "before.json").get("test", {}),
        steps=[_with_truncated(row) for row in rows if "share" in row],
        evaluations=[row for row in rows if "validation/accuracy" in row],
        answers=answers, matrices={when: found for when, found in matrices.items() if found},
    )  # fmt: skip


def read_comparison(path: Path) -> ComparisonData:
    results = _json(path / "results.json")
    cells = [_json(file) for file in sorted((path / "cells").glob("*.json"))]
    groups = []
    for arm in results["arms"]:
        own = sorted((c for c in cells if c["arm"] == arm["arm"] and c["seed"] in results["asked"]["seeds"]),
                     key=lambda c: c["seed"])  # fmt: skip
        folders = [next((path / "runs").glob(f"*-{c['seed']}-{_word(c['key'])}"), None) for c in own]
        groups.append(Group(arm["arm"], [read_run(f) for f in folders if f and (f / "run.yaml").exists()]))
    return ComparisonData(path, results, groups)


def _word(key: str) -> str:
    """A key, of which a pattern of file names may be made."""
    if not key.isalnum():
        raise ValueError(f"a cell's key is {key!r}")
    return key


def grouped(runs: Sequence[RunData]) -> list[Group]:
    """Runs by what they are, seeds together, under labels that say how the groups differ."""
    found: dict[str, list[RunData]] = {}
    for run in runs:
        found.setdefault(json.dumps(_flat(run), sort_keys=True, default=str), []).append(run)
    flats = [_flat(group[0]) for group in found.values()]
    keys = dict.fromkeys(key for flat in flats for key in flat if key != "recipe")
    differing = [key for key in keys if len({str(flat.get(key)) for flat in flats}) > 1]
    labels = [_label(flat, [key for key in differing if key not in MEASURING]) for flat in flats]
    if len(set(labels)) < len(labels):
        labels = [_label(flat, differing) for flat in flats]
    ordered = (sorted(group, key=lambda run: run.seed) for group in found.values())
    return [Group(label, group) for label, group in zip(labels, ordered, strict=True)]


def _label(flat: Mapping[str, Any], keys: Sequence[str]) -> str:
    how = ", ".join(f"{key}={flat[key]}" for key in keys if key in flat)
    return flat["recipe"] + (f" ({how})" if how else "")


def _flat(run: RunData) -> dict[str, Any]:
    """What a run is: its settings, its recipe's own arguments and its model's hash."""
    settings = {k: v for k, v in run.asked.items() if k not in IRRELEVANT and k != "arguments"}
    return {**settings, **run.asked.get("arguments", {})}


def _with_truncated(row: Mapping[str, Any]) -> dict[str, Any]:
    ended = row.get("ended")
    return {**row, "truncated": None if ended is None else 1.0 - ended}


def _right(values: Sequence[Sequence[float | None]]) -> np.ndarray:
    """(P, K) 1 right, 0 wrong, NaN not judged."""
    table = np.array(values, dtype=float)
    return np.where(np.isnan(table), np.nan, table == 1.0)


def _json(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else {}
