"""The run folder: config, metrics, samples, checkpoints, model, summary.

DIR/run.yaml        what was asked, with versions and hashes; `whet run DIR/run.yaml` runs it again
DIR/metrics.jsonl   one line a step
DIR/samples.jsonl   answers before and after, and some of each evaluation
DIR/checkpoints/    the newest whole ones
DIR/model/          a plain Hugging Face or PEFT folder
DIR/summary.json    before / after on test, other tasks, compute
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from whet.errors import WhetError


class RunFolder:
    """Files of one run. `create` refuses a folder that already holds one; `open` goes on with it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self.samples = path / "samples.jsonl"
        self.checkpoints = path / "checkpoints"
        self.model = path / "model"
        self.config = path / "run.yaml"
        self.summary = path / "summary.json"

    @staticmethod
    def check_free(path: str | Path) -> None:
        """Refuse a place that already holds something. Writes nothing."""
        path = Path(path)
        if path.exists() and not path.is_dir():
            raise WhetError(f"output '{path}' is a file; name a folder")
        if (path / "run.yaml").exists():
            raise WhetError(f"output '{path}' already holds a run: name another --out, or go on with it by "
                            f"--resume {path}")  # fmt: skip
        if path.exists() and any(
            not p.name.startswith(".run.yaml.") for p in path.iterdir()
        ):  # of a run killed as it began
            raise WhetError(f"output '{path}' already holds other files: name another --out")

    @classmethod
    def create(cls, path: str | Path) -> RunFolder:
        path = Path(path)
        cls.check_free(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise WhetError(f"output '{path}' cannot be made: {problem.strerror}") from None
        return cls(path)

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        folder = cls(Path(path))
        if not folder.config.exists():
            raise WhetError(f"'{path}' is not a run folder: it has no run.yaml")
        return folder

    def put_model(self, save: Callable[[Path], object]) -> None:
        """Save a model beside its place and put it there when it is whole."""
        draft = self.path / ".model"
        shutil.rmtree(draft, ignore_errors=True)
        save(draft)
        shutil.rmtree(self.model, ignore_errors=True)
        draft.rename(self.model)

    # -- metrics and samples ----------------------------------------------------------------------------------------
    def append_metrics(self, row: Mapping[str, Any]) -> None:
        _append(self.metrics, [row])

    def append_samples(self, rows: Iterable[Mapping[str, Any]]) -> None:
        _append(self.samples, rows)

    def position(self) -> dict[str, int]:
        """How long the growing files are now, for a checkpoint that is about to say so: they are on the disk before it is."""
        for file in (self.metrics, self.samples):
            if file.exists():
                with file.open("rb") as opened:
                    os.fsync(opened.fileno())
        return {f.name: f.stat().st_size if f.exists() else 0 for f in (self.metrics, self.samples)}

    def rewind(self, position: Mapping[str, int]) -> None:
        """Cut the growing files back to what they were at a checkpoint: later steps will be written again. Only those are cut,
        whatever a checkpoint that was given on says."""
        for name, size in position.items():
            if name not in (self.metrics.name, self.samples.name):
                raise WhetError(f"a checkpoint in '{self.checkpoints}' tells to cut '{name}', which is no file that grows: it was not "
                                "written by Whet; remove the checkpoint")  # fmt: skip
            file = self.path / name
            if file.exists() and file.stat().st_size > size:
                os.truncate(file, size)

    def read_metrics(self) -> list[dict[str, Any]]:
        if not self.metrics.exists():
            return []
        rows = []
        for number, line in enumerate(self.metrics.read_bytes().splitlines(), 1):
            try:
                rows += [json.loads(line)] if line else []
            except (ValueError, RecursionError) as problem:
                raise WhetError(f"{self.metrics}:{number}: no row of metrics ({problem}); drop the line") from None
        return rows


def plain(value: Any) -> Any:
    """JSON-safe: NaN and infinities become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value


def _append(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with file.open("a", encoding="utf-8") as out:
        for row in rows:
            out.write(json.dumps(plain(row), ensure_ascii=False) + "\n")
