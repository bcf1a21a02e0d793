"""The child process: its limits, what it sees, how it ends, and that it fails closed."""

# ruff: noqa: PTH102, PTH109, PTH123, PTH211 (what a hostile program does)
from __future__ import annotations

import os
import platform
import struct
import subprocess
import sys
import threading
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from whet.sandbox import backends as module
from whet.sandbox import kernel
from whet.sandbox.backends import Backend, backends, bubblewrap, probe, works
from whet.sandbox.parent import MIB, ROOT, Limits, Outcome, remove, run
from whet.sandbox.values import DEPTH, equal, results, same_rows, same_text, too_deep

LIMITS = Limits(cpu=3, seconds=20.0, memory=256 * MIB, output=10_000)


def called(body: str, backend: Backend | None = None, **limits: Any) -> Outcome:
    job = {
        "kind": "function",
        "code": f"import os, sys\ndef f():\n  {body}",
        "entry": "f",
        "inputs": [{"args": [], "kwargs": {}}],
    }
    return run(job, limits=replace(LIMITS, **limits), backend=backend)


@pytest.fixture(params=["namespaces", "rlimits"])
def bare(request: pytest.FixtureRequest) -> Backend:
    backend = Backend(request.param)
    if backend not in backends() or not works(backend):
        pytest.skip(f"{backend} does not work on this machine")
    return backend


def test_nothing_is_inherited(bare: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "secret")
    with open("/dev/null") as held:
        os.set_inheritable(held.fileno(), True)
        found = called("return [sorted(os.environ), [n for n in range(3, 64) if _open(n)]]\n"
                       "def _open(n):\n  try: os.fstat(n)\n  except OSError: return False\n  return True", bare)  # fmt: skip
    assert results(found.output, 1) == [{"value": [["HOME", "LANG", "TMPDIR"], [3]]}]  # 3 is where results go


def test_a_program_that_takes_too_much_is_ended(bare: Backend) -> None:
    assert b"MemoryError" in called("return len(bytearray(1 << 30))", bare).output
    assert called("while True: os.write(3, b'x' * 4096)", bare).status == "output"
    assert len(called("return 'x' * 20_000", bare).output) == LIMITS.output
    late = called("import time; time.sleep(60)", bare, seconds=0.5)
    assert (late.status, late.reason) == ("time", "not ended after 0.5 s")
    full = called(
        "[open(str(n), 'w').write('x' * 9999) for n in range(999)]; import time; time.sleep(9)", bare, disk=MIB
    )
    assert b"No space" in full.output or "to its folder" in full.reason
    assert called("while True: pass", bare, cpu=1).status == "killed"
    assert b"File too large" in called("open('x', 'wb').write(b'x' * (17 << 20))", bare).output


