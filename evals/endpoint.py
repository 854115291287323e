"""An OpenAI-compatible chat endpoint, as a judge of answers or as the model that answers.

The key is read from the environment when a request is sent: it is in no setting, log or error. A request
is tried again when the server is busy (429), fails (5xx) or is silent, with growing pauses, and a pause
that the server asks for is kept. What still fails is named; it never becomes an answer.
"""

from __future__ import annotations

import base64
import email.utils
import io
import logging
import math
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from data.images import image_bytes, open_image
from data.jsonl import DataError
from data.schema import Image
from evals.journal import content_hash
from evals.judges import JudgeRequest
from evals.runner import EvalItem

log = logging.getLogger(__name__)

#: what is worth a second try
_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
#: what looks like a key, or the part of one that a server shows
_KEY = re.compile(r"\b(?:sk|key|pk)-[\w*-]{4,}")
#: characters that one token stands for, roughly, in English: for the cost estimate only
CHARACTERS_A_TOKEN = 4.0


class EndpointError(RuntimeError):
    """One request failed for good; the text says how, without the key."""


class EndpointRefusal(EndpointError):
    """The server does not accept the key: no further request can do better."""


@dataclass(frozen=True)
class Price:
    """Cost of a million tokens, in and out, in whatever currency the user thinks in."""

    input: float = 0.0
    output: float = 0.0

    def of(self, tokens_in: float, tokens_out: float) -> float:
        return (tokens_in * self.input + tokens_out * self.output) / 1e6


