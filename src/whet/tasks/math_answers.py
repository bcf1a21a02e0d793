r"""Comparing mathematical answers with the math-verify library, in a limited child process.

The library evaluates text that a model wrote and may hang inside one huge power, where no signal arrives; and its own
timeouts work in the main thread only. A child process with a memory limit, killed when it is late, has neither problem
and serves every thread. `python -m whet.tasks.math_answers` is that child.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, LifoQueue
from typing import Any, Literal, TypeVar

from whet.errors import WhetError

Outcome = Literal["equal", "different", "gold", "answer", "timeout", "error"]
T = TypeVar("T")
R = TypeVar("R")
MEMORY = 4 << 30
START_SECONDS = 120.0
PAYS = 5.0  # seconds of waiting for verdicts after which one more child is worth its start
DIED: tuple[Outcome, str] = ("error", "the comparison died")
GRACE = 2.0  # how much later than the child's own alarm it is killed

_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mbox|operatorname)\s*\{[^{}]*\}|\\[A-Za-z]+")
_FUNCTIONS = re.compile(r"\b(?:sin|cos|tan|cot|sec|csc|log|exp|sqrt|arcsin|arccos|arctan|sinh|cosh|tanh|max|min)\b")
_WORD = re.compile(r"[A-Za-z]{3,}")


class MathChild:
    """One child process; asks are served one at a time.

    Args:
        seconds: how long one comparison may take.
    """

    def __init__(self, seconds: float = 5.0) -> None:
        self.seconds = seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._close: Callable[[], object] = lambda: None

    def compare(self, gold: str, answer: str) -> tuple[Outcome, str]:
        """Whether two answers are equal; `gold` or `answer` names the one that cannot be parsed.

        A process that died is asked for again once: what killed it may have been no fault of the answer.
        """
        with self._lock:
            found = self._ask(gold, answer)
            return found if found != DIED else self._ask(gold, answer)

    def _ask(self, gold: str, answer: str) -> tuple[Outcome, str]:
        process = self._running()
        assert process.stdin and process.stdout
        try:
            process.stdin.write(json.dumps([gold, answer, self.seconds]).encode() + b"\n")
            process.stdin.flush()
            reply = _line(process, self.seconds + GRACE)
        except BrokenPipeError:
            reply = b""
        except BaseException:  # interrupted: the reply still to come would be taken for the next one's
            self._close()
            raise
        if reply is None or not reply.endswith(b"\n"):  # late, or dead, in the middle of a reply too
            self._close()
            return ("timeout", f"no result in {self.seconds:g} s") if reply is None else DIED
        outcome, reason = json.loads(reply)
        return outcome, reason

    def _running(self) -> subprocess.Popen[bytes]:
        # after a fork the parent's pipe must not be shared
        if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            self._close()
            if importlib.util.find_spec("math_verify") is None:
                raise WhetError("verifier 'math' needs the math-verify library: pip install 'whet[tasks]'")
            self._owner = os.getpid()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "whet.tasks.math_answers"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )  # fmt: skip
            self._close = weakref.finalize(self, _end, self._process, self._owner)  # also when Python exits
            if _line(self._process, START_SECONDS) != b"ready\n":
                self._close()
                raise WhetError("verifier 'math': its process did not start; try `python -c 'import math_verify'`")
        return self._process


class MathChildren:
    """As many children as pay: the first one serves alone until its verdicts have been waited for as long as a further one
    may take to start, and so on up to one a core. What is answered does not depend on how many there are.

    Args:
        seconds: how long one comparison may take.
        most: children at most; 0 takes the cores that this process may use, which the ranks of a machine share.
    """

    def __init__(self, seconds: float = 5.0, most: int = 0) -> None:
        self.seconds = seconds
        self.most = most or max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        self.waited = 0.0
        self._free: LifoQueue[MathChild] = LifoQueue()  # the one used last is taken first: none starts without need

    def compare(self, gold: str, answer: str) -> tuple[Outcome, str]:
        """`MathChild.compare`, by a child that has nothing else to do."""
        try:
            child = self._free.get_nowait()
        except Empty:
            child = MathChild(self.seconds)
        try:
            return child.compare(gold, answer)
        finally:
            self._free.put(child)

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """`function`, which compares, of each item, in order; several at a time where that pays."""
        began = time.perf_counter()
        width = min(self.most, 1 + int(self.waited / PAYS), max(1, len(items)))
        if width == 1:
            found = [function(item) for item in items]
        else:
            with ThreadPoolExecutor(width) as threads:
                found = list(threads.map(function, items))
        self.waited += time.perf_counter() - began
        return found


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    """Kill the child, unless it is the child of a process this one was forked from."""
    if owner == os.getpid():
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe:
            pipe.close()


def _line(process: subprocess.Popen[bytes], seconds: float) -> bytes | None:
    """A line from the child; b"" where it ended, None where it is late."""
    assert process.stdout
    if not select.select([process.stdout], [], [], seconds)[0]:
        return None
    return process.stdout.readline()


def as_math(text: str) -> str:
    """`text` with the dollar signs that the parser looks for, unless it has delimiters or is prose."""
    if re.search(r"\$|\\\(|\\\[|\\boxed", text) or is_prose(text) or not text.strip():
        return text
    return f"${text.strip()}$"


def is_prose(text: str) -> bool:
    """Whether a text holds words: letters in a row that are neither a LaTeX command nor a function's name."""
    return bool(_WORD.search(_FUNCTIONS.sub(" ", _TEXT.sub(" ", text))))


# -- the child -------------------------------------------------------------------------------------------------------
class _Late(BaseException):
    """Raised by the alarm; no BaseException is caught on the way through the library."""


def _alarm(*_: Any) -> None:
    raise _Late


def _compare(gold: str, answer: str) -> tuple[Outcome, str]:
    from math_verify import parse, verify

    def parsed(text: str) -> list[Any]:
        try:
            return parse(as_math(text), parsing_timeout=None, raise_on_error=True)  # pyright: ignore[reportArgumentType]
        except Exception:  # the parser's own errors are of every kind; the caller reports which side it was
            return []

    # a prose gold would be read as a product of its letters, or as the one number in it
    wanted = [] if is_prose(gold) and "$" not in gold and "\\boxed" not in gold else parsed(gold)
    if not wanted:
        return "gold", f"the gold answer '{gold[:80]}' is not mathematics that math-verify can parse"
    given = parsed(answer)
    if not given:
        return "answer", "nothing that math-verify can parse"
    equal = verify(wanted, given, timeout_seconds=None, raise_on_error=True)
    return ("equal", "") if equal else ("different", f"{str(given[-1])[:80]} is not {gold[:80]}")


def _serve() -> None:
    import resource

    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever a library prints must not reach the replies
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's; this process ends with its pipe
    signal.signal(signal.SIGALRM, _alarm)
    import math_verify as _  # noqa: F401  the slow import happens before "ready"

    replies.write(b"ready\n")
    for line in sys.stdin.buffer:
        gold, answer, seconds = json.loads(line)
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds)
            outcome = _compare(gold, answer)
            signal.setitimer(signal.ITIMER_REAL, 0)
        except _Late:
            outcome = ("timeout", f"no result in {seconds:g} s")
        except (Exception, RecursionError, MemoryError) as problem:
            signal.setitimer(signal.ITIMER_REAL, 0)
            outcome = ("error", f"math-verify raised {type(problem).__name__}: {str(problem)[:200]}")
        replies.write(json.dumps(outcome).encode() + b"\n")


if __name__ == "__main__":
    _serve()
