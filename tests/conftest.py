"""What every test shares. Folders add their own fixtures in a conftest of their own."""

from __future__ import annotations

import os

# Read once, when torch and huggingface_hub are imported: so before any test module is.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"

from collections.abc import Iterator
from pathlib import Path

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
