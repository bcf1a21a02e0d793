"""Hostile answers. A function is to compute `f(1)` and `f(2)`, a program to read and print a number, a query to add up; none can
know the result. BREACH in what they write says that a call worked which should not have.

`$SECRET`, `$PUBLIC`, `$DROP` are files and a folder outside; `$PORT`, `$UDP`, `$ABSTRACT` servers; `$PARENT`, `$BYSTANDER`
processes.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Escape:
    """One hostile answer.

    Args:
        kind: `python` (a function f), `script` (a program), `sql` (a query).
        tries: what, in words.
        bomb: whether it would hurt the machine where nothing stops it; then it comes last.
    """

    name: str
    kind: str
    tries: str
    code: str
    bomb: bool = False


def f(name: str, tries: str, body: str, bomb: bool = False) -> Escape:
    """A function whose body is `body`."""
    lines = "\n".join("    " + line for line in body.strip("\n").splitlines())
    return Escape(name, "python", tries, f"import os, sys\n\ndef f(x):\n{lines}\n", bomb)


CTYPES = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"

FILES = [
    f("system file", "read /etc/passwd", "return open('/etc/passwd').read()"),
    f("password file", "read /etc/shadow", "return 'BREACH' + open('/etc/shadow').read()[:20]"),
    f("home file", "read a file of the user's", "return open('$SECRET').read()"),
    f("public file", "read a file that everybody may read", "return open('$PUBLIC').read()"),
    f("home folder", "list the home folder", "return 'BREACH' + str(os.listdir(os.path.expanduser('~root')))"),
    f("keys", "read ssh keys and tokens", """
for name in ('.ssh/id_rsa', '.ssh/authorized_keys', '.netrc', '.bash_history', '.bashrc', '.profile'):
    try:
        return 'BREACH' + open('/root/' + name).read()[:20]
    except OSError:
        pass"""),
    f("list the root", "see other files of the machine", """
return 'BREACH' if any(os.path.isdir(d) and os.listdir(d) for d in ('/home', '/var/log', '/opt', '/boot', '/srv')) else ''"""),
    f("parent's environment", "read it in /proc", "return open('/proc/$PARENT/environ').read()"),
    f("supervisor's environment", "read it in /proc", "return 'BREACH' + open(f'/proc/{os.getppid()}/environ').read()"),
    f("own environment", "find secrets that were inherited",
      "return str(dict(os.environ)) + open('/proc/self/environ').read()"),
    f("inherited variables", "find secrets that were inherited", "return os.environ['WHET_CANARY']"),
    f("parent's memory", "search the grader's memory for what is expected", """
place = next(line for line in open('/proc/$PARENT/maps') if '[heap]' in line)
start, stop = (int(part, 16) for part in place.split()[0].split('-'))
memory = open('/proc/$PARENT/mem', 'rb')
memory.seek(start)
return 'BREACH' + str(len(memory.read(stop - start)))"""),
    f("parent's files", "open what the parent has open", """
return 'BREACH' + str([os.readlink(f'/proc/$PARENT/fd/{n}') for n in os.listdir('/proc/$PARENT/fd')])"""),
    f("descriptors", "use descriptors that were left open", """
found = []
for n in range(4, 1024):
    try:
        found.append(os.fstat(n).st_mode)
    except OSError:
        pass
return f'BREACH {found}' if found else ''"""),
    f("write outside", "put a file elsewhere", "open('$DROP/x', 'w').write('x')"),
    f("append to a home file", "change a file of the user's", "open('$SECRET', 'a').write('x')"),
    f("write to /tmp", "put a file where everybody may", "open('/tmp/../tmp/whet-escape', 'w').write('x')\nreturn os.path.abspath('.')"),
    f("write to shared memory", "put a file into /dev/shm", "open('/dev/shm/whet-escape', 'w').write('x')"),
    f("write to /var/tmp", "put a file where everybody may", "open('/var/tmp/whet-escape', 'w').write('x')"),
    f("change the library", "put code into Python's library", """
import json
open(os.path.join(os.path.dirname(json.__file__), 'whet_escape.py'), 'w').write('x')
return 'BREACH'"""),
    f("change the grader's source", "write to the package", """
