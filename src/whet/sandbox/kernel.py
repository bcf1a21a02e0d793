"""What Linux offers to a process that wants to have less: namespaces, Landlock, a seccomp filter; by system calls.

Everything here is called in the child, before it runs a line of the model's code, and raises OSError where the kernel
refuses: a wall that was promised and cannot be built ends the child. Nothing is imported but the standard library.

Numbers: linux/{prctl,sched,mount,landlock,seccomp,filter,audit}.h and the syscall tables of x86-64 and aarch64.
"""

# ruff: noqa: PTH102, PTH103, PTH112, PTH123 (pathlib would be imported in each child)
from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Sequence
from typing import Any

NEW_MOUNTS, NEW_UTS, NEW_IPC, NEW_USER, NEW_PIDS, NEW_NET = (
    0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000,
)  # fmt: skip
PDEATHSIG, DUMPABLE, SECCOMP, CAPBSET_DROP, SUBREAPER, NO_NEW_PRIVS = 1, 4, 22, 24, 36, 38
READ_ONLY, NOSUID, NODEV, REMOUNT, BIND, RECURSIVE, PRIVATE, DETACH = 1, 2, 4, 32, 4096, 16384, 1 << 18, 2
THREAD = 0x10000  # CLONE_THREAD

# name: number on x86-64 and on aarch64 (None: not there). What a program has no need of, and an attacker may.
DENIED: dict[str, tuple[int | None, int | None]] = {
    # the network, other processes, other programs
    "socket": (41, 198), "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "process_madvise": (440, 440), "kcmp": (312, 272), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424), "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "fork": (57, None), "vfork": (58, None),
    "execve": (59, 221), "execveat": (322, 281), "setsid": (112, 157), "setpgid": (109, 154), "prctl": (157, 167),
    "setpriority": (141, 140), "sched_setaffinity": (203, 122), "sched_setscheduler": (144, 119),
    "sched_setattr": (314, 274), "ioprio_set": (251, 30),
    # memory that no limit of the process counts
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "shmat": (30, 196),
    "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180),
    # ways out, and large parts of the kernel
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264), "mknod": (133, None), "mknodat": (259, 33),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104), "kexec_file_load": (320, 294),
    "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225), "personality": (135, 92), "acct": (163, 89),
    "quotactl": (179, 60), "syslog": (103, 116), "settimeofday": (164, 170), "clock_settime": (227, 112),
    "adjtimex": (159, 171), "sethostname": (170, 161), "setdomainname": (171, 162), "iopl": (172, None),
    "ioperm": (173, None), "modify_ldt": (154, None), "fanotify_init": (300, 262),
}  # fmt: skip
MACHINES = {"x86_64": (0, 0xC000003E, 56), "aarch64": (1, 0xC00000B7, 220)}  # column, AUDIT_ARCH, number of clone
CLONE3, NEWEST = 435, 462  # a system call newer than what was looked at does not exist for the program

_libc: Any = None


def libc() -> Any:
    global _libc
    if _libc is None:
        _libc = ctypes.CDLL(None, use_errno=True)
    return _libc


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _syscall(what: str, number: int, *arguments: Any) -> int:
    return _checked(libc().syscall(ctypes.c_long(number), *arguments), what)


def prctl(option: int, value: int) -> None:
    zero = ctypes.c_ulong(0)
    _checked(libc().prctl(option, ctypes.c_ulong(value), zero, zero, zero), f"prctl {option}")


def no_new_privileges() -> None:
    """No program started from here on gains anything by a setuid bit."""
    prctl(NO_NEW_PRIVS, 1)


# -- namespaces ------------------------------------------------------------------------------------------------------
def unshare(user: bool) -> None:
    """Leave the machine's network, mounts, IPC and name; the next child is process 1 of its own.

    Args:
        user: also enter a user namespace, as its root: what a user who is not root needs for the others.
    """
    uid, gid = os.getuid(), os.getgid()
    flags = NEW_MOUNTS | NEW_UTS | NEW_IPC | NEW_PIDS | NEW_NET | (NEW_USER if user else 0)
    _checked(libc().unshare(flags), "unshare")
    if user:
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    _checked(
        libc().mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode()),
        f"mount {target}",
    )


def new_root(at: str, shown: Sequence[str], size: int, owner: int) -> None:
    """Make an empty file system the root, and `/tmp` in it the current folder; the old root is gone.

    Args:
        at: an empty folder to build it in.
        shown: folders that are there under their own names, read-only.
        size: bytes that the new root holds at most; they are memory.
        owner: uid and gid of its `/tmp`, the one folder that can be written.
    """
    _mount("none", "/", "none", RECURSIVE | PRIVATE)  # nothing of this reaches the machine's mounts
    _mount("tmpfs", at, "tmpfs", NOSUID | NODEV, f"size={size},nr_inodes=4096,mode=755")
    for path in shown:
        os.makedirs(at + path, exist_ok=True)
        _mount(path, at + path, "none", BIND | RECURSIVE)
        kept = os.statvfs(path).f_flag & 0x0E  # nosuid, nodev, noexec of the original may not be taken off again
        _mount("none", at + path, "none", REMOUNT | BIND | READ_ONLY | NOSUID | NODEV | kept)
    os.mkdir(at + "/tmp", 0o700)
    os.chown(at + "/tmp", owner, owner)
    os.chdir(at)
    _syscall("pivot_root", {"x86_64": 155, "aarch64": 41}[platform.machine()], b".", b".")
    _checked(libc().umount2(b".", DETACH), "umount2")
    os.chdir("/tmp")


