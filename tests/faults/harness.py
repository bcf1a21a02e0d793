"""Runs in processes of their own, to be killed, starved and misled, and the comparison with runs that were left in peace.

A child is a fork, so that it is there at once; what it patches in itself, the parent does not have. `Fault` is what happens to it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from safetensors.torch import load_file

from trained import trained_folder
from whet import cli
from whet.models.policy import Policy
from whet.runs import RunFolder, folder
from whet.training import checkpoint
from whet.training.learner import Learner

Patch = Callable[[], None]
SAVE_EVERY, STEPS = 3, 10
SMALL = ["--task", "parity", "--test-n", "6", "--validation-n", "6", "--k", "2", "--others", "none", "--threads", "1",
         "--eval-every", "4", "--save-every", str(SAVE_EVERY)]  # fmt: skip
RL = ["batch=4", "group=4", f"steps={STEPS}"]
RUNS: dict[str, list[str]] = {
    "sft": ["run", "sft", "batch=4", f"steps={STEPS}", *SMALL],
    "grpo": ["run", "grpo", *RL, *SMALL],
    "relift": ["run", "relift", *RL, "threshold=2", *SMALL],
    "lift": ["run", "sft", "batch=4", f"steps={STEPS}", "--weights", "lift", *SMALL],
    "compare": ["compare", "sft", "grpo:group=4", "batch=4", "test_n=6", "validation_n=6", "k=2", "others=[]",
                "others_look_n=0", "threads=1", "evaluations=2", f"save_every={SAVE_EVERY}", "--task", "parity",
                "--budget", f"steps:{STEPS}", "--seeds", "1"],
}  # fmt: skip


def words(kind: str, out: Path, *more: str) -> list[str]:
    """The command line of a small run."""
    return [*RUNS[kind], *more, "--model", trained_folder(), "--out", str(out)]


def again(kind: str, out: Path, *more: str) -> list[str]:
    """The command line that goes on with it."""
    begun = kind != "compare" and (out / "run.yaml").exists()
    return ["run", "--resume", str(out)] if begun else words(kind, out, *more)


@dataclass
class Ended:
    """How a child ended: its exit code (minus the signal that killed it), and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def in_one_line(self) -> bool:
        """Whether it ended in a mistake of one line, and not in a traceback."""
        return self.code == 2 and "Traceback" not in self.err and self.err.count("whet: error: ") == 1


@cache
def _warm(place: Path) -> None:
    """Do a run and a comparison here, so that children need import nothing."""
    with (place / "warm-log").open("w") as log, redirect_stdout(log), redirect_stderr(log):
        for kind in ("sft", "compare"):
            few = [w.replace(f"steps={STEPS}", "steps=1").replace(f"steps:{STEPS}", "steps:1") for w in RUNS[kind]]
            with suppress(SystemExit):
                cli.main([*few, "--model", trained_folder(), "--out", str(place / f"warm-{kind}")])


class Child:
    """A `whet` command in a fork.

    Args:
        words: the command line.
        patch: called in the child, before the command.
    """

    def __init__(self, words: list[str], log: Path, patch: Patch = lambda: None) -> None:
        self.log = log
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            self._live(words, patch)

    def _live(self, words: list[str], patch: Patch) -> None:
        code = 70
        try:
            for number, name in ((1, "out"), (2, "err")):
                file = os.open(f"{self.log}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(file, number)
            sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1, closefd=False) for n in (1, 2))
            signal.signal(signal.SIGINT, signal.default_int_handler)
            torch.set_num_threads(1)
            sys.argv = ["whet", *words]
            patch()
            cli.main(words)
            code = 0
        except SystemExit as problem:
            code = problem.code if isinstance(problem.code, int) else 0 if problem.code is None else 1
        except BaseException:
            traceback.print_exc()
            code = 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it a signal, if it still lives."""
        if not os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            os.kill(self.pid, number)

    def wait(self, seconds: float = 120.0) -> Ended:
        """Until it has ended; one that does not is killed, which its code tells."""
        until = time.monotonic() + seconds
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > until:
                os.kill(self.pid, signal.SIGKILL)
            time.sleep(0.005)
        out, err = (Path(f"{self.log}.{name}") for name in ("out", "err"))
        texts = [f.read_text(errors="replace") if f.exists() else "" for f in (out, err)]
        return Ended(os.waitstatus_to_exitcode(status), *texts)


def whet(words: list[str], log: Path, patch: Patch = lambda: None, seconds: float = 120.0) -> Ended:
    return Child(words, log, patch).wait(seconds)


# -- moments of a run --------------------------------------------------------------------------------------------------
# what a process does at each: killing it at the n-th call, before or after, is killing it in that moment
MOMENTS: dict[str, tuple[tuple[Any, str], ...]] = {
    "step": ((Learner, "accumulate"), (Learner, "_measure")),
    "save": ((checkpoint, "save_file"), (checkpoint.torch, "save"), (checkpoint, "_sync"), (checkpoint, "_digest")),
    "rename": ((Path, "rename"), (Path, "replace"), (checkpoint.shutil, "rmtree")),
    "report": ((folder, "_append"), (Path, "write_text"), (RunFolder, "position")),
    "sampling": ((Policy, "sample"), (Policy, "save")),
}


def patched(moment: str, call: Callable[[int, Callable[[], Any], tuple[Any, ...]], Any]) -> None:
    """Let `call` (number of the call, the call itself, its arguments) do each call of a moment's functions."""
    number = iter(range(1, 1_000_000))
    for owner, name in MOMENTS[moment]:
        real = getattr(owner, name)

        def instead(*args: Any, _real: Any = real, **kwargs: Any) -> Any:
            return call(next(number), lambda: _real(*args, **kwargs), args)

        setattr(owner, name, instead)