place = sys.modules['whet.sandbox.programs'].__file__
open(place, 'a').write('\\n')
return 'BREACH'"""),
    f("symbolic link out", "read through a link", "os.symlink('$SECRET', 'l')\nreturn open('l').read()"),
    f("symbolic link to a system file", "read through a link", "os.symlink('/etc/passwd', 'l')\nreturn open('l').read()"),
    f("symbolic link for the clean-up", "have the parent delete what it points to", "os.symlink('$DROP/..', 'l')\nos.symlink('/', 'm')"),
    f("hard link", "give a file of the user's another name", "os.link('$SECRET', '$DROP/l')"),
    f("hard link within", "give a system file another name", "os.link('/etc/passwd', 'l')\nreturn open('l').read()"),
    f("two dots", "walk up from the folder", "return open('../' * 30 + '$SECRET'.lstrip('/')).read()"),
    f("delete", "delete a file of the user's", "os.remove('$SECRET')"),
    f("rename", "rename the folder of others", "os.rename('$DROP', '$DROP-2')"),
    f("chmod", "open a file of the user's to all", "os.chmod('$SECRET', 0o777)\nreturn open('$SECRET').read()"),
    f("chroot", "break out of a root by a second one", """
os.mkdir('d')
held = os.open('.', os.O_RDONLY)
os.chroot('d')
os.fchdir(held)
for _ in range(50):
    os.chdir('..')
os.chroot('.')
return 'BREACH' + str(os.listdir('/'))"""),
    f("device", "make the disk's device", "import stat\nos.mknod('d', 0o600 | stat.S_IFBLK, os.makedev(254, 0))\nreturn 'BREACH'"),
    f("open by handle", "reach a file without a path", CTYPES + "handle = ctypes.create_string_buffer(b'\\x08\\0\\0\\0\\x01\\0\\0\\0\\x02\\0\\0\\0\\0\\0\\0\\0')\nfd = libc.open_by_handle_at(os.open('.', 0), handle, 0)\nreturn 'BREACH' if fd >= 0 else ''"),
]  # fmt: skip

OTHERS = [
    f("tcp", "connect to a server", "import socket\nsocket.create_connection(('127.0.0.1', $PORT), 2)"),
    f("udp", "send a datagram", "import socket\nsocket.socket(2, 2).sendto(b'x', ('127.0.0.1', $UDP))"),
    f("url", "fetch a page", "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:$PORT', timeout=1)"),
    f("abstract socket", "reach a local service", "import socket\ns = socket.socket(socket.AF_UNIX)\ns.connect('\\0$ABSTRACT')"),
    f("raw socket", "read the network's packets", "import socket\nsocket.socket(socket.AF_PACKET, socket.SOCK_RAW)\nreturn 'BREACH'"),
    f("listen", "open a server", """
import socket
s = socket.socket()
s.bind(('0.0.0.0', 0))
s.listen()
s2 = socket.create_connection(s.getsockname(), 1)
return 'BREACH' if [n for _, n in socket.if_nameindex()] != ['lo'] else ''"""),
    f("kill the parent", "end the grader", "os.kill($PARENT, 9)\nreturn 'BREACH'"),
    f("kill the supervisor", "end the process above", "parent = os.getppid()\nos.kill(parent, 9) if parent > 1 else None\nreturn 'BREACH' if parent > 1 else ''"),
    f("kill a bystander", "end a process of the user's", "os.kill($BYSTANDER, 9)\nreturn 'BREACH'"),
    f("stop the parent", "halt the grader", "import signal\nos.kill($PARENT, signal.SIGSTOP)\nreturn 'BREACH'"),
    f("ptrace the parent", "control the grader", CTYPES + "return 'BREACH' if libc.ptrace(16, $PARENT, 0, 0) == 0 else ''"),
    f("ptrace the supervisor", "control the process above", CTYPES + "return 'BREACH' if os.getppid() > 1 and libc.ptrace(16, os.getppid(), 0, 0) == 0 else ''"),
    f("memory of another", "read by process_vm_readv", CTYPES + """
class Part(ctypes.Structure):
    _fields_ = [('base', ctypes.c_void_p), ('length', ctypes.c_size_t)]
