"""Hostile programs and queries, and what can be seen of them from outside. `python tests/faults/escapes.py` prints the table.

Each is an answer to a problem whose expected results it cannot compute. It is stopped if nothing of what it tried is found
afterwards: no secret in what it wrote, no file outside its folder, no connection to our servers, no process left, our own
processes alive, its memory, disk and time within bounds, and no word of its own (`BREACH`) that a forbidden call worked.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from snippets import ESCAPES, Escape

from whet.sandbox.backends import Backend, backends, works
from whet.sandbox.child import FIRST_UID
from whet.sandbox.parent import MIB, Limits, Outcome, run
from whet.tasks.problem import Problem, Response, Verdict
from whet.tasks.programs import Python, Sql

LIMITS = Limits(cpu=2, seconds=6.0, memory=192 * MIB, processes=8, file=MIB, disk=8 * MIB, files=32, output=256 << 10)
SLACK = 45.0  # seconds that a busy machine may add
SHOULD_HOLD = "a count of forks"  # tried before the bombs, which are tried only where it is stopped


@dataclass
class World:
    """What is outside, and must stay as it is."""

    folder: Path
    token: str
    port: int
    udp: int
    abstract: str
    bystander: subprocess.Popen[bytes]
    hits: list[str]

    @property
    def drop(self) -> Path:
        return self.folder / "drop"

    def names(self) -> dict[str, str]:
        return {"$SECRET": str(self.folder / "secret.txt"), "$PUBLIC": str(self.folder / "public.txt"),
                "$DROP": str(self.drop), "$PORT": str(self.port), "$UDP": str(self.udp), "$ABSTRACT": self.abstract,
                "$PARENT": str(os.getpid()), "$BYSTANDER": str(self.bystander.pid), "$UID": str(os.getuid())}  # fmt: skip


@contextmanager
def world() -> Iterator[World]:
    """Canaries: files, servers, an environment variable, a process; gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="whet-canary-", dir="/tmp"))
    token = f"SECRET-{secrets.token_hex(8)}"
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"], start_new_session=True)
    hits: list[str] = []
    servers = [socket.socket(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM), socket.socket(socket.AF_UNIX)]
    abstract = f"whet-canary-{secrets.token_hex(4)}"
    before = dict(os.environ)
    try:
        folder.chmod(0o755)
        (folder / "drop").mkdir()
        (folder / "drop").chmod(0o777)
        for name, mode in (("secret.txt", 0o600), ("public.txt", 0o644)):
            (folder / name).write_text(token)
            (folder / name).chmod(mode)
        servers[0].bind(("127.0.0.1", 0))
        servers[1].bind(("127.0.0.1", 0))
        servers[2].bind(f"\0{abstract}") if sys.platform == "linux" else servers[2].bind(str(folder / "socket"))
        servers[0].listen()
        servers[2].listen()
        for server in servers:
            threading.Thread(target=_serve, args=(server, hits), daemon=True).start()
        os.environ["WHET_CANARY"] = token
        yield World(folder, token, servers[0].getsockname()[1], servers[1].getsockname()[1], abstract, bystander, hits)
    finally:
        os.environ.clear()
        os.environ.update(before)
        for server in servers:
            server.close()
        bystander.kill()
        bystander.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _serve(server: socket.socket, hits: list[str]) -> None:
    while True:
        try:
            if server.type == socket.SOCK_DGRAM:
                hits.append(str(server.recvfrom(100)))
            else:
                hits.append(str(server.accept()[1]))
        except OSError:  # closed: the world has ended
            return


