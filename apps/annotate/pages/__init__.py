"""The pages of an annotation project: the labeler's at ``/``, the admin's at ``/admin``."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from apps.annotate.pages import admin, labeler, shell
from apps.annotate.service import Service
from apps.annotate.web import Site


def with_pages(app: FastAPI, service: Service, site: Site, instructions: str | None = None) -> FastAPI:
    """Add the pages to the API's application; what stands under ``/api/`` answers as before.

    ``instructions``: the project's own for its labelers, Markdown that is shown above ours.
    """
    labeler.add_guide(app, service, site, instructions)
    # before "/", which takes every path that is left
    app.add_route("/admin", _to_admin, methods=["GET"])
    title = service.title
    shell.mount(app, admin.build(title), "/admin", title, admin.SCRIPTS, admin.STYLES)
    shell.mount(app, labeler.build(title), "/", title, labeler.SCRIPTS, labeler.STYLES)
    return app


async def _to_admin(_: Request) -> Response:
    return RedirectResponse("/admin/")
