"""The parent's side: start a child for one job, read what it writes, end it in time, clean up behind it."""

# ruff: noqa: PTH101, PTH104, PTH106, PTH108, PTH118 (a hostile tree is walked entry by entry)
from __future__ import annotations

import atexit
import contextlib
import json
import os
import selectors
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from whet.sandbox.backends import Backend, bubblewrap, interpreter, library, probe, reachable, shown

ROOT = str(Path(__file__).resolve().parents[2])
START = f"import sys; sys.path.insert(0, {ROOT!r}); from whet.sandbox.child import main; main()"
ENVIRONMENT = {"PYTHONHASHSEED": "0", "LANG": "C.UTF-8"}  # with a seed of its own each run would order sets anew
FAILED, LATE, FULL, BY_SIGNAL = 251, 124, 123, 128
GRACE = 10.0  # seconds beyond the limit in which the supervisor should have ended it all
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """What one program may take.

    Attributes:
        cpu: seconds of processor time, of one process.
        seconds: of wall time, for all of it.
        memory: bytes of address space of one process.
        processes: processes and threads at once. (Without a user or a namespace of its own: those of the whole user.)
        file: bytes of one file.
        disk: bytes of all files; without a file system of its own, as the supervisor sees it, a few times a second.
        files: open files.
        output: bytes that are read of its results.
    """

    cpu: int = 5
    seconds: float = 15.0
    memory: int = 512 * MIB
    processes: int = 8
    file: int = 16 * MIB
    disk: int = 64 * MIB
    files: int = 64
    output: int = MIB


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a program.

    Attributes:
        status: `done` (it ended by itself), `killed` (by a signal: a limit, or a crash), `time`, `output` (it wrote more than
            it may), `failed` (the sandbox did not work: nothing was run).
        output: what it wrote.
        code: its exit code, or the signal's number.
        reason: one line.
    """

    status: Literal["done", "killed", "time", "output", "failed"]
    output: bytes = b""
    code: int = 0
    reason: str = ""


def run(
    job: dict[str, Any], stdin: bytes = b"", limits: Limits | None = None, backend: Backend | None = None
) -> Outcome:
    """Do one job of `whet.sandbox.programs` in a child process.

    Args:
        stdin: what a script reads.
        limits: None takes the defaults.
        backend: None takes the strongest that works (`probe`).
    """
    backend, limits = backend or probe(), limits or Limits()
    folder = tempfile.mkdtemp(prefix="whet-sandbox-", dir=_place())
    try:
        command = [interpreter(), "-s", "-S", "-B", "-P", "-c", START]
        if backend.name == "bubblewrap":
            command = [*bubblewrap(folder, ROOT), *command]
        walls = {"namespaces": backend.name == "namespaces", "seccomp": backend.seccomp, "landlock": backend.landlock}
        lent = _lent() if not backend.isolated else {}
        sent = {**job, "walls": walls, "limits": asdict(limits), "root": ROOT, "library": lent,
                "folder": "/tmp" if backend.name == "bubblewrap" else folder,
                "shown": [lent.get(path, path) for path in shown()]}  # fmt: skip
        data = json.dumps(sent).encode()
        return _talk(command, f"{len(data):08x}".encode() + data + stdin, limits)
    finally:
        remove(folder)


def _talk(command: list[str], data: bytes, limits: Limits) -> Outcome:
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               env=ENVIRONMENT, cwd="/", start_new_session=True, bufsize=0)  # fmt: skip
    output, told, late = bytearray(), bytearray(), False
    try:
        with selectors.DefaultSelector() as ready:
            assert process.stdin and process.stdout and process.stderr
            os.set_blocking(process.stdin.fileno(), False)
            ready.register(process.stdin, selectors.EVENT_WRITE)
            ready.register(process.stdout, selectors.EVENT_READ, output)
            ready.register(process.stderr, selectors.EVENT_READ, told)
            until = time.monotonic() + limits.seconds + GRACE
            rest = memoryview(data)
            while ready.get_map() and len(output) <= limits.output:
                ended = process.poll() is not None  # asked before: what it wrote at its end must not be missed
                events = ready.select(0.05)
                if ended and not events:  # someone it left behind still holds the pipe
                    break
                if time.monotonic() > until:
                    late = True
                    break
                for key, _ in events:
                    if key.fileobj is process.stdin:
                        with contextlib.suppress(BrokenPipeError):
                            rest = rest[os.write(key.fd, rest[:65536]) :]
                            if rest:
                                continue
                        ready.unregister(process.stdin)
                        process.stdin.close()
                    elif part := os.read(key.fd, 65536):
                        if len(told) < 4096 or key.data is output:
                            key.data.extend(part)
                    else:
                        ready.unregister(key.fileobj)
            if len(output) > limits.output:
                return Outcome(
                    "output", bytes(output[: limits.output]), reason=f"wrote more than {limits.output} bytes"
                )
        if not late:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, until - time.monotonic()))
    finally:
        end(process)
    return _outcome(LATE if late else process.returncode, bytes(output), told.decode(errors="replace").strip(), limits)


def _outcome(code: int, output: bytes, told: str, limits: Limits) -> Outcome:
    if code == LATE:
        return Outcome("time", output, reason=f"not ended after {limits.seconds:g} s")
    if code == FULL:
        return Outcome("killed", output, code, f"wrote more than {limits.disk} bytes, or too many files, to its folder")
    if code == FAILED or code < 0 or told:  # the supervisor itself ended, or said why it could not begin
        return Outcome("failed", output, code, (told or f"the sandbox ended with {code}").splitlines()[-1])
    if code > BY_SIGNAL:
        name = signal.Signals(code - BY_SIGNAL).name if code - BY_SIGNAL in set(signal.Signals) else str(code)
        return Outcome("killed", output, code - BY_SIGNAL, f"killed by {name}: out of time or memory, or crashed")
    return Outcome("done", output, code)


def end(process: subprocess.Popen[bytes]) -> None:
    """End the supervisor, which ends the rest; where it is gone or does not listen, its whole process group."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe:
            pipe.close()


