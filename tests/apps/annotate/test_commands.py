"""``align annotate`` on the command line, and stages that train straight from a store."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import socket
import sys
import threading
import time
import types
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from apps import cli
from apps.annotate.accounts import BY_ADDRESS
from apps.annotate.errors import StoreError
from apps.annotate.passwords import check_password
from apps.annotate.serve import Address
from apps.annotate.simulate import Person, of_world, run, serving
from apps.annotate.store import open_store
from apps.annotate.tables import users
from apps.annotate.training import is_store
from apps.annotate.web import Site
from data.jsonl import read_json, read_records, write_records
from data.schema import Preference
from tests.apps.annotate.conftest import PASSWORD, MakeProject, Project, pair


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project: Project) -> Path:
    """The current directory, with images and a file of pairs, two of them gold."""
    monkeypatch.chdir(tmp_path)
    (project.folder / "images").rename(tmp_path / "images")
    write_records(tmp_path / "pairs.jsonl", [pair(f"{k}") for k in range(6)])
    gold = [pair(f"g{k}", choices={"hallucination": 0}) for k in range(2)]
    write_records(tmp_path / "gold.jsonl", gold)
    return tmp_path


def align(*words: str) -> int:
    return cli.main(["annotate", *words])


def accounts(project: Project) -> list[Any]:
    with project.service.store.read() as connection:
        return list(connection.execute(select(users)))


def type_(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text + "\n"))


def test_import_export_stats_and_backup(
    folder: Path, capsys: pytest.CaptureFixture[str], make_project: MakeProject
) -> None:
    assert align("import", "pairs.jsonl", "--images", "images") == 0
    assert "6 work pairs added" in capsys.readouterr().out
    assert align("import", "gold.jsonl", "--as", "gold") == 0
    assert align("import", "pairs.jsonl", "--images", "images") == 0
    assert "0 work pairs added, 6 known already" in capsys.readouterr().out
    assert align("export", "out.jsonl") == 2
    assert "no decided vote" in capsys.readouterr().err
    voted = make_project(3)
    for _ in range(3):
        voted.vote("ann")
    store = ["--store", voted.url]
    assert align("export", *store, "out.jsonl", "--labels", "labelers") == 0
    assert capsys.readouterr().out == "wrote 3 records to out.jsonl\n"
    assert len(read_records("out.jsonl", "preference")) == 3
    assert align("export", *store, "out.jsonl") == 2 and "exists already" in capsys.readouterr().err
    assert align("export", *store, "trl.jsonl", "--to", "trl", "--without", "ann") == 2
    assert align("stats", *store, "--json", "stats.json", "--resamples", "20") == 0
    assert "3 of 3 have all their votes, or a decision" in capsys.readouterr().out
    assert read_json("stats.json")["labelers"][0]["name"] == "ann"
    assert align("backup", *store, "copy.db") == 0
    assert align("stats", "--store", "sqlite:///copy.db") == 0
    assert align("stats", "--store", "sqlite:///none.db") == 2
    assert "no store there; give --store the URL that serve was given" in capsys.readouterr().err


def test_accounts(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    type_(monkeypatch, PASSWORD)
    assert align("users", "add", "root", "--role", "admin") == 0
    type_(monkeypatch, PASSWORD)
    assert align("users", "add", "root") == 2
    assert "is taken" in capsys.readouterr().err
    type_(monkeypatch, "short")
    assert align("users", "add", "ann") == 2
    type_(monkeypatch, PASSWORD)
    assert align("users", "hash", "ann") == 0
    line = capsys.readouterr().out
    assert line.startswith("ann:labeler:scrypt:16384:8:5:") and PASSWORD not in line
    Path("passwords.txt").write_text(f"# people\n{line}")
    assert align("users", "import", "passwords.txt") == 0
    assert align("users", "disable", "ann") == 0
    assert align("users", "list") == 0
    assert any(
        line.split()[:3] == ["ann", "labeler,", "out"] for line in capsys.readouterr().out.splitlines()
    )
    store = open_store("sqlite:///votes.db")
    with store.read() as connection:
        found = connection.execute(select(users).where(users.c.name == "ann")).one()
    store.close()
    assert found.disabled and check_password(PASSWORD, found.password)
    assert not check_password(PASSWORD + "x", found.password)
    assert align("users", "invite", "--url", "http://here/") == 0
    assert capsys.readouterr().out.startswith("http://here/#join=")
    assert align("users", "disable", "nobody") == 2


def test_invitations_are_listed_and_revoked(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    # the commands' clock
    project.clock.now, store = time.time(), ("--store", project.url)
    assert align("users", *store, "invitations") == 0
    assert capsys.readouterr().out == "no invitation is open\n"
    assert align("users", *store, "invite", "--role", "admin", "--uses", "12", "--days", "2") == 0
    code = capsys.readouterr().out.strip().partition("#join=")[2]
    assert align("users", *store, "invitations") == 0
    out = capsys.readouterr().out
    head, row = out.splitlines()
    assert head.split() == ["id", "role", "uses", "left", "made", "until"]
    (found,) = project.service.accounts.invitations()
    times = [datetime.fromtimestamp(t, timezone.utc) for t in (found.created, found.expires)]
    told = [word for at in times for word in (*f"{at:%Y-%m-%d %H:%M}".split(), "UTC")]
    assert row.split() == [found.id, "admin", "12", *told] and times[1] - times[0] == timedelta(days=2)
    assert code not in out and hashlib.sha256(code.encode()).hexdigest() not in out
    assert align("users", *store, "revoke", found.id) == 0
    assert capsys.readouterr().out == f"the invitation {found.id} is revoked; accounts that it made stay\n"
    assert project.service.accounts.invitations() == []
    assert align("users", *store, "revoke", found.id) == 2
    assert f"no invitation '{found.id}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("ann", "the role is"),
        ("ann:boss:x", "the role is 'boss'"),
        ("ann:labeler:secret", "no scrypt hash"),
        ("ann:labeler:scrypt:16384:8:5:AAAA", "no scrypt hash"),
        ("ann:labeler:scrypt:1073741824:8:1:AAAA:AAAA", "no scrypt hash"),
        ("a b:labeler:scrypt:2:1:1:AAAA:AAAA", "a name has"),
        ("ann:labeler:scrypt:2:1:1:AAAA:AAAA\nann:admin:scrypt:2:1:1:AAAA:AAAA", "stands twice"),
    ],
)
def test_bad_password_files(folder: Path, capsys: pytest.CaptureFixture[str], line: str, words: str) -> None:
    Path("passwords.txt").write_text(f"{line}\n")
    assert align("users", "import", "passwords.txt") == 2
    error = capsys.readouterr().err
    assert words in error and f"passwords.txt:{1 + line.count(chr(10))}:" in error


@pytest.mark.parametrize("name", ["votes.db", "images/../votes.db", "votes.db-wal", "link.db"])
def test_no_command_writes_over_the_store(
    project: Project, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """A server that runs would go on with a file that has no name any more, and its votes would be gone."""
    project.vote("ann")
    (project.folder / "link.db").symlink_to("votes.db")
    before, file = (project.folder / "votes.db").stat().st_ino, str(project.folder / name)
    bad = project.folder / "bad.jsonl"
    bad.write_text("{}\n")
    for words in (
        ("export", file, "--force"),
        ("backup", file, "--force"),
        ("stats", "--resamples", "20", "--json", file),
        ("import", str(bad), "--format", "schema", "--max-bad", "1", "--rejects", file),
    ):
        assert align(*words, "--store", project.url) == 2, words
        assert "is the store itself" in capsys.readouterr().err, words
    assert (project.folder / "votes.db").stat().st_ino == before
    assert project.service.overview()["votes"] == 1


def test_where_it_may_be_served(tmp_path: Path) -> None:
    open_, files = Address("0.0.0.0"), {"certificate": tmp_path / "c.pem", "key": tmp_path / "k.pem"}
    with pytest.raises(StoreError, match=r"c\.pem: no such file"):
        Address(**files).check(1)
    with pytest.raises(StoreError, match="no port 65536"):
        Address(port=65536).check(1)
    for file in files.values():
        file.touch()
    Address().check(0)
    Address("::1").check(0)
    for refused in (open_, Address("192.168.1.5", **files), Address(public="https://labels.example.org")):
        with pytest.raises(StoreError, match="no account yet"):
            refused.check(0)
    with pytest.raises(StoreError, match="without TLS"):
        open_.check(1)
    with pytest.raises(StoreError, match="goes with its key"):
        Address(certificate=Path("c.pem")).check(1)
    for odd in ("labels.example.org", "https://a.org/labels", "https://grüße.example"):
        with pytest.raises(StoreError, match="no address of a site"):
            Address(public=odd).check(1)
    for fine in (
        Address("0.0.0.0", **files),
        Address("0.0.0.0", plain=True),
        Address(public="https://a.org"),
    ):
        fine.check(1)
    assert Address(public="https://a.org/").url(1) == "https://a.org"
    for written in ("https://a.org/", "HTTPS://A.org:443"):
        site = Address(public=written).site()
        assert site.secure and site.origin == "https://a.org" and "a.org" in (site.hosts or ())
    assert Address(public="http://a.org:8080").site() == Site(False, "http://a.org:8080", site.hosts)
    assert Address("0.0.0.0", **files).site() == Site(True, None, None)
    assert Address("::1").url(80) == "http://[::1]:80" and not Address().site().secure


def test_serving_elsewhere_without_accounts_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["serve", "--data", "pairs.jsonl", "--images", "images", "--host", "0.0.0.0", "--port", "0"]
    assert align(*words) == 2
    assert "no account yet" in capsys.readouterr().err


def test_a_proxy_tells_who_asks(project: Project) -> None:
    """Behind one, guesses are counted by the address that it adds, and no other that a client claims."""
    project.user("root", "admin")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    place = ["--port", str(port), "--public-url", "http://labels.example.org", "--plain-http"]
    with (
        serving(["--store", project.url, *place]) as (address, _),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http,
    ):
        assert address == "http://labels.example.org"

        def guess(came_from: str) -> int:
            body = {"code": "x", "name": "eve", "password": PASSWORD}
            return http.post("/api/join", json=body, headers={"X-Forwarded-For": came_from}).status_code

        assert {guess("10.0.0.1") for _ in range(BY_ADDRESS)} == {403}
        assert guess("10.0.0.1") == guess("10.0.0.7, 10.0.0.1") == 429
        assert guess("10.0.0.2") == 403


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have one address of this machine's own")
def test_proxies_elsewhere_are_believed_if_they_are_named(project: Project) -> None:
    """Requests come from 127.0.0.2 and so on, in the place of other machines."""
    project.user("root", "admin")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    place = ["--port", str(port), "--public-url", "http://labels.example.org", "--plain-http"]
    named = ["--proxy", "127.0.0.2", "--proxy", "127.0.1.0/24"]
    with serving(["--store", project.url, *place, *named]), contextlib.ExitStack() as stack:

        def at(own: str) -> httpx.Client:
            via = httpx.HTTPTransport(local_address=own)
            return stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", transport=via))

        clients = {own: at(own) for own in ("127.0.0.2", "127.0.1.9", "127.0.0.3")}

        def guess(own: str, came_from: str) -> int:
            body, sent = {"code": "x", "name": "eve", "password": PASSWORD}, {"X-Forwarded-For": came_from}
            return clients[own].post("/api/join", json=body, headers=sent).status_code

        assert {guess("127.0.0.2", "10.0.0.1") for _ in range(BY_ADDRESS)} == {403}
        # the same person by the other proxy, or by both, and another one
        assert guess("127.0.0.2", "10.0.0.1") == guess("127.0.1.9", "10.0.0.1") == 429
        assert guess("127.0.0.2", "10.0.0.1, 127.0.1.9") == guess("127.0.0.2", "10.0.0.7, 10.0.0.1") == 429
        assert guess("127.0.0.2", "10.0.0.2") == guess("127.0.1.9", "10.0.0.3") == 403
        # no proxy that was named: whatever it says, it is itself
        assert {guess("127.0.0.3", f"10.0.2.{k}") for k in range(BY_ADDRESS)} == {403}
        assert guess("127.0.0.3", "10.0.3.1") == 429 and guess("127.0.0.2", "10.0.2.1") == 403


def test_proxies_that_cannot_be_believed(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    project.user("root", "admin")
    public = ("--public-url", "https://labels.example.org")
    for words, told in (
        (("--proxy", "10.0.0.5"), "give --public-url with --proxy"),
        ((*public, "--proxy", "10.0.0.5", "--proxy", "proxy.example.org"), "'proxy.example.org' is no IP"),
        ((*public, "--proxy", "10.0.0.5,10.0.0.6"), "is no IP address or network"),
        ((*public, "--proxy", "10.0.0.5/24"), "has host bits set"),
        ((*public, "--proxy", "*"), "'*' is no IP"),
        ((*public, "--proxy", ""), "'' is no IP"),
        ((*public, "--proxy", "0.0.0.0/0"), "is everybody"),
        ((*public, "--proxy", "::/0"), "is everybody"),
    ):
        assert align("serve", "--store", project.url, "--port", "0", *words) == 2, words
        assert told in capsys.readouterr().err, words
    found = Address(public="https://a.org", proxies=("10.0.0.5", "10.1.0.0/16", "fd00::7")).believed()
    assert found == ["127.0.0.1", "::1", "10.0.0.5", "10.1.0.0/16", "fd00::7"]
    assert Address().believed() == []


def test_a_world_is_labelled_through_the_api(folder: Path) -> None:
    """The demo's pairs, served and voted on by simulated labelers, who are right more often than not."""
    from apps.annotate.demo import make

    made = make(folder / "demo", 8, seed=3)
    url = f"sqlite:///{folder / 'demo.db'}"
    arguments = ["--store", url, "--images", str(folder / "demo" / "world"), "--port", "0", "--test", "0"]
    files = [word for name, file in made.items() for word in (f"--{name}", str(file))]
    lines = []
    with serving([*arguments, *files, "--labels", "3", "--overlap", "0", "--gold-every", "0"]) as (
        address,
        process,
    ):
        assert process.stdout is not None
        lines.append(process.stdout.readline())
        code = lines[0].split("#join=")[1].split()[0]
        # the admin's own invitation makes one admin, who may label too
        run(address, [Person("root", PASSWORD, code)], of_world(folder / "demo" / "world"), 8)
    assert lines[0].startswith(f"the first admin comes in by {address}/admin/#join=")
    assert align("export", "--store", url, "out.jsonl") == 0
    found = [r for r in read_records("out.jsonl", "preference") if isinstance(r, Preference)]
    truth = {r.id: next(i for i, s in enumerate(r.responses) if s.model == "true") for r in found}
    right = [record.preferred == truth[record.id] for record in found]
    assert len(right) == 8 and sum(right) >= 5