def test_its_folder_is_gone_whatever_it_left(bare: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if bare.isolated or os.getuid() != 0:  # else the folder must be one that a user of the sandbox's can reach
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = set(Path("/tmp").glob("whet-sandbox-*"))
    called("os.makedirs('a/b'); os.symlink('/', 'a/b/root'); os.chmod('a/b', 0); os.chmod('a', 0)", bare)
    left = set(Path("/tmp").glob("whet-sandbox-*")) - before
    until = time.monotonic() + 20
    while any(folder.exists() for folder in left) and time.monotonic() < until:
        time.sleep(0.1)  # those of tests that run beside this one go too; one that was left here would stay
    assert list(tmp_path.iterdir()) == [] and not any(folder.exists() for folder in left)


def test_a_deep_tree_with_links_is_removed_and_what_they_point_to_is_not(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("x")
    top = tmp_path / "top"
    here = os.getcwd()
    top.mkdir()
    try:
        os.chdir(top)
        for _ in range(300):  # longer than a path may be
            os.symlink(kept, "link")
            os.mkdir("deeper" * 5)
            os.chdir("deeper" * 5)
    finally:
        os.chdir(here)
    remove(str(top))
    assert not top.exists() and (kept / "file").read_text() == "x"


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_what_it_started_is_ended_with_it(bare: Backend) -> None:
    mark = f"whet-left-{os.getpid()}"
    body = f"pid = os.fork()\n  if pid == 0:\n    os.setsid()\n    open('{mark}', 'w')\n    import time\n    time.sleep(60)\n  return 1"
    began = time.monotonic()
    assert called(body, bare).status == "done"
    assert time.monotonic() - began < 50
    left = subprocess.run(["pgrep", "-f", "whet.sandbox.child"], capture_output=True, text=True).stdout.split()
    mine = [pid for pid in left if f"{ROOT!r}" in Path(f"/proc/{pid}/cmdline").read_text() and _parent(pid) == 1]
    assert mine == []


def _parent(pid: str) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_failed_wall_is_no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    for backend in (Backend("namespaces"), Backend("rlimits", landlock=True)):
        if backend in backends():
            monkeypatch.setattr("whet.sandbox.parent.shown", lambda: ["/not/there"])
            found = called("return 1", backend)
            if backend.name == "namespaces":
                assert found.status == "failed" and found.output == b""
            else:
                assert b'"value"' in found.output  # a folder that is not there need not be shown
    monkeypatch.undo()
    assert called("os._exit(251)").status == "done"  # a program cannot say that it was the sandbox


def test_probe_takes_the_first_that_works_and_says_what_it_lets_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Backend] = []
    monkeypatch.setattr(module, "works", lambda b: tried.append(b) or b == Backend("rlimits"))
    probe.cache_clear()
    try:
        assert probe() == Backend("rlimits") and tried == backends()
        monkeypatch.setattr(module, "works", lambda _: False)
        probe.cache_clear()
        with pytest.raises(Exception, match="no sandbox works"):
            probe()
    finally:
        probe.cache_clear()
    bare, full = Backend("rlimits"), Backend("namespaces", True, True)
    assert "the network" in bare.lets_pass() and full.lets_pass() == ["a hole in the kernel"]
    assert "reading and changing this user's files" in bare.lets_pass(root=False)
    assert full.line() == "namespaces + seccomp + landlock; does not stop: a hole in the kernel"


def test_the_command_of_bubblewrap() -> None:
    command = bubblewrap("/tmp/folder", "/where/it/is")
    pairs = list(zip(command, command[1:], command[2:], strict=False))
    assert command[0] == "bwrap" and command[-1] == "--"
    for flag in ("--unshare-all", "--die-with-parent", "--new-session", "--clearenv"):
        assert flag in command
    assert ("--cap-drop", "ALL") in list(pairwise(command))
    assert [p for p in pairs if p[0] == "--bind"] == [("--bind", "/tmp/folder", "/tmp")]  # all else is read-only
    bound = [p[1] for p in pairs if p[0] == "--ro-bind"]
    assert "/where/it/is/whet/sandbox" in bound and set(module.library()) <= set(bound)
    assert not {"/", "/root", "/home", "/etc", "/proc"} & set(bound)


@pytest.mark.parametrize("machine", kernel.MACHINES)
def test_the_filter_denies_what_it_names(machine: str) -> None:
    column, arch, clone = kernel.MACHINES[machine]
    program = kernel.filter_program(machine)
    allow, deny, missing = 0x7FFF0000, 0x50001, 0x50026

    def asked(number: int, first: int = 0, where: int = arch) -> int:
        words, at, held = struct.pack("=IIQQ", number, where, 0, first), 0, 0
        while True:
            code, yes, no, k = program[at]
            at += 1
            if code == 0x20:
                (held,) = struct.unpack_from("=I", words, k)
            elif code == 0x06:
                return k
            else:
                at += yes if {0x15: held == k, 0x35: held >= k, 0x45: bool(held & k)}[code] else no

    for numbers in kernel.DENIED.values():
        number = numbers[column]
        assert number is None or asked(number) == deny
    assert asked(0 if machine == "x86_64" else 63) == asked(clone, kernel.THREAD | 0x100) == allow  # read, a thread
    assert asked(clone, 17) == deny  # a process
    assert asked(kernel.CLONE3) == asked(kernel.NEWEST + 1) == asked(0x40000029) == missing
    assert asked(0, where=0x40000003) == 0x80000000  # i386
    assert len(program) < 4096


@pytest.mark.skipif(platform.machine() != "x86_64" or sys.platform != "linux", reason="reads the C library's table")
def test_the_numbers_are_the_kernels() -> None:
    header = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
    if not header.exists():
        pytest.skip("no kernel headers")
    known = dict(line.split()[1:3] for line in header.read_text().splitlines() if line.startswith("#define __NR_"))
    for name, (number, _) in kernel.DENIED.items():
        assert known.get(f"__NR_{name}", str(number)) == str(number), name


def test_many_at_once_do_not_mix() -> None:
    found: dict[int, Outcome] = {}
    threads = [threading.Thread(target=lambda n=n: found.update({n: called(f"return {n}")})) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [results(found[n].output, 1) for n in range(4)] == [[{"value": n}] for n in range(4)]


def test_results_are_so_many_lines_of_plain_objects() -> None:
    assert results(b'{"value": 1}\n{"value": [2]}\n', 2) == [{"value": 1}, {"value": [2]}]
    for wrong in (b"", b'{"value": 1}', b'{"value": 1}\n\n', b'{"value": 1}\n{"value": 2}\n', b"3\n", b'{"value": NaN}\n',
                  b'{"value": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n", b'{"value": ' + b"9" * 5000 + b"}\n", b"\xff\n",
                  b'{"value": ' + b"[" * 70 + b"]" * 70 + b"}\n"):  # fmt: skip
        assert results(wrong, 1) == []
    nested: Any = 1
    for _ in range(DEPTH):
        nested = [nested]
    assert not too_deep(nested, DEPTH + 1) and too_deep(nested, DEPTH - 1)


def test_what_is_equal() -> None:
    assert equal(1, 1.0) and equal(0.1 + 0.2, 0.3) and equal({"a": [1, None]}, {"a": [1.0, None]})
    for a, b in (
        (True, 1),
        (0, False),
        (1, "1"),
        ([1], [1, 2]),
        ({"a": 1}, {"b": 1}),
        (None, False),
        (10**400, 1.5),
        ([], {}),
    ):
        assert not equal(a, b)
    assert same_text("a \nb\n\n", "a\nb") and not same_text("ab", "a b")
    assert same_rows([[2, "a"], [1, None]], [[1.0, None], [2, "a"]], False)
    assert not same_rows([[2], [1]], [[1], [2]], True) and not same_rows([[1], [1], [2]], [[1], [2], [2]], False)
