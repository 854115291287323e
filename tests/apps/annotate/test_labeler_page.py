"""The labeler's page in a headless browser: a first session by keyboard, and what may go wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select

from apps.annotate.accounts import IDLE
from apps.annotate.admin_api import invitation_path
from apps.annotate.demo import make
from apps.annotate.imports import Wish, import_pairs
from apps.annotate.pages import guide
from apps.annotate.results import SKIP_REASONS
from apps.annotate.tables import assignments
from data.convert import Source
from data.jsonl import read_records
from data.schema import HALLUCINATION, Image, Preference
from tests.apps.annotate.browsers import Visit, chosen, log, press, submit, texts, visiting
from tests.apps.annotate.conftest import MakeProject, Project, pair

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The demonstration's pairs, with their pictures under ``world``."""
    folder = tmp_path_factory.mktemp("demo")
    return make(folder, 7, 0) | {"world": folder / "world"}


@pytest.fixture
def of_world(world: dict[str, Path], make_project: MakeProject) -> Project:
    """A project of the demonstration's pairs, with a test of two items."""
    project = make_project(0)
    for role, name in (("work", "data"), ("qualification", "qualification")):
        source = Source(world[name], None, "preference", images=world["world"])
        import_pairs(project.service.store, source, role, Wish(overlap=0.0, order="file"), strict=True)
    project.service.images = world["world"]
    project.service.set_rules({"qualification": 2, "pass_mark": 2})
    return project


def said(row: Any) -> tuple[str | None, str | None]:
    """The text of the response that a vote says has fewer hallucinations, and that of the helpful one."""
    responses = Preference.model_validate_json(row.record).responses
    first, second = (None if k is None else responses[k].text for k in (row.hallucination, row.helpfulness))
    return first, second


def test_a_first_session_by_keyboard(browser: Browser, of_world: Project, world: dict[str, Path]) -> None:
    right = {}
    for record in read_records(world["qualification"], "preference"):
        assert isinstance(record, Preference)
        better = record.choices[HALLUCINATION]
        right |= {response.text: k == better for k, response in enumerate(record.responses)}
    invited = of_world.service.accounts.invite("labeler", 1, 1)
    with visiting(browser, of_world) as visit:
        page = visit.enter("ann", invitation_path(invited))
        page.wait_for_selector("dialog.guide")
        assert "join" not in page.url
        assert page.locator("dialog.guide .example").count() == len(guide.EXAMPLES)
        first_words = page.inner_text("dialog.guide .pages > :first-child")
        assert first_words.startswith("A test comes first: 2 pairs") and "all must be right" in first_words
        # nothing is held for somebody who still reads
        assert log(of_world) == [] and of_world.service.progress(of_world.service.accounts.session(
            visit.context.cookies()[0]["value"]).user).test_answered == 0  # fmt: skip
        press(page, "Escape")
        for number in (1, 2):
            page.wait_for_selector(f"text=test: item {number} of 2")
            assert page.is_disabled("text=Skip")
            # the test's own answers can be taken back while it lasts
            assert page.is_disabled(".tools >> text=Undo") == (number == 1)
            submit(page, "1" if right[texts(page)[0]] else "2")
        assert "You passed the test" in page.inner_text(".screen")
        press(page, "Enter")
        expected: list[tuple[str | None, str | None]] = []
        for keys in (("1",), ("b",), ("3", "1"), ("A",), ("t", "2")):
            page.wait_for_selector(".task")
            # nothing to take back but the test, which is over
            assert page.is_disabled(".tools >> text=Undo") == (not expected)
            a, b = texts(page)
            side = b if keys[-1] in ("2", "b") else a
            expected.append((None, side) if len(keys) == 2 else (side, None))
            submit(page, *keys)
        page.wait_for_selector("text=5 votes")
        last = (a, b)
        press(page, "u")
        page.wait_for_selector("text=taken back")
        assert texts(page) == last and chosen(page) == ["tie", "B"]
        # one choice back, another one instead
        press(page, "Backspace")
        assert chosen(page) == ["tie"]
        press(page, "Backspace", "1")
        assert chosen(page) == ["A"]
        expected[-1] = (last[0], None)
        submit(page)
        page.wait_for_selector(".task")
        page.click("text=Sign out")
        page.wait_for_selector("input[name=username]")
        assert page.locator(".task").count() == 0
    rows = log(of_world, standing=True)
    assert [said(row) for row in rows[2:]] == expected
    assert [row.kind for row in log(of_world)] == ["vote"] * 7 + ["undo", "vote"]
    assert all(0 < row.seconds_browser < 60 for row in rows)
    with of_world.service.store.read() as connection:
        held = select(assignments).where(
            assignments.c.state == "leased", assignments.c.expires > of_world.clock.now
        )
        assert connection.execute(held).all() == []  # given back