def test_a_title_is_kept(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert project.service.title == "align"
    for title in (" ", "x" * 61, "a\u202eb"):
        assert align("serve", "--store", project.url, "--title", title) == 2
        assert "a project's title has 1 to 60" in capsys.readouterr().err
    # kept, though it may not be served there
    elsewhere = ("--host", "0.0.0.0", "--port", "0")
    assert align("serve", "--store", project.url, "--title", "  Birds\n and bees", *elsewhere) == 2
    assert project.service.title == "Birds and bees"


def test_simulate(
    project: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--store", project.url, "--labelers", "2", "--votes", "2"]
    assert align("simulate", *words, "--url", "http://127.0.0.1:1") == 2
    assert "need an invitation" in capsys.readouterr().err
    # three pairs: for one of the two there is no second
    assert align("simulate", *words) == 0
    out = capsys.readouterr().out
    assert "3 votes of 2 labelers\nround trip of a vote: median" in out and "1 ended early: done" in out
    assert project.service.overview()["votes"] == 3
    names, hashes = zip(*[(row.name, row.password) for row in accounts(project)])
    assert all(name.startswith("sim-") for name in names) and len(set(names)) == 2
    # with a password that no source code tells
    assert not check_password("simulated labeler", hashes[0])
    # where nobody answers, and where something else does
    monkeypatch.setattr("apps.annotate.simulate.PATIENCE", 0.1)
    code = project.service.accounts.invite().code
    assert align("simulate", *words, "--invitation", code, "--url", "http://127.0.0.1:1") == 2
    assert "is the server running there?" in capsys.readouterr().err
    with someone_else() as url:
        assert align("simulate", *words, "--invitation", code, "--url", url) == 2
    assert "no answer of the annotation app" in capsys.readouterr().err


@contextlib.contextmanager
def someone_else() -> Iterator[str]:
    """Another program's web server."""
    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


# --- training straight from a store ---


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Settings that reach the reward stage, in whose place nothing heavy is loaded."""
    seen: list[Any] = []
    module = types.ModuleType("align.reward")

    def run_(settings: Any) -> Path:
        seen.append((settings, Path(settings.data.path).read_text()))
        (Path(settings.output) / "settings.yaml").write_text("")
        return Path(settings.output)

    module.run = run_  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "align.reward", module)
    return seen


def reward(project: Project, *words: str) -> int:
    recipe = project.folder / "reward.yaml"
    recipe.write_text(
        f"output: {project.folder}/run\nmodel: {{path: org/model}}\nfacts: []\n"
        f"data: {{path: '{project.url}'}}\n"
    )
    return cli.main(["reward", str(recipe), *words])


def test_the_reward_stage_trains_from_a_store(project: Project, stage: list[Any]) -> None:
    for name in ("ann", "bob", "cid"):
        project.vote(name)
    assert reward(project) == 0
    settings, text = stage[0]
    assert settings.data.path == f"{project.folder}/run/.votes/data.jsonl"
    assert (settings.data.format, settings.data.images) == (None, str(project.folder / "images"))
    records = [json.loads(line) for line in text.splitlines()]
    assert [record["annotator"] for record in records] == ["majority"] * 3
    told = read_json(project.folder / "run" / ".votes" / "data.json")
    assert told == {"store": project.url, "labels": "majority", "records": 3}


def test_a_run_that_is_resumed_reads_what_it_began_with(project: Project, stage: list[Any]) -> None:
    project.vote("ann")
    assert reward(project, "data.options.labels=labelers") == 0
    project.vote("bob")
    assert reward(project, "data.options.labels=labelers", "--resume") == 0
    assert stage[0][1] == stage[1][1] and len(stage[1][1].splitlines()) == 1
    assert json.loads(stage[1][1])["annotator"] == "ann"


def test_a_dry_run_leaves_nothing(
    project: Project, stage: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    project.vote("ann")
    seen: list[Path] = []

    def look(settings: Any) -> Path:
        seen.append(Path(settings.data.path))
        assert seen[0].exists()
        return seen[0]

    monkeypatch.setattr(sys.modules["align.reward"], "run", look)
    assert reward(project, "--dry-run", "data.format=annotate") == 0
    assert not seen[0].exists() and not (project.folder / "run").exists()


def test_what_cannot_be_trained_on(
    project: Project, stage: list[Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for words, told in (
        ((), "no decided vote"),
        (("data.format=trl",), "data.format: a store is of the format 'annotate'"),
        (("data.options.kind=x",), "data.options.kind: unknown option"),
        (("data.options.labels=mean",), "unknown labels 'mean'"),
        (("data.path=sqlite:///none.db",), "no store there"),
    ):
        assert reward(project, *words) == 2
        assert told in capsys.readouterr().err, words
    sft = project.folder / "sft.yaml"
    sft.write_text(
        f"output: {project.folder}/run\nmodel: {{path: org/model}}\ndata: {{path: '{project.url}'}}\n"
    )
    assert cli.main(["sft", str(sft)]) == 2
    assert "does not learn from preferences" in capsys.readouterr().err
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    assert reward(project) == 2 and "several processes" in capsys.readouterr().err
    assert stage == []


def test_what_is_a_store() -> None:
    assert is_store("sqlite:///votes.db") and is_store("postgresql+psycopg://me@db/votes")
    for path in ("votes.db", "data/sqlite.jsonl", "sqlite", ["sqlite:///a"], None, "sqlite.jsonl://x"):
        assert not is_store(path)
