"""align.folders: a folder appears whole or not at all, whatever fails."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from align.folders import new_folder


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def write(directory: Path, text: str) -> None:
    with new_folder(directory) as folder:
        (folder / "file").write_text(text)


def test_a_new_folder_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    for text in ("one", "two"):
        write(tmp_path / "made" / "it", text)
        assert (tmp_path / "made" / "it" / "file").read_text() == text
        assert names(tmp_path / "made") == ["it"]
    assert (tmp_path / "made" / "it").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failed_write_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    write(tmp_path / "it", "old")
    for name in ("it", "new"):
        with pytest.raises(error), new_folder(tmp_path / name) as folder:
            (folder / "file").write_text("half")
            raise error
    assert names(tmp_path) == ["it"] and (tmp_path / "it" / "file").read_text() == "old"


@pytest.mark.parametrize("failing", [1, 2])
def test_a_failed_swap_puts_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    write(tmp_path / "it", "old")
    calls: list[Any] = []
    real = os.replace

    def replace(*paths: Any) -> None:
        calls.append(paths)
        if len(calls) == failing:
            raise OSError("the disk is gone")
        real(*paths)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="the disk is gone"):
        write(tmp_path / "it", "new")
    assert names(tmp_path) == ["it"] and (tmp_path / "it" / "file").read_text() == "old"