@dataclass
class Endpoint:
    """Where to ask, and how patiently.

    Args:
        url: the API's root, e.g. ``http://localhost:8000/v1``; ``/chat/completions`` is added.
        model: the name that the server knows.
        key_env: environment variable with the key; an unset one sends none (local servers).
        timeout: seconds a request may take; retries: further tries after the first.
        per_minute: at most so many requests started a minute; None is no limit.
        workers: requests in flight.
    """

    url: str
    model: str
    key_env: str = "OPENAI_API_KEY"
    timeout: float = 120.0
    retries: int = 5
    per_minute: float | None = None
    workers: int = 4
    max_tokens: int = 1024
    temperature: float = 0.0
    top_p: float = 1.0
    #: a reply that was cut at ``max_tokens`` is a failure
    whole: bool = False
    price: Price = field(default_factory=Price)
    #: seconds before the first further try; doubles each time
    pause: float = 1.0
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False)
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)

    def __post_init__(self) -> None:
        mend = "give the API's root, e.g. http://localhost:8000/v1"
        try:
            url = httpx.URL(self.url)
        except httpx.InvalidURL as error:
            raise DataError(f"the address cannot be read ({error})", key="url", mend=mend) from None
        if url.scheme not in ("http", "https") or not url.host:
            raise DataError(f"{self.url!r} is no web address", key="url", mend=mend)
        if url.userinfo:
            mend = "leave it out, and give the key by the environment variable that key_env names"
            raise DataError("the address holds a user's name or password", key="url", mend=mend)
        if not self.key_env.isidentifier():
            mend = "give the variable's name, not the key"
            raise DataError("key_env is no name of an environment variable", key="key_env", mend=mend)
        if not (key := self._key()).isascii() or not key.isprintable():
            raise DataError(f"the key in {self.key_env} is no plain text", key="key_env", mend="set it again")
        self._next = 0.0
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """The model and the server, without what a URL may hold of a user's name or key."""
        place = httpx.URL(self.url)
        return f"{self.model} at {place.host}"

    def estimate(self, texts: Sequence[str]) -> str:
        """What asking these texts may cost, in words; said before the first request."""
        tokens = sum(len(text) for text in texts) / CHARACTERS_A_TOKEN
        most = self.price.of(tokens, len(texts) * self.max_tokens)
        cost = f", at most about {most:.2f} at the given prices" if most else ""
        return f"{len(texts)} requests to {self.name}, about {tokens:,.0f} tokens to read{cost}"

    def chat(self, content: str | list[dict[str, Any]], *, client: httpx.Client | None = None) -> str:
        """The reply to one user turn (text, or the API's list of text and image parts).

        Raises:
            EndpointError: the server refused the request, or failed at every try, or sent no text.
        """
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
        }
        if self.top_p < 1:
            body["top_p"] = self.top_p
        if client is None:
            with httpx.Client(timeout=self.timeout) as own:
                return self._tries(own, body)
        return self._tries(client, body)

    def chat_all(self, contents: Sequence[str | list[dict[str, Any]]]) -> list[str | EndpointError]:
        """Replies in order; an error stands where a request failed, so that the others are not lost.

        Raises:
            EndpointRefusal: the server does not accept the key.
        """
        with httpx.Client(timeout=self.timeout) as client, ThreadPoolExecutor(self.workers) as pool:

            def one(content: str | list[dict[str, Any]]) -> str | EndpointError:
                try:
                    return self.chat(content, client=client)
                except EndpointRefusal:
                    raise
                except EndpointError as error:
                    return error

            return list(pool.map(one, contents))

    def _tries(self, client: httpx.Client, body: dict[str, Any]) -> str:
        for trial in range(self.retries + 1):
            self._wait_turn()
            last = trial == self.retries
            try:
                reply = client.post(
                    f"{self.url.rstrip('/')}/chat/completions", json=body, headers=self._headers()
                )
            except httpx.TimeoutException:
                problem, pause = f"no reply within {self.timeout:g} s", None
            except httpx.HTTPError as error:
                problem, pause = type(error).__name__, None
            else:
                if reply.status_code == 200:
                    return _text_of(reply, whole=self.whole)
                problem = f"status {reply.status_code}"
                if reply.status_code in (401, 403):
                    mend = f"check the key in the environment variable {self.key_env}"
                    raise EndpointRefusal(f"{self.name}: {problem}{self._told(reply)}; {mend}")
                if reply.status_code not in _AGAIN:
                    raise EndpointError(f"{self.name}: {problem}{self._told(reply)}")
                pause = _asked_pause(reply)
            if last:
                tries = f"{self.retries + 1} tries" if self.retries else "one try"
                raise EndpointError(f"{self.name}: {problem} after {tries}")
            wait = max(self.pause * 2**trial, pause or 0.0)
            log.debug("%s: %s; trying again in %.1f s", self.name, problem, wait)
            self.sleep(wait)
        raise AssertionError("unreachable")

    def _key(self) -> str:
        return os.environ.get(self.key_env, "").strip()

    def _headers(self) -> dict[str, str]:
        key = self._key()
        return {"Authorization": f"Bearer {key}"} if key else {}

    def _told(self, reply: httpx.Response) -> str:
        """The server's own words on an error, cut short; some servers quote the key, we do not."""
        try:
            found = reply.json()["error"]
            text = str(found["message"] if isinstance(found, dict) else found)
        except (ValueError, KeyError, TypeError):
            return ""
        if key := self._key():
            text = text.replace(key, "(the key)")
        return f" ({_KEY.sub('(a key)', text)[:200]})"

    def _wait_turn(self) -> None:
        """Hold requests apart by a minute's share; the turn is taken before the wait."""
        if self.per_minute is None:
            return
        with self._lock:
            now = self.clock()
            turn = max(self._next, now)
            self._next = turn + 60.0 / self.per_minute
        if turn > now:
            self.sleep(turn - now)


def _asked_pause(reply: httpx.Response) -> float | None:
    """Seconds that ``Retry-After`` asks for (a number, or a date), at most five minutes; else None."""
    asked = reply.headers.get("retry-after", "")
    try:
        seconds = float(asked)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(asked).timestamp() - time.time()
        except (TypeError, ValueError):
            return None
    return min(max(seconds, 0.0), 300.0) if math.isfinite(seconds) else None


