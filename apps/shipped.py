"""The recipes that come with the project."""

from __future__ import annotations

from pathlib import Path

RECIPES = Path(__file__).parent / "recipes"


def find_recipe(text: str) -> Path | None:
    """The recipe's file: as given, or one shipped under ``apps/recipes``; None for a key=value argument.

    Raises ConfigError for neither.
    """
    from align.config import ConfigError

    for path in (Path(text), RECIPES / text, RECIPES / f"{text}.yaml"):
        if path.is_file():
            return path
    if "=" in text:
        return None
    shipped = ", ".join(str(p.relative_to(RECIPES).with_suffix("")) for p in sorted(RECIPES.rglob("*.yaml")))
    raise ConfigError(f"{text}: no such recipe; give a YAML file or a shipped one ({shipped})")
