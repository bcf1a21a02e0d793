"""Tracking: a run's numbers go to TensorBoard, Weights & Biases, Trackio or MLflow too, through those libraries.

    whet run grpo --track tensorboard --out runs/first

It is off by default, and `metrics.jsonl` has every number with or without it. A tracker that fails while a run trains
is let go of with a warning: a run is worth more than its tracking. What the tracker calls the run is kept in
`DIR/track.json`, so that a resumed run goes on there.
"""

from __future__ import annotations

import importlib
import json
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import yaml

from whet.errors import WhetError, unknown

if TYPE_CHECKING:
    from whet.config import RunConfig
    from whet.launch import Watcher

log = logging.getLogger("whet")
PROJECT = "whet"
MODULES = {  # what each needs: the module to import
    "tensorboard": "torch.utils.tensorboard",
    "wandb": "wandb",
    "trackio": "trackio",
    "mlflow": "mlflow",
}


class Tracker(Protocol):
    """A run that has been opened in a tracking library.

    Attributes:
        id: what opens the same run again; empty where nothing has to be kept.
    """

    id: str

    def log(self, numbers: Mapping[str, float], step: int) -> None: ...
    def end(self, numbers: Mapping[str, float], ok: bool) -> None: ...


def tracked(watcher: Watcher | None, kind: str, config: RunConfig, out: str | Path | None = None) -> Tracked:
    """A watcher that also sends what it sees to a tracking library.

    Args:
        watcher: told everything first; None where nobody else watches.
        kind: tensorboard, wandb, trackio or mlflow.
        config: goes along, as the run's parameters.
        out: the run's folder.

    Raises:
        WhetError: the library is unknown or not installed. Nothing is opened before the run starts.
    """
    if kind not in MODULES:
        raise unknown("tracker", kind, MODULES)
    try:
        library = importlib.import_module(MODULES[kind])
    except ImportError as problem:
        raise WhetError(f"--track {kind} needs a library that is not installed ({problem}): "
                        f"pip install 'whet[{kind}]'") from None  # fmt: skip
    return Tracked(watcher, kind, library, config, None if out is None else Path(out))


class Tracked:
    """A `Watcher` around another one. As a context it closes the tracker's run, which has failed if an exception passed."""

    def __init__(self, watcher: Watcher | None, kind: str, library: Any, config: RunConfig, out: Path | None) -> None:
        self.watcher = watcher
        self.kind = kind
        self.library = library
        self.config = config
        self.out = out
        self.tracker: Tracker | None = None
        self._summary: Mapping[str, Any] = {}

    def __enter__(self) -> Tracked:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._send(lambda tracker: tracker.end(numbers(self._summary), kind is None))
        self.tracker = None

    # -- what the run reports ------------------------------------------------------------------------------------------
    def start(self, config: RunConfig, policy: Any, task: Any, lines: Sequence[str]) -> None:
        if self.kind == "tensorboard" and self.out is None:
            raise WhetError("--track tensorboard writes into the run's folder: name one with --out")
        if self.watcher:
            self.watcher.start(config, policy, task, lines)
        self.tracker = self._open()

    def phase(self, text: str) -> None:
        if self.watcher:
            self.watcher.phase(text)

    def stage(self, index: int, stage: Any, lines: Sequence[str]) -> None:
        if self.watcher:
            self.watcher.stage(index, stage, lines)

    def step(self, row: Mapping[str, Any]) -> None:
        if self.watcher:
            self.watcher.step(row)
        self._log(row)

    def evaluated(self, row: Mapping[str, Any]) -> None:
        if self.watcher:
            self.watcher.evaluated(row)
        self._log(row)

    def summary(self, found: Mapping[str, Any]) -> None:
        """The run's summary, to be sent when the tracker's run is closed."""
        self._summary = {k: found[k] for k in ("before", "after", "others", "compute") if k in found}

    # -- the tracker ---------------------------------------------------------------------------------------------------
    def _open(self) -> Tracker:
        """The run in the tracker: a new one, or the one that this folder had before it was resumed."""
        config = self.config.model_dump(exclude_none=True)
        name = self.out.name if self.out else f"{self.config.recipe}-{self.config.seed}"
        kept = self.out / "track.json" if self.out else None
        before = json.loads(kept.read_text()) if kept and kept.exists() else {}
        try:
            tracker = OPEN[self.kind](self.library, name, config, self.out, before.get(self.kind, ""))
        except Exception as problem:  # each library has its own: not logged in, no server, no network
            raise WhetError(f"--track {self.kind} could not begin: {' '.join(str(problem).split())}") from problem
        if kept and tracker.id:
            kept.write_text(json.dumps({**before, self.kind: tracker.id}))
        return tracker

    def _log(self, row: Mapping[str, Any]) -> None:
        self._send(
            lambda tracker: tracker.log(numbers({k: v for k, v in row.items() if k != "step"}), int(row["step"]))
        )

    def _send(self, message: Callable[[Tracker], None]) -> None:
        if self.tracker is None:
            return
        try:
            message(self.tracker)
        except Exception as problem:  # whatever the library raises: the run must not end for it
            self.tracker = None
            log.warning("--track %s stopped working (%s: %s); the run goes on, and metrics.jsonl has everything", self.kind,
                        type(problem).__name__, " ".join(str(problem).split()))  # fmt: skip