def test_a_vote_whose_answer_is_lost_is_kept_once(browser: Browser, project: Project) -> None:
    project.user("ann")
    tries = []

    def lose(route: Any) -> None:
        tries.append(json.loads(route.request.post_data)["token"])
        if len(tries) == 1:
            route.fetch()  # the server got it; its answer does not come
            route.abort()
        elif len(tries) == 2:
            route.abort()
        elif len(tries) == 3:
            body = {"error": {"code": "unavailable", "message": "the store does not answer"}}
            route.fulfill(status=503, json=body)
        else:
            route.continue_()

    with visiting(browser, project) as visit:
        page = visit.work("ann")
        page.route("**/api/vote", lose)
        first = texts(page)
        press(page, "2", "Enter")
        for _ in range(3):
            page.wait_for_selector("text=Not kept yet")
            # it cannot be changed meanwhile
            press(page, "1", "u")
            assert chosen(page) == ["B"] and texts(page) == first
            page.click("text=Try now")
        page.wait_for_function("() => document.querySelector('.notice').textContent === ''")
        page.wait_for_selector("text=1 vote")
    assert len(tries) == 4 and len(set(tries)) == 1
    assert [(row.kind, said(row)) for row in log(project)] == [("vote", (first[1], None))]


def test_nobody_sees_anothers_answers_or_a_models_name(browser: Browser, make_project: MakeProject) -> None:
    project = make_project(1, labels=3)
    for name in ("ann", "bob", "cid"):
        project.user(name)
    with visiting(browser, project) as ann:
        page = ann.work("ann")
        page.click(".sentence >> nth=0")
        submit(page, "1")
        assert "All done" in page.inner_text(".screen")
        answers = []
        # another browser, and another person at the same one
        other = Visit(browser, ann.url)
        for visit in (other, ann):
            visit.page.on(
                "response", lambda found: found.request.resource_type != "image" and answers.append(found)
            )
        other.work("bob")
        page.click("text=Sign out")
        page.wait_for_selector("input[name=username]")
        other.page.click("text=Sign out")
        other.page.wait_for_selector("input[name=username]")
        ann.sign_in("bob")
        page.wait_for_selector("dialog.guide")
        press(page, "Escape")
        page.wait_for_selector(".task")
        for visit in (other, ann):
            content = visit.page.content() + " ".join(found.text() for found in answers if found.status < 300)
            for word in ("model-", "secret", "img-", "cat.png"):
                assert word not in content, word
        assert page.locator("mark").count() == 0 and chosen(page) == []
        told = " ".join(found.text() for found in answers if "/api/" in found.url)
        assert '"ann"' not in told and '"before":null' in told
        press(page, "u")
        page.wait_for_selector("text=nothing to take back")
        other.context.close()
        # what one was about to say is no draft of the next one's
        page.click(".sentence >> nth=0")
        press(page, "1")
        ann.context.clear_cookies()
        page.reload()
        ann.sign_in("cid")
        page.wait_for_selector("dialog.guide")
        press(page, "Escape")
        page.wait_for_selector(".task")
        assert page.locator("mark").count() == 0 and chosen(page) == []


def test_a_session_that_is_over_loses_nothing(browser: Browser, project: Project) -> None:
    project.user("ann")
    with visiting(browser, project) as visit:
        page = visit.work("ann")
        first = texts(page)
        page.click(".passage[data-side=B] .sentence")
        press(page, "1")
        project.clock.now += IDLE
        press(page, "Enter")
        page.wait_for_selector("dialog.must")
        press(page, "Escape")
        assert chosen(page) == ["A"] and page.locator("mark").count() == 1
        visit.sign_in("ann")
        page.wait_for_selector("text=1 vote")
    (row,) = log(project)
    assert said(row) == (first[0], None)
    assert json.loads(row.marks) == [[1 - row.hallucination, 0, len(first[1])]]


