"""A project's pages on a port of this machine, and somebody who looks at them with Chromium."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import uvicorn
from sqlalchemy import select

from apps.annotate.pages import with_pages
from apps.annotate.server import create_app
from apps.annotate.tables import assignments, events, pairs
from apps.annotate.web import Site
from tests.apps.annotate.conftest import PASSWORD, Project

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

#: a response that must stay a text
HOSTILE = (
    "<img src=x onerror='window.hit=1'><script>window.hit=1</script> **bold** [x](javascript:hit=1) &lt;b&gt;"
)
#: colours as they are seen: over their backgrounds, with the opacity of all that they are in
FAINT = """() => {
  const parts = (color) => color.match(/[\\d.]+/g).map(Number);
  const over = (front, back, by) => front.slice(0, 3).map((c, k) => c * by + back[k] * (1 - by));
  const light = (rgb) => rgb.map((c) => c / 255).map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, k) => sum + c * [0.2126, 0.7152, 0.0722][k], 0);
  const found = [];
  for (const one of document.querySelectorAll(".align-root *")) {
    const text = [...one.childNodes].filter((node) => node.nodeType === 3).map((node) => node.data).join("").trim();
    if (!text || !one.checkVisibility() || one.closest(":disabled, [aria-disabled], .al-hidden")) continue;
    const up = [];
    for (let at = one; at; at = at.parentElement) up.unshift(at);
    let back = [255, 255, 255], opacity = 1;
    for (const at of up) {
      const style = getComputedStyle(at), [r, g, b, a = 1] = parts(style.backgroundColor);
      if (style.backgroundColor.startsWith("rgb")) back = over([r, g, b], back, a);
      opacity *= Number(style.opacity);
    }
    const [front, behind] = [light(over(parts(getComputedStyle(one).color), back, opacity)), light(back)];
    const contrast = (Math.max(front, behind) + 0.05) / (Math.min(front, behind) + 0.05);
    if (contrast < 4.5) found.push(`${text.slice(0, 40)} (${contrast.toFixed(2)})`);
  }
  return found;
}"""  # noqa: E501


@contextmanager
def served(project: Project, instructions: str | None = None) -> Iterator[str]:
    """The project's pages and API, served from a thread; its URL."""
    site = Site()
    app = with_pages(create_app(project.service, site), project.service, site, instructions)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        thread.join(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(30)


class Visit:
    """A page in a context of its own: what it asks for, what it is told, and what goes wrong in it."""

    def __init__(self, browser: Browser, url: str, **more: Any) -> None:
        self.context = browser.new_context(**({"viewport": {"width": 1280, "height": 860}} | more))
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(15_000)
        self.url, self.asked, self.faults, self.told = url, list[str](), list[str](), list[str]()
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("console", self._said)

    def _said(self, message: Any) -> None:
        # what a browser says of refused requests is no fault of the page; what it says of its policy is
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            self.faults.append(message.text)

    def enter(self, name: str, path: str = "/") -> Page:
        """Open the page and sign in, or join where the path brings an invitation."""
        self.page.goto(self.url + path)
        self.sign_in(name)
        return self.page

    def sign_in(self, name: str) -> None:
        """Fill in the form that is shown."""
        self.page.fill("input[name=username]", name)
        self.page.fill("input[name=password]", PASSWORD)
        self.page.keyboard.press("Enter")

    def work(self, name: str) -> Page:
        """Sign in, and close the instructions: the first pair is shown."""
        page = self.enter(name)
        page.wait_for_selector("dialog.guide")
        page.keyboard.press("Escape")
        page.wait_for_selector(".task")
        return page

    def faint(self) -> list[str]:
        """Texts in sight, of what can be used, whose contrast is below WCAG's 4.5 to 1."""
        return self.page.evaluate(FAINT)

    def check(self) -> None:
        """Nothing went wrong in the page, and it asked nobody else."""
        assert self.faults == []
        assert {url for url in self.asked if not url.startswith((self.url + "/", "data:", "blob:"))} == set()


# --- the labeler's page ---


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


def marked(page: Page, passage: str) -> list[str]:
    """The marked texts, in order."""
    return page.locator(f"{passage} mark").all_text_contents()
