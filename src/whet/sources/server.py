"""A teacher behind HTTP: any server of OpenAI's chat-completions protocol.

Replies are kept on disk by a hash of the request, so that what was asked once costs nothing again and an interrupted run
goes on where it stopped. How servers are asked, and what becomes of those that fail, is in `whet.endpoint`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from whet.endpoint import SAID, Call, Endpoint
from whet.ranks import Ranks
from whet.runs import index
from whet.sampling.sampler import SamplingSettings
from whet.sources.teachers import Question, Teacher

log = logging.getLogger("whet")


class Server(Teacher):
    """Asks a server.

    Args:
        url: up to the version, as in `http://127.0.0.1:8000/v1`.
        model: the name that the server knows it by; "" asks the server, which must then have one only.
        settings: of the replies.
        concurrency, deadline, timeout: of the requests; see `Endpoint`.
        cache: the folder of replies; by default `$WHET_HOME/teachers`.

    `usage` counts the replies that were asked for, and where the server says it their tokens; what was read from the disk took
    nothing.
    """

    def __init__(
        self, url: str, model: str = "", settings: SamplingSettings | None = None, concurrency: int = 8,
        deadline: float = 120.0, timeout: float = 600.0, cache: Path | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.endpoint = Endpoint("teacher", url, concurrency=concurrency, deadline=deadline, timeout=timeout)
        self.url, self.model = self.endpoint.url, model
        self.settings = settings or SamplingSettings(1024, temperature=0.3, top_p=0.95)
        self.cache = cache or index.place().parent / "teachers"

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"{self.url}#{self.model}"

    def reply(self, questions: Sequence[Question]) -> list[str]:
        self.model = self.model or self.endpoint.only_model()
        self.endpoint.name = self.name
        replies = Ranks.here().map(self._replies, questions)  # ranks share the questions: each is asked once
        log.info(
            "teacher '%s': %s", self.name, ", ".join(f"{n} {what}" for what, n in self.usage.items()) or "no new reply"
        )
        return replies

    def _replies(self, questions: Sequence[Question]) -> list[str]:
        bodies = [self._body(question) for question in questions]
        files = [self._file(body) for body in bodies]
        new = {file: body for file, body in zip(files, bodies, strict=True) if not file.exists()}  # equal ones once
        places = list(new)
        self.endpoint.ask(
            [Call("/chat/completions", body) for body in new.values()],
            lambda place, found: self._keep(places[place], new[places[place]], found),
        )
        return [json.loads(file.read_text())["reply"] for file in files]

    def _body(self, question: Question) -> dict[str, Any]:
        return {
            "model": self.model,
            "messages": [dict(m) for m in question.messages],
            "temperature": self.settings.temperature,
            "top_p": self.settings.top_p,
            "max_tokens": self.settings.max_new_tokens,
            "seed": question.seed % (1 << 31),
        }

    def _file(self, body: Mapping[str, Any]) -> Path:
        asked = json.dumps({"url": self.url, **body}, sort_keys=True)
        return self.cache / f"{hashlib.blake2b(asked.encode(), digest_size=16).hexdigest()}.json"

    def _keep(self, file: Path, body: Mapping[str, Any], found: Any) -> None:
        try:
            text = found["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            text = ...  # no text
        if not isinstance(text, str | None):
            raise self.endpoint.error(f"gave what is not a chat completion: {str(found)[:SAID]}")
        told = found.get("usage")
        self.usage["replies"] += 1
        for what in ("prompt_tokens", "completion_tokens"):
            if isinstance(told, Mapping) and isinstance(told.get(what), int):
                self.usage[what] += told[what]
        self.cache.mkdir(parents=True, exist_ok=True)
        draft = file.with_name(f"{file.name}.{os.getpid()}")
        draft.write_text(json.dumps({"request": {"url": self.url, **body}, "reply": text or ""}))
        draft.replace(file)  # so that a file with the final name is whole
