"""The one exception a user sees: what is wrong, where, and what to do about it."""

from __future__ import annotations

import difflib
import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

# what a disk refuses: it is full, or its share of it is; it may not be written; it fails
DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO})
_TOLD = re.compile(r"(?:I/O error|strerror): (.+?)(?: \(os error|$)")  # by safetensors and by torch


class WhetError(Exception):
    """A mistake the user can mend. The command prints it as one line and exits with code 2."""

    def __str__(self) -> str:
        return shown(super().__str__())


def shown(text: str, most: int | None = None) -> str:
    """A text that may hold anything, for an error: on one line, of characters that every terminal can write, and of `most`
    of them at most."""
    cut = text if most is None or len(text) <= most else f"{text[:most]}..."
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in cut)


def first_line(problem: BaseException) -> str:
    """What an error of a library says first; its kind where it says nothing."""
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0]


def refused_by_disk(problem: BaseException | None) -> str:
    """What a disk said, where that is behind an error of Python's or a library's; else ""."""
    while problem is not None:
        if isinstance(problem, OSError) and problem.errno in DISK:
            return os.strerror(problem.errno or 0) + (f": '{problem.filename}'" if problem.filename else "")
        if not isinstance(problem, OSError) and (told := _TOLD.search(str(problem))):
            return told[1]
        problem = problem.__cause__ or problem.__context__
    return ""


def out_of_memory(problem: BaseException) -> bool:
    """Whether memory ran out, on whatever device: on a CPU torch has no error of its own for that."""
    return type(problem).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator: " in str(problem)


@contextmanager
def mendable(disk: str, memory: Callable[[], str]) -> Iterator[None]:
    """Say in one line that a disk is full or memory has run out below.

    Args:
        disk: what to do about the first, after what the disk said.
        memory: where the second was, and what to do about it.
    """
    try:
        yield
    except WhetError:
        raise
    except Exception as problem:
        if said := refused_by_disk(problem):
            raise WhetError(f"a file could not be written ({said}): {disk}") from problem
        if out_of_memory(problem):
            raise WhetError(f"{memory()} ({first_line(problem)[:200]})") from problem
        raise


def unknown(what: str, name: str, known: Iterable[str]) -> WhetError:
    """An error for an unknown name that offers the nearest known one."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else "known: " + ", ".join(names)
    return WhetError(f"unknown {what} '{shown(name, 100)}': {hint}")
