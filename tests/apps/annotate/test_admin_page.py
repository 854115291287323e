"""The admin's page in a headless browser: figures, decisions, invitations, rules, exports; admins alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from apps.annotate.admin_api import invitation_path
from apps.annotate.exports import export
from apps.annotate.results import Answers, Task
from tests.apps.annotate.browsers import HOSTILE, Visit, served
from tests.apps.annotate.conftest import PASSWORD, MakeProject, Project, pair

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

TABS = ("overview", "labelers", "agreement", "bias", "disagreements", "export")


def enter(visit: Visit, name: str, section: str = "") -> Page:
    """Sign in at the admin's page, at a section of it."""
    return visit.enter(name, f"/admin/{section}")


def tab(visit: Visit, name: str) -> None:
    """Open a section by its link, and wait until it is there."""
    visit.page.click(f"#ad-tab-{name}")
    there = f"#ad-{name}:not([hidden]):not([aria-busy]) .ad-bar .ad-soft:not(:empty)"
    visit.page.wait_for_selector(there, state="attached")


Go = Callable[..., Visit]


@pytest.fixture
def voted(make_project: MakeProject) -> Project:
    """Twelve pairs with hostile responses, three voters on each who err at random, and one who skips all."""
    project = make_project(0)
    texts = (f"A red cat. {HOSTILE}", f"A red cat and a dog, 🐈 and more. {HOSTILE}")
    project.add([pair(f"{k:03d}", texts) for k in range(12)], labels=3)
    project.add([pair(f"g{k}", choices={"hallucination": 0}) for k in range(2)], "gold")
    project.service.set_rules({"gold_every": 3})
    while isinstance(task := project.service.next_task(project.user("dan")), Task):
        project.service.skip(project.user("dan"), task.pair, "other", project.token(), HOSTILE)
    for name in ("ann", "bob", "cid"):
        for _ in range(14):
            task = project.service.next_task(project.user(name))
            if not isinstance(task, Task):
                break
            project.clock.now += 60
            # whatever the order in which pairs come
            rng = random.Random(f"{name}/{task.messages[0].content}")
            right = "AB"[task.responses[0].text != texts[0]]
            side = right if rng.random() < 0.75 else "BA"["AB".index(right)]
            wrong = "AB".index(side) ^ 1
            # from the cat on, which stands behind a sign of two UTF-16 units
            at = task.responses[wrong].text.find("and more")
            marks = {"AB"[wrong]: [(at, at + 8)]} if at > 0 else {}
            said = Answers("tie", side) if rng.random() < 0.2 else Answers(side, None, marks)  # type: ignore[arg-type]
            project.service.vote(project.user(name), task.pair, said, project.token(), rng.uniform(5, 40))
    project.user("root", "admin")
    return project


@pytest.fixture
def go(browser: Browser, voted: Project) -> Iterator[Go]:
    """``go(**context)``: a visit of the voted project's site.

    Nothing may go wrong in it (``Visit.check``), and nothing that labelers or data say may run.
    """
    visits: list[Visit] = []
    with served(voted) as url:

        def make(**more: Any) -> Visit:
            visits.append(Visit(browser, url, **more))
            return visits[-1]

        yield make
        for visit in visits:
            visit.check()
            assert visit.page.evaluate("window.hit") is None
            visit.context.close()


def rounded(value: float, digits: int) -> str:
    """As browsers round: a five goes up."""
    found = Decimal(value).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP)
    return str(found).replace("-", "−")


def words(found: dict[str, Any], percent: bool) -> str:
    scale, digits = (100, 1) if percent else (1, 2)
    value, low, high = (rounded(found[key] * scale, digits) for key in ("value", "low", "high"))
    return f"{value}{' %' if percent else ''} {low} to {high} · {found['n']} pairs"


def test_agreement_is_what_the_service_says(go: Go, voted: Project) -> None:
    visit = go()
    page = enter(visit, "root", "#agreement")
    page.wait_for_selector("#ad-agreement .ad-dots")
    found = voted.service.agreement()
    shown = 0
    for question in ("preferred", "hallucination"):
        for key, figure in found[question].items():
            text = page.inner_text(f'[data-figure="{question}.{key}"] .ad-numbers')
            assert text == words(figure, key == "raw"), (question, key)
            shown += 1
    assert shown == 9
    dot = page.get_attribute('[data-figure="preferred.raw"] .ad-dot', "style") or ""
    assert float(dot.removeprefix("left: ").removesuffix("%;")) == pytest.approx(
        100 * found["preferred"]["raw"]["value"], abs=0.01
    )
    assert page.inner_text("#ad-agreement .ad-linetext") == "thesis: 69 %"
    rows = page.locator("#ad-agreement tbody tr")
    assert rows.count() == len(found["labelers"]) == 3
    first = rows.first.inner_text().split()
    assert first[:3] == [found["labelers"][0][key] for key in ("first", "second")] + ["12"]


