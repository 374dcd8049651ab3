"""`sgpipe predict`: what a trained network finds in images, as a file."""

from __future__ import annotations

from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sgpipe.errors import UserError
from sgpipe.utils import console

if TYPE_CHECKING:
    from sgpipe.evaluation.benchmarks.evaluate_model import ModelRun
    from sgpipe.inference.writers.base import WriteSummary


Data = Annotated[Path, typer.Option(help="Folder of shards.")]
Split = Annotated[str | None, typer.Option(help="Only this split of the shards.")]
Images = Annotated[Path | None, typer.Option(help="Image folder of the shards, if it moved.")]
Classes = Annotated[Path | None, typer.Option(help="JSON: the names of objects and relations, if not the data's.")]
Batch = Annotated[int, typer.Option(min=1, help="Images at once.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes, on Ray if more than one.")]
Gpus = Annotated[float, typer.Option(min=0, help="GPUs of each process, with several.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
ShortSide = Annotated[int | None, typer.Option(min=32, help="Pixels; as in training by default.")]
LongSide = Annotated[int | None, typer.Option(min=32, help="Pixels, at most.")]


class Precision(str, Enum):
    """How the network computes."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Form(str, Enum):
    """Whose evaluator reads the file."""

    HICO = "hico"
    VCOCO = "vcoco"
    OPENIMAGES = "openimages"
    VG = "vg"


Dtype = Annotated[Precision, typer.Option(help="bfloat16 on GPUs that have it, or always this.")]


def predict(
    model: Annotated[Path, typer.Argument(help="Folder of a ParSeDA or ParSeD, or of its training.")],
    data: Data,
    out: Annotated[Path, typer.Option(help="File to write: .json as `sgpipe eval` reads, or .parquet.")],
    form: Annotated[
        Form | None, typer.Option(help="Whose evaluator reads the file: hico by default; any, of Parquet.")
    ] = None,
    most: Annotated[int, typer.Option(min=1, help="Triplets of an image, the best ones (vg: pairs).")] = 100,
    zero_shot: Annotated[
        bool, typer.Option("--zero-shot", help="hico: leave out subjects that look like no person.")
    ] = False,
    split: Split = None,
    images: Images = None,
    classes: Classes = None,
    batch: Batch = 4,
    dtype: Dtype = Precision.AUTO,
    device: Device = "auto",
    short_side: ShortSide = None,
    long_side: LongSide = None,
    workers: Workers = 1,
    gpus: Gpus = 0,
    json_: Annotated[bool, typer.Option("--json", help="Print how many there were as JSON.")] = False,
) -> None:
    """Write what a trained network finds in the images of shards."""
    import json

    from sgpipe.evaluation.benchmarks.evaluate_model import ModelRun

    if out.suffix not in (".json", ".parquet"):
        raise UserError(f"--out {out}: expected a file that ends in .json or .parquet")
    run = ModelRun(
        model,
        data,
        split=split,
        images=images,
        classes=classes,
        batch=batch,
        dtype=dtype.value,
        device=device,
        sides=sides(short_side, long_side),
        workers=workers,
        gpus=gpus,
    )
    written = _write(run, out, form, most, zero_shot)
    if not written.images:
        raise UserError(f"no image could be read: {written.reason}")
    if json_:
        print(json.dumps({"out": str(out), **asdict(written)}, indent=2))
        return
    screen = console.output()
    screen.print(f"wrote predictions of {written.images:,} images to {out}", soft_wrap=True)
    if written.failed:
        screen.print(f"NOTE: {written.failed:,} could not be read; the first: {written.reason}", soft_wrap=True)


def sides(short_side: int | None, long_side: int | None) -> tuple[int, int] | None:
    """Raises UserError: one is missing, or they are in the wrong order."""
    if short_side is None and long_side is None:
        return None
    if short_side is None or long_side is None or short_side > long_side:
        raise UserError("--short-side and --long-side go together, the shorter one being no longer than the other")
    return short_side, long_side


def _write(run: ModelRun, out: Path, form: Form | None, most: int, zero_shot: bool) -> WriteSummary:
    import rlip_model.evaluation.hico_classes as hico
    from sgpipe.evaluation.benchmarks.classes import numbering_of
    from sgpipe.inference.workers import predict as predict_images
    from sgpipe.inference.writers.hoia import write_hoia
    from sgpipe.inference.writers.parquet import write_parquet
    from sgpipe.sources.hoi import HICO
    from sgpipe.stages.detect.trained_networks import load_detector

    parquet = out.suffix == ".parquet"
    if form is Form.VG or form is Form.VCOCO:
        if parquet:
            raise UserError(f"--form {form.value} needs all scores of a pair, and Parquet has the best: write .json")
        return _write_whole_pairs(run, out, form, most)
    if form is None and parquet:
        form = Form.OPENIMAGES if load_detector(run.model).config.subject_class else Form.HICO
    if form is Form.OPENIMAGES:
        config, key = run.config("scene graph"), "rel_prediction"
    else:
        config, key = run.config("zero-shot hoi" if zero_shot else "hoi"), "hoi_prediction"
    hico_det = form is not Form.OPENIMAGES and config.classes == HICO.classes
    possible = hico.possible_interactions() if hico_det else None
    if parquet:
        return write_parquet(predict_images(config, run.row_groups()), out, config.classes, most, possible)
    numbering = run.numbering() or numbering_of(config.classes)
    return write_hoia(predict_images(config, run.row_groups()), out, numbering, key, most, possible)


def _write_whole_pairs(run: ModelRun, out: Path, form: Form, most: int) -> WriteSummary:
    """For the evaluators that want all predicates of a pair."""
    from sgpipe.inference.workers import predict as predict_images
    from sgpipe.inference.writers.graphs import write_graphs
    from sgpipe.inference.writers.vcoco import PeopleConverter, vcoco_actions, write_vcoco

    if form is Form.VG:
        return write_graphs(predict_images(run.config("scene graph"), run.row_groups()), out, most)
    config = run.config("hoi")
    converter = PeopleConverter(config.classes, vcoco_actions(config.classes.relations))
    return write_vcoco(predict_images(config, run.row_groups()), out, converter)
