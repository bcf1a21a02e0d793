"""What a run stands on gives way: the disk is full or may be read only, the clock jumps, memory runs out, a verifier's process dies.

Each case says in a line how it ended, or fails by an AssertionError that says what was not survived. A full disk is a small
tmpfs, for which one must be root; elsewhere a limit on the size of files stands in.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer
from typing import Any

import torch
from crashes import peace_of
from harness import RUNS, Ended, Patch, again, difference, patched, whet, words
from safetensors.torch import load_file

from whet.models.policy import Policy
from whet.tasks.math_answers import MathChild
from whet.training.learner import Learner

MIB = 1 << 20
DAY = 86_400.0


def mounts() -> bool:
    """Whether this process may mount."""
    return os.geteuid() == 0 and shutil.which("mount") is not None


@contextmanager
def small_disk(place: Path, size: int) -> Iterator[Path]:
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def remount(place: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", place], check=True)


def goes_on(kind: str, out: Path, place: Path, ended: Ended, *says: str) -> str:
    """It ended in one line that says so, and what is left goes on to the same end."""
    assert ended.in_one_line, f"code {ended.code}: {ended.err[-600:]}"
    assert all(s in ended.err for s in says), f"the line does not say {says}: {ended.err[-300:]}"
    ended = whet(again(kind, out), place / "log")
    assert ended.code == 0, f"code {ended.code}: {ended.err[-600:]}"
    differs = difference(peace_of(kind, place).out, out)
    assert not differs, differs
    return "one line, then the same end"


# -- disk --------------------------------------------------------------------------------------------------------------
def full_disk(place: Path, size: int, kind: str = "sft") -> str:
    """The run's folder is on a disk of so many bytes."""
    with small_disk(place / f"disk-{size}", size) as disk:
        ended = whet(words(kind, disk / "run"), place / "log")
        assert [*disk.glob("run/checkpoints/.draft*")] == [], "a draft is left on the full disk"
        remount(disk, f"size={64 * MIB}")
        return goes_on(kind, disk / "run", place, ended, "No space left on device")


def limited_files(place: Path, size: int, kind: str = "sft") -> str:
    """No file may be larger than so many bytes, as with a quota."""
    out = place / f"limited-{size}"
    patch = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))  # noqa: E731
    return goes_on(kind, out, place, whet(words(kind, out), place / "log", patch), "File too large")


def read_only_place(place: Path) -> str:
    with small_disk(place / "read-only", MIB) as disk:
        remount(disk, "ro")
        ended = whet(words("sft", disk / "run"), place / "log")
        assert ended.in_one_line and "Read-only file system" in ended.err, ended.err[-600:]
    return "one line, before training"


def turns_read_only(place: Path) -> str:
    """As a disk with errors does."""
    with small_disk(place / "turns", 64 * MIB) as disk:
        ended = whet(words("sft", disk / "run"), place / "log", at_step(5, lambda: remount(disk, "ro")))
        remount(disk, "rw")
        return goes_on("sft", disk / "run", place, ended, "Read-only file system")


def at_step(at: int, do: Callable[[], object]) -> Patch:
    def instead(number: int, call: Callable[[], Any], args: Any) -> Any:
        if number == 2 * at:  # a step has two moments
            do()
        return call()

    return lambda: patched("step", instead)


# -- clock and memory --------------------------------------------------------------------------------------------------
def clock(place: Path, kind: str) -> str:
    """The wall clock jumps by up to a day, back and forth, each time that it is read."""
    rng, real = random.Random(kind), time.time

    def patch() -> None:
        time.time = lambda: real() + rng.uniform(-DAY, DAY)

    ended = whet(words(kind, place / f"clock-{kind}"), place / "log", patch)
    assert ended.code == 0, ended.err[-600:]
    differs = difference(peace_of(kind, place).out, place / f"clock-{kind}")
    assert not differs, differs
    return "the same end"


FULL: dict[str, Callable[[], Exception]] = {
    "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "cpu": lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
}  # fmt: skip