def test_overview_labelers_and_bias(go: Go, voted: Project) -> None:
    visit = go()
    page = enter(visit, "root")
    page.wait_for_selector("#ad-overview .ad-tile")
    found = voted.service.overview()
    assert found["votes"] == 36
    assert "36" in page.inner_text('[data-tile="votes"]') and "of 36 wanted" in page.inner_text(
        '[data-tile="votes"]'
    )
    assert f"{found['seconds']['browser']['median']:.0f} s" in page.inner_text('[data-tile="time"]')
    assert page.inner_text('[data-tile="forecast"]') == "Every pair has its votes, or a decision."
    assert page.locator("#ad-overview .ad-column").count() == 48
    # votes come whole
    for most, levels in ((1, "0,2,4"), (5, "0,3,6"), (12, "0,10,20"), (41, "0,25,50")):
        drawn = f"admin.columns({{bars: [{{value: {most}, text: '', short: ''}}], title: '', unit: 'vote'}})"
        found_levels = f"[...{drawn}.querySelectorAll('.ad-level')].map((one) => one.textContent).join()"
        assert page.evaluate(found_levels) == levels
    tab(visit, "labelers")
    rows = voted.service.labelers()
    names = page.locator("#ad-labelers tbody .ad-name")
    assert set(names.all_inner_texts()) == {"ann", "bob", "cid", "dan", "root"}
    heading = page.locator("#ad-labelers th", has_text="gold right")
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    right = {row.name: row.gold_right["value"] for row in rows}
    told = [right[name] for name in names.all_inner_texts()]
    # who has none stands at the end
    known = sorted((value for value in told if value is not None), reverse=True)
    assert told == known + [None] * (5 - len(known)) and len(known) >= 1
    # an answer that does not come is said, and asked for again
    page.route("**/api/admin/bias", lambda route: route.abort())
    page.click("#ad-tab-bias")
    page.wait_for_selector("#ad-bias [role=alert]")
    page.unroute("**/api/admin/bias")
    page.click("#ad-bias >> text=Try again")
    page.wait_for_selector("#ad-bias .ad-dots")
    assert page.locator("#ad-bias [role=alert]").count() == 0
    bias = voted.service.bias()
    assert "pairs are drawn again" in page.inner_text("#ad-bias .ad-stack > :first-child")
    for key in ("chose_a", "chose_longer"):
        text = page.inner_text(f'[data-figure="preferred.{key}"] .ad-numbers')
        assert text == words(bias["preferred"][key], True).replace("pairs", "votes")
    assert page.inner_text('[data-figure="ties"] b') == f"{rounded(100 * bias['ties']['value'], 1)} %"


def test_a_disagreement_is_decided_by_keys(go: Go, voted: Project) -> None:
    count, waiting = voted.service.disputed()
    assert count >= 3
    visit = go()
    page = enter(visit, "root", "#disagreements")
    page.wait_for_selector(".ad-response")
    assert page.inner_text('[data-tile="waiting"]') == f"{count} pairs wait"
    # as text, and whole
    for index, text in enumerate(waiting[0].responses):
        assert page.text_content(f'[data-response="{index}"] .ad-text') == text
    marked = page.locator('[data-response="1"] mark')
    if any(vote.marks for vote in waiting[0].votes):
        assert marked.all_inner_texts() == ["and more"]
    assert f"Skipped: something else ({HOSTILE})" in (page.text_content(".ad-votes") or "")
    assert "model-" not in page.content()
    page.keyboard.press("m")
    page.keyboard.type(f"1 2 3 {HOSTILE}")
    assert voted.service.disputed()[0] == count
    page.keyboard.press("Escape")
    page.keyboard.press("2")
    page.wait_for_selector(f'[data-tile="waiting"]:text-matches("^{count - 1} pair")')
    # a tie, back, a tie again, then the more helpful one
    for key in ("3", "Escape", "3"):
        page.keyboard.press(key)
    assert "more helpful" in page.inner_text(".ad-panel h3")
    page.keyboard.press("1")
    page.wait_for_selector(f'[data-tile="waiting"]:text-matches("^{count - 2} pair")')
    left, still = voted.service.disputed()
    assert left == count - 2 and [one.pair for one in still] == [one.pair for one in waiting[2:]]
    file = voted.folder / "decided.jsonl"
    assert export(voted.service.store, file, "adjudicated").written == 12
    assert decisions(voted) == [(waiting[0].n, 1, None, f"1 2 3 {HOSTILE}"), (waiting[1].n, None, 0, None)]
    # back to the first, which can be changed
    for _ in range(2):
        page.keyboard.press("p")
    page.wait_for_selector(".ad-panel .al-note")
    assert "Response 2: fewer hallucinations" in page.inner_text(".ad-panel .al-note")
    page.click('.ad-decide:has-text("Response 1")')
    page.wait_for_selector(f'.al-toasts >> text="Pair {waiting[0].n}: Response 1: fewer hallucinations"')
    assert decisions(voted)[-1][:3] == (waiting[0].n, 0, None)
    assert voted.service.disputed()[0] == count - 2