def count(moment: str, file: Path) -> Patch:
    """Let a child write how many calls of a moment it makes."""

    def note(number: int, do: Callable[[], Any], args: tuple[Any, ...]) -> Any:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.write(descriptor, str(number).encode())
        os.close(descriptor)
        return do()

    return lambda: patched(moment, note)


def kill(moment: str, at: int, how: str) -> Patch:
    """Let a child be killed at the `at`-th call of a moment: `before` it, `after` it, or in the `middle` of what it writes."""

    def die(number: int, do: Callable[[], Any], args: tuple[Any, ...]) -> Any:
        if number == at and how == "middle" and args and isinstance(args[0], Path) and isinstance(args[-1], list | str):
            text = args[-1] if isinstance(args[-1], str) else json.dumps(args[-1])
            with args[0].open("a") as half:
                half.write(text[: len(text) // 2])
        if number == at and how != "after":
            os.kill(os.getpid(), signal.SIGKILL)
        found = do()
        if number == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    return lambda: patched(moment, die)


# -- what is left ------------------------------------------------------------------------------------------------------
def lost(out: Path) -> int:
    """Steps that a folder's run must take again: those of its metrics that no whole checkpoint holds. A half line is none."""
    if (out / "summary.json").exists():
        return 0
    taken, metrics = 0, out / "metrics.jsonl"
    for line in metrics.read_bytes().splitlines() if metrics.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        taken = max(taken, row["step"] if "share" in row else 0)  # a step's row, and no evaluation's
    kept = (p for pattern in ("step-*", ".retired-step-*") for p in (out / "checkpoints").glob(pattern))
    saved = max((int(p.name.rpartition("-")[2]) for p in kept if not checkpoint.fault(p)), default=0)
    return max(0, taken - saved)


def lost_of(kind: str, out: Path) -> int:
    """`lost`, of a comparison the most that one of its runs lost."""
    return max(map(lost, (out / "runs").glob("*")), default=0) if kind == "compare" else lost(out)


def difference(a: Path, b: Path) -> str:
    """In what two finished folders differ, clocks aside; "" where in nothing."""
    ours, theirs = ({str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()} for out in (a, b))
    ours, theirs = ({name for name in names if not name.endswith(checkpoint.MANIFEST)} for names in (ours, theirs))
    if ours != theirs:
        return f"files {sorted(ours ^ theirs)}"
    for name in sorted(ours):
        if name.endswith(".safetensors"):
            one, other = load_file(a / name), load_file(b / name)
            if one.keys() != other.keys() or any(not torch.equal(one[n], other[n]) for n in one):
                return f"weights in {name}"
        elif name.endswith((".json", ".jsonl")) and [*rows_of(a / name)] != [*rows_of(b / name)]:
            return f"numbers in {name}"
    return ""


def rows_of(file: Path) -> Iterator[Any]:
    text = file.read_text()
    for part in text.splitlines() if file.suffix == ".jsonl" else [text]:
        yield _timeless(json.loads(part))


def _timeless(value: Any) -> Any:
    """A JSON value without what a clock or a folder's name has put into it."""
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if not k.startswith(("seconds", "minutes", "started"))}
    return [_timeless(v) for v in value] if isinstance(value, list) else value


@contextmanager
def quiet_home(place: Path) -> Iterator[None]:
    """The index of runs, and replies of teachers, below a folder of their own."""
    before = {k: os.environ.get(k) for k in ("WHET_HOME", "TOKENIZERS_PARALLELISM")}
    os.environ |= {"WHET_HOME": str(place / "home"), "TOKENIZERS_PARALLELISM": "false"}
    torch.set_num_threads(1)
    try:
        _warm(place)
        yield
    finally:
        for k, v in before.items():
            os.environ.pop(k, None)
            if v is not None:
                os.environ[k] = v