def test_keys_in_inputs_and_with_modifiers_do_nothing(browser: Browser, project: Project) -> None:
    project.user("ann")
    with visiting(browser, project) as visit:
        page = visit.work("ann")
        first = texts(page)
        press(page, "Control+a", "Alt+1", "Meta+b", "Control+s")
        assert chosen(page) == [] and page.locator("dialog").count() == 0
        press(page, "Enter")
        page.wait_for_selector("text=Choose A, B or tie first")
        # among the choices the arrows go on, and choose
        page.focus("[data-value=A]")
        press(page, "ArrowLeft")
        assert chosen(page) == ["B"]
        press(page, "ArrowRight", "ArrowDown")
        assert chosen(page) == ["tie"]
        assert page.locator(".options [tabindex='0']").all_inner_texts()[0].startswith("Tie")
        press(page, "2", "Backspace", "Backspace", "2", "s")
        assert page.get_by_role("dialog", name="Why skip this pair?").count() == 1
        assert page.locator("dialog.reasons label.reason").count() == len(SKIP_REASONS)
        press(page, str(1 + list(SKIP_REASONS).index("other")), "Enter")
        # it wants a note; what is typed there is text
        page.wait_for_selector("text=Say in a few words")
        page.keyboard.type("1abt3usz?m")
        assert page.input_value("textarea") == "1abt3usz?m"
        assert page.locator("dialog").count() == 1 and chosen(page) == ["B"] and texts(page) == first
        press(page, "Enter")
        page.wait_for_selector("text=Skipped")
        page.wait_for_selector(".task")
        assert chosen(page) == []
        press(page, "?")
        page.wait_for_selector("dialog.guide")
        press(page, "1", "Enter", "u")
        assert chosen(page) == []
    assert [(row.kind, row.reason) for row in log(project)] == [("skip", "other: 1abt3usz?m")]


@pytest.mark.parametrize("width", [400, 1280])
def test_everything_fits(browser: Browser, make_project: MakeProject, width: int) -> None:
    project = make_project(0)
    long = "An unbroken " + "word" * 60 + ". " + "A sentence that goes on for a while. " * 30
    project.add([pair("x", texts=(long, "Short.")), pair("y")])
    project.user("ann")
    size = {"width": width, "height": 800}
    with visiting(browser, project, viewport=size, color_scheme="dark") as visit:
        page = visit.work("ann")
        press(page, "3")
        assert page.evaluate("document.documentElement.scrollWidth") == width
        a, b, bar = (
            page.locator(what).bounding_box()
            for what in ("[data-side=A].card", "[data-side=B].card", ".vote")
        )
        assert a is not None and b is not None and bar is not None
        assert (a["y"] == b["y"]) == (width == 1280) and (a["x"] == b["x"]) == (width == 400)
        # the questions are in sight, and large enough for a finger
        assert bar["y"] + bar["height"] == pytest.approx(800) and bar["height"] < 260
        for one in page.locator(".vote button:visible").all():
            found = one.bounding_box()
            assert found is not None and found["height"] >= 40 and 0 <= found["x"] <= width - found["width"]
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 28)"
        assert visit.faint() == []
        page.click("[aria-label='Light colours']")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(244, 245, 247)"
        assert visit.faint() == []
        page.reload()
        page.wait_for_selector(".task")
        assert page.evaluate("document.documentElement.dataset.theme") == "light"
        press(page, "?")
        page.wait_for_selector("dialog.guide")
        assert visit.faint() == []
        over = "e => e.getBoundingClientRect().right > innerWidth"
        assert page.evaluate(f"[...document.querySelectorAll('dialog *')].some({over})") is False


