"""Simulated labelers who use the real HTTP API, many at once: for load tests and demonstrations.

Of the built-in world's pairs they know the scene by its picture's bytes, and err as
``data.world.annotators.Labeler`` does; of other pairs they choose at random.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from apps.annotate.errors import StoreError
from data.schema import HALLUCINATION
from data.world.annotators import Labeler
from data.world.build import read_scenes

#: seconds for which a request whose answer was lost is sent again
PATIENCE = 30.0
SIDES = ("A", "B")
#: a task as the API tells it, the picture's bytes or None, and chance -> answers
Chooser = Callable[[Mapping[str, Any], bytes | None, random.Random], dict[str, Any]]


@dataclass(frozen=True)
class Person:
    """Who signs in; with a ``code`` by making an account first."""

    name: str
    password: str
    code: str | None = None


@dataclass
class Work:
    """What one labeler did."""

    name: str
    #: (event, pair, token) of each vote whose answer came
    votes: list[tuple[int, str, str]] = field(default_factory=list)
    #: seconds of each vote's round trip
    seconds: list[float] = field(default_factory=list)
    #: why it ended: "votes" (as many as asked), or the reason of ``NoTask``
    ended: str = ""
    pictures: int = 0


class Refusal(StoreError):
    """The server turned a request down."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(f"{message} ({status}, {code})")
        self.status, self.code = status, code


class Client:
    """One person's browser, without the browser."""

    def __init__(self, url: str) -> None:
        self.http = httpx.Client(base_url=url, timeout=PATIENCE, trust_env=False)
        self.csrf = ""
        self._pictures: dict[str, tuple[str, bytes]] = {}

    def enter(self, person: Person) -> None:
        """Sign in, or join by an invitation. Raises Refusal."""
        body = {"name": person.name, "password": person.password}
        if person.code is not None:
            self.csrf = self.post("join", body | {"code": person.code})["csrf"]
        else:
            self.csrf = self.post("login", body)["csrf"]

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The answer to a request, which is sent again while none comes. Raises Refusal."""
        headers = {"X-CSRF-Token": self.csrf}
        return self._patiently(lambda: self.http.post(f"/api/{path}", json=body, headers=headers)).json()

    def get(self, path: str, **headers: str) -> httpx.Response:
        """The answer to a request that changes nothing. Raises Refusal."""
        return self._patiently(lambda: self.http.get(f"/api/{path}", headers=headers))

    def picture(self, pair: str) -> bytes:
        """A pair's picture, fetched once and then asked for by its ETag, as browsers do."""
        etag, data = self._pictures.get(pair, ("", b""))
        found = self.get(f"image/{pair}", **({"If-None-Match": etag} if etag else {}))
        if found.status_code != 304:
            self._pictures[pair] = (found.headers["ETag"], found.content)
            data = found.content
        return data

    def _patiently(self, send: Callable[[], httpx.Response]) -> httpx.Response:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                found = send()
                if found.status_code != 503:
                    break
            except httpx.TransportError as error:
                if time.monotonic() > deadline:
                    url = self.http.base_url
                    raise StoreError(f"{url}: no answer ({error}); is the server running there?") from None
            if time.monotonic() > deadline:
                raise StoreError("the server does not answer; is it running?")
            time.sleep(0.1)
        kind = found.headers.get("content-type", "")
        if found.status_code >= 300 and found.status_code != 304:
            if not kind.startswith("application/json"):
                rule = f"{found.url}: status {found.status_code}, and no answer of the annotation app"
                raise StoreError(f"{rule}; give the address that align annotate serve prints")
            told = found.json().get("error", {})
            raise Refusal(found.status_code, told.get("code", ""), told.get("message", found.text[:200]))
        return found


def at_random(task: Mapping[str, Any], _: bytes | None, rng: random.Random) -> dict[str, Any]:
    """Answers that nothing stands behind."""
    said = rng.choice(("A", "B", "tie"))
    return {"hallucination": said} | ({"helpfulness": rng.choice(SIDES)} if said == "tie" else {})


def of_world(world: Path, labeler: Labeler | None = None) -> Chooser:
    """Answers of a simulated labeler who looks at the scene behind the picture.

    Raises DataError for a folder that is no world. The answers are for pairs of its pictures alone.
    """
    person = labeler or Labeler()
    scenes = read_scenes(world)
    by_picture = {
        hashlib.sha256((world / "images" / f"{name}.png").read_bytes()).digest(): scene
        for name, scene in scenes.items()
    }

    def choose(task: Mapping[str, Any], picture: bytes | None, rng: random.Random) -> dict[str, Any]:
        scene = by_picture.get(hashlib.sha256(picture or b"").digest())
        if scene is None:
            return at_random(task, picture, rng)
        texts = [shown["text"] for shown in task["responses"]]
        said = person.choose(scene, texts, rng, task["messages"][-1]["content"])
        first, second = said[HALLUCINATION], said["helpfulness"]
        if first is not None:
            return {"hallucination": SIDES[first]}
        assert second is not None
        return {"hallucination": "tie", "helpfulness": SIDES[second]}

    return choose


def label(
    client: Client, name: str, choose: Chooser, votes: int, *, pause: float = 0.0, seed: int = 0
) -> Work:
    """Vote on so many pairs, or as many as there are; ``pause``: seconds of looking before each vote."""
    work, rng = Work(name), random.Random(f"{seed}/{name}")
    task = client.post("next", {})
    while len(work.votes) < votes:
        if task["kind"] == "none":
            if task["reason"] != "wait":
                work.ended = task["reason"]
                return work
            time.sleep(min(task["wait"], 0.5))
            task = client.post("next", {})
            continue
        picture = client.picture(task["pair"]) if task["has_image"] else None
        work.pictures += picture is not None
        said = choose(task, picture, rng)
        time.sleep(pause * rng.uniform(0.5, 1.5))
        body = {"pair": task["pair"], "token": secrets.token_hex(12), "next": True, "seconds": pause, **said}
        start = time.perf_counter()
        try:
            found = client.post("vote", body)
        except Refusal as error:
            if error.code != "lease_lost":
                raise
            task = client.post("next", {})
            continue
        work.seconds.append(time.perf_counter() - start)
        work.votes.append((found["vote"]["event"], task["pair"], body["token"]))
        task = found["next"]
    work.ended = "votes"
    # what was given ahead goes to others
    client.post("release", {})
    return work


def run(
    url: str, people: Sequence[Person], choose: Chooser, votes: int, *, pause: float = 0.0, seed: int = 0
) -> list[Work]:
    """All people at once, each ``votes`` votes. Raises Refusal, or what the network raises."""

    def one(person: Person) -> Work:
        client = Client(url)
        with client.http:
            client.enter(person)
            return label(client, person.name, choose, votes, pause=pause, seed=seed)

    with ThreadPoolExecutor(len(people)) as pool:
        return list(pool.map(one, people))


@contextlib.contextmanager
def serving(arguments: Sequence[str], log: Path | None = None) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server in a process of its own (``align annotate serve`` with these arguments): its URL and process.

    Raises:
        StoreError: it ended before it served.
    """
    command = [sys.executable, "-m", "apps.cli", "annotate", "serve", *arguments]
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    with contextlib.ExitStack() as stack:
        errors = None if log is None else stack.enter_context(log.open("a"))
        environment = os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.startswith("serving "):
                    yield line.split()[1], process
                    break
            else:
                raise StoreError(f"the server ended at once, with status {process.wait()}")
        finally:
            process.terminate()
            process.wait(timeout=60)
            process.stdout.close()
