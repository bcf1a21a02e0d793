"""The child process: a supervisor that runs nothing of the model's, and the confined worker that it forks.

The supervisor reads what to do from its standard input, puts up the namespaces, starts the worker, ends it when its time
is over or its folder too full, and ends what it left behind. Exit codes: the worker's own, `LATE`, `FULL`, 128 + the signal that killed it, or `FAILED`
with a line on standard error where a wall could not be built; then nothing of the model's was run.
"""

# ruff: noqa: PTH112, PTH123 (pathlib would be imported in each child)
from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from types import FrameType
from typing import Any

from whet.sandbox import kernel

FAILED, LATE, FULL = 251, 124, 123
HEADER = 8  # hexadecimal digits of the length of what comes first on standard input; behind it is the program's
FIRST_UID = 1_610_612_736  # nobody's, on any machine
LOOK = 0.2  # seconds between two looks at the clock and the folder
ENTRIES = 4096  # files and folders; a new root in memory holds no more either
LINUX = sys.platform == "linux"


class _Over(BaseException):
    """The time is over, or the parent wants no more."""


def _over(signum: int, frame: FrameType | None) -> None:
    raise _Over(LATE)


def main() -> None:
    job = json.loads(_exactly(int(_exactly(HEADER), 16)))
    os._exit(supervise(job))


def _exactly(n: int) -> bytes:
    data = b""
    while len(data) < n:  # no more: the rest is the program's standard input
        part = os.read(0, n - len(data))
        if not part:
            os._exit(FAILED)
        data += part
    return data


