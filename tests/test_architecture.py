"""The house's walls: who may import whom, and what must load without torch."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("data", "align", "evals", "apps")
#: package -> packages of ours that it may not import, wherever the import stands
WALLS = {
    "data": {"align", "evals", "apps"},
    "align": {"evals", "apps"},
    "evals": {"align", "apps"},
    "apps": set[str](),
}
HEAVY = {
    "accelerate",
    "bitsandbytes",
    "datasets",
    "gradio",
    "matplotlib",
    "open_clip",
    "peft",
    "tensorboard",
    "torch",
    "torchvision",
    "transformers",
    "trl",
}
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def _names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.level == 0:
        return [node.module or ""]
    return []


def imports(tree: ast.AST) -> set[str]:
    """Top-level names of everything imported, inside functions too."""
    return {name.split(".")[0] for node in ast.walk(tree) for name in _names(node)}


def imports_at_load(tree: ast.AST) -> set[str]:
    """The same, of what runs when the module is imported: no function bodies, no ``if TYPE_CHECKING``."""
    return {name.split(".")[0] for node in _run_at_load(tree) for name in _names(node)}


def _run_at_load(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield from _run_at_load(other)
            continue
        yield from _run_at_load(child)


def test_the_reading_of_imports() -> None:
    code = """
from __future__ import annotations
import a.b, c
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import d
else:
    import e
try:
    import f
except ImportError:
    pass
class K:
    import g
    def method(self):
        import h
def function():
    from i.j import k
from . import m
"""
    tree = ast.parse(code)
    assert imports(tree) == {"__future__", "a", "c", "typing", "d", "e", "f", "g", "h", "i"}
    assert imports_at_load(tree) == {"__future__", "a", "c", "typing", "e", "f", "g"}


def test_there_is_something_to_check() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(PACKAGES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_walls(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not imports(tree) & WALLS[package]
    if package == "data":
        assert not imports_at_load(tree) & HEAVY
    assert not imports(tree) & {"tests", "cPickle", "cloudpickle", "dill"}
    assert not any(isinstance(node, ast.Import) and "pickle" in _names(node) for node in ast.walk(tree))


def _loaded(code: str) -> set[str]:
    """Top-level modules that are loaded once ``code`` has run in a fresh interpreter."""
    report = "import sys; print('\\n' + ' '.join(sys.modules))"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr
    return {name.split(".")[0] for name in ended.stdout.splitlines()[-1].split()}


@pytest.mark.parametrize(
    "code",
    [
        "import data.schema",
        "import data.jsonl",
        "import align.config",
        "import apps.cli\ntry: apps.cli.main(['--help'])\nexcept SystemExit as e: assert e.code == 0",
        "import apps.cli\ntry: apps.cli.main(['sft', '--help'])\nexcept SystemExit as e: assert e.code == 0",
        "import apps.cli\nassert apps.cli.main(['sft', 'seed=x']) == 2",
    ],
)
def test_loads_without_anything_heavy(code: str) -> None:
    loaded = _loaded(code)
    assert not loaded & HEAVY
    assert "sys" in loaded and {"data", "align", "apps"} & loaded


def test_help_does_not_even_load_the_settings() -> None:
    code = "import apps.cli\ntry: apps.cli.main(['--help'])\nexcept SystemExit: pass"
    assert not _loaded(code) & {"pydantic", "numpy", "yaml"}


def test_data_files_are_read_by_the_data_layer_alone() -> None:
    """Tables, Parquet and pictures: nobody else opens one, so no stage has a way around its checks."""
    found = []
    for path in FILES:
        if path.is_relative_to(ROOT / "data"):
            continue
        tree = ast.parse(path.read_text("utf-8"))
        used = imports(tree) & {"csv", "pyarrow", "pandas", "datasets"}
        text = ast.unparse(tree)
        # TRL takes a Dataset; made of records that were read already, it opens nothing
        opens = re.search(r"load_dataset|Dataset\.from_(?!list|dict)", text)
        if "from datasets import Dataset\n" in text and not opens:
            used -= {"datasets"}
        opened = [
            node.lineno
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and node.attr == "open" and "Image" in ast.unparse(node.value)
        ]
        if used or opened:
            found.append((path.relative_to(ROOT).as_posix(), sorted(used), opened))
    assert found == []
