"""What every test shares. Folders add their own fixtures in a conftest of their own."""

from __future__ import annotations

import os
import shutil

# Read once, when torch and huggingface_hub are imported: so before any test module is.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers import Server

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real third-party files beside the checkout; without it, its tests skip."""
    path = REPOSITORY.parent / "shared"
    if not (path / "data").is_dir():
        pytest.skip("no third-party data beside the checkout")
    return path


@pytest.fixture
def server() -> Iterator[Server]:
    """A chat endpoint of its own for each test."""
    found = Server()
    yield found
    found.http.shutdown()
    found.http.server_close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium by playwright, which asks nobody but the pages' own server; skips where either is missing.

    A file's own: playwright keeps an event loop running as long as it is open, and there may be but one.
    """
    sync_api = pytest.importorskip("playwright.sync_api")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium here")
    quiet = ("background-networking", "component-update", "sync", "quic", "gpu")
    flags = ["--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in quiet)]
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=flags)
        yield opened
        opened.close()