def numbers(found: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The finite numbers of a nested mapping, by path: {"after/accuracy/value": 0.7}."""
    flat: dict[str, float] = {}
    for key, value in found.items():
        if isinstance(value, Mapping):
            flat |= numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            flat[prefix + key] = float(value)
    return flat


# -- one class a library -----------------------------------------------------------------------------------------------
class TensorBoard:
    """Scalars by step in `DIR/tensorboard`; those of steps that a resumed run does again are hidden."""

    id = ""

    def __init__(self, library: Any, name: str, config: dict[str, Any], out: Path | None, before: str) -> None:
        assert out is not None, "`Tracked.start` refuses a run without a folder"
        self.open = lambda step: library.SummaryWriter(str(out / "tensorboard"), purge_step=step)
        self.config = yaml.safe_dump(config, sort_keys=False)
        self.writer: Any = None
        self.last = 0

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        if self.writer is None:
            self.writer = self.open(step)
            self.writer.add_text("config", f"```yaml\n{self.config}```", step)
        self.last = step
        for key, value in numbers.items():
            self.writer.add_scalar(key, value, step)
        self.writer.flush()

    def end(self, numbers: Mapping[str, float], ok: bool) -> None:
        if numbers:
            self.log({f"summary/{k}": v for k, v in numbers.items()}, self.last)
        if self.writer is not None:
            self.writer.close()


class Wandb:
    """A run in the project `whet` of Weights & Biases."""

    def __init__(self, library: Any, name: str, config: dict[str, Any], out: Path | None, before: str) -> None:
        again = {"id": before, "resume": "allow"} if before else {}
        self.run = library.init(project=PROJECT, name=name, config=config, **again)
        self.id = str(self.run.id)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self.run.log(dict(numbers), step=step)

    def end(self, numbers: Mapping[str, float], ok: bool) -> None:
        self.run.summary.update(dict(numbers))
        self.run.finish(exit_code=0 if ok else 1)


class Trackio:
    """A run in the project `whet` of Trackio, which knows runs by their names."""

    def __init__(self, library: Any, name: str, config: dict[str, Any], out: Path | None, before: str) -> None:
        self.run = library.init(
            project=PROJECT, name=before or name, config=config, resume="allow" if before else "never"
        )
        self.id = str(self.run.name)
        self.last = 0

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self.last = step
        self.run.log(dict(numbers), step=step)

    def end(self, numbers: Mapping[str, float], ok: bool) -> None:
        self.run.log({f"summary/{k}": v for k, v in numbers.items()}, step=self.last)
        self.run.finish()


class MLflow:
    """A run in the experiment `whet`, at the tracking address that MLflow is set to."""

    def __init__(self, library: Any, name: str, config: dict[str, Any], out: Path | None, before: str) -> None:
        self.library = library
        library.set_experiment(PROJECT)
        self.run = library.start_run(run_id=before) if before else library.start_run(run_name=name)
        self.id = str(self.run.info.run_id)
        if not before:
            library.log_params({k: v for k, v in {**config, **config["arguments"]}.items() if k != "arguments"})
        self.last = 0

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self.last = step
        named = {re.sub(r"[^\w\-. /]", "_", k): v for k, v in numbers.items()}  # it refuses other characters
        self.library.log_metrics(named, step=step)

    def end(self, numbers: Mapping[str, float], ok: bool) -> None:
        self.log({f"summary/{k}": v for k, v in numbers.items()}, self.last)
        self.library.end_run("FINISHED" if ok else "FAILED")


OPEN: Mapping[str, Callable[..., Tracker]] = {
    "tensorboard": TensorBoard, "wandb": Wandb, "trackio": Trackio, "mlflow": MLflow,
}  # fmt: skip
