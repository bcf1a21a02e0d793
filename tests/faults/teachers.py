"""A teacher server that hangs, answers nonsense, is busy, fails or breaks off, on this machine.

What passes is lived through: the replies are those of a server that is well. What stays is an error of one line, in time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from whet.errors import WhetError
from whet.sources import Question
from whet.sources.server import Server

Handler = BaseHTTPRequestHandler
Fault = Callable[[Handler], None]
EVER = 10_000  # requests
HANG = 4.0  # seconds; the patience of these tests is a quarter of it
QUESTIONS = [Question(({"role": "user", "content": f"parity {n}"},), n) for n in range(6)]
WELL = [f"as to parity {n}" for n in range(6)]


def respond(handler: Handler, status: int, data: bytes, *headers: tuple[str, str], length: int | None = None) -> None:
    handler.send_response(status)
    for header in (*headers, ("Content-Length", str(len(data) if length is None else length))):
        handler.send_header(*header)
    handler.end_headers()
    handler.wfile.write(data)


def completion(text: Any) -> bytes:
    return json.dumps({"choices": [{"message": {"content": text}}]}).encode()


def hang(handler: Handler) -> None:
    time.sleep(HANG)


def trickle(handler: Handler) -> None:
    """A byte now and then: no single wait is long."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _ in range(int(HANG / 0.1)):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.1)


def breaks_off(handler: Handler) -> None:
    respond(handler, 200, completion("half")[:20], length=500)
    handler.close_connection = True


def shuts(handler: Handler) -> None:
    handler.connection.close()


def status(code: int, *headers: tuple[str, str]) -> Fault:
    return lambda handler: respond(handler, code, b"{}", *headers)


def says(data: bytes) -> Fault:
    return lambda handler: respond(handler, 200, data)


PASSING: dict[str, Fault] = {
    "hangs": hang, "trickles": trickle, "breaks off in its reply": breaks_off, "shuts the connection": shuts,
    "429": status(429), "429 with Retry-After": status(429, ("Retry-After", "1")), "500": status(500), "502": status(502),
    "503": status(503), "408": status(408),
}  # fmt: skip
STAYING: dict[str, Fault] = {
    **{f"{name}, for ever": fault for name, fault in PASSING.items() if name in ("hangs", "trickles", "breaks off in its reply", "429", "500")},
    "429, come back in a day": status(429, ("Retry-After", "86400")),
    "no JSON": says(b"<html>Welcome</html>"), "no text": says(b"\xff\xfe\x00\x80"), "endless nesting": says(b"[" * 100_000),
    "a list": says(b"[]"), "null": says(b"null"), "a number": says(b"3"), "no choices": says(b'{"choices": []}'),
    "no message": says(b'{"choices": [{}]}'), "content that is no text": says(completion([1, 2])), "401": status(401), "404": status(404),
    "nothing": says(b""),
}  # fmt: skip


@contextmanager
def serving(fault: Fault, times: int) -> Iterator[str]:
    """A server whose first so many requests meet a fault; its address."""
    left = iter(range(times))

    class Answers(Handler):
        def log_message(self, *_: Any) -> None: ...

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            try:
                if next(left, None) is not None:
                    fault(self)
                else:
                    respond(self, 200, completion(f"as to {body['messages'][-1]['content']}"))
            except OSError:  # the other side has given up
                pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None: ...

    server = Quiet(("127.0.0.1", 0), Answers)
    Thread(target=partial(server.serve_forever, 0.05), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


def attempt(name: str, fault: Fault, times: int, place: Path) -> dict[str, Any]:
    """Ask a server whose first `times` requests go wrong; what came of it."""
    began = time.monotonic()
    with serving(fault, times) as url:
        server = Server(
            url,
            "m",
            concurrency=3,
            deadline=30.0 if times < EVER else 1.5,
            timeout=HANG / 4,
            cache=place / f"{name}-{times}",
        )
        try:
            found = server.reply(QUESTIONS)
            ended, survived = (
                ("the same replies", times < EVER) if found == WELL else (f"other replies: {found}"[:300], False)
            )
        except WhetError as problem:
            one_line = url in str(problem) and "\n" not in str(problem)
            ended, survived = (str(problem).replace(url, "URL")[:160], one_line and times >= EVER)
        except Exception as problem:
            ended, survived = f"{type(problem).__name__}: {problem}"[:300], False
    return {
        "fault": name,
        "passes": times < EVER,
        "ended": ended,
        "seconds": round(time.monotonic() - began, 1),
        "survived": survived,
    }


def teachers(place: Path, done: int = 0) -> Iterator[dict[str, Any]]:
    cases = [
        *((name, fault, 4) for name, fault in PASSING.items()),
        *((name, fault, EVER) for name, fault in STAYING.items()),
    ]
    for case in cases[done:]:
        yield attempt(*case, place)
