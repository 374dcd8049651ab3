"""Recipes as files: finding, reading, overriding and validating them, for any kind of recipe."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path, PurePath
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails

from sgpipe.errors import UserError, existing_file

Kind = TypeVar("Kind", bound=BaseModel)

_shown = reprlib.Repr()  # of a value that may be as large as it likes
_shown.maxlevel, _shown.maxstring, _shown.maxother = 3, 200, 200


class Config(BaseModel):
    """Base of every section of a recipe: frozen; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_truth_value(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse "limit: yes", which would be 1."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        kinds = (annotation, *get_args(annotation))
        if isinstance(value, bool) and bool not in kinds and (int in kinds or float in kinds):
            raise ValueError("expected a number")
        return value


def recipe_folder() -> Path:
    """The folder of the packaged recipes: in the wheel, or next to the packages in a checkout."""
    here = Path(__file__).parents[1]
    return here / "pipelines" if (here / "pipelines").is_dir() else here.parent / "pipelines"


def load(kind: type[Kind], name: str | Path, folder: Path, overrides: Mapping[str, Any], *overlays: Path) -> Kind:
    """The recipe of a packaged name or a YAML file, with overlays and then overrides applied.

    Args:
        folder: of the packaged recipes of this kind.
        overrides: values by dotted key, such as `{"tag.threshold": 0.1}`.
        overlays: files whose keys replace the recipe's, key by key.

    Raises:
        UserError: no such recipe, not YAML, or a key that is unknown or of the wrong type; the message names
            the file, the key and what was expected.
    """
    path = _find(str(name), folder)
    values = read_yaml(path)
    for overlay in overlays:
        _lay_over(values, read_yaml(overlay))
    if not isinstance(overrides, Mapping) or not all(isinstance(key, str) for key in overrides):
        raise UserError(f"{_shown.repr(overrides)} are no overrides; expected values by key: {{'tag.threshold': 0.1}}")
    for key, value in overrides.items():
        _override(values, key, value)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UserError(_explain(error, kind, path, overrides)) from None


def require_loaded(recipe: object, kind: type[BaseModel], load: str) -> None:
    """Raises UserError: `recipe` is not of this kind, such as the name of one; `load`: the function that makes one."""
    if not isinstance(recipe, kind):
        raise UserError(f"recipe: expected a {kind.__name__}, as {load}(…) returns, got {_shown.repr(recipe)}")


def parse_set(assignments: list[str]) -> dict[str, Any]:
    """`["tag.threshold=0.1"]` as overrides; values are read as YAML.

    Raises UserError: an assignment is not of the form key=value.
    """
    overrides = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not all(part.strip() for part in key.split(".")):
            raise UserError(f"--set {assignment!r}: expected key=value, such as tag.threshold=0.1")
        try:
            overrides[key.strip()] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError):
            raise UserError(f"--set {assignment!r}: the value is not valid YAML; put it in quotes") from None
    return overrides


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys and values of a file. Raises UserError: it cannot be read, or holds something else."""
    try:
        values = _Loader(path.read_text(encoding="utf-8")).get_single_data()
    except _RepeatedKeyError as error:
        raise UserError(f"recipe {path}{_line(error)}: key {error.problem!r} occurs twice") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"recipe {path}{_line(error)}: not valid YAML{_reason(error)}") from None
    except RecursionError:
        raise UserError(f"recipe {path}: nested too deeply to be a recipe") from None
    except OSError as error:
        raise UserError(f"recipe {path} cannot be read: {error.strerror}") from None
    if not isinstance(values or {}, dict):
        raise UserError(f"recipe {path}: expected keys and values, found {type(values).__name__}")
    return values or {}


class _RepeatedKeyError(yaml.MarkedYAMLError):
    """A mapping has a key twice; YAML readers would silently take the last."""


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in keys:
                raise _RepeatedKeyError(problem=key.value, problem_mark=key.start_mark)
            keys.add(key.value)
        return super().construct_mapping(node, deep)


def _line(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    return f", line {mark.line + 1}" if mark else ""


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return " (it is not UTF-8 text)"
    problem = getattr(error, "problem", None)
    return f" ({problem})" if problem else ""


def _find(name: str, folder: Path) -> Path:
    packaged = folder / f"{name}.yaml"
    if "/" not in name and not name.endswith((".yaml", ".yml")) and packaged.is_file():
        return packaged
    if Path(name).exists() or "/" in name or name.endswith((".yaml", ".yml")):
        return existing_file(Path(name))
    names = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
    raise UserError(f"no recipe {name!r}: it is neither a file nor one of the packaged recipes ({names})")


def _lay_over(values: dict[str, Any], overlay: Mapping[str, Any]) -> None:
    for key, value in overlay.items():
        inner = values.get(key)
        if isinstance(value, dict) and isinstance(inner, dict):
            _lay_over(inner, value)
        else:
            values[key] = value


def _override(values: dict[str, Any], key: str, value: Any) -> None:
    value = str(value) if isinstance(value, PurePath) else value
    *parents, leaf = key.split(".")
    for parent in parents:
        inner = values.get(parent)
        values[parent] = dict(inner) if isinstance(inner, dict) else {}
        values = values[parent]
    values[leaf] = value


def _explain(error: ValidationError, kind: type[BaseModel], path: Path, overrides: Mapping[str, Any]) -> str:
    """The first fault of a recipe in one line."""
    first, *others = error.errors()
    key = ".".join(str(part) for part in first["loc"])
    where = _blame(key, path, overrides)
    more = f" (and {len(others)} more)" if others else ""
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{where}: unknown key {key!r}{_suggest(first, kind)}{more}"
    expected = _expected(first["msg"])
    says_it_all = first["type"] == "value_error" and isinstance(first["input"], dict)
    got = "" if says_it_all else f", got {_shown.repr(first['input'])}"
    return f"{where}: key {key!r}: {expected}{got}{more}"


def _expected(message: str) -> str:
    """What pydantic expected, in few words."""
    message = re.sub("Input should be (greater|less)", r"expected a number \1", message)
    message = message.replace("Input should be", "expected").removeprefix("Value error, ")
    if message.startswith("String should match pattern"):
        return "expected letters, digits and _" if r"\w" in message else "expected a name without / and \\"
    return message.partition(", unable to parse string")[0]


def _blame(key: str, path: Path, overrides: Mapping[str, Any]) -> str:
    """Where a key was set, as far as can be told."""
    if any(key == name or key.startswith(f"{name}.") for name in overrides):
        return "option"
    mixed = any(name.startswith(f"{key}.") for name in overrides)
    return f"recipe {path} with the given options" if mixed else f"recipe {path}"


def _suggest(error: ErrorDetails, kind: Any) -> str:
    """The valid keys in place of an unknown one."""
    *parents, leaf = error["loc"]
    for part in parents:
        is_collection = get_origin(kind) in (tuple, dict)
        kind = _settings(kind) if is_collection else _keys(_settings(kind)).get(str(part))
    known = sorted(_keys(_settings(kind)))
    close = difflib.get_close_matches(str(leaf), known, 1)
    if not close:
        return f"; expected one of {', '.join(known)}"
    return f"; did you mean {'.'.join([*map(str, parents), close[0]])!r}?"


def _settings(kind: Any) -> Any:
    """The part of a recipe that a type is, may be (`Part | None`) or collects (`dict[str, Part]`); None: no part."""
    return next((each for each in (kind, *get_args(kind)) if _keys(each)), None)


def _keys(kind: Any) -> Mapping[str, Any]:
    """The settings of a part of a recipe, which is a pydantic model or a dataclass, and their types."""
    if hasattr(kind, "model_fields"):
        return {name: field.annotation for name, field in kind.model_fields.items()}
    return {field.name: field.type for field in fields(kind)} if is_dataclass(kind) else {}
