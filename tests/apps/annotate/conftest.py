"""Projects of a few pairs, with a clock that the test turns."""

from __future__ import annotations

import getpass
import importlib.util
import os
import random
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pil
from sqlalchemy import event
from starlette.testclient import TestClient

from apps.annotate.accounts import User
from apps.annotate.imports import Wish, import_pairs
from apps.annotate.passwords import Cost
from apps.annotate.results import Answers, Task
from apps.annotate.server import create_app
from apps.annotate.service import Service
from apps.annotate.store import open_store, put_setting
from apps.annotate.web import Site
from data.convert import Source
from data.jsonl import write_records
from data.schema import Image, Message, Preference, Response

#: scrypt that takes no time
CHEAP = Cost(n=2, r=1, p=1)
PASSWORD = "a long enough one"


@pytest.fixture(autouse=True)
def _quiet_progress() -> None:
    """In the place of the one that loads transformers: nothing here needs it."""


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def pair(
    name: str, texts: tuple[str, str] = ("A red cat.", "A red cat and a dog."), **more: Any
) -> Preference:
    """A pair whose model names, id and picture's name must not reach a labeler."""
    values: dict[str, Any] = {
        "id": f"secret-model-{name}",
        "image": Image(id=f"img-{name}", path="cat.png"),
        "messages": [Message(role="user", content=f"What is in picture {name}?")],
        "responses": [Response(text=text, model=f"model-{i}") for i, text in enumerate(texts)],
        "choices": {},
    }
    return Preference(**(values | more))


@dataclass
class Project:
    """A service over a store of its own, and what is in it."""

    folder: Path
    service: Service
    clock: Clock
    users: dict[str, User] = field(default_factory=dict)
    _tokens: int = 0

    @property
    def url(self) -> str:
        return f"sqlite:///{self.folder / 'votes.db'}"

    def user(self, name: str, role: str = "labeler") -> User:
        if name not in self.users:
            self.users[name] = self.service.accounts.add(name, PASSWORD, role)
        return self.users[name]

    def add(self, records: list[Preference], role: str = "work", **wish: Any) -> None:
        file = self.folder / f"{role}-{random.random()}.jsonl"
        write_records(file, records)
        source = Source(file, None, "preference", images=self.folder / "images")
        values = {"overlap": 0.0, "order": "file"} | wish
        import_pairs(self.service.store, source, role, Wish(**values), strict=True)

    def token(self) -> str:
        self._tokens += 1
        return f"token-{self._tokens:06d}"

    def task(self, name: str) -> Task:
        found = self.service.next_task(self.user(name))
        assert isinstance(found, Task), found
        return found

    def vote(self, name: str, said: str = "A", helpful: str | None = None, **more: Any) -> Task:
        """The next pair, with a vote on it."""
        task = self.task(name)
        self.service.vote(self.user(name), task.pair, Answers(said, helpful, **more), self.token())  # type: ignore[arg-type]
        return task


MakeProject = Callable[..., Project]


@pytest.fixture
def make_project(tmp_path: Path) -> Iterator[MakeProject]:
    """``make(pairs, **wish)``: a project of so many pairs; rules without gold and test."""
    made: list[Project] = []

    def make(pairs: int = 3, **wish: Any) -> Project:
        folder = tmp_path / f"project{len(made)}"
        (folder / "images").mkdir(parents=True)
        Pil.new("RGB", (8, 6), (200, 30, 30)).save(folder / "images" / "cat.png")
        store = open_store(f"sqlite:///{folder / 'votes.db'}", create=True)
        # the disk is waited for where that is tested
        event.listen(store.engine, "connect", lambda c, _: c.execute("PRAGMA synchronous=OFF").close())
        store.engine.dispose()
        clock = Clock()
        # what it decides is the same in every run
        store.write(lambda connection: put_setting(connection, "secret", "of the tests"))
        service = Service(store, images=folder / "images", clock=clock, rng=random.Random(0), cost=CHEAP)
        service.set_rules({"gold_every": 0, "qualification": 0, "pass_mark": 0, "lease": 600.0})
        project = Project(folder, service, clock)
        if pairs:
            project.add([pair(f"{k:03d}") for k in range(pairs)], **wish)
        made.append(project)
        return project

    yield make
    for project in made:
        project.service.store.close()


class Browser:
    """A client with cookies, and the CSRF token of its session."""

    def __init__(self, project: Project, site: Site | None = None, base: str = "http://127.0.0.1") -> None:
        app = create_app(project.service, site)
        self.http = TestClient(app, base_url=base, raise_server_exceptions=False)
        self.csrf = ""

    def login(self, name: str, password: str = PASSWORD) -> Any:
        found = self.http.post("/api/login", json={"name": name, "password": password})
        if found.status_code == 200:
            self.csrf = found.json()["csrf"]
        return found

    def post(self, path: str, body: Any = None, **headers: str) -> Any:
        sent = {"X-CSRF-Token": self.csrf} | headers
        return self.http.post(f"/api/{path}", json={} if body is None else body, headers=sent)

    def get(self, path: str, **headers: str) -> Any:
        return self.http.get(f"/api/{path}", headers=headers)


Enter = Callable[..., Browser]


def code_of(response: Any) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


@pytest.fixture
def project(make_project: MakeProject) -> Project:
    return make_project()


@pytest.fixture
def enter(project: Project) -> Enter:
    def make(name: str, role: str = "labeler", of: Project | None = None) -> Browser:
        (of or project).user(name, role)
        browser = Browser(of or project)
        assert browser.login(name).status_code == 200
        return browser

    return make


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The URL of a PostgreSQL cluster of the tests' own, from Debian's packages; skips without them."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found or importlib.util.find_spec("psycopg") is None:
        pytest.skip("no PostgreSQL here")
    programs, folder = found[-1].parent, Path(tempfile.mkdtemp(prefix="align-pg-"))
    # it refuses to run as root; as anybody else, as whom we are
    user = "postgres" if os.geteuid() == 0 else None
    if user is not None:
        shutil.chown(folder, user)
    data, socket = folder / "data", folder / "socket"
    name = user or getpass.getuser()

    def call(*words: str) -> None:
        subprocess.run(words, user=user, cwd=folder, check=True, capture_output=True, timeout=120)

    options = f"-c listen_addresses= -c unix_socket_directories={socket} -c fsync=off"
    control = (str(programs / "pg_ctl"), "-D", str(data), "-w")
    try:
        call("mkdir", str(socket))
        call(str(programs / "initdb"), "-D", str(data), "-A", "trust", "-U", name, "--no-sync")
        call(*control, "-o", options, "-l", str(folder / "log"), "start")
        yield f"postgresql://{name}@/postgres?host={socket}"
        call(*control, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def database(postgresql: str) -> str:
    """The URL of a new database there."""
    import psycopg

    name = f"d{secrets.token_hex(4)}"
    with psycopg.connect(postgresql, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return postgresql.replace("/postgres?", f"/{name}?")