def decisions(project: Project) -> list[tuple[Any, ...]]:
    query = (
        "SELECT pair_n, hallucination, helpfulness, reason FROM events WHERE kind = 'adjudicate' ORDER BY id"
    )
    with project.service.store.read() as connection:
        return [tuple(row) for row in connection.exec_driver_sql(query)]


def test_a_download_is_the_export(go: Go, voted: Project, tmp_path: Path) -> None:
    visit = go()
    page = enter(visit, "root", "#export")
    for labels, to in (("majority", "schema"), ("labelers", "trl"), ("adjudicated", "llava_rlhf")):
        page.check(f'input[value="{labels}"]')
        page.check(f'input[value="{to}"]')
        with page.expect_download() as download:
            page.click("text=/^Download/")
        want = tmp_path / to
        outcome = export(voted.service.store, want, labels, to)
        assert download.value.path().read_bytes() == want.read_bytes()
        assert f"{outcome.written} record" in page.inner_text("#ad-export [role=status]")
        assert f"--labels {labels} --to {to}" in page.inner_text("#ad-export code")


def test_an_invitation_and_a_rule(go: Go, voted: Project) -> None:
    visit = go()
    page = enter(visit, "root")
    page.wait_for_selector("#ad-overview .ad-tile")
    page.fill("#ad-uses", "2")
    page.click("text=Make an invitation")
    link = page.input_value(".ad-link")
    assert link.startswith(f"{visit.url}/#join=")
    page.fill("#ad-lease", "20")
    # a refresh takes nothing away from what is being typed
    page.click("#ad-overview >> text=Refresh")
    page.wait_for_selector("#ad-overview:not([aria-busy])")
    page.click("text=Save the rules")
    page.wait_for_selector(".ad-saved:not(:empty)")
    assert (voted.service.rules.lease, voted.service.rules.gold_every) == (1200.0, 3)
    page.fill("#ad-pass_mark", "9")
    page.click("text=Save the rules")
    page.wait_for_selector(".al-note.bad")
    assert voted.service.rules.pass_mark == 0
    new = go()
    new.page.goto(link)
    new.page.fill("input[name=username]", "newcomer")
    new.page.fill("input[name=password]", PASSWORD)
    new.page.keyboard.press("Enter")
    new.page.wait_for_selector("form", state="detached")
    assert {row.name: row.role for row in voted.service.labelers()}["newcomer"] == "labeler"


def test_an_invitation_is_revoked(go: Go, voted: Project) -> None:
    accounts = voted.service.accounts
    visit = go()
    page = enter(visit, "root")
    page.wait_for_selector("#ad-overview .ad-tile")
    assert page.locator(".ad-open table").count() == 0
    old = accounts.invite("admin", 3)
    voted.clock.now += 60
    page.click("text=Make an invitation")
    page.wait_for_selector(".ad-open tbody tr >> nth=1")
    new = accounts.invitations()[0]
    rows = page.locator(".ad-open tbody tr")
    # the newest first, and no code
    assert [text.split()[:3] for text in rows.all_inner_texts()] == [
        [new.id, "labeler", "1"], [old.id, "admin", "3"],
    ]  # fmt: skip
    assert old.code not in page.content()
    page.click(f'[aria-label="Revoke {new.id}"]')
    page.click("text=Keep it")
    assert len(accounts.invitations()) == 2
    for one, made in ((old, 1), (new, 0)):
        # the link of another invitation is still there to be copied
        assert page.locator(".ad-link").count() == 1
        page.click(f'[aria-label="Revoke {one.id}"]')
        page.click("text=Revoke it")
        page.wait_for_selector(f'[aria-label="Revoke {one.id}"]', state="detached")
        assert page.locator(".ad-link").count() == made
    assert accounts.invitations() == [] and page.locator(".ad-open table").count() == 0
    # one that is over meanwhile goes, with a word
    gone = accounts.invite()
    page.click("#ad-overview >> text=Refresh")
    page.click(f'[aria-label="Revoke {gone.id}"]')
    accounts.revoke(gone.id)
    page.click("text=Revoke it")
    page.wait_for_selector("text=it may be over, or revoked already")
    page.wait_for_selector(".ad-open table", state="detached")


