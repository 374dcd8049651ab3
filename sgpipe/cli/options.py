"""The options that several commands share, each declared once.

A group is a dataclass of such types: a `command` takes it as one parameter; the command line shows
its options.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer
from typer.models import ArgumentInfo, OptionInfo

from sgpipe.errors import UserError
from sgpipe.utils import console

if TYPE_CHECKING:
    from sgpipe.files.locations import Location
    from sgpipe.storage.losses import Loss
    from sgpipe.storage.run_folder import GroundTruth

    Place = Any  # a Location, which many functions still declare as a Path
else:
    # A file, folder or URI of a store: `--help` shows the name of the type.
    Place = type("path", (), {})

# headings of `--help`
DATA = "Data"
MODELS = "Models"
COMPUTE = "Compute"
_OWN = "own"

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


def judged_file(run: str | Location, file: Path | None) -> Path | None:
    """Return the file of judgements that is meant: "own" is the run's. Raises UserError: it is
    missing.
    """
    if file is not None and str(file) == _OWN:
        from sgpipe.storage.run_folder import RunFiles

        file = RunFiles(run).judgements
    if file is not None and not file.is_file():
        raise UserError(
            f"--judgements: no such file: {file}; `sgpipe view {run}` makes the run's own"
        )
    return file


def ground_truth_for(
    run: Location,
    truth: Location | None = None,
    image_data: Location | None = None,
    targets: Location | None = None,
) -> GroundTruth:
    """Return the given ground truth of a run, or its own. Raises UserError: there is neither."""
    from sgpipe.storage.run_folder import GroundTruth, ground_truth_of

    known = ground_truth_of(run) if truth is None else GroundTruth(truth)
    if known is None:
        raise UserError(
            f"{run} has no ground truth of its own: pass --truth or, to calibrate, --judgements"
        )
    return GroundTruth(known.relations, targets or known.required, image_data or known.image_data)


def certificate_of(run: str | Location) -> dict[str, Any]:
    """Return the certificate of a run after computing it again. Raises UserError: there is none, or
    it is not valid.
    """
    from sgpipe.stats.certify import check
    from sgpipe.storage.run_folder import RunFiles

    return check(run, RunFiles(run).judgements)


def certified_threshold(runs: Iterable[str | Location]) -> float:
    """Return the confidence that the certificates of runs keep. Raises UserError: it is not one for
    all relations.
    """
    predicates = set[str | None]()
    thresholds = set[float]()
    for run in runs:
        for certified in certificate_of(run)["sets"]:
            predicates.add(certified["predicate"])
            thresholds.add(certified["threshold"])
    if predicates != {None} or len(thresholds) != 1:
        raise UserError(
            "--certified needs one threshold: no certificates by predicate or of several thresholds"
        )
    return float(min(thresholds))


def say(message: str) -> None:
    """Print a line beside the progress, which --quiet suppresses."""
    console.progress().print(message, soft_wrap=True)


def say_losses(losses: Iterable[Loss]) -> None:
    """Print a note on each kind of loss that is worth one."""
    for loss in losses:
        if loss.is_noteworthy:
            say(f"NOTE: {loss}")


def show(line: str) -> None:
    console.output().print(line, soft_wrap=True)


def run_size(images: int, shards: int) -> str:
    return f"{console.count(images, 'image')} in {console.count(shards, 'shard')}"


def printed_json(is_requested: bool, result: object) -> bool:
    """Print a result as JSON instead of text if that is requested, and return whether it is."""
    if is_requested:
        print(console.json_text(result, 2))
    return is_requested


StoredRun = Annotated[
    Place, stored_argument("Folder or store (s3://bucket/labels) of a run or an import.")
]
Limit = Annotated[int | None, option("Use only the first N images.", min=1, panel=DATA)]
Seed = Annotated[int | None, option("Random seed.", min=0)]
Settings = Annotated[
    list[str] | None, option("Change any setting of the recipe: KEY=VALUE. Repeatable.", "--set")
]
Detector = Annotated[
    str | None, reads_model("Object detector of transformers: folder or hub id; or miniworld.")
]
Captioner = Annotated[
    str | None,
    reads_model(
        "Image-text-to-text model, such as BLIP: folder or hub id; miniworld; or a class of your"
        " own: package.module:Class."
    ),
]
Tagger = Annotated[
    str | None,
    reads_model("R-Tagger, by `sgpipe convert` or `train`, or miniworld; clip, vlm: their model."),
]
CalibrationFile = Annotated[
    Place | None, reads_stored("File of `sgpipe calibrate`: thresholds are probabilities.")
]
MinConfidence = Annotated[
    float | None,
    option("Minimum confidence of relations (--calibration: probability).", min=0, max=1),
]
ExpectedPrecision = Annotated[
    float | None, option("--calibration: keep relations of this precision.", min=0, max=1)
]
Certified = Annotated[
    bool, option("Keep the relations of the run's certificate (`sgpipe certify`).", "--certified")
]
JudgedFile = Annotated[
    Path | None, option(f"File of `sgpipe view`; {_OWN}: the run's.", "--judgements")
]
RayAddress = Annotated[
    str | None, option("Ray cluster to connect to, such as auto.", panel=COMPUTE)
]
Device = Annotated[str, option("auto, cpu, cuda or cuda:N.", panel=COMPUTE)]
MovedImages = Annotated[
    str | None, reads_images("Where the images are now: folder, archives or store.")
]
GroundTruthFolder = Annotated[
    Place | None, reads_stored("Shards with ground truth. Default: the run's own.")
]
ImageData = Annotated[
    Place | None, reads_stored("image_data.json, if Visual Genome is ground truth for COCO.")
]
GuessedSplit = Annotated[
    str | None, option("Split. Default: that in --annotations or --images (val2017).", panel=DATA)
]
Classes = Annotated[
    Path | None, reads_file("JSON: the names of objects and relations, if not the data's.")
]
Json = Annotated[bool, option("Print JSON instead of text.", "--json")]


@dataclass(frozen=True, kw_only=True)
class InferenceOptions:
    """How a trained model runs on the images of shards: arguments of `ModelRun`."""

    split: Annotated[str | None, option("Use only this split of the shards.", panel=DATA)] = None
    images: MovedImages = None
    batch: Annotated[int, option("Images per batch.", min=1, panel=COMPUTE)] = 4
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"], option("auto: bfloat16 on GPUs.", panel=COMPUTE)
    ] = "auto"
    device: Device = "auto"
    workers: Annotated[
        int, option("Worker processes; Ray starts them if more than one.", min=1, panel=COMPUTE)
    ] = 1
    gpus: Annotated[
        float, option("GPUs per worker, 0 to 1. One worker: if any.", min=0, max=1, panel=COMPUTE)
    ] = 0


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

    run.__doc__ = (function.__doc__ or "").replace(
        "Examples:\n", "Examples:\n\n"
    )  # a paragraph for typer
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
            same = options.setdefault(os.path.realpath(value), option)
            if same != option:
                raise UserError(f"{same} and {option} are the same file")
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
    if callback not in (stored, maybe_path) and not isinstance(value, Path | list):
        return []
    places = value if isinstance(value, list) else [value]
    return [place for place in places if isinstance(place, str | Path) and "://" not in str(place)]
