"""Recipes as files: finding, reading, overriding and validating them, for any kind of recipe."""

import re
import reprlib
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from difflib import get_close_matches
from itertools import chain
from pathlib import Path, PurePath
from typing import Any, TypeVar, get_args, get_type_hints

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from yaml.constructor import ConstructorError

from sgpipe.errors import UserError, existing_file

Kind = TypeVar("Kind", bound=BaseModel)
Section = TypeVar("Section")  # a `Config`, or a dataclass within one

# Scalars of YAML 1.2 that are no texts: their kinds, how they are written, and how they begin.
_SCALARS = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", [*"-+0123456789"]),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", [*"-+.0123456789"]),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", [*"-+."]),
    ("merge", r"<<", ["<"]),
)
_BASES = {"0o": 8, "0x": 16}  # of numbers that begin so
# What PyYAML raises for what is not YAML, or for a tag that does not fit its value.
_FAULTS = (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError)
_shown = reprlib.Repr()  # of a value that may be as large as it likes
_shown.maxlevel = 3
_shown.maxstring = 200
_shown.maxother = 200


class Config(BaseModel):
    """Base of every section of a recipe: frozen; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_truth_value(cls, value: object, info: ValidationInfo) -> object:
        """Refuse "limit: true", which would be 1."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        kinds = {annotation, *get_args(annotation)}
        if isinstance(value, bool) and bool not in kinds and kinds & {int, float}:
            raise ValueError("Input should be a number")
        return value


class _Loader(yaml.SafeLoader):
    """YAML 1.2 (core schema), of which PyYAML reads 1.1: 010 is 10 and not 8, 1:30, yes and off are
    texts.
    """

    yaml_implicit_resolvers = {}  # noqa: RUF012 - PyYAML's own attribute

    def construct_mapping(
        self, node: yaml.MappingNode, deep: bool = False
    ) -> dict[Hashable, object]:
        """Return a mapping.

        Raises:
            YAMLError: two of its keys are the same.
        """
        names = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for name, times in names.items():
            if times > 1:
                raise ConstructorError(None, None, f"duplicate key {name}", node.start_mark)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes every text that YAML 1.1 or 1.2 would read as something else."""


for _class in (_Loader, _Dumper):
    for _kind, _pattern, _starts in _SCALARS:
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_kind}", re.compile(f"(?:{_pattern})$"), _starts
        )
_Loader.add_constructor(
    "tag:yaml.org,2002:int", lambda _, node: int(node.value, _BASES.get(node.value[:2], 10))
)


def parse_yaml(text: str) -> Any:
    """Return plain values. Raises ValueError, in one line: it is not YAML 1.2, or a tag does not
    fit its value.
    """
    try:
        return _Loader(text).get_single_data()
    except _FAULTS as error:
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None


def dump_yaml(values: Mapping[str, object]) -> str:
    """Return values as YAML that versions 1.1 and 1.2 read alike."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False)


def recipe_folder() -> Path:
    """Return the folder of the packaged recipes: in the wheel, or next to the packages in a
    checkout.
    """
    parent = Path(__file__).parents[1]
    return parent / "pipelines" if (parent / "pipelines").is_dir() else parent.parent / "pipelines"


def load(
    kind: type[Kind],
    name: str | Path,
    folder: Path,
    overrides: Mapping[str, object],
    *overlays: Path,
) -> Kind:
    """Return the recipe of a packaged name in `folder` or a YAML file, with overlays and then
    overrides applied.

    Args:
        overrides: values by dotted key, as in `{"tag.threshold": 0.1}`.
        overlays: files whose keys replace others.

    Raises:
        UserError: no such recipe, not YAML, or a setting that is unknown or of the wrong type.
    """
    path = _find(str(name), folder)
    settings: object = {}
    for file in (path, *overlays):
        settings = merged(settings, read_yaml(file))
    for key, value in overrides.items():
        plain = str(value) if isinstance(value, PurePath) else value
        settings = _replaced(settings, key.split("."), plain, key)
    with explained(kind, f"recipe {path}: ", overrides):
        return kind.model_validate(settings)


def merged(below: object, above: object) -> Any:
    """Return `above`, with what only `below` has in its mappings."""
    if not isinstance(below, Mapping) or not isinstance(above, Mapping):
        return above
    values = dict(below)
    for key, value in above.items():
        values[key] = merged(below.get(key), value)
    return values


def _replaced(values: object, path: Sequence[str], value: object, key: str) -> object:
    """Return a copy of nested mappings and lists with another value at a path; `key`: the path, for
    messages.
    """
    if not path:
        return value
    first, *rest = path
    if values is None:
        return {first: _replaced(None, rest, value, key)}
    if isinstance(values, Mapping):
        return {**values, first: _replaced(values.get(first), rest, value, key)}
    if isinstance(values, list) and first.isdecimal() and int(first) < len(values):
        items = values.copy()
        items[int(first)] = _replaced(values[int(first)], rest, value, key)
        return items
    raise UserError(f"{key}: there is no {first!r} in {_shown.repr(values)}")