def test_an_account_is_shut_out(go: Go, voted: Project) -> None:
    visit = go()
    page = enter(visit, "root", "#labelers")
    page.click('[aria-label="Manage bob"]')
    page.fill("#ad-own-limit", "50")
    page.click("dialog >> text=/^Set$/")
    page.wait_for_selector("dialog", state="detached")
    page.wait_for_selector("text=12 of 50")
    page.click('[aria-label="Manage bob"]')
    page.click("text=Shut out")
    page.wait_for_selector(".ad-badge.ad-bad")
    row = {row.name: row for row in voted.service.labelers()}["bob"]
    assert row.disabled and row.limit == 50
    page.click('[aria-label="Manage root"]')
    assert page.is_disabled("dialog >> text=Shut out")


def test_nothing_for_labelers(go: Go) -> None:
    admin = go()
    page = enter(admin, "root")
    page.wait_for_selector("#ad-overview .ad-tile")
    for name in TABS[1:]:
        tab(admin, name)
    asked = {urlsplit(one).path for one in admin.asked if "/api/admin/" in one}
    assert len(asked) == 8
    visit = go()
    page = enter(visit, "ann")
    page.wait_for_selector("text=This page is for admins")
    assert page.locator("[role=tab], table, form").count() == 0
    assert not [one for one in visit.asked if "/api/admin/" in one]
    statuses = page.evaluate(
        "paths => Promise.all(paths.map(async path => (await fetch(path)).status))",
        [*asked, "/api/admin/export"],
    )
    assert set(statuses) == {403}
    # nor is there a way around by the page's host
    for path in (
        "/admin/gradio_api/info",
        "/admin/gradio_api/queue/data",
        "/admin/gradio_api/file=/etc/passwd",
    ):
        assert page.evaluate("async path => (await fetch(path)).status", path) == 404, path


def test_a_session_that_ends(go: Go, voted: Project) -> None:
    visit = go()
    page = enter(visit, "root")
    page.wait_for_selector("#ad-overview .ad-tile")
    voted.service.accounts.change("root", disabled=False)
    # signing out needs an answer, and says so where none comes
    page.route("**/api/logout", lambda route: route.abort())
    page.click("text=Sign out")
    page.wait_for_selector("text=The server cannot be reached")
    page.click("#ad-tab-bias")
    page.wait_for_selector("text=Your session is over")
    assert "36" not in page.inner_text("#align-admin")


def test_before_the_first_vote(browser: Browser, make_project: MakeProject) -> None:
    project = make_project(2)
    project.service.set_title("Birds")
    invited = project.service.accounts.invite("admin")
    with served(project) as url:
        visit = Visit(browser, url)
        page = visit.enter("root", invitation_path(invited))
        page.wait_for_selector(".ad-brand >> text=Birds")
        assert page.title() == "Overview · Birds · admin"
        page.wait_for_selector("#ad-overview .ad-tile")
        for name, text in {
            "labelers": "No votes yet", "agreement": "Nothing to compare yet", "bias": "No votes yet",
            "disagreements": "Nothing to decide", "export": "Nothing to download yet",
        }.items():  # fmt: skip
            tab(visit, name)
            assert text in page.inner_text(f"#ad-{name}"), name
        visit.check()
        visit.context.close()


def test_a_phone_and_the_dark(go: Go) -> None:
    visit = go(viewport={"width": 400, "height": 800}, color_scheme="dark")
    page = enter(visit, "root")
    page.wait_for_selector("#ad-overview .ad-tile")
    for name in TABS:
        tab(visit, name)
        width, sees = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert width <= sees == 400, name
        assert visit.faint() == [], name
        for button in page.locator(f"#ad-{name} .al-button.primary").all():
            button.hover()
            assert visit.faint() == [], name
    dark = page.evaluate("getComputedStyle(document.querySelector('#align-admin .ad-head')).backgroundColor")
    page.click('[aria-label="Light colours"]')
    light = page.evaluate("getComputedStyle(document.querySelector('#align-admin .ad-head')).backgroundColor")
    assert visit.faint() == []
    assert brightness(dark) < 60 < 200 < brightness(light)


def brightness(color: str) -> float:
    parts = color.removeprefix("rgb(").removesuffix(")").split(",")
    return sum(float(part) for part in parts) / 3
