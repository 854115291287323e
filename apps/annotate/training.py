"""Stages that train on preferences, straight from a store: ``data.path=sqlite:///votes.db``.

``data`` and ``align`` know files alone, so the votes are exported ahead of the stage, into the hidden folder
``.votes`` of its run directory, and the stage gets that file; ``data.json`` beside it says what it is of. A
run that is resumed reads the same file again, however many votes have come since: so it resumes exactly.

``data.format`` is left out or ``annotate``; ``data.options.labels`` is ``majority`` (the default),
``adjudicated`` or ``labelers``, as in ``apps.annotate.exports``. Without ``data.images`` the store's own
image root is taken.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from data.errors import DataError

if TYPE_CHECKING:
    from align.config import DataSettings, RunSettings

S = TypeVar("S", bound="RunSettings")
#: stages whose data are preferences
STAGES = ("reward", "dpo")
_SECTIONS = ("data", "eval_data")
FORMAT, FOLDER = "annotate", ".votes"


def is_store(path: object) -> bool:
    """Whether a setting names a store instead of a file."""
    return isinstance(path, str) and re.match(r"(sqlite|postgresql)(\+\w+)?://", path) is not None


@contextlib.contextmanager
def exported(stage: str, settings: S) -> Iterator[S]:
    """The settings with an exported file in the place of each store; unchanged where none is named.

    A dry run exports into a folder that is gone when the block ends.

    Raises:
        DataError: a stage that does not learn from preferences, an option that is none, or no votes.
        StoreError: no store there.
    """
    named: dict[str, Any] = {name: getattr(settings, name, None) for name in _SECTIONS}
    found = {name: data for name, data in named.items() if is_store(getattr(data, "path", None))}
    if not found:
        yield settings
        return
    if stage not in STAGES:
        rule = f"the stage {stage!r} does not learn from preferences"
        raise DataError(rule, key="data.path", mend="name a file of its own kind of record")
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        rule = "several processes would each read another state of the store"
        raise DataError(
            rule, key="data.path", mend="export it first (align annotate export), and name the file"
        )
    with contextlib.ExitStack() as stack:
        folder = Path(settings.output) / FOLDER
        if settings.dry_run:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="align-votes-")))
        begun = (Path(settings.output) / "settings.yaml").exists()
        changed = {name: _export(name, data, folder, begun) for name, data in found.items()}
        yield settings.model_copy(update=changed)


def _export(name: str, data: DataSettings, folder: Path, begun: bool) -> DataSettings:
    """One section's votes as a file; ``begun``: a run stands there, and keeps the file that it has."""
    from apps.annotate.exports import export
    from apps.annotate.store import open_store, shown
    from data.jsonl import write_json

    labels = _labels(name, data)
    assert isinstance(data.path, str)
    file = folder / f"{name}.jsonl"
    store = open_store(data.path)
    try:
        if not (begun and file.exists()):
            written = export(store, file, labels).written
            told = {"store": shown(store.url), "labels": labels, "records": written}
            write_json(folder / f"{name}.json", told)
        images = data.images or store.setting("images")
    finally:
        store.close()
    return data.model_copy(update={"path": str(file), "format": None, "options": {}, "images": images})


def _labels(name: str, data: DataSettings) -> str:
    if data.format not in (None, FORMAT):
        rule = f"a store is of the format {FORMAT!r}, not {data.format!r}"
        raise DataError(rule, key=f"{name}.format", mend="leave it out")
    options = dict(data.options)
    labels = options.pop("labels", "majority")
    if options:
        mend = "a store takes labels: majority, adjudicated or labelers"
        raise DataError("unknown option", key=f"{name}.options.{next(iter(options))}", mend=mend)
    return labels
