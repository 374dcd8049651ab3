"""How options are declared, and what is checked of their values before a command runs.

A group of options is a dataclass: a `command` takes it as one parameter; the command line shows its
options.
"""

from __future__ import annotations

import dataclasses
import functools
import glob
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, TypeVar, get_origin, get_type_hints

import typer
from typer.models import ArgumentInfo, OptionInfo

from sgpipe.errors import UserError

if TYPE_CHECKING:
    from sgpipe.files.locations import Location

    Place: TypeAlias = Location
else:
    # A file, folder or URI of a store: `--help` shows the name of the type.
    Place = type("path", (), {})

Result = TypeVar("Result")

# headings of `--help`
DATA = "Data"
MODELS = "Models"
COMPUTE = "Compute"

USAGE_ERROR: Any = typer.BadParameter.__bases__[0]  # typer does not export it


def option(text: str, *names: str, panel: str | None = None, **settings: Any) -> OptionInfo:
    """Return an option of typer; `names`: if they are not that of the parameter."""
    declared: OptionInfo = typer.Option(*names, help=text, rich_help_panel=panel, **settings)
    return declared


def reads_file(text: str, panel: str | None = DATA) -> OptionInfo:
    return option(text, panel=panel, exists=True, dir_okay=False)


def reads_stored(text: str, *, exists: bool = True) -> OptionInfo:
    """Return an option for a file or folder, also in an object store; `exists`: check it here."""
    return option(text, panel=DATA, parser=as_location, callback=stored if exists else None)


def stored_argument(
    text: str, metavar: str | None = None, callback: Callable[[object], object] | None = None
) -> ArgumentInfo:
    declared: ArgumentInfo = typer.Argument(
        help=text, metavar=metavar, parser=as_location, callback=callback or stored
    )
    return declared


def reads_images(text: str) -> OptionInfo:
    return option(text, panel=DATA, callback=stored)


def reads_model(text: str, **settings: Any) -> OptionInfo:
    """Return an option for a model: a folder, or its name on the hub or at an endpoint."""
    return option(text, panel=MODELS, callback=maybe_path, **settings)


def writes_file(text: str) -> OptionInfo:
    return option(text, dir_okay=False, callback=local)


def writes_folder(text: str) -> OptionInfo:
    return option(text, file_okay=False, callback=local)


def maybe_path(value: object) -> object:
    return value


def as_location(text: str) -> Location:
    """Return a path, or the URI of a store, which `Path` would mangle."""
    if "://" not in text:
        return Path(text)
    from sgpipe.files.locations import location

    return location(text)


def stored(value: object) -> object:
    """Check that paths exist; the callback of an option that also takes a URI, which is not
    contacted.
    """
    places = value if isinstance(value, list) else [value]
    for place in places:
        is_path = place is not None and "://" not in str(place)
        if is_path and not Path(str(place)).exists():
            raise typer.BadParameter(f"{place} does not exist.")
    return value


def stored_runs(value: object) -> object:
    """As `stored`, of places that may also be patterns, which match a folder at least."""
    places = value if isinstance(value, list) else [value]
    for place in places:
        is_pattern = "*" in str(place)
        if not is_pattern:
            stored(place)
        elif "://" not in str(place) and not glob.glob(str(place)):
            raise typer.BadParameter(f"{place} matches nothing.")
    return value


def local(path: Path | None) -> Path | None:
    """Refuse a place that cannot be written, also the URI of a store, of which `Path` keeps one
    slash.
    """
    if path is None:
        return None
    scheme, colon, rest = str(path).partition(":/")
    if colon and len(scheme) > 1 and scheme.isalnum():
        raise typer.BadParameter(f"{scheme}://{rest} is not on this machine.")
    absolute = path.absolute()
    nearest = next(place for place in (absolute, *absolute.parents) if place.exists())
    is_below_file = nearest != absolute and nearest.is_file()
    if is_below_file or not os.access(nearest, os.W_OK):
        raise typer.BadParameter(f"{path} cannot be written: {nearest} is read-only, or a file.")
    return path


