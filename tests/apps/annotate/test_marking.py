"""Marks in the labeler's page: by click, drag, double click, keyboard and touch, in any script."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from apps.annotate.marks import sentences
from tests.apps.annotate.browsers import HOSTILE, log, marked, press, submit, texts, visiting
from tests.apps.annotate.conftest import MakeProject, Project, pair

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

#: faces and flags of one, two and eight code points; right to left; combining marks; two lines
ASTRAL = "😀 A 🐈‍⬛ sits here. مرحبا يا قطة. Zwei 👩‍👩‍👧 am Café?\nThe 🇳🇱 flag is 𝒃lue."


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
