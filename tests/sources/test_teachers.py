"""Teachers: procedural, a model, and a server of our own on loopback; `test_serving.py` asks a real one."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from trained import trained_folder, trained_policy
from whet.errors import WhetError
from whet.sampling.sampler import SamplingSettings
from whet.sources import ModelTeacher, Procedural, Question, get_teacher, user
from whet.sources.server import Server
from whet.tasks import get_task

SHORT = SamplingSettings(6, temperature=0.7)


def question(text: str = "parity 12", seed: int = 0) -> Question:
    return Question(user(text), get_task("parity").problem("train", 0), seed=seed)


class Running:
    """An HTTP server on loopback. `answer(number of the request, body)` is (status, reply) or the reply."""

    def __init__(self, answer: Callable[[int, dict[str, Any]], Any]) -> None:
        self.seen: list[dict[str, Any]] = []
        self.most = self.now = 0
        outer, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: Any) -> None: ...

            def do_GET(self) -> None:
                self.send({"data": [{"id": "tiny"}]} if self.path == "/v1/models" else {}, 200)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.seen.append({"path": self.path, "key": self.headers["Authorization"], **body})
                    number = len(outer.seen)
                    outer.now += 1
                    outer.most = max(outer.most, outer.now)
                found = answer(number, body)
                with lock:
                    outer.now -= 1
                status, reply = found if isinstance(found, tuple) else (200, found)
                self.send(reply, status)

            def send(self, reply: Any, status: int) -> None:
                data = (reply if isinstance(reply, str) else json.dumps(reply)).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"


@pytest.fixture
def serve() -> Iterator[Callable[..., Running]]:
    running: list[Running] = []

    def start(answer: Callable[[int, dict[str, Any]], Any]) -> Running:
        running.append(Running(answer))
        return running[-1]

    yield start
    for one in running:
        one.server.shutdown()
        one.server.server_close()


def says(text: str) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": text}}]}


def echo(number: int, body: dict[str, Any]) -> dict[str, Any]:
    return says(f"{body['messages'][-1]['content']} by {body['model']}")


def test_procedural_and_spec() -> None:
    teacher = get_teacher("procedural", lambda q: q.messages[-1]["content"].upper())
    assert isinstance(teacher, Procedural) and teacher.reply([question("ab"), question("c")]) == ["AB", "C"]
    assert isinstance(get_teacher("model:some/thing"), ModelTeacher)
    server = get_teacher("http://127.0.0.1:9/v1#big")
    assert isinstance(server, Server) and (server.url, server.model) == ("http://127.0.0.1:9/v1", "big")
    for spec in ("procedural", "gpt", "model:"):
        with pytest.raises(WhetError, match=f"teacher '{spec}' is not known: use model:NAME or http"):
            get_teacher(spec)


def test_a_model_replies_through_its_own_format_and_by_seed() -> None:
    named, given = ModelTeacher(trained_folder(), SHORT), ModelTeacher(trained_policy(), SHORT)
    asked = [question(seed=s) for s in (1, 2, 3)]
    replies = named.reply(asked)
    assert replies == given.reply(asked) == named.reply(asked)
    assert any(replies) and all("<user>" not in r and "<eos>" not in r for r in replies)


def test_a_server_is_asked_once_for_each_request(serve: Callable[..., Running], tmp_path: Path,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setenv("OPENAI_API_KEY", "sesame")
    running = serve(echo)
    teacher = Server(f"{running.url}/", settings=SHORT, cache=tmp_path)
    asked = [question("one", 1), question("two", 1), question("one", 2)]
    replies = ["one by tiny", "two by tiny", "one by tiny"]
    assert teacher.reply(asked) == replies
    first = min(running.seen, key=lambda seen: (seen["messages"][0]["content"], seen["seed"]))
    assert first == {"path": "/v1/chat/completions", "key": "Bearer sesame", "model": "tiny", "seed": 1, "max_tokens": 6,
                     "messages": [{"role": "user", "content": "one"}], "temperature": 0.7, "top_p": 1.0}  # fmt: skip
    assert Server(running.url, "tiny", SHORT, cache=tmp_path).reply(asked) == replies
    assert len(running.seen) == 3
    other = Server(running.url, "tiny", SamplingSettings(7, temperature=0.7), cache=tmp_path)
    assert other.reply(asked[:1]) == replies[:1] and len(running.seen) == 4
    assert len(list(tmp_path.iterdir())) == 4  # no draft is left behind


def test_requests_are_under_way_together_and_replies_stay_in_order(
    serve: Callable[..., Running], tmp_path: Path
) -> None:
    barrier = threading.Barrier(4, timeout=20)

    def together(number: int, body: dict[str, Any]) -> Any:
        barrier.wait()
        return echo(number, body)

    running = serve(together)
    teacher = Server(running.url, "m", SHORT, concurrency=4, cache=tmp_path)
    assert teacher.reply([question(str(i)) for i in range(8)]) == [f"{i} by m" for i in range(8)]
    assert running.most == 4


def test_what_replies_take_is_counted_where_the_server_says_it(
    serve: Callable[..., Running], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    teacher = Server(serve(lambda n, body: {**echo(n, body), "usage": told}).url, "m", SHORT, cache=tmp_path)
    with caplog.at_level("INFO", "whet"):
        teacher.reply([question("a"), question("b"), question("c")])
    assert teacher.usage == {"replies": 3, "prompt_tokens": 15, "completion_tokens": 6}
    assert "#m': 3 replies, 15 prompt_tokens, 6 completion_tokens" in caplog.text
    teacher.reply([question("a"), question("d")])  # one is on disk, and takes nothing
    assert teacher.usage == {"replies": 4, "prompt_tokens": 20, "completion_tokens": 8}
    silent = Server(serve(echo).url, "m", SHORT, cache=tmp_path)
    silent.reply([question("a")])
    assert silent.usage == {"replies": 1}


def test_a_busy_server_is_asked_again_until_the_deadline(serve: Callable[..., Running], tmp_path: Path) -> None:
    busy = serve(lambda number, body: (503, "busy") if number < 3 else echo(number, body))
    assert Server(busy.url, "m", SHORT, cache=tmp_path).reply([question("a")]) == ["a by m"]
    assert len(busy.seen) == 3
    never = serve(lambda number, body: (503, "overloaded"))
    with pytest.raises(WhetError, match=r"answered 503 .*overloaded"):
        Server(never.url, "m", SHORT, deadline=0.6, cache=tmp_path).reply([question("a")])


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((400, "max_tokens is too large"), "answered 400 .*max_tokens is too large"),
        ("<html>", "did not answer in JSON"),
        ({"error": "no"}, "not a chat completion"),
    ],
)
def test_what_will_not_get_better_is_an_error_at_once(
    serve: Callable[..., Running], tmp_path: Path, answer: Any, message: str
) -> None:
    running = serve(lambda number, body: answer)
    with pytest.raises(WhetError, match=message):
        Server(running.url, "m", SHORT, cache=tmp_path).reply([question()])
    assert len(running.seen) == 1 and not list(tmp_path.iterdir())


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_a_missing_server_is_an_error(tmp_path: Path) -> None:
    teacher = Server(f"http://127.0.0.1:{free_port()}/v1", "m", SHORT, deadline=0.3, cache=tmp_path)
    with pytest.raises(WhetError, match=r"cannot be reached .*refused.*is the server running"):
        teacher.reply([question()])
