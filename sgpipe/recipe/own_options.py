"""Settings of the user's own captioners, taggers and stages: keyword-only parameters of a class, which
`options` of its section of the recipe sets.
"""

import inspect
import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from sgpipe.errors import UserError, existing_file
from sgpipe.plugins import code_identity, failures_told, load
from sgpipe.recipe.stage import StageConfig
from sgpipe.registry import Kind
from sgpipe.utils.config_file import did_you_mean, explained
from sgpipe.utils.console import listed
from sgpipe.utils.hashing import file_sha256, folder_sha256


def options_of(section: StageConfig, kind: Kind, reference: str) -> dict[str, Any]:
    """Return the settings of a class among those of its section, as its arguments.

    Raises:
        UserError: as `plugins.load`, or a value does not fit the annotation of its parameter.
    """
    if not section.options:
        return {}
    code = load(kind, reference)
    options: dict[str, Any] = {}
    with failures_told(kind, reference):
        parameters = inspect.signature(code, eval_str=True).parameters
        for name in _settings(code):
            if name in section.options:
                setting = f"{kind} {reference}: {section.section}.options.{name}"
                options[name] = _typed(section.options[name], parameters[name], setting)
    return options


def _settings(code: type) -> list[str]:
    """Return the names of the settings of a class."""
    parameters = inspect.signature(code).parameters.values()
    return [item.name for item in parameters if item.kind is inspect.Parameter.KEYWORD_ONLY]


def _typed(value: object, parameter: inspect.Parameter, setting: str) -> object:
    """Return a value of the type of a parameter.

    Raises:
        UserError: it is none; `setting` names it.
    """
    if parameter.annotation is inspect.Parameter.empty:
        return value
    with explained(object, setting):
        return TypeAdapter(parameter.annotation).validate_python(value)


def check_options(section: StageConfig) -> None:
    """Check the settings of code of the user's own.

    Raises:
        UserError: as `options_of`, or a setting is one of no class that the section names.
    """
    known: list[str] = []
    for kind, reference in section.own_code:
        options_of(section, kind, reference)
        known += _settings(load(kind, reference))
    for name in section.options:
        if name not in known:
            code = listed([reference for _, reference in section.own_code])
            raise UserError(
                f"{section.section}.options.{name}: not a setting of"
                f" {code or 'any code of your own'}{did_you_mean(name, known)}"
            )


def own_identity(section: StageConfig, kind: Kind, reference: str) -> str:
    """Return what identifies the code behind a reference and its settings; files by content.

    Raises:
        UserError: as `options_of`, or a file is missing.
    """
    options = options_of(section, kind, reference)
    values: dict[str, object] = {}
    for name, value in sorted(options.items()):
        values[name] = _content(value) if isinstance(value, Path) else section.options[name]
    code = code_identity(kind, reference)
    return f"{code} {json.dumps(values)}" if values else code


def _content(path: Path) -> str:
    return folder_sha256(path) if path.is_dir() else file_sha256(existing_file(path))
