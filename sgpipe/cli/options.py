"""The options that several commands share, each declared once.

A group of options is a dataclass of such types. A command that `with_option_groups` decorates takes the group as one
parameter, and the command line shows the options in it.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from typer.core import TyperCommand

from sgpipe.errors import (
    UserError,
    existing_dataset,
    existing_file,
    existing_folder,
    existing_model,
    existing_path,
    existing_place,
    existing_run,
    writable_file,
    writable_folder,
)

_PATHS = "sgpipe.paths"  # the checks of a command's paths, in its context


class Command(TyperCommand):
    """A command that refuses paths by one line before it does anything: a missing one is called what it is."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Raises UserError: a value is empty, such as an unset variable of the shell, which as a path would be "."."""
        for before, word in zip(["", *args], args, strict=False):
            name, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
            if not value and (equals or not name):
                option = f"{name or before}: " if (name or before).startswith("--") else ""
                raise UserError(f"{option}a value is empty; is a variable of the shell unset?")
        return super().parse_args(ctx, args)

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        """Raises UserError: a path is missing, or a file where a folder is expected, or the reverse."""
        for check in ctx.meta.get(_PATHS, ()):
            check()
        return super().invoke(ctx)


class JudgedCommand(Command):
    """A command whose option `--judgements` may be given without a file: then it is the run's own."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        followers = [*args[1:], "--"]
        alone = [word == "--judgements" and after.startswith("-") for word, after in zip(args, followers, strict=True)]
        own = f"--judgements={_OWN_JUDGEMENTS}"
        return super().parse_args(ctx, [own if bare else word for word, bare in zip(args, alone, strict=True)])


_OWN_JUDGEMENTS = "the judgements of the run"


def judged_file(run: Path, file: Path | None) -> Path | None:
    """The file that `JudgedFile` names. Raises UserError: it is missing or a folder."""
    if file is None:
        return None
    if str(file) != _OWN_JUDGEMENTS:
        return existing_file(file)
    from sgpipe.files.stored_files import uri_of
    from sgpipe.storage.judgements import JUDGEMENTS
    from sgpipe.view.run_files import RunFiles

    own = (RunFiles(run).cache if uri_of(run) else run) / JUDGEMENTS
    if not own.exists():
        raise UserError(f"{run} has no {JUDGEMENTS}: judge relations with `sgpipe view {run}` first")
    return own


def _path_option(check: Callable[[Any], Any], kind: type = Path) -> Callable[..., Any]:
    """The callback of an option or argument whose paths `check` refuses by a UserError when the command runs."""

    def callback(ctx: typer.Context, param: typer.CallbackParam, value: Any) -> Any:
        paths = [] if value is None else value if isinstance(value, list | tuple) else [value]
        checks = [functools.partial(_check_path, check, param.opts[0], kind(path)) for path in paths]
        ctx.meta.setdefault(_PATHS, []).extend(checks)
        return value

    vars(callback)["check"] = check  # for the test
    return callback


def _check_images(location: str) -> None:
    from sgpipe.files.image_roots import check_images

    check_images(location)


def _check_stored_file(path: Path) -> None:
    from sgpipe.files.stored_files import stamp_stored

    stamp_stored(path)


def _check_path(check: Callable[[Any], Any], name: str, path: Path | str) -> None:
    try:
        check(path)
    except UserError as error:
        separator = ": " if str(error).startswith("no such") else " "
        raise UserError(f"{name}{separator}{error}" if name.startswith("-") else str(error)) from None


# What an option or argument that takes a path says of it: `typer.Option(…, callback=reads_folder)`. A test demands one
# of these for every path. `reads_later`: the command itself checks it; `reads_model`: a folder, or a name on the hub;
# `reads_images`: a folder, archives or a store; `reads_run`: a folder or an object store; `reads_place`: these, or a
# file; `reads_stored_file`: a file, also in a store; `reads_dataset`: a folder, a store, or a name on the hub.
reads_folder, reads_file, reads_path = map(_path_option, (existing_folder, existing_file, existing_path))
writes_folder, writes_file = map(_path_option, (writable_folder, writable_file))
reads_later, reads_model = _path_option(Path), _path_option(existing_model, str)
reads_images = _path_option(_check_images, str)
reads_run, reads_dataset = _path_option(existing_run, str), _path_option(existing_dataset, str)
reads_place, reads_stored_file = _path_option(existing_place), _path_option(_check_stored_file)

StoredRun = Annotated[
    Path,
    typer.Argument(
        help="Folder of a run or an import, or the object store of one, such as s3://bucket/labels.", callback=reads_run
    ),
]
Limit = Annotated[int | None, typer.Option(help="Use only the first N images.")]
Seed = Annotated[int | None, typer.Option(help="Random seed.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="Change any setting of the recipe: KEY=VALUE. Repeatable.")
]
Detector = Annotated[
    str | None, typer.Option(help="Object detector of transformers: folder or hub id.", callback=reads_model)
]
Captioner = Annotated[
    str | None,
    typer.Option(
        help="Image-text-to-text model of transformers, such as BLIP: folder or hub id.", callback=reads_model
    ),
]
Tagger = Annotated[
    str | None,
    typer.Option(
        help="R-Tagger: folder made by `sgpipe convert` or `sgpipe train`. With tag.method clip or vlm: its model.",
        callback=reads_model,
    ),
]
CalibrationFile = Annotated[
    Path | None,
    typer.Option(
        help="File of `sgpipe calibrate`, also in a store; minimum confidences are probabilities then.",
        callback=reads_stored_file,
    ),
]
ExpectedPrecision = Annotated[
    float | None,
    typer.Option(help="With --calibration: keep the relations with this expected precision, such as 0.9."),
]
JudgedFile = Annotated[
    Path | None,
    typer.Option(
        "--verdicts",
        "--judgements",
        help="File that a page of `sgpipe stats --review` exported, or a file of judgements of `sgpipe view`. "
        "--judgements alone: the run's own.",
        callback=reads_later,
    ),
]
RayAddress = Annotated[str | None, typer.Option(help="Ray cluster to connect to, such as auto.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
MovedImages = Annotated[
    str | None,
    typer.Option(help="Where the images are, if they have moved: folder, archives or store.", callback=reads_images),
]
GroundTruthFolder = Annotated[
    Path | None,
    typer.Option(
        help="Shards with the ground truth, such as `sgpipe import` writes, also in a store. Default: the run's own, "
        "if any.",
        callback=reads_run,
    ),
]
ImageData = Annotated[
    Path | None,
    typer.Option(
        help="Visual Genome's image_data.json, if Visual Genome is the ground truth for COCO; also in a store.",
        callback=reads_stored_file,
    ),
]
GuessedSplit = Annotated[
    str | None,
    typer.Option(help="Name of the split. Default: what --annotations or --images are named after (val2017)."),
]
Classes = Annotated[
    Path | None,
    typer.Option(help="JSON: the names of objects and relations, if not the data's.", callback=reads_file),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


class Dtype(StrEnum):
    """The number format that a model computes in."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


