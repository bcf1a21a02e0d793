"""Servers of OpenAI's protocol, asked through its official client: many requests at once, patiently, with one clear error.

What may pass (busy, failing, broken off, too slow) is asked again, ever more slowly, until a deadline; a server that says when
to come back (`Retry-After`) is believed. What will not get better is an error at once, and ends the requests beside it. The
key, where a server wants one, is read from `OPENAI_API_KEY`.

The client comes with `pip install 'whet[serve]'`.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from whet.errors import WhetError, shown

R = TypeVar("R")

FIRST = 5.0  # seconds that a server which has never answered is waited for
LONGEST = 15.0  # between two tries
CONNECT = 10.0
AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, 529}  # statuses that may pass
SAID = 200  # characters of a server's own words in an error

_jitter = random.SystemRandom()  # no seed's numbers are drawn: when a request is repeated decides nothing


class Call(NamedTuple):
    """One request.

    Attributes:
        path: below the server's address, or a whole address.
        body: what is posted; None asks by GET.
    """

    path: str
    body: Mapping[str, Any] | None = None


class Endpoint:
    """A server.

    Args:
        what: what it is, for errors: `teacher`.
        url: its address up to the version, as in `http://127.0.0.1:8000/v1`.
        concurrency: requests under way at a time.
        deadline: seconds until a request that keeps failing is given up; FIRST at most while the server never answered.
        timeout: seconds that one reply may take, from the first byte asked to the last one read. A request is over, one way or the
            other, after `deadline + timeout`.

    Attributes:
        name: for errors; the address, until somebody knows better.
        met: whether it has ever answered.
    """

    def __init__(
        self, what: str, url: str, *, concurrency: int = 8, deadline: float = 120.0, timeout: float = 600.0
    ) -> None:
        self.what, self.url = what, url.rstrip("/")
        self.name = self.url
        self.concurrency, self.deadline, self.timeout = concurrency, deadline, timeout
        self.met = False
        try:
            address = urlsplit(self.url)
            whole = address.scheme in ("http", "https") and bool(address.hostname) and address.port != 0
            str(address.hostname).encode("idna")
        except ValueError:  # a port or a host that is none
            whole = False
        if not whole:
            raise WhetError(f"{what} '{url}' is no address of a server, as in http://127.0.0.1:8000/v1")

    def ask(self, calls: Sequence[Call], read: Callable[[int, Any], R]) -> list[R]:
        """`read(place, reply)` of each call, in order. Replies are read as they come, so that what `read` keeps is kept when a
        later request fails.

        Raises:
            WhetError: for the first request that fails for good.
        """
        return _run(self._all(calls, read))

    def get(self, path: str) -> Any:
        """The reply to one question."""
        return self.ask([Call(path)], lambda _, found: found)[0]

    def models(self) -> list[dict[str, Any]]:
        """What it serves: rows with an `id`."""
        found = self.get("/models")
        rows = found.get("data") if isinstance(found, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) and "id" in row for row in rows):
            raise self.error(f"does not say which models it serves: {str(found)[:SAID]}; is this its address?")
        return rows

    def only_model(self) -> str:
        """The name of the one model that it serves."""
        names = [str(row["id"]) for row in self.models()]
        if len(names) != 1:
            raise WhetError(f"{self.what} '{self.url}' serves {len(names)} models ({', '.join(names[:5])}): name one behind "
                            f"the address, as in {self.url}#NAME")  # fmt: skip
        return names[0]

    def error(self, why: str) -> WhetError:
        """One line about this server."""
        return WhetError(f"{self.what} '{self.name}' {shown(why)}")

    # -- inside -----------------------------------------------------------------------------------------------------
    async def _all(self, calls: Sequence[Call], read: Callable[[int, Any], R]) -> list[R]:
        gate = asyncio.Semaphore(self.concurrency)

        async def one(client: Any, place: int, call: Call) -> R:
            async with gate:
                return read(place, await self._patiently(client, call))

        async with self._client() as client:
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(one(client, *numbered)) for numbered in enumerate(calls)]
            except BaseExceptionGroup as failed:  # of which the first cancelled the others
                first: BaseException = failed
                while isinstance(first, BaseExceptionGroup):
                    first = first.exceptions[0]
                raise first from None
        return [task.result() for task in tasks]

    def _client(self) -> Any:
        try:
            import openai
        except ImportError:
            raise WhetError(
                f"{self.what} '{self.name}' is asked through OpenAI's client: pip install 'whet[serve]'"
            ) from None
        key = os.environ.get("OPENAI_API_KEY", "").strip() or "none"
        if not (key.isascii() and key.isprintable()):
            raise WhetError("OPENAI_API_KEY holds a character that no key has (not shown here): set it again")
        return openai.AsyncOpenAI(
            base_url=self.url, api_key=key, max_retries=0, timeout=openai.Timeout(self.timeout, connect=CONNECT)
        )

    async def _patiently(self, client: Any, call: Call) -> Any:
        """One exchange, repeated until it succeeds, is refused, or the deadline has passed."""
        began, pause = time.monotonic(), 0.25
        while True:
            try:
                return await self._once(client, call)
            except _MayPass as problem:
                patience = self.deadline if self.met else min(self.deadline, FIRST)
                wait = max(pause * _jitter.uniform(0.75, 1.0), problem.wait)
                if time.monotonic() - began + wait > patience:
                    said = f", and asks to wait {problem.wait:.0f} s" if problem.wait > patience else ""
                    raise self.error(f"{problem}{said}; is the server running, and is this its address?") from None
            await asyncio.sleep(wait)
            pause = min(2 * pause, LONGEST)

    async def _once(self, client: Any, call: Call) -> Any:
        import openai

        try:
            async with asyncio.timeout(self.timeout):
                if call.body is None:
                    text = await client.get(call.path, cast_to=str)
                else:
                    text = await client.post(call.path, cast_to=str, body=dict(call.body))
        except (TimeoutError, openai.APITimeoutError):
            raise _MayPass(f"did not answer within {self.timeout:g} s") from None
        except openai.APIStatusError as problem:
            self.met = True
            response = problem.response
            why = f"answered {response.status_code} {response.reason_phrase} {response.text.strip()[:SAID]}".strip()
            if response.status_code in AGAIN:
                raise _MayPass(why, _seconds(response.headers.get("Retry-After", ""))) from None
            raise self.error(why) from None
        except openai.APIConnectionError as problem:
            how = "cannot be reached" if "Connect" in type(problem.__cause__).__name__ else "broke off its reply"
            raise _MayPass(f"{how} ({_root(problem)})") from None
        self.met = True
        try:
            return json.loads(text) if text else None  # an empty reply of an endpoint that only does something
        except (ValueError, RecursionError):
            raise self.error(f"did not answer in JSON ({text.strip()[:SAID]}); is '{self.url}' its address?") from None


class _MayPass(Exception):
    """A failure that may not come again; `wait` is for how many seconds the server asks."""

    def __init__(self, why: str, wait: float = 0.0) -> None:
        super().__init__(why)
        self.wait = wait


def _root(problem: BaseException) -> str:
    """What the innermost cause of an error says."""
    while problem.__cause__ is not None:
        problem = problem.__cause__
    return str(problem) or type(problem).__name__


def _seconds(retry_after: str) -> float:
    """A `Retry-After` header, which is a number of seconds or a date, as seconds from now; 0 where there is none."""
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        then = parsedate_to_datetime(retry_after)
    except (ValueError, OverflowError):
        return 0.0
    return max(0.0, (then - datetime.now(then.tzinfo and UTC)).total_seconds())


def _run(job: Coroutine[Any, Any, R]) -> R:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(job)
    with ThreadPoolExecutor(1) as thread:  # a notebook runs a loop of its own in this one
        return thread.submit(asyncio.run, job).result()
