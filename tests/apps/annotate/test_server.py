"""The HTTP API: who may come in, what a browser may do, what is never told."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import sqlite3

from sqlalchemy import event
from starlette.testclient import TestClient

from apps.annotate.accounts import BY_ACCOUNT, BY_ADDRESS, IDLE, LONGEST_SESSION, WINDOW
from apps.annotate.pages import with_pages
from apps.annotate.serve import Address
from apps.annotate.server import create_app
from apps.annotate.store import open_store, parse_url, without_password
from apps.annotate.web import MAX_BODY, Site
from tests.apps.annotate.conftest import PASSWORD, Browser, Enter, MakeProject, Project, code_of, pair

SCRIPT = "<script>alert('x')</script> **bold** [link](javascript:alert(1)) <img src=x onerror=alert(2)>"


def test_a_first_session(enter: Enter) -> None:
    ann = enter("ann")
    assert ann.get("session").json()["user"] == {"name": "ann", "role": "labeler"}
    task = ann.post("next").json()
    assert task["kind"] == "task" and [r["side"] for r in task["responses"]] == ["A", "B"]
    body = {"pair": task["pair"], "token": "token-00001", "hallucination": "A", "seconds": 3.5, "next": True}
    found = ann.post("vote", body).json()
    assert found["vote"] == {"event": 1, "repeated": False, "qualification": None}
    assert found["next"]["kind"] == "task" and found["next"]["pair"] != task["pair"]
    assert ann.post("vote", body).json()["vote"] == {"event": 1, "repeated": True, "qualification": None}
    undone = ann.post("undo", {"token": "token-00002"}).json()
    assert undone["pair"] == task["pair"]
    assert undone["before"] == {"hallucination": "A", "helpfulness": None, "marks": {}}
    skipped = {"pair": task["pair"], "token": "token-00003", "reason": "unclear"}
    assert ann.post("skip", skipped).json()["event"] == 3
    task = ann.post("next").json()
    assert ann.post("renew", {"pair": task["pair"]}).json() == {"seconds_left": 600.0}
    assert ann.post("release").json() == {"released": True}
    assert ann.get("progress").json()["skips"] == 1
    assert "unclear" in ann.get("reasons").json()
    assert ann.post("logout").status_code == 200
    assert code_of(ann.get("session")) == (401, "unauthorized")


def test_nothing_without_a_session(project: Project, enter: Enter) -> None:
    task = enter("ann").post("next").json()
    stranger = Browser(project)
    posts = ("next", "undo", "logout", "release", "renew", "skip", "vote")
    body = {"pair": task["pair"], "token": "token-00001"}
    bodies = {"undo": {"token": "token-00001"}, "renew": {"pair": task["pair"]}}
    bodies |= {"skip": body | {"reason": "unclear"}, "vote": body | {"hallucination": "A"}}
    for path in posts:
        assert code_of(stranger.post(path, bodies.get(path)))[0] == 401, path
    for path in ("session", "progress", f"image/{task['pair']}", "admin/overview", "admin/export"):
        assert code_of(stranger.get(path))[0] == 401, path
    for path in ("/docs", "/openapi.json", "/redoc"):
        assert stranger.http.get(path).status_code == 404


def test_admins_alone(enter: Enter) -> None:
    ann, root = enter("ann"), enter("root", "admin")
    for path in ("overview", "labelers", "agreement", "bias", "disputed", "rules", "sizes", "export"):
        assert code_of(ann.get(f"admin/{path}")) == (403, "forbidden"), path
    decision = {"pair": "x", "token": "token-00001", "hallucination": 0, "helpfulness": None}
    for path, body in {"adjudicate": decision, "invite": {}, "labeler": {"name": "ann"}, "rules": {}}.items():
        assert code_of(ann.post(f"admin/{path}", body)) == (403, "forbidden"), path
    for path in ("overview", "labelers", "agreement", "bias", "disputed", "rules", "sizes"):
        assert root.get(f"admin/{path}").status_code == 200, path


def test_an_admin_is_told_the_stores_url(enter: Enter, project: Project) -> None:
    found = enter("root", "admin").get("admin/sizes").json()
    store = open_store(found["store"])
    assert store.url == parse_url(project.url)
    store.close()
    for given, told in {
        "postgresql://ann:secret@host:5433/votes?sslmode=require&password=secret": (
            "postgresql://ann@host:5433/votes?sslmode=require"
        ),
        "postgresql://ann@host/votes": "postgresql://ann@host/votes",
        "sqlite:///runs/votes.db": "sqlite:///runs/votes.db",
    }.items():
        assert without_password(parse_url(given)) == told


def test_a_change_needs_the_sessions_own_token(enter: Enter) -> None:
    ann, bob = enter("ann"), enter("bob")
    own = ann.csrf
    for wrong in ("", "x", bob.csrf):
        ann.csrf = wrong
        assert code_of(ann.post("next")) == (403, "forbidden")
    ann.csrf = own
    assert ann.post("next").status_code == 200


def test_requests_from_other_sites_are_refused(enter: Enter) -> None:
    ann = enter("ann")
    for origin in ("http://evil.example", "null", "http://127.0.0.1:9999", "http://127.0.0.1.evil.example"):
        assert code_of(ann.post("next", Origin=origin)) == (403, "forbidden"), origin
        login = {"name": "ann", "password": PASSWORD}
        assert ann.http.post("/api/login", json=login, headers={"Origin": origin}).status_code == 403
    assert ann.post("next", Origin="http://127.0.0.1").status_code == 200
    # a form cannot send JSON
    kinds = {"Content-Type": "text/plain", "X-CSRF-Token": ann.csrf}
    assert ann.http.post("/api/next", content="{}", headers=kinds).status_code == 415


def test_a_name_that_was_pointed_here_is_refused(project: Project) -> None:
    browser = Browser(project)
    for host in ("evil.example", "evil.example:7861", "127.0.0.1.evil.example", ""):
        found = browser.http.get("/api/reasons", headers={"Host": host})
        assert found.status_code == 421, host
    for host in ("localhost:7861", "127.0.0.1", "[::1]:7861"):
        assert browser.http.get("/api/reasons", headers={"Host": host}).status_code == 200


def test_names_that_are_none_are_refused(project: Project) -> None:
    browser = Browser(project)
    for sent in ({"Host": "[::1"}, {"Origin": "http://[x"}):
        assert code_of(browser.http.post("/api/login", json={}, headers=sent)) == (400, "host"), sent


def test_pages_behind_a_proxy_name_the_sites_own_address(project: Project) -> None:
    """Whether the proxy passes the host on or not, and says that it ended TLS or not."""
    site = Address(public="https://labels.example.org").site()
    app = with_pages(create_app(project.service, site), project.service, site)
    http = TestClient(app, base_url="http://127.0.0.1:7861")
    claims = {"X-Forwarded-Proto": "http", "X-Forwarded-Host": "evil.example"}
    for path, root in (("/", ""), ("/admin/", "/admin")):
        for sent in ({}, {"Host": "labels.example.org"}, claims, {"X-Gradio-Server": "http://evil.example"}):
            page = http.get(path, headers=sent)
            assert f'"root":"https://labels.example.org{root}"' in page.text, (path, sent)
            assert not re.search(r"http:.{0,4}(127|labels|evil)", page.text), (path, sent)
    login = {"name": "ann", "password": PASSWORD}
    project.user("ann")
    for origin, status in (("https://labels.example.org", 200), ("https://evil.example", 403)):
        found = http.post("/api/login", json=login, headers={"Origin": origin})
        assert found.status_code == status, origin


def test_cookies(project: Project) -> None:
    project.user("ann")
    cookie = Browser(project).login("ann").headers["set-cookie"]
    assert cookie.startswith("align_session=")
    parts = {part.strip().lower() for part in cookie.split(";")[1:]}
    assert {"httponly", "samesite=lax", "path=/"} <= parts and "secure" not in parts
    secure = Browser(project, Site(secure=True), base="https://127.0.0.1")
    found = secure.login("ann")
    assert found.headers["set-cookie"].startswith("__Host-align_session=")
    assert "Secure" in found.headers["set-cookie"] and "Domain" not in found.headers["set-cookie"]
    assert "max-age" in found.headers["strict-transport-security"]


def test_a_session_is_new_at_each_login_and_the_old_one_ends(project: Project, enter: Enter) -> None:
    ann = enter("ann")
    old = dict(ann.http.cookies)
    assert ann.login("ann").status_code == 200
    assert dict(ann.http.cookies) != old
    stale = f"align_session={old['align_session']}"
    assert Browser(project).get("session", Cookie=stale).status_code == 401
    # a token that somebody put there beforehand is not taken over
    fixed = Browser(project)
    chosen = {"Cookie": "align_session=chosen-by-somebody-else"}
    login = {"name": "ann", "password": PASSWORD}
    assert fixed.http.post("/api/login", json=login, headers=chosen).status_code == 200
    assert fixed.http.cookies["align_session"] != "chosen-by-somebody-else"
    assert Browser(project).get("session", **chosen).status_code == 401


def test_sessions_expire(project: Project, enter: Enter) -> None:
    ann = enter("ann")
    project.clock.now += IDLE - 1
    assert ann.get("session").status_code == 200
    project.clock.now += IDLE - 1
    assert ann.get("session").status_code == 200
    project.clock.now += IDLE
    assert code_of(ann.get("session")) == (401, "unauthorized")
    ann.login("ann")
    # in use all the time, and yet not for ever
    for _ in range(int(LONGEST_SESSION / (IDLE / 2)) - 1):
        project.clock.now += IDLE / 2
        assert ann.get("session").status_code == 200
    project.clock.now += IDLE / 2
    assert ann.get("session").status_code == 401


def test_shutting_out_ends_sessions(project: Project, enter: Enter) -> None:
    ann, root = enter("ann"), enter("root", "admin")
    assert root.post("admin/labeler", {"name": "ann", "disabled": True}).status_code == 200
    assert ann.get("session").status_code == 401
    assert code_of(ann.login("ann")) == (401, "unauthorized")
    root.post("admin/labeler", {"name": "ann", "disabled": False})
    assert ann.login("ann").status_code == 200
    project.service.accounts.change("ann", password="another long one")
    assert ann.get("session").status_code == 401 and ann.login("ann").status_code == 401
    assert root.post("admin/labeler", {"name": "root", "disabled": True}).status_code == 422
    assert root.post("admin/labeler", {"name": "ann", "limit": 10**30}).status_code == 422


def test_guesses_are_limited_by_account(project: Project) -> None:
    project.user("ann")
    project.user("bob")
    browser = Browser(project)
    for _ in range(BY_ACCOUNT):
        assert browser.login("ann", "wrong password").status_code == 401
    found = browser.login("ann")  # the right one, too
    assert code_of(found) == (429, "too_many") and int(found.headers["retry-after"]) > 60
    assert browser.login("bob").status_code == 200
    project.clock.now += WINDOW
    assert browser.login("ann").status_code == 200


def test_guesses_are_limited_by_address(project: Project) -> None:
    project.user("ann")
    browser = Browser(project)
    for k in range(BY_ADDRESS):
        assert browser.login(f"name{k}", "wrong password").status_code == 401
    assert browser.login("ann").status_code == 429
    body = {"code": "x", "name": "new", "password": PASSWORD}
    assert browser.http.post("/api/join", json=body).status_code == 429
    # nobody can say to come from elsewhere
    sent = {"X-Forwarded-For": "10.0.0.1"}
    login = {"name": "ann", "password": PASSWORD}
    assert browser.http.post("/api/login", json=login, headers=sent).status_code == 429


def test_unknown_names_look_like_wrong_passwords(project: Project) -> None:
    project.user("ann")
    browser = Browser(project)
    assert browser.login("ann", "wrong").json() == browser.login("nobody", "wrong").json()


def test_invitations(project: Project, enter: Enter) -> None:
    root = enter("root", "admin")
    made = root.post("admin/invite", {"uses": 2, "days": 1}).json()
    assert made["path"] == f"/#join={made['code']}" and made["role"] == "labeler"
    join = {"code": made["code"], "password": PASSWORD}
    new = Browser(project)
    assert new.post("join", join | {"name": "root"}).status_code == 409
    assert new.post("join", join | {"name": "<b>"}).status_code == 422
    assert new.post("join", join | {"name": "eve", "password": "short"}).status_code == 422
    found = new.post("join", join | {"name": "eve"})
    assert found.json()["user"] == {"name": "eve", "role": "labeler"}
    new.csrf = found.json()["csrf"]
    assert new.post("next").json()["kind"] == "task"
    cookie = f"align_session={new.http.cookies['align_session']}"
    assert new.post("join", join | {"name": "eva"}).status_code == 200
    # who was here before is signed out
    assert Browser(project).get("session", Cookie=cookie).status_code == 401
    assert code_of(new.post("join", join | {"name": "ewa"})) == (403, "forbidden")
    assert code_of(new.post("admin/invite")) == (403, "forbidden")
    late = root.post("admin/invite", {"days": 1}).json()["code"]
    project.clock.now += 86400
    assert new.post("join", join | {"name": "ewa", "code": late}).status_code == 403


def test_an_invitation_is_listed_and_revoked(project: Project, enter: Enter) -> None:
    root, ann, new = enter("root", "admin"), enter("ann"), Browser(project)
    assert root.get("admin/invitations").json() == []
    first = root.post("admin/invite", {"uses": 3, "days": 1}).json()
    made = project.clock.now
    project.clock.now += 60
    second = root.post("admin/invite", {"role": "admin"}).json()
    join = {"name": "eve", "password": PASSWORD, "code": first["code"]}
    assert new.post("join", join).status_code == 200
    found = root.get("admin/invitations")
    one = {"id": first["id"], "role": "labeler", "uses_left": 2, "created": made, "expires": made + 86400}
    times = {"created": made + 60, "expires": made + 60 + 7 * 86400}
    other = {"id": second["id"], "role": "admin", "uses_left": 1, **times}
    assert found.json() == [other, one]
    for code in (first["code"], second["code"]):
        hashed = hashlib.sha256(code.encode()).hexdigest()
        assert code not in found.text and hashed not in found.text
        # the name of an invitation is none, and opens nothing
        for wrong in (hashed, hashed[:10]):
            assert new.post("join", join | {"name": "mallory", "code": wrong}).status_code == 403
    assert code_of(ann.get("admin/invitations")) == (403, "forbidden")
    assert code_of(ann.post("admin/revoke", {"id": first["id"]})) == (403, "forbidden")
    assert code_of(root.post("admin/revoke", {"id": first["id"]}, **{"X-CSRF-Token": ""}))[0] == 403
    assert code_of(root.post("admin/revoke", {})) == (422, "invalid")
    for wrong in ("", "%", first["id"][:-1], first["code"], "0" * 10):
        assert code_of(root.post("admin/revoke", {"id": wrong})) == (404, "not_found"), wrong
    assert root.post("admin/revoke", {"id": first["id"]}).json() == {"revoked": first["id"]}
    assert root.get("admin/invitations").json() == [other]
    assert code_of(new.post("join", join | {"name": "ewa"})) == (403, "forbidden")
    assert root.post("admin/revoke", {"id": first["id"]}).status_code == 404
    # whoever came in by it stays; one that is used up or over is no open one
    assert new.login("eve").status_code == 200
    assert new.post("join", join | {"name": "boss", "code": second["code"]}).status_code == 200
    root.post("admin/invite", {"days": 1})
    project.clock.now += 86400
    assert enter("root", "admin").get("admin/invitations").json() == []


def test_secrets_are_not_in_the_store(project: Project, enter: Enter) -> None:
    ann, root = enter("ann"), enter("root", "admin")
    code = root.post("admin/invite").json()["code"]
    text = b"".join(path.read_bytes() for path in project.folder.glob("votes.db*"))
    for secret in (PASSWORD, code, ann.http.cookies["align_session"]):
        assert secret.encode() not in text
    assert (project.folder / "votes.db").stat().st_mode & 0o077 == 0


def test_odd_requests(enter: Enter) -> None:
    ann = enter("ann")
    pair_ = ann.post("next").json()["pair"]
    vote = {"pair": pair_, "token": "token-00001", "hallucination": "A"}
    for change in (
        {"hallucination": "C"}, {"hallucination": None}, {"extra": 1}, {"token": "a"}, {"token": "x" * 65},
        {"marks": {"A": [[0]]}}, {"marks": {"A": [[0, 5000]]}}, {"marks": {"D": [[0, 1]]}}, {"seconds": "x"},
        {"helpfulness": "A"}, {"hallucination": "tie"}, {"pair": 7},
    ):  # fmt: skip
        assert code_of(ann.post("vote", vote | change)) == (422, "invalid"), change
    sent = {"Content-Type": "application/json", "X-CSRF-Token": ann.csrf}
    for content, status in ((b"{", 422), (b"[" * 5000, 422), (b"\xff", 422), (b" " * (MAX_BODY + 1), 413)):
        assert ann.http.post("/api/vote", content=content, headers=sent).status_code == status
    assert ann.http.get("/api/vote").status_code == 405
    assert ann.post("vote", vote).status_code == 200


def test_headers_on_every_answer(project: Project, enter: Enter) -> None:
    ann = enter("ann")
    task = ann.post("next").json()
    seen = [ann.get("session"), ann.get(f"image/{task['pair']}"), Browser(project).get("session")]
    seen += [ann.http.get("/nothing-here"), ann.http.get("/api/reasons", headers={"Host": "evil.example"})]
    for found in seen:
        assert found.headers["x-content-type-options"] == "nosniff"
        assert found.headers["x-frame-options"] == "DENY"
        assert "frame-ancestors 'none'" in found.headers["content-security-policy"]
        assert found.headers["referrer-policy"] == "no-referrer"
    for found in (seen[0], seen[2]):
        assert found.headers["content-type"] == "application/json"
        assert found.headers["cache-control"] == "no-store"
        assert "default-src 'none'" in found.headers["content-security-policy"]


def test_responses_are_data_never_html(make_project: MakeProject, enter: Enter) -> None:
    project = make_project(0)
    project.add([pair("x", texts=(SCRIPT, "plain"))])
    ann = enter("ann", of=project)
    found = ann.post("next")
    assert found.headers["content-type"] == "application/json"
    texts = {shown["text"] for shown in found.json()["responses"]}
    # as it is, for a page to show as text
    assert texts == {SCRIPT, "plain"}


def test_a_labeler_is_told_of_no_model_file_or_person(make_project: MakeProject, enter: Enter) -> None:
    project = make_project(1, labels=2)
    bob, ann = enter("bob", of=project), enter("ann", of=project)
    task = bob.post("next").json()
    vote = {"pair": task["pair"], "token": "token-00001", "hallucination": "B", "next": True}
    told = [bob.post("vote", vote)]
    task = ann.post("next").json()
    told += [ann.post("vote", vote | {"pair": task["pair"]}), ann.post("undo", {"token": "token-00002"})]
    told += [ann.get("progress"), ann.get("session"), ann.get(f"image/{task['pair']}")]
    text = json.dumps([task]) + "".join(str(found.headers) for found in told)
    text += "".join(found.text for found in told[:-1])
    for word in ("model-", "secret", "img-", "cat.png", "bob"):
        assert word not in text.replace(project.folder.name, ""), word
    # the key of a pair says nothing of its id or its place
    assert len(task["pair"]) == 24


# --- admins ---


def test_a_dispute_is_decided(make_project: MakeProject, enter: Enter) -> None:
    project = make_project(2, labels=2)
    root = enter("root", "admin", of=project)
    for name, right in (("ann", True), ("bob", False)):
        browser = enter(name, of=project)
        task = browser.post("next").json()
        side = next(r["side"] for r in task["responses"] if (r["text"] == "A red cat.") == right)
        browser.post("vote", {"pair": task["pair"], "token": f"token-of-{name}", "hallucination": side})
    found = root.get("admin/disputed").json()
    assert found["count"] == 1
    (disputed,) = found["pairs"]
    assert disputed["responses"] == ["A red cat.", "A red cat and a dog."]
    assert [(v["labeler"], v["hallucination"]) for v in disputed["votes"]] == [("ann", 0), ("bob", 1)]
    assert "model-" not in json.dumps(disputed | {"id": ""})
    assert root.get(f"image/{disputed['pair']}").status_code == 200
    body = {"pair": disputed["pair"], "token": "decision-1", "hallucination": 0, "helpfulness": None}
    assert code_of(root.post("admin/adjudicate", body | {"helpfulness": 1})) == (422, "invalid")
    number = root.post("admin/adjudicate", body).json()["event"]
    again = root.post("admin/adjudicate", body).json()
    assert again == {"event": number, "repeated": True, "qualification": None}
    assert root.get("admin/disputed").json() == {"count": 0, "pairs": []}
    exported = root.get("admin/export?labels=adjudicated")
    assert exported.headers["content-disposition"] == 'attachment; filename="adjudicated.jsonl"'
    (record,) = [json.loads(line) for line in exported.text.splitlines()]
    assert record["choices"] == {"hallucination": 0, "helpfulness": None}
    assert record["meta"]["votes"]["hallucination"] == [1, 1, 0]
    assert root.get("admin/export?labels=all").status_code == 422
    assert root.get("admin/disputed?limit=-1").status_code == 422


def test_rules_and_limits(project: Project, enter: Enter) -> None:
    root, ann = enter("root", "admin"), enter("ann")
    assert root.post("admin/rules", {"lease": 60, "limit": 1}).json()["limit"] == 1
    assert root.post("admin/rules", {"lease": 1}).status_code == 422
    task = ann.post("next").json()
    assert task["seconds_left"] == 60
    vote = {"pair": task["pair"], "token": "token-00001", "hallucination": "A", "next": True}
    assert ann.post("vote", vote).json()["next"] == {"reason": "limit", "wait": None, "kind": "none"}
    root.post("admin/labeler", {"name": "ann", "limit": 2})
    assert ann.post("next").json()["kind"] == "task"
    assert code_of(root.post("admin/labeler", {"name": "nobody", "limit": 2})) == (404, "not_found")
    rows = {row["name"]: row for row in root.get("admin/labelers").json()}
    assert (rows["ann"]["votes"], rows["ann"]["limit"], rows["root"]["votes"]) == (1, 2, 0)


def test_a_store_that_cannot_write_is_said_and_nothing_is_kept(project: Project, enter: Enter) -> None:
    ann = enter("ann")
    task = ann.post("next").json()
    body = {"pair": task["pair"], "token": "token-00001", "hallucination": "A"}
    engine = project.service.store.engine
    event.listen(engine, "connect", lambda c, _: c.execute("PRAGMA busy_timeout=50").close())
    engine.dispose()
    with contextlib.closing(sqlite3.connect(project.folder / "votes.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        found = ann.post("vote", body)
        assert code_of(found) == (503, "unavailable") and "locked" not in found.text
        other.execute("ROLLBACK")
    assert ann.post("vote", body).json()["vote"] == {"event": 1, "repeated": False, "qualification": None}