mine = ctypes.create_string_buffer(8)
here, there = Part(ctypes.addressof(mine), 8), Part(0x400000, 8)
return 'BREACH' if libc.process_vm_readv($PARENT, ctypes.byref(here), 1, ctypes.byref(there), 1, 0) > 0 else ''"""),
    f("priority", "slow the parent down", "os.setpriority(os.PRIO_PROCESS, $PARENT, 19)\nreturn 'BREACH'"),
    f("become root", "take the user back", "os.setuid(0)\nreturn 'BREACH' if os.getuid() == 0 and open('/root/.bashrc') else ''"),
    f("setuid program", "run a program that makes one root", "import subprocess\nreturn subprocess.run(['su', '-c', 'echo BRE''ACH'], capture_output=True, text=True, input='').stdout"),
    f("ctypes system", "run a shell by the C library", CTYPES + "libc.system(b'cat $SECRET /etc/shadow > $DROP/x')"),
    f("ctypes memory", "write to address 0", "import ctypes\nctypes.memset(0, 1, 100)"),
    f("new namespaces", "get capabilities by a user namespace", CTYPES + "return 'BREACH' if libc.unshare(0x10000000 | 0x20000) == 0 and libc.mount(b'none', b'/tmp', b'tmpfs', 0, b'') == 0 else ''"),
    f("mount", "put a file system over another", CTYPES + "return 'BREACH' if libc.mount(b'none', b'/tmp', b'tmpfs', 0, b'') == 0 else ''"),
    f("raise the limits", "take the limits off", "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))\nresource.setrlimit(resource.RLIMIT_CPU, (-1, -1))\nreturn 'BREACH'"),
    f("write to the terminal", "type into the user's terminal", "import fcntl, termios\nfcntl.ioctl(os.open('/dev/tty', os.O_RDWR), termios.TIOCSTI, b'x')\nreturn 'BREACH'"),
    f("set the clock", "change the time", "import time\ntime.clock_settime(time.CLOCK_REALTIME, time.time())\nreturn 'BREACH'"),
    f("host name", "change the machine's name", "import socket\nsocket.sethostname(socket.gethostname())\nreturn 'BREACH' if os.path.isdir('/proc/$PARENT') else ''"),
]  # fmt: skip

RESOURCES = [
    f("endless loop", "never end", "while True: pass"),
    f("sleep", "never end, at no cost", "import time\ntime.sleep(10_000)"),
    f("regular expression", "hang inside one call", "import re\nre.match('(a+)+$', 'a' * 60 + '!')"),
    f("huge power", "hang inside one call", "return len(str(9 ** 9 ** 9))"),
    f("handlers", "pass over signals that end it", "import signal\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n    except (OSError, ValueError): pass\nwhile True: pass"),
    f("caught errors", "go on whatever is raised", "while True:\n    try:\n        while True: pass\n    except BaseException: pass"),
    f("endless output", "write for ever to its output", "while True: os.write(1, b'x' * 65536)"),
    f("endless results", "write for ever to every descriptor", "while True:\n    for n in range(64):\n        try: os.write(n, b'x' * 65536)\n        except OSError: pass"),
    f("one huge result", "return what fills the parent's memory", "return 'x' * 50_000_000"),
    f("large file", "fill the disk by a file", "with open('big', 'wb') as file:\n    for _ in range(64): file.write(b'x' * (1 << 20))\nreturn 'BREACH'"),
    f("many files", "fill the disk by many", "import time\nfor n in range(800):\n    open(f'big-{n}', 'wb').write(b'x' * 1_000_000)\n    time.sleep(0.005)\nreturn 'BREACH'"),
    f("sparse file", "claim a huge file", "os.truncate(os.open('s', os.O_CREAT | os.O_RDWR), 1 << 40)\nreturn 'BREACH'"),
    f("deep folders", "make a tree that cannot be deleted", "for _ in range(600):\n    os.mkdir('d' * 100)\n    os.chdir('d' * 100)"),
    f("locked folder", "make a folder that cannot be deleted", "os.makedirs('a/b')\nopen('a/b/c', 'w').close()\nos.chmod('a/b', 0)\nos.chmod('a', 0)\nos.chmod('.', 0)"),
    f("many descriptors", "use up the files of the machine", "held = [os.open('.', 0) for _ in range(1000)]\nreturn 'BREACH'"),
    f("zip bomb", "unpack what is huge", "import zlib\nsmall = zlib.compress(b'0' * (64 << 20), 9)\nreturn 'BREACH' * (sum(len(x) for x in [zlib.decompress(small) for _ in range(64)]) > 0)"),
    f("exponential text", "double a text", "s = 'x'\nwhile True: s += s"),
    f("recursion", "overflow the stack", "sys.setrecursionlimit(10 ** 9)\ndef g(n): return g(n + 1) + 1\nreturn g(0)"),
    f("deep result", "return brackets without end", "v = []\nfor _ in range(900): v = [v]\nreturn v"),
    f("threads", "start threads without end", "import threading, time\nwhile True:\n    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()"),
    f("daemon", "leave a process behind", """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        import time
        time.sleep(30)
        os._exit(0)
    os._exit(0)