def _text_of(reply: httpx.Response, *, whole: bool) -> str:
    try:
        choice = reply.json()["choices"][0]
        text = choice["message"]["content"]
        cut = choice.get("finish_reason") == "length"
    except (ValueError, LookupError, TypeError, AttributeError):
        text, cut = None, False
    if not isinstance(text, str) or not text.strip():
        raise EndpointError("the reply holds no text")
    if cut and whole:
        raise EndpointError("the reply was cut at max_tokens; allow more")
    return text


def image_part(image: Image, root: str | Path | None) -> dict[str, Any]:
    """An image as the part of a message: its file as it is, where endpoints read the format, else as PNG.

    Raises DataError for an image that cannot be had or read.
    """
    data = image_bytes(image, root)
    heads = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif", b"RIFF": "webp"}
    kind = next((kind for head, kind in heads.items() if data.startswith(head)), None)
    if kind is None:
        buffer = io.BytesIO()
        open_image(image, root).save(buffer, "PNG")
        data, kind = buffer.getvalue(), "png"
    encoded = base64.b64encode(data).decode("ascii")
    return {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{encoded}"}}


class EndpointAnswerer:
    """The model behind an endpoint that takes images, as a ``generate`` callable for the runner.

    An item whose request fails, or whose picture cannot be read, has no entry in what a call gives.
    EndpointError where the first call gets no answer at all.
    """

    def __init__(self, endpoint: Endpoint, root: str | Path | None) -> None:
        self.endpoint, self.root = endpoint, root
        self._answered = False
        #: items asked about together
        self.size = 4 * endpoint.workers

    def announce(self, items: Sequence[EvalItem]) -> None:
        """Say how many requests there will be and what they may cost; a warning, since it may be money."""
        if items:
            told = self.endpoint.estimate([item.question for item in items])
            log.warning("%s, and the tokens of a picture with each", told)

    def __call__(self, items: list[EvalItem]) -> dict[str, str]:
        asked: dict[str, list[dict[str, Any]]] = {}
        for item in items:
            try:
                picture = image_part(item.image, self.root)
            except DataError as error:
                log.warning("no answer to %s: %s", item.id, error)
                continue
            asked[item.id] = [{"type": "text", "text": item.question}, picture]
        items = [item for item in items if item.id in asked]
        found: dict[str, str] = {}
        replies = self.endpoint.chat_all(list(asked.values()))
        for item, reply in zip(items, replies, strict=True):
            if isinstance(reply, EndpointError):
                log.warning("no answer to %s: %s", item.id, reply)
            else:
                found[item.id] = reply
        self._answered = self._answered or bool(found)
        failed = next((reply for reply in replies if isinstance(reply, EndpointError)), None)
        if failed is not None and not self._answered:
            # nothing but failures so far: the others would fare no better
            raise EndpointError(f"none of the first {len(replies)} requests was answered ({failed})")
        return found


class EndpointJudge:
    """A judge behind an endpoint. A request that fails has no entry in what ``judge`` gives."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        #: id -> why there is no verdict
        self.failed: dict[str, str] = {}

    @property
    def name(self) -> str:
        return self.endpoint.name

    @property
    def settings(self) -> str:
        """Hash of what decides its words beside the request."""
        of = self.endpoint
        return content_hash([of.url, of.model, of.max_tokens, of.temperature, of.top_p])

    def announce(self, requests: Sequence[JudgeRequest]) -> None:
        """Say how many requests there will be and what they may cost; a warning, since it may be money."""
        log.warning("judge: %s", self.endpoint.estimate([request.prompt for request in requests]))

    def judge(self, requests: Sequence[JudgeRequest]) -> dict[str, str]:
        """Replies by id; each failure is told, and why, in a warning and in ``failed``."""
        found: dict[str, str] = {}
        replies = self.endpoint.chat_all([request.prompt for request in requests])
        for request, reply in zip(requests, replies, strict=True):
            if isinstance(reply, EndpointError):
                self.failed[request.id] = str(reply)
                log.warning("no verdict on %s: %s", request.id, reply)
            else:
                found[request.id] = reply
        return found
