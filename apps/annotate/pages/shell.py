"""What the pages share: Gradio as their host, its theme, and styles and scripts of our own.

A page is an empty element that a script of ``assets`` fills; all it shows comes from ``/api/``. No Gradio
event is used, so what Gradio serves beyond the page itself is shut (``Closed``).
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI
from starlette.responses import PlainTextResponse
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send

ASSETS = Path(__file__).parent / "assets"
#: on the reader's machine already
FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
#: what a browser needs of Gradio to show a page without events
_OPEN = re.compile(
    r"/?(config|theme\.css|favicon\.ico|robots\.txt|manifest\.json)?/?"
    r"|/(assets|static|svelte)/.*|/gradio_api/(startup-events|theme\.css)"
)


def theme() -> Any:
    """Gradio's base theme without fonts from anywhere."""
    return gr.themes.Base(font=list(FONTS), font_mono=list(MONO))


def head(title: str, scripts: Iterable[str], styles: Iterable[str] = ()) -> str:
    """``common.css`` and ``common.js``, then more files of ``assets``, inlined in that order.

    ``title``: the project's, for the scripts.
    """
    css = "\n".join(_read(name) for name in ("common.css", *styles))
    js = "\n".join(_read(name) for name in ("common.js", *scripts))
    named = f'<meta name="align-title" content="{html.escape(title)}">'
    return f"{named}\n<style>{css}</style>\n<script>{js}</script>"


def _read(name: str) -> str:
    return (ASSETS / name).read_text("utf-8")


def page(title: str, root: str) -> Any:
    """A page whose element with the id ``root`` is filled by a script.

    The element is a column: ``gr.HTML`` would compile its value as code, which the pages' policy forbids.
    """
    with gr.Blocks(title=title, analytics_enabled=False, fill_width=True) as blocks:
        gr.Column(elem_id=root, elem_classes=["align-root"])
    return blocks


def mount(
    app: FastAPI, blocks: Any, path: str, title: str, scripts: Iterable[str], styles: Iterable[str] = ()
) -> None:
    """Mount a page, and nothing else of what Gradio offers (uploads, files, queues, code).

    ``title``: the project's.
    """
    gr.mount_gradio_app(
        app,
        blocks,
        path,
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=theme(),
        head=head(title, scripts, styles),
    )
    mounted = app.router.routes[-1]
    assert isinstance(mounted, Mount)
    mounted.app = Closed(mounted.app)


class Closed:
    """ASGI middleware around a mounted Gradio: its page and the files of that can be read, no more."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            inside = scope["path"].removeprefix(scope.get("root_path", ""))
            if scope["method"] not in ("GET", "HEAD") or not _OPEN.fullmatch(inside):
                await PlainTextResponse("not here", 404)(scope, receive, send)
                return
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close"})
            return
        await self.app(scope, receive, send)