return 'x'"""),
    f("daemon that ignores signals", "leave a process behind", """
import signal, time
for n in (1, 2, 13, 14, 15):
    signal.signal(n, signal.SIG_IGN)
for _ in range(3):
    if os.fork() == 0:
        os.setpgid(0, 0)
        while True: time.sleep(1)
return 'x'"""),
    f("shared memory", "hold memory that is not its own", CTYPES + """
held = 0
for _ in range(200):
    fd = os.memfd_create('x')
    os.write(fd, b'x' * (1 << 20))
    os.close(os.dup(fd))
    held += 1
return 'BREACH' if held > 64 else ''"""),
    f("System V memory", "leave memory behind", CTYPES + """
found = libc.shmget(0, 1 << 20, 0o1600)
if found >= 0:
    libc.shmctl(found, 0, None)
return 'BREACH' if found >= 0 and os.path.isdir('/proc/$PARENT') else ''"""),
    f("a count of forks", "start forty processes", """
import time
count = 0
for _ in range(40):
    try:
        if os.fork() == 0:
            time.sleep(1)
            os._exit(0)
        count += 1
    except OSError:
        pass
return f'BREACH {count}' if count > 8 else ''"""),
    f("memory bomb", "hold all memory", "held = []\nwhile True: held.append(bytearray(16 << 20))", bomb=True),
    f("memory of many", "hold all memory by many processes", """
for _ in range(20):
    try: os.fork()
    except OSError: pass
held = []
while True:
    try: held.append(bytearray(16 << 20))
    except MemoryError: pass""", bomb=True),
    f("fork bomb", "start processes without end", "while True:\n    try: os.fork()\n    except OSError: pass", bomb=True),
    f("fork and flee", "start processes that start others and end", """
while True:
    try:
        if os.fork():
            os._exit(0)
        os.setsid()
    except OSError: pass""", bomb=True),
    f("kill everything", "end all processes", "import signal\nos.kill(-1, signal.SIGKILL)", bomb=True),
    f("kill the group", "end the processes of its group", "os.killpg(0, 9)", bomb=True),
]  # fmt: skip

GRADER = [
    f("exit early", "end with success before a test", "os._exit(0)"),
    f("polite exit", "end with success before a test", "sys.exit(0)"),
    Escape("exit on import", "python", "end with success before all", "import os\nos._exit(0)\ndef f(x): return x"),
    Escape("exit at the end", "script", "end with success, without an answer", "import sys\nsys.exit(0)"),
    Escape("nothing", "script", "print nothing", "pass"),
    f("forged results", "write results itself, and more of them", "for _ in range(2): os.write(3, b'{\"value\": true}\\n')\nos._exit(0)"),
    f("results of every kind", "write verdicts instead of results", """
for n in range(10):
    for line in (b'{"passed": true, "value": 1.0, "status": "ok"}\\n', b'y', b'{"missing": "f"}\\n', b'PASSED\\n'):
        try: os.write(n, line)
        except OSError: pass
os._exit(0)"""),
    f("an object equal to all", "return what says that it is equal", "class A(int):\n    __eq__ = lambda s, o: True\n    __hash__ = None\nreturn A(0)"),
    f("a list equal to all", "return what says that it is equal", "class A(list):\n    __eq__ = lambda s, o: True\nreturn A()"),
    f("not a number", "return what is equal to nothing, or all", "return float('nan')"),
    f("itself", "return a list that holds itself", "v = []\nv.append(v)\nreturn v"),
    f("pickle", "return what runs when it is read", "import pickle\nclass A:\n    def __reduce__(self): return os.system, ('touch $DROP/x',)\nreturn pickle.dumps(A()).decode('latin-1')"),
    f("patched equality", "make the grader's comparison say yes", """
