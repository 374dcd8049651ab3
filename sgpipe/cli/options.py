"""The options that several commands share, each declared once, and what commands do with them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from sgpipe.cli.declare import (
    COMPUTE,
    DATA,
    Place,
    option,
    reads_file,
    reads_images,
    reads_model,
    reads_stored,
    stored_argument,
    stored_runs,
)
from sgpipe.errors import UserError
from sgpipe.utils import console

if TYPE_CHECKING:
    from sgpipe.files.locations import Location
    from sgpipe.storage.certificate import Certificate
    from sgpipe.storage.losses import Loss
    from sgpipe.storage.run_folder import GroundTruth

_OWN = "own"

StoredRun = Annotated[
    Place, stored_argument("Folder or store (s3://bucket/labels) of a run or an import.")
]
StoredRuns = Annotated[
    Place,
    stored_argument(
        "A run or an import: folder or store. Several: 'labels/part-*', or a YAML file.",
        callback=stored_runs,
    ),
]
Limit = Annotated[int | None, option("Use only the first N images.", min=1, panel=DATA)]
PartOfImages = Annotated[
    str | None,
    option("Label one of N parts of the images, in a run of its own: I/N.", "--part", panel=DATA),
]
Seed = Annotated[int | None, option("Random seed.", min=0)]
Settings = Annotated[
    list[str] | None, option("Change any setting of the recipe: KEY=VALUE. Repeatable.", "--set")
]
OwnStages = Annotated[
    list[str] | None,
    option("Stage of your own after one: STAGE=package.module:Class. Repeatable.", "--then"),
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
    reads_model(
        "R-Tagger, by `sgpipe convert` or `train`, or miniworld; clip, vlm: their model; or a class"
        " of your own: package.module:Class."
    ),
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
Processes = Annotated[
    int | None,
    option("Processes. Default: one for each CPU.", "--workers", min=1, panel=COMPUTE),
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


def judged_file(run: str | Location, file: Path | None) -> Path | None:
    """Return the file of judgements that is meant: "own" is the run's.

    Raises:
        UserError: it is missing.
    """
    if file is not None and str(file) == _OWN:
        from sgpipe.storage.datasets import open_files

        file = open_files(run).judgements
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
    """Return the given ground truth of a run, or its own.

    Raises:
        UserError: there is neither.
    """
    from sgpipe.storage.run_folder import GroundTruth, ground_truth_of

    known = ground_truth_of(run) if truth is None else GroundTruth(truth)
    if known is None:
        raise UserError(
            f"{run} has no ground truth of its own: pass --truth or, to calibrate, --judgements"
        )
    return GroundTruth(known.relations, targets or known.required, image_data or known.image_data)


def certificate_of(run: str | Location) -> Certificate:
    """Return the certificate of a run after computing it again.

    Raises:
        UserError: there is none, or it is not valid.
    """
    from sgpipe.stats.certify import check
    from sgpipe.storage.datasets import open_files

    return check(run, open_files(run).judgements)


def certified_threshold(runs: Iterable[str | Location]) -> float:
    """Return the confidence that the certificates of runs keep.

    Raises:
        UserError: it is not one for all relations.
    """
    predicates = set[str | None]()
    thresholds = set[float]()
    for run in runs:
        for certified in certificate_of(run).sets:
            predicates.add(certified.predicate)
            thresholds.add(certified.threshold)
    if predicates != {None} or len(thresholds) != 1:
        raise UserError(
            "--certified needs one threshold: no certificates by predicate or of several thresholds"
        )
    return thresholds.pop()


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