def test_time_left_is_told_and_renewed_by_work_alone(browser: Browser, project: Project) -> None:
    project.user("ann")
    with visiting(browser, project) as visit:
        visit.page.clock.install()
        page = visit.work("ann")
        page.wait_for_selector("text=10:00 left")
        page.clock.fast_forward(50_000)
        page.wait_for_selector("text=9:10 left")
        assert not any(url.endswith("/api/renew") for url in visit.asked)
        press(page, "1")
        page.wait_for_selector("text=10:00 left")
        press(page, "2", "1", "2")
        assert sum(url.endswith("/api/renew") for url in visit.asked) == 1
        # somebody else was given it meanwhile
        project.clock.now += 601
        project.service.set_rules({"lease": 6000.0})
        for k in range(3):
            project.task(f"other{k}")
        press(page, "Enter")
        page.wait_for_selector("text=given to somebody else")
    assert log(project) == []


def test_a_pair_that_was_in_sight_for_days_can_be_sent(browser: Browser, project: Project) -> None:
    project.user("ann")
    with visiting(browser, project) as visit:
        visit.page.clock.install()
        page = visit.work("ann")
        for days in (6, 8):
            page.clock.fast_forward(days * 86_400_000)
            submit(page, "1")
        page.wait_for_selector("text=2 votes")
    # as it was, and the longest that the API takes
    first, second = (row.seconds_browser / 86400 for row in log(project))
    assert first == pytest.approx(6, abs=0.01) and second == 7


def test_every_end_is_told(browser: Browser, make_project: MakeProject) -> None:
    project = make_project(1)
    for name in ("ann", "bob", "cid"):
        project.user(name)
    held = project.task("ann")
    with visiting(browser, project) as visit:
        page = visit.enter("bob")
        page.wait_for_selector("dialog.guide")
        press(page, "Escape")
        page.wait_for_selector("text=Nothing free right now")
        project.service.release(project.user("ann"))
        press(page, "Enter")
        page.wait_for_selector(".task")
        project.service.set_rules({"limit": 1})
        submit(page, "1")
        page.wait_for_selector("text=You have reached your number")
        page.wait_for_selector("text=1 of 1 votes")
        # the last one, too, can be taken back
        press(page, "Control+z")
        page.wait_for_selector(".task")
        submit(page)
        page.click("text=Sign out")
        page.wait_for_selector("input[name=username]")
        project.add([pair("q", choices={HALLUCINATION: 0})], "qualification")
        project.service.set_rules({"qualification": 1, "pass_mark": 1})
        visit.sign_in("cid")
        page.wait_for_selector("dialog.guide")
        press(page, "Escape")
        page.wait_for_selector("text=item 1 of 1")
        submit(page, "2" if texts(page)[0] == "A red cat." else "1")
        page.wait_for_selector("text=The test was not passed")
        press(page, "1", "Enter", "u")
        page.wait_for_selector("text=The test is over")
    assert [row.key for row in log(project)][:3] == [held.pair] * 3


def test_zoom_and_pictures_that_do_not_show(browser: Browser, make_project: MakeProject) -> None:
    project = make_project(1)
    gone = project.folder / "images" / "gone.png"
    shutil.copy(gone.with_name("cat.png"), gone)
    project.add([pair("y", image=Image(id="y", path=gone.name))])
    gone.unlink()
    project.user("ann")
    with visiting(browser, project) as visit:
        page = visit.work("ann")
        page.wait_for_function("() => document.querySelector('.zooms img').naturalWidth > 0")
        press(page, "z")
        scale = "new DOMMatrix(getComputedStyle(document.querySelector('.stage img')).transform).a"
        page.wait_for_selector(".stage")
        press(page, "+", "+")
        assert page.evaluate(scale) == pytest.approx(1.96)
        page.mouse.move(640, 400)
        page.mouse.wheel(0, -300)
        page.wait_for_function(f"() => {scale} > 2.5")
        press(page, "0")
        assert page.evaluate(scale) == 1
        press(page, "Escape")
        page.wait_for_selector("dialog", state="detached")
        submit(page, "1")
        page.wait_for_selector("text=The picture cannot be shown")
        page.click(".broken button:has-text('Skip')")
        assert page.is_checked("input[value=image]")
        press(page, "Enter")
        page.wait_for_selector("text=All done")
    assert [row.reason for row in log(project)] == [None, "image"]