def supervise(job: dict[str, Any]) -> int:
    """Start the worker, wait for it, end all that it started; the exit code."""
    walls, limits = job["walls"], job["limits"]
    owner = FIRST_UID + int.from_bytes(os.urandom(4)) % (1 << 28) if os.getuid() == 0 else os.getuid()
    for signum in (signal.SIGALRM, signal.SIGTERM):
        signal.signal(signum, _over)
    worker, code = 0, FAILED
    ready, built = os.pipe()
    try:
        try:
            if LINUX:
                kernel.prctl(kernel.PDEATHSIG, signal.SIGTERM)
                kernel.prctl(kernel.SUBREAPER, 1)  # what the worker leaves behind becomes ours to end
            if walls["namespaces"]:
                kernel.unshare(user=os.getuid() != 0)
                owner = owner if owner >= FIRST_UID else 0  # as the new user namespace calls us
            elif os.getuid() == 0:
                os.chown(job["folder"], owner, owner)
            if LINUX:
                kernel.prctl(kernel.DUMPABLE, 0)  # no one traces a supervisor, or reads its memory
            worker = os.fork()
        except OSError as problem:
            _tell(f"the sandbox could not be built: {problem}")
            return FAILED
        if worker == 0:
            os.close(ready)
            os._exit(work(job, owner, built))
        os.close(built)
        os.close(0)
        os.close(1)  # the parent sees the end of the results when the worker is gone
        until = time.monotonic() + limits["seconds"]

        def look(signum: int, frame: FrameType | None) -> None:
            if not walls["namespaces"] and filled(job["folder"], limits["disk"]):
                raise _Over(FULL)
            if time.monotonic() > until:
                raise _Over(LATE)

        signal.signal(signal.SIGALRM, look)
        signal.setitimer(signal.ITIMER_REAL, min(LOOK, limits["seconds"]), LOOK)
        confined = os.read(ready, 1) == b"y"
        _, status = os.waitpid(worker, 0)
        worker = 0
        ended = os.waitstatus_to_exitcode(status)
        if confined:
            code = 128 - ended if ended < 0 else min(ended, 100)
    except _Over as over:
        code = over.args[0]
    for signum in (signal.SIGALRM, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    # the kernel ends the processes of a namespace with its first one, the worker
    sweep(worker, owner if os.getuid() == 0 and not walls["namespaces"] else 0)
    return code


def filled(folder: str, most: int) -> bool:
    """Whether a folder holds more than `most` bytes, or more than `ENTRIES` files and folders."""
    size = count = 0
    open_ = [folder]
    while open_:
        try:
            with os.scandir(open_.pop()) as entries:
                for entry in entries:
                    count += 1
                    size += entry.stat(follow_symlinks=False).st_blocks * 512
                    if size > most or count > ENTRIES:
                        return True
                    if entry.is_dir(follow_symlinks=False):
                        open_.append(entry.path)
        except OSError:  # gone, locked, or too deep for a path
            continue
    return False


def sweep(worker: int, owner: int) -> None:
    """End the worker and every process that it left: by its uid where it has one of its own, else those that are ours now."""
    if worker:
        os.kill(worker, signal.SIGKILL)
    if owner:
        sweeper = os.fork()
        if sweeper == 0:
            try:
                os.setresuid(owner, owner, owner)
                os.kill(-1, signal.SIGKILL)  # the kernel goes through all of them at once: no fork outruns it
            finally:
                os._exit(0)
    until = time.monotonic() + 2
    while time.monotonic() < until:
        try:
            gone, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not gone:
            if not owner:
                _kill_children()
            time.sleep(0.001)


def _kill_children() -> None:
    if not LINUX:
        return
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            for pid in file.read().split():
                os.kill(int(pid), signal.SIGKILL)
    except OSError:  # a kernel without the list, or one that is gone already
        pass


def work(job: dict[str, Any], owner: int, built: int) -> int:
    """Confine this process, say so, and do the job."""
    for signum in (signal.SIGALRM, signal.SIGTERM):
        signal.signal(signum, signal.SIG_DFL)
    try:
        from whet.sandbox.programs import perform  # before its file is out of sight

        nothing, channel = os.open(os.devnull, os.O_RDWR), os.dup(1)
        os.dup2(nothing, 1)
        confine(job, owner)
        os.write(built, b"y")
    except BaseException as problem:
        _tell(f"the sandbox could not be built: {type(problem).__name__}: {problem}")
        return FAILED
    os.dup2(nothing, 2)
    os.dup2(channel, 3) if channel != 3 else None
    os.closerange(4, 256)
    try:
        return perform(job, 3)
    except BaseException:  # no reader any more, or no memory left to say so
        return 1


def confine(job: dict[str, Any], owner: int) -> None:
    """Put up every wall around this process, the one that would hinder the others last."""
    walls, limits = job["walls"], job["limits"]
    _library(job)
    os.setsid()
    if walls["namespaces"]:
        kernel.new_root(job["folder"], job["shown"], limits["disk"], owner)
        folder = "/tmp"
    else:
        folder = job["folder"]
        os.chdir(folder)
    os.environ.clear()
    os.environ.update({"HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8"})
    os.umask(0o077)
    for name, most in (
        ("CPU", limits["cpu"]), ("AS", limits["memory"]), ("NPROC", limits["processes"]), ("FSIZE", limits["file"]),
        ("NOFILE", limits["files"]), ("CORE", 0), ("MEMLOCK", 0), ("MSGQUEUE", 0), ("NICE", 0), ("RTPRIO", 0),
    ):  # fmt: skip
        if hasattr(resource, f"RLIMIT_{name}"):
            _limit(getattr(resource, f"RLIMIT_{name}"), most)
    if os.getuid() == 0 and owner:
        os.setgroups([])
        os.setresgid(owner, owner, owner)
        os.setresuid(owner, owner, owner)
    if not LINUX:
        return
    kernel.drop_capabilities()
    kernel.no_new_privileges()
    kernel.prctl(kernel.PDEATHSIG, signal.SIGKILL)  # a change of the uid takes it off
    if os.getppid() == 1:  # the supervisor had died before
        raise OSError("the supervisor is gone")
    if walls["landlock"]:
        kernel.landlock([path for path in job["shown"] if os.path.isdir(path)], [folder])
    if walls["seccomp"]:
        kernel.seccomp()


def _limit(name: int, most: int) -> None:
    _, hard = resource.getrlimit(name)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    try:
        resource.setrlimit(name, (most, most))
    except (OSError, ValueError):
        if LINUX:  # macOS refuses some of them, which `Backend.lets_pass` says
            raise


def _library(job: dict[str, Any]) -> None:
    """Take Whet off the path, and Python's library from where the worker may read it."""
    moved: dict[str, str] = job["library"]

    def now(path: str) -> str:
        for old, new in moved.items():
            if path.startswith(old):
                return new + path[len(old) :]
        return path

    sys.path[:] = [now(path) for path in sys.path if path != job["root"]]
    sys.path_importer_cache.clear()
    for module in list(sys.modules.values()) if moved else ():
        if hasattr(module, "__path__"):
            module.__path__ = [now(path) for path in module.__path__]


def _tell(text: str) -> None:
    os.write(2, text.encode(errors="replace")[:2000] + b"\n")
