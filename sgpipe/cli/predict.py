"""`sgpipe predict`: the predictions of a trained model, as a file."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sgpipe.cli.options import Classes, InferenceOptions, Json, reads_run, with_option_groups, writes_file
from sgpipe.errors import UserError
from sgpipe.utils import console
from sgpipe.utils.console import count

if TYPE_CHECKING:
    from sgpipe.evaluation.benchmarks.evaluate_model import ModelRun
    from sgpipe.inference.writers import WriteSummary


class PredictionFormat(StrEnum):
    """The benchmark whose evaluator reads the file."""

    HICO = "hico"
    VCOCO = "vcoco"
    OPENIMAGES = "openimages"
    VG = "vg"


@with_option_groups
def predict(
    *,
    model: Annotated[
        Path,
        typer.Argument(help="Folder or store of a ParSeDA or ParSeD model, or of its training.", callback=reads_run),
    ],
    data: Annotated[Path, typer.Option(help="Folder of shards, or their object store.", callback=reads_run)],
    out: Annotated[
        Path, typer.Option(help="File to write: .json for `sgpipe eval`, or .parquet.", callback=writes_file)
    ],
    form: Annotated[
        PredictionFormat | None,
        typer.Option(
            help="Benchmark whose evaluator reads the file. Default: hico; for .parquet, what fits the model."
        ),
    ] = None,
    most: Annotated[int, typer.Option(min=1, help="Triplets to keep per image (vg: pairs), best first.")] = 100,
    zero_shot: Annotated[
        bool, typer.Option("--zero-shot", help="hico: drop pairs whose subject is not classified as a person.")
    ] = False,
    classes: Classes = None,
    short_side: Annotated[
        int | None, typer.Option(min=32, help="Short side of the resized image, in pixels. Default: as in training.")
    ] = None,
    long_side: Annotated[int | None, typer.Option(min=32, help="Maximum long side, in pixels.")] = None,
    inference: InferenceOptions,
    json_: Json = False,
) -> None:
    """Predict relations in the images of shards with a trained model."""
    import json

    from sgpipe.evaluation.benchmarks.evaluate_model import ModelRun

    if out.suffix not in (".json", ".parquet"):
        raise UserError(f"--out {out}: expected a file that ends in .json or .parquet")
    sides = _sides(short_side, long_side)
    run = ModelRun(model=model, data=data, classes=classes, sides=sides, **inference.as_arguments())
    written = _write(run, out, form, most, zero_shot)
    if not written.images:
        raise UserError(f"no image could be read: {written.reason}")
    if json_:
        print(json.dumps({"out": str(out), **asdict(written)}, indent=2))
        return
    screen = console.output()
    screen.print(f"wrote predictions for {count(written.images, 'image')} to {out}", soft_wrap=True)
    if written.failed:
        failed = count(written.failed, "image")
        screen.print(f"NOTE: {failed} could not be read; first error: {written.reason}", soft_wrap=True)


def _sides(short_side: int | None, long_side: int | None) -> tuple[int, int] | None:
    """Raises UserError: only one is given, or the short side is the longer one."""
    if short_side is None and long_side is None:
        return None
    if short_side is None or long_side is None or short_side > long_side:
        raise UserError("give --short-side and --long-side together, with the short side no longer than the long side")
    return short_side, long_side


def _write(run: ModelRun, out: Path, form: PredictionFormat | None, most: int, zero_shot: bool) -> WriteSummary:
    import rlip_model.evaluation.hico_classes as hico
    from sgpipe.evaluation.benchmarks.classes import hoia_schema_of
    from sgpipe.inference.predictor import predict as predict_images
    from sgpipe.inference.writers.json_lists import write_hoia
    from sgpipe.inference.writers.parquet import write_parquet
    from sgpipe.sources.hoi import HICO
    from sgpipe.stages.detect.detectors import load_detector

    parquet = out.suffix == ".parquet"
    if form in (PredictionFormat.VG, PredictionFormat.VCOCO):
        if parquet:
            raise UserError(f"--form {form.value} needs every score of a pair, which .parquet lacks: write .json")
        return _write_whole_pairs(run, out, form, most)
    if form is None and parquet:
        subjects = load_detector(run.model).config.subject_class
        form = PredictionFormat.OPENIMAGES if subjects else PredictionFormat.HICO
    if form is PredictionFormat.OPENIMAGES:
        config, key = run.config("scene graph"), "rel_prediction"
    else:
        config, key = run.config("zero-shot hoi" if zero_shot else "hoi"), "hoi_prediction"
    hico_det = form is not PredictionFormat.OPENIMAGES and config.classes == HICO.classes
    possible = hico.possible_interactions() if hico_det else None
    if parquet:
        return write_parquet(predict_images(config, run.row_groups()), out, config.classes, most, possible)
    schema = run.hoia_schema() or hoia_schema_of(config.classes)
    return write_hoia(predict_images(config, run.row_groups()), out, schema, key, most, possible)


def _write_whole_pairs(run: ModelRun, out: Path, form: PredictionFormat, most: int) -> WriteSummary:
    """For evaluators that need the scores of all predicates of a pair."""
    from sgpipe.inference.predictor import predict as predict_images
    from sgpipe.inference.writers.json_lists import PeopleConverter, vcoco_actions, write_graphs, write_vcoco

    if form is PredictionFormat.VG:
        graphs = run.config("scene graph")
        return write_graphs(predict_images(graphs, run.row_groups()), out, graphs.classes, most)
    config = run.config("hoi")
    converter = PeopleConverter(config.classes, vcoco_actions(config.classes.relations))
    return write_vcoco(predict_images(config, run.row_groups()), out, converter)
