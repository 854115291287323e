"""The labeler's page in a headless browser: a first session by keyboard, marks, and what may go wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from sqlalchemy import select

from apps import cli
from apps.annotate.accounts import IDLE
from apps.annotate.admin_api import invitation_path
from apps.annotate.demo import make
from apps.annotate.imports import Wish, import_pairs
from apps.annotate.marks import sentences
from apps.annotate.pages import guide
from apps.annotate.results import SKIP_REASONS
from apps.annotate.tables import assignments, events, pairs
from data.convert import Source
from data.errors import DataError
from data.jsonl import read_records
from data.schema import HALLUCINATION, Image, Preference
from data.world.language import mentioned
from tests.apps.annotate.browsers import Visit, served
from tests.apps.annotate.conftest import PASSWORD, MakeProject, Project, pair

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

HOSTILE = (
    "<img src=x onerror='window.hit=1'><script>window.hit=1</script> **bold** [x](javascript:hit=1) &lt;b&gt;"
)
#: faces and flags of one, two and eight code points; right to left; combining marks; two lines
ASTRAL = "😀 A 🐈‍⬛ sits here. مرحبا يا قطة. Zwei 👩‍👩‍👧 am Café?\nThe 🇳🇱 flag is 𝒃lue."


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


@contextmanager
def visiting(browser: Browser, project: Project, **more: Any) -> Iterator[Visit]:
    """Somebody at the project's page; at the end, nothing has gone wrong there."""
    with served(project) as url:
        visit = Visit(browser, url, **more)
        yield visit
        visit.check()
        visit.context.close()


def texts(page: Page) -> tuple[str, str]:
    """Responses A and B as they are shown."""
    first, second = (page.text_content(f".passage[data-side={side}]") for side in "AB")
    assert first is not None and second is not None
    return first, second