def with_options(
    function: Callable[..., Result], options: Sequence[inspect.Parameter]
) -> Callable[..., Result]:
    """Return a function that passes on options of other code, which it takes as `**values`."""
    *parameters, _ = inspect.signature(function, eval_str=True).parameters.values()

    @functools.wraps(function)
    def run(*arguments: object, **values: object) -> Result:
        return function(*arguments, **values)

    vars(run)["__signature__"] = inspect.Signature([*parameters, *map(_as_option, options)])
    return run


def _as_option(parameter: inspect.Parameter) -> inspect.Parameter:
    """Return a parameter that is an option also without a default value; without a type, a text. A
    path has to exist.
    """
    declared = parameter.annotation
    if get_origin(declared) is not Annotated:
        kind = str if declared is inspect.Parameter.empty else declared
        declared = Annotated[kind, option("", exists=True)]
    return parameter.replace(annotation=declared, kind=inspect.Parameter.KEYWORD_ONLY)


def command(function: Callable[..., None], *, writes_beside: bool = False) -> Callable[..., None]:
    """Return a function as a command of typer, which sees the options in a group instead of the
    group.

    It may not write what it reads, but `writes_beside` it: by names that no image has.
    """
    parameters: dict[str, inspect.Parameter] = {}
    groups: dict[str, Any] = {}
    for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
        if dataclasses.is_dataclass(parameter.annotation):
            groups[name] = parameter.annotation
            types = get_type_hints(groups[name], include_extras=True)
            for field_name, field in inspect.signature(groups[name]).parameters.items():
                parameters[field_name] = field.replace(annotation=types[field_name])
        else:
            parameters[name] = parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)

    @functools.wraps(function)
    def run(**values: object) -> None:
        _check_outputs(values, parameters, writes_beside)
        for name, group in groups.items():
            names = [field.name for field in dataclasses.fields(group)]
            values[name] = group(**{name: values.pop(name) for name in names})
        function(**values)

    # a paragraph for typer
    run.__doc__ = (function.__doc__ or "").replace("Examples:\n", "Examples:\n\n")
    vars(run)["__signature__"] = inspect.Signature(list(parameters.values()))
    run.__annotations__ = {name: parameter.annotation for name, parameter in parameters.items()}
    return run


def _check_outputs(
    values: Mapping[str, object], parameters: Mapping[str, inspect.Parameter], beside: bool
) -> None:
    """Check what a command writes; `beside`: it may be what the command reads.

    Raises:
        UserError: an output is an input, another output, or belongs to a run.
    """
    inputs: list[str | Path] = []
    outputs: list[Path] = []
    options: dict[str, str] = {}
    for name, value in values.items():
        callback = _callback(parameters[name])
        if callback is not local:
            inputs += _inputs(value, callback)
        elif isinstance(value, Path):
            option = f"--{name}".replace("_", "-")
            earlier = options.setdefault(os.path.realpath(value), option)
            if earlier != option:
                raise UserError(f"{earlier} and {option} are the same file")
            outputs.append(value)
    if outputs:
        from sgpipe.storage.run_folder import check_output

        for path in outputs:
            check_output(path, () if beside else inputs)


def _callback(parameter: inspect.Parameter) -> object:
    """Return the callback of an option, by which its kind is known."""
    declared = getattr(parameter.annotation, "__metadata__", ())
    return declared[0].callback if declared else None


def _inputs(value: object, callback: object) -> list[str | Path]:
    """Return the paths among the values of an option that is not an output."""
    if callback not in (stored, stored_runs, maybe_path) and not isinstance(value, Path | list):
        return []
    places = value if isinstance(value, list) else [value]
    return [place for place in places if isinstance(place, str | Path) and "://" not in str(place)]