@dataclass(frozen=True, kw_only=True)
class InferenceOptions:
    """How a trained model runs on the images of shards."""

    split: Annotated[str | None, typer.Option(help="Use only this split of the shards.")] = None
    images: MovedImages = None
    batch: Annotated[int, typer.Option(min=1, help="Images per batch.")] = 4
    dtype: Annotated[Dtype, typer.Option(help="Number format. auto: bfloat16 on GPUs that support it.")] = Dtype.AUTO
    device: Device = "auto"
    workers: Annotated[int, typer.Option(min=1, help="Worker processes; Ray starts them if more than one.")] = 1
    gpus: Annotated[
        float, typer.Option(min=0, help="GPUs per worker, 0 to 1. One worker takes a GPU anyway, if there is one.")
    ] = 0

    def as_arguments(self) -> dict[str, Any]:
        """The arguments of `ModelRun` that these options set."""
        return {**vars(self), "dtype": self.dtype.value}


def with_option_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Replace each parameter whose type is a dataclass by the options in that dataclass.

    The command still receives the dataclass; typer sees only the options.
    """
    parameters: dict[str, inspect.Parameter] = {}
    groups: dict[str, tuple[type, list[str]]] = {}
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        group = parameter.annotation
        if isinstance(group, type) and dataclasses.is_dataclass(group):
            options = _options_of(group)
            groups[parameter.name] = (group, list(options))
            parameters |= options
        else:
            parameters[parameter.name] = parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)

    @functools.wraps(command)
    def run(**values: Any) -> None:
        for name, (group, options) in groups.items():
            values[name] = group(**{option: values.pop(option) for option in options})
        command(**values)

    vars(run)["__signature__"] = inspect.Signature(list(parameters.values()))
    run.__annotations__ = {name: parameter.annotation for name, parameter in parameters.items()}
    return run


def _options_of(group: type) -> dict[str, inspect.Parameter]:
    types = get_type_hints(group, include_extras=True)
    return {
        field.name: inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default,
            annotation=types[field.name],
        )
        for field in dataclasses.fields(group)
    }