def drop_capabilities() -> None:
    """Give up every capability, also those that the root of a user namespace has inside it."""
    for capability in range(64):
        try:
            prctl(CAPBSET_DROP, capability)
        except OSError as problem:
            if problem.errno == errno.EINVAL:  # the first number that this kernel does not know
                break
            if problem.errno != errno.EPERM:  # without CAP_SETPCAP there is nothing to lose
                raise
    header = struct.pack("=Ii", 0x20080522, 0)
    _checked(libc().capset(header, bytes(24)), "capset")


# -- Landlock --------------------------------------------------------------------------------------------------------
# rights are bits: execute, write, read a file, read a folder, remove folder and file, make a device, folder, file,
# socket, fifo, block device and link, move, truncate, ioctl
READ = sum(1 << bit for bit in (0, 2, 3))
WRITE = sum(1 << bit for bit in (1, 2, 3, 4, 5, 7, 8, 12, 13, 14))
FILE = sum(1 << bit for bit in (0, 1, 2, 14, 15))  # those that are not only of folders


def landlock_abi() -> int:
    """The version of Landlock, 0 where there is none."""
    try:
        return _syscall("landlock", 444, None, ctypes.c_size_t(0), ctypes.c_uint(1))
    except (OSError, AttributeError, ValueError):
        return 0


def landlock(shown: Sequence[str], written: Sequence[str]) -> None:
    """From here on files below `shown` can be read, below `written` also written, and nothing else is there; no TCP (ABI 4),
    no signal and no abstract socket to anyone outside (ABI 6). https://docs.kernel.org/userspace-api/landlock.html
    """
    abi = landlock_abi()
    rights = (1 << {0: 0, 1: 13, 2: 14, 3: 15, 4: 15}.get(abi, 16)) - 1
    attributes = struct.pack("=QQQ", rights, 0b11, 0b11)[: 8 if abi < 4 else 16 if abi < 6 else 24]
    rules = _syscall("landlock", 444, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint(0))
    try:
        for paths, allowed in ((shown, READ), (written, WRITE)):
            for path in paths:
                place = os.open(path, os.O_PATH | os.O_CLOEXEC)
                try:
                    mine = allowed & rights & (-1 if os.path.isdir(path) else FILE)
                    rule = struct.pack("=Qi", mine, place)
                    _syscall(f"landlock {path}", 445, ctypes.c_int(rules), ctypes.c_int(1), rule, ctypes.c_uint(0))
                finally:
                    os.close(place)
        _syscall("landlock", 446, ctypes.c_int(rules), ctypes.c_uint(0))
    finally:
        os.close(rules)


# -- seccomp ---------------------------------------------------------------------------------------------------------
def filter_program(machine: str) -> list[tuple[int, int, int, int]]:
    """The classic BPF program as (code, jump if true, jump if false, constant).

    A denied call answers EPERM. clone makes threads but no processes; clone3, whose flags a filter cannot see, answers
    ENOSYS, whereupon the C library takes clone. A call of another architecture kills.
    """
    column, arch, clone = MACHINES[machine]
    load, equal, at_least, has, answer = 0x20, 0x15, 0x35, 0x45, 0x06
    deny, missing, kill, allow = 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS, 0x80000000, 0x7FFF0000
    program = [
        (load, 0, 0, 4), (equal, 1, 0, arch), (answer, 0, 0, kill),
        (load, 0, 0, 0), (at_least, 0, 1, NEWEST + 1), (answer, 0, 0, missing),  # x32's numbers too
        (equal, 0, 1, CLONE3), (answer, 0, 0, missing),
        (equal, 0, 4, clone), (load, 0, 0, 16), (has, 0, 1, THREAD), (answer, 0, 0, allow), (answer, 0, 0, deny),
    ]  # fmt: skip
    for numbers in DENIED.values():
        number = numbers[column]
        if number is not None:
            program += [(equal, 0, 1, number), (answer, 0, 0, deny)]
    return [*program, (answer, 0, 0, allow)]


def seccomp() -> None:
    """Deny the system calls in `DENIED`, and new processes, for good. Needs `no_new_privileges`."""
    if platform.machine() not in MACHINES:
        raise OSError(errno.ENOSYS, f"no filter for {platform.machine()}")
    program = b"".join(struct.pack("=HBBI", *line) for line in filter_program(platform.machine()))
    lines = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(lines))
    held = ctypes.create_string_buffer(header, len(header))
    zero = ctypes.c_ulong(0)
    _checked(libc().prctl(SECCOMP, ctypes.c_ulong(2), ctypes.c_ulong(ctypes.addressof(held)), zero, zero), "seccomp")
