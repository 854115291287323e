"""The admin's page: how far a project is, how good its labels are, disagreements, and exports.

Its scripts get every figure from ``/api/admin/``, which checks each request's session; the page itself holds
nothing of the project.
"""

from __future__ import annotations

from typing import Any

from apps.annotate.pages import shell

SCRIPTS = (
    "admin_parts.js",
    "admin_overview.js",
    "admin_labelers.js",
    "admin_figures.js",
    "admin_queue.js",
    "admin_export.js",
    "admin.js",
)
STYLES = ("admin.css",)


def build(title: str) -> Any:
    """The page of the project of that title, to be mounted with ``SCRIPTS`` and ``STYLES``."""
    return shell.page(f"{title} · admin", "align-admin")
