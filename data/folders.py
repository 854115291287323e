"""A folder that belongs to one set of settings, and says so in a file of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.errors import DataError
from data.jsonl import read_json, write_json


def claim(folder: Path, name: str, wanted: Mapping[str, Any]) -> None:
    """Take ``folder`` for a run of these settings (written to the file ``name`` in it), or check that it was
    taken for the same.

    Raises:
        DataError: the folder is a file, holds other things, or belongs to other settings (they are named).
    """
    path, mend = folder / name, "choose another folder, or delete this one"
    if folder.exists() and not folder.is_dir():
        raise DataError("is a file", file=str(folder), mend="give a folder")
    if not path.exists():
        if folder.exists() and any(not entry.name.startswith(".") for entry in folder.iterdir()):
            rule = f"not empty, and without {name} not a folder to continue in"
            raise DataError(rule, file=str(folder), mend=mend)
        write_json(path, dict(wanted))
        return
    found = read_json(path)
    if not isinstance(found, dict):
        raise DataError("is not a JSON object", file=str(path), mend=mend)
    keys = [key for key in {**wanted, **found} if wanted.get(key) != found.get(key)]
    if keys:
        differing = ", ".join(f"{key}: {found.get(key)} there, {wanted.get(key)} now" for key in keys)
        rule = f"belongs to other settings, or to another version ({differing})"
        raise DataError(rule, file=str(folder), mend=mend)