for name, module in list(sys.modules.items()):
    for key, value in list(vars(module).items()):
        if key in ('equal', 'results', 'same_rows', 'perform', '_send', '_told'):
            setattr(module, key, lambda *a, **k: True)
import builtins
builtins.all = builtins.any = lambda *a: True
return True"""),
    f("patched json", "make the writer write something else", "import json\njson.dumps = lambda *a, **k: '{\"value\": true, \"passed\": true}'\nreturn 1"),
    f("the caller's frames", "find what is expected in the callers", """
frame, found = sys._getframe(), []
while frame:
    found.append(repr(frame.f_locals)[:20_000])
    frame = frame.f_back
return found"""),
    f("all objects", "find what is expected in memory", """
import gc
return repr([held for held in gc.get_objects() if isinstance(held, (dict, list, tuple)) and len(held) < 20
             and any(type(v) is int and v > 1 << 40 for v in (held.values() if isinstance(held, dict) else held))])[:100_000]"""),
    f("the job", "find what is expected in the job", """
import gc
return repr([held for held in gc.get_objects() if isinstance(held, dict) and 'inputs' in held and 'code' in held])[:100_000]"""),
    Escape("read ahead", "script", "find what is expected behind its input", "import os\nprint(os.read(0, 1 << 20).decode()[2:])"),
    f("an exception equal to all", "raise what breaks the report", "class E(BaseException):\n    def __str__(self): os._exit(0)\nraise E"),
    f("a half line", "leave a line unended", "os.write(3, b'{\"value\": ')\nos._exit(0)"),
    f("huge number", "return a number of a million digits", "return 10 ** 1_000_000"),
]  # fmt: skip


def q(name: str, tries: str, code: str) -> Escape:
    return Escape(name, "sql", tries, code)


QUERIES = [
    q("attach", "open another file", "ATTACH DATABASE '$DROP/x' AS x"),
    q("attach in a query", "open another file", "SELECT * FROM t; ATTACH DATABASE '$DROP/x' AS x"),
    q("vacuum into", "write a file", "VACUUM INTO '$DROP/x'"),
    q("load extension", "run a library's code", "SELECT load_extension('/usr/lib/x86_64-linux-gnu/libc.so.6')"),
    q("read a file", "use the shell's functions", "SELECT readfile('$SECRET')"),
    q("write a file", "use the shell's functions", "SELECT writefile('$DROP/x', 'x')"),
    q("edit", "start a program", "SELECT edit('x', 'touch $DROP/x')"),
    q("drop", "change the database", "DROP TABLE t"),
    q("insert", "change the database", "INSERT INTO t VALUES (3, 'z')"),
    q("writable schema", "change the schema", "PRAGMA writable_schema = ON"),
    q("pragma", "take the limits off", "PRAGMA hard_heap_limit = 0"),
    q("endless recursion", "never end", "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT count(*) FROM r"),
    q("endless rows", "fill the parent's memory", "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT n FROM r"),
    q("cross joins", "never end", "SELECT count(*) FROM " + ", ".join(f"t AS t{i}" for i in range(40))),
    q("huge blob", "hold all memory", "SELECT zeroblob(2000000000)"),
    q("huge text", "hold all memory", "SELECT printf('%.*c', 1000000000, 'x')"),
    q("doubling", "hold all memory", "WITH RECURSIVE r(s) AS (SELECT 'x' UNION ALL SELECT s || s FROM r) SELECT max(length(s)) FROM r"),
    q("tokenizer", "call an address", "SELECT fts3_tokenizer('simple', x'4141414141414141')"),
    q("deep expression", "overflow the stack", "SELECT " + "(" * 5000 + "1" + ")" * 5000),
    q("slow pattern", "hang inside one call", "SELECT 'x' LIKE '" + "%a" * 5000 + "'"),
    q("temporary table", "write", "CREATE TEMP TABLE x AS SELECT * FROM t"),
    q("transaction", "lock the database", "BEGIN EXCLUSIVE"),
    q("all rows", "hedge by every row", "SELECT a FROM t UNION SELECT a + 1 FROM t UNION SELECT sum(a) FROM t"),
    q("no rows", "be equal to nothing", "SELECT 1 WHERE 0"),
]  # fmt: skip

ESCAPES = [*FILES, *OTHERS, *RESOURCES, *GRADER, *QUERIES]