def memory_in_a_step(place: Path, device: str, kind: str = "grpo", most: int = 5) -> str:
    """Memory runs out wherever more than `most` rows are run at once; the end is the same but for rounding."""
    out, real = place / f"memory-{device}", Learner._backward

    def backward(self: Learner, total: Any, losses: Any, wrong: Any, rows: Any) -> None:
        if len(rows) > most:
            raise FULL[device]()
        real(self, total, losses, wrong, rows)

    ended = whet(words(kind, out), place / "log", lambda: setattr(Learner, "_backward", backward))
    assert ended.code == 0, ended.err[-600:]
    told = [
        w for line in (out / "metrics.jsonl").read_text().splitlines() for w in json.loads(line).get("warnings", [])
    ]
    assert any("out of memory; from here on" in w for w in told), f"nothing was said: {told}"
    one, other = (load_file(folder / "model" / "model.safetensors") for folder in (out, peace_of(kind, place).out))
    far = max(float((one[n] - other[n]).abs().max()) for n in one)
    assert far < 1e-4, f"weights differ by {far}"
    return f"halved, said, the same end but for {far:.0e}"


def memory_in_sampling(place: Path, device: str) -> str:
    """Memory runs out while answers are sampled, in the middle of training."""
    out, real = place / f"sampling-{device}", Policy.sample

    def patch() -> None:
        calls = iter(range(1, 10_000))

        def sample(self: Policy, *args: Any, **kwargs: Any) -> Any:
            if next(calls) == 8:
                raise FULL[device]()
            return real(self, *args, **kwargs)

        Policy.sample = sample

    return goes_on("grpo", out, place, whet(words("grpo", out), place / "log", patch), "out of memory; make it smaller")


# -- a verifier's process ----------------------------------------------------------------------------------------------
def verifier(place: Path, before: int, within: int) -> str:
    """`math` judges in a process of its own, which is killed before it is asked for one verdict, and while it is for another."""
    data = place / "parity.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"parity {n}", "answer": str(n % 2), "rationale": str(n % 10)}) + "\n"
                            for n in range(1000, 1200)))  # fmt: skip
    asked = [w for w in RUNS["grpo"] if w not in ("--k", "2")]
    asked[asked.index("parity")] = str(data)
    asked += ["--k", "0", "--verifier", "math"]
    real = MathChild._ask

    def patch() -> None:
        calls = iter(range(1, 100_000))

        def ask(self: MathChild, gold: str, answer: str) -> Any:
            call, pid = next(calls), self._process.pid if self._process else 0
            if call == before and pid:
                os.kill(pid, signal.SIGKILL)
            if call == within and pid:
                os.kill(pid, signal.SIGSTOP)
                Timer(0.2, os.kill, (pid, signal.SIGKILL)).start()
            return real(self, gold, answer)

        MathChild._ask = ask

    from trained import trained_folder

    for out, how in ((place / "verified", lambda: None), (place / "killed", patch)):
        ended = whet([*asked, "--model", trained_folder(), "--out", str(out)], place / "log", how)
        assert ended.code == 0, ended.err[-600:]
    differs = difference(place / "verified", place / "killed")
    assert not differs, differs
    return "asked again, the same end"


CASES: dict[str, tuple[Callable[..., str], tuple[Any, ...]]] = {
    "disk full in the first checkpoint": (full_disk, (256 << 10,)),
    "disk full in a later checkpoint": (full_disk, (900 << 10,)),
    "disk full as the run begins": (full_disk, (4 << 10,)),
    "files limited to 100 KiB": (limited_files, (100 << 10,)),
    "output on a disk that is read only": (read_only_place, ()),
    "a disk that turns read only in step 5": (turns_read_only, ()),
    "clock jumps by a day, sft": (clock, ("sft",)),
    "clock jumps by a day, grpo": (clock, ("grpo",)),
    "out of memory in a step, GPU": (memory_in_a_step, ("cuda",)),
    "out of memory in a step, CPU": (memory_in_a_step, ("cpu",)),
    "out of memory in sampling": (memory_in_sampling, ("cuda",)),
    "a verifier's processes killed": (verifier, (20, 120)),
}
NEED_MOUNT = {full_disk, read_only_place, turns_read_only}


def surroundings(place: Path, done: int = 0) -> Iterator[dict[str, Any]]:
    for fault in [*CASES][done:]:
        yield attempt(fault, place)


def attempt(fault: str, place: Path) -> dict[str, Any]:
    case, args = CASES[fault]
    if case in NEED_MOUNT and not mounts():
        return {"fault": fault, "ended": "not tried: this process may not mount", "survived": None}
    try:
        return {"fault": fault, "ended": case(place, *args), "survived": True}
    except AssertionError as problem:
        return {"fault": fault, "ended": str(problem)[-400:], "survived": False}
