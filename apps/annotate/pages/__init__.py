"""The pages of an annotation project: the labeler's at ``/``, the admin's at ``/admin``."""

from __future__ import annotations

from fastapi import FastAPI

from apps.annotate.pages import labeler, shell
from apps.annotate.service import Service
from apps.annotate.web import Site


def with_pages(app: FastAPI, service: Service, site: Site) -> FastAPI:
    """Add the pages to the API's application; what stands under ``/api/`` answers as before."""
    shell.mount(app, labeler.build(), "/", labeler.SCRIPTS, labeler.STYLES)
    return app
