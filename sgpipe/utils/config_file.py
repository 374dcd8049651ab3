"""Recipes as files: finding, reading, overriding and validating them, for any kind of recipe."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, ValidationInfo, field_validator

from sgpipe.errors import UserError, existing_file

Kind = TypeVar("Kind", bound=BaseModel)
Section = TypeVar("Section")  # a `Config`, or a dataclass within one

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
            raise ValueError("Input should be a number")
        return value


def recipe_folder() -> Path:
    """Return the folder of the packaged recipes: in the wheel, or next to the packages in a checkout."""
    here = Path(__file__).parents[1]
    return here / "pipelines" if (here / "pipelines").is_dir() else here.parent / "pipelines"


def load(kind: type[Kind], name: str | Path, folder: Path, overrides: Mapping[str, Any], *overlays: Path) -> Kind:
    """Return the recipe of a packaged name or a YAML file, with overlays and then overrides applied.

    Args:
        folder: of the packaged recipes of this kind.
        overrides: values by dotted key, such as `{"tag.threshold": 0.1}`.
        overlays: files whose keys replace the recipe's, key by key.

    Raises:
        UserError: no such recipe, not YAML, or a setting that is unknown or of the wrong type; the message names the
            file, the setting and what was expected.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    path = _find(str(name), folder)
    if not isinstance(overrides, Mapping) or not all(isinstance(key, str) for key in overrides):
        example = "{'tag.threshold': 0.1}"
        raise UserError(f"overrides must map dotted keys to values, such as {example}; got {_shown.repr(overrides)}")
    config = OmegaConf.merge(*(read_yaml(file) for file in (path, *overlays)))
    for key, value in overrides.items():
        try:
            plain = str(value) if isinstance(value, PurePath) else value
            OmegaConf.update(config, key, plain, merge=False, force_add=True)
        except (OmegaConfBaseException, ValueError, TypeError, IndexError) as error:
            raise UserError(f"{key}: {' '.join(str(error).split())}") from None
    with _explained(f"recipe {path}: "):
        return kind.model_validate(OmegaConf.to_container(config))


def changed(section: Section, **settings: Any) -> Section:
    """Return a copy of a section of a recipe with these settings; None leaves a setting as it is.

    Raises UserError: a value is invalid.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    with _explained():
        return TypeAdapter(type(section)).validate_python({**vars(section), **given}) if given else section


def require_loaded(recipe: object, kind: type[BaseModel], load: str) -> None:
    """Raise UserError if `recipe` is not of this kind, such as the name of one; `load`: the function that makes one."""
    if not isinstance(recipe, kind):
        raise UserError(f"recipe: expected a {kind.__name__}, as {load}(…) returns, got {_shown.repr(recipe)}")


def parse_set(assignments: list[str]) -> dict[str, Any]:
    """Return `["tag.threshold=0.1"]` as overrides; values are read as YAML.

    Raises UserError: an assignment is not of the form key=value.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    overrides: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not all(part.strip() for part in key.split(".")):
            raise UserError(f"--set {assignment!r}: expected key=value, such as tag.threshold=0.1")
        try:
            read: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]))
        except (YAMLError, OmegaConfBaseException, ValueError):
            raise UserError(f"--set {assignment!r}: the value is not valid YAML; put it in quotes") from None
        overrides[key.strip()] = read["value"]
    return overrides


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the keys and values of a file. Interpolations such as `${oc.env:HOME}` are never resolved.

    Raises UserError: it cannot be read, or contains something else.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        config = OmegaConf.load(path)
    except UnicodeDecodeError:
        raise UserError(f"recipe {path}: not UTF-8 text") from None
    except (YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
        raise UserError(f"recipe {path}: not valid YAML ({' '.join(str(error).split())})") from None
    except OSError as error:
        raise UserError(f"recipe {path} cannot be read: {error.strerror or error}") from None
    values: Any = OmegaConf.to_container(config)
    if not isinstance(values, dict):
        raise UserError(f"recipe {path}: expected keys and values, found a list")
    return values


def _find(name: str, folder: Path) -> Path:
    packaged = folder / f"{name}.yaml"
    if "/" not in name and not name.endswith((".yaml", ".yml")) and packaged.is_file():
        return packaged
    if Path(name).exists() or "/" in name or name.endswith((".yaml", ".yml")):
        return existing_file(Path(name))
    names = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
    raise UserError(f"no recipe {name!r}: it is neither a file nor one of the packaged recipes ({names})")


@contextmanager
def _explained(where: str = "") -> Iterator[None]:
    """Turn a `ValidationError` into one line: the setting, pydantic's message, and the value."""
    try:
        yield
    except ValidationError as error:
        first, *others = error.errors()
        key = ".".join(map(str, first["loc"]))
        more = f" (and {len(others)} more)" if others else ""
        if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            raise UserError(f"{where}unknown setting {key!r}{more}") from None
        message = first["msg"].removeprefix("Value error, ")
        got = "" if isinstance(first["input"], dict) else f", got {_shown.repr(first['input'])}"
        raise UserError(f"{where}{key}: {message}{got}{more}") from None