def remove(folder: str) -> None:
    """Delete a folder that a hostile program filled: however deep, following no link, without recursion."""
    number = 0
    while True:
        with contextlib.suppress(OSError):
            os.chmod(folder, 0o700)
        entries = list(os.scandir(folder))
        if not entries:
            os.rmdir(folder)
            return
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.path)
                continue
            os.chmod(entry.path, stat.S_IRWXU)
            for inner in list(os.scandir(entry.path)):  # its folders come up here, its files go
                if inner.is_dir(follow_symlinks=False):
                    os.chmod(inner.path, stat.S_IRWXU)
                    number += 1
                    os.rename(inner.path, os.path.join(folder, f".{os.getpid()}-{number}"))
                else:
                    os.unlink(inner.path)
            os.rmdir(entry.path)


def _place() -> str | None:
    """Where a user of the child's can reach its folder; None is the usual place."""
    usual = tempfile.gettempdir()
    return "/tmp" if os.getuid() == 0 and not reachable(usual) else usual


_LENDING = threading.Lock()


def _lent() -> dict[str, str]:
    """Where the child finds the folders of Python's library: copies of those that its user could not read."""
    with _LENDING:
        return _copied() if os.getuid() == 0 else {}


@cache
def _copied() -> dict[str, str]:
    lent: dict[str, str] = {}
    for path in library():
        if not reachable(path):
            folder = tempfile.mkdtemp(prefix="whet-python-", dir=_place())
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            lent[path] = os.path.join(folder, "lib")
            left_out = shutil.ignore_patterns("site-packages", "test", "tests", "idlelib", "tkinter", "ensurepip",
                                              "lib2to3", "config-*")  # fmt: skip
            shutil.copytree(path, lent[path], ignore=left_out)
            os.chmod(folder, 0o755)
    return lent
