"""The server teacher against a real server: `transformers serve` on loopback, with a tiny model.

What our teacher is told is held against OpenAI's own client and against the model itself. It takes minutes on a busy machine:
`make slow`. The server's packages come with `pip install 'whet[serve]'`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from trained import trained_folder
from whet import launch
from whet.errors import WhetError
from whet.sampling.sampler import SamplingSettings
from whet.sources import ModelTeacher, Question, user
from whet.sources.server import Server
from whet.tasks import get_task

GREEDY = SamplingSettings(6, temperature=0.0)
TEXTS = ("parity 12", "parity 345", "one two three")
PATIENCE = 300  # seconds until the server must answer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(importlib.util.find_spec(name) for name in ("fastapi", "uvicorn", "openai")),
        reason="transformers serve needs fastapi, uvicorn and openai: pip install 'whet[serve]'",
    ),
]


def question(text: str, seed: int = 0) -> Question:
    return Question(user(text), get_task("parity").problem("train", 0), seed=seed)


@dataclass
class Running:
    url: str
    folder: str
    process: subprocess.Popen[bytes]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """`transformers serve` with a tiny chat model; it is ended with the module, by the test that wants it gone or here."""
    folder = trained_folder(
        "llama", "chat"
    )  # transformers cuts replies of some other architectures by their usual templates
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log"
    tool = Path(sys.executable).with_name("transformers")
    command = [str(tool), "serve", folder, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with log.open("wb") as out:
        process = subprocess.Popen(command, env={**os.environ, "HF_HUB_OFFLINE": "1"}, stdout=out, stderr=out)
    try:
        url, began = f"http://127.0.0.1:{port}", time.monotonic()
        while True:
            try:
                with urllib.request.urlopen(f"{url}/health", timeout=5):
                    break
            except OSError:
                assert process.poll() is None and time.monotonic() - began < PATIENCE, log.read_text()
                time.sleep(0.5)
        yield Running(f"{url}/v1", folder, process)
    finally:
        process.terminate()
        process.wait(60)


def official(running: Running) -> Any:
    import openai

    return openai.OpenAI(base_url=running.url, api_key="none", max_retries=0, timeout=120)


def test_replies_and_usage_are_those_of_the_official_client_and_of_the_model(running: Running, tmp_path: Path) -> None:
    teacher = Server(running.url, running.folder, GREEDY, concurrency=2, cache=tmp_path)
    replies = teacher.reply([question(text) for text in TEXTS])
    found = [
        official(running).chat.completions.create(
            model=running.folder, messages=[{"role": "user", "content": text}], temperature=0.0, max_tokens=6
        )
        for text in TEXTS
    ]
    assert replies == [one.choices[0].message.content for one in found] and any(replies)
    assert [r.strip() for r in replies] == ModelTeacher(running.folder, GREEDY).reply([question(t) for t in TEXTS])
    sums = {what: sum(getattr(one.usage, what) for one in found) for what in ("prompt_tokens", "completion_tokens")}
    assert teacher.usage == {"replies": len(TEXTS), **sums} and min(sums.values()) > 0


def test_the_only_model_is_asked_for_by_name(running: Running, tmp_path: Path) -> None:
    named = Server(running.url, running.folder, GREEDY, cache=tmp_path / "a").reply([question(TEXTS[0])])
    teacher = Server(running.url, "", GREEDY, cache=tmp_path / "b")
    assert teacher.reply([question(TEXTS[0])]) == named
    assert teacher.model == official(running).models.list().data[0].id


def test_a_refusal_comes_through(running: Running, tmp_path: Path) -> None:
    import openai

    with pytest.raises(openai.BadRequestError) as refused:
        official(running).chat.completions.create(model="other", messages=[{"role": "user", "content": "a"}])
    assert "pinned" in refused.value.response.text
    teacher = Server(running.url, "other", GREEDY, cache=tmp_path)
    with pytest.raises(WhetError, match=r"#other' answered 400 .*pinned"):
        teacher.reply([question("a")])
    assert not list(tmp_path.iterdir()) and not teacher.usage
    with pytest.raises(WhetError, match="answered 404"):
        Server(running.url.removesuffix("/v1"), "m", GREEDY, cache=tmp_path).reply([question("a")])


def test_a_run_with_this_teacher_end_to_end(running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pinto learns to choose behind rationales that the server wrote; what it read and wrote is in the run's compute."""
    monkeypatch.setenv("WHET_HOME", str(tmp_path))
    asked: dict[str, Any] = {
        "rationales": f"{running.url}#{running.folder}", "task": "parity", "model": trained_folder(), "limit": 4, "steps": 2,
        "batch": 4, "test_n": 2, "k": 0, "eval_every": 0, "others": [], "threads": 1,
    }  # fmt: skip
    compute = launch.run("pinto", **asked).summary["compute"]
    kept = [json.loads(file.read_text()) for file in (tmp_path / "teachers").iterdir()]
    assert compute["teacher_replies"] == len(kept) > 0 and compute["optimizer_steps"] == 2
    assert compute["teacher_prompt_tokens"] > compute["teacher_replies"] and compute["teacher_completion_tokens"] > 0


def test_what_was_asked_is_kept_when_the_server_is_gone(running: Running, tmp_path: Path) -> None:
    """The last test of this file: it ends the server."""
    asked = [question(text, seed) for seed, text in enumerate(TEXTS)]
    replies = Server(running.url, running.folder, GREEDY, cache=tmp_path).reply(asked)
    running.process.terminate()
    running.process.wait(60)
    again = Server(running.url, running.folder, GREEDY, deadline=0.3, cache=tmp_path)
    assert again.reply(asked) == replies and not again.usage
    with pytest.raises(WhetError, match="cannot be reached"):
        again.reply([question("something new")])
