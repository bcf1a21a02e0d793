"""The one exception a user sees: what is wrong, where, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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


def unknown(what: str, name: str, known: Iterable[str]) -> WhetError:
    """An error for an unknown name that offers the nearest known one."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else "known: " + ", ".join(names)
    return WhetError(f"unknown {what} '{shown(name, 100)}': {hint}")
