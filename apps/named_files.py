"""Files, folders and models that a stage's settings name: what must be there before anything loads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from align.config import DataSettings, RunSettings


def check_files(settings: RunSettings) -> None:
    """Every local path the settings name must exist.

    Raises:
        FileNotFoundError: one line for each missing path, with its key.
    """
    missing = [
        f"{key}: no such file or directory: {path}" for key, path in _paths(settings) if not path.exists()
    ]
    if missing:
        text = "\n".join(missing)
        raise FileNotFoundError(f"{text}\nrelative paths start at the current directory ({Path.cwd()})")


def _paths(settings: Any) -> Iterator[tuple[str, Path]]:
    from align.config import is_hub_id

    judge = getattr(settings, "judge", None)
    models = [(name, getattr(settings, name, None)) for name in ("model", "reward_base")]
    for name, model in (*models, ("judge.local", judge and judge.local)):
        if model is not None:
            for key, value in (("path", model.path), *(("adapter", adapter) for adapter in model.adapters)):
                if not is_hub_id(value):
                    yield f"{name}.{key}", Path(value)
    for section in ("data", "eval_data", "prompts", "ppo_prompts"):
        data: DataSettings | None = getattr(settings, section, None)
        if data is not None:
            files = [data.path] if isinstance(data.path, str) else data.path
            yield from ((f"{section}.path", Path(file)) for file in files)
            named = (("images", data.images), ("captions", data.captions))
            yield from ((f"{section}.{key}", Path(value)) for key, value in named if value is not None)
    for key in ("reward_model", "reward_images", "images", "world", "verdicts", "judge_prompt"):
        if getattr(settings, key, None) is not None:
            yield key, Path(getattr(settings, key))
    for name, file in getattr(settings, "benchmarks", {}).items():
        yield f"benchmarks.{name}", Path(file)
    for key in ("captions", "synonyms", "images"):
        if (value := getattr(getattr(settings, "chair", None), key, None)) is not None:
            yield f"chair.{key}", Path(value)
    answers = getattr(settings, "answers", {})
    for name, file in ({"": answers} if isinstance(answers, str) else answers).items():
        yield f"answers.{name}".rstrip("."), Path(file)


def hub_ids(settings: RunSettings) -> list[tuple[str, str]]:
    """Keys and values of models that are taken from the Hub."""
    from align.config import is_hub_id

    model = getattr(settings, "model", None)
    return [("model.path", model.path)] if model is not None and is_hub_id(model.path) else []
