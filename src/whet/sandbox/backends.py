"""The walls that there are, the strongest that a trial run gets up on this machine, and what each does not stop."""

# ruff: noqa: PTH112 (the paths are texts for the child)
from __future__ import annotations

import logging
import os
import platform
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from whet.errors import WhetError

log = logging.getLogger(__name__)
SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")  # shared libraries that Python's own modules load
LINUX = sys.platform == "linux"
NAMES = ("bubblewrap", "namespaces", "rlimits")


@dataclass(frozen=True, slots=True)
class Backend:
    """One way to keep a program in.

    Attributes:
        name: `bubblewrap` (the program `bwrap`), `namespaces` (the same by system calls of our own), or `rlimits` (limits
            on resources, a user of its own where we are root).
        seccomp: whether a filter of system calls lies on top.
        landlock: whether Landlock's rules for files do.
    """

    name: str
    seccomp: bool = False
    landlock: bool = False

    def __str__(self) -> str:
        return " + ".join([self.name, *(n for n in ("seccomp", "landlock") if getattr(self, n))])

    @property
    def isolated(self) -> bool:
        """Whether the program has an own, almost empty file system, no network and no other process in sight."""
        return self.name != "rlimits"

    def lets_pass(self, root: bool | None = None) -> list[str]:
        """What this backend does not stop, in words.

        Args:
            root: whether Whet runs as root; None asks.
        """
        root = (os.getuid() == 0 if hasattr(os, "getuid") else False) if root is None else root
        found = ["a hole in the kernel"]
        if not self.seccomp:
            found.append("memory outside the program's own limit: shared, or a file system in a namespace of its own")
        if self.isolated:
            return found
        if not (self.seccomp or self.landlock):
            found.append("the network")
        if not self.landlock:
            found.append("reading files that everybody may read" if root else "reading and changing this user's files")
            found.append("filling the disk outside its folder")
        else:
            found.append("seeing names, sizes and dates of files")
        if not root and not self.seccomp:
            found.append("signals to this user's processes, and a process hidden from the clean-up")
        if not LINUX:
            found.append("using much memory" if sys.platform == "darwin" else "what the system has no limit for")
        return found

    def line(self) -> str:
        """One line for a log or `whet doctor`."""
        return f"{self}; does not stop: {', '.join(self.lets_pass())}"


def library() -> list[str]:
    """The folders of Python's standard library."""
    paths = sysconfig.get_paths()
    found = [paths["stdlib"], paths["platstdlib"], str(Path(os.__file__).parent)]
    return list(dict.fromkeys(os.path.realpath(path) for path in found if os.path.isdir(path)))


def shown() -> list[str]:
    """The folders that a confined program may read."""
    return [*library(), *(path for path in SYSTEM if os.path.isdir(path))]


def reachable(path: str) -> bool:
    """Whether a user who owns nothing can read a folder."""
    place = Path(os.path.realpath(path))
    return all(p.stat().st_mode & 0o5 == 0o5 if p == place else p.stat().st_mode & 0o1 for p in (place, *place.parents))


def interpreter() -> str:
    """The Python outside of any virtual environment: the child has no use for its packages."""
    return os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable)


def bubblewrap(folder: str, root: str, program: str = "bwrap") -> list[str]:
    """The command that puts what follows it into bubblewrap.

    Args:
        folder: is `/tmp` inside, and the only thing that can be written.
        root: the folder that holds the package `whet`.
    """
    command = [program, "--unshare-all", "--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL"]
    python = interpreter()
    for path in dict.fromkeys([*shown(), str(Path(root) / "whet" / "sandbox"), python]):
        command += ["--ro-bind", path, path]
    for name in ("__init__.py", "errors.py"):
        path = str(Path(root) / "whet" / name)
        command += ["--ro-bind", path, path]
    command += ["--dev", "/dev", "--bind", folder, "/tmp", "--chdir", "/tmp", "--setenv", "PYTHONHASHSEED", "0"]
    return [*command, "--remount-ro", "/", "--"]


def backends() -> list[Backend]:
    """What might work here, the strongest first."""
    linux = LINUX and platform.machine() in ("x86_64", "aarch64")
    # root needs no bubblewrap: its namespaces are as strong, and it can give the program a user of its own
    bwrap = linux and os.getuid() != 0 and shutil.which("bwrap")
    there = {"bubblewrap": bwrap, "namespaces": linux, "rlimits": True}
    names = [name for name in NAMES if there[name]]
    layers = [(True, True), (True, False), (False, True), (False, False)] if linux else [(False, False)]
    return [Backend(name, *pair) for name in names for pair in layers]


def works(backend: Backend) -> bool:
    """Whether a trial program runs in a backend and cannot read a file that is private to us."""
    from whet.sandbox.trial import trial

    return trial(backend)


@cache
def probe() -> Backend:
    """The strongest backend that works, found by trial runs, once per process.

    Raises:
        WhetError: where none does.
    """
    if not hasattr(os, "fork"):
        raise WhetError("code that a model wrote needs a Unix machine: it is run in a child process with limits")
    for backend in backends():
        if works(backend):
            log.info("untrusted code runs in %s", backend.line())
            return backend
    raise WhetError("no sandbox works on this machine, so code that a model wrote is not run; try `whet doctor`")