class Watch(threading.Thread):
    """The most memory that the sandbox's own users held at once, by samples, and the most bytes below its folders."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.memory = self.disk = 0
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.1):
            self.memory = max(self.memory, sum(rss for _, rss in inmates()))
            self.disk = max(self.disk, sum(_bytes(f) for f in Path(tempfile.gettempdir()).glob("whet-sandbox-*")))

    def stop(self) -> None:
        self._over.set()
        self.join()


def _bytes(folder: Path) -> int:
    try:
        return sum(entry.stat(follow_symlinks=False).st_size for entry in os.scandir(folder))
    except OSError:  # gone, or no folder any more
        return 0


def inmates() -> list[tuple[int, int]]:
    """(pid, bytes of resident memory) of processes of our sandboxes: the user is one of theirs, or the command is, and above
    them is this process, or none but their like. (Other runs on this machine have sandboxes too.)
    """
    parent: dict[int, int] = {}
    held: dict[int, int] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                status = dict(
                    line.split(":", 1) for line in Path(entry.path, "status").read_text().splitlines() if ":" in line
                )
                command = Path(entry.path, "cmdline").read_bytes()
            except OSError:  # ended meanwhile
                continue
            pid = int(entry.name)
            parent[pid] = int(status["PPid"])
            if "VmRSS" in status and (int(status["Uid"].split()[0]) >= FIRST_UID or b"whet.sandbox.child" in command):
                held[pid] = int(status["VmRSS"].split()[0]) * 1024

    def above(pid: int) -> int:
        while pid in held:
            pid = parent[pid]
        return pid

    return [(pid, memory) for pid, memory in held.items() if above(pid) in (0, 1, os.getpid())]


class _Recorded:
    """Keeps what programs wrote."""

    outcomes: list[Outcome]

    def _run(self, job: dict[str, Any], stdin: bytes = b"") -> Outcome:
        outcome = run(job, stdin, self.limits, self.backend)  # pyright: ignore[reportAttributeAccessIssue]
        self.outcomes.append(outcome)
        return outcome


class RecordedPython(_Recorded, Python):
    pass


class RecordedSql(_Recorded, Sql):
    pass


@dataclass(frozen=True)
class Found:
    """One escape on one backend: what is left of it, and what it earned."""

    backend: str
    name: str
    breaches: tuple[str, ...]
    verdict: Verdict
    seconds: float

    @property
    def stopped(self) -> bool:
        return not self.breaches

    @property
    def rewarded(self) -> bool:
        return self.verdict.value > 0

    def row(self) -> dict[str, Any]:
        return {"backend": self.backend, "name": self.name, "breaches": list(self.breaches), "rewarded": self.rewarded,
                "status": self.verdict.status, "seconds": round(self.seconds, 2)}  # fmt: skip


def attempt(escape: Escape, backend: Backend, there: World) -> Found:
    """Judge one hostile answer, and look at what it did."""
    code = escape.code
    for name, value in there.names().items():
        code = code.replace(name, value)
    wanted = secrets.randbits(60)
    data: dict[str, Any] = {
        "python": {"entry": "f", "tests": [{"args": [i], "output": wanted + i} for i in (1, 2)]},
        "script": {"tests": [{"stdin": "1\n", "stdout": str(wanted)}]},
        "sql": {"schema": "CREATE TABLE t (a INTEGER, b TEXT); INSERT INTO t VALUES (1, 'x'), (2, 'y');"},
    }[escape.kind]
    gold = f"SELECT sum(a) + {wanted} FROM t" if escape.kind == "sql" else None
    judge = (RecordedSql if escape.kind == "sql" else RecordedPython)(LIMITS, backend)
    judge.outcomes = []
    files, hits = _files(there), len(there.hits)
    watch, began = Watch(), time.perf_counter()
    watch.start()
    verdict = judge(Problem("escape", "?", gold, data=data), Response(code, code))
    seconds = time.perf_counter() - began
    watch.stop()
    time.sleep(0.02)
    written = b"".join(outcome.output for outcome in judge.outcomes)
    left = inmates()
    for _ in range(20):  # the kernel may still be ending what was killed
        if not left:
            break
        time.sleep(0.05)
        left = inmates()
    ends = [
        ("its own word", b"BREACH" in written),
        ("read a secret", there.token.encode() in written),
        ("read what is expected", escape.kind != "sql" and any(str(wanted + i).encode() in written for i in range(3))),
        ("read a system file", b"root:x:0" in written),
        ("wrote outside", _files(there) != files),
        ("reached a server", len(there.hits) > hits),
        ("killed a process", there.bystander.poll() is not None),
        ("left a process", bool(left)),
        ("memory", watch.memory > LIMITS.memory * LIMITS.processes or shared() > 64 * MIB),
        ("disk", watch.disk > LIMITS.disk + 128 * MIB),  # what it can write between two looks
        ("time", seconds > (LIMITS.seconds + SLACK) * len(judge.outcomes)),
        ("output", any(len(outcome.output) > LIMITS.output for outcome in judge.outcomes)),
        ("a failed sandbox", any(outcome.status == "failed" for outcome in judge.outcomes)),
    ]
    return Found(str(backend), escape.name, tuple(name for name, happened in ends if happened), verdict, seconds)


def _files(there: World) -> list[tuple[str, str]]:
    """Files of the canaries' folder with what is in them, and what escapes put elsewhere."""
    own = [
        (str(p), p.read_text() if p.is_file() and not p.is_symlink() else "") for p in sorted(there.folder.rglob("*"))
    ]
    places = [Path(tempfile.gettempdir()), Path("/dev/shm"), Path("/var/tmp"), Path.home()]
    return own + [(str(p), "") for place in places if place.is_dir() for p in sorted(place.glob("whet-escape*"))]


