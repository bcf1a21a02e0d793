"""Teachers: procedural, a model, and a server of our own on loopback; `test_serving.py` asks a real one."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from trained import trained_folder, trained_policy
from whet import launch
from whet.endpoint import _seconds
from whet.errors import WhetError
from whet.models.meter import Meter
from whet.sampling.sampler import SamplingSettings
from whet.sources import ModelTeacher, Procedural, Question, get_teacher, user
from whet.sources.server import Server
from whet.tasks import get_task
from whet.terminal.tables import compute_lines

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
                status, reply, *headers = found if isinstance(found, tuple) else (200, found)
                with suppress(ConnectionError):  # of a client that has given up
                    self.send(reply, status, *headers)

            def send(self, reply: Any, status: int, headers: Mapping[str, str] | None = None) -> None:
                data = (reply if isinstance(reply, str) else json.dumps(reply)).encode()
                said = {"Content-Length": str(len(data)), **(headers or {})}
                pause = float(said.pop("Dribble", 0.0))  # seconds before each byte
                self.send_response(status)
                for name, value in said.items():
                    self.send_header(name, value)
                self.end_headers()
                for piece in [bytes([byte]) for byte in data] if pause else [data]:
                    time.sleep(pause)
                    self.wfile.write(piece)

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
        ((404, "The model `m` does not exist."), "answered 404 .*The model `m` does not exist"),
        ("<html>moved</html>", "did not answer in JSON .*moved"),
        ("nonsense", "did not answer in JSON"),
        ("", "not a chat completion: None"),
        ({"error": "no"}, "not a chat completion"),
        ([1, 2], "not a chat completion"),
        ({"choices": []}, "not a chat completion"),
        ({"choices": [{"message": {"content": ["a", "b"]}}]}, "not a chat completion"),
    ],
)
def test_what_will_not_get_better_is_an_error_at_once(
    serve: Callable[..., Running], tmp_path: Path, answer: Any, message: str
) -> None:
    running = serve(lambda number, body: answer)
    with pytest.raises(WhetError, match=message):
        Server(running.url, "m", SHORT, cache=tmp_path).reply([question()])
    assert len(running.seen) == 1 and not list(tmp_path.iterdir())


def test_a_server_that_says_when_to_come_back_is_believed(serve: Callable[..., Running], tmp_path: Path) -> None:
    began = time.monotonic()
    busy = serve(lambda number, body: (429, "slow down", {"Retry-After": "1"}) if number < 2 else echo(number, body))
    assert Server(busy.url, "m", SHORT, cache=tmp_path).reply([question("a")]) == ["a by m"]
    assert time.monotonic() - began >= 1 and len(busy.seen) == 2
    tomorrow = serve(lambda number, body: (429, "quota", {"Retry-After": "86400"}))
    with pytest.raises(WhetError, match=r"answered 429 .*quota, and asks to wait 86400 s"):
        Server(tomorrow.url, "m", SHORT, cache=tmp_path).reply([question("b")])
    assert len(tomorrow.seen) == 1  # it is no use to ask before


def test_when_to_come_back_may_be_a_date() -> None:
    assert _seconds("2.5") == 2.5 and _seconds("") == _seconds("soon") == 0 == _seconds("-3")
    then = datetime.now(UTC) + timedelta(seconds=100)
    assert 90 < _seconds(format_datetime(then, usegmt=True)) <= 100
    assert _seconds("Wed, 21 Oct 2015 07:28:00 GMT") == 0


def test_a_server_that_hangs_or_dribbles_is_given_up(serve: Callable[..., Running], tmp_path: Path) -> None:
    """The clock is of the whole reply, not of its next byte."""
    quiet = threading.Event()
    hangs = serve(lambda number, body: quiet.wait(20) and "")
    with pytest.raises(WhetError, match=r"did not answer within 0\.3 s; is the server running"):
        Server(hangs.url, "m", SHORT, deadline=0.1, timeout=0.3, cache=tmp_path).reply([question("a")])
    quiet.set()
    dribbles = serve(lambda number, body: (200, "x" * 40, {"Dribble": "0.1"}))
    began = time.monotonic()
    with pytest.raises(WhetError, match=r"did not answer within 0\.5 s"):
        Server(dribbles.url, "m", SHORT, deadline=0.1, timeout=0.5, cache=tmp_path).reply([question("a")])
    assert time.monotonic() - began < 4


def test_a_reply_that_breaks_off_is_asked_for_again(serve: Callable[..., Running], tmp_path: Path) -> None:
    whole = json.dumps(says("whole"))
    once = serve(lambda number, body: (200, whole, {"Content-Length": "9999"} if number == 1 else {}))
    assert Server(once.url, "m", SHORT, cache=tmp_path).reply([question("a")]) == ["whole"] and len(once.seen) == 2
    always = serve(lambda number, body: (200, whole, {"Content-Length": "9999"}))
    with pytest.raises(WhetError, match=r"broke off its reply \(peer closed connection"):
        Server(always.url, "m", SHORT, deadline=0.3, cache=tmp_path).reply([question("a")])
    assert len(list(tmp_path.iterdir())) == 1  # nothing half-read is kept


def test_what_came_before_a_failure_is_kept(serve: Callable[..., Running], tmp_path: Path) -> None:
    running = serve(lambda number, body: echo(number, body) if number < 3 else (400, "enough"))
    teacher = Server(running.url, "m", SHORT, concurrency=1, cache=tmp_path)
    with pytest.raises(WhetError, match="enough"):
        teacher.reply([question(text) for text in "abcd"])
    assert len(running.seen) == 3 and len(list(tmp_path.iterdir())) == 2 and teacher.usage["replies"] == 2
    assert teacher.reply([question(text) for text in "ab"]) == ["a by m", "b by m"] and len(running.seen) == 3


def test_a_notebooks_own_loop_is_not_in_the_way(serve: Callable[..., Running], tmp_path: Path) -> None:
    teacher = Server(serve(echo).url, "m", SHORT, cache=tmp_path)

    async def cell() -> list[str]:
        return teacher.reply([question("a")])

    assert asyncio.run(cell()) == ["a by m"]


def test_without_the_client_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(WhetError, match=r"OpenAI's client: pip install 'whet\[serve\]'"):
        Server("http://127.0.0.1:9/v1", "m", SHORT, cache=tmp_path).reply([question("a")])


def test_a_run_counts_what_its_teacher_took(
    serve: Callable[..., Running], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """cft with a teacher on a server, end to end; asked again, the replies are on disk and take nothing."""
    monkeypatch.setenv("WHET_HOME", str(tmp_path))
    told = {"prompt_tokens": 5, "completion_tokens": 2}
    running = serve(lambda n, body: {**says("The last digit decides.\nConclusion: right"), "usage": told})
    asked: dict[str, Any] = {"teacher": f"{running.url}#m", "source": "corruptor", "limit": 3, "wordings": 2, "rows": 4, "steps": 1,
                             "model": trained_folder(), "task": "parity", "test_n": 2, "k": 0, "eval_every": 0, "others": [],
                             "threads": 1}  # fmt: skip
    compute = launch.run("cft", **asked).summary["compute"]
    replies = len(running.seen)
    assert replies > 0 and [compute[f"teacher_{what}"] for what in ("replies", "prompt_tokens", "completion_tokens")] == [
        replies, 5 * replies, 2 * replies]  # fmt: skip
    assert any(f"{replies} new replies" in line for line in compute_lines(compute))
    again = launch.run("cft", **asked).summary["compute"]
    assert len(running.seen) == replies and again["teacher_replies"] == 0 and len(compute_lines(again)) == 2


def test_a_models_tokens_are_counted_too() -> None:
    policy, meter = trained_policy(), Meter()
    teacher = ModelTeacher(policy, SHORT)
    teacher.ask([question("parity 12"), question("parity 3")], meter)
    assert meter.teacher_replies == 2 and meter.teacher_completion_tokens == policy.meter.sampled_tokens > 0
    assert meter.teacher_prompt_tokens == teacher.usage["prompt_tokens"] > 0 == meter.sampled_tokens


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_a_missing_server_is_an_error(tmp_path: Path) -> None:
    teacher = Server(f"http://127.0.0.1:{free_port()}/v1", "m", SHORT, deadline=0.3, cache=tmp_path)
    with pytest.raises(WhetError, match=r"cannot be reached \(All connection attempts failed\); is the server running"):
        teacher.reply([question()])
