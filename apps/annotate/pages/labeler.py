"""The labeler's page: two responses to one picture, two questions, marks."""

from __future__ import annotations

from typing import Any

from apps.annotate.pages import shell

SCRIPTS = ("labeler.js",)
STYLES = ("labeler.css",)


def build() -> Any:
    """The page, to be mounted with ``SCRIPTS`` and ``STYLES``."""
    return shell.page("align · compare", "align-labeler")