def shared() -> int:
    """Bytes in shared memory that belong to the sandbox's users."""
    found = 0
    for path in Path("/dev/shm").glob("*") if Path("/dev/shm").is_dir() else ():
        try:
            found += path.stat().st_size if path.stat().st_uid >= FIRST_UID else 0
        except OSError:
            continue
    return found


def survey(chosen: Sequence[Backend] = (), names: Sequence[str] = ()) -> Iterator[Found]:
    """Try escapes on backends; bombs come last, and only where a count of forks was stopped before.

    Args:
        chosen: empty takes each kind that works here, with all the layers on top that there are, and with none.
        names: empty takes all escapes.
    """
    with world() as there:
        for backend in chosen or kinds():
            held = attempt(next(e for e in ESCAPES if e.name == SHOULD_HOLD), backend, there)
            yield held
            for escape in sorted(ESCAPES, key=lambda e: e.bomb):
                if escape.name == SHOULD_HOLD or (names and escape.name not in names):
                    continue
                if escape.bomb and not held.stopped:
                    continue
                yield attempt(escape, backend, there)
                _tidy(there)


def contained(backend: Backend) -> bool:
    """Whether a signal or a bomb that gets through hits only its own user, or only its own processes."""
    return os.getuid() == 0 or backend.isolated or backend.seccomp


def _tidy(there: World) -> None:
    """What an escape left must not count against the next."""
    for path in there.drop.iterdir():
        path.unlink() if not path.is_dir() or path.is_symlink() else shutil.rmtree(path)
    for place in (tempfile.gettempdir(), "/dev/shm", "/var/tmp"):
        for path in Path(place).glob("whet-escape*"):
            path.unlink()


def kinds() -> list[Backend]:
    """Each backend that works here and would not let this process be killed: with every layer that works, and bare."""
    found: list[Backend] = []
    for name in dict.fromkeys(b.name for b in backends()):
        own = [b for b in backends() if b.name == name and contained(b) and works(b)]
        found += dict.fromkeys([own[0], own[-1]]) if own else []
    return found


def rows(place: Path, done: int) -> Iterator[dict[str, Any]]:
    """What the suite of faults keeps, backend by backend; a backend that was not finished is tried again."""
    for backend in kinds():
        for number, found in enumerate(survey([backend])):
            if number >= done:
                yield found.row()
        done = max(0, done - len(ESCAPES))


def table(rows: Sequence[dict[str, Any]]) -> list[list[Any]]:
    """Head and lines: a backend, how many escapes were tried, stopped, rewarded, and which were not stopped."""
    lines: list[list[Any]] = [["backend", "tried", "stopped", "rewarded", "not stopped"]]
    for backend in dict.fromkeys(row["backend"] for row in rows):
        own = [row for row in rows if row["backend"] == backend]
        through = [f"{row['name']} ({', '.join(row['breaches'])})" for row in own if row["breaches"]]
        lines.append([backend, len(own), len(own) - len(through), sum(row["rewarded"] for row in own),
                      "; ".join(through) or "none"])  # fmt: skip
    return lines


if __name__ == "__main__":
    tried: list[dict[str, Any]] = []
    for backend in kinds():
        own = [found.row() for found in survey([backend], sys.argv[1:])]
        tried += own
        print(f"# {backend}: {len(own)} in {sum(row['seconds'] for row in own):.0f} s", file=sys.stderr, flush=True)
    print("\n".join(f"| {' | '.join(map(str, line))} |" for line in table(tried)))
