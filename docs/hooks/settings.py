"""The pages of the recipes' settings, from the typed recipes themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import BaseModel

from sgpipe.recipe import Recipe
from sgpipe.training.recipe import TrainRecipe

MEANINGS = Path(__file__).with_name("meanings.yml")
RECIPES: dict[str, type[BaseModel]] = {"labelling": Recipe, "training": TrainRecipe}

_HEADS = {
    "labelling": """# Labelling settings

Every setting of a [recipe](label.md) of `sgpipe generate` and `sgpipe label`, by dotted key. `--set KEY=VALUE` changes
one; a recipe file is YAML with those that differ from the defaults. A run saves all of them in `recipe.yaml`.
""",
    "training": """# Training settings

Every setting of a [training recipe](train.md), by dotted key. `--set KEY=VALUE` changes one; a recipe file is YAML with
those that differ from the defaults. A training saves all of them in `recipe.yaml`. `data.val` has the settings of
`data.train`.
""",
}


@dataclass(frozen=True)
class Setting:
    """One setting. `kind`: the type or the choices in words; `default`: None if there is none."""

    key: str
    kind: str
    default: str | None
    described: str | None


def settings_page(recipe: str) -> str:
    """All settings of a recipe ("labelling" or "training") as Markdown, a table for each part."""
    known, parts = meanings()[recipe], dict[str, list[Setting]]()
    for setting in settings(RECIPES[recipe]):
        parts.setdefault(
            setting.key.partition(".")[0] if "." in setting.key else "recipe", []
        ).append(setting)
    sections = [f"## {part}\n\n{_table(rows, known)}" for part, rows in parts.items()]
    return "\n".join([_HEADS[recipe], *sections])


def meanings() -> dict[str, dict[str, str]]:
    """What settings mean whose field in the code has no description, by recipe and key."""
    loaded: dict[str, dict[str, str]] = yaml.safe_load(MEANINGS.read_text(encoding="utf-8"))
    return loaded


def settings(part: Any, prefix: str = "") -> Iterator[Setting]:
    """The settings of a part of a recipe, and of the parts below it; `data.val` is left out."""
    for name, kind, default, described in _fields(part):
        key = f"{prefix}{name}"
        below = [each for each in (kind, *_inner(kind)) if _is_part(each)]
        if key == "data.val":
            continue
        if not below or get_args(kind):  # a list of parts, or an optional one, is a setting itself
            yield Setting(key, _in_words(kind), _shown(default, below), described)
        for each in below:
            yield from settings(each, f"{key}.NAME." if get_origin(kind) is dict else f"{key}.")


def _fields(part: Any) -> Iterator[tuple[str, Any, Any, str | None]]:
    """Name, type, default and description of each field of a pydantic model or a dataclass."""
    if issubclass(part, BaseModel):
        for name, field in part.model_fields.items():
            default = (
                MISSING if field.is_required() else field.get_default(call_default_factory=True)
            )
            yield name, field.annotation, default, field.description
        return
    hints = get_type_hints(part)
    for field in fields(part):
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        yield field.name, hints[field.name], default, None


def _inner(kind: Any) -> tuple[Any, ...]:
    return tuple(part for each in get_args(kind) for part in (each, *_inner(each)))


def _is_part(kind: Any) -> bool:
    return isinstance(kind, type) and (issubclass(kind, BaseModel) or is_dataclass(kind))


def _in_words(kind: Any) -> str:
    """A type as readers know it: its choices, or what it is."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if origin in (Union, UnionType):
        return " or ".join("null" if each is NoneType else _in_words(each) for each in arguments)
    if origin is Annotated:
        return _in_words(arguments[0])
    if origin is tuple:
        return f"list ({_in_words(arguments[0])})"
    if origin is dict:
        return "mapping"
    names = {str: "text", int: "integer", float: "number", bool: "true or false", Path: "path"}
    return names.get(kind, "settings below")


def _shown(default: Any, below: list[Any]) -> str | None:
    """A default as YAML shows it; None: there is none, or it is that of the settings below."""
    if default is MISSING or (below and default is not None):
        return None
    if isinstance(default, (bool, NoneType)):
        return {True: "true", False: "false", None: "null"}[default]
    if isinstance(default, (tuple, list)):
        return "[" + ", ".join(map(str, default)) + "]"
    return "{}" if default == {} else str(default)


def _table(rows: list[Setting], known: dict[str, str]) -> str:
    lines = [
        f"| `{row.key}` | {row.kind} | {'' if row.default is None else f'`{row.default}`'} "
        f"| {row.described or known.get(row.key, '')} |"
        for row in rows
    ]
    return "\n".join(["| setting | type | default | meaning |", "|---|---|---|---|", *lines]) + "\n"
