"""Recipes: a YAML file, then ``key=value`` arguments, checked against a settings class.

A wrong recipe fails before anything loads, with one line for each fault that names the file and
line (or the argument), the rule, and the nearest known key. Reached through ``align.config``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError


class ConfigError(ValueError):
    """A recipe or a ``key=value`` argument that cannot be used; the text names it, the rule and the mend."""


S = TypeVar("S", bound=BaseModel)


def load_recipe(path: str | Path) -> dict[str, Any]:
    """Read one YAML recipe as nested plain values, unchecked against any settings class.

    Raises:
        ConfigError: no such file, no valid YAML, a key given twice, or no mapping at the top.
    """
    return _parse_recipe(Path(path))[0]


def resolve(settings: type[S], recipe: str | Path | None = None, overrides: Sequence[str] = ()) -> S:
    """Settings from a recipe, then ``overrides`` in their order, each ``section.key=value``.

    A value is read as YAML, so ``optim.lr=3e-5``, ``facts=[captions, answer]`` and ``lora=null`` mean
    what they say. Later arguments win; a mapping replaces what the recipe has for that section. Where a
    section has defaults of its own in ``settings`` (PPO's warm-up, the length classes), keys that nobody
    gives keep those.

    Raises:
        ConfigError: an unknown key (with the nearest known one), a wrong type or a broken rule.
            One line for each fault; each begins with ``file:line`` or the argument.
    """
    values: dict[str, Any] = {}
    lines: dict[str, int] = {}
    if recipe is not None:
        values, lines = _parse_recipe(Path(recipe))
    arguments: dict[str, str] = {}
    for text in overrides:
        key, value = _parse_override(text)
        _put(values, key, value, text)
        arguments = {k: v for k, v in arguments.items() if not f"{k}.".startswith(f"{key}.")}
        arguments[key] = text
    try:
        return settings.model_validate(_over_defaults(settings, values))
    except ValidationError as error:
        faults = _faults(error, settings, values)
        text = "\n".join(f"{_origin(key, recipe, lines, arguments)}: {rule}" for key, rule in faults.items())
        raise ConfigError(text) from None


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads ``3e-5`` as a number (YAML 1.1 wants ``3.0e-5``) and refuses repeated keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen and key.value != "<<":
                line = key.start_mark.line + 1
                raise yaml.MarkedYAMLError(problem=f"{key.value!r} is given twice (line {line}); keep one")
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _parse_recipe(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """The recipe's values, and the line (from 1) of each dotted key."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the recipe ({error.strerror}); check the path") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text; a recipe is a YAML file") from None
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        values = loader.construct_document(node) if node is not None else {}
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise ConfigError(f"{path}: not valid YAML: {problem}") from None
    finally:
        loader.dispose()
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: the top level must be 'key: value' lines, got {type(values).__name__}")
    return values, dict(_key_lines(node))


def _key_lines(node: yaml.Node | None, prefix: str = "") -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            dotted = f"{prefix}{key.value}"
            yield dotted, key.start_mark.line + 1
            yield from _key_lines(value, f"{dotted}.")


def _parse_override(text: str) -> tuple[str, Any]:
    key, equals, raw = text.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(f"argument {text!r}: settings are given as key=value, e.g. optim.lr=3e-5")
    loader = _Loader(raw)
    try:
        return key, loader.get_single_data()
    except yaml.YAMLError:
        raise ConfigError(
            f"argument {text!r}: the value is not valid YAML; quote it inside the shell's quotes"
        ) from None
    finally:
        loader.dispose()


def _put(values: dict[str, Any], key: str, value: Any, text: str) -> None:
    *sections, leaf = key.split(".")
    for i, section in enumerate(sections):
        if values.get(section) is None:
            values[section] = {}
        values = values[section]
        if not isinstance(values, dict):
            done = ".".join(sections[: i + 1])
            raise ConfigError(f"argument {text!r}: {done} is a value, not a section; set {done}=... whole")
    values[leaf] = value


def _over_defaults(settings: type[BaseModel], values: dict[str, Any]) -> dict[str, Any]:
    """``values`` laid over the sections' defaults; alone, pydantic would swap a default section whole."""
    defaults = {name: field.default for name, field in settings.model_fields.items()}
    return {key: _merge(defaults.get(key), value) for key, value in values.items()}


def _merge(default: Any, given: Any) -> Any:
    if isinstance(default, BaseModel):
        default = {name: getattr(default, name) for name in type(default).model_fields}
    if not (isinstance(default, dict) and isinstance(given, dict)):
        return given
    return {**default, **{key: _merge(default.get(key), value) for key, value in given.items()}}


def _faults(error: ValidationError, settings: type[BaseModel], values: Any) -> dict[str, str]:
    """Dotted key -> rule and mend; the members of a union are joined, each key appears once."""
    rules: dict[str, list[str]] = {}
    for fault in error.errors():
        key = _dotted(fault["loc"], values)
        rules.setdefault(key, [])
        rule = _rule(key, fault, settings)
        if rule not in rules[key]:
            rules[key].append(rule)
    return {key: " or ".join(found) for key, found in rules.items()}


def _dotted(loc: Sequence[int | str], values: Any) -> str:
    """Pydantic's location without the names of union members, which are no keys of the recipe."""
    kept: list[str] = []
    for part in loc:
        if isinstance(values, Mapping):
            kept.append(str(part))
            values = values.get(part)
        elif isinstance(values, list) and isinstance(part, int):
            kept.append(str(part))
            values = values[part] if part < len(values) else None
    return ".".join(kept)


def _rule(key: str, fault: Mapping[str, Any], settings: type[BaseModel]) -> str:
    kind = fault["type"]
    if kind == "extra_forbidden":
        section, _, name = key.rpartition(".")
        known = _known_keys(settings, section)
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        where = f"section {section!r}" if section else "the settings"
        mend = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(known))}"
        return f"unknown key {name!r} in {where}; {mend}"
    if kind == "missing":
        return f"{key!r} is required; add it to the recipe or give {key}=..."
    if kind == "value_error":
        # without a key it is a rule of the settings as a whole
        return f"{key!r}: {fault['ctx']['error']}" if key else str(fault["ctx"]["error"])
    given = fault["input"]
    if kind == "string_type" and isinstance(given, bool):
        return f"{key!r}: YAML reads a bare yes, no, on or off as {given}; quote the word"
    if kind == "string_type" and given is not None and not isinstance(given, (dict, list)):
        return f"{key!r}: must be text, got {given!r}; quote it in YAML"
    return f"{key!r}: {str(fault['msg'])[0].lower()}{str(fault['msg'])[1:]}, got {given!r}"


def _known_keys(settings: type[BaseModel], section: str) -> list[str]:
    """Field names of a section; optional sections (``X | None``) count as the section itself."""
    model = settings
    names = [name for name in section.split(".") if name]
    while names:
        annotation = model.model_fields[names.pop(0)].annotation
        if get_origin(annotation) is dict:  # of sections under names of the user's own
            annotation, names = get_args(annotation)[1], names[1:]
        options = [t for t in (annotation, *get_args(annotation)) if get_origin(t) is None]
        nested = [t for t in options if isinstance(t, type) and issubclass(t, BaseModel)]
        if not nested:
            return []
        model = nested[0]
    return list(model.model_fields)


def _origin(key: str, recipe: str | Path | None, lines: dict[str, int], arguments: dict[str, str]) -> str:
    """Where a key was given: an argument that set it (or set inside or around it), else the recipe."""
    for given, text in reversed(arguments.items()):
        if f"{key}.".startswith(f"{given}."):
            return f"argument {text!r}"
    if recipe is None:
        return "settings"
    while key and key not in lines:
        key = key.rpartition(".")[0]
    return f"{recipe}:{lines[key]}" if key else str(recipe)
