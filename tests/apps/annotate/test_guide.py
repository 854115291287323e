"""Instructions and worked examples; and what Gradio, which serves the pages, must not offer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from apps import cli
from apps.annotate.pages import guide
from data.errors import DataError
from data.world.language import mentioned
from tests.apps.annotate.browsers import HOSTILE, Visit, chosen, marked, press, served, texts
from tests.apps.annotate.conftest import PASSWORD, Project

if TYPE_CHECKING:
    from playwright.sync_api import Browser


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