def changed(section: Section, **settings: object) -> Section:
    """Return a section of a recipe with those settings that are not None.

    Raises:
        UserError: a value is invalid.
    """
    changes = {name: value for name, value in settings.items() if value is not None}
    if not changes:
        return section
    with explained(type(section)):
        return TypeAdapter(type(section)).validate_python({**vars(section), **changes})


def parse_set(assignments: list[str]) -> dict[str, Any]:
    """Return `["tag.threshold=0.1"]` as overrides; values are YAML.

    Raises:
        UserError: it is not key=value.
    """
    overrides: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not all(part.strip() for part in key.split(".")):
            raise UserError(f"--set {assignment!r}: expected key=value, such as tag.threshold=0.1")
        try:
            overrides[key.strip()] = parse_yaml(value)
        except ValueError:
            raise UserError(
                f"--set {assignment!r}: the value is not valid YAML; put it in quotes"
            ) from None
    return overrides


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the keys and values of a file.

    Raises:
        UserError: it cannot be read, or contains something else.
    """
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"recipe {path}: not valid YAML ({error})") from None
    except OSError as error:
        raise UserError(f"recipe {path} cannot be read: {error.strerror or error}") from None
    if not isinstance(values, dict | None):
        raise UserError(f"recipe {path}: expected keys and values, found {_shown.repr(values)}")
    return values or {}


def _find(name: str, folder: Path) -> Path:
    packaged = folder / f"{name}.yaml"
    is_file = name.endswith((".yaml", ".yml"))
    if not is_file and not name.startswith((".", "/", "~")) and packaged.is_file():
        return packaged
    if Path(name).exists() or "/" in name or is_file:
        return existing_file(Path(name))
    names = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
    raise UserError(
        f"no recipe {name!r}: it is neither a file nor one of the packaged recipes ({names})"
    )


@contextmanager
def explained(kind: type, where: str = "", overrides: Iterable[str] = ()) -> Iterator[None]:
    """Turn a `ValidationError` of a `kind` of section into one line.

    Args:
        where: what the line begins with, unless the setting is one of the `overrides`.

    Raises:
        UserError: the setting, the reason, and the value or the setting that was probably meant.
    """
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        path = [str(part) for part in first["loc"] if part != "[key]"]
        key = ".".join(path)
        if any(_is_within(key, override) or _is_within(override, key) for override in overrides):
            where = ""
        if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            raise UserError(
                f"{where}unknown setting {key!r}{_similar_setting(kind, path)}"
            ) from None
        value = "" if isinstance(first["input"], dict) else f", got {_shown.repr(first['input'])}"
        reason = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{where}{key}: {reason}{value}") from None


def _is_within(key: str, section: str) -> bool:
    """Return whether a setting is a section, or in it, by their dotted keys."""
    return f"{key}.".startswith(f"{section}.")


def did_you_mean(name: str, known: Iterable[str], section: str = "") -> str:
    """Return what to add to the message about an unknown name: the known one that is most like it,
    if any is, after the `section` that it is in.
    """
    similar = get_close_matches(name, list(known), n=1)
    return f"; did you mean {section + similar[0]!r}?" if similar else ""


def _similar_setting(kind: type, path: Sequence[str]) -> str:
    """Return what to add to the message about an unknown setting: one like it in its section, or in
    any other.
    """
    *outer, name = path
    sections = [kind]
    for part in outer:
        inner: list[type] = []
        for section in sections:
            inner += _sections_in(_settings(section).get(part))
        # otherwise it is a free name, such as that of a split, or the number of an item
        sections = inner or sections
    siblings: list[str] = []
    for section in sections:
        siblings += _settings(section)
    outer_name = ".".join([*outer, ""])
    return did_you_mean(name, siblings, outer_name) or did_you_mean(name, _all_settings(kind))


def _settings(section: type) -> dict[str, object]:
    """Return the names of the settings of a section, with their types."""
    names = [*getattr(section, "__dataclass_fields__", ()), *getattr(section, "model_fields", ())]
    hints = get_type_hints(section)
    return {name: hints[name] for name in hints if name in names}


def _sections_in(annotation: object) -> list[type]:
    """Return the sections that a type consists of, such as that of a list or a mapping of them."""
    is_model = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    if isinstance(annotation, type) and (is_model or is_dataclass(annotation)):
        return [annotation]
    return list(chain.from_iterable(map(_sections_in, get_args(annotation))))


def _all_settings(kind: type) -> Iterator[str]:
    """Yield the dotted name of each setting of a section and of the sections in it, but not in its
    lists.
    """
    for name, annotation in _settings(kind).items():
        yield name
        sections = _sections_in(annotation)
        if sections == [annotation]:
            yield from (f"{name}.{inner}" for inner in _all_settings(sections[0]))