def press(page: Page, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def submit(page: Page, *keys: str) -> None:
    """Answer by keys and Enter, and wait until the next thing is shown."""
    mark = page.evaluate_handle("document.querySelector('.task')")
    press(page, *keys, "Enter")
    page.wait_for_function("old => !old.isConnected", arg=mark)


def chosen(page: Page) -> list[str]:
    """The choices that are shown as made."""
    return [
        one.get_attribute("data-value") or ""
        for one in page.query_selector_all("[aria-checked=true][data-group]")
    ]


def log(project: Project, standing: bool = False) -> list[Any]:
    """The store's events, or those alone that stand, with the record and the pair's key."""
    query = select(events, pairs.c.record, pairs.c.key).join(pairs, pairs.c.n == events.c.pair_n)
    if standing:
        query = query.join(assignments, assignments.c.event_id == events.c.id)
    with project.service.store.read() as connection:
        return list(connection.execute(query.order_by(events.c.id)))


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
    code = of_world.service.accounts.invite("labeler", 1, 1).code
    with visiting(browser, of_world) as visit:
        page = visit.enter("ann", invitation_path(code))
        page.wait_for_selector("dialog.guide")
        assert "join" not in page.url
        assert page.locator("dialog.guide .example").count() == len(guide.EXAMPLES)
        # nothing is held for somebody who still reads
        assert log(of_world) == [] and of_world.service.progress(of_world.service.accounts.session(
            visit.context.cookies()[0]["value"]).user).test_answered == 0  # fmt: skip
        press(page, "Escape")
        for number in (1, 2):
            page.wait_for_selector(f"text=test: item {number} of 2")
            assert page.is_disabled("text=Skip")
            submit(page, "1" if right[texts(page)[0]] else "2")
        assert "You passed the test" in page.inner_text(".screen")
        press(page, "Enter")
        expected: list[tuple[str | None, str | None]] = []
        for keys in (("1",), ("b",), ("3", "1"), ("A",), ("t", "2")):
            page.wait_for_selector(".task")
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


def test_marks_of_hostile_and_astral_texts(browser: Browser, make_project: MakeProject) -> None:
    project = make_project(0)
    project.add([pair("x", texts=(HOSTILE, ASTRAL))])
    project.user("ann")
    with visiting(browser, project) as visit:
        page = visit.work("ann")
        shown = texts(page)
        assert sorted(shown) == sorted((HOSTILE, ASTRAL))
        astral = ".passage[data-side={}]".format("AB"[shown.index(ASTRAL)])
        hostile = ".passage[data-side={}]".format("AB"[shown.index(HOSTILE)])
        # by click: the second sentence; by drag: a word, from within it; by double click: another one
        page.click(f"{astral} [data-sentence='1']")
        drag(page, astral, "lag")
        page.dblclick(f"{astral} [data-sentence='2']", position=place(page, astral, "Café"))
        assert marked(page, astral) == ["مرحبا يا قطة.", "Café", "flag"]
        # a click on a mark takes it away, and nothing else
        page.click(f"{astral} mark >> nth=1")
        assert marked(page, astral) == ["مرحبا يا قطة.", "flag"]
        # by keyboard: from A's first sentence to the hostile text's only one
        press(page, "m")
        for _ in range(len(sentences(shown[0])) if hostile.endswith("B]") else 0):
            press(page, "ArrowDown")
        press(page, "Space")
        assert marked(page, hostile) == [HOSTILE]
        assert page.locator(f"{hostile} :is(img, script, b, strong, a)").count() == 0
        submit(page, "3", "1")
        press(page, "u")
        page.wait_for_selector("mark")
        assert marked(page, astral) == ["مرحبا يا قطة.", "flag"] and marked(page, hostile) == [HOSTILE]
        assert page.evaluate("window.hit") is None
    row = log(project)[0]
    place_of = ASTRAL.index("flag")
    second = sentences(ASTRAL)[1]
    assert json.loads(row.marks) == [[0, 0, len(HOSTILE)], [1, *second], [1, place_of, place_of + 4]]


def marked(page: Page, passage: str) -> list[str]:
    """The marked texts, in order."""
    return page.locator(f"{passage} mark").all_text_contents()


def box(page: Page, passage: str, words: str) -> dict[str, float]:
    """Where words of one text node stand on the screen."""
    script = """([passage, words]) => {
      const walk = document.createTreeWalker(document.querySelector(passage), NodeFilter.SHOW_TEXT);
      while (!walk.nextNode().data.includes(words));
      const range = document.createRange(), at = walk.currentNode.data.indexOf(words);
      range.setStart(walk.currentNode, at); range.setEnd(walk.currentNode, at + words.length);
      const {left, top, width, height} = range.getBoundingClientRect();
      return {left, top, width, height};
    }"""
    return page.evaluate(script, [passage, words])


def place(page: Page, passage: str, words: str) -> Any:
    """The same, measured from the sentence that holds them."""
    found = box(page, passage, words)
    sentence = page.locator(f"{passage} [data-sentence]", has_text=words).bounding_box()
    assert sentence is not None
    return {
        "x": found["left"] + found["width"] / 2 - sentence["x"],
        "y": found["top"] + found["height"] / 2 - sentence["y"],
    }


def drag(page: Page, passage: str, words: str) -> None:
    """Select words with the mouse."""
    found = box(page, passage, words)
    middle = found["top"] + found["height"] / 2
    page.mouse.move(found["left"] + 1, middle)
    page.mouse.down()
    page.mouse.move(found["left"] + found["width"] - 1, middle, steps=4)
    page.mouse.up()


def test_words_are_marked_by_touch(browser: Browser, project: Project) -> None:
    project.user("ann")
    phone = {"viewport": {"width": 400, "height": 800}, "has_touch": True, "is_mobile": True}
    with visiting(browser, project, **phone) as visit:
        page = visit.work("ann")
        first = texts(page)[0]
        page.tap(".picture + .talk h3")
        # as a long touch selects
        page.evaluate("""() => {
          const text = document.querySelector(".passage[data-side=A] .sentence").firstChild;
          getSelection().setBaseAndExtent(text, 3, text, 4); // "red" from within
        }""")
        page.tap("text=Mark selected words")
        assert marked(page, ".passage[data-side=A]") == ["red"]
        page.wait_for_selector("text=Mark selected words", state="hidden")
        page.tap("mark")
        assert marked(page, ".passage[data-side=A]") == []
        page.tap(".passage[data-side=A] .sentence")
        page.tap("text=B has fewer")
        page.tap("text=Submit")
        page.wait_for_selector("text=1 vote")
    assert json.loads(log(project)[0].marks)[0][1:] == [0, len(first)]


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


def test_a_projects_own_instructions_are_text(browser: Browser, project: Project) -> None:
    project.user("ann")
    own = f"# Read *this*\n\n- one **two**\n- {HOSTILE}\n\n1. first\n\nA_snake_case `<i>` word\n<b>no</b>\n"
    title = '<b>Birds</b> & "bees"'
    project.service.set_title(title)
    with served(project, own) as url:
        assert httpx.get(f"{url}/api/guide").status_code == 401
        visit = Visit(browser, url)
        visit.page.goto(url)
        visit.page.wait_for_selector(f"form >> text={title}")
        visit.sign_in("ann")
        page = visit.page
        page.wait_for_selector("dialog.guide .own")
        assert page.text_content(".brand") == title and page.title() == f"{title} · compare"
        markup = page.inner_html("dialog.guide .own")
        assert "<h2>Read <em>this</em></h2><ul><li>one <strong>two</strong></li>" in markup
        assert (
            "<ol><li>first</li></ol><p>A_snake_case <code>&lt;i&gt;</code> word &lt;b&gt;no&lt;/b&gt;</p>"
            in markup
        )
        assert page.locator(".own :is(img, script, b, i, a)").count() == 0
        assert page.evaluate("window.hit") is None
        press(page, "Escape")
        page.wait_for_selector(".task")
        # once read, they do not come again; what was chosen and marked is still there
        shown = texts(page)
        page.click(".passage[data-side=B] .sentence")
        press(page, "2")
        page.reload()
        page.wait_for_selector("mark")
        assert page.locator("dialog").count() == 0
        assert texts(page) == shown and chosen(page) == ["B"]
        assert marked(page, ".passage[data-side=B]") == [shown[1]]
        visit.check()
        visit.context.close()


def test_instructions_that_cannot_be_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rules.md"
    for data in (b"x" * (guide.MOST + 1), b"\xff\xfe", b" \n", b"a\0b"):
        file.write_bytes(data)
        with pytest.raises(DataError, match="--instructions"):
            guide.read_instructions(file)
    file.write_text("\ufeffgrüße")
    assert guide.read_instructions(file) == "grüße"
    store = f"sqlite:///{tmp_path / 'votes.db'}"
    missing = str(tmp_path / "none.md")
    assert cli.main(["annotate", "serve", "--store", store, "--data", "x", "--instructions", missing]) != 0
    assert "none.md" in capsys.readouterr().err and not (tmp_path / "votes.db").exists()


def test_worked_examples_are_as_they_say() -> None:
    for example in guide.EXAMPLES:
        wrong = []
        for text in example.texts:
            parts = guide.pieces(text)
            assert "".join(part for part, _ in parts) == text.replace("[[", "").replace("]]", "")
            wrong.append(sum(false for _, false in parts))
            true = " ".join(part for part, false in parts if not false)
            assert set(mentioned(true)) <= set(example.scene.objects), text
        told = "tie" if wrong[0] == wrong[1] else "AB"[wrong[1] < wrong[0]]
        assert example.hallucination == told and (example.helpfulness is None) == (told != "tie")
    assert guide.guide(None)["version"] != guide.guide("own")["version"]


def test_gradio_offers_nothing_but_the_page(project: Project) -> None:
    project.user("ann")
    with served(project) as url, httpx.Client(base_url=url) as http:
        page = http.get("/")
        assert page.status_code == 200 and "connect-src 'self'" in page.headers["content-security-policy"]
        assert "unsafe-eval" not in page.headers["content-security-policy"]
        for path in (
            "gradio_api/info", "gradio_api/openapi.json", "gradio_api/file=/etc/passwd", "nothing",
            "gradio_api/heartbeat/x", "gradio_api/queue/data", "gradio_api/proxy=http://127.0.0.1/",
            "monitoring", "api/nothing", "admin/gradio_api/info",
        ):  # fmt: skip
            assert http.get(f"/{path}").status_code == 404, path
        for path in (
            "gradio_api/upload",
            "gradio_api/queue/join",
            "gradio_api/run/predict",
            "login",
            "",
            "admin/",
        ):
            assert http.post(f"/{path}", files={"files": b"x"}).status_code in (404, 405), path
        login = {"name": "ann", "password": PASSWORD}
        assert http.post("/api/login", json=login).json()["user"]["name"] == "ann"
