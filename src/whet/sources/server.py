"""A teacher behind HTTP: any server of OpenAI's chat-completions protocol, by the standard library alone.

Replies are kept on disk by a hash of the request, so that what was asked once costs nothing again and an interrupted run
goes on where it stopped. A server that is busy or fails is asked again, ever more slowly, until a deadline; one that is not
there, or that refuses the request, is an error that says so.

The key, where the server wants one, is read from `OPENAI_API_KEY`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path
from typing import Any

from whet.errors import WhetError
from whet.ranks import Ranks
from whet.runs import index
from whet.sampling.sampler import SamplingSettings
from whet.sources.teachers import Question, Teacher

log = logging.getLogger("whet")

FIRST = 5.0
AGAIN = {408, 409, 425, 429, 500, 502, 503, 504}  # statuses that may pass


class Server(Teacher):
    """Asks a server.

    Args:
        url: up to the version, as in `http://127.0.0.1:8000/v1`.
        model: the name that the server knows it by; "" asks the server, which must then have one only.
        settings: of the replies.
        concurrency: requests under way at a time.
        deadline: seconds until a request that keeps failing is given up; FIRST at most while the server never answered.
        timeout: seconds that one reply may take.
        cache: the folder of replies; by default `$WHET_HOME/teachers`.

    Attributes:
        usage: replies that were asked for, and where the server says it their `prompt_tokens` and `completion_tokens`; what
            was read from the disk took nothing.
    """

    def __init__(
        self, url: str, model: str = "", settings: SamplingSettings | None = None, concurrency: int = 8,
        deadline: float = 120.0, timeout: float = 600.0, cache: Path | None = None,
    ) -> None:  # fmt: skip
        self.url, self.model = url.rstrip("/"), model
        self.settings = settings or SamplingSettings(1024, temperature=0.3, top_p=0.95)
        self.concurrency, self.deadline, self.timeout = concurrency, deadline, timeout
        self.cache = cache or index.place().parent / "teachers"
        self.met = False
        self.usage: Counter[str] = Counter()
        self._counting = threading.Lock()

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"{self.url}#{self.model}"

    def reply(self, questions: Sequence[Question]) -> list[str]:
        self.model = self.model or self._only_model()
        with ThreadPoolExecutor(self.concurrency) as pool:  # ranks share the questions: each is asked once
            replies = Ranks.here().map(lambda own: list(pool.map(self._reply, own)), questions)
        log.info(
            "teacher '%s': %s", self.name, ", ".join(f"{n} {what}" for what, n in self.usage.items()) or "no new reply"
        )
        return replies

    def _reply(self, question: Question) -> str:
        body = {
            "model": self.model,
            "messages": [dict(m) for m in question.messages],
            "temperature": self.settings.temperature,
            "top_p": self.settings.top_p,
            "max_tokens": self.settings.max_new_tokens,
            "seed": question.seed % (1 << 31),
        }
        asked = json.dumps({"url": self.url, **body}, sort_keys=True)
        kept = self.cache / f"{hashlib.blake2b(asked.encode(), digest_size=16).hexdigest()}.json"
        if kept.exists():
            return json.loads(kept.read_text())["reply"]
        found = self._call("/chat/completions", body)
        try:
            text = found["choices"][0]["message"]["content"] or ""
        except (KeyError, IndexError, TypeError):
            raise WhetError(f"teacher '{self.name}': its reply is not a chat completion: {str(found)[:200]}") from None
        self._count(found.get("usage"))
        self.cache.mkdir(parents=True, exist_ok=True)
        draft = kept.with_name(f"{kept.name}.{os.getpid()}-{id(question)}")
        draft.write_text(json.dumps({"request": json.loads(asked), "reply": text}))
        draft.replace(kept)  # so that a file with the final name is whole
        return text

    def _count(self, told: Any) -> None:
        with self._counting:
            self.usage["replies"] += 1
            for what in ("prompt_tokens", "completion_tokens"):
                if isinstance(told, Mapping) and isinstance(told.get(what), int):
                    self.usage[what] += told[what]

    def _only_model(self) -> str:
        names = [str(row["id"]) for row in self._call("/models").get("data", [])]
        if len(names) != 1:
            raise WhetError(f"teacher '{self.url}' serves {len(names)} models ({', '.join(names[:5])}): name one behind "
                            f"the address, as in {self.url}#NAME")  # fmt: skip
        return names[0]

    def _call(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """One exchange, repeated until it succeeds, is refused, or the deadline has passed."""
        request = urllib.request.Request(
            self.url + path,
            None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json", "Authorization": f"Bearer {os.environ.get('OPENAI_API_KEY', 'none')}"},
        )
        began, pause = time.monotonic(), 0.25
        while True:
            wait = pause
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                    found = json.loads(answer.read())
                self.met = True
                return found
            except urllib.error.HTTPError as problem:
                self.met = True
                said = problem.read().decode(errors="replace").strip()[:200]
                why = f"answered {problem.code} {problem.reason} {said}".strip()
                if problem.code not in AGAIN:
                    raise WhetError(f"teacher '{self.name}' {why}") from None
                told = problem.headers.get("Retry-After", "")
                wait = max(pause, float(told)) if told.isdecimal() else pause
            except json.JSONDecodeError:
                raise WhetError(f"teacher '{self.name}' did not answer in JSON; is '{self.url}' its address?") from None
            except (OSError, HTTPException) as problem:  # refused, unreachable, timed out, broken off
                why = f"cannot be reached ({getattr(problem, 'reason', problem)})"
            patience = self.deadline if self.met else min(self.deadline, FIRST)
            if time.monotonic() - began + wait > patience:
                raise WhetError(f"teacher '{self.name}' {why}; is the server running, and is this its address?")
            time.sleep(wait)
            pause = min(2 * pause, 15.0)
