"""The labeler's page: two responses to one picture, two questions, marks.

It adds ``GET /api/guide``: instructions and worked examples (``guide.guide``), for those who are signed in.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from apps.annotate.pages import shell
from apps.annotate.pages.guide import guide
from apps.annotate.service import Service
from apps.annotate.web import Api, Site

SCRIPTS = ("marks.js", "zoom.js", "guide.js", "labeler_view.js", "labeler_events.js", "labeler.js")
STYLES = ("labeler.css",)


def build(title: str) -> Any:
    """The page of the project of that title, to be mounted with ``SCRIPTS`` and ``STYLES``."""
    return shell.page(f"{title} · compare", "align-labeler")


def add_guide(app: FastAPI, service: Service, site: Site, instructions: str | None) -> None:
    """Add the endpoint of the instructions; ``instructions`` are the project's own."""
    api, told = Api(service, site), guide(instructions)

    async def endpoint(request: Request) -> Response:
        return await api.run(request, lambda _: told)

    app.add_route("/api/guide", endpoint, methods=["GET"])
